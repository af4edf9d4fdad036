"""Readings of a query's window -> rows on the time axis of its waterfall. Pure; everything from outside is escaped.

A row is a filled line by CSS clip path (`st.html` strips SVG) with cells above it that say time and value on hover. Rows use the
waterfall's grid and track, so that what happened in a stage stands below its bar.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from collectors.gpu_facts import SLOWDOWNS
from latency.readings.server_split import ServerSplit
from latency.types import LOCAL, Fact, QueryReadings, Series
from rag.types import Answer, Interval
from ui import figures
from ui.format import escape, number, seconds, unknown_html
from ui.style import colour
from ui.trend import Unit, text_of

COMPACT_GPUS = 3  # from so many on each GPU has one row
CELLS = 40
GAP_ROUNDS = 3.5  # so many times the usual distance of readings is a gap, not a line
NOTHING_RATIO = 0.01

# Both grids get the same columns: else the tracks of waterfall and readings would not lie below one another.
STYLE = """<style>
.rd-wf { grid-template-columns: 6.6rem minmax(0, 1fr) 6.2rem; }
.rd-wf .rd-name { overflow: hidden; text-overflow: ellipsis; }
.rd-readings .rd-track { height: 26px; margin: 1px 0; }
.rd-readings .rd-track > i { position: absolute; inset: 0; background: currentColor; opacity: .3; pointer-events: none; }
.rd-readings .rd-track > i.own { opacity: .5; }
.rd-readings .rd-track > b { position: absolute; top: 0; bottom: 0; cursor: help; }
.rd-readings .rd-track > b:hover { background: var(--line); }
.rd-readings .rd-track > s { position: absolute; top: 0; height: 4px; min-width: 3px; background: var(--c); cursor: help; }
.rd-readings .rd-source { grid-column: 1 / -1; margin-top: .35rem; overflow-wrap: anywhere; }
.rd-readings .rd-time, .rd-readings .rd-name { font-size: .8125rem; }
@media (max-width: 640px) { .rd-wf { grid-template-columns: 5.2rem minmax(0, 1fr) 4.6rem; } }
</style>"""

_UNITS: tuple[tuple[str, Unit], ...] = (
    ("_ratio", "ratio"),
    ("_bytes_per_second", "bytes/s"),
    ("_bytes", "bytes"),
    ("_celsius", "celsius"),
    ("_watts", "watts"),
    ("_mhz", "mhz"),
    ("_per_second", "per_second"),
    ("_seconds", "seconds"),
)
# Not a line of its own: limits that another line is seen against, and counters.
_BACKGROUND = ("cpu.cores", "_max_mhz", "power_limit_watts", "memory_total_bytes", "_total", ".slowed")
_GPU_ROWS = (
    ("utilization_ratio", "busy", None),
    ("memory_used_bytes", "VRAM", "memory_total_bytes"),
    ("power_watts", "power", "power_limit_watts"),
    ("sm_clock_mhz", "clock", "sm_clock_max_mhz"),
)
_ENGINE_ROWS = (("waiting", "waiting"), ("running", "running"), ("kv_cache_used_ratio", "KV cache"))
_REASONS = {
    "sw_power_cap": "power limit",
    "hw_slowdown": "hardware slowdown",
    "sw_thermal_slowdown": "heat (driver)",
    "hw_thermal_slowdown": "heat (hardware)",
    "hw_power_brake_slowdown": "power brake",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row: `series` filled up to `top` (None: its highest value); `own` a second line within, `beside` more to say on hover.
    `marks` are drawn on its upper edge."""

    label: str
    title: str
    series: Series
    top: float | None = None
    own: Series | None = None
    beside: tuple[tuple[str, Series], ...] = ()
    marks: tuple[Fact, ...] = ()

    @property
    def is_flat(self) -> bool:
        """Nothing to be seen: zero all the time, and no mark."""
        least = NOTHING_RATIO if self.series.metric.endswith("_ratio") else 0.0
        return not self.marks and all(value is None or value <= least for value in self.series.values)


def unit_of(metric: str) -> Unit:
    return next((unit for ending, unit in _UNITS if metric.endswith(ending)), "count")


def value_text(metric: str, value: float | None) -> str:
    """A value of that metric as people read it; processor time of one process in cores, whole counts without decimals."""
    if metric == "process.cpu_ratio":
        return number(value, "cores")
    unit = unit_of(metric)
    return f"{value:,.0f}" if unit == "count" and value is not None and value == int(value) else text_of(value, unit)


# ----------------------------------------------------------------------------------------------------------- which rows


def rows_of(readings: QueryReadings) -> tuple[list[Row], list[Row]]:
    """(rows to be shown, rows to be shown on demand: the flat ones, and what seldom explains anything)."""
    main: list[Row] = []
    for source in dict.fromkeys(each.source for each in readings.series):
        main += [*_gpu_rows(readings, source), *_host_rows(readings, source), *_engine_rows(readings, source)]
    drawn = {id(each) for row in main for each in (row.series, *(series for _, series in row.beside))}
    rest = [
        Row(_short(each.metric), f"{each.source}: {each.metric}", each)
        for each in readings.series
        if id(each) not in drawn and not any(each.metric.endswith(name) for name in _BACKGROUND)
    ]
    return [row for row in main if not row.is_flat], [*(row for row in main if row.is_flat), *rest]


def _gpu_rows(readings: QueryReadings, source: str) -> Iterable[Row]:
    gpus = readings.gpus(source)
    for gpu in gpus:
        name = _fact(readings, source, f"gpu.{gpu}.name")
        title = f"{source}: GPU {gpu}{f', {name}' if name else ''}"
        marks = tuple(fact for fact in readings.facts if fact.source == source and fact.name == f"gpu.{gpu}.throttle_reasons")
        known = [
            (word, each, _highest(readings.get(source, f"gpu.{gpu}.{limit}")) if limit else 1.0)
            for metric, word, limit in _GPU_ROWS
            if (each := readings.get(source, f"gpu.{gpu}.{metric}")) is not None
        ]
        if not known:
            continue
        if len(gpus) >= COMPACT_GPUS:
            beside = tuple((word, each) for word, each, _ in known[1:])
            yield Row(f"GPU {gpu}", f"{title}: {known[0][0]}", known[0][1], known[0][2], None, beside, marks)
            continue
        for index, (word, each, top) in enumerate(known):
            yield Row(f"GPU {gpu} {word}", f"{title}: {word}", each, top, marks=() if index else marks)


def _host_rows(readings: QueryReadings, source: str) -> Iterable[Row]:
    busy = readings.get(source, "cpu.busy_ratio")
    if busy is not None:
        cores = _highest(readings.get(source, "cpu.cores"))
        yield Row("CPU", f"{source}: processors busy", busy, 1.0, _ours(readings, source, cores))
    for each in readings.series:
        parts = each.metric.split(".")
        if each.source == source and parts[0] == "disk" and parts[-1] == "busy_ratio":
            name = ".".join(parts[1:-1])
            yield Row(f"disk {name}", f"{source}: disk {name} busy", each, 1.0)


def _ours(readings: QueryReadings, source: str, cores: float | None) -> Series | None:
    """This process's part of all processors."""
    ours = readings.get(source, "process.cpu_ratio")
    if ours is None or not cores:
        return None
    return ours._replace(values=tuple(None if value is None else value / cores for value in ours.values))


def _engine_rows(readings: QueryReadings, source: str) -> Iterable[Row]:
    for metric, word in _ENGINE_ROWS:
        for each in readings.series:
            if each.source == source and each.metric.startswith("engine.") and each.metric.endswith(f".{metric}"):
                top = 1.0 if metric.endswith("_ratio") else None
                yield Row(word, f"{source}: {word}", each, top)


def _short(metric: str) -> str:
    """`disk.sda.read_bytes_per_second` -> `sda read`; `pressure.cpu.some_ratio` -> `pressure cpu some`."""
    words = metric.replace("gpu.", "GPU ").replace("disk.", "").replace("engine.", "").replace(".", " ").replace("_", " ")
    for ending, _ in _UNITS:
        words = words.removesuffix(ending.replace("_", " "))
    return words


def _fact(readings: QueryReadings, source: str, name: str) -> str | None:
    return next((fact.value for fact in readings.facts if fact.source == source and fact.name == name), None)


def _highest(series: Series | None) -> float | None:
    return None if series is None else max((value for value in series.values if value is not None), default=None)


# ------------------------------------------------------------------------------------------------------------- pictures


def span_of(answer: Answer) -> float:
    """The seconds that the waterfall's track stands for."""
    return max([answer.total_seconds, *(each.start + each.seconds for each in answer.timeline)], default=0.0) or 1.0


def timeline(answer: Answer, rows: Sequence[Row], splits: Sequence[ServerSplit] = ()) -> str:
    """The rows below one another on the waterfall's axis; inside the model server first."""
    span = span_of(answer)
    drawn = "".join(_split_row(answer, split, span) for split in splits)
    drawn = (_heading("Inside the model server: queue, prefill, decode") if drawn else "") + drawn
    sources = list(dict.fromkeys(row.series.source for row in rows))
    for source in sources:
        if drawn or sources != [LOCAL]:
            drawn += _heading("This machine" if source == LOCAL else source)
        drawn += "".join(_row(row, span) for row in rows if row.series.source == source)
    axis = "".join(f'<span style="left:{tick / span * 100:g}%">{seconds(tick)}</span>' for tick in figures.axis_ticks(span))
    return (
        f'<div class="rd rd-readings"><div class="rd-wf">{drawn}<span></span><div class="rd-axis">{axis}</div>'
        f'<span class="rd-soft rd-small" style="text-align:right">highest</span></div></div>'
    )


def _heading(text: str) -> str:
    return f'<span class="rd-soft rd-small rd-source" dir="auto">{escape(text)}</span>'


def _row(row: Row, span: float) -> str:
    points = _points(row.series)
    top = max(row.top or 0.0, _highest(row.series) or 0.0) or 1.0
    drawn = _area(points, span, top) + ("" if row.own is None else _area(_points(row.own), span, top, "own"))
    marks = "".join(_mark(fact, span) for fact in row.marks)
    inside = [value for time, value in points if 0 <= time <= span]
    told = f"{row.title}: {_told(row.series.metric, inside)}"
    text = escape(value_text(row.series.metric, max(inside))) if inside else _beside(row.series.metric, points, span)
    return (
        f'<span class="rd-name" title="{escape(row.title)}">{escape(row.label)}</span>'
        f'<div class="rd-track" role="img" aria-label="{escape(told)}">{drawn}{_cells(row, points, span)}{marks}</div>'
        f'<span class="rd-time" title="{escape(told)}">{text}</span>'
    )


def _beside(metric: str, points: Sequence[tuple[float, float]], span: float) -> str:
    """Of a query shorter than the pace of readings: the next ones before and after it, pale, unless a gap lies between."""
    gap = _gap(points)
    before = [point for point in points if -gap <= point[0] < 0][-1:]
    after = [point for point in points if span < point[0] <= span + gap][:1]
    near = [*before, *after]
    if not near:
        return unknown_html("no reading within the query, nor close to it")
    told = ", ".join(f"{value_text(metric, value)} at {'−' if at < 0 else ''}{seconds(abs(at))}" for at, value in near)
    shown = escape(value_text(metric, max(value for _, value in near)))
    return f'<span class="rd-unknown" title="no reading within the query; the next ones: {escape(told)}">{shown}</span>'


def _told(metric: str, values: Sequence[float]) -> str:
    if not values:
        return "no reading within the query"
    mean = sum(values) / len(values)
    parts = (
        f"{word} {value_text(metric, value)}"
        for word, value in (("lowest", min(values)), ("mean", mean), ("highest", max(values)))
    )
    return f"{', '.join(parts)} · n {len(values)}"


def _points(series: Series) -> list[tuple[float, float]]:
    return [(time, value) for time, value in zip(series.times, series.values, strict=True) if value is not None]


def _area(points: Sequence[tuple[float, float]], span: float, top: float, kind: str = "") -> str:
    """A polygon for each run without gaps. Before the first and after the last reading there is nothing to draw."""
    outline: list[str] = []
    for run in _runs(points):
        places = _within(run, span)
        if not places:
            continue
        line = [f"{time / span * 100:.2f}% {100 - min(1.0, value / top) * 92:.1f}%" for time, value in places]
        first, last = (f"{time / span * 100:.2f}%" for time in (places[0][0], places[-1][0]))
        if len(places) == 1:
            last = f"calc({first} + 2px)"
            line.append(f"{last} {line[0].split(' ', 1)[1]}")
        outline += [f"{first} 100%", *line, f"{last} 100%"]
    return f'<i class="{kind}" style="clip-path:polygon({",".join(outline)})"></i>' if outline else ""


def _within(run: Sequence[tuple[float, float]], span: float) -> list[tuple[float, float]]:
    """The part of a run on the axis, cut at its edges by straight lines."""
    found: list[tuple[float, float]] = []
    for (time, value), (after, next_value) in pairwise(run):
        for edge in (0.0, span):
            if time < edge < after:
                found.append((edge, value + (next_value - value) * (edge - time) / (after - time)))
    found += [point for point in run if 0 <= point[0] <= span]
    return sorted(found)


def _gap(points: Sequence[tuple[float, float]]) -> float:
    """Seconds between two readings from which on nothing is known in between."""
    steps = sorted(after[0] - before[0] for before, after in pairwise(points))
    return GAP_ROUNDS * steps[len(steps) // 2] if steps else 0.0


def _runs(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    gap = _gap(points)
    runs: list[list[tuple[float, float]]] = []
    for point in points:
        if runs and point[0] - runs[-1][-1][0] <= gap:
            runs[-1].append(point)
        else:
            runs.append([point])
    return runs


def _cells(row: Row, points: Sequence[tuple[float, float]], span: float) -> str:
    """Neighbouring readings share a cell, so that there are at most CELLS; each reaches half way to the next one."""
    inside = [point for point in points if 0 <= point[0] <= span]
    size = -(-len(inside) // CELLS) or 1
    groups = [inside[index : index + size] for index in range(0, len(inside), size)]
    edges = [0.0, *((one[-1][0] + other[0][0]) / 2 for one, other in pairwise(groups)), span]
    found = []
    for group, (left, right) in zip(groups, pairwise(edges), strict=False):
        text = escape(_cell_text(row, group))
        found.append(f'<b style="left:{left / span * 100:.2f}%;width:{(right - left) / span * 100:.2f}%" title="{text}"></b>')
    return "".join(found)


def _cell_text(row: Row, group: Sequence[tuple[float, float]]) -> str:
    start, end = group[0][0], group[-1][0]
    when = seconds(start) if start == end else f"{seconds(start)} to {seconds(end)}"
    lines = [f"{when}: {_range([value for _, value in group], row.series.metric)}"]
    if row.own is not None:
        own = [value for time, value in _points(row.own) if start <= time <= end]
        lines += [f"of it this process {_range(own, row.own.metric.replace('process.', 'share.'))}"] if own else []
    slack = 0.05
    for word, each in row.beside:
        values = [value for time, value in _points(each) if start - slack <= time <= end + slack]
        lines += [f"{word} {_range(values, each.metric)}"] if values else []
    return "\n".join([row.label, *lines])


def _range(values: Sequence[float], metric: str) -> str:
    low, high = value_text(metric, min(values)), value_text(metric, max(values))
    return high if low == high else f"{low} to {high}"


def _mark(fact: Fact, span: float) -> str:
    start, end = max(0.0, fact.start), min(span, fact.end)
    if end < 0 or start > span or end < start:
        return ""
    word = _REASONS.get(fact.value, fact.value.replace("_", " "))
    tone = colour("critical" if fact.value in SLOWDOWNS else "warn")
    text = escape(f"clocks held down: {word}, {seconds(fact.start)} to {seconds(fact.end)}")
    return f'<s style="{tone};left:{start / span * 100:.2f}%;width:{(end - start) / span * 100:.2f}%" title="{text}"></s>'


def _split_row(answer: Answer, split: ServerSplit, span: float) -> str:
    """Queue, prefill and decode within the stage. Only their lengths are measured: they are drawn so that they end with it."""
    intervals: list[Interval] = [each for each in answer.timeline if each.stage == split.stage]
    if not split.known or not intervals:
        return ""
    end = max(each.start + each.seconds for each in intervals)
    start = max(min(each.start for each in intervals), end - split.seconds)
    parts = [("queue", "queue", split.queue), ("tokenize", "prefill", split.prefill), ("", "decode", split.decode)]
    inner = "".join(
        f'<i class="{kind}" style="width:{value / split.seconds * 100:.2f}%"></i>' for kind, _, value in parts if value
    )
    told = [f"{word} {seconds(value)}" for _, word, value in parts]
    title = escape("\n".join([f"{split.stage} inside the server", *told, f"from {split.source}", "drawn to end with the stage"]))
    width = min(split.seconds, span - start) / span * 100
    bar = f'<div class="rd-bar" style="left:{start / span * 100:.2f}%;width:{width:.2f}%" title="{title}">{inner}</div>'
    return (
        f'<span class="rd-name" title="inside the model server, during {split.stage}">{escape(split.stage)}</span>'
        f'<div class="rd-track" style="{colour(split.stage)}">{bar}</div>'
        f'<span class="rd-time" title="{title}">{seconds(split.seconds)}</span>'
    )
