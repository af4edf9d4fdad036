"""What the semantic cache takes and gives. Knows no store and no rule."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from rag.cache.guards import Check
from rag.cache.normalise import exact
from rag.types import Answer, Citation, Passage, Tokens

SPARE_PASSAGES = 8  # ranked and not kept: the hard negatives of an export


class CacheAway(Exception):
    """The store of the answers cannot be asked now; the text says which one and why, without a password."""


@dataclass(frozen=True, slots=True)
class CacheKey:
    """Everything besides the question that changes an answer; digests or names, no secrets.

    `content_version` is the collection's: another one as soon as its documents are others. `prompt` covers the templates and
    the sampling, `options` what the caller chose.
    """

    collection: str
    content_version: str
    embedder: str
    model: str
    prompt: str
    options: str

    @classmethod
    def of(
        cls,
        *,
        collection: str,
        content_version: str,
        embedder: str,
        model: str,
        prompt: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> CacheKey:
        """From the settings' and the caller's parts, which are digested."""
        return cls(collection, content_version, embedder, model, digest(prompt), digest(options))

    @property
    def scope(self) -> str:
        """16 hex digits: answers of one scope may stand for each other."""
        return digest(asdict(self))[:16]

    def entry_id(self, question: str) -> str:
        """40 hex digits: the scope, and the question in its normal form."""
        return self.scope + hashlib.sha256(exact(question).encode("utf-8", "replace")).hexdigest()[:24]


def digest(value: Any) -> str:
    """32 hex digits of any JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """An answer that was given once and may be given again; times are Unix seconds.

    `passages` are those that were kept, and the first few that were ranked and not kept. `seconds` is what the answer took when
    it was made: what a hit saves. `query_id` is that query's. `key` holds the parts of its CacheKey (empty in answers kept by an
    older version); `expires_at_unix` is the store's word, None while it gave none. `hyde`: its passages
    were found with a hypothesis.
    """

    id: str
    question: str
    answer: str
    citations: tuple[Citation, ...]
    passages: tuple[Passage, ...]
    tokens: Tokens
    model: str
    collection: str
    query_id: str
    seconds: float
    created_at_unix: float
    finish_reason: str | None = None
    prompt: tuple[Mapping[str, str], ...] = ()
    hits: int = 0
    used_at_unix: float | None = None
    good: bool = False
    edited: bool = False
    key: Mapping[str, str] = field(default_factory=dict)
    expires_at_unix: float | None = field(default=None, compare=False)
    hyde: bool = False

    @property
    def scope(self) -> str:
        return self.id[:16]

    @property
    def sources(self) -> tuple[str, ...]:
        """Sources of the passages that were kept, each once."""
        return tuple(dict.fromkeys(passage.source for passage in self.passages if passage.kept))

    @classmethod
    def from_answer(cls, answer: Answer, key: CacheKey, now_unix: float) -> CachedAnswer:
        kept = [passage for passage in answer.passages if passage.kept]
        spare = [passage for passage in answer.passages if not passage.kept][:SPARE_PASSAGES]
        return cls(
            id=key.entry_id(answer.question),
            question=answer.question,
            answer=answer.answer,
            citations=answer.citations,
            passages=(*kept, *spare),
            tokens=answer.tokens,
            model=key.model,
            collection=key.collection,
            query_id=answer.id,
            seconds=answer.total_seconds,
            created_at_unix=now_unix,
            finish_reason=answer.finish_reason,
            prompt=answer.prompt,
            key=asdict(key),
            hyde=answer.hyde_text is not None,
        )

    def to_json(self) -> dict[str, Any]:
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        data["citations"] = [asdict(citation) for citation in self.citations]
        data["passages"] = [passage.to_json() for passage in self.passages]
        data["tokens"] = asdict(self.tokens)
        data["prompt"] = [dict(message) for message in self.prompt]
        data["key"] = dict(self.key)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CachedAnswer:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for what is not one."""
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        known["citations"] = tuple(Citation(**item) for item in known["citations"])
        known["passages"] = tuple(Passage(**item) for item in known["passages"])
        known["tokens"] = Tokens(**known["tokens"])
        known["prompt"] = tuple(known.get("prompt", ()))
        return cls(**known)

    def counted(self, hits: int, used_at_unix: float | None, expires_at_unix: float | None = None) -> CachedAnswer:
        return replace(self, hits=hits, used_at_unix=used_at_unix, expires_at_unix=expires_at_unix)


class Candidate(NamedTuple):
    """A cached question that the search brought up, and what became of it.

    `dense` is the cosine of both questions' vectors, `sparse` the BM25 score; None where unknown. `checks` are the guards'
    verdicts in their order, as far as they were asked; `refused` is None for the hit.
    """

    id: str
    question: str
    dense: float | None
    sparse: float | None
    agreement: float | None = None
    checks: tuple[Check, ...] = ()
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Lookup:
    """What the cache says to a question. `reason` is a sentence part for the trace, for a hit and for none.

    `lead`: this query computes the answer for others who ask the same meanwhile; `keep` or `release` must end it.
    `waited_seconds` went to waiting for such another.
    """

    hit: CachedAnswer | None
    reason: str
    candidates: tuple[Candidate, ...] = ()
    exact: bool = False
    lead: bool = False
    waited_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From where on a candidate may be a hit, for one embedder: cosine and agreement, both at least this.

    `rerank` is a reranker's raw score, the lower of both directions; None where none was calibrated.
    Calibrated, not guessed: `measured` holds what the calibration saw (docs: `rag/cache/calibrate.py`).
    """

    embedder: str
    dense: float
    agreement: float
    rerank: float | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)
