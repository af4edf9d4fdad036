"""What every embedder and reranker looks like, whichever maker, in-process or over HTTP. Knows nothing of torch or HTTP.

Two layers. `EmbeddingModel` and `RerankModel` are what a maker loads: tokenise (`encode`) and one pass (`forward`), run by one
worker. `Embedder` and `Reranker` are what callers use: the pool's, with batching around such a model, or a client of a server.
All times are seconds, measured with a monotonic clock. Unknown is None, never 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

TextKind = Literal["query", "passage"]
Where = Literal["in-process", "http"]
CacheMode = Literal["use", "bypass", "refresh"]
VectorKind = Literal["dense", "sparse", "late"]

DENSE_AND_SPARSE: frozenset[VectorKind] = frozenset({"dense", "sparse"})


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the seconds of one model call went.

    `load` is time spent waiting for weights, `queue` waiting for the model's worker, `network` is None in-process; over HTTP
    it is the time of the request less what the server says it took, and `network_estimated` where the server says nothing and
    a round trip measured on the open connection stands in. `cold` is the pool's word: the call loaded the model, waited for
    its load, or was its first run. `attempts` counts tries over HTTP, `waited` is what the failed ones and the pauses between
    took, `errors` what each of them met.
    """

    load: float = 0.0
    queue: float = 0.0
    tokenize: float = 0.0
    compute: float = 0.0
    network: float | None = None
    cold: bool = False
    network_estimated: bool = False
    attempts: int = 1
    waited: float = 0.0
    errors: tuple[str, ...] = ()

    @classmethod
    def total(cls, timings: Sequence[Timing]) -> Timing:
        """The sum of calls made one after another."""
        networks = [timing.network for timing in timings if timing.network is not None]
        return cls(
            load=sum(timing.load for timing in timings),
            queue=sum(timing.queue for timing in timings),
            tokenize=sum(timing.tokenize for timing in timings),
            compute=sum(timing.compute for timing in timings),
            network=sum(networks) if networks else None,
            cold=any(timing.cold for timing in timings),
            network_estimated=any(timing.network_estimated for timing in timings),
            attempts=1 + sum(timing.attempts - 1 for timing in timings),
            waited=sum(timing.waited for timing in timings),
            errors=tuple(error for timing in timings for error in timing.errors),
        )


@dataclass(frozen=True, slots=True)
class Embeddings:
    """`dense` is float32 [n, dimension], L2-normalised; `sparse` is one {token id: weight} a text, or None.

    `late` is one float32 [tokens, dimension] a text, L2-normalised by row (late interaction), or None. `tokens` counts what
    the model read, special tokens included; `truncated` the texts that were cut; `cached` those that a cache answered.
    """

    dense: NDArray[np.float32]
    sparse: tuple[Mapping[int, float], ...] | None
    timing: Timing
    tokens: int
    truncated: int = 0
    late: tuple[NDArray[np.float32], ...] | None = None
    cached: int = 0


@dataclass(frozen=True, slots=True)
class RerankCandidate:
    """A passage to score: its text and, where known, the raw scores of the routes that found it."""

    text: str
    dense: float | None = None
    sparse: float | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """`values` is float32 [n] in candidate order, raw (no sigmoid).

    `tokens` counts what the model read, over all pairs; `truncated` the pairs that were cut; `cached` those that a cache
    answered.
    """

    values: NDArray[np.float32]
    timing: Timing
    truncated: int = 0
    tokens: int = 0
    cached: int = 0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model is. `identity` is name, weights hash, dimension and pooling: never URL or precision.

    `learned_sparse`: the embedder makes sparse weights itself. `late_interaction`: it makes a vector a token, too.
    `memory_bytes` is what the weights take on the device.
    """

    name: str
    kind: Literal["embedder", "reranker", "llm"]
    identity: str
    device: str
    precision: str
    where: Where = "in-process"
    address: str | None = None
    dimension: int | None = None
    max_tokens: int | None = None
    learned_sparse: bool = False
    note: str | None = None
    late_interaction: bool = False
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text, or a query with a text, as token ids: special tokens included, cut to the model's limit.

    `type_ids` are segment ids where the model wants them (BERT pairs). `truncated`: something was cut away.
    """

    ids: Sequence[int]
    truncated: bool = False
    type_ids: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class Vectors:
    """One text's vectors: `dense` float32 [dimension], L2-normalised; `late` float32 [tokens, dimension]."""

    dense: NDArray[np.float32]
    sparse: Mapping[int, float] | None = None
    late: NDArray[np.float32] | None = None


class EmbeddingModel(Protocol):
    """A loaded embedder. `encode` may be called by many threads at once, `forward` by the model's worker alone."""

    @property
    def info(self) -> ModelInfo: ...

    def encode(self, texts: Sequence[str], kind: TextKind) -> list[Encoded]:
        """Token ids of each text, with the model's prompt for `kind` where it has one."""
        ...

    def forward(self, batch: Sequence[Encoded], vectors: frozenset[VectorKind]) -> list[Vectors]:
        """One pass over a batch of any lengths; results in the batch's order. Kinds the model cannot make come as None."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` without special tokens."""
        ...


class RerankModel(Protocol):
    """A loaded cross-encoder. `encode` may be called by many threads at once, `forward` by the model's worker alone."""

    @property
    def info(self) -> ModelInfo: ...

    def encode(self, query: str, texts: Sequence[str]) -> list[Encoded]: ...

    def forward(self, batch: Sequence[Encoded]) -> NDArray[np.float32]:
        """Raw scores, float32 [n], in the batch's order; pairs of different queries may stand in one batch."""
        ...


class Embedder(Protocol):
    """Texts to vectors. Thread-safe: callers queue for the model's worker."""

    @property
    def info(self) -> ModelInfo: ...

    def embed(
        self,
        texts: Sequence[str],
        kind: TextKind = "passage",
        *,
        vectors: frozenset[VectorKind] = DENSE_AND_SPARSE,
        priority: int = 0,
        deadline: float | None = None,
        caches: CacheMode = "use",
    ) -> Embeddings:
        """Embed `texts` (at least one). A query, or `priority` above 0, goes before bulk work that waits.

        `deadline` is a `time.monotonic()` value; past it TimeoutError is raised. Raises EngineError.
        """
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` without special tokens, for splitting; an estimate where the tokenizer is not at hand."""
        ...


def info_at_once(embedder: Embedder) -> bool:
    """Whether `info` costs nothing now: the model is loaded, or its server was asked. An embedder that does not say is ready."""
    return bool(getattr(embedder, "info_at_once", True))


def identity_of(reranker: Reranker) -> str:
    """Who scores, also before the model is loaded, so that what is kept under it is found by the next process."""
    identify = getattr(reranker, "identify", None)
    return str(identify() if identify is not None else reranker.info.identity)


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed completion: answer text, or reasoning text (kept out of answers), or the closing facts.

    `prompt_tokens`, `completion_tokens` and `finish_reason` come with the last piece, None where the maker does not say.
    """

    text: str = ""
    reasoning: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    timing: Timing | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One chat completion to stream; `thinking` False asks the model not to reason aloud first."""

    messages: tuple[Mapping[str, str], ...]
    max_tokens: int
    temperature: float
    thinking: bool = True
    model: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 120.0


class ChatModel(Protocol):
    """A language model that streams; closing the iterator ends the completion."""

    @property
    def info(self) -> ModelInfo: ...

    def stream(self, request: ChatRequest) -> Iterator[Delta]: ...


class Reranker(Protocol):
    """A query and its candidates to raw scores in candidate order. Thread-safe.

    `uses_route_scores`: it wants each candidate's score from both search routes, so that the search completes missing ones.
    Known before anything loads.
    """

    uses_route_scores: bool

    @property
    def info(self) -> ModelInfo: ...

    def score(
        self,
        query: str,
        candidates: Sequence[RerankCandidate],
        *,
        deadline: float | None = None,
        caches: CacheMode = "use",
    ) -> Scores: ...
