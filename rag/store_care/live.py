"""Which collection stands behind a name: after a re-embedding another one than the name says, by an alias in Milvus.

`passages__X` is the name; the collections are `passages__X` and, one for each re-embedding, `passages__X__g2`, `…__g3`. The alias
`passages__X__live` points at the one in use; without it that is `passages__X`. An alias moves in one step, between two searches.
"""

from __future__ import annotations

import re
from typing import Any

ALIAS = "__live"
_GENERATION = re.compile(r"__g(\d+)$")


def read(client: Any, timeout: float) -> dict[str, str]:
    """The collection in use by name, of the names where it is another. Raises pymilvus's errors."""
    listed = client.list_aliases(timeout=timeout)
    names = listed.get("aliases", ()) if isinstance(listed, dict) else listed
    return {
        alias.removesuffix(ALIAS): str(client.describe_alias(alias, timeout=timeout)["collection_name"])
        for alias in names
        if alias.endswith(ALIAS)
    }


def point(client: Any, name: str, collection: str, timeout: float) -> None:
    """Put `collection` into use under `name`, in one step."""
    if name in read(client, timeout):
        client.alter_alias(collection, name + ALIAS, timeout=timeout)
    else:
        client.create_alias(collection, name + ALIAS, timeout=timeout)


def name_of(collection: str) -> str:
    """The name that a collection belongs to: without its generation."""
    return _GENERATION.sub("", collection)


def next_generation(name: str, existing: list[str]) -> str:
    """A collection's name that is not taken: `…__g2` at first."""
    taken = [int(found[1]) for other in existing if name_of(other) == name and (found := _GENERATION.search(other))]
    return f"{name}__g{max([1, *taken]) + 1}"
