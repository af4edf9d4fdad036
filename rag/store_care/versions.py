"""The version of a collection's schema: kept on the collection, checked when it is opened, and what to do about another one.

Version 1 is the layout of `layout.passages`; collections that carry no version are of it. Knows nothing of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from rag.errors import RagError

PROPERTY = "ragdeck.schema"
CURRENT = 1

# From a version to the next one, in place: (client, collection, timeout). A change that needs every row anew has no entry here:
# the cure is then to re-embed, which fills a collection of the current version.
Migration = Callable[[Any, str, float], None]
MIGRATIONS: Mapping[int, Migration] = MappingProxyType({})


def of(description: Mapping[str, Any]) -> int:
    """The version in a collection's description. Raises RagError where it is no number."""
    text = dict(description.get("properties") or {}).get(PROPERTY, "1")
    try:
        return int(text)
    except (TypeError, ValueError):
        raise RagError(
            f"the collection {description.get('collection_name')} carries the schema version {text!r}, which is no number",
            kind="bad_input",
            next_step=f"Set its property {PROPERTY} to a number, or restore it from a backup.",
        ) from None


def check(
    client: Any,
    name: str,
    timeout: float,
    *,
    current: int = CURRENT,
    migrations: Mapping[int, Migration] = MIGRATIONS,
) -> None:
    """Bring the collection to the current version, or say why it cannot be used. Raises RagError, pymilvus's errors."""
    found = of(client.describe_collection(name, timeout=timeout))
    if found > current:
        raise RagError(
            f"the collection {name} has schema version {found}; this version of the program knows {current}",
            kind="bad_input",
            next_step="Update this program, or name another collection in milvus.collection.",
        )
    for version in range(found, current):
        migration = migrations.get(version)
        if migration is None:
            raise RagError(
                f"the collection {name} has schema version {found}, and version {version} cannot be changed in place",
                kind="bad_input",
                next_step=f"Fill a new one from its texts: python -m rag reembed --from {name}",
            )
        migration(client, name, timeout)
        client.alter_collection_properties(name, properties={PROPERTY: str(version + 1)}, timeout=timeout)
