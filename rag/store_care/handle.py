"""Load, release and drop a collection by hand, with what must not be done refused."""

from __future__ import annotations

from rag.errors import RagError
from rag.store import Store


def load(store: Store, name: str) -> None:
    """Into Milvus's memory, whole. Raises RagError."""
    store.open()
    with store.mapped(f"load {name}"):
        store.client.load_collection(name, timeout=max(120.0, store.timeout))


def release(store: Store, name: str) -> None:
    """Out of Milvus's memory; the next search of it loads it again. Raises RagError."""
    store.open()
    with store.mapped(f"release {name}"):
        store.client.release_collection(name, timeout=max(30.0, store.timeout))


def drop(store: Store, name: str, *, active: str | None) -> None:
    """Delete a collection. Raises RagError for the one in use, for one that somebody else filled, and as the store does."""
    if name == active:
        raise RagError(
            f"{name} is in use and is not dropped here",
            kind="bad_input",
            next_step="Put another one into use first (re-embed), or remove its documents on the page Knowledge.",
        )
    store.drop(name)
