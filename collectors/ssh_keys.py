"""Private keys for logging in: from files, with or without a passphrase, and from the SSH agent. Opens no connection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from collectors.errors import KeyUnusable

MAX_AGENT_KEYS = 3  # servers count tries, and newer ones make their source wait


def load_key(path: Path, passphrase: str | None) -> Any:
    """A private key with its certificate, if there is one. Raises KeyUnusable with what to do."""
    import paramiko  # type: ignore[import-untyped]

    secret = None if passphrase is None else passphrase.encode()
    try:
        try:
            return paramiko.PKey.from_path(str(path), password=secret)
        except TypeError:
            if secret is None:
                raise
            return paramiko.PKey.from_path(str(path))  # a passphrase for a key that has none
    except TypeError as error:
        raise KeyUnusable(
            f"the key {path} needs its passphrase",
            next_step="Set its passphrase in the environment, or add the key to the SSH agent.",
        ) from error
    except OSError as error:
        raise KeyUnusable(f"the key {path} cannot be read: {error.strerror}", next_step="See its path and its mode.") from error
    except (ValueError, paramiko.SSHException) as error:
        message = f"the key {path} cannot be used: wrong passphrase, or not a private key of a known type"
        raise KeyUnusable(message, next_step=f"Check it with `ssh-keygen -y -f {path}`.") from error


def agent_keys(public_files: list[Path] | None) -> list[tuple[str, Any]]:
    """(name, key) of the SSH agent, a few at most: those of the public key files, or the first where none are named."""
    import paramiko

    allowed = None if public_files is None else {" ".join(_read(file).split()[:2]) for file in public_files}
    try:
        keys = paramiko.Agent().get_keys()
    except (paramiko.SSHException, OSError):
        return []
    named = [
        (f"agent key {key.fingerprint}", key) for key in keys if allowed is None or f"{key.name} {key.get_base64()}" in allowed
    ]
    return named[:MAX_AGENT_KEYS]


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
