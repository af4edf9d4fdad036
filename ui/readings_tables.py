"""Readings of a query's window as tables, sentences and CSV. Pure; everything from outside is escaped."""

from __future__ import annotations

from collections.abc import Sequence

from latency.types import LOCAL, Fact, QueryReadings, Series, Use
from rag.types import STAGES, Answer
from ui import figures
from ui.exports import to_csv
from ui.format import bytes_text, escape, number, shortened, unknown_html
from ui.readings_figures import span_of, value_text


def numbers_table(answer: Answer, readings: QueryReadings) -> str:
    """Each series in numbers: of the query's time, and its mean within each stage that ran."""
    ran = [name for name in STAGES if any(each.stage == name for each in answer.timeline)]
    heads = ["Source", "Reading", "n", "Lowest", "Mean", "Highest", *(f"Mean in {name}" for name in ran)]
    rows = [_numbers_row(answer, each, ran) for each in readings.series if not each.metric.endswith("_total")]
    return figures.table(heads, rows, numeric=range(2, len(heads)), wrap=(1,))


def _numbers_row(answer: Answer, series: Series, stages: Sequence[str]) -> list[str]:
    inside = series.within(0.0, span_of(answer))
    why = "no reading within it: it was too short for this reading's pace"

    def cell(value: float | None) -> str:
        return unknown_html(why) if value is None else escape(value_text(series.metric, value))

    whole = [min(inside, default=None), sum(inside) / len(inside) if inside else None, max(inside, default=None)]
    by_stage = [_mean_in(answer, series, stage) for stage in stages]
    return [escape(series.source), escape(series.metric), str(len(inside)), *(cell(value) for value in (*whole, *by_stage))]


def _mean_in(answer: Answer, series: Series, stage: str) -> float | None:
    spans = [each for each in answer.timeline if each.stage == stage]
    values = [value for each in spans for value in series.within(each.start, each.start + each.seconds)]
    return sum(values) / len(values) if values else None


def uses_table(uses: Sequence[Use]) -> str:
    """Who else was there: on a GPU, or on the processors."""
    heads = ["Process", "Pid", "Where", "Belongs to", "GPU memory", "CPU"]
    rows = [
        [
            f"{escape(shortened(use.name, 60)) or unknown_html('its name is not told: it runs in another container')}"
            + (' <span class="rd-soft">ours</span>' if use.ours else ""),
            str(use.pid),
            escape(use.source if use.gpu is None else f"{use.source}, GPU {use.gpu}"),
            escape(use.owner) if use.owner else unknown_html("no container and no unit is known"),
            unknown_html("not told")
            if use.gpu is not None and use.memory_bytes is None
            else _known(bytes_text(use.memory_bytes)),
            "" if use.cpu_ratio is None else escape(number(use.cpu_ratio, "cores")),
        ]
        for use in uses
    ]
    return figures.table(heads, rows, numeric=(1, 4, 5), wrap=(0, 3))


def _known(text: str) -> str:
    return "" if text == "–" else escape(text)


def facts_line(readings: QueryReadings) -> str:
    """GPUs by name, and where persistence mode is off."""
    parts = [f"{_gpu(fact)} {fact.value}" for fact in readings.facts if fact.name.endswith(".name")]
    parts += [
        f"persistence mode is off on {_gpu(fact)}"
        for fact in readings.facts
        if fact.name.endswith(".persistence_enabled") and fact.value == "false"
    ]
    return " · ".join(dict.fromkeys(parts))


def _gpu(fact: Fact) -> str:
    number = fact.name.split(".")[1]
    return f"GPU {number}" if fact.source == LOCAL else f"{fact.source} GPU {number}"


def readings_csv(readings: QueryReadings) -> bytes:
    """One line a value, oldest first within each series."""
    heads = ["query_id", "source", "metric", "seconds_from_start", "unix_seconds", "value"]
    rows = (
        [readings.query_id, each.source, each.metric, time, round(readings.started_at_unix + time, 3), value]
        for each in readings.series
        for time, value in zip(each.times, each.values, strict=True)
    )
    return to_csv(heads, rows)
