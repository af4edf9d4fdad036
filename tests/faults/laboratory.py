"""Ask, slow down, ask again: cases of the real path, healthy and with a cause in it, and what is measured between them.

Healthy and slow queries are asked in turn, so that what else the machine does falls on both. `saving` of an `Experiment` is the
median of the slow ones less the median of the healthy ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
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

    `history` is what was asked before, where that is not the healthy world; `note` says what of the cause is not real.
    It has to cost `least_seconds`; `costs_little`: less than what is judged; `only_long`: in the long series alone.
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
    """What came of a fault. `pairs` are (healthy, slow) cases, `found` the findings of each slow one, `middle` the place of the one
    whose total is their median."""

    name: str
    pairs: tuple[tuple[Case, Case], ...]
    found: tuple[tuple[Finding, ...], ...]
    middle: int

    @property
    def healthy(self) -> float:
        """Median seconds without the cause."""
        return median(well.answer.total_seconds for well, _ in self.pairs)

    @property
    def slow(self) -> float:
        """Median seconds with it."""
        return median(worse.answer.total_seconds for _, worse in self.pairs)

    @property
    def saving(self) -> float:
        return self.slow - self.healthy

    @property
    def tolerance(self) -> float:
        return max(TOLERANCE_RATIO * self.saving, TOLERANCE_SECONDS)

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self.found[self.middle]

    def rank(self, code: str) -> int | None:
        """From 1; None where it was not found."""
        return next((rank for rank, each in enumerate(self.findings, 1) if each.code == code), None)

    def said(self, code: str) -> float | None:
        """The saving that the findings of a code expect, together (one may stand for each stage): the median over the slow
        queries; None where it was not found in the middle one."""
        if self.rank(code) is None:
            return None
        return median(sum(each.saving_seconds or 0.0 for each in findings if each.code == code) for findings in self.found)

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

    def decide(self, check: Callable[[int], None], repeats: int | None = None) -> None:
        """Run a check of so many queries; where it fails, three times as many with usual times taken anew decide. What else the
        machine does falls on single queries, and would be a cause as good as ours; a defect falls on all."""
        repeats = repeats or self.repeats
        try:
            check(repeats)
        except AssertionError:
            self._usual.clear()
            check(3 * repeats)

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
    """What is found in (healthy, slow) pairs."""
    order = sorted(range(len(pairs)), key=lambda place: pairs[place][1].answer.total_seconds)
    found = tuple(find(worse, usual) for _, worse in pairs)
    return Experiment(name, tuple(pairs), found, order[len(order) // 2])


def ask(world: World) -> Case:
    """One query by the real path, with the spans that its servers left, the readings of its window and what HyDE changed."""
    watch = EngineWatch(world.llm.address) if world.llm else None
    with watch.running() if watch else nullcontext():
        done = _run(world)
    assert done.answer.outcome == "answered", done.answer.error
    found = done.answer if done.shadow is None else replace(done.answer, hyde_effect=done.shadow())
    readings = world.readings(found)
    spans = [*done.spans, *(world.llm.spans_of(done.spans[0].trace_id) if world.llm else ())]
    return Case(found, tuple(spans), watch.onto(readings) if watch else readings)


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
