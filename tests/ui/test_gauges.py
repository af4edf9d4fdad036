from __future__ import annotations

from datetime import UTC

import pytest
from bs4 import BeautifulSoup

from collectors.readings import Fault, Gpu, Gpus
from collectors.rules import rules
from collectors.views import Part, Problem
from tests.ui.deployment_fakes import EVIL, gpus_of
from ui import gauges
from ui.gauges import Tones

FAILED = Problem("timeout", "command", f"no answer {EVIL}", "Look at the machine.")


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (None, gauges.NOT_COLLECTED),
        (Part(), "not read yet"),
        (Part(problem=FAILED), f"no answer {EVIL}. Look at the machine."),
        (Part(Gpus(None, faults=(Fault("x", "no driver", "Install it."),))), "no driver. Install it."),
        (Part(Gpus(None, faults=(Fault("x", "not found", "Leave it.", None, "note"),)), absent=True), "not found. Leave it."),
        (Part(Gpus((), faults=(Fault("x", "asleep", "Wake it.", None, "note"),))), "the driver does not tell"),
    ],
)
def test_why_something_is_not_known(part: Part[Gpus] | None, reason: str) -> None:
    assert gauges.why(part, "the driver does not tell") == reason


def test_tones_follow_the_rules_in_force_without_their_windows() -> None:
    tones = Tones(rules({}))
    assert tones.of("cpu.busy_ratio", 0.5) == "" and tones.of("cpu.busy_ratio", 0.9) == "warn"
    assert tones.of("cpu.busy_ratio", 0.97) == "critical" and tones.of("cpu.busy_ratio", None) == ""
    assert tones.of("filesystem./data.used_ratio", 0.99) == "critical" and tones.of("unheard.of", 1e9) == ""
    changed = Tones(rules({"cpu-busy": {"enabled": False}, "gpu-hot": {"warn": 40.0, "warn_clear": 30.0}}))
    assert changed.of("cpu.busy_ratio", 0.97) == "" and changed.of("gpu.7.temperature_celsius", 41.0) == "warn"


@pytest.mark.parametrize(
    ("used", "total", "text"),
    [
        (19.1 * 2**30, 22.5 * 2**30, "19.1 / 22.5 GiB"),
        (1024, 2**30, "< 0.01 / 1.00 GiB"),
        (0, 2**30, "0 / 1.00 GiB"),
        (2**30, None, "1.00 GiB"),
        (None, 2**30, "–"),
        (None, None, "–"),
    ],
)
def test_used_of_a_total_in_one_unit(used: float | None, total: float | None, text: str) -> None:
    assert gauges.used_of(used, total) == text


def test_a_bar_never_leaves_its_track_and_an_unknown_value_has_none() -> None:
    assert "width:100.0%" in gauges.bar(1.7, "170 %", "why") and "width:0.0%" in gauges.bar(-1.0, "-100 %", "why")
    unknown = BeautifulSoup(gauges.bar(None, "–", EVIL), "html.parser")
    assert unknown.abbr is not None and unknown.abbr["title"] == EVIL and "rd-bar1" not in str(unknown)


def test_one_cell_a_gpu_with_the_missing_one_crossed_out() -> None:
    reading = gpus_of("h100x8_one_lost.csv")
    soup = BeautifulSoup(gauges.cells(reading.gpus or (), reading.faults, 8), "html.parser")
    cells = soup.find_all("i")
    assert len(cells) == 8 and [cell["class"] for cell in cells][-1] == ["gone"]
    assert "NVIDIA H100" in cells[0]["title"] and "--v:97%" in cells[0]["style"]


def test_a_gpu_that_tells_no_utilization_has_a_cell_of_its_own_kind() -> None:
    cell = gauges.cells([Gpu(0, name=EVIL)], [Fault("ecc", EVIL, "", "gpu 0", "critical")])
    soup = BeautifulSoup(cell, "html.parser")
    assert soup.i is not None and set(soup.i["class"]) == {"wrong", "unknown"} and soup.img is None


def test_an_age_is_marked_where_it_is_stale() -> None:
    assert "rd-stale" in gauges.age(Part(1, 1000.0, 90.0, 0.1, None, True), UTC)
    fresh = gauges.age(Part(1, 1000.0, 3.2, 0.1), UTC)
    assert "rd-stale" not in fresh and "3 s ago" in fresh and "1970-01-01 00:16:40 UTC" in fresh
    assert "not read yet" in gauges.age(Part(), UTC) and "not collected" in gauges.age(None, UTC)


def test_links_carry_any_name() -> None:
    assert gauges.machine_url('a&b="<') == "/machine?name=a%26b%3D%22%3C"
    assert BeautifulSoup(gauges.link(gauges.service_url(EVIL), EVIL), "html.parser").img is None


@pytest.mark.parametrize(("seconds", "text"), [(None, "–"), (90.0, "90.0 s"), (7200.0, "2 h 00 min"), (3 * 86_400.0, "3 days")])
def test_durations(seconds: float | None, text: str) -> None:
    assert gauges.duration(seconds) == text
