"""Where a machine is and how to log in there: what the settings say, completed by ~/.ssh/config. Opens no connection.

What the settings name wins over the file. `ProxyJump` becomes a chain of routes; `ProxyCommand` is kept as text.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from collectors.errors import CollectorError
from collectors.host_keys import Policy, host_name

DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
_ADDRESS = re.compile(
    r"(?:(?P<user>[^@\s]+)@)?(?P<host>\[[0-9A-Fa-f:.%a-z]+\]|[^:@\s/]+|[0-9A-Fa-f:]{2,})(?::(?P<port>[0-9]{1,5}))?"
)


@dataclass(frozen=True, slots=True)
class Target:
    """A machine as the settings name it. `address` is a host, an alias of ~/.ssh/config, or `user@host:port`; `jump` likewise, or
    several with commas, first hop first. `passphrase` unlocks the keys. `use_agent` asks the SSH agent, where one runs."""

    address: str
    user: str | None = None
    port: int | None = None
    key: Path | None = None
    passphrase: str | None = field(default=None, repr=False)
    jump: str | None = None
    host_key_policy: Policy = "strict"
    known_hosts: Path | None = None
    use_agent: bool = True


@dataclass(frozen=True, slots=True)
class Route:
    """A way to a machine, complete. `names` are those of the host in `known_hosts`, to the first of which `accept-new` writes."""

    host: str
    port: int
    user: str
    keys: tuple[Path, ...]
    explicit_keys: bool
    known_hosts: tuple[Path, ...]
    names: tuple[str, ...]
    policy: Policy
    passphrase: str | None = field(default=None, repr=False)
    use_agent: bool = True
    jump: Route | None = None
    proxy_command: str | None = None

    @property
    def address(self) -> str:
        """For people: `user@host:port`."""
        return f"{self.user}@{self.host}" + ("" if self.port == 22 else f":{self.port}")


def resolve(target: Target, home: Path | None = None) -> Route:
    """The route to a target; `home` holds `.ssh`. Raises CollectorError for an address or a configuration that makes no sense."""
    home = home or Path.home()
    config = _Config(home / ".ssh" / "config")
    return _route(target, config, home, depth=0)


def _route(target: Target, config: _Config, home: Path, depth: int) -> Route:
    if depth > 8:
        raise CollectorError("the jump hosts go in a circle", next_step="See ProxyJump in ~/.ssh/config.", address=target.address)
    user, alias, port = split_address(target.address)
    found = config.lookup(alias)
    host = found.get("hostname", alias)
    number = target.port or port or _port(found.get("port"), target.address)
    identities = [Path(path) for path in found.get("identityfile", "").split("\n") if path]
    explicit = [target.key.expanduser()] if target.key else identities
    known = [target.known_hosts] if target.known_hosts else _known_hosts(found, home)
    jump = target.jump if target.jump is not None else found.get("proxyjump")
    named = host_name(found.get("hostkeyalias", host), 22 if "hostkeyalias" in found else number)
    return Route(
        host=host,
        port=number,
        user=target.user or user or found.get("user") or getpass.getuser(),
        keys=tuple(explicit or [home / ".ssh" / name for name in DEFAULT_KEYS]),
        explicit_keys=bool(explicit),
        known_hosts=tuple(known),
        names=(named,),
        policy=target.host_key_policy,
        passphrase=target.passphrase,
        use_agent=target.use_agent,
        jump=_jump(jump, target, config, home, depth),
        proxy_command=None if target.jump else found.get("proxycommand"),
    )


def _jump(jump: str | None, target: Target, config: _Config, home: Path, depth: int) -> Route | None:
    """The last of the hops, which is reached by those before it. Key, policy and known hosts are the target's."""
    if not jump or jump.lower() == "none":
        return None
    before, _, last = jump.rpartition(",")
    hop = Target(
        last.strip().removeprefix("ssh://"),
        key=target.key,
        passphrase=target.passphrase,
        jump=before or None,
        host_key_policy=target.host_key_policy,
        known_hosts=target.known_hosts,
        use_agent=target.use_agent,
    )
    return _route(hop, config, home, depth + 1)


def split_address(address: str) -> tuple[str | None, str, int | None]:
    """(user, host, port) of `user@host:port`; IPv6 with a port in brackets. Raises CollectorError."""
    match = _ADDRESS.fullmatch(address)
    if match is None or match["host"].startswith("-") or (match["port"] and not 0 < int(match["port"]) < 65536):
        raise CollectorError(f"not an address: {address!r}", next_step="Write it as host, user@host or user@host:port.")
    return match["user"], match["host"].strip("[]"), int(match["port"]) if match["port"] else None


def _port(text: str | None, address: str) -> int:
    try:
        return int(text or 22)
    except ValueError:
        raise CollectorError(f"not a port: {text!r}", next_step="See Port in ~/.ssh/config.", address=address) from None


def _known_hosts(found: Mapping[str, str], home: Path) -> list[Path]:
    user = found.get("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2").split()
    system = found.get("globalknownhostsfile", "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2").split()
    return [home / path.removeprefix("~/") if path.startswith("~/") else Path(path) for path in [*user, *system]]


def expand_includes(file: Path, depth: int = 0) -> str:
    """The text of a configuration with its `Include` files in their places, which paramiko leaves out; after each, the block that
    it stood in begins again. A file that is not there is empty. Raises OSError for one that cannot be read."""
    if depth > 8 or not file.exists():
        return ""
    block, lines = "Host *", []
    for line in file.read_text().splitlines():
        words = line.replace("=", " ", 1).split()
        word = words[0].lower() if words else ""
        if word in ("host", "match"):
            block = line
        if word != "include":
            lines.append(line)
            continue
        for pattern in words[1:]:
            path = Path(pattern.strip('"')).expanduser()
            root, rest = (Path("/"), path.relative_to("/")) if path.is_absolute() else (file.parent, path)
            lines += [expand_includes(found, depth + 1) for found in sorted(root.glob(str(rest)))]
        lines.append(block)
    return "\n".join([*lines, ""])


class _Config:
    """~/.ssh/config, by paramiko's reader; a file that is not there is empty."""

    def __init__(self, file: Path) -> None:
        import paramiko  # type: ignore[import-untyped]

        self._file = file
        try:
            self._config = paramiko.SSHConfig.from_text(expand_includes(file))
        except (OSError, UnicodeDecodeError, paramiko.SSHException) as error:
            raise self._error(error) from error

    def lookup(self, host: str) -> dict[str, str]:
        """Option (small letters) -> value; several identity files are joined by line feeds."""
        import paramiko

        try:
            found = self._config.lookup(host)
        except (OSError, ValueError, KeyError, paramiko.SSHException) as error:
            raise self._error(error) from error
        return {key: "\n".join(value) if isinstance(value, list) else value for key, value in found.items() if value is not None}

    def _error(self, error: Exception) -> CollectorError:
        return CollectorError(f"{self._file} cannot be used: {error}", next_step="Check it with `ssh -G HOST`.")
