"""Readings below the waterfall: geometry and escaping read back with an HTML parser, and the view in a Streamlit script."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

import pytest
from bs4 import BeautifulSoup, Tag
from streamlit.testing.v1 import AppTest

from latency.readings.server_split import ServerSplit
from latency.types import LOCAL, Fact, QueryReadings, Series, Use
from rag.types import Answer, Interval, Split, Stage
from ui import figures, readings_figures, readings_tables

EVIL = '"><script>alert(1)</script>'
TIMES = tuple(index / 10 for index in range(-5, 106))
GENERATE = Interval("generate", 4.0, 6.0, "stream", Split(compute=6.0))
SEARCH = Interval("search", 1.0, 2.0, "search", Split(compute=2.0))


def answer() -> Answer:
    stages = tuple(Stage(each.stage, each.seconds, 1) for each in (SEARCH, GENERATE))
    timeline = (SEARCH, GENERATE)
    return Answer("q" * 32, "?", "2026-11-21T05:00:00+00:00", "answered", stages=stages, timeline=timeline, total_seconds=10.0)


def series(metric: str, value: Any, source: str = LOCAL, times: tuple[float, ...] = TIMES) -> Series:
    return Series(source, metric, times, tuple(value(time) if callable(value) else value for time in times))


def readings(
    *found: Series, facts: tuple[Fact, ...] = (), uses: tuple[Use, ...] = (), notes: tuple[str, ...] = ()
) -> QueryReadings:
    return QueryReadings("q" * 32, 1.7e9, 10.0, found, facts, uses, notes)


def gpu(index: int, busy: Any = 0.5) -> list[Series]:
    return [
        series(f"gpu.{index}.utilization_ratio", busy),
        series(f"gpu.{index}.memory_used_bytes", 20.0 * 2**30),
        series(f"gpu.{index}.memory_total_bytes", 24.0 * 2**30),
        series(f"gpu.{index}.power_watts", 60.0),
        series(f"gpu.{index}.sm_clock_mhz", 1500.0),
    ]


def drawn(found: QueryReadings, *splits: ServerSplit) -> BeautifulSoup:
    rows, _ = readings_figures.rows_of(found)
    return BeautifulSoup(readings_figures.timeline(answer(), rows, splits), "html.parser")


def labels(soup: BeautifulSoup) -> list[str]:
    return [each.text for each in soup.select(".rd-name")]


def polygon(track: Tag, kind: str = "") -> list[tuple[float, float]]:
    (area,) = [each for each in track.select("i") if " ".join(each.get("class") or []) == kind]
    points = re.findall(r"(?:calc\()?([\d.]+)%(?: \+ 2px\))? ([\d.]+)%", str(area["style"]))
    return [(float(x), float(y)) for x, y in points]


def test_one_gpu_has_a_row_for_each_thing() -> None:
    soup = drawn(readings(*gpu(0), series("cpu.busy_ratio", 0.4), series("disk.sda.busy_ratio", 0.2)))
    assert labels(soup) == ["GPU 0 busy", "GPU 0 VRAM", "GPU 0 power", "GPU 0 clock", "CPU", "disk sda"]
    assert [each.text for each in soup.select(".rd-time")] == ["50 %", "20.0 GiB", "60.0 W", "1,500 MHz", "40 %", "20 %"]


def test_eight_gpus_have_one_row_each() -> None:
    soup = drawn(readings(*(each for index in range(8) for each in gpu(index))))
    assert labels(soup) == [f"GPU {index}" for index in range(8)]
    title = str(soup.select(".rd-track b")[10]["title"])
    assert title.startswith("GPU 0\n") and "VRAM 20.0 GiB" in title and "power 60.0 W" in title and "clock 1,500 MHz" in title


def test_a_line_lies_on_the_waterfalls_axis() -> None:
    """Full from 4 s to 10 s of 10 s; what was read before the start and after the end is cut off."""
    soup = drawn(readings(series("gpu.0.utilization_ratio", lambda time: 1.0 if time >= 4.0 else 0.5)))
    points = polygon(soup.select_one(".rd-track"))  # type: ignore[arg-type]
    assert points[0] == (0.0, 100.0) and points[1] == (0.0, 54.0)
    assert (40.0, 8.0) in points and (39.0, 54.0) in points
    assert points[-1] == (100.0, 100.0)
    bar = BeautifulSoup(figures.waterfall(figures.bars_of([GENERATE]), 10.0), "html.parser").select_one(".rd-bar")
    assert bar is not None and "left:min(40.0000%" in str(bar["style"])
    assert ".rd-wf { grid-template-columns" in readings_figures.STYLE  # one grid for both


def test_limits_are_the_upper_edge() -> None:
    soup = drawn(readings(*gpu(0)))
    assert (0.0, pytest.approx(100 - 92 * 20 / 24, abs=0.06)) in polygon(soup.select(".rd-track")[1])


def test_ours_within_all_processors() -> None:
    found = readings(series("cpu.busy_ratio", 0.8), series("process.cpu_ratio", 2.0), series("cpu.cores", 4.0))
    track = drawn(found).select_one(".rd-track")
    assert track is not None
    assert (0.0, 26.4) in polygon(track) and (0.0, 54.0) in polygon(track, "own")
    assert "of it this process 50 %" in str(track.select("b")[3]["title"])


def test_gaps_are_no_lines() -> None:
    times = (0.0, 0.1, 0.2, 0.3, 5.0, 5.1, 5.2, 5.3, 9.0)
    track = drawn(readings(series("cpu.busy_ratio", 1.0, times=times))).select_one(".rd-track")
    assert track is not None
    ground = [x for x, y in polygon(track) if y == 100.0]
    assert ground[:5] == [0.0, 3.0, 50.0, 53.0, 90.0]
    unknown = Series(LOCAL, "cpu.busy_ratio", (0.0, 1.0, 2.0), (0.5, None, 0.5))
    assert len(readings_figures._points(unknown)) == 2


def test_few_readings_each_have_a_cell_and_many_share() -> None:
    few = drawn(readings(series("cpu.busy_ratio", lambda time: time / 20, source="vm", times=(-1.0, 1.0, 3.0, 9.0, 11.0))))
    cells = few.select(".rd-track b")
    assert [str(cell["title"]).split("\n")[1] for cell in cells] == ["1.00 s: 5 %", "3.00 s: 15 %", "9.00 s: 45 %"]
    assert [str(cell["style"]) for cell in cells] == [
        *("left:0.00%;width:20.00%", "left:20.00%;width:40.00%", "left:60.00%;width:40.00%"),
    ]
    many = drawn(readings(series("gpu.0.utilization_ratio", lambda time: 0.9 if 5 <= time <= 5.05 else 0.1))).select("b")
    assert len(many) <= readings_figures.CELLS
    assert sum(": 10 % to 90 %" in str(cell["title"]) for cell in many) == 1


def test_what_held_the_clocks_down_is_marked() -> None:
    heat = Fact(LOCAL, "gpu.0.throttle_reasons", "sw_thermal_slowdown", 5.0, 7.5)
    cap = Fact(LOCAL, "gpu.0.throttle_reasons", "sw_power_cap", -1.0, 0.5)
    later = Fact(LOCAL, "gpu.0.throttle_reasons", "sw_power_cap", 10.2, 10.4)
    marks = drawn(readings(*gpu(0), facts=(heat, cap, later))).select("s")
    assert [str(mark["style"]).split(";", 1)[1] for mark in marks] == ["left:50.00%;width:25.00%", "left:0.00%;width:5.00%"]
    assert "critical" in str(marks[0]["style"]) and "warn" in str(marks[1]["style"])
    assert "heat (driver), 5.00 s to 7.50 s" in str(marks[0]["title"])


def test_flat_rows_are_shown_on_demand() -> None:
    flat = series("disk.sdb.busy_ratio", 0.001)
    found = readings(series("cpu.busy_ratio", 0.4), flat, series("memory.used_ratio", 0.7), series("cpu.cores", 4.0))
    rows, more = readings_figures.rows_of(found)
    assert [row.label for row in rows] == ["CPU"]
    assert [row.label for row in more] == ["disk sdb", "memory used"]  # cores are no line
    idle = readings(*gpu(0, busy=0.0), facts=(Fact(LOCAL, "gpu.0.throttle_reasons", "sw_power_cap", 1.0, 2.0),))
    assert "GPU 0 busy" in [row.label for row in readings_figures.rows_of(idle)[0]]  # at zero, but held back: worth a look


def test_engines_and_other_machines_stand_under_their_names() -> None:
    found = readings(
        series("cpu.busy_ratio", 0.4),
        series("engine.waiting", 3.0, "llm"),
        series("engine.gpu-0.kv_cache_used_ratio", 0.9, "llm"),
        series("cpu.busy_ratio", 0.2, EVIL),
    )
    soup = drawn(found)
    assert [each.text for each in soup.select(".rd-source")] == ["This machine", "llm", EVIL]
    assert labels(soup) == ["CPU", "waiting", "KV cache", "CPU"]
    assert soup.find("script") is None
    assert not drawn(readings(series("cpu.busy_ratio", 0.4))).select(".rd-source")  # nothing to be told apart


def test_inside_the_model_server() -> None:
    known = ServerSplit("generate", 1.0, 0.5, 3.5, "span s1")
    soup = drawn(readings(series("cpu.busy_ratio", 0.4)), known, ServerSplit("hyde", reason=EVIL))
    assert labels(soup) == ["generate", "CPU"]
    bar = soup.select_one(".rd-bar")
    assert bar is not None and "left:50.00%;width:50.00%" in str(bar["style"])  # it ends with the stage
    widths = [float(re.search(r"width:([\d.]+)%", str(part["style"]))[1]) for part in bar.select("i")]  # type: ignore[index]
    assert widths == [20.0, 10.0, 70.0]
    assert "queue 1.00 s" in str(bar["title"]) and "from span s1" in str(bar["title"])
    unknown = drawn(readings(series("cpu.busy_ratio", 0.4)), ServerSplit("generate", reason="why"))
    assert not unknown.select(".rd-bar") and not unknown.select(".rd-source")


def test_nothing_in_the_time_itself() -> None:
    """A query shorter than the pace: the readings lie around it."""
    track = drawn(readings(series("cpu.busy_ratio", 0.4, times=(-2.0, 12.0)))).select_one(".rd-track")
    assert track is not None and not track.select("b")
    assert "no reading within the query" in str(track["aria-label"])
    assert polygon(track)[1] == (0.0, 63.2)  # the line between them is what is known


def test_a_short_query_shows_the_readings_next_to_it_and_none_from_long_after() -> None:
    late = {0.0: 0.2, 0.1: 0.9}  # the value is low right after the query, and high once it is long over

    def shown(*times: float) -> str:
        found = readings(series("cpu.busy_ratio", lambda time: late[round(time - times[0], 1)], times=times))
        cell = drawn(found).select_one(".rd-time")
        assert cell is not None
        return str(cell)

    assert "20 %" not in shown(50.0, 50.1) and "nor close to it" in shown(50.0, 50.1)
    end = readings_figures.span_of(answer())
    assert "20 % at" in shown(end + 0.01, end + 0.11) and "90 %" not in shown(end + 0.01, end + 0.11)


def test_numbers_by_stage() -> None:
    found = readings(
        series("gpu.0.utilization_ratio", lambda time: 0.9 if time >= 4 else 0.1), series("engine.requests_total", 7.0, "llm")
    )
    soup = BeautifulSoup(readings_tables.numbers_table(answer(), found), "html.parser")
    assert [each.text for each in soup.select("th")][-2:] == ["Mean in search", "Mean in generate"]
    (row,) = soup.select("tbody tr")
    assert [each.text for each in row.select("td")] == [
        *("local", "gpu.0.utilization_ratio", "101", "10 %", "58 %", "90 %", "10 %", "90 %"),
    ]


def test_other_processes() -> None:
    uses = (Use(LOCAL, 7, EVIL, "docker 3f2a", 0, 5 * 2**30), Use("vm", 8, "", None, 1), Use(LOCAL, 9, "ffmpeg", cpu_ratio=1.5))
    soup = BeautifulSoup(readings_tables.uses_table((*uses, Use(LOCAL, 1, "python", ours=True))), "html.parser")
    rows = [[cell.text for cell in row.select("td")] for row in soup.select("tbody tr")]
    assert rows[0] == [EVIL, "7", "local, GPU 0", "docker 3f2a", "5.00 GiB", ""]
    assert rows[1] == ["–", "8", "vm, GPU 1", "–", "–", ""]
    assert rows[2] == ["ffmpeg", "9", "local", "–", "", "1.50 cores"] and rows[3][0] == "python ours"
    assert soup.find("script") is None


def test_facts_in_a_line() -> None:
    facts = (
        Fact(LOCAL, "gpu.0.name", "NVIDIA L4", 0, 1),
        Fact("vm", "gpu.1.persistence_enabled", "false", 0, 1),
        Fact("vm", "gpu.0.persistence_enabled", "true", 0, 1),
    )
    assert readings_tables.facts_line(readings(facts=facts)) == "GPU 0 NVIDIA L4 · persistence mode is off on vm GPU 1"


def test_csv_has_every_value() -> None:
    found = readings(Series(LOCAL, "cpu.busy_ratio", (-0.1, 0.0), (0.5, None)), Series("=vm", "engine.waiting", (1.0,), (2,)))
    rows = list(csv.reader(io.StringIO(readings_tables.readings_csv(found).decode("utf-8-sig"))))
    assert rows == [
        ["query_id", "source", "metric", "seconds_from_start", "unix_seconds", "value"],
        ["q" * 32, "local", "cpu.busy_ratio", "-0.1", "1699999999.9", "0.5"],
        ["q" * 32, "local", "cpu.busy_ratio", "0.0", "1700000000.0", ""],
        ["q" * 32, "'=vm", "engine.waiting", "1.0", "1700000001.0", "2"],
    ]


# The view


def shown(kind: str) -> AppTest:
    def script(kind: str) -> None:
        from tests.latency import test_readings_view as cases
        from ui import readings_view

        readings_view.render(cases.answer(), *cases.CASES[kind])

    app = AppTest.from_function(script, kwargs={"kind": kind}, default_timeout=60).run()
    assert not app.exception
    return app


SPLIT = ServerSplit("generate", 1.0, 0.5, 3.5, "span s1")
FULL = readings(
    *gpu(0),
    series("disk.sda.busy_ratio", 0.0),
    uses=(Use(LOCAL, 7, "train.py", gpu=0),),
    notes=(f"{EVIL} could not be read.",),
)
CASES: dict[str, tuple[Any, ...]] = {
    "full": (FULL, SPLIT),
    "ours alone": (readings(*gpu(0), uses=(Use(LOCAL, 1, "python", gpu=0, ours=True),)),),
    "none": (None, ServerSplit("generate", reason=f"{EVIL} served others too")),
    "notes alone": (readings(notes=("No GPU of this machine was read.",)), SPLIT),
}


def html(app: AppTest) -> str:
    return "".join(each.proto.body for each in app.get("html"))


def test_everything_on_a_page() -> None:
    app = shown("full")
    assert [each.label for each in app.expander] == ["Readings at zero and others (1)", "Readings as numbers"]
    text = html(app)
    assert "GPU 0 busy" in text and "Inside the model server" in text and "1 other process at the same time" in text
    assert "<script>" not in text and "could not be read" in text
    assert app.get("download_button")[0].proto.label == "Readings CSV"


def test_without_others_there_is_no_list_of_them() -> None:
    assert "other process" not in html(shown("ours alone"))


def test_empty_states_say_why() -> None:
    text = html(shown("none"))
    assert "No readings of this time." in text and "from this version on" in text
    assert "Inside the model server during generate: not known, " in text and "<script>" not in text
    text = html(shown("notes alone"))
    assert "No GPU of this machine was read." in text and "Inside the model server" in text
