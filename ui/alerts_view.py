"""Alerts as HTML: what is wrong, since when, how bad it was, what to look at; and the rules as a table to edit. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime, tzinfo
from typing import Any

from collectors.alerts import Alert
from collectors.notify import NotifyHealth
from collectors.rules import CHANGEABLE, DEFAULTS, Rule
from collectors.views import Snapshot
from ui import cards, figures, gauges
from ui.exports import to_csv
from ui.format import bytes_text, code_html, escape, number, percent, plural, seconds, shortened, time_html, unknown_html
from ui.trend import Unit

PAST_HEADS = ("Alert", "Source", "Worst", "Raised", "Lasted", "Ended", "Acknowledged")
# unit of a rule -> (what a threshold is divided by on screen, the unit shown)
_SCALES: Mapping[str, tuple[float, str]] = {
    "ratio": (0.01, "%"),
    "bytes": (2**30, "GiB"),
    "celsius": (1, "°C"),
    "seconds": (1, "s"),
    "count": (1, ""),
    "state": (1, "level"),
}
THRESHOLDS = ("warn", "warn_clear", "critical", "critical_clear")
DURATIONS = ("window_seconds", "for_seconds")


def value_text(value: float, unit: str, metric: str = "") -> str:
    """A value in the unit of its rule; a state (0 or 1) says nothing that its alert's title does not."""
    if unit == "ratio":
        return percent(value)
    if unit == "state":
        return ""
    if metric.endswith("certificate_days"):
        return f"{value:.0f} days"
    if unit == "bytes":
        return bytes_text(value)
    return seconds(value) if unit == "seconds" else number(value, "°C" if unit == "celsius" else "")


def subject(metric: str) -> str:
    """Which part of its source an alert is about: `gpu 3`, `/data`, `vllm.service`; nothing where it is all of it."""
    kind, _, rest = metric.partition(".")
    middle = rest.rpartition(".")[0]
    return "" if not middle else f"{kind} {middle}" if kind in ("gpu", "disk") else middle


def trend_unit(alert: Alert) -> Unit:
    units: Mapping[str, Unit] = {"ratio": "ratio", "bytes": "bytes", "celsius": "celsius", "seconds": "seconds"}
    return units.get(alert.unit, "count")


def source_url(source: str, snapshot: Snapshot) -> str | None:
    """The page of what an alert is about; None when it is watched no more."""
    if snapshot.machine(source) is not None:
        return gauges.machine_url(source)
    return gauges.service_url(source) if snapshot.service(source) is not None else None


def title(active: Sequence[Alert]) -> str:
    open_ = [alert for alert in active if alert.acknowledged_at is None]
    if not active:
        return "No alert is active"
    seen = len(active) - len(open_)
    critical = sum(alert.level == "critical" for alert in open_)
    parts = [
        f"{plural(critical, 'critical alert')}" if critical else "",
        plural(len(open_) - critical, "warning") if len(open_) > critical else "",
    ]
    told = " and ".join(part for part in parts if part)
    return (told or "Nothing new") + (f", {seen} acknowledged" if seen else "")


def severity(level: str) -> str:
    return {"ok": "ok", "warn": "warn", "critical": "critical"}.get(level, "unknown")


def _when(at: float | None, now: datetime, zone: tzinfo) -> str:
    return time_html(None if at is None else datetime.fromtimestamp(at, UTC), now, zone)


def says_what_to_do(alert: Alert) -> bool:
    """A fault's own text ends with its next step; the rule knows no better one."""
    return alert.metric.startswith("fault.") and bool(alert.detail)


def line(alert: Alert, snapshot: Snapshot, now: datetime, zone: tzinfo) -> str:
    """One alert: title, where, value and worst, since when; below, what was said and what to look at."""
    about = subject(alert.metric)
    url = source_url(alert.source, snapshot)
    where = gauges.link(url, alert.source) if url else f'<span title="watched no more">{escape(alert.source)}</span>'
    value = value_text(alert.value, alert.unit, alert.metric)
    worst = value_text(alert.worst, alert.unit, alert.metric)
    numbers = value if value == worst or not value else f"{value}, worst {worst}"
    parts = [where, escape(about), escape(numbers), f"raised {_when(alert.raised_at, now, zone)}"]
    if alert.acknowledged_at is not None:
        parts.append(f"acknowledged {_when(alert.acknowledged_at, now, zone)}")
    if alert.resolved_at is not None:
        parts.append(f"ended {_when(alert.resolved_at, now, zone)}{f': {escape(alert.ended)}' if alert.ended else ''}")
    mark = cards.state_mark(severity(alert.level), "", alert.level)
    detail = f'<div class="rd-plain" dir="auto">{code_html(alert.detail)}</div>' if alert.detail else ""
    step = "" if says_what_to_do(alert) else f'<div class="rd-soft"><strong>Next:</strong> {code_html(alert.next_step)}</div>'
    head = gauges.link(gauges.alert_url(alert.id), alert.title)
    return (
        f'<div class="rd rd-alert{" rd-seen" if alert.acknowledged_at is not None else ""}">{mark}<strong>{head}</strong> '
        f'<span class="rd-soft">{" · ".join(part for part in parts if part)}</span>{detail}{step}</div>'
    )


def past(alerts: Sequence[Alert], snapshot: Snapshot, now: datetime, zone: tzinfo) -> str:
    rows = [_past_row(alert, snapshot, now, zone) for alert in alerts]
    return figures.table(PAST_HEADS, rows, numeric=(2, 3, 4, 6), wrap=(0,))


def _past_row(alert: Alert, snapshot: Snapshot, now: datetime, zone: tzinfo) -> list[str]:
    url = source_url(alert.source, snapshot)
    lasted = None if alert.resolved_at is None else alert.resolved_at - alert.raised_at
    about = " · ".join(text for text in (subject(alert.metric), shortened(alert.detail, 120)) if text)
    return [
        f"{cards.state_mark(severity(alert.level), '', alert.level)}{gauges.link(gauges.alert_url(alert.id), alert.title)}"
        f"{gauges.below(about)}",
        gauges.link(url, alert.source) if url else f'<span class="rd-soft" title="watched no more">{escape(alert.source)}</span>',
        escape(value_text(alert.worst, alert.unit, alert.metric)),
        _when(alert.raised_at, now, zone),
        gauges.duration(lasted),
        escape(alert.ended) if alert.ended else unknown_html("kept by an older version, which did not say why"),
        "no" if alert.acknowledged_at is None else _when(alert.acknowledged_at, now, zone),
    ]


def csv(alerts: Iterable[Alert]) -> bytes:
    """All fields, times as ISO 8601 in UTC."""
    names = [field.name for field in fields(Alert)]

    def cell(alert: Alert, name: str) -> Any:
        value = getattr(alert, name)
        is_time = name.endswith("_at") and value is not None
        return datetime.fromtimestamp(value, UTC).isoformat(timespec="seconds") if is_time else value

    return to_csv(names, ([cell(alert, name) for name in names] for alert in alerts))


# ----------------------------------------------------------------------------------------------------------------- rules


def rule_rows(rules: Iterable[Rule]) -> list[dict[str, Any]]:
    """The rules as rows of the editor: thresholds in the unit shown, durations in seconds."""
    return [
        {
            "id": rule.id,
            "enabled": rule.enabled,
            "rule": rule.title,
            "unit": _SCALES[rule.unit][1],
            **{name: to_screen(getattr(rule, name), rule.unit) for name in THRESHOLDS},
            **{name: getattr(rule, name) for name in DURATIONS},
            "means": _meaning(rule),
        }
        for rule in rules
    ]


def _meaning(rule: Rule) -> str:
    kinds = f" of {', '.join(rule.kinds)}" if rule.kinds else ""
    return f"{'high' if rule.above else 'low'} {rule.metric}{kinds}"


def to_screen(value: float | None, unit: str) -> float | None:
    return None if value is None else round(value / _SCALES[unit][0], 6)


def from_screen(value: float | None, unit: str) -> float | None:
    return None if value is None else round(value * _SCALES[unit][0], 9)


def changes(rules: Iterable[Rule], rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the edited rows change of the rules, by id and key, as `rules.rules` takes it. An emptied threshold is None: that
    level is off. An emptied duration is 0."""
    known = {rule.id: rule for rule in rules}
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        rule = known[row["id"]]
        wanted: dict[str, Any] = {"enabled": bool(row["enabled"])}
        wanted |= {name: from_screen(_number(row[name]), rule.unit) for name in THRESHOLDS}
        wanted |= {name: _number(row[name]) or 0.0 for name in DURATIONS}
        differing = {name: value for name, value in wanted.items() if not _same(value, getattr(rule, name), rule.unit, name)}
        if differing:
            found[rule.id] = differing
    return found


def _number(value: Any) -> float | None:
    """A cell of the editor; an empty one is None or NaN."""
    return None if value is None or value != value else float(value)


def _same(new: Any, old: Any, unit: str, name: str) -> bool:
    """Equal as far as the screen shows it."""
    if name in THRESHOLDS and new is not None and old is not None:
        return to_screen(new, unit) == to_screen(old, unit)
    return bool(new == old)


def back_to_defaults(rules: Iterable[Rule]) -> dict[str, dict[str, Any]]:
    """What has to be changed for every rule to be as it came."""
    came = {rule.id: rule for rule in DEFAULTS}
    pairs = {rule.id: (rule, came[rule.id]) for rule in rules if rule.id in came}
    found = {
        key: {name: getattr(default, name) for name in CHANGEABLE if getattr(rule, name) != getattr(default, name)}
        for key, (rule, default) in pairs.items()
    }
    return {key: differing for key, differing in found.items() if differing}


# --------------------------------------------------------------------------------------------------------- notifications


def notify_line(health: NotifyHealth) -> str:
    """Who is told, how much went out, and what went wrong with the last sending."""
    names = "".join(f'<div class="rd-mono rd-plain">{escape(name)}</div>' for name in health.services)
    counts = [f"{health.sent:,} sent", f"{health.failed:,} failed" if health.failed else ""]
    counts.append(f"{health.dropped:,} dropped: too many at once" if health.dropped else "")
    line_ = " · ".join(text for text in counts if text)
    problem = cards.note("critical", escape(health.problem)) if health.problem else ""
    return f'<div class="rd">{names}<div class="rd-soft">{escape(line_)} since the start</div></div>{problem}'


def notify_results(results: Mapping[str, bool]) -> str:
    marks = {True: ("ok", "taken"), False: ("critical", "refused")}
    lines = [f"<div>{cards.state_mark(marks[taken][0], f'{name}: {marks[taken][1]}')}</div>" for name, taken in results.items()]
    refused = [name for name, taken in results.items() if not taken]
    step = "<div>Next: check its address and its key; the server's log has the details.</div>" if refused else ""
    return f'<div class="rd">{"".join(lines)}{step}</div>'
