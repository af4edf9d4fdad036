"""The parts, read as one tar archive, to files below a folder. Trusts nothing that the manifest does not name."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import InstallError
from .verifying import CHUNK_BYTES, COPY_AGAIN, safe_path


class Parts(io.RawIOBase):
    """The parts, one behind the other, as one file that is read from front to back."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._left = list(paths)
        self._file: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._file is None:
                if not self._left:
                    return 0
                self._file = self._left.pop(0).open("rb")
            count = int(self._file.readinto(buffer))
            if count:
                return count
            self._file.close()
            self._file = None


def unpack(bundle: Path, manifest: dict[str, Any], to: Path, say: Callable[[str], None]) -> None:
    """Writes the manifest's files below `to`, an empty folder: regular files only, each checked. Raises InstallError."""
    wanted = {file["path"]: file for file in manifest["files"]}
    count = len(wanted)
    stream = io.BufferedReader(Parts([bundle / part["name"] for part in manifest["parts"]]), CHUNK_BYTES)
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            safe_path(member.name)
            entry = wanted.pop(member.name, None)
            if entry is None or not member.isreg() or member.size != entry["bytes"]:
                raise InstallError(f"the bundle holds {member.name!r}, which is not what its manifest says", COPY_AGAIN)
            _write(archive.extractfile(member), to / member.name, entry)
            say(f"unpacked {count - len(wanted):,} of {count:,} files")
    if wanted:
        raise InstallError(f"{len(wanted)} files of the manifest are not in the parts: {min(wanted)} …", COPY_AGAIN)


def _write(source: Any, path: Path, entry: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    try:
        with path.open("xb") as file:
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
    except OSError as problem:  # a write says no name by itself
        problem.filename = problem.filename or str(path)
        raise
    if digest.hexdigest() != entry["sha256"]:
        raise InstallError(f"{entry['path']} does not have the checksum of the manifest", COPY_AGAIN)
    path.chmod(0o755 if entry["mode"] & 0o100 else 0o644)
