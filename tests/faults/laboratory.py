"""Ask, slow down, ask again: cases of the real path, healthy and with a cause in it, and what is measured between them.

`saving` of an `Experiment` is the median of the paired differences: each slow query less the healthy one asked beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from statistics import median

from latency import baseline as baselines
from latency.findings import find
from latency.types import Baseline, Case, Finding
from rag.query import Finished, answer
from tests.faults.readings import EngineWatch
from tests.faults.world import Bench, World

HEALTHY = 8
REPEATS = 3
LEAST_COST_SECONDS = 0.3
TOLERANCE_RATIO = 0.25
TOLERANCE_SECONDS = 0.05

Injection = Callable[[Bench, World], AbstractContextManager[World]]
History = Callable[[Bench, World], Sequence[Case]]


@dataclass(frozen=True)
class Fault:
    """One cause. `code` is the finding that is expected first; `base` gives the healthy world that it is put into.

    `history` is what was asked before, where that is not the healthy world; `note` says what of the cause is not real. `least_seconds` it has to cost; `costs_little`: less than what is judged; `only_long`: in the long series alone.
    """

    name: str
    code: str
    inject: Injection
    base: Callable[[Bench], World] = lambda bench: bench.local
    history: History | None = None
    note: str = ""
    least_seconds: float = LEAST_COST_SECONDS
    costs_little: bool = False
    only_long: bool = False

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Experiment:
    """What came of a fault. Seconds. `findings` are those of the slow query with the median total."""

    name: str
    healthy: float
    slow: float
    saving: float
    case: Case
    findings: tuple[Finding, ...]
    pairs: tuple[tuple[Case, Case], ...] = ()

    @property
    def tolerance(self) -> float:
        return max(TOLERANCE_RATIO * self.saving, TOLERANCE_SECONDS)

    def rank(self, code: str) -> int | None:
        """From 1; None where it was not found."""
        return next((rank for rank, each in enumerate(self.findings, 1) if each.code == code), None)

    def said(self, code: str) -> float | None:
        """The saving that the findings of a code expect, together: one may stand for each stage."""
        found = [each.saving_seconds or 0.0 for each in self.findings if each.code == code]
        return sum(found) if found else None

    def told(self) -> str:
        """The findings, a line each, for a test that fails."""
        lines = [
            f"  {rank}. {each.code} [{each.key}] cost {each.cost_seconds:.3f} saving {each.saving_seconds} ({each.confidence}): {each.title}"
            for rank, each in enumerate(self.findings, 1)
        ]
        head = f"{self.name}: healthy {self.healthy:.3f} s, slow {self.slow:.3f} s, measured saving {self.saving:.3f} s"
        return "\n".join([head, *(lines or ["  nothing stands out"])])


@dataclass
class Laboratory:
    """A bench and what is usual on it."""

    bench: Bench
    repeats: int = REPEATS
    healthy: int = HEALTHY
    _usual: dict[int, Baseline] = field(default_factory=dict)

    def usual(self, world: World) -> Baseline:
        """The baseline of healthy queries; asked once a world."""
        if id(world) not in self._usual:
            ask(world)  # the first connection to each server
            self._usual[id(world)] = baselines.build([ask(world) for _ in range(self.healthy)])
        return self._usual[id(world)]

    def try_out(self, fault: Fault, repeats: int | None = None) -> Experiment:
        """The cause put in and taken out again, in turn; then what is found."""
        world = fault.base(self.bench)
        usual = self.usual(world) if fault.history is None else baselines.build(fault.history(self.bench, world))
        ask(world)
        pairs = []
        for _ in range(repeats or self.repeats):
            with fault.inject(self.bench, world) as slow:
                worse = ask(slow)
            pairs.append((ask(world), worse))
        return experiment(fault.name, pairs, usual)


def experiment(name: str, pairs: Sequence[tuple[Case, Case]], usual: Baseline) -> Experiment:
    """Medians over (healthy, slow) pairs."""
    slow = sorted((worse for _, worse in pairs), key=lambda case: case.answer.total_seconds)
    middle = slow[len(slow) // 2]
    return Experiment(
        name,
        healthy=median(well.answer.total_seconds for well, _ in pairs),
        slow=median(worse.answer.total_seconds for _, worse in pairs),
        saving=median(worse.answer.total_seconds - well.answer.total_seconds for well, worse in pairs),
        case=middle,
        findings=find(middle, usual),
        pairs=tuple(pairs),
    )


def ask(world: World) -> Case:
    """One query by the real path, with the spans that its servers left and the readings of its window."""
    watch = EngineWatch(world.llm.address) if world.llm else None
    with watch.running() if watch else nullcontext():
        done = _run(world)
    assert done.answer.outcome == "answered", done.answer.error
    readings = world.readings(done.answer)
    spans = [*done.spans, *(world.llm.spans_of(done.spans[0].trace_id) if world.llm else ())]
    return Case(done.answer, tuple(spans), watch.onto(readings) if watch else readings)


def _run(world: World) -> Finished:
    steps = answer(world.question(), world.options, world.clients)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


@contextmanager
def both(bench: Bench, world: World, *injections: Injection) -> Iterator[World]:
    """Several causes in one world."""
    if not injections:
        yield world
        return
    first, *rest = injections
    with first(bench, world) as slow, both(bench, slow, *rest) as slower:
        yield slower
