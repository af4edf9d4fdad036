"""API tokens, sessions opened with them, sign-ins that were ended: in one SQLite file that several processes may use.

The file holds SHA-256 of the secrets, never a secret. That is enough here, where a password would need a slow hash: a secret is
256 random bits, which nobody guesses however fast the hash is. Knows no HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from access.scopes import SCOPES, Identity, Scope, checked
from rag.errors import RagError

PREFIX, SESSION_PREFIX = "rdk", "rds"
SECRET_BYTES = 32
NOTE_SECONDS = 60.0  # last use is written at most so often
BUSY_SECONDS = 2.0
SESSION_SECONDS = 12 * 3600.0
NAME_CHARS = 100
MAX_TOKENS = 1000
_FORM = re.compile(r"(rdk|rds)_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS tokens (
    id TEXT PRIMARY KEY, hash BLOB NOT NULL, name TEXT NOT NULL, scopes TEXT NOT NULL, created_by TEXT NOT NULL,
    created_at_unix REAL NOT NULL, expires_at_unix REAL, revoked_at_unix REAL, used_at_unix REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY, hash BLOB NOT NULL, token_id TEXT NOT NULL, expires_at_unix REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ended (mark BLOB PRIMARY KEY, until_unix REAL NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is kept; times are Unix seconds. `prefix` is what may be shown of it."""

    id: str
    name: str
    scopes: frozenset[Scope]
    created_by: str
    created_at_unix: float
    expires_at_unix: float | None
    revoked_at_unix: float | None
    used_at_unix: float | None

    @property
    def prefix(self) -> str:
        return f"{PREFIX}_{self.id}_"

    def state(self, now_unix: float) -> str:
        """`revoked`, `expired` or `active`."""
        if self.revoked_at_unix is not None:
            return "revoked"
        return "expired" if self.expires_at_unix is not None and self.expires_at_unix <= now_unix else "active"


def looks_like_one(text: str) -> bool:
    """Whether it was made here; it may be revoked, or never have existed."""
    return text.startswith(f"{PREFIX}_")


class TokenStore:
    """The file at `path`, made with the first token. Thread-safe. `clock` gives Unix seconds."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock = path, clock
        self._noted: dict[str, float] = {}
        self._lock = threading.Lock()

    # 1) making and ending

    def create(self, name: str, scopes: object, *, created_by: str, expires_in_seconds: float | None = None) -> tuple[str, Token]:
        """(the secret, which is shown once and kept nowhere, the token). Raises RagError bad_input, internal."""
        try:
            allowed = checked(scopes)
        except ValueError as problem:
            raise RagError(str(problem), kind="bad_input", next_step="Scopes are read, ask, operate.") from None
        name = " ".join(name.split())
        if not name or len(name) > NAME_CHARS or not name.isprintable():
            raise RagError(f"a token's name has 1 to {NAME_CHARS} characters", kind="bad_input", next_step="Say what it is for.")
        if expires_in_seconds is not None and not 0 < expires_in_seconds < 1e10:
            raise RagError("a token expires in the future", kind="bad_input", next_step="Give a number of days above 0.")
        now = self._clock()
        expires = None if expires_in_seconds is None else now + expires_in_seconds
        token = Token(secrets.token_hex(6), name, allowed, created_by[:NAME_CHARS], now, expires, None, None)
        secret = secrets.token_urlsafe(SECRET_BYTES)
        row = (token.id, _hash(secret), name, _joined(allowed), token.created_by, now, expires, None, None)
        with self._change() as db:
            if db.execute("SELECT count(*) FROM tokens").fetchone()[0] >= MAX_TOKENS:
                raise RagError(f"there are {MAX_TOKENS} tokens", kind="bad_input", next_step="Revoke some; they go after a year.")
            db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        return f"{PREFIX}_{token.id}_{secret}", token

    def revoke(self, token_id: str) -> Token:
        """From the next request on it is worth nothing, nor are its sessions. Raises RagError not_found, internal."""
        wanted = token_id.removeprefix(f"{PREFIX}_").partition("_")[0]
        with self._change() as db:
            db.execute("UPDATE tokens SET revoked_at_unix = coalesce(revoked_at_unix, ?) WHERE id = ?", (self._clock(), wanted))
            db.execute("DELETE FROM sessions WHERE token_id = ?", (wanted,))
        found = next((token for token in self.all() if token.id == wanted), None)
        if found is None:
            step = "`python -m access token list` shows them."
            raise RagError(f"there is no token {token_id[:40]!r}", kind="not_found", next_step=step)
        return found

    def all(self) -> list[Token]:
        """The newest first. Raises RagError internal."""
        if not self.path.exists():
            return []
        with self._open() as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM tokens ORDER BY created_at_unix DESC, id").fetchall()
        return [_token(row) for row in rows]

    def any_active(self) -> bool:
        return any(token.state(self._clock()) == "active" for token in self.all())

    # 2) checking

    def identify(self, text: str) -> Identity | None:
        """Whose token or session this is; None for one that is wrong, revoked or expired. Raises RagError internal."""
        form = _FORM.fullmatch(text)
        if form is None or not self.path.exists():
            return None
        kind, key, secret = form.groups()
        with self._open() as db:
            token = self._session(db, key, secret) if kind == SESSION_PREFIX else self._token(db, key, secret)
        if token is None or token.state(self._clock()) != "active":
            return None
        self._note(token)
        return Identity(token.name, "api token", token.scopes, token.id)

    def open_session(self, token_id: str) -> str:
        """The value of a browser's cookie: a secret of its own, so that the token itself is not kept in the browser."""
        key, secret, now = secrets.token_hex(6), secrets.token_urlsafe(SECRET_BYTES), self._clock()
        with self._change() as db:
            db.execute("DELETE FROM sessions WHERE expires_at_unix < ?", (now,))
            db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?)", (key, _hash(secret), token_id, now + SESSION_SECONDS))
        return f"{SESSION_PREFIX}_{key}_{secret}"

    def close_session(self, value: str) -> None:
        """The cookie counts for nothing any more. Raises RagError internal."""
        who = self.identify(value)
        if who is not None and value.startswith(f"{SESSION_PREFIX}_"):
            with self._change() as db:
                db.execute("DELETE FROM sessions WHERE id = ?", (value.split("_")[1],))

    def end_sign_in(self, mark: bytes, seconds: float) -> None:
        """A sign-in that was not made here counts for nothing any more; kept for `seconds`, as long as it would have counted.
        Raises RagError internal."""
        now = self._clock()
        with self._change() as db:
            db.execute("DELETE FROM ended WHERE until_unix < ?", (now,))
            db.execute("INSERT OR REPLACE INTO ended VALUES (?, ?)", (mark, now + seconds))

    def has_ended(self, mark: bytes) -> bool:
        """Raises RagError internal."""
        if not self.path.exists():
            return False
        with self._open() as db:
            known = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'ended'").fetchone()  # a file of an older version
            return known is not None and db.execute("SELECT 1 FROM ended WHERE mark = ?", (mark,)).fetchone() is not None

    def _token(self, db: sqlite3.Connection, key: str, secret: str) -> Token | None:
        row = db.execute(f"SELECT hash, {_COLUMNS} FROM tokens WHERE id = ?", (key,)).fetchone()
        known = row is not None and hmac.compare_digest(row[0], _hash(secret))
        return _token(row[1:]) if known else None

    def _session(self, db: sqlite3.Connection, key: str, secret: str) -> Token | None:
        row = db.execute("SELECT hash, token_id, expires_at_unix FROM sessions WHERE id = ?", (key,)).fetchone()
        if row is None or not hmac.compare_digest(row[0], _hash(secret)) or row[2] <= self._clock():
            return None
        found = db.execute(f"SELECT {_COLUMNS} FROM tokens WHERE id = ?", (row[1],)).fetchone()
        return _token(found) if found else None

    def _note(self, token: Token) -> None:
        """Keep when it was last used. A file that is locked just now costs only this note."""
        now = self._clock()
        with self._lock:
            if now - self._noted.get(token.id, token.used_at_unix or 0.0) < NOTE_SECONDS:
                return
            self._noted[token.id] = now
        try:
            with closing(sqlite3.connect(self.path, timeout=0.05, isolation_level=None)) as db:
                db.execute("UPDATE tokens SET used_at_unix = ? WHERE id = ?", (now, token.id))
        except sqlite3.Error:
            with self._lock:
                self._noted.pop(token.id, None)

    # 3) the file

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)) as db:
                yield db
        except sqlite3.Error as problem:
            step = "Is it readable, and the disk not full? Until then no API token is accepted."
            raise RagError(f"{self.path.name} cannot be used ({problem})", next_step=step) from None

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))  # nobody else's to read, from the first byte on
        except OSError as problem:
            raise RagError(f"{self.path.name} cannot be written ({problem.strerror})", next_step="Make it writable.") from None
        with self._open() as db:
            db.executescript(f"PRAGMA journal_mode = WAL; {_SCHEMA}")
            db.execute("BEGIN IMMEDIATE")
            try:
                db.execute("DELETE FROM tokens WHERE revoked_at_unix < ?", (self._clock() - 365 * 86400,))
                yield db
                db.execute("COMMIT")
            except BaseException:
                db.execute("ROLLBACK")
                raise


_COLUMNS = "id, name, scopes, created_by, created_at_unix, expires_at_unix, revoked_at_unix, used_at_unix"


def _token(row: tuple[object, ...]) -> Token:
    key, name, scopes, by, *times = row
    return Token(str(key), str(name), frozenset(s for s in SCOPES if s in str(scopes).split()), str(by), *times)  # type: ignore[arg-type]


def _joined(scopes: frozenset[Scope]) -> str:
    return " ".join(scope for scope in SCOPES if scope in scopes)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
