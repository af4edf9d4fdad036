"""The last report, in one JSON file of the data folder, written whole or not at all. Results of parts are laid over it."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from pathlib import Path

from deploy.validation.checks import CODES
from deploy.validation.types import Report
from rag.errors import RagError

NAME = "readiness.json"
FORMAT = 1
LARGEST_BYTES = 20_000_000
_WRITING = threading.Lock()


def path_in(data_dir: Path) -> Path:
    return data_dir / NAME


def load(data_dir: Path) -> Report | None:
    """The last report; None where there is none. Raises RagError for a file that cannot be read."""
    path = path_in(data_dir)
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise ValueError("it is too large")
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r}")
        return Report.from_json(data["report"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        step = "Run the checks again: that writes it anew."
        raise RagError(f"{path} cannot be read: {problem}", kind="bad_input", address=str(path), next_step=step) from None


def save(data_dir: Path, report: Report) -> Report:
    """Lay the report over the one that is kept, and keep that; returns it. Raises RagError where it cannot be written."""
    with _WRITING:
        try:
            earlier = load(data_dir)
        except RagError:
            earlier = None
        whole = report.over(earlier, CODES)
        _write(path_in(data_dir), json.dumps({"format": FORMAT, "report": whole.to_json()}, ensure_ascii=False))
    return whole


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".readiness-", delete=False, encoding="utf-8") as file:
            file.write(text)
        os.replace(file.name, path)
    except OSError as problem:
        step = "Make room on the disk and the data folder writable; the report itself was made."
        raise RagError(f"{path} cannot be written: {problem.strerror}", address=str(path), next_step=step) from None
