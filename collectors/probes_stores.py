"""Redis, PostgreSQL and plain ports: whether they answer, and whether they do a small piece of work.

Nothing is written but one key of our own in Redis, with an expiry. Knows nothing of tables.
"""

from __future__ import annotations

import io
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from collectors.attempt import Attempt, Finding
from collectors.connect_timing import Steps, Wire, remaining
from collectors.services import Service, ServiceError

ANSWER_BYTES = 1024 * 1024
LINE_BYTES = 64 * 1024
KEY_SECONDS = 60
PROTOCOL_3 = (3 << 16).to_bytes(4, "big")

Ask = Callable[..., bytes | None]


def port_is_open(attempt: Attempt) -> Finding:
    attempt.touch()
    return Finding("takes connections")


# -------------------------------------------------------------------------------------------------------------- Redis


def redis_answers(attempt: Attempt) -> Finding:
    """PING, and INFO for the version."""
    with _redis(attempt) as ask:
        if ask("PING") != b"PONG":
            raise _not_redis()
        return Finding("answers PING", **_redis_info(ask))


def redis_works(attempt: Attempt) -> Finding:
    """A key of ours is written with an expiry, read back and deleted."""
    key, value = f"ragdeck:probe:{secrets.token_hex(8)}", secrets.token_hex(8)
    with _redis(attempt) as ask:
        ask("SET", key, value, "EX", str(KEY_SECONDS))
        found = ask("GET", key)
        ask("DEL", key)
        if found != value.encode():
            raise ServiceError("bad_answer", "a key that was just written reads back as something else")
        return Finding("writes and reads a key", **_redis_info(ask))


def _redis_info(ask: Ask) -> dict[str, Any]:
    """Version and memory, where the user may ask for them."""
    try:
        text = ask("INFO")
    except ServiceError as problem:
        if problem.failure != "authentication":
            raise
        return {"notes": ("INFO is not allowed to this user: the version is unknown",)}
    lines = (text or b"").decode("utf-8", "replace").splitlines()
    info = dict(line.split(":", 1) for line in lines if ":" in line)
    used, limit = info.get("used_memory", ""), info.get("maxmemory", "")
    measures = {"memory_used_bytes": float(used)} if used.isdecimal() else {}
    if measures and limit.isdecimal() and int(limit) > 0:
        measures["memory_used_ratio"] = int(used) / int(limit)
    return {"version": info.get("redis_version"), "measures": measures}


@contextmanager
def _redis(attempt: Attempt) -> Iterator[Ask]:
    """A connection of our own, logged in, on which one command after the other is asked (RESP2).

    Not the `redis` package: it tells neither the connection's steps nor lets one deadline stand over all commands.
    """
    parts = attempt.service.parts
    if parts.scheme not in ("redis", "rediss"):
        raise ServiceError("bad_input", "the url is no redis:// or rediss:// address")
    with _conversation(attempt, "Redis", tls=parts.scheme == "rediss") as (wire, incoming):

        def ask(*words: str) -> bytes | None:
            said = [word.encode() for word in words]
            wire.sendall(b"*%d\r\n" % len(said) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in said))
            return _redis_reply(incoming, attempt.service)

        user, password = attempt.service.credentials
        password = attempt.service.api_key or password
        if password:
            ask("AUTH", *([user] if user else []), password)
        if parts.path.strip("/"):
            ask("SELECT", parts.path.strip("/"))
        yield ask


@contextmanager
def _conversation(attempt: Attempt, whom: str, *, tls: bool = False) -> Iterator[tuple[Wire, io.BufferedReader]]:
    """A connection to write to and to read from, its failures become ours."""
    steps = Steps()
    try:
        with attempt.timed(steps), attempt.connected(steps, tls=tls) as wire, wire.makefile() as incoming:
            yield wire, incoming
    except TimeoutError:
        raise ServiceError("timeout", f"it takes connections, but {whom} did not answer in time") from None
    except OSError as problem:
        raise ServiceError("connection", f"the connection broke off: {problem.strerror or 'ended'}") from None


def _redis_reply(incoming: io.BufferedReader, service: Service) -> bytes | None:
    """One simple reply of RESP2. Raises ServiceError for an error, and for what is no reply."""
    line = incoming.readline(LINE_BYTES)
    if not line:
        raise ServiceError("connection", "the server closed the connection without an answer")
    kind, rest = line[:1], line[1:-2]
    if not line.endswith(b"\r\n") or kind not in b"+-:$":
        raise _not_redis()
    if kind == b"-":
        raise _of_redis(rest.decode("utf-8", "replace"), service)
    if kind in b"+:":
        return rest
    if not rest.lstrip(b"-").isdigit() or int(rest) > ANSWER_BYTES:
        raise _not_redis()
    if int(rest) < 0:
        return None
    value = incoming.read(int(rest) + 2)
    if len(value) < int(rest) + 2:
        raise ServiceError("connection", "the connection ended in the middle of the answer")
    return value[:-2]


def _not_redis() -> ServiceError:
    return ServiceError("bad_answer", "what answers does not speak Redis' protocol")


def _of_redis(said: str, service: Service) -> ServiceError:
    """Redis' error replies begin with a word in capitals."""
    word = said.partition(" ")[0]
    if word == "LOADING":
        return ServiceError("server_error", "it is loading its data", "Wait: large data sets load for minutes.", state="loading")
    if word in ("NOAUTH", "WRONGPASS", "NOPERM") or "AUTH" in said or "invalid password" in said:
        return service.refused(f"Redis: {said}", may_not=word == "NOPERM")
    if word == "READONLY":
        step = "Name the primary in the url, not a replica."
        return ServiceError("server_error", "it is a read-only replica: keys cannot be written", step)
    if word == "OOM":
        return ServiceError("overloaded", f"it is out of memory: {said}", "Raise maxmemory, or let it evict keys.")
    return ServiceError("server_error", f"Redis answered with an error: {said}")


# --------------------------------------------------------------------------------------------------------- PostgreSQL


def postgres_answers(attempt: Attempt) -> Finding:
    """What `pg_isready` asks, without a login: a startup message, of which any answer but "not yet" is a sign of life.

    Not libpq's own `PQping`: it waits two seconds at least and knows no shorter deadline.
    """
    user = (attempt.service.credentials[0] or "postgres").encode()
    message = PROTOCOL_3 + b"user\0" + user + b"\0database\0postgres\0\0"
    with _conversation(attempt, "PostgreSQL") as (wire, incoming):
        wire.sendall((len(message) + 4).to_bytes(4, "big") + message)
        head = incoming.read(5)
        length = int.from_bytes(head[1:], "big")
        body = incoming.read(length - 4) if head[:1] in (b"E", b"R") and 4 <= length <= LINE_BYTES else None
    if not head:
        raise ServiceError("connection", "the server closed the connection without an answer")
    if body is None:
        raise ServiceError("bad_answer", "what answers does not speak PostgreSQL's protocol")
    if head[:1] == b"E":
        fields = {field[:1]: field[1:].decode("utf-8", "replace") for field in body.split(b"\0")}
        problem = _of_postgres(fields.get(b"M", ""), fields.get(b"C", ""), attempt.service)
        if problem.failure != "authentication":  # it wants another user or TLS, which is what a login is for
            raise problem
    return Finding("takes logins")


def postgres_works(attempt: Attempt) -> Finding:
    """A login and `SELECT 1`."""
    import psycopg

    attempt.touch()
    try:
        with attempt.timed(Steps()), psycopg.connect(_conninfo(attempt), autocommit=True) as connection:
            with _shut_after(attempt.deadline, connection.fileno()):
                row = connection.execute("SELECT 1").fetchone()
            number = connection.info.server_version
    except psycopg.Error as problem:
        if time.monotonic() >= attempt.deadline:
            raise ServiceError("timeout", "it takes connections, but PostgreSQL did not answer in time") from None
        raise _of_postgres(str(problem), problem.sqlstate or "", attempt.service) from None
    if row != (1,):
        raise ServiceError("bad_answer", "SELECT 1 did not give 1")
    version = f"{number // 10_000}.{number % 10_000}" if number >= 100_000 else str(number)
    return Finding("answers SELECT 1", version=version)


def _conninfo(attempt: Attempt) -> str:
    from psycopg import ProgrammingError
    from psycopg.conninfo import make_conninfo

    service = attempt.service
    wait = max(2, int(remaining(attempt.deadline)))  # libpq knows whole seconds, two at least
    extra: dict[str, Any] = {"connect_timeout": wait, "application_name": "rag-deck probe"}
    if service.api_key:
        extra["password"] = service.api_key
    if service.ca_file:
        extra["sslrootcert"] = str(service.ca_file)
    try:
        return make_conninfo(service.url, **extra)
    except ProgrammingError:
        raise ServiceError("bad_input", "the url is no postgresql:// address") from None


def _of_postgres(said: str, code: str, service: Service) -> ServiceError:
    """By SQLSTATE where there is one; a login that failed comes from libpq as text alone."""
    lower = said.lower()
    if code.startswith("28") or re.search("authentication failed|no password supplied|no pg_hba.conf", lower):
        return service.refused(f"PostgreSQL: {said}")
    if code == "57P03" or re.search("starting up|shutting down|recovery mode", lower):
        step = "Wait, and read its log: it starts, recovers, or is shutting down."
        return ServiceError("server_error", "it takes no logins yet", step, state="loading")
    if code == "53300" or re.search("too many (clients|connections)|connection slots", lower):
        return ServiceError("overloaded", f"it has no connection left: {said}", "Raise max_connections, or look who holds them.")
    if code == "3D000" or re.search("database .* does not exist", lower):
        return ServiceError("not_found", f"PostgreSQL refused: {said}", "Check the database's name in the url.")
    if re.search("timeout|timed out", lower):
        return ServiceError("timeout", "it takes connections, but PostgreSQL did not answer in time")
    if re.search("certificate|ssl", lower):
        return ServiceError("tls", f"no TLS connection: {said}")
    return ServiceError("connection", f"the connection failed: {said}")


@contextmanager
def _shut_after(deadline: float, number: int) -> Iterator[None]:
    """Shut the connection with this file number down at the deadline: psycopg waits for an answer without one."""
    with socket.socket(fileno=os.dup(number)) as copy:

        def shut() -> None:
            with suppress(OSError):
                copy.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(max(0.0, deadline - time.monotonic()), shut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
