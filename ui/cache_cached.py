"""What the page Cache keeps between reruns and shares between sessions."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from rag.cache.calibrate import PAIRS, Pair, read_pairs
from rag.cache.tally import Looks, Tally, tally
from rag.errors import RagError
from rag.trace_rows import QueryFilter
from ui.cached import the_runtime

READ_QUERIES = 5_000
_EXAMPLE_KINDS = ("article", "unit", "negation", "direction", "date", "version", "wording")


@st.cache_resource(max_entries=2, show_spinner=False)
def _looks(path: Path, store: int) -> Looks:
    del path, store  # a store of its own has queries of its own
    return Looks(the_runtime().traces.get)


def looks() -> Looks:
    traces = the_runtime().traces
    return _looks(traces.path, id(traces))


@st.cache_resource(max_entries=8, show_spinner="Reading stored queries …")
def tally_since(revision: int, path: Path, since: float | None) -> Tally:
    """The newest READ_QUERIES queries of people and callers since then. Raises RagError."""
    del revision, path  # parts of the key: a new query makes it new
    where = QueryFilter(since=since, measured=False, foreign=False)
    return tally(the_runtime().traces.search(where, limit=READ_QUERIES), looks())


@st.cache_resource(max_entries=1, show_spinner=False)
def examples() -> tuple[Pair, ...]:
    """One shipped pair of each kind that is worth a look; none where the samples are not there."""
    try:
        pairs = read_pairs(PAIRS)
    except RagError:
        return ()
    found = (next((pair for pair in pairs if pair.kind == kind), None) for kind in _EXAMPLE_KINDS)
    return tuple(pair for pair in found if pair is not None)
