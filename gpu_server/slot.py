"""One model of the pool: loaded once however many ask, its state, and the ways to run it. Knows nothing of texts or vectors.

A model with a `forward` gets a batcher; any other is called directly, one caller at a time. The slot is the source of the
cold/warm label: a call is cold when it loaded the model, waited for that load, or was or waited for the model's first run.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from gpu_server.batch_queue import ShuttingDown
from gpu_server.batcher import Batcher, Forward
from gpu_server.errors import BadInput, Overloaded, TimedOut
from gpu_server.interfaces import ModelInfo, Timing

log = logging.getLogger(__name__)

ASIDE_THREADS = 4  # for calls that must not block their caller, and would: models without a batcher, models being loaded

State = Literal["waiting", "loading", "warm", "failed"]
M = TypeVar("M")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """What the pool knows of one model; what is not measured or not known is None.

    `runs` are calls answered and `failures` calls that the model failed, since the start. The fields of the batcher are None
    where the model is not loaded or has none, and count from the load: `queue_texts` wait, `batches`, `texts` and `tokens`
    were computed, `tokens_per_second` and `busy_ratio` (0..1) are of the last 30 s. `proven`: it answered, and has not failed
    since. `loaded_at` is in seconds since 1970; `memory_bytes` is what the weights take, on all devices together.
    """

    kind: str
    name: str
    state: State
    info: ModelInfo | None = None
    load_seconds: float | None = None
    first_run_seconds: float | None = None
    runs: int = 0
    error: str | None = None
    failures: int = 0
    proven: bool = False
    loaded_at: float | None = None
    devices: tuple[str, ...] = ()
    memory_bytes: int | None = None
    queue_texts: int | None = None
    batches: int | None = None
    texts: int | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    busy_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Loaded(Generic[M]):
    """A model, once for each device, and its batcher; None where it is called directly."""

    models: tuple[M, ...]
    batcher: Batcher[Any] | None

    @property
    def model(self) -> M:
        return self.models[0]


@dataclass(frozen=True, slots=True)
class Visit(Generic[M]):
    """What a call found: the model, the seconds it waited for the weights, whether it counts as cold."""

    loaded: Loaded[M]
    load: float
    cold: bool


@dataclass(frozen=True, slots=True)
class Turn(Generic[M]):
    """A caller's turn at a model without a batcher, and what it waited for."""

    model: M
    visit: Visit[M]
    queue: float

    def timing(self, timing: Timing) -> Timing:
        """The model's own timing with these waits."""
        load, queue = timing.load + self.visit.load, timing.queue + self.queue
        return replace(timing, load=load, queue=queue, cold=self.visit.cold or timing.cold)


class Slot(Generic[M]):
    """A model by its makers, one for each device; `forward` gives a model's forward function, None where it has none."""

    def __init__(
        self,
        kind: Literal["embedder", "reranker", "llm"],
        name: str,
        makes: Sequence[Callable[[], M]],
        forward: Callable[[M], Forward[Any] | None],
        max_queue_texts: int,
    ) -> None:
        self.kind = kind
        self.name = name
        self._makes = makes
        self._forward = forward
        self._max_queue_texts = max_queue_texts
        self._loaded: Loaded[M] | None = None
        self._load_lock = threading.Lock()
        self._attempts = 0
        self._failure: Exception | None = None
        self._turn = threading.Lock()
        self._stopped = False
        self._status_lock = threading.Lock()
        self._status = SlotStatus(kind, name, "waiting")
        self._aside: ThreadPoolExecutor | None = None

    # 1) state

    @property
    def status(self) -> SlotStatus:
        loaded, status = self._loaded, self._status
        if loaded is None or loaded.batcher is None:
            return status
        stats = loaded.batcher.stats()
        return replace(
            status,
            queue_texts=stats.queue_texts,
            batches=stats.batches,
            texts=stats.texts,
            tokens=stats.tokens,
            tokens_per_second=stats.tokens_per_second,
            busy_ratio=stats.busy_ratio,
        )

    @property
    def info(self) -> ModelInfo:
        """The model's own once it is loaded, until then its name: asking who it is must not cost a load that nobody times."""
        return self._status.info or ModelInfo(self.name, self.kind, self.name, device="unknown", precision="unknown")

    def _change(self, **values: Any) -> None:
        with self._status_lock:
            self._status = replace(self._status, **values)

    def ran(self, seconds: float) -> None:
        """A call was answered; `seconds` of work, waits left out."""
        with self._status_lock:
            status = self._status
            first = seconds if status.first_run_seconds is None else status.first_run_seconds
            self._status = replace(status, state="warm", error=None, runs=status.runs + 1, first_run_seconds=first, proven=True)

    def failed(self, problem: BaseException) -> None:
        """A call was not answered; the model's fault where it was no deadline, no full queue and no bad input."""
        if isinstance(problem, (TimeoutError, Overloaded, BadInput)):
            return
        with self._status_lock:
            status = replace(self._status, failures=self._status.failures + 1, proven=False)
            if status.first_run_seconds is None:  # never ran yet: without this it would seem to load for ever
                status = replace(status, state="failed", error=_said(problem))
            self._status = status

    # 2) loading

    def holds(self, loaded: Loaded[M]) -> bool:
        """Whether this is still the model in use: `reload` exchanges it."""
        return self._loaded is loaded

    def loaded(self, deadline: float | None = None) -> Loaded[M]:
        """The loaded model; loads it when nobody has, waits when somebody does.

        Who waited for a load that failed gets its error; the next call tries again. Raises TimedOut at `deadline` (monotonic
        seconds), ShuttingDown after `stop`.
        """
        loaded = self._loaded
        if loaded is not None:
            return loaded
        attempts = self._attempts
        with self._loading(deadline):
            if self._loaded is not None:
                return self._loaded
            if self._attempts != attempts and self._failure is not None:
                raise self._failure
            return self._load()

    @contextmanager
    def _loading(self, deadline: float | None) -> Iterator[None]:
        if not self._load_lock.acquire(timeout=_patience(deadline)):
            raise TimedOut(f"{self.name} was not loaded before the deadline", next_step="Try again when it is loaded.")
        try:
            if self._stopped:
                raise ShuttingDown(f"{self.name} is shutting down", next_step="Try again when it is back.")
            yield
        finally:
            self._load_lock.release()

    def _load(self) -> Loaded[M]:
        self._change(state="loading", error=None)
        started = time.perf_counter()
        try:
            models = tuple(make() for make in self._makes)
            loaded = Loaded(models, self._batcher(models))
        except Exception as problem:
            self._change(state="failed", error=_said(problem))
            self._failure = problem
            log.warning("%s %s failed to load: %s", self.kind, self.name, problem)
            raise
        finally:
            self._attempts += 1
        seconds = time.perf_counter() - started
        infos: list[ModelInfo] = [info for model in models if (info := getattr(model, "info", None)) is not None]
        known = [info.memory_bytes for info in infos if info.memory_bytes is not None]
        self._change(
            load_seconds=seconds,
            loaded_at=time.time(),
            info=infos[0] if infos else None,
            devices=tuple(info.device for info in infos),
            memory_bytes=sum(known) if known else None,
        )
        self._failure = None
        self._loaded = loaded
        log.info("%s %s loaded in %.2f s", self.kind, self.name, seconds)
        return loaded

    def _batcher(self, models: Sequence[M]) -> Batcher[Any] | None:
        forwards = [forward for model in models if (forward := self._forward(model)) is not None]
        return Batcher(forwards, name=self.name, max_queue_texts=self._max_queue_texts) if forwards else None

    def reload(self, timeout: float) -> None:
        """Finish what waits, drop the weights, load them anew; calls that come meanwhile wait for the load.

        Raises TimedOut where what waits takes longer than `timeout` seconds, and what the load raises; the next call loads.
        """
        deadline = time.monotonic() + timeout
        with self._loading(deadline):
            if self._loaded is not None:
                self._drop(deadline)
                gc.collect()  # what is in cycles must not lie in the device's memory beside its successor
            self._load()

    def _drop(self, deadline: float) -> None:
        old = self._loaded
        assert old is not None
        if not self._turn.acquire(timeout=_patience(deadline)):  # free at all times where there is a batcher
            raise TimedOut(f"{self.name} was still busy with a call", next_step="Try again when it is done.")
        self._loaded = None
        self._turn.release()
        self._change(state="loading", first_run_seconds=None, proven=False)
        if old.batcher is not None and not old.batcher.stop(timeout=max(0.0, deadline - time.monotonic())):
            raise TimedOut(f"{self.name} was still busy with what waited for it", next_step="Try again when it is done.")

    def stop(self, timeout: float) -> None:
        """Finish what waits, for `timeout` seconds at most; no call is taken any more."""
        self._stopped = True
        loaded = self._loaded
        if loaded is not None and loaded.batcher is not None:
            loaded.batcher.stop(timeout=timeout)
        if self._aside is not None:
            self._aside.shutdown(wait=False, cancel_futures=True)

    # 3) calls

    def glance(self) -> Visit[M] | None:
        """The model where it is loaded; waits for nothing."""
        cold = self._status.first_run_seconds is None  # at the asking: a wait for somebody else's first run is a cold wait
        loaded = self._loaded
        return None if loaded is None else Visit(loaded, 0.0, cold)

    def visit(self, deadline: float | None = None) -> Visit[M]:
        """The model, waited for if need be. Raises as `loaded` does."""
        asked = time.perf_counter()
        return self.glance() or Visit(self.loaded(deadline), time.perf_counter() - asked, cold=True)

    @contextmanager
    def turn(self, visit: Visit[M], deadline: float | None = None) -> Iterator[Turn[M]]:
        """Wait for the callers before, then be the only one. Raises as `loaded` does."""
        asked = time.perf_counter()
        visit = self._admitted(visit, deadline)
        try:
            started = time.perf_counter()
            yield Turn(visit.loaded.model, visit, queue=started - asked)
            self.ran(time.perf_counter() - started)
        except Exception as problem:
            self.failed(problem)
            raise
        finally:
            self._turn.release()

    def _admitted(self, visit: Visit[M], deadline: float | None) -> Visit[M]:
        while True:
            if not self._turn.acquire(timeout=_patience(deadline)):
                raise TimedOut(
                    f"no turn at {self.name} before the deadline: other callers hold it", next_step="Allow the call more time."
                )
            if self.holds(visit.loaded):
                return visit
            self._turn.release()  # it was loaded anew meanwhile
            visit = self.visit(deadline)

    def aside(self, work: Callable[[], T]) -> Future[T]:
        """Run a call that may wait on one of a few threads. Raises ShuttingDown after `stop`."""
        with self._status_lock:
            if self._stopped:
                raise ShuttingDown(f"{self.name} is shutting down", next_step="Try again when it is back.")
            if self._aside is None:
                self._aside = ThreadPoolExecutor(ASIDE_THREADS, thread_name_prefix=f"aside {self.name}")
            return self._aside.submit(work)


def _said(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}"


def _patience(deadline: float | None) -> float:
    """Seconds until `deadline` as `Lock.acquire` takes them: -1 waits without end."""
    return -1.0 if deadline is None else min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
