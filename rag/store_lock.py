"""Who holds the embedded store: a lock file whose content names the process and where it serves."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import IO

from rag.errors import HeldError


class StoreLock:
    """An advisory lock on a file; it goes with the process, however that ends."""

    def __init__(self, path: Path, url: str | None = None) -> None:
        self._path = path
        self._url = url
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Take the lock or raise HeldError with the holder's pid and URL."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read()
            file.close()
            raise self._held(holder) from None
        file.seek(0)
        file.truncate()
        json.dump({"pid": os.getpid(), "url": self._url, "command": Path(sys.argv[0]).name}, file)
        file.flush()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _held(self, holder: str) -> HeldError:
        try:
            record = json.loads(holder)
        except ValueError:
            record = {}
        pid, url = record.get("pid"), record.get("url")
        who = f"process {pid}" if pid else "another process"
        where = f" (the server at {url})" if url else ""
        step = "Wait until it ends, or end it"
        if url:
            step = f"Use that server's pages, or end it; `rag ask` and `latency load` take --api {url}"
        return HeldError(
            f"the embedded store {self._path.with_suffix('.db')} is open in {who}{where}; one process at a time can open it",
            pid=pid,
            url=url,
            address=str(self._path),
            next_step=f"{step}; or set MILVUS_URI to a Milvus server, which many processes can share.",
        )
