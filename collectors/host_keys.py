"""Whether the key that a host shows may be trusted: known_hosts files read line by line, unknown hosts refused. Never trusts
silently: `accept-new` is a setting, and a changed or revoked key is refused under it too.

Lines that cannot be understood are skipped, as OpenSSH does; paramiko's own reader stops at `@revoked` and `@cert-authority`.
Certificates of hosts are not checked, for paramiko cannot: a host known by its authority alone is unknown here, and that is said.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import hmac
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from collectors.errors import HostKeyChanged, HostKeyRevoked, HostKeyUnknown

Policy = Literal["strict", "accept-new"]


@dataclass(frozen=True, slots=True)
class HostKey:
    """A public key: `type` as in known_hosts (`ssh-ed25519`), `blob` its bytes."""

    type: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """`SHA256:…`, as `ssh-keygen -lf` shows it."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    def line(self, name: str) -> str:
        """The line of known_hosts that makes this key known."""
        return f"{name} {self.type} {base64.b64encode(self.blob).decode()}"


@dataclass(frozen=True, slots=True)
class _Line:
    marker: str
    names: str
    key: HostKey


def host_name(address: str, port: int) -> str:
    """How known_hosts names a host: the port in brackets when it is not 22."""
    return address if port == 22 else f"[{address}]:{port}"


class KnownHosts:
    """What the files say of one host, by all of its `names`. Files that are not there are empty."""

    def __init__(self, files: Sequence[Path], names: Sequence[str]) -> None:
        self.files = files
        self.names = names
        lines = [line for file in files for line in _lines(file) if any(_matches(line.names, name) for name in names)]
        self.trusted = [line.key for line in lines if line.marker == ""]
        self.revoked = [line.key for line in lines if line.marker == "@revoked"]
        self.has_authority = any(line.marker == "@cert-authority" for line in lines)

    def types(self) -> list[str]:
        """The types of the known keys: to be asked for first, for the host may have keys of other types too."""
        return list(dict.fromkeys(key.type for key in self.trusted))

    def check(self, key: HostKey, policy: Policy, address: str) -> None:
        """Return when the key may be trusted, after adding it where the policy accepts new hosts; else raise a HostKeyError."""
        if key in self.revoked:
            raise HostKeyRevoked(
                f"the host key {key.fingerprint} of {address} is marked @revoked",
                fingerprint=key.fingerprint,
                next_step="Do not connect: ask who runs the machine for its new key.",
                address=address,
            )
        if key in self.trusted:
            return
        if self.trusted:
            raise HostKeyChanged(
                f"the host key of {address} has changed: it shows {key.fingerprint} ({key.type}),"
                f" known is {', '.join(known.fingerprint for known in self.trusted)}",
                fingerprint=key.fingerprint,
                next_step="Either the machine was set up anew or somebody is in between: compare the fingerprint there"
                f" (`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`), then `{self._remove_command()}`.",
                address=address,
            )
        if policy == "accept-new" and not self.has_authority:
            self._add(key)
            return
        raise self._unknown(key, address)

    def _unknown(self, key: HostKey, address: str) -> HostKeyUnknown:
        folder = self.files[0].parent
        command = "" if folder.exists() else f"mkdir -p -m 700 {shlex.quote(str(folder))} && "
        command += f"echo {shlex.quote(key.line(self.names[0]))} >> {shlex.quote(str(self.files[0]))}"
        known = " (only a @cert-authority line is known for it, which cannot be checked here)" if self.has_authority else ""
        return HostKeyUnknown(
            f"{address} is not known{known}: it shows the key {key.fingerprint} ({key.type})",
            fingerprint=key.fingerprint,
            command=command,
            next_step="Compare the fingerprint on the machine (`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`), then run:"
            f" {command}",
            address=address,
        )

    def _remove_command(self) -> str:
        return f"ssh-keygen -f {shlex.quote(str(self.files[0]))} -R {shlex.quote(self.names[0])}"

    def _add(self, key: HostKey) -> None:
        """In one write, so that two connections at once do not mix their lines."""
        file = self.files[0]
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        start = "" if not file.exists() or file.read_bytes()[-1:] in (b"", b"\n") else "\n"
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as out:
            out.write(f"{start}{key.line(self.names[0])}\n".encode())


def _lines(file: Path) -> Iterable[_Line]:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.split("\n"):
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) < 3 or words[0].startswith("#"):
            continue
        try:
            blob = base64.b64decode(words[2], validate=True)
        except ValueError:
            continue
        yield _Line(marker, words[0], HostKey(words[1], blob))


def _matches(patterns: str, name: str) -> bool:
    """Whether a field of known_hosts names the host: hashed, or patterns of which a `!` one excludes."""
    if patterns.startswith("|1|"):
        return _hashed(patterns, name)
    found = False
    for pattern in patterns.lower().split(","):
        negated = pattern.startswith("!")
        # In patterns only * and ? are special; [host]:port has brackets.
        if fnmatch.fnmatchcase(name.lower(), re.sub(r"\[", "[[]", pattern.lstrip("!"))):
            if negated:
                return False
            found = True
    return found


def _hashed(field: str, name: str) -> bool:
    try:
        salt, expected = (base64.b64decode(part, validate=True) for part in field.split("|")[2:4])
    except ValueError:
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), expected)
