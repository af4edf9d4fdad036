"""The Shell of a machine over SSH (paramiko): connecting, one-shot commands, long-lived loops. Knows no reading.

What can hang has a deadline: the name, the connection, the handshake, authentication, each channel, each command. A peer that
vanished is found by TCP_USER_TIMEOUT on our own socket (keep-alives alone do not); one whose sshd stands still by the time limit
of the sample, after which the caller closes the connection. Host keys: see `host_keys`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from collectors.errors import (
    AuthenticationFailed,
    CollectorError,
    ConnectionFailed,
    ConnectionLost,
    KeyUnusable,
    NameNotFound,
    OutputTooLarge,
    Step,
    TimedOut,
)
from collectors.frames import SHELL
from collectors.host_keys import HostKey, KnownHosts
from collectors.loop import LEASE_SECONDS, Loop
from collectors.shell import MAX_OUTPUT_BYTES, Output
from collectors.ssh_config import Route
from collectors.ssh_keys import agent_keys, load_key
from collectors.texts import cut

KEEPALIVE_SECONDS = 15
UNACKNOWLEDGED_MILLISECONDS = 20_000
Passed = Callable[[Step, str], None]
POLL_SECONDS = 1.0  # how often paramiko's thread looks up while nothing comes; its default of 0.1 s costs CPU on 50 machines
_LOG = "collectors.paramiko"


class SshShell:
    """One connection to one machine, opened by `connect`. `run` and loops may be used from several threads at once."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self._transport: Any = None
        self._jump: SshShell | None = None
        self._socket: Any = None
        self._proxy: subprocess.Popen[bytes] | None = None

    def connect(self, timeout: float, passed: Passed = lambda step, found: None) -> None:
        """Connect and log in, in `timeout` seconds in all; `passed` is told each step when it is done, and what was found. Raises
        a CollectorError whose `step` says where it failed; then nothing is left open."""
        deadline = time.monotonic() + timeout
        try:
            self._socket = self._reach(deadline, passed)
            self._handshake(deadline, passed)
            passed("authentication", self._log_in(deadline))
        except BaseException:
            self.close()
            raise
        self._transport.set_keepalive(KEEPALIVE_SECONDS)
        self._socket.settimeout(POLL_SECONDS)

    @property
    def connected(self) -> bool:
        """Whether the connection stands, as far as is known."""
        return self._transport is not None and bool(self._transport.is_active())

    def run(self, command: str, timeout: float) -> Output:
        """See `Shell.run`."""
        started = time.monotonic()
        errors = _Errors()
        loop = Loop(lambda limit: self._open(limit, errors), {"run": _with_marks(command, errors.mark)}, quiet=False)
        name, address = f"`{cut(command, 80)}`", self.route.address
        try:
            frame = loop.sample("run", timeout)
            errors.finished.wait(max(0.0, started + timeout - time.monotonic()))
        except TimedOut as error:
            message = f"{name} did not end within {timeout:g} s" if error.step == "command" else error.message
            raise TimedOut(message, next_step=error.next_step, address=address, step=error.step) from error
        except ConnectionLost as error:
            if errors.too_large:
                raise OutputTooLarge(f"{name} printed more than {MAX_OUTPUT_BYTES} bytes", address=address) from error
            raise
        finally:
            loop.close()
        return Output(frame.body, errors.text(), frame.exit_status, time.monotonic() - started)

    def loop(self, scripts: Mapping[str, str], *, lease_seconds: int = LEASE_SECONDS) -> Loop:
        """A loop with a channel of its own, opened at its first sample. A server allows ten channels by default (MaxSessions)."""
        return Loop(lambda limit: self._open(limit, None), scripts, lease_seconds=lease_seconds)

    def close(self) -> None:
        """End the connection, and with it all that was started over it. May be called twice."""
        transport, opened, process, jump = self._transport, self._socket, self._proxy, self._jump
        self._transport = self._socket = self._proxy = self._jump = None
        with contextlib.suppress(OSError):
            if isinstance(opened, socket.socket):
                opened.shutdown(socket.SHUT_RDWR)  # wakes paramiko's thread, which `transport.close` waits for
        if opened is not None:
            opened.close()
        if transport is not None:
            transport.close()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if jump is not None:
            jump.close()

    # Connecting, step by step.

    def _reach(self, deadline: float, passed: Passed) -> Any:
        """A socket, or what behaves like one, to the machine's SSH server."""
        route = self.route
        if route.jump is not None:
            return self._through_jump(route.jump, deadline, passed)
        if route.proxy_command is not None:
            passed("name", "left to its ProxyCommand")
            return self._through_proxy(route.proxy_command)
        addresses = resolve_name(route.host, route.port, _left(deadline))
        passed("name", ", ".join(dict.fromkeys(str(each[4][0]) for each in addresses[:4])))
        return open_socket(addresses, route.address, deadline)

    def _through_proxy(self, command: str) -> socket.socket:
        """The user's ProxyCommand on one end of a pair of sockets. (paramiko's own class spins when the command has ended.)"""
        ours, theirs = socket.socketpair()
        with theirs:
            self._proxy = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {command}"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        return ours

    def _through_jump(self, jump: Route, deadline: float, passed: Passed) -> Any:
        import paramiko  # type: ignore[import-untyped]

        self._jump = SshShell(jump)
        try:
            self._jump.connect(_left(deadline))
        except CollectorError as error:
            error.message = f"on the way, at the jump host: {error.message}"
            raise
        passed("name", f"left to the jump host {jump.address}, which let us in")
        there = (self.route.host, self.route.port)
        try:
            channel = self._jump._transport.open_channel("direct-tcpip", there, ("127.0.0.1", 0), timeout=_left(deadline))
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise ConnectionFailed(
                f"the jump host {jump.address} cannot reach {self.route.host}:{self.route.port}: {cut(str(error))}",
                next_step="Does it know the name, is the port open from there, and does its sshd allow TCP forwarding?",
                address=self.route.address,
            ) from error
        return channel

    def _handshake(self, deadline: float, passed: Passed) -> None:
        """Agree on keys, and check the host's before anything is sent."""
        import paramiko

        route = self.route
        known = KnownHosts(route.known_hosts, route.names)
        _silence()
        try:
            transport = self._transport = paramiko.Transport(self._socket)
            transport.set_log_channel(_LOG)
            transport.banner_timeout = transport.auth_timeout = transport.channel_timeout = _left(deadline)
            options = transport.get_security_options()
            options.key_types = _ordered(tuple(options.key_types), known.types())
            transport.start_client(timeout=_left(deadline))
            key = transport.get_remote_server_key()
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise ConnectionFailed(
                f"{route.address} answers, but the SSH handshake failed: {cut(str(error)) or type(error).__name__}",
                next_step="Is this the port of an SSH server, is it overloaded (MaxStartups), is it very old?",
                address=route.address,
            ) from error
        passed("connect", cut(str(transport.remote_version)))
        shown = HostKey(key.get_name(), key.asbytes())
        known.check(shown, route.policy, route.address)
        passed("host key", f"{shown.fingerprint} ({shown.type})")

    def _log_in(self, deadline: float) -> str:
        """Returns with what we were let in."""
        import paramiko

        route, transport = self.route, self._transport
        tried: list[str] = []
        unusable: list[KeyUnusable] = []
        for name, key in self._keys(unusable):
            transport.auth_timeout = _left(deadline)
            tried.append(name)
            try:
                more = transport.auth_publickey(route.user, key)
            except paramiko.BadAuthenticationType as error:
                raise self._refused(tried, f"it takes no keys, only {', '.join(error.allowed_types)}") from error
            except paramiko.AuthenticationException as error:
                if not transport.is_active() or deadline <= time.monotonic():
                    raise self._refused(tried, cut(str(error))) from error
                continue
            except (paramiko.SSHException, OSError, EOFError) as error:
                raise self._refused(tried, cut(str(error))) from error
            if not more:
                return f"as {route.user} with {name}"
            raise self._refused(tried, f"it wants more than a key: {', '.join(more)}")
        if unusable:
            raise unusable[0]
        raise self._refused(tried, "it refused the key" if tried else "there is no key to try")

    def _refused(self, tried: list[str], reason: str) -> AuthenticationFailed:
        return AuthenticationFailed(
            f"{self.route.address} did not let us in: {reason} (tried: {', '.join(tried) or 'none'})",
            next_step=f"Is the user right, and is the public key in ~{self.route.user}/.ssh/authorized_keys there?"
            " It is not tried again until the settings change.",
            address=self.route.address,
        )

    def _keys(self, unusable: list[KeyUnusable]) -> Iterator[tuple[str, Any]]:
        """(name, key): files first, then the agent's; of those, when keys are named, only the named ones."""
        route = self.route
        for path in route.keys:
            if not route.explicit_keys and not path.exists():
                continue
            try:
                yield str(path), load_key(path, route.passphrase)
            except KeyUnusable as error:
                unusable.append(error)
        if route.use_agent:
            yield from agent_keys([Path(f"{path}.pub") for path in route.keys] if route.explicit_keys else None)

    def _open(self, timeout: float, errors: _Errors | None) -> ChannelStream:
        """A stream to a new `sh` there."""
        import paramiko

        transport = self._transport
        if transport is None:
            raise ConnectionLost("not connected", address=self.route.address)
        deadline = time.monotonic() + timeout
        try:
            channel = transport.open_session(timeout=_left(deadline))
            _execute(channel, SHELL, _left(deadline))
        except (paramiko.SSHException, OSError, EOFError) as error:
            if transport.is_active() and deadline <= time.monotonic():
                raise TimedOut("the machine opened no channel in time", address=self.route.address, step="shell") from error
            raise ConnectionLost(
                f"no channel on the connection: {cut(str(error)) or type(error).__name__}", address=self.route.address
            ) from error
        if errors is not None:
            errors.read(channel)
        return ChannelStream(channel)


class ChannelStream:
    """A paramiko channel as a `Stream`."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def send(self, data: bytes, timeout: float) -> None:
        self._channel.settimeout(timeout)
        with _gone_is_an_os_error():
            self._channel.sendall(data)

    def receive(self, timeout: float) -> bytes:
        self._channel.settimeout(max(0.001, timeout))
        data: bytes = self._channel.recv(65536)
        return data

    def close(self) -> None:
        with contextlib.suppress(EOFError):
            self._channel.close()


@contextlib.contextmanager
def _gone_is_an_os_error() -> Iterator[None]:
    """paramiko raises EOFError, which is no OSError, when the connection below has ended."""
    try:
        yield
    except EOFError as error:
        raise ConnectionResetError("the connection has ended") from error


class _Errors:
    """The error stream of a one-shot command, read by a thread of its own: a full window would stop the command."""

    def __init__(self) -> None:
        self.mark = f"mark{time.monotonic_ns():x}"
        self.finished = threading.Event()
        self.too_large = False
        self._data = bytearray()

    def read(self, channel: Any) -> None:
        threading.Thread(target=self._read, args=(channel,), name="ssh-stderr", daemon=True).start()

    def _read(self, channel: Any) -> None:
        end = f"\n{self.mark} end\n".encode()
        with contextlib.suppress(OSError):
            while end not in self._data[-65536 - len(end) :] and (data := channel.recv_stderr(65536)):
                self._data += data
                self.too_large = len(self._data) > MAX_OUTPUT_BYTES
                if self.too_large:
                    channel.close()
                    break
        self.finished.set()

    def text(self) -> str:
        """What the command said, without what the login shell said before."""
        _, _, rest = bytes(self._data).partition(f"\n{self.mark} begin\n".encode())
        return rest.partition(f"\n{self.mark} end\n".encode())[0].decode("utf-8", "replace")


def _execute(channel: Any, command: str, timeout: float) -> None:
    """exec_command, which waits for its answer without a limit: closing the channel ends the wait."""
    watchdog = threading.Timer(timeout, channel.close)
    watchdog.daemon = True
    watchdog.start()
    try:
        channel.exec_command(command)
    finally:
        watchdog.cancel()


def _with_marks(command: str, mark: str) -> str:
    return f"printf '\\n{mark} begin\\n' >&2; ( eval {shlex.quote(command)} ); set -- $?; printf '\\n{mark} end\\n' >&2; exit $1"


def resolve_name(host: str, port: int, timeout: float) -> list[tuple[Any, ...]]:
    """The addresses of a host, as of getaddrinfo; in a thread, for the system's resolver has no time limit of ours."""
    found: list[list[tuple[Any, ...]] | OSError] = []

    def ask() -> None:
        try:
            found.append(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except OSError as error:
            found.append(error)
        except UnicodeError as error:
            found.append(OSError(str(error)))

    thread = threading.Thread(target=ask, name="resolve", daemon=True)
    thread.start()
    thread.join(timeout)
    next_step = "Is the name right, and is the resolver of this machine working (`getent hosts NAME`)?"
    if not found:
        raise NameNotFound(f"the name {host} was not resolved within {timeout:.0f} s", next_step=next_step, address=host)
    if isinstance(found[0], OSError):
        raise NameNotFound(f"the name {host} is not known: {found[0].strerror or found[0]}", next_step=next_step, address=host)
    return found[0]


def open_socket(addresses: list[tuple[Any, ...]], address: str, deadline: float) -> socket.socket:
    """A connection to the first address that answers, with the options that find a dead peer."""
    failure: OSError = TimeoutError("timed out")
    for family, kind, protocol, _, there in addresses:
        opened = socket.socket(family, kind, protocol)
        try:
            opened.settimeout(_left(deadline))
            opened.connect(there)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MILLISECONDS)
            return opened
        except OSError as error:
            opened.close()
            failure = error
    if isinstance(failure, ConnectionRefusedError):
        reason, next_step = "connection refused", "Does sshd run there, and on this port?"
    elif isinstance(failure, TimeoutError):
        reason, next_step = "no answer", "Is the machine up, and does a firewall let this machine in?"
    else:
        reason, next_step = cut(failure.strerror or str(failure)), "Is there a route to it (VPN, network)?"
    raise ConnectionFailed(f"{address}: {reason}", next_step=next_step, address=address) from failure


def _ordered(possible: tuple[str, ...], known: list[str]) -> tuple[str, ...]:
    """Algorithms of the host's key, those of known keys first: a host has keys of several types, and we may know one."""
    wanted = [name for kind in known for name in possible if name == kind or (kind == "ssh-rsa" and name.startswith("rsa-sha2"))]
    return tuple(dict.fromkeys([*wanted, *possible]))


def _left(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())


def _silence() -> None:
    """paramiko logs tracebacks of what is reported as errors here."""
    logger = logging.getLogger(_LOG)
    logger.setLevel(logging.CRITICAL + 1)
