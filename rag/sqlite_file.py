"""What every SQLite file of ours begins with: whose it is, which version, and WAL. Knows no table."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from rag.errors import RagError


def version_of(db: sqlite3.Connection, path: Path, application_id: int, newest: int) -> int:
    """The schema's version, 0 for a new file. Raises RagError for another program's file, and for one of a newer version."""
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    application = int(db.execute("PRAGMA application_id").fetchone()[0])
    tables = int(db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    if (version or tables) and application != application_id:
        raise RagError(
            f"{path} belongs to another program.", kind="bad_input", next_step="Move it away, or use another data folder."
        )
    if version > newest:
        raise RagError(f"{path} was written by a newer version.", kind="bad_input", next_step="Update this program.")
    return version


def turn_to_wal(db: sqlite3.Connection, wait_seconds: float) -> None:
    """SQLite does not wait by itself while two processes turn a new file to WAL."""
    end = time.monotonic() + wait_seconds
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(0.05)
