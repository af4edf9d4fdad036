from __future__ import annotations

import json

import pytest
from bs4 import BeautifulSoup

from collectors.history import Point
from tests.ui.deployment_fakes import EVIL
from ui import trend
from ui.trend import Line, Range


def points(*values: float, step: float = 60.0, start: float = 0.0) -> tuple[Point, ...]:
    return tuple(Point(start + index * step, value, value * 0.5, value * 1.5, 30) for index, value in enumerate(values))


def test_thinning_keeps_the_mean_by_samples_and_the_extremes() -> None:
    several = (Point(0, 1.0, 0.5, 2.0, 1), Point(2, 4.0, 3.0, 9.0, 3), Point(4, 7.0, 7.0, 7.0, 5))
    assert trend.thinned(several, 2) == (Point(0, 3.25, 0.5, 9.0, 4), several[2])
    assert trend.thinned(several, 3) == several
    assert trend.thinned((), 2) == ()


def test_a_window_moves_only_once_a_refresh_and_reaches_now() -> None:
    span = Range(600, 15)
    assert span.window(1000.0) == span.window(1004.9) == (405.0, 1005.0)
    assert span.window(1005.0) == (420.0, 1020.0)


def test_a_sparkline_tells_the_last_and_the_highest_value() -> None:
    html = trend.spark(points(0.1, 0.6, 0.31), 0, 180, f"CPU {EVIL}", "ratio", 1.0)
    soup = BeautifulSoup(html, "html.parser")
    assert soup.span is not None and soup.img is None
    assert soup.span["title"] == f"CPU {EVIL}, last 3 min: 31 % now, highest 90 %"
    assert "clip-path:polygon(0.0% 100%,0.0% 90.8%,33.3% 44.8%" in html


def test_a_sparkline_breaks_where_buckets_are_missing_and_says_when_there_are_none() -> None:
    gap = points(0.5, 0.5) + points(0.5, 0.5, start=600)
    outline = trend.spark(gap, 0, 720, "CPU", "ratio", 1.0)
    assert "8.3% 54.0%,8.3% 54.0%,8.3% 100%,83.3% 100%" in outline  # down to the ground before, up from it after
    assert "nothing was kept in this time yet" in trend.spark((), 0, 60, "CPU", "ratio")
    assert "polygon" in trend.spark(points(0.0), 0, 60, "CPU", "ratio")


def test_a_chart_of_one_line_shows_the_highest_too_and_gaps_as_gaps() -> None:
    gap = points(0.5, 0.25) + points(0.75, start=600)
    options = trend.options([Line("busy", gap)], 0, 720, "ratio", 1.0)
    mean, highest = options["series"]
    assert mean["data"] == [[0.0, 50.0], [60_000.0, 25.0], [60_001.0, None], [600_000.0, 75.0]]
    assert [value for _, value in highest["data"]] == [75.0, 37.5, None, 112.5]
    assert (options["yAxis"]["max"], options["xAxis"]["min"], options["xAxis"]["max"]) == (100.0, 0, 720_000)
    json.dumps(options)  # what goes to the browser


def test_a_chart_of_several_lines_shows_means_only() -> None:
    options = trend.options([Line("GPU 0", points(1, 2)), Line("GPU 1", points(2, 3))], 0, 120, "bytes")
    assert [series["name"] for series in options["series"]] == ["GPU 0", "GPU 1"]
    assert len({series["color"] for series in options["series"]}) == 2 and "max" not in options["yAxis"]
    assert trend.options([], 0, 60, "count")["series"] == []


def test_the_headline_of_a_chart() -> None:
    text = BeautifulSoup(trend.headline("CPU busy", [Line("", points(0.5, 0.25))], "ratio"), "html.parser").text
    assert text == "CPU busy 25 % · highest 75 %"
    two = trend.headline("GPU", [Line("a", points(60.0)), Line("b", points(70.0))], "celsius")
    assert "2 lines" in two and "highest 105 °C" in two
    assert "nothing was kept" in trend.headline("GPU", [Line("a", ())], "celsius")


@pytest.mark.parametrize(
    ("values", "unit", "axis", "tooltip", "drawn"),
    [
        ((500.0,), "bytes/s", "{value} B/s", "%.2f B/s", 500.0),
        ((2.0 * 2**20,), "bytes/s", "{value} MiB/s", "%.2f MiB/s", 2.0),
        ((0.25,), "seconds", "{value} ms", "%.1f ms", 250.0),
        ((25.0,), "seconds", "{value} s", "%.2f s", 25.0),
        ((0.5,), "ratio", "{value} %", "%.1f %%", 50.0),
        ((0.0,), "bytes", "{value} B", "%.2f B", 0.0),
    ],
)
def test_a_chart_chooses_the_unit_that_its_values_need(
    values: tuple[float, ...], unit: trend.Unit, axis: str, tooltip: str, drawn: float
) -> None:
    options = trend.options([Line("x", points(*values))], 0, 60, unit)
    assert (options["yAxis"]["axisLabel"]["formatter"], options["tooltip"]["valueFormatter"]) == (axis, tooltip)
    assert options["series"][0]["data"][0][1] == drawn


def test_values_in_the_units_of_charts() -> None:
    shown = [
        trend.text_of(value, unit) for value, unit in ((0.5, "ratio"), (2**30, "bytes/s"), (71.0, "celsius"), (0.02, "seconds"))
    ]
    assert shown == ["50 %", "1.00 GiB/s", "71.0 °C", "20.0 ms"]
    assert {trend.text_of(None, unit) for unit in trend._SCALES} == {"–"}
