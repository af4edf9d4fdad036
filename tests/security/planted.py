"""Which settings can hold a secret, as their own declarations and the readers of entries say it, and how one is put there.

A new secret, or a new setting that takes an address, is in the lists without an edit here; one of a shape that nothing here
fits is an error at import.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from _settings_models import KEYS, MERGED
from _settings_models import SECRETS as DECLARED
from _settings_values import SECRET_NAMES
from collectors.inventory import BadInventory, from_settings
from tests.security.canaries import canary

LEAST: dict[str, dict[str, Any]] = {  # the least that makes an entry of a table
    "machines": {"name": "far", "address": "127.0.0.1:9"},
    "services": {"name": "far", "kind": "http", "url": "http://127.0.0.1:9"},
    "prometheus": {"name": "far", "url": "http://127.0.0.1:9"},
}
assert set(LEAST) == set(MERGED)


def with_secret(key: str, secret: str, address: str = "127.0.0.1:9/v1") -> Any:
    """A value that the setting `key` takes, with the secret in it."""
    shapes = (
        secret,
        f"https://user:{secret}@{address}".replace("https", "http"),
        f"redis://:{secret}@127.0.0.1:9/0",
        {"X-Planted": secret},
        [secret],
    )
    return next(shape for shape in shapes if _takes(key, shape))


def _takes(key: str, value: Any) -> bool:
    info = KEYS[key]
    kind = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


def _is_address(key: str) -> bool:
    """A text that has to be a URL and may hold a password: it takes one with a user, and no plain word."""
    return _takes(key, "http://user:word@host/path") and not _takes(key, "word")


def _of_entries() -> Iterator[str]:
    """`TABLE.NAME` of every secret that a reader of entries takes, and of the passwords and queries of their addresses."""
    for table in MERGED:
        for name in sorted(SECRET_NAMES):
            if any(_is_read(table, {name: value}) for value in ("word", {"X-Planted": "word"})):
                yield f"{table}.{name}"
        if "url" in LEAST[table]:
            yield from (f"{table}.url", f"{table}.query")


def _is_read(table: str, more: dict[str, Any]) -> bool:
    entries = {name: [{**LEAST[name], **more}] if name == table else [] for name in MERGED}
    try:
        from_settings(*(entries[name] for name in ("machines", "services", "prometheus")))
    except BadInventory:
        return False
    return True


ADDRESSES = tuple(sorted(key for key in KEYS if key not in DECLARED and _is_address(key)))
IN_ENTRIES = tuple(_of_entries())
IN_ENVIRONMENT = "services.api_key_env"  # in the variable that an entry names
NAMES = (*sorted(DECLARED), *ADDRESSES, *IN_ENTRIES, IN_ENVIRONMENT)


def plant(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set the dotted key where nothing is set yet."""
    *tables, name = key.split(".")
    table = settings
    for part in tables:
        table = table.setdefault(part, {})
    table.setdefault(name, value)


def planted(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with every setting that can hold a secret set to one; what is set stays."""
    found = copy.deepcopy(settings)
    for key in (*sorted(DECLARED), *ADDRESSES):
        plant(found, key, with_secret(key, canary(key)))
    return found
