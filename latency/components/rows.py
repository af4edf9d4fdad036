"""What every component test is made of: its row, the parts that it may touch, times measured, verdicts. Knows no component."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal, Protocol, TypeVar

from collectors.nvml import Nvml
from collectors.readings import Gpus
from collectors.services import Service
from gpu_server.model_pool import ModelPool
from latency.components.targets import Target
from rag.errors import Cancelled
from rag.query import Clients
from rag.routes import FieldMapping
from rag.types import Options

Verdict = Literal["ok", "slow", "failed", "skipped"]
T = TypeVar("T")

NO_TARGET = "no target"
WARM_RUNS = 5
CALL_SECONDS = 60.0  # for one call of a model: a CPU may need long for 50 candidates


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `seconds` is the median of `samples`; None where nothing is timed, or nothing was.

    `values` are further numbers by name with their unit (`ttft_seconds`, `bytes_per_second`, `memory_bytes`). `reason` says why a
    test was skipped, failed, or is slow. `comparable` False: it stands in for what a target is about, and is held against none.
    Texts may come from a server: not to be shown unescaped.
    """

    code: str
    name: str
    samples: tuple[float, ...] = ()
    detail: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    verdict: Verdict = "ok"
    reason: str = ""
    target: Target | None = None
    comparable: bool = True

    @property
    def seconds(self) -> float | None:
        return median(self.samples) if self.samples else None

    @property
    def n(self) -> int:
        return len(self.samples)

    @property
    def word(self) -> str:
        """The verdict for people."""
        return verdict_word(self.verdict, self.target is not None)

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "seconds": self.seconds,
            "n": self.n,
            "samples": list(self.samples),
            "target": self.target._asdict() if self.target else None,
        }


def verdict_word(verdict: str, has_target: bool) -> str:
    """What is held against nothing was not found to be right: `no target` instead of `ok`."""
    return NO_TARGET if verdict == "ok" and not has_target else verdict


def skipped(code: str, name: str, reason: str) -> Row:
    return Row(code, name, verdict="skipped", reason=reason)


def failed(code: str, name: str, reason: str) -> Row:
    return Row(code, name, verdict="failed", reason=reason)


def judged(row: Row, target: Target | None) -> Row:
    """The row with its target, slow where its median is over it."""
    row = replace(row, target=target if row.comparable else None)
    target = row.target
    if row.verdict != "ok" or target is None or row.seconds is None or row.seconds <= target.seconds:
        return row
    return replace(row, verdict="slow", reason=f"{row.seconds / target.seconds:.3g} times the target of {target.source}")


class ModelState(Protocol):
    """What is known of a model without asking it: `models.ModelStatus` has it, and `gpu_server.slot.SlotStatus` most of it."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str | None: ...
    @property
    def load_seconds(self) -> float | None: ...
    @property
    def first_run_seconds(self) -> float | None: ...
    @property
    def where(self) -> str: ...
    @property
    def address(self) -> str | None: ...
    @property
    def memory_bytes(self) -> int | None: ...
    @property
    def error(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class StorePlace:
    """How a second connection to the passage store is made. `uri` None is the embedded one, whose files are in `data_dir`."""

    uri: str | None
    data_dir: Path
    collection: str
    token: str | None = field(default=None, repr=False)
    timeout_seconds: float = 10.0
    mapping: FieldMapping | None = None


def _no_models() -> Sequence[ModelState]:
    return ()


def _local_gpus() -> Gpus:
    nvml = Nvml()
    try:
        return nvml.read()
    finally:
        nvml.close()


@dataclass(frozen=True, slots=True)
class Parts:
    """What the process tells of itself beyond the lab. What is left out is skipped, and the row says so.

    `models` gives the state of each model; `fresh_pool` a pool with the same models as the settings say, nothing loaded, for
    `reload`. `folders` find the folder of a model that runs in this process; they may raise EngineError. `endpoints` are the
    remote addresses of the path, named `llm`, `embedder`, `reranker`, `store`.
    """

    store: StorePlace | None = None
    models: Callable[[], Sequence[ModelState]] = _no_models
    fresh_pool: Callable[[], ModelPool] | None = None
    folders: Mapping[str, Callable[[], Path]] = field(default_factory=dict)
    endpoints: tuple[Service, ...] = ()
    gpus: Callable[[], Gpus] = _local_gpus


@dataclass(slots=True)
class Bench:
    """One run of the component tests: what they call, and the token that ends them."""

    clients: Clients
    options: Options
    parts: Parts
    reload: bool = False
    cancelled: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raises Cancelled when the caller gave up."""
        if self.cancelled.is_set():
            raise Cancelled("the component tests were cancelled")

    def timed(self, call: Callable[[int], T], times: int = WARM_RUNS) -> tuple[tuple[float, ...], T]:
        """Seconds of each of `times` calls, and what the last one gave. A call gets its number, so that no two need be alike."""
        samples = []
        for number in range(times):
            self.check()
            started = time.perf_counter()
            last = call(number)
            samples.append(time.perf_counter() - started)
        return tuple(samples), last

    def model(self, kind: str) -> ModelState | None:
        return next((each for each in self.parts.models() if each.kind == kind), None)


Test = Callable[[Bench], Iterator[Row]]
"""One component: rows as they are known. May raise anything; the rest of its rows is then missing, and one says why."""
