"""Secrets that are planted, and the search for them: as they are, in part, in base64, in SQLite rows, compressed or zipped."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import re
import sqlite3
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

PART_CHARS = 12  # so much of a secret in a row counts as a leak
BASE64_CHARS, BASE64_STEP = 16, 6  # and of its base64 so much, at every so manieth place: 21 in a row
_HEX = re.compile(rb"[0-9a-f]{12,}")


def canary(name: str) -> str:
    """40 hex digits that nothing else holds."""
    return hashlib.sha1(f"ragdeck canary {name}".encode()).hexdigest()


class Search:
    """Finds any of the secrets, by `names`: whole or PART_CHARS in a row, plain or in base64 at any alignment, either case."""

    def __init__(self, names: Iterable[str]) -> None:
        self._parts: dict[bytes, str] = {}
        self._packed: dict[bytes, str] = {}
        for name in names:
            secret = canary(name).encode()
            for at in range(len(secret) - PART_CHARS + 1):
                self._parts[secret[at : at + PART_CHARS]] = name
            for shift in range(3):
                packed = base64.b64encode(b"x" * shift + secret)[4:-4]
                for at in range(0, len(packed) - BASE64_CHARS + 1, BASE64_STEP):
                    self._packed[packed[at : at + BASE64_CHARS].lower()] = name

    def found(self, data: bytes) -> set[str]:
        """Names of the secrets in the bytes, also behind zlib, gzip or zip."""
        names: set[str] = set()
        for plain in _layers(data):
            small = plain.lower()
            names |= {name for part, name in self._packed.items() if part in small}
            for run in set(_HEX.findall(small)):
                windows = (run[at : at + PART_CHARS] for at in range(len(run) - PART_CHARS + 1))
                names |= {self._parts[part] for part in windows if part in self._parts}
        return names

    def in_folder(self, folder: Path, but: Iterable[Path] = ()) -> dict[str, set[str]]:
        """Leaks by file (and table of a database); nothing in a clean folder. `but` are files that hold secrets rightly."""
        leaks: dict[str, set[str]] = {}
        for path in sorted(folder.rglob("*")):
            if not path.is_file() or path in set(but):
                continue
            try:
                places = {str(path): path.read_bytes(), **dict(_cells(path))}
            except FileNotFoundError:  # of a process that runs: gone since it was listed, so nothing of it is kept
                continue
            leaks |= {place: names for place, data in places.items() if (names := self.found(data))}
        return leaks


def _layers(data: bytes) -> Iterator[bytes]:
    """The bytes, and what they hold compressed."""
    yield data
    for unpack in (zlib.decompress, gzip.decompress):
        try:
            yield unpack(data)
        except (zlib.error, OSError, EOFError):
            continue
    if data[:2] == b"PK" and zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode() + b"\n" + archive.read(name)


def _cells(path: Path) -> Iterator[tuple[str, bytes]]:
    """(file and table, all its values unpacked) of a SQLite file, its WAL included; nothing for other files."""
    with path.open("rb") as file:
        if file.read(15) != b"SQLite format 3":
            return
    db = sqlite3.connect(path.as_uri() + "?mode=ro", uri=True, timeout=10)
    try:
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            try:
                rows = db.execute(f'SELECT * FROM "{table}"').fetchall()
            except sqlite3.DatabaseError:  # a virtual table whose module is not here; its text lies in its shadow tables
                continue
            values = [value if isinstance(value, bytes) else str(value).encode() for row in rows for value in row]
            yield f"{path} {table}", b"\n".join(layer for value in values for layer in _layers(value))
    finally:
        db.close()
