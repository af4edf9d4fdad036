"""What a question finds at each stage: the path itself is run as far as the rerank, and what each search brought is kept.

Nothing of the path is repeated here: `rag.query.answer` runs with the caller's own clients, all caches bypassed, and is left when
it has ranked the passages. Between it and the store stands a listener, since the path forgets what its fusion cut off.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from gpu_server.interfaces import Embedder, Embeddings
from rag.errors import RagError
from rag.inspect.reading import Reader, base_name
from rag.query import Clients, Control, answer
from rag.routes import Found, fuse
from rag.store import Store
from rag.trace import Tracing
from rag.types import ROUTES, Event, Options, Passage

DEEP_LIMIT = 1000  # how far a document is looked for that neither route found within the question's own limit

Fate = Literal["kept", "cut by rerank", "cut by fusion", "not found"]
FATES: tuple[Fate, ...] = ("kept", "cut by rerank", "cut by fusion", "not found")


class Search(NamedTuple):
    """One search of the path: what it was asked with and what both routes brought."""

    collection: str
    vector: NDArray[np.float32] | None
    text: str
    limit: int
    sparse: Mapping[int, float] | None
    found: Found


@dataclass(frozen=True, slots=True)
class StageRun:
    """Every passage that a route found, in final order: kept, then reranked, then what the fusion cut off.

    `ranks` and `scores` are the path's own; a fused rank beyond `options.candidates` is what the same fusion gives the rest.
    `reranked` False: the fused order stands, for the reason in `notes`, which holds what stages skipped or did without.
    """

    question: str
    options: Options
    passages: tuple[Passage, ...]
    search: Search
    reranked: bool
    hyde_text: str | None
    notes: tuple[tuple[str, str], ...]

    def fate(self, passage: Passage) -> Fate:
        """Which stage was this passage's last."""
        fused = passage.ranks.get("fused")
        if passage.kept:
            return "kept"
        if fused is None:
            return "not found"
        return "cut by rerank" if fused <= self.options.candidates else "cut by fusion"

    def lost_from(self, route: str, top: int = 10) -> tuple[Passage, ...]:
        """Passages that stood in the first `top` of a route or stage and were not kept."""
        return tuple(item for item in self.passages if not item.kept and (item.ranks.get(route) or top + 1) <= top)


class Expectation(NamedTuple):
    """Where a document that should be found drops out. `ranks` are its best by stage, `deep` those of a search of DEEP_LIMIT
    passages a route, made where neither route had it; None means beyond that."""

    fate: Fate
    reason: str
    next_step: str
    ranks: Mapping[str, int | None]
    passages: tuple[Passage, ...]
    deep: Mapping[str, int | None] | None = None


class _Listening:
    """An embedder that keeps the texts it is given. Everything else is the embedder's own."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.texts: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedder, name)

    def embed(self, texts: Sequence[str], *about: Any, **more: Any) -> Embeddings:
        self.texts += texts
        return self._embedder.embed(texts, *about, **more)


class _Listener:
    """A store that keeps its searches. Everything else is the store's own."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.searches: list[Search] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def search(
        self,
        name: str,
        vector: NDArray[np.float32] | None,
        text: str,
        limit: int,
        *,
        sparse: Mapping[int, float] | None = None,
        **more: Any,
    ) -> Found:
        found = self._store.search(name, vector, text, limit, sparse=sparse, **more)
        self.searches.append(Search(name, vector, text, limit, sparse, found))
        return found


def run(question: str, options: Options, clients: Clients, control: Control | None = None) -> Generator[Event, None, StageRun]:
    """Run the path without its answer; yields its events. `options.hyde` other than off needs a language model.

    Nothing is stored, no span is sent on. Raises RagError where a stage fails that the path cannot do without.
    """
    listener, listening = _Listener(clients.store), _Listening(clients.embedder)
    options = replace(options, caches="bypass")
    watched = replace(
        clients, store=cast(Store, listener), embedder=cast(Embedder, listening), tracing=Tracing(capture_content=False)
    )
    steps = answer(question, options, watched, control)
    notes: dict[str, str] = {}
    ranked: list[Mapping[str, Any]] | None = None
    try:
        while ranked is None:
            event = next(steps)
            yield event
            if event["type"] == "stage_finished":
                _note(notes, event["stage"])
            if event["type"] == "passages":
                ranked = event["passages"]
    except StopIteration as end:
        problem = end.value.answer.error
        if problem is None:
            raise RagError("the path ended before it ranked its passages") from None
        raise RagError(
            f"{problem.stage}: {problem.message}", kind=problem.kind, address=problem.address, next_step=problem.next_step
        ) from None
    finally:
        steps.close()
    hypothesis = next((text for text in listening.texts if text != question), None)
    return _stage_run(question, options, listener.searches[-1], ranked, tuple(notes.items()), hypothesis)


def _note(notes: dict[str, str], stage: Mapping[str, Any]) -> None:
    why = stage.get("degraded") or stage.get("skipped")
    if why and stage["stage"] != "cache":
        notes[str(stage["stage"])] = str(why)


def _stage_run(
    question: str,
    options: Options,
    search: Search,
    ranked: Sequence[Mapping[str, Any]],
    notes: tuple[tuple[str, str], ...],
    hypothesis: str | None,
) -> StageRun:
    passages = [Passage(**item) for item in ranked]
    known = {passage.id for passage in passages}
    everything = fuse(search.found, len(search.found.dense) + len(search.found.sparse))
    passages += [passage for passage in everything if passage.id not in known]
    reranked = any(passage.ranks.get("rerank") for passage in passages)
    return StageRun(question, options, tuple(passages), search, reranked, hypothesis, notes)


def document_key(passage: Passage) -> str:
    """What a passage belongs to: its document, or in a collection of somebody else's its source."""
    return passage.document_id or passage.source


def expect(found: StageRun, document: str, store: Store) -> Expectation:
    """Follow a document (`document_key`) through the stages: how far its passages came and what cut the last of them off.

    One that neither route found is looked for DEEP_LIMIT passages deep, with the vector and text of the run. Raises RagError.
    """
    own = tuple(passage for passage in found.passages if document_key(passage) == document)
    ranks = _best(own)
    limit, keep = found.options.candidates, found.options.keep
    if not own:
        return _look_deeper(found, document, store)
    fate = min((found.fate(passage) for passage in own), key=FATES.index)
    last = "rerank" if found.reranked else "fused"
    if fate == "kept":
        return Expectation(fate, f"Kept: its best passage is number {ranks[last]} of {keep}.", "", ranks, own)
    if fate == "cut by rerank":
        before = f"number {ranks['fused']} of the fused order"
        reason = (
            f"It went to the reranker as {before}, and came out at {ranks['rerank']}" if found.reranked else f"It is {before}"
        )
        step = "Read both texts to see why others go before it. Keeping more (reranker.return_k) would let it through."
        return Expectation(fate, f"{reason}; {keep} are kept.", step, ranks, own)
    reason = f"A route found it ({_told(ranks)}), but fused it is only number {ranks['fused']}; {limit} candidates go on."
    return Expectation(fate, reason, f"Raise the candidates (reranker.top_k) to about {ranks['fused']}.", ranks, own)


def _look_deeper(found: StageRun, document: str, store: Store) -> Expectation:
    search, limit = found.search, found.options.candidates
    deeper = store.search(search.collection, search.vector, search.text, DEEP_LIMIT, sparse=search.sparse)
    everything = fuse(deeper, len(deeper.dense) + len(deeper.sparse))
    own = tuple(passage for passage in everything if document_key(passage) == document)
    deep = _best(own)
    reason = f"Neither route has it within its first {limit} passages."
    none: dict[str, int | None] = dict.fromkeys(ROUTES)
    if not own:
        step = "Look at the document's passages: do they say what the question asks, in which words and language?"
        return Expectation("not found", f"{reason} Nor is it within {DEEP_LIMIT:,}.", step, none, (), deep)
    nearest = min(rank for route in ("dense", "sparse") if (rank := deep[route]))
    step = f"With {nearest} candidates (reranker.top_k) a route would find it; or ask in the document's own words."
    return Expectation("not found", f"{reason} Looked for deeper: {_told(deep)}.", step, none, own, deep)


def _best(passages: Sequence[Passage]) -> dict[str, int | None]:
    return {route: min((rank for item in passages if (rank := item.ranks.get(route))), default=None) for route in ROUTES}


def _told(ranks: Mapping[str, int | None]) -> str:
    return ", ".join(f"{name} {ranks[route] or '–'}" for name, route in (("dense", "dense"), ("BM25", "sparse")))


def options_for(reader: Reader, options: Options, active: str | None) -> Options:
    """The options that make the path search this collection: the active one needs no name."""
    return options if reader.name == active else replace(options, collection=base_name(reader.name))
