"""Measured memory beside the plan: matched by name, container or unit; drift flagged; what is not known is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from collectors.readings import Container, Containers, Gpu, GpuProcess, Gpus
from deploy.planner import presets, reality
from deploy.planner.memory import CONTEXT_BYTES
from deploy.planner.placement import plan

PLAN = plan(presets.preset("l4"))
CARD = Gpu(0, "GPU-1", name="NVIDIA L4")
VLLM = PLAN.service("vllm").reserved_bytes + CONTEXT_BYTES
POOL = sum(PLAN.service(name).reserved_bytes for name in ("embedder", "reranker")) + CONTEXT_BYTES
CONTAINERS = Containers((Container("vllm", "3f2a9c11d0ab"),))


def read(*processes: GpuProcess) -> Gpus:
    return Gpus((CARD,), processes=processes)


def process(name: str | None, memory: int | None, owner: str | None = None, pid: int = 1, gpu: str = "GPU-1") -> GpuProcess:
    return GpuProcess(gpu, pid, name, memory, owner)


def rows(*processes: GpuProcess, containers: Containers | None = None) -> dict[str, reality.Measured]:
    found = reality.compare(PLAN, read(*processes), containers)
    assert found is not None
    return {each.name: each for each in found}


def test_what_runs_as_planned_is_said_so() -> None:
    found = rows(process("VLLM::EngineCore", VLLM), process("python -m gpu_server", POOL, pid=2))
    assert {name: each.verdict for name, each in found.items()} == {"vllm": "as planned", "gpu-server": "as planned"}
    assert found["gpu-server"].planned_bytes == POOL  # two services, one context
    assert found["vllm"].drift_ratio == pytest.approx(0)


@pytest.mark.parametrize(("factor", "verdict"), [(1.3, "more"), (0.7, "less"), (1.09, "as planned"), (0.91, "as planned")])
def test_drift_beyond_a_tenth_is_flagged(factor: float, verdict: str) -> None:
    found = rows(process("vllm serve", int(VLLM * factor)))["vllm"]
    assert found.verdict == verdict and found.drift_ratio == pytest.approx(factor - 1, abs=0.001)


def test_a_container_s_name_tells_whose_process_it_is() -> None:
    mine = process("python3", VLLM, "docker 3f2a9c11d0ab55aa")
    assert rows(mine, containers=CONTAINERS)["vllm"].verdict == "as planned"
    assert rows(mine)["vllm"].verdict == "not running"


def test_workers_of_one_service_are_added_up() -> None:
    found = rows(process("vllm a", VLLM // 2), process("vllm b", VLLM - VLLM // 2, pid=2))["vllm"]
    assert found.measured_bytes == VLLM and found.verdict == "as planned"


def test_what_nobody_planned_and_what_does_not_run_are_rows_of_their_own() -> None:
    found = rows(process("jupyter", 10))
    assert found["jupyter"].verdict == "not planned" and found["jupyter"].planned_bytes is None
    assert found["vllm"].verdict == "not running" and found["vllm"].measured_bytes is None and found["vllm"].reason


def test_memory_that_the_driver_does_not_tell_is_unknown_not_zero() -> None:
    found = rows(process("vllm", None))["vllm"]
    assert found.verdict == "unknown" and found.measured_bytes is None and found.drift_ratio is None and found.reason


def test_processes_that_could_not_be_read_are_no_answer() -> None:
    assert reality.compare(PLAN, Gpus((CARD,), processes=None)) is None
    assert reality.compare(PLAN, Gpus(None)) is None


def test_processes_of_other_gpus_are_left_out() -> None:
    assert "jupyter" not in rows(process("jupyter", 10, gpu="GPU-elsewhere"))


@pytest.mark.parametrize(("name", "known"), [("NVIDIA L4", "L4"), ("NVIDIA H100 80GB HBM3", "H100 80GB"), ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
                                             ("Tesla T4", "T4"), ("NVIDIA L40S", "L40S"), ("NVIDIA GB10", None)])  # fmt: skip
def test_the_type_is_known_by_the_driver_s_name(name: str, known: str | None) -> None:
    found = reality.gpu_type(Gpus((replace(CARD, name=name),)))
    assert (found.name if found else None) == known


def test_a_mixed_machine_has_no_one_type() -> None:
    assert reality.gpu_type(Gpus((CARD, replace(CARD, index=1, name="Tesla T4")))) is None
