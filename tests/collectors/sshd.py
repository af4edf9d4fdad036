"""A real OpenSSH server on loopback for the tests, with keys of its own, as the user who runs them."""

from __future__ import annotations

import contextlib
import getpass
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from collectors.ssh import SshShell
from collectors.ssh_config import Route
from tests.ports import free_port


def keygen(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", str(path), "-C", "test"], check=True, timeout=60)
    return path


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class Sshd:
    """`force` is what every login runs instead of its command: `fish -c "$SSH_ORIGINAL_COMMAND"` is what sshd does for an account
    whose login shell is fish. `extra` are more lines of sshd_config."""

    def __init__(self, directory: Path, force: str = "", extra: str = "", host_keys: tuple[str, ...] = ("ed25519",)) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.key = directory / "user_key"
        if not self.key.exists():
            keygen(self.key)
        self.host_keys = [directory / f"host_{kind}" for kind in host_keys]
        for path, kind in zip(self.host_keys, host_keys, strict=True):
            if not path.exists():
                keygen(path, kind)
        (directory / "authorized_keys").write_text(Path(f"{self.key}.pub").read_text())
        self.known_hosts = directory / "known_hosts"
        self.port = free_port()
        self.known_hosts.write_text("".join(self.known_line(path) for path in self.host_keys))
        self._write(force, extra)
        self.process = self._start()

    def known_line(self, host_key: Path) -> str:
        kind, blob = Path(f"{host_key}.pub").read_text().split()[:2]
        return f"[127.0.0.1]:{self.port} {kind} {blob}\n"

    def _write(self, force: str, extra: str) -> None:
        lines = [f"HostKey {path}" for path in self.host_keys]
        lines += [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            "PidFile none",
            "StrictModes no",
            "UsePAM no",
            "PermitRootLogin yes",
        ]
        lines += [f"AuthorizedKeysFile {self.directory}/authorized_keys", "PasswordAuthentication no", "LogLevel VERBOSE"]
        lines += ["KbdInteractiveAuthentication no", f"SetEnv DECK_TEST={self.directory}"]
        lines += [f"ForceCommand {force}"] if force else []
        (self.directory / "sshd_config").write_text("\n".join([*lines, extra, ""]))

    def _start(self) -> subprocess.Popen[bytes]:
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)  # sshd wants it, and the service makes it
        command = ["/usr/sbin/sshd", "-D", "-e", "-f", str(self.directory / "sshd_config")]
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        assert eventually(self._listens), (self.directory / "log").read_text()
        return process

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def route(self, **changes: object) -> Route:
        values: dict[str, object] = {
            "host": "127.0.0.1",
            "port": self.port,
            "user": getpass.getuser(),
            "keys": (self.key,),
            "explicit_keys": True,
            "known_hosts": (self.known_hosts,),
            "names": (f"[127.0.0.1]:{self.port}",),
            "policy": "strict",
            "use_agent": False,
        }
        return Route(**(values | changes))  # type: ignore[arg-type]

    def shell(self, timeout: float = 20.0, **changes: object) -> SshShell:
        shell = SshShell(self.route(**changes))
        shell.connect(timeout)
        return shell

    def children(self) -> list[psutil.Process]:
        """All processes of the connections, the deepest last."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def signal_connections(self, number: int) -> None:
        """STOP, CONT or KILL the servers of the connections (not the listener, not what runs in them)."""
        for process in self.children():
            with contextlib.suppress(psutil.NoSuchProcess):  # one ends with the other
                if process.name() == "sshd":
                    process.send_signal(number)

    def left(self) -> list[str]:
        """What still runs of what was started over connections, orphans too: found by a mark in their environment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
                if f"DECK_TEST={self.directory}".encode() in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                    found.append(" ".join(process.cmdline()) or process.name())
        return found

    def stop(self) -> None:
        for process in [*self.children(), psutil.Process(self.process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.wait(30)
