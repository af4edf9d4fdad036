"""What the cache has learnt and must not lose when its answers go: thresholds by embedder, and pairs that people reported.

A SQLite file of its own, so that a purge, a Redis that was flushed or a time to live take nothing of it.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from rag.cache.calibrate import Pair
from rag.cache.normalise import exact
from rag.cache.types import Thresholds
from rag.errors import RagError

SHIPPED = Path(__file__).parent / "thresholds.json"


class CacheBook:
    """Opens (or makes) the file at its first use. Thread-safe; raises RagError, naming the file."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._denied: frozenset[frozenset[str]] | None = None
        self._thresholds: dict[str, Thresholds] | None = None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                if self._db is None:
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                    self._db = sqlite3.connect(self._path, timeout=5.0, check_same_thread=False)
                    self._db.execute("PRAGMA journal_mode = WAL")
                    self._db.execute(
                        """CREATE TABLE IF NOT EXISTS pairs (
                            a TEXT NOT NULL, b TEXT NOT NULL, label TEXT NOT NULL, language TEXT NOT NULL, at REAL NOT NULL,
                            UNIQUE (a, b))"""
                    )
                    self._db.execute(
                        "CREATE TABLE IF NOT EXISTS thresholds (embedder TEXT PRIMARY KEY, body TEXT NOT NULL, at REAL)"
                    )
                with self._db:
                    yield self._db
            except (sqlite3.Error, OSError) as problem:
                if self._db is not None:
                    self._db.close()
                    self._db = None
                raise RagError(
                    f"{self._path}: {problem}", kind="internal", next_step="Free space, or move the damaged file away."
                ) from problem

    # thresholds

    def thresholds(self, embedder: str) -> Thresholds | None:
        """Those calibrated here, else those that came with RAG Deck, else None. A file that cannot be read counts as none."""
        if self._thresholds is None:
            shipped = json.loads(SHIPPED.read_text(encoding="utf-8")) if SHIPPED.exists() else []
            try:
                with self._open() as db:
                    own = [json.loads(row[0]) for row in db.execute("SELECT body FROM thresholds")]
            except RagError:
                own = []
            self._thresholds = {item["embedder"]: Thresholds(**item) for item in (*shipped, *own)}
        return self._thresholds.get(embedder)

    def calibrated_at_unix(self, embedder: str) -> float | None:
        """When thresholds were put in force here; None where those that came with RAG Deck hold, or none."""
        with self._open() as db:
            row = db.execute("SELECT at FROM thresholds WHERE embedder = ?", (embedder,)).fetchone()
        return None if row is None else float(row[0] or 0.0)

    def set_thresholds(self, found: Thresholds) -> None:
        with self._open() as db:
            body = json.dumps(asdict(found))
            db.execute("INSERT OR REPLACE INTO thresholds VALUES (?, ?, ?)", (found.embedder, body, self._clock()))
        self._thresholds = None

    # pairs

    def add_pair(self, asked: str, cached: str, label: Literal["same", "different"], language: str = "?") -> None:
        """Two questions that a person has judged; a later judgement replaces an earlier one."""
        with self._open() as db:
            db.execute("DELETE FROM pairs WHERE a = ? AND b = ?", (cached, asked))
            db.execute("INSERT OR REPLACE INTO pairs VALUES (?, ?, ?, ?, ?)", (asked, cached, label, language, self._clock()))
        self._denied = None

    def remove_pair(self, asked: str, cached: str) -> bool:
        """Take a judgement back; False where there was none."""
        with self._open() as db:
            gone = db.execute("DELETE FROM pairs WHERE a = ? AND b = ?", (asked, cached)).rowcount > 0
        self._denied = None
        return gone

    def pairs(self) -> tuple[Pair, ...]:
        """As a calibration takes them; each is a family with all that shares a question with it."""
        with self._open() as db:
            rows = db.execute("SELECT a, b, label, language FROM pairs ORDER BY at").fetchall()
        return tuple(
            Pair(f"reported-{number}", f"reported-{b}", language, label, "reported", a, b)
            for number, (a, b, label, language) in enumerate(rows, 1)
        )

    def denied(self, asked: str, cached: str) -> bool:
        """Whether somebody said that these two must not share an answer."""
        if self._denied is None:
            try:
                self._denied = frozenset(frozenset((exact(p.a), exact(p.b))) for p in self.pairs() if p.label == "different")
            except RagError:
                return False
        return bool(self._denied) and frozenset((exact(asked), exact(cached))) in self._denied

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None
