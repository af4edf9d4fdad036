"""Nothing is wrong: nothing is found."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from latency.findings import find
from tests.faults.laboratory import Laboratory, ask
from tests.faults.readings import idle_gpu
from tests.faults.world import Bench, World

RUNS = 4
WORLDS: dict[str, Callable[[Bench], World]] = {
    "everything near": lambda bench: bench.local,
    "beside an idle GPU": lambda bench: bench.local,
    "a Milvus server next door": lambda bench: bench.far_world(0.0),
    "models behind our GPU server": lambda bench: bench.served_models,
    "models behind a server that reports no times": lambda bench: bench.foreign_reranker,
}


@pytest.mark.parametrize("name", WORLDS)
def test_twenty_healthy_queries_have_no_findings(laboratory: Laboratory, name: str):
    world = WORLDS[name](laboratory.bench)
    asked = world.on(idle_gpu) if name == "beside an idle GPU" else world

    def nothing_is_found(runs: int) -> None:
        usual = laboratory.usual(world)
        for _ in range(runs):
            case = ask(asked)
            found = find(case, usual)
            assert found == (), [each.title for each in found]
            assert case.readings is not None and case.readings.gpus() == (0,)

    laboratory.decide(nothing_is_found, RUNS)


def test_there_are_twenty():
    assert RUNS * len(WORLDS) == 20
