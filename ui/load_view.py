"""What the page Experiments shows of a load test: steps, the knee and its reasons, charts by users, what goes on now. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latency.load.knee import Knee
from latency.load.load import LoadResult, where_asked
from latency.load.steps import Step, Times
from ui import cards, figures
from ui.format import UNKNOWN, count, escape, number, percent, percentile, plural, query_url, seconds, unknown_html, value_html
from ui.style import STAGE_COLOURS, colour

_LATENCY = ("#1d5fb4", "#4c93ee")
_PLAIN = ("#7d8590", "#a0a7b0")
_OTHER = "#8d949d"
_GRID = {"left": 4, "right": 8, "bottom": 2, "top": 30, "containLabel": True}
_METRICS: Mapping[str, tuple[str, str]] = {
    "cpu.busy_ratio": ("CPU", "ratio"),
    "gpu.utilization_ratio": ("GPU", "ratio"),
    "engine.waiting": ("Waiting in the LLM", "count"),
}


# 1) in words


def plan_line(plan: Mapping[str, Any]) -> str:
    """`Closed loop: 1, 2, 4 users, 20 s or 500 requests a step, 12 questions, against this process`. Plain text."""
    users = ", ".join(str(each) for each in plan.get("users", ()))
    rate = plan.get("open_rate")
    loop = "Closed loop" if rate is None else f"Open loop at {number(rate)} questions a second each"
    bounds = f"{seconds(plan.get('seconds_per_step'))} or {plural(plan.get('requests_per_step', 0), 'request')} a step"
    options = ", ".join(f"{key} {value}" for key, value in (plan.get("options") or {}).items())
    parts = [
        f"{loop}: {users} users",
        bounds,
        plural(plan.get("questions", 0), "question"),
        f"against {where_asked(plan)}",
        options,
    ]
    return " · ".join(part for part in parts if part)


def knee_card(knee: Knee) -> str:
    """Where the knee is, what grows, what was full, how many users to let in."""
    severity = "unknown" if knee.users is None else "warn"
    lines = [f"<strong>{escape(knee.text)}</strong>"]
    if knee.recommended is not None:
        lines.append(f"Recommended: at most {plural(knee.recommended, 'user')} at once{_rate(knee)}.")
    lines += [escape(f"{text}.") for text in knee.saturated]
    if knee.users is not None and not knee.saturated:
        lines.append("No machine reading shows what was full: look at the stage that grew.")
    return cards.note(severity, *lines) + growth_table(knee) + _notes(knee)


def _rate(knee: Knee) -> str:
    if knee.recommended_rate is None:
        return ""
    return f", {escape(number(knee.recommended_rate))} questions a second (three quarters of the capacity)"


def _notes(knee: Knee) -> str:
    lines = [*knee.notes, knee.method]
    return "".join(f'<div class="rd rd-soft rd-small">{escape(line)}</div>' for line in lines)


def growth_table(knee: Knee) -> str:
    """What each stage added to the mean latency between two steps."""
    if not knee.growth:
        return ""
    rows = [
        [
            f'<span class="rd-swatch" style="{colour(each.stage)}"></span>{escape(each.stage)}',
            seconds(each.seconds),
            percent(each.share),
            value_html(seconds(each.queue), "no queue is told of it"),
        ]
        for each in knee.growth
    ]
    heads = [f"Mean latency added from {knee.calm} to {knee.loaded} users", "Added", "Share", "Of it in its queue"]
    return figures.table(heads, rows, numeric=(1, 2, 3), wrap=(0,))


def running_line(event: Mapping[str, Any] | None, of: int, done: int) -> str:
    """What goes on, from the last event of a step (`step_started`, `progress`, `step_finished`). Plain text."""
    if event is None:
        return "warming up"
    if event["type"] == "step_finished":
        return f"{plural(done, 'step')} of {of} done"
    begun = f"step {done + 1} of {of}: {plural(event['users'], 'user')}"
    if event["type"] == "step_started":
        return begun
    parts = [
        f"{begun} for {seconds(event['seconds'])}",
        f"{count(event['answered'])} answered",
        f"{count(event['failed'])} failed" if event["failed"] else "",
        f"{count(event['in_flight'])} running",
    ]
    return " · ".join(part for part in parts if part)


def readings_line(readings: Sequence[Mapping[str, Any]]) -> str:
    """`local CPU 61 % · l4-vm GPU 0 97 % · vllm waiting 3`; plain text, empty without readings."""
    parts = [_reading(str(each["source"]), str(each["metric"]), each["value"]) for each in readings]
    return " · ".join(part for part in parts if part)


def _reading(source: str, metric: str, value: float) -> str:
    kind, _, rest = metric.partition(".")
    middle, _, field = rest.rpartition(".")
    if metric == "cpu.busy_ratio":
        return f"{source} CPU {percent(value)}"
    if kind == "gpu" and field == "utilization_ratio":
        return f"{source} GPU {middle} {percent(value)}"
    if metric in ("engine.waiting", "engine.running"):
        return f"{source} {rest} {number(value)}"
    return ""


# 2) tables


def steps_table(steps: Sequence[Step]) -> str:
    """A row a step: how much came through, how long it took, what the machines did."""
    rated = any(step.rate is not None for step in steps)
    heads = ["Users", *(["Due a second"] if rated else []), "Answered", "Failed", "Answers/s", "p50", "p95", "p99"]
    heads += [name for name, _ in _METRICS.values()] + ["Slowest"]
    rows = [_step_row(step, rated) for step in steps]
    return figures.table(heads, rows, numeric=range(len(heads) - 1))


def _step_row(step: Step, rated: bool) -> list[str]:
    times = [_time(step.total, name) for name in ("p50", "p95", "p99")]
    return [
        f"<strong>{count(step.users)}</strong>",
        *([number(step.rate)] if rated else []),
        f'<span title="of {count(step.asked)} asked in {seconds(step.seconds)}{_cold(step)}">{count(step.answered)}</span>',
        _failed(step),
        value_html(number(step.throughput), "nothing was answered") if step.answered else unknown_html("nothing was answered"),
        *times,
        *(_metric(step, metric, kind) for metric, (_, kind) in _METRICS.items()),
        " ".join(f'<a href="{query_url(each.query_id)}">{seconds(each.seconds)}</a>' for each in step.slowest[:1]) or "",
    ]


def _cold(step: Step) -> str:
    return f", {step.cold} of them cold" if step.cold else ""


def _time(times: Times | None, name: str) -> str:
    if times is None:
        return unknown_html("nothing was answered")
    value = getattr(times, name)
    return f'<span title="{escape(percentile(name, value, times.n))}">{seconds(value)}</span>'


def _failed(step: Step) -> str:
    if not step.failed and not step.unfinished:
        return "0"
    told = [f"{kind} {number}: {step.examples.get(kind, '')}" for kind, number in step.errors.items()]
    told += [f"{step.unfinished} had not ended"] if step.unfinished else []
    shown = count(step.failed + step.unfinished)
    return f'<abbr class="rd-toned" style="{colour("critical")}" title="{escape(chr(10).join(told))}">{shown}</abbr>'


def _metric(step: Step, metric: str, kind: str) -> str:
    found = step.reading(metric)
    if not found:
        return unknown_html("no machine or service that is watched told this while the step ran")
    text = percent(found[0].mean) if kind == "ratio" else number(found[0].mean)
    told = "\n".join(
        f"{each.source} {each.metric}: mean {percent(each.mean) if kind == 'ratio' else number(each.mean)}, "
        f"highest {percent(each.highest) if kind == 'ratio' else number(each.highest)} (n {each.n})"
        for each in found
    )
    return f'<span title="{escape(told)}">{text}</span>'


def errors_table(steps: Sequence[Step]) -> str:
    """Every kind of error with its first message; empty without one."""
    rows = [
        [count(step.users), escape(kind), count(number), escape(step.examples.get(kind, ""))]
        for step in steps
        for kind, number in step.errors.items()
    ]
    return figures.table(["Users", "Failed as", "Requests", "The first said"], rows, numeric=(0, 2), wrap=(3,)) if rows else ""


def stages_table(steps: Sequence[Step]) -> str:
    """Percentiles of each stage in each step; empty where no answer told its stages."""
    rows = [
        [
            count(step.users),
            f'<span class="rd-swatch" style="{colour(stage)}"></span>{escape(stage)}',
            count(times.n),
            *(seconds(value) for value in (times.p50, times.p95, times.p99)),
            *_queue(step.queues.get(stage)),
        ]
        for step in steps
        for stage, times in step.stages.items()
    ]
    heads = ["Users", "Stage", "n", "p50", "p95", "p99", "Queue, mean", "Queue p95"]
    return figures.table(heads, rows, numeric=(0, 2, 3, 4, 5, 6, 7)) if rows else ""


def _queue(times: Times | None) -> tuple[str, str]:
    if times is None:
        return (unknown_html("no queue is told of it"),) * 2
    return seconds(times.mean), seconds(times.p95)


def warmup_line(step: Step | None) -> str:
    """What the warm-up took; plain text."""
    if step is None or step.total is None:
        return "No warm-up."
    cold = f", {step.cold} cold" if step.cold else ""
    return f"Warm-up, apart from the steps: {plural(step.answered, 'request')}{cold}, longest {seconds(step.total.highest)}."


# 3) charts (options of ECharts)


def curve(steps: Sequence[Step], knee: Knee | None, dark: bool) -> dict[str, Any]:
    """Latency (left) and throughput (right) against users, the knee as a line."""
    known = [step for step in steps if step.total is not None]
    highest = max((step.total.p99 for step in known if step.total), default=1.0)
    scale, unit = (1.0, "s") if highest >= 1 else (0.001, "ms")
    tone = _LATENCY[dark]
    lines = [
        {
            "type": "line",
            "name": name,
            "data": [[step.users, _short(getattr(step.total, name) / scale)] for step in known],
            "color": tone,
            "lineStyle": {"width": 2 if name == "p95" else 1.5, "opacity": strength},
            "itemStyle": {"opacity": strength},
            "symbolSize": 5,
            "tooltip": {"valueFormatter": f"%.{1 if unit == 'ms' else 2}f {unit}"},
        }
        for name, strength in (("p50", 0.55), ("p95", 1.0), ("p99", 0.35))
    ]
    throughput: dict[str, Any] = {
        "type": "line",
        "name": "answers/s",
        "yAxisIndex": 1,
        "data": [[step.users, _short(step.throughput)] for step in known],
        "color": _PLAIN[dark],
        "lineStyle": {"width": 2, "type": "dashed"},
        "symbol": "rect",
        "symbolSize": 5,
        "tooltip": {"valueFormatter": "%.2f /s"},
    }
    if knee is not None and knee.users is not None:
        throughput["markLine"] = _mark(knee.users)
    return {
        "animation": False,
        "grid": {**_GRID, "bottom": 18},
        "legend": {"type": "scroll", "top": 0, "left": 0, "itemHeight": 8, "itemWidth": 18, "textStyle": {"fontSize": 11}},
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": _users_axis(known),
        "yAxis": [
            {"type": "value", "min": 0, "splitNumber": 3, "axisLabel": {"formatter": f"{{value}} {unit}"}},
            {"type": "value", "min": 0, "splitNumber": 3, "axisLabel": {"formatter": "{value} /s"}, "splitLine": {"show": False}},
        ],
        "series": [*lines, throughput],
    }


def _users_axis(steps: Sequence[Step]) -> dict[str, Any]:
    users = [step.users for step in steps] or [1]
    wide = max(users) / min(users) >= 8
    kind: dict[str, Any] = {"type": "log", "logBase": 2} if wide else {"type": "value", "minInterval": 1}
    name = {"name": "users", "nameLocation": "middle", "nameGap": 24}
    return {**kind, **name, "min": min(users), "max": max(users), "splitLine": {"show": False}}


def _mark(users: float) -> dict[str, Any]:
    label = {"formatter": f"knee {number(users)}", "position": "end", "color": _OTHER, "distance": 2}
    look = {"color": _OTHER, "type": "dotted", "width": 1.5}
    return {"symbol": "none", "silent": True, "lineStyle": look, "label": label, "data": [{"xAxis": _short(users)}]}


def composition(steps: Sequence[Step], dark: bool) -> dict[str, Any] | None:
    """Mean latency by stage, stacked, for each step; None where the answers tell no stages."""
    known = [step for step in steps if step.total is not None and step.stages]
    if not known:
        return None
    stages = list(dict.fromkeys(stage for step in known for stage in step.stages))
    highest = max(step.total.mean for step in known if step.total)
    scale, unit = (1.0, "s") if highest >= 1 else (0.001, "ms")
    series = [
        _bar(stage, [_share(step, stage) / scale for step in known], STAGE_COLOURS.get(stage, _PLAIN)[dark], unit)
        for stage in stages
    ]
    rest = [max(0.0, (step.total.mean if step.total else 0.0) - sum(_share(step, stage) for stage in stages)) for step in known]
    if max(rest) > 0.01 * highest:
        series.append(_bar("outside the stages", [each / scale for each in rest], "#c3c8cf" if not dark else "#565d66", unit))
    return {
        "animation": False,
        "grid": _GRID,
        "legend": {"type": "scroll", "top": 0, "left": 0, "itemHeight": 8, "itemWidth": 10, "textStyle": {"fontSize": 11}},
        "tooltip": {"trigger": "axis", "confine": True, "axisPointer": {"type": "shadow"}},
        "xAxis": {"type": "category", "data": [plural(step.users, "user") for step in known], "axisTick": {"show": False}},
        "yAxis": {"type": "value", "min": 0, "splitNumber": 3, "axisLabel": {"formatter": f"{{value}} {unit}"}},
        "series": series,
    }


def _share(step: Step, stage: str) -> float:
    times = step.stages.get(stage)
    return times.mean * times.n / step.answered if times is not None and step.answered else 0.0


def _bar(name: str, values: Sequence[float], tone: str, unit: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "stack": "stages",
        "name": name,
        "data": [_short(value) for value in values],
        "color": tone,
        "barMaxWidth": 46,
        "tooltip": {"valueFormatter": f"%.{1 if unit == 'ms' else 2}f {unit}"},
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


# 4) two tests side by side


def side_by_side(first: LoadResult, second: LoadResult) -> str:
    """The same numbers of users in both: throughput and p95, and their ratio."""
    others = {step.users: step for step in second.steps}
    rows = []
    for step in first.steps:
        other = others.get(step.users)
        if other is None or step.total is None or other.total is None:
            continue
        rows.append(
            [
                count(step.users),
                number(step.throughput),
                number(other.throughput),
                _ratio(other.throughput, step.throughput),
                _time(step.total, "p95"),
                _time(other.total, "p95"),
                _ratio(other.total.p95, step.total.p95),
            ]
        )
    heads = ["Users", "Answers/s, A", "Answers/s, B", "B / A", "p95, A", "p95, B", "B / A"]
    if not rows:
        return cards.empty("No number of users was tested in both.", "Test again with the same numbers of users.")
    return figures.table(heads, rows, numeric=range(len(heads)))


def _ratio(value: float, base: float) -> str:
    return f"{value / base:.2f}" if base > 0 else UNKNOWN
