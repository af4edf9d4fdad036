"""A connection to a host and port, step by step: name, TCP, TLS, each timed and with its own failure. Knows no protocol above.

Deadlines are `time.monotonic()` values. Nothing is sent but the TLS handshake.
"""

from __future__ import annotations

import contextlib
import functools
import io
import ipaddress
import queue
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collectors.services import ServiceError

VERIFY_NOT_YET = 9  # X509_V_ERR_CERT_NOT_YET_VALID
VERIFY_EXPIRED = 10  # X509_V_ERR_CERT_HAS_EXPIRED
VERIFY_NAME = 62  # X509_V_ERR_HOSTNAME_MISMATCH


@dataclass(slots=True)
class Steps:
    """Seconds of each step that was reached, filled in as they pass, so that a failure tells how far it came.

    `began_at` and `sent_at` are `time.monotonic()`: the name was asked for, the request was sent. `first_byte_seconds` is from
    then to the first byte of the answer; `certificate_expires_at` seconds since the epoch.
    """

    began_at: float | None = None
    dns_seconds: float | None = None
    connect_seconds: float | None = None
    tls_seconds: float | None = None
    certificate_expires_at: float | None = None
    sent_at: float | None = None
    first_byte_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Tls:
    """How the other side's certificate is checked: against the system's authorities, or those of a file, or not at all."""

    verify: bool = True
    ca_file: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Raises ServiceError when the file of authorities cannot be used."""
        try:
            changed = self.ca_file.stat().st_mtime_ns if self.ca_file else 0
            return _context(self.verify, self.ca_file, changed)
        except OSError as problem:  # also ssl.SSLError
            raise ServiceError("tls", f"ca_file cannot be used: {problem}", "Check ca_file in the settings.") from None


@functools.lru_cache(maxsize=16)
def _context(verify: bool, ca_file: Path | None, changed: int) -> ssl.SSLContext:
    """Kept, because loading the system's authorities takes 10 to 20 ms; `changed` makes a new file a new context."""
    import cryptography.x509  # noqa: F401  here, so that its import is not part of a handshake's time

    context = ssl.create_default_context(cafile=ca_file)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class Wire:
    """A connected socket on which everything is held to one deadline: TimeoutError past it. Who connected closes.

    Its shape is what `http.client` wants of a socket.
    """

    def __init__(self, sock: socket.socket, deadline: float, steps: Steps) -> None:
        self._sock = sock
        self._deadline = deadline
        self._steps = steps

    def makefile(self, *_: Any) -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self._sock, self._deadline, self._steps))

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(remaining(self._deadline))
        try:
            self._sock.sendall(data)
        finally:
            self._steps.sent_at = time.monotonic()

    def close(self) -> None:
        """Called by `http.client` before the body is read."""


class _Incoming(io.RawIOBase):
    """What comes in, the first byte noted."""

    def __init__(self, sock: socket.socket, deadline: float, steps: Steps) -> None:
        self._sock = sock
        self._deadline = deadline
        self._steps = steps

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(remaining(self._deadline))
        count = self._sock.recv_into(buffer)
        if self._steps.first_byte_seconds is None and self._steps.sent_at is not None:
            self._steps.first_byte_seconds = time.monotonic() - self._steps.sent_at
        return count


def connect(host: str, port: int, deadline: float, steps: Steps, tls: Tls | None = None) -> socket.socket:
    """A connected socket, over TLS where `tls` is given. Raises ServiceError that says which step failed and how."""
    context = tls.context() if tls else None
    steps.began_at = started = time.monotonic()
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    addresses = _resolve(host, port, deadline)
    steps.dns_seconds = time.monotonic() - started
    started = time.monotonic()
    plain = _connect_any(addresses, shown, deadline)
    steps.connect_seconds = time.monotonic() - started
    if context is None:
        return plain
    started = time.monotonic()
    try:
        secure = _handshake(plain, context, host, deadline)
    except ssl.SSLCertVerificationError as problem:
        steps.certificate_expires_at = _expiry_unverified(addresses, host, deadline)
        raise _untrusted(problem, shown, steps.certificate_expires_at) from None
    except TimeoutError:
        raise ServiceError("timeout", f"{shown} took the connection but did not finish the TLS handshake in time") from None
    except OSError as problem:
        raise _no_tls(problem, shown) from None
    steps.tls_seconds = time.monotonic() - started
    steps.certificate_expires_at = _expiry(secure)
    return secure


def remaining(deadline: float) -> float:
    """Seconds left, for a socket's timeout. Raises TimeoutError when there are none."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _resolve(host: str, port: int, deadline: float) -> list[Any]:
    """What `getaddrinfo` finds. It knows no timeout, so that a name is asked for in a thread that may be left behind."""
    answer: queue.SimpleQueue[list[Any] | BaseException] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answer.put(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except (OSError, UnicodeError) as problem:
            answer.put(problem)

    if _is_literal(host):
        look_up()
    else:
        threading.Thread(target=look_up, name="name lookup", daemon=True).start()
    try:
        found = answer.get(timeout=max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        raise ServiceError("dns", f"the name servers did not answer for {host} in time") from None
    if isinstance(found, BaseException):
        detail = found.strerror if isinstance(found, OSError) else "not a host name"
        raise ServiceError("dns", f"{host} does not resolve: {detail}")
    return found


def _is_literal(host: str) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False


def _connect_any(addresses: list[Any], shown: str, deadline: float) -> socket.socket:
    """The first address that takes the connection; each may use an equal share of the time that is left."""
    problem: OSError | None = None
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(remaining(deadline) / (len(addresses) - index))
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except OSError as caught:
            sock.close()
            problem = caught
    if isinstance(problem, ConnectionRefusedError):
        raise ServiceError("refused", f"nothing listens at {shown}: connection refused")
    if isinstance(problem, TimeoutError):
        step = "Check the address, the firewall (it drops silently), and that the machine is up."
        raise ServiceError("timeout", f"{shown} does not take the connection in time", step)
    raise ServiceError("connection", f"{shown} cannot be reached: {problem.strerror if problem else 'no address'}")


def _handshake(plain: socket.socket, context: ssl.SSLContext, host: str, deadline: float) -> ssl.SSLSocket:
    try:
        plain.settimeout(remaining(deadline))
        return context.wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise


def _untrusted(problem: ssl.SSLCertVerificationError, shown: str, expires_at: float | None) -> ServiceError:
    whose = f"the certificate of {shown}"
    if problem.verify_code == VERIFY_EXPIRED:
        when = "" if expires_at is None else time.strftime(" on %Y-%m-%d", time.gmtime(expires_at))
        return ServiceError("tls", f"{whose}, or one that it rests on, expired{when}", "Renew the certificate.")
    if problem.verify_code == VERIFY_NOT_YET:
        step = "Look at the clock of this machine, and at the day from which on the certificate holds."
        return ServiceError("tls", f"{whose}, or one that it rests on, does not hold yet", step)
    if problem.verify_code == VERIFY_NAME or "match" in problem.verify_message:
        step = "Use the name that the certificate was made for, or have one made for this name."
        return ServiceError("tls", f"{whose} is not made out to {shown.rpartition(':')[0]}", step)
    step = "Put the authority's certificate (a self-signed one is its own) in a file, and name that as ca_file of this service."
    return ServiceError("tls", f"{whose} is not trusted: {problem.verify_message}", step)


def _no_tls(problem: OSError, shown: str) -> ServiceError:
    reason = getattr(problem, "reason", None) or problem.strerror or "the connection ended"
    if reason == "WRONG_VERSION_NUMBER" or reason == "RECORD_LAYER_FAILURE":
        return ServiceError("tls", f"{shown} does not speak TLS", "Use http:// in the url, or give the service a certificate.")
    return ServiceError("tls", f"{shown} did not agree on TLS: {str(reason).replace('_', ' ').lower()}")


def _expiry(secure: ssl.SSLSocket) -> float | None:
    """When the certificate shown ends, in seconds since the epoch. `ssl` itself tells it of verified ones only."""
    from cryptography import x509

    der = secure.getpeercert(binary_form=True)
    try:
        return x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp() if der else None
    except ValueError:
        return None


def _expiry_unverified(addresses: list[Any], host: str, deadline: float) -> float | None:
    """The expiry of a certificate that was refused, over a second connection on which nothing is sent."""
    try:
        plain = _connect_any(addresses, host, deadline)
        with _handshake(plain, _context(False, None, 0), host, deadline) as secure:
            return _expiry(secure)
    except (ServiceError, OSError):
        return None
