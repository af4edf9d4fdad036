"""It was always so: what a query measured of itself is found also where nobody has ever seen it without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from latency.types import Case
from tests.faults.causes import BY_NAME
from tests.faults.laboratory import Fault, Laboratory, ask
from tests.faults.test_faults import LONG_REPEATS, check
from tests.faults.world import Bench, World

BEFORE = 6
MEASURED = (
    "reranker loaded inside the request",
    "models 0.3 s away",
    "a time-out hidden in a retry",
    "our own queue before the reranker",
    "a queue at our GPU server",
    "store 150 ms away",
    "store 300 ms away",
    "store opened inside the request",
    "collection released",
    "500 candidates",
    "vLLM queues",
    "vLLM's KV cache is full",
    "503 first, then an answer",
)


def always(fault: Fault) -> Fault:
    """The cause, in a place where it was in each query before."""

    def history(bench: Bench, world: World) -> Sequence[Case]:
        cases = []
        for _ in range(BEFORE):
            with fault.inject(bench, world) as slow:
                cases.append(ask(slow))
        return cases

    return replace(fault, history=history)


def test_a_model_that_was_always_loaded_for_each_request_is_found(laboratory: Laboratory):
    fault = BY_NAME["embedder loaded inside the request"]
    laboratory.decide(lambda repeats: check(fault, laboratory.try_out(always(fault), repeats)), 1)


@pytest.mark.long
@pytest.mark.parametrize("name", MEASURED)
def test_what_is_measured_needs_no_better_times_before(laboratory: Laboratory, name: str):
    fault = BY_NAME[name]
    laboratory.decide(lambda repeats: check(fault, laboratory.try_out(always(fault), repeats)), LONG_REPEATS)
