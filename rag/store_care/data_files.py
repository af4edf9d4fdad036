"""The files of the data folder that a backup holds, and SQLite databases copied while others write to them.

Knows nothing of what is in them, but that `edited.toml` takes no secrets (the settings refuse to write one).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rag.errors import RagError

SETTINGS = ("edited.toml", "samples.done")
PARTS = ("databases", "settings", "uploads")
_HEADER = b"SQLite format 3\x00"
BUSY_SECONDS = 10.0


def files(data_dir: Path, parts: Sequence[str]) -> list[str]:
    """Names inside the data folder, those that are there: every SQLite database, what pages changed, uploaded documents."""
    found: list[str] = []
    if "databases" in parts:
        found += sorted(path.name for path in data_dir.glob("*.db") if is_database(path))
    if "settings" in parts:
        found += [name for name in SETTINGS if (data_dir / name).is_file()]
    if "uploads" in parts:
        found += sorted(f"uploads/{path.name}" for path in (data_dir / "uploads").glob("*") if path.is_file())
    return found


def part_of(name: str) -> str:
    """The part that a file belongs to."""
    if name.startswith("uploads/"):
        return "uploads"
    return "settings" if name in SETTINGS else "databases"


def is_database(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_HEADER)) == _HEADER


def copy_database(source: Path, target: Path) -> None:
    """A consistent copy by SQLite's online backup, whatever is written meanwhile. Raises RagError."""
    try:
        with closing(sqlite3.connect(source, timeout=BUSY_SECONDS)) as ours, closing(sqlite3.connect(target)) as copy:
            ours.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, whatever mode the original is in
    except sqlite3.Error as error:
        target.unlink(missing_ok=True)
        raise RagError(
            f"the database {source} could not be copied: {error}",
            kind="internal",
            address=str(source),
            next_step="Check the disk's space; a damaged database can be left out with --without databases.",
        ) from error


def check_database(path: Path, name: str) -> None:
    """Raises RagError bad_input where SQLite finds the file damaged."""
    try:
        with closing(sqlite3.connect(path)) as db:
            said = db.execute("PRAGMA quick_check").fetchone()[0]
    except sqlite3.Error as error:
        said = str(error)
    if said != "ok":
        raise RagError(
            f"the database {name} in the backup is damaged: {said}",
            kind="bad_input",
            next_step="Take another backup, or restore without databases. Nothing was changed.",
        )


def holder(paths: Sequence[Path]) -> int | None:
    """The process that has one of these files open, where the system tells (Linux, our own processes); never this one."""
    wanted = {found.st_dev << 64 | found.st_ino for path in paths if path.exists() for found in [path.stat()]}
    if not wanted or not Path("/proc").is_dir():
        return None
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        try:
            for link in (folder / "fd").iterdir():
                try:
                    found = link.stat()
                except OSError:
                    continue
                if found.st_dev << 64 | found.st_ino in wanted:
                    return int(folder.name)
        except OSError:  # another user's, or it ended
            continue
    return None
