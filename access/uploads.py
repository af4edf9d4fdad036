"""Uploaded files before anything of them is stored: how many, how large, of which kind by name and by content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from rag.errors import RagError
from rag.loaders import SUPPORTED
from rag.loaders.document import LoadError
from rag.loaders.packages import check_kind

MAX_NAME_CHARS = 500
_PROGRAMS = (b"MZ", b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")


class Bounds(NamedTuple):
    """Of one upload."""

    files: int = 100
    file_bytes: int = 50_000_000
    total_bytes: int = 500_000_000


def check(uploads: Sequence[tuple[str, bytes]], bounds: Bounds, suffixes: Sequence[str] = SUPPORTED) -> None:
    """All of them or none: raises RagError bad_input for the first (name, content) that is not to be stored."""
    if len(uploads) > bounds.files:
        raise _refused(f"{len(uploads):,} files are too many", f"Send at most {bounds.files:,} at once.")
    total = sum(len(data) for _, data in uploads)
    if total > bounds.total_bytes:
        raise _refused(f"the files have {total:,} bytes", f"Send at most {bounds.total_bytes:,} bytes at once.")
    for name, data in uploads:
        _check_one(name, data, bounds, suffixes)


def _check_one(name: str, data: bytes, bounds: Bounds, suffixes: Sequence[str]) -> None:
    shown = "".join(character if character.isprintable() else "\ufffd" for character in name)[:100]
    if not name or len(name) > MAX_NAME_CHARS or "\0" in name:
        raise _refused(f"{shown!r} is no name of a file", f"Name it with at most {MAX_NAME_CHARS} characters.")
    suffix = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    if suffix not in suffixes:
        raise _refused(f"{shown!r} is of a kind that is not read", f"Kinds that are: {' '.join(suffixes)}.")
    if len(data) > bounds.file_bytes:
        raise _refused(f"{shown!r} has {len(data):,} bytes", f"A file has at most {bounds.file_bytes:,} (ingest.max_file_bytes).")
    if suffix == ".pdf" and b"%PDF-" not in data[:1024]:  # readers allow some bytes before it
        raise _refused(f"{shown}: is no PDF", "Give it the suffix of its kind.")
    if data.startswith(_PROGRAMS) and b"\0" in data[:1024]:
        raise _refused(f"{shown}: holds a program", "Send documents.")
    try:
        check_kind(shown, suffix, data)
    except LoadError as problem:
        raise RagError(problem.message, kind="bad_input", next_step=problem.next_step) from None


def _refused(message: str, next_step: str) -> RagError:
    return RagError(message, kind="bad_input", next_step=next_step)
