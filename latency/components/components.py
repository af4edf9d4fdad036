"""The component tests: each part of the path by itself on the real parts, one table, a verdict against targets that are given.

A part that fails costs its own rows, not the others'. Knows nothing of presets' choice, pages or settings.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from jobs import Event, Job
from latency.components import machine as component_machine
from latency.components import models as component_models
from latency.components import store as component_store
from latency.components.rows import NO_TARGET, Bench, ModelState, Parts, Row, StorePlace, Test, Verdict, failed, judged
from latency.components.targets import CODES, Target, target_of
from latency.experiments.experiments import said
from rag.errors import Cancelled, RagError

if TYPE_CHECKING:
    from latency.lab import Lab

__all__ = ["TESTS", "ComponentsResult", "ModelState", "Parts", "Row", "StorePlace", "work"]

log = logging.getLogger(__name__)

Work = Callable[[Job["ComponentsResult"]], Generator[Event, None, "ComponentsResult"]]

# In this order: what a query needs first; the embedder's load comes before anything that would load it unseen.
TESTS: Mapping[str, Test] = {
    "embedder": component_models.embedder,
    "store": component_store.store,
    "reranker": component_models.reranker,
    "llm": component_models.llm,
    "network": component_machine.network,
    "disk": component_machine.disk,
    "memory": component_machine.memory,
}


@dataclass(frozen=True, slots=True)
class ComponentsResult:
    """The table. `seconds` is what all of it took; `stopped` says that it was cancelled before its end."""

    rows: tuple[Row, ...]
    seconds: float
    reload: bool = False
    stopped: bool = False

    def count(self, verdict: Verdict) -> int:
        return sum(row.verdict == verdict for row in self.rows)

    @property
    def summary(self) -> str:
        """`3 ok, 1 slow, 3 skipped, 11 with no target`."""
        words = Counter(row.word for row in self.rows)
        told = [f"{words[verdict]} {verdict}" for verdict in get_args(Verdict) if words[verdict]]
        told += [f"{words[NO_TARGET]} with {NO_TARGET}"] if words[NO_TARGET] else []
        return ", ".join(told) or "nothing was tested"

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": [row.to_json() for row in self.rows],
            "seconds": self.seconds,
            "reload": self.reload,
            "stopped": self.stopped,
            "summary": self.summary,
        }


def work(
    lab: Lab, targets: Mapping[str, Target], parts: Parts | None = None, *, only: tuple[str, ...] = (), reload: bool = False
) -> Work:
    """The tests as a job's work; `only` names those of TESTS to run, all of them by default. Without `parts` what needs
    them is skipped.

    `reload` loads a second copy of each model in this process and measures that. Events: `component_started {component}`,
    `component {row}`. Ends early, with what there is, when the job is cancelled. Raises RagError bad_input for unknown names.
    """
    unknown = sorted(set(only) - set(TESTS))
    if unknown:
        raise RagError(f"no component test {', '.join(unknown)}", kind="bad_input", next_step=f"Choose of {', '.join(TESTS)}.")

    def steps(job: Job[ComponentsResult]) -> Generator[Event, None, ComponentsResult]:
        bench = Bench(lab.clients(), lab.default_options(), parts or Parts(), reload, job.cancelled)
        started, rows = time.monotonic(), []
        try:
            for name in only or TESTS:
                bench.check()
                yield {"type": "component_started", "component": name}
                for row in _rows(name, bench):
                    rows.append(judged(row, target_of(row.code, targets)))
                    yield {"type": "component", "row": rows[-1].to_json()}
        except Cancelled:
            log.info("the component tests were stopped after %d rows", len(rows))
        return ComponentsResult(tuple(rows), time.monotonic() - started, reload, job.cancelled.is_set())

    return steps


def _rows(name: str, bench: Bench) -> Generator[Row, None, None]:
    """The rows of one component; one more that failed where it broke off. Raises Cancelled."""
    code = name
    try:
        for row in TESTS[name](bench):
            code = row.code
            yield row
    except Cancelled:
        raise
    except Exception as problem:
        if not hasattr(problem, "message"):  # none of ours: a bug, or a library's
            log.exception("the component test %s failed", name)
        what = name if code == name else f"{name}, after {CODES.get(code, code)}"
        yield failed(name, what[0].upper() + what[1:], said(problem))
