"""Models loaded once a process, kept warm, handed out: the cure for models re-created on every request.

The pool is the only source of the cold/warm label: a call is cold when it loaded its model, waited for that load, or was
the model's first run. One worker a model: calls queue for it, and the time they wait is reported as `queue`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from gpu_server.interfaces import (
    ChatModel,
    ChatRequest,
    Delta,
    Embedder,
    Embeddings,
    ModelInfo,
    RerankCandidate,
    Reranker,
    Scores,
    TextKind,
    Timing,
)

log = logging.getLogger(__name__)

BULK_TEXTS = 8  # passages a turn: a query that comes meanwhile waits for about 0.2 s of CPU work, not for all of it

State = Literal["waiting", "loading", "warm", "failed"]
M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """What the pool knows of one model; seconds are None until measured."""

    kind: str
    name: str
    state: State
    info: ModelInfo | None = None
    load_seconds: float | None = None
    first_run_seconds: float | None = None
    runs: int = 0
    error: str | None = None


@dataclass(slots=True)
class Turn(Generic[M]):
    """A caller's turn at the model: the model, what it waited for, and whether it counts as cold."""

    model: M
    load: float
    queue: float
    cold: bool

    def timing(self, timing: Timing) -> Timing:
        return replace(timing, load=timing.load + self.load, queue=timing.queue + self.queue, cold=self.cold or timing.cold)


class Worker:
    """One caller at a time; queries go before bulk work that waits."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy = False
        self._urgent = 0

    def acquire(self, urgent: bool, timeout: float | None) -> bool:
        """Wait for the turn, `timeout` seconds at most (None: without end); False when they passed."""
        with self._changed:
            self._urgent += urgent
            try:
                if not self._changed.wait_for(lambda: self._free(urgent), timeout):
                    return False
                self._busy = True
                return True
            finally:
                self._urgent -= urgent

    def _free(self, urgent: bool) -> bool:
        return not self._busy and (urgent or not self._urgent)

    def release(self) -> None:
        with self._changed:
            self._busy = False
            self._changed.notify_all()


class Slot(Generic[M]):
    """One model: loads on first need, ten threads asking get one load, one caller at a time runs it."""

    def __init__(self, kind: str, name: str, make: Callable[[], M]) -> None:
        self.kind = kind
        self.name = name
        self._make = make
        self._model: M | None = None
        self._load_lock = threading.Lock()
        self._attempts = 0
        self._failure: Exception | None = None
        self._worker = Worker()
        self._status = SlotStatus(kind, name, "waiting")

    @property
    def status(self) -> SlotStatus:
        return self._status

    @property
    def info(self) -> ModelInfo:
        """The model's own once it is loaded, until then its name: asking who it is must not cost a load that nobody times."""
        kind: Any = self.kind
        return self._status.info or ModelInfo(self.name, kind, self.name, device="unknown", precision="unknown")

    def model(self, deadline: float | None = None) -> M:
        """The loaded model; loads it when nobody has, waits when somebody does.

        Who waited for a load that failed gets its error; the next call tries again. Raises TimeoutError at `deadline`.
        """
        model = self._model
        if model is not None:
            return model
        attempts = self._attempts
        if not self._load_lock.acquire(timeout=_patience(deadline)):
            raise TimeoutError(f"{self.name} was not loaded before the deadline")
        try:
            if self._model is not None:
                return self._model
            if self._attempts != attempts and self._failure is not None:
                raise self._failure
            return self._load()
        finally:
            self._load_lock.release()

    def _load(self) -> M:
        self._status = replace(self._status, state="loading", error=None)
        started = time.perf_counter()
        try:
            model = self._make()
        except Exception as problem:
            self._failed(problem)
            self._failure = problem
            log.warning("%s %s failed to load: %s", self.kind, self.name, problem)
            raise
        finally:
            self._attempts += 1
        seconds = time.perf_counter() - started
        info: ModelInfo | None = getattr(model, "info", None)
        self._status = replace(self._status, state="loading", load_seconds=seconds, info=info)
        self._model = model
        log.info("%s %s loaded in %.2f s", self.kind, self.name, seconds)
        return model

    def _failed(self, problem: Exception) -> None:
        self._status = replace(self._status, state="failed", error=f"{type(problem).__name__}: {problem}")

    @contextmanager
    def turn(self, deadline: float | None = None, *, urgent: bool = True) -> Iterator[Turn[M]]:
        """Wait for the weights, then for the worker, then hold it. Raises TimeoutError at `deadline` (monotonic seconds)."""
        asked = time.perf_counter()
        was_loaded = self._model is not None
        cold = self._status.first_run_seconds is None  # at the asking: a wait for somebody else's first run is a cold wait
        model = self.model(deadline)
        loaded = time.perf_counter()
        if not self._worker.acquire(urgent, None if deadline is None else _patience(deadline)):
            raise TimeoutError(f"no turn at {self.name} before the deadline: other callers hold it")
        try:
            started = time.perf_counter()
            load = 0.0 if was_loaded else loaded - asked
            yield Turn(model, load=load, queue=started - asked - load, cold=cold)
            self._ran(time.perf_counter() - started)
        except Exception as problem:
            if self._status.first_run_seconds is None and not isinstance(problem, TimeoutError):
                self._failed(problem)  # never ran yet: without this it would seem to load for ever
            raise
        finally:
            self._worker.release()

    def _ran(self, seconds: float) -> None:
        status = self._status
        first = seconds if status.first_run_seconds is None else status.first_run_seconds
        self._status = replace(status, state="warm", error=None, runs=status.runs + 1, first_run_seconds=first)


def _patience(deadline: float | None) -> float:
    """Seconds until `deadline` as `Lock.acquire` takes them: -1 waits without end."""
    return -1.0 if deadline is None else min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)


class PooledEmbedder:
    """The pool's embedder: the maker's interface, with load, queue and cold filled in."""

    def __init__(self, slot: Slot[Embedder]) -> None:
        self._slot = slot

    @property
    def info(self) -> ModelInfo:
        return self._slot.model().info

    def embed(
        self, texts: Sequence[str], kind: TextKind = "passage", *, priority: int = 0, deadline: float | None = None
    ) -> Embeddings:
        """A query, or a few texts, in one turn. Many passages take turns of BULK_TEXTS, alike in length: queries come between."""
        if kind == "query" or len(texts) <= BULK_TEXTS:
            return self._turn(texts, kind, priority, deadline)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        shares = [order[start : start + BULK_TEXTS] for start in range(0, len(order), BULK_TEXTS)]
        parts = [self._turn([texts[index] for index in share], kind, priority, deadline) for share in shares]
        return _joined(order, parts)

    def _turn(self, texts: Sequence[str], kind: TextKind, priority: int, deadline: float | None) -> Embeddings:
        with self._slot.turn(deadline, urgent=kind == "query") as turn:
            result = turn.model.embed(texts, kind, priority=priority, deadline=deadline)
        return replace(result, timing=turn.timing(result.timing))

    def count_tokens(self, text: str) -> int:
        return self._slot.model().count_tokens(text)


def _joined(order: Sequence[int], parts: Sequence[Embeddings]) -> Embeddings:
    """The parts as one result in the texts' own order; `order` says which text each row of the parts belongs to."""
    place = np.empty(len(order), dtype=np.intp)
    place[np.asarray(order)] = np.arange(len(order))
    sparse = [row for part in parts for row in part.sparse or ()]
    timings = [part.timing for part in parts]
    networks = [timing.network for timing in timings if timing.network is not None]
    return Embeddings(
        dense=np.concatenate([part.dense for part in parts])[place],
        sparse=tuple(sparse[index] for index in place) if len(sparse) == len(order) else None,
        timing=Timing(
            load=sum(timing.load for timing in timings),
            queue=sum(timing.queue for timing in timings),
            tokenize=sum(timing.tokenize for timing in timings),
            compute=sum(timing.compute for timing in timings),
            network=sum(networks) if networks else None,
            cold=any(timing.cold for timing in timings),
        ),
        tokens=sum(part.tokens for part in parts),
        truncated=sum(part.truncated for part in parts),
    )


class PooledReranker:
    """The pool's reranker: the maker's interface, with load, queue and cold filled in."""

    def __init__(self, slot: Slot[Reranker], uses_route_scores: bool) -> None:
        self._slot = slot
        self.uses_route_scores = uses_route_scores

    @property
    def info(self) -> ModelInfo:
        return self._slot.info

    def score(self, query: str, candidates: Sequence[RerankCandidate], *, deadline: float | None = None) -> Scores:
        with self._slot.turn(deadline) as turn:
            result = turn.model.score(query, candidates, deadline=deadline)
        return replace(result, timing=turn.timing(result.timing))


class PooledChatModel:
    """The pool's in-process language model; holds the worker while it streams."""

    def __init__(self, slot: Slot[ChatModel]) -> None:
        self._slot = slot

    @property
    def info(self) -> ModelInfo:
        return self._slot.info

    def stream(self, request: ChatRequest) -> Iterator[Delta]:
        with self._slot.turn(time.monotonic() + request.timeout) as turn:
            for delta in turn.model.stream(request):
                yield replace(delta, timing=turn.timing(delta.timing)) if delta.timing else delta


class ModelPool:
    """The models of this process by kind. `add` registers a maker; nothing loads before `warm_up` or the first call."""

    def __init__(self) -> None:
        self._slots: dict[str, Slot[Any]] = {}

    def add_embedder(self, name: str, make: Callable[[], Embedder]) -> PooledEmbedder:
        return PooledEmbedder(self._add("embedder", name, make))

    def add_reranker(self, name: str, make: Callable[[], Reranker], *, uses_route_scores: bool = False) -> PooledReranker:
        return PooledReranker(self._add("reranker", name, make), uses_route_scores)

    def add_chat_model(self, name: str, make: Callable[[], ChatModel]) -> PooledChatModel:
        return PooledChatModel(self._add("llm", name, make))

    def _add(self, kind: str, name: str, make: Callable[[], M]) -> Slot[M]:
        slot = Slot(kind, name, make)
        self._slots[kind] = slot
        return slot

    def warm_up(self) -> None:
        """Load every model and run each once, so that no query pays for it. A model that fails is reported, not raised."""
        for slot in self._slots.values():
            try:
                _first_run(slot)
            except Exception as problem:
                log.warning("warm-up of %s %s failed: %s", slot.kind, slot.name, problem)

    def status(self) -> tuple[SlotStatus, ...]:
        return tuple(slot.status for slot in self._slots.values())


def _first_run(slot: Slot[Any]) -> None:
    if slot.kind == "embedder":
        PooledEmbedder(slot).embed(["warm-up"], "query")
    elif slot.kind == "reranker":
        PooledReranker(slot, False).score("warm-up", [RerankCandidate("warm-up", 0.5, 1.0), RerankCandidate("other", 0.1, 0.0)])
    else:
        request = ChatRequest(({"role": "user", "content": "Say: warm"},), max_tokens=4, temperature=0.0, thinking=False)
        for _ in PooledChatModel(slot).stream(request):
            continue
