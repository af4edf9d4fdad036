"""Costs and advice from measured cells with round numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from latency.hardware.prices import (
    MONTH_SECONDS,
    PRESETS,
    REPORTED,
    Needs,
    Option,
    Price,
    advise,
    break_even,
    capacity_month,
    cost,
    eur_month,
    options,
    prices,
)
from latency.hardware.types import Cell, HardwareResult, Place, Row
from latency.load.steps import Step, Times
from rag.errors import RagError


def cell(size: int, clients: int, p95: float, rate: float) -> Cell:
    total = Times(50, p95, p95, p95, p95, p95)
    return Cell(size, clients, Step(clients, 1.0, 50, 50, rate, total))


def row(device: str, precision: str, cells: tuple[Cell, ...], component: Any = "rerank", told: str | None = None) -> Row:
    return Row(Place(component, "in-process", device, precision), cells, "m", told or device, precision)


def result(*rows: Row) -> HardwareResult:
    return HardwareResult({}, rows, "")


CPU = row("cpu", "fp32", (cell(20, 1, 0.3, 4.0), cell(20, 8, 2.0, 6.0)))
INT8 = row("cpu", "int8", (cell(20, 1, 0.2, 6.0),))
GPU = row("cuda:0", "bf16", (cell(20, 1, 0.05, 20.0), cell(20, 16, 0.4, 80.0), cell(20, 32, 0.9, 82.0)))
SURE = {"use_ratio": 1.0, "peak_factor": 1.0, "traffic_eur_month": 0.0}


def test_the_presets_are_those_of_the_report_with_their_date() -> None:
    found = {price.name: price.eur_month for price in PRESETS}
    expected = {"Hetzner T4": 40, "OVH V100": 100, "Scaleway V100": 80, "AWS g4dn.xlarge": 120, "Azure NC4as T4": 150}
    assert found == expected and {price.date for price in PRESETS} == {"2025-01"}
    assert any((each.device, each.candidates, each.low, each.high) == ("T4", 20, 0.05, 0.15) for each in REPORTED)


def test_prices_can_be_changed_added_and_taken_away() -> None:
    found = prices({"Hetzner T4": 45, "Ours": {"eur_month": 80, "date": "2026-03"}, "OVH V100": None})
    known = {price.name: price for price in found}
    assert known["Hetzner T4"] == Price("Hetzner T4", 45, "entered") and known["Ours"].date == "2026-03"
    assert "OVH V100" not in known
    for wrong in (-1, "many", math.nan, True, {"date": "2026"}):
        with pytest.raises(RagError, match="price"):
            prices({"x": wrong})


def test_an_option_is_the_best_within_the_target() -> None:
    cpu, gpu = options(result(CPU, GPU), Needs())
    assert (cpu.per_second, cpu.clients, cpu.meets_target, cpu.p95, cpu.hardware) == (4.0, 1, True, 0.3, "cpu")
    assert (gpu.per_second, gpu.clients, gpu.hardware) == (80.0, 16, "gpu")
    (strict,) = options(result(CPU), Needs(target_seconds=0.1))
    assert (strict.meets_target, strict.per_second) == (False, 6.0)


def test_embedding_the_question_takes_its_part_of_the_machine() -> None:
    embed = row("cpu", "fp32", (cell(1, 1, 0.01, 4.0),), "embed")
    assert options(result(CPU, embed), Needs())[0].per_second == pytest.approx(2.0)


def test_what_was_not_measured_is_no_option() -> None:
    assert options(result(CPU), Needs(candidates=50)) == ()
    skipped = Row(Place("rerank", "in-process", "cuda:0", "fp32"), skipped="no GPU")
    advice = advise(result(skipped), Needs())
    assert advice.choice is None and advice.costs == () and "measured nowhere" in advice.text


def test_costs_are_machines_times_price() -> None:
    needs = Needs(queries_month=2.5 * MONTH_SECONDS, cpu_eur_month=20, **SURE)
    option = Option("cpu fp32", "cpu", "fp32", 0.3, 50, 1.0, 1, True)
    assert capacity_month(1.0, needs) == pytest.approx(MONTH_SECONDS)
    found = cost(option, needs)
    assert (found.machines, found.eur_month) == (3, 60.0)
    assert found.eur_per_million == pytest.approx(60 / needs.queries_month * 1e6)
    assert found.eur_per_million_full == pytest.approx(20 / MONTH_SECONDS * 1e6)


def test_the_peak_and_the_room_left_shrink_what_a_machine_carries() -> None:
    assert capacity_month(1.0, Needs(use_ratio=0.5, peak_factor=5)) == pytest.approx(MONTH_SECONDS / 10)


def test_the_break_even_is_where_one_more_cpu_machine_costs_more_than_the_gpu() -> None:
    needs = Needs(gpu=Price("g", 50), cpu_eur_month=20, **SURE)
    cpu = Option("c", "cpu", "fp32", 0.3, 50, 1.0, 1, True)
    gpu = Option("g", "gpu", "bf16", 0.1, 50, 100.0, 1, True)
    assert break_even(cpu, gpu, needs) == pytest.approx(2 * MONTH_SECONDS)  # the third machine makes it 60 against 50
    for load, cheaper in ((1.9 * MONTH_SECONDS, cpu), (2.1 * MONTH_SECONDS, gpu)):
        assert min((cpu, gpu), key=lambda option: eur_month(option, needs, load)) is cheaper


def test_a_gpu_that_costs_less_pays_from_the_first_query_and_a_weak_one_never() -> None:
    cpu = Option("c", "cpu", "fp32", 0.3, 50, 10.0, 1, True)
    gpu = Option("g", "gpu", "bf16", 0.1, 50, 10.0, 1, True)
    assert break_even(cpu, gpu, Needs(gpu=Price("g", 10), cpu_eur_month=20, **SURE)) == 0.0
    assert break_even(cpu, gpu, Needs(gpu=Price("g", 40), cpu_eur_month=20, **SURE)) is None
    assert break_even(cpu, gpu, Needs(gpu=Price("g", 40), cpu_eur_month=0, **SURE)) is None


def test_with_little_load_the_cpu_is_advised_and_with_much_the_gpu() -> None:
    little = advise(result(CPU, INT8, GPU), Needs(queries_month=10_000))
    assert little.choice == "cpu int8"  # as dear as fp32 and faster
    much = advise(result(CPU, INT8, GPU), Needs(queries_month=20_000_000))
    assert much.choice == "cuda:0 bf16"
    assert little.break_even_queries_month is not None
    assert 10_000 < little.break_even_queries_month < 20_000_000
    assert any("33 % less time than fp32" in reason for reason in little.reasons)


def test_a_missed_target_is_a_reason() -> None:
    slow = row("cpu", "fp32", (cell(20, 1, 1.2, 1.0),))
    advice = advise(result(slow, GPU), Needs(queries_month=10))
    assert advice.choice == "cuda:0 bf16" and "the only one that meets the target" in advice.text
    assert any("misses the target" in reason and "n 50" in reason for reason in advice.reasons)
    none = advise(result(slow), Needs())
    assert none.choice is None and "comes closest" in none.text


def test_the_report_s_rule_is_said_as_the_report_s() -> None:
    (few,) = [each for each in advise(result(CPU, GPU), Needs(active_users=3)).reasons if "rule" in each]
    assert "2025-01" in few and "not measured here" in few and "against a GPU" in few and "disagrees" not in few
    (many,) = [each for each in advise(result(CPU, GPU), Needs(active_users=30)).reasons if "rule" in each]
    assert "speaks for a GPU" in many and "disagrees with what was measured" in many


def test_without_a_gpu_nothing_is_made_up() -> None:
    advice = advise(result(CPU, INT8), Needs())
    assert advice.break_even_queries_month is None and "no GPU was measured" in advice.break_even_text
    assert any("No GPU was measured" in reason for reason in advice.reasons)


def test_a_server_that_hides_its_device_is_priced_as_a_gpu_and_said() -> None:
    far = Row(Place("rerank", "http"), (cell(20, 1, 0.1, 10.0),), "m", "unknown", None)
    advice = advise(result(far), Needs())
    assert advice.costs[0].option.hardware == "gpu" and any("priced as a GPU" in each for each in advice.reasons)


@pytest.mark.parametrize("changes", [{"queries_month": 0}, {"use_ratio": 2}, {"peak_factor": 0.5}, {"cpu_eur_month": math.inf}])
def test_needs_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RagError) as refused:
        Needs(**changes)
    assert refused.value.kind == "bad_input" and next(iter(changes)) in refused.value.message
