"""Two causes at once: both are among the first three."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.faults.causes import BY_NAME
from tests.faults.laboratory import Fault, Laboratory, both
from tests.faults.world import Bench, World

PAIRS = (
    ("embedder loaded inside the request", "vLLM queues"),
    ("reranker loaded inside the request", "collection released"),
    ("collection never flushed", "long answer"),
    ("500 candidates", "vLLM queues"),
    ("store 150 ms away", "slow decoding"),
    ("GPU throttled by heat", "slow decoding"),
    ("GPU shared with another process", "503 first, then an answer"),
    ("busy disk", "reranker on the CPU beside an idle GPU"),
)


def combined(one: Fault, other: Fault) -> Fault:
    """Both in one world: that of the first."""

    @contextmanager
    def inject(bench: Bench, world: World) -> Iterator[World]:
        with both(bench, world, one.inject, other.inject) as slow:
            yield slow

    return replace(one, name=f"{one.name} and {other.name}", inject=inject)


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_both_causes_are_among_the_first_three(laboratory: Laboratory, one: str, other: str):
    first, second = BY_NAME[one], BY_NAME[other]

    def both_are_found(repeats: int) -> None:
        tried = laboratory.try_out(combined(first, second), repeats)
        for fault in (first, second):
            rank = tried.rank(fault.code)
            assert rank is not None and rank <= 3, f"{fault.code} was to be among the first three\n{tried.told()}"

    laboratory.decide(both_are_found, 1)
