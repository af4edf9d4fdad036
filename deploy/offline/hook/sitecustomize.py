"""Loaded by every Python process of `offline-check` (this folder is first on PYTHONPATH): notes each attempt to reach a host.

Writes one JSON line an attempt to the file that OFFLINE_CHECK_LOG names, with the stack that made it. With
OFFLINE_CHECK_GUARD=1 it also refuses attempts beyond this machine, where no network namespace does. Standard library only,
and quiet about its own faults: it lives in processes that must not notice it.
"""

from __future__ import annotations

import errno
import importlib.machinery
import importlib.util
import ipaddress
import json
import os
import socket
import sys
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
DEEPEST = 80
MOST = 400
LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
KINDS = {int(socket.SOCK_STREAM): "tcp", int(socket.SOCK_DGRAM): "udp"}
SENDING = ("socket.connect", "socket.sendto", "socket.sendmsg")


class _Watch:
    def __init__(self, path: str, guard: bool) -> None:
        self._path, self._guard = path, guard
        self._seen: set[object] = set()
        self._own = {"localhost", "ip6-localhost", socket.gethostname().lower()}
        self._inside = threading.local()

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in SENDING or event in LOOKUPS or event == "subprocess.Popen":
            if getattr(self._inside, "busy", False):
                return
            self._inside.busy = True
            try:
                target = self._target(event, arguments)
                if target:
                    self._note(event, *target)
            finally:
                self._inside.busy = False
            if target and self._guard and event != "subprocess.Popen":
                if event in LOOKUPS:
                    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
                raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    def _target(self, event: str, arguments: tuple[object, ...]) -> tuple[str, int | None, str] | None:
        """(host, port, kind) of an attempt to leave this machine, else None."""
        if event == "subprocess.Popen":
            return os.path.basename(os.fsdecode(arguments[0] or "?")), None, "process"  # type: ignore[arg-type]
        if event in LOOKUPS:
            host = _text(arguments[0])
            port = arguments[1] if len(arguments) > 1 and isinstance(arguments[1], int) else None
            return (host, port, "lookup") if host and not self._local(host) and not _is_address(host) else None
        link, address = arguments[0], arguments[-1]
        if getattr(link, "family", None) not in (socket.AF_INET, socket.AF_INET6) or not isinstance(address, tuple):
            return None
        host = _text(address[0])
        kind = KINDS.get(getattr(link, "type", 0) & 0xF, "raw")
        return (host, int(address[1]), kind) if not self._local(host) else None

    def _local(self, host: str) -> bool:
        name = host.lower().rstrip(".")
        if name in self._own or name.endswith(".localhost") or not name:
            return True
        try:
            address = ipaddress.ip_address(name.split("%")[0])
        except ValueError:
            return False
        return address.is_loopback or address.is_unspecified or str(address).startswith("::ffff:127.")

    def _note(self, event: str, host: str, port: int | None, kind: str) -> None:
        stack = _stack()
        key = (event, host, port, stack[0] if stack else None)
        if key in self._seen or len(self._seen) >= MOST:
            return
        self._seen.add(key)
        record: dict[str, object] = {
            "event": event,
            "kind": kind,
            "host": host,
            "port": port,
            "pid": os.getpid(),
            "parent": os.getppid(),
        }
        record |= {"program": " ".join(sys.orig_argv[:3])[:200], "thread": threading.current_thread().name, "stack": stack}
        line = (json.dumps(record) + "\n").encode()
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(handle, line)
            finally:
                os.close(handle)
        except OSError as problem:
            os.write(2, f"offline-check could not note an attempt: {problem}\n".encode())


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, (bytes, bytearray)) else str(value or "")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return False
    return True


def _stack() -> list[tuple[str, int, str]]:
    """(file, line, function) from the innermost frame outwards, this file's own left out."""
    frame = sys._getframe(1)
    found: list[tuple[str, int, str]] = []
    while frame is not None and len(found) < DEEPEST:
        if not frame.f_code.co_filename.startswith(HERE):
            found.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back  # type: ignore[assignment]
    return found


def _next_of_this_name() -> None:
    """The sitecustomize that this one stands in front of, if there is one."""
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", [p for p in sys.path if os.path.abspath(p or ".") != HERE])
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if os.environ.get("OFFLINE_CHECK_LOG"):
    sys.addaudithook(_Watch(os.environ["OFFLINE_CHECK_LOG"], os.environ.get("OFFLINE_CHECK_GUARD") == "1"))
_next_of_this_name()
