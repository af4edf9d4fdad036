"""The program's own files, and its settings without what is secret in them. Asks no version control: it may not be there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TOP_FILES = ("*.py", "requirements*.txt", "README.md", "LICENSE*", "SECURITY.md", "Makefile", "pyproject.toml",
             "dashboard.example.toml", ".env.example", ".streamlit/config.toml")  # fmt: skip
DATA_FOLDERS = frozenset({"docs", "samples"})
LEFT_OUT_FOLDERS = frozenset({"tests", "data", "__pycache__", "node_modules", "test-artifacts"})
LEFT_OUT = re.compile(r"(.*\.(pyc|pyo|db|db-wal|db-shm|log|pem|key|p12|pfx|unfinished)|\.env.*|id_[a-z0-9]+|secrets\..*|\..*)")


def program_files(root: Path) -> Iterator[tuple[str, Path]]:
    """(place in the bundle, file) of the program: packages, their data, documents; never data, tests, keys or `.env`.

    Folders at the top count when they hold Python or are known: what somebody put beside the program stays here.
    """
    for pattern in TOP_FILES:
        for path in sorted(root.glob(pattern)):
            if path.is_file() and not path.is_symlink():
                yield f"app/{path.relative_to(root).as_posix()}", path
    for folder in sorted(root.iterdir()):
        known = folder.name in DATA_FOLDERS or any(folder.glob("*.py")) if folder.is_dir() else False
        if known and not folder.is_symlink() and folder.name not in LEFT_OUT_FOLDERS and not folder.name.startswith("."):
            for path in _below(folder):
                yield f"app/{path.relative_to(root).as_posix()}", path


def _below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            continue
        if path.is_dir():
            if path.name not in LEFT_OUT_FOLDERS and not path.name.startswith("."):
                yield from _below(path)
        elif path.is_file() and not LEFT_OUT.fullmatch(path.name):
            yield path


def without_secrets(
    data: Mapping[str, Any], secrets: frozenset[str], entry_secrets: frozenset[str]
) -> tuple[dict[str, Any], list[str]]:
    """A settings file's data with secrets and user names in URLs left out, and the dotted keys of what was left out."""
    left_out: list[str] = []

    def cleaned(value: Any, key: str) -> Any:
        if isinstance(value, Mapping):
            return {name: cleaned(item, _under(key, name)) for name, item in value.items() if not secret(_under(key, name), name)}
        if isinstance(value, list):
            return [cleaned(item, f"{key}.{_name(item, index)}") for index, item in enumerate(value)]
        plain = without_user(value) if isinstance(value, str) else value
        if plain != value:
            left_out.append(f"{key} (user, password or query of the address)")
        return plain

    def secret(key: str, name: str) -> bool:
        found = key in secrets or (name in entry_secrets and key.count(".") >= 2)
        left_out.extend([key] if found else [])
        return found

    return cleaned(data, ""), left_out


def _under(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _name(item: Any, index: int) -> str:
    return str(item.get("name", index)) if isinstance(item, Mapping) else str(index)


_URL = re.compile(r"([A-Za-z][\w+.-]*://)\S+|[^\s/@]*:[^\s/]*@\S+|[\w.-]+:\d+[/?#]\S*")


def without_user(text: str) -> str:
    """An address, also one without a scheme, without user, password, query and fragment; other text as it is."""
    found = _URL.fullmatch(text)
    if found is None:
        return text
    scheme = found[1] or ""
    plain = re.sub(r"[?#].*$", "", text[len(scheme) :].rpartition("@")[2])  # a password may hold what nobody escaped
    return scheme + plain
