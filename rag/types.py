"""Frozen types that travel along the query path, and their JSON (the shape of `docs/contracts.md`).

Times are seconds. None is "unknown or not applicable", never 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from gpu_server.interfaces import CacheMode

STAGES = ("cache", "hyde", "embed", "search", "rerank", "generate")
ROUTES = ("dense", "sparse", "fused", "rerank")

HydeMode = Literal["off", "on", "auto"]
Outcome = Literal["answered", "no_documents", "failed", "cancelled"]
Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller can choose for one query. `candidates` go into the reranker, `keep` come out of it."""

    hyde: HydeMode = "auto"
    candidates: int = 40
    keep: int = 8
    rerank: bool = True
    caches: CacheMode = "use"
    model: str | None = None
    collection: str | None = None


_NOTHING: Mapping[str, Any] = MappingProxyType({})
_PLACE_ALONE = re.compile(r"p\. |\d\d+:\d\d:\d\d")  # a page or a time says nothing of the text


class Passage(NamedTuple):
    """A stored passage as one query saw it. `ranks` count from 1; `scores` are raw; keys are those of ROUTES.

    A named tuple, because each query makes a hundred of them and a frozen dataclass costs four times as much to make.
    """

    id: str
    text: str
    source: str
    title: str
    location: str | None = None
    language: str | None = None
    document_id: str | None = None
    kept: bool = False
    ranks: Mapping[str, int | None] = _NOTHING
    scores: Mapping[str, float | None] = _NOTHING

    def with_route(self, route: str, rank: int | None, score: float | None) -> Passage:
        return self._replace(ranks={**self.ranks, route: rank}, scores={**self.scores, route: score})

    def to_json(self) -> dict[str, Any]:
        return {**self._asdict(), "ranks": dict(self.ranks), "scores": dict(self.scores)}


@dataclass(frozen=True, slots=True)
class PassageRow:
    """A passage to store. `id` is stable: the same content gives the same ids. `position` counts from 0 in its document."""

    id: str
    document_id: str
    content_hash: str
    position: int
    text: str
    title: str
    source: str
    location: str | None = None
    language: str | None = None

    @property
    def indexed_text(self) -> str:
        """What is embedded and searched: the text under its title and heading, which often hold the words of a question."""
        heading = self.location if self.location and not _PLACE_ALONE.match(self.location) else None
        return "\n".join(part for part in (self.title, heading, self.text) if part)


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document whose passages are all in the collection (its passage 0 is written last and carries this record)."""

    document_id: str
    content_hash: str
    source: str
    title: str
    language: str | None
    passages: int
    ingested_at: str


@dataclass(frozen=True, slots=True)
class Citation:
    """A passage that the answer cites as [number]; `location` is a page, heading or position within its source."""

    number: int
    passage_id: str
    source: str
    title: str
    location: str | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """Where a stage's seconds went; `other` makes the parts add up to the stage's total."""

    load: float = 0.0
    queue: float = 0.0
    tokenize: float = 0.0
    compute: float = 0.0
    network: float | None = None
    other: float = 0.0


@dataclass(frozen=True, slots=True)
class Interval:
    """One span of a stage on the query's time axis; `start` counts from the query's start.

    `facts` are what else the path learnt while it ran (docs/contracts.md lists them): work loads, retries, the store's state.
    """

    stage: str
    start: float
    seconds: float
    label: str
    split: Split
    cold: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of one answer: the sum over its spans. `skipped` and `degraded` hold the reason, or None."""

    stage: str
    seconds: float = 0.0
    spans: int = 0
    cold: bool = False
    skipped: str | None = None
    degraded: str | None = None
    device: str | None = None
    model: str | None = None
    where: str | None = None
    split: Split = Split()
    hit: bool | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        # by hand: `asdict` copies deeply, and this runs for every event of every query
        data = {name: getattr(self, name) for name in _STAGE_FIELDS}
        data["split"] = {name: getattr(self.split, name) for name in _SPLIT_FIELDS}
        if self.stage != "cache":  # the key `hit` belongs to the cache stage alone
            del data["hit"], data["reason"]
        return data


_STAGE_FIELDS = tuple(Stage.__dataclass_fields__)
_SPLIT_FIELDS = tuple(Split.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a query failed: which stage, what kind, at which address, and what to do next."""

    stage: str | None
    kind: str
    message: str
    address: str | None = None
    next_step: str = ""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token counts of the generate stage; `per_second` is completion tokens after the first over the time they took."""

    prompt: int | None = None
    completion: int | None = None
    per_second: float | None = None


@dataclass(frozen=True, slots=True)
class HydeEffect:
    """What the hypothesis changed, where the passages were searched with and without it. `shadow`: the search without it ran
    after the answer, outside the total, only to know. `overlap` is the share of the first five that both have. `best_dense`:
    cosine of the best passage of the search without it."""

    changed_top: bool
    overlap: float
    shadow: bool = False
    best_dense: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One query and all that is known of it. `id` has 32 hex digits, sorts by time, and is also the trace id, except where
    the query joined a caller's trace.

    `ttft_seconds` counts from the request to the language model to its first answer token, `first_token_seconds` from the
    question. `origin` is who asked: `ask` (a page), `api`, `cli`, `measure` (replay, load test: left out of what is usual), or
    `otlp:NAME` for a query that another program answered and told us of.
    """

    id: str
    question: str
    started_at: str
    outcome: Outcome
    error: Problem | None = None
    answer: str = ""
    citations: tuple[Citation, ...] = ()
    passages: tuple[Passage, ...] = ()
    stages: tuple[Stage, ...] = ()
    timeline: tuple[Interval, ...] = ()
    total_seconds: float = 0.0
    ttft_seconds: float | None = None
    first_token_seconds: float | None = None
    tokens: Tokens = Tokens()
    options: Options = Options()
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    prompt: tuple[Mapping[str, str], ...] = ()
    hyde_text: str | None = None
    finish_reason: str | None = None
    origin: str = "ask"
    hyde_effect: HydeEffect | None = None

    @property
    def cold(self) -> bool:
        return any(stage.cold for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}
        data["cold"] = self.cold
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Answer:
        """The inverse of `to_json`; keys of a newer version are ignored."""
        known = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        error = known.get("error")
        return cls(
            **{
                **known,
                "error": _known(Problem, error) if error else None,
                "citations": tuple(_known(Citation, item) for item in known.get("citations", ())),
                "passages": tuple(_known(Passage, item) for item in known.get("passages", ())),
                "stages": tuple(
                    _known(Stage, {**item, "split": _known(Split, item.get("split") or {})}) for item in known.get("stages", ())
                ),
                "timeline": tuple(
                    _known(Interval, {**item, "split": _known(Split, item.get("split") or {})})
                    for item in known.get("timeline", ())
                ),
                "tokens": _known(Tokens, known.get("tokens") or {}),
                "options": _known(Options, known.get("options") or {}),
                "hyde_effect": _known(HydeEffect, effect) if (effect := known.get("hyde_effect")) else None,
                "prompt": tuple(known.get("prompt", ())),
            }
        )


def _known(kind: type[Any], data: Mapping[str, Any]) -> Any:
    names = kind._fields if kind is Passage else kind.__dataclass_fields__
    return kind(**{key: data[key] for key in names if key in data})


def _plain(value: Any) -> Any:
    """JSON's types for a field of an Answer; nothing of the Answer is shared with what comes back."""
    if isinstance(value, (Passage, Stage)):
        return value.to_json()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if is_dataclass(value):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
