"""Everything at a glance as HTML: what needs somebody, machines, services, the last queries and their slowest stage. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import NamedTuple

from collectors.alerts import Alert
from collectors.views import MachineView, ServiceView, Snapshot
from latency.types import Finding
from rag.cache.tally import asked
from rag.trace_rows import QueryRow
from rag.types import STAGES
from ui import alerts_view, cards, gauges, machines_view, query_list, services_view
from ui.format import (
    code_html,
    escape,
    number,
    percent,
    percentile,
    plural,
    query_url,
    seconds,
    shortened,
    time_html,
    unknown_html,
)
from ui.gauges import Tones
from ui.machines_view import Spark
from ui.style import colour

MAX_THINGS = 8
MAX_ROWS = 14


@dataclass(frozen=True, slots=True)
class Thing:
    """Something that needs somebody. `look` is what to do next."""

    severity: str
    title: str
    url: str
    where: str
    look: str
    since: float | None = None


def things(snapshot: Snapshot, active: Iterable[Alert]) -> list[Thing]:
    """Alerts that nobody has acknowledged, then machines and services that are down and have no alert yet; critical first."""
    active = list(active)
    alerted = {alert.source for alert in active}
    found = [_of_alert(alert) for alert in active if alert.acknowledged_at is None]
    found += [thing for view in snapshot.machines if view.name not in alerted and (thing := _of_machine(view))]
    found += [thing for view in snapshot.services if view.name not in alerted and (thing := _of_service(view))]
    return sorted(found, key=lambda thing: thing.severity != "critical")


def _of_alert(alert: Alert) -> Thing:
    about = alerts_view.subject(alert.metric)
    value = alerts_view.value_text(alert.value, alert.unit, alert.metric)
    title = f"{alert.title}: {value}" if value else alert.title
    where = " · ".join(text for text in (f"{alert.source} {about}".strip(), alert.detail) if text)
    look = "" if alerts_view.says_what_to_do(alert) else alert.next_step
    return Thing(alert.level, title, gauges.alert_url(alert.id), where, look, alert.raised_at)


def _of_machine(view: MachineView) -> Thing | None:
    if view.state not in ("failing", "halted") or view.problem is None:
        return None
    title = f"{view.name} {machines_view.STATES[view.state][1]}" if view.state == "failing" else f"{view.name}: login refused"
    return Thing("critical", title, gauges.machine_url(view.name), view.problem.text, view.problem.next_step)


def _of_service(view: ServiceView) -> Thing | None:
    if view.state != "failed" or view.result is None:
        return None
    return Thing("critical", f"{view.name} fails", gauges.service_url(view.name), view.result.message, view.result.next_step)


def headline(found: Sequence[Thing], snapshot: Snapshot) -> str:
    """`All right`, or how much is not."""
    waiting = [view for view in snapshot.machines if view.state == "waiting"]
    waiting_services = [view for view in snapshot.services if view.state == "waiting"]
    if found:
        return cards.state_mark(found[0].severity, f"{plural(len(found), 'thing')} {'needs' if len(found) == 1 else 'need'} you")
    if waiting or waiting_services:
        return cards.state_mark("unknown", "Nothing wrong so far: not everything is read yet")
    return cards.state_mark("ok", "All right")


class Hour(NamedTuple):
    """The last hour: seconds of each query that ran to its end, and of those that asked the cache how many it answered."""

    totals: Sequence[float] = ()
    lookups: int = 0
    hits: int = 0


def hour_of(rows: Sequence[QueryRow]) -> Hour:
    """Counted as on the pages Latency (failed and cancelled queries have no p95) and Cache."""
    ended = [row.total_seconds for row in rows if row.outcome in ("answered", "no_documents")]
    looked = [row for row in rows if asked(row)]
    return Hour(ended, len(looked), sum(bool(row.cache_hit) for row in looked))


def head(found: Sequence[Thing], snapshot: Snapshot, last: QueryRow | None, hour: Hour) -> str:
    """The first line: how things stand, the last query, p95 and hit rate of the last hour."""
    parts = []
    if last is not None:
        parts.append(f'last query <a href="{query_url(last.id)}">{seconds(last.total_seconds)}</a>')
    if hour.totals:
        parts.append(f"last hour {escape(percentile('p95', p95(hour.totals), len(hour.totals)))}")
    if hour.lookups:
        parts.append(f"{gauges.link('/cache', f'hit rate {percent(hour.hits / hour.lookups)}')} · n {hour.lookups:,}")
    told = "".join(f'<span class="rd-part rd-soft">{part}</span>' for part in parts)
    return f'<div class="rd rd-head"><span class="rd-total">{headline(found, snapshot)}</span>{told}</div>'


def p95(values: Sequence[float]) -> float:
    """Nearest rank: the smallest value that at least 95 % are at or below."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


# ----------------------------------------------------------------------------------------------------------------- cards


def needs(found: Sequence[Thing], acknowledged: int, now: datetime, zone: tzinfo) -> str:
    lines = "".join(_thing(thing, now, zone) for thing in found[:MAX_THINGS])
    more = len(found) - MAX_THINGS
    if more > 0:
        lines += f'<div class="rd-soft">and {gauges.link("/alerts", plural(more, "more", "more"))}</div>'
    if not found:
        lines = '<div class="rd-soft">Nothing. Alerts are raised by the rules on the page Alerts.</div>'
    if acknowledged:
        lines += f'<div class="rd-soft">{gauges.link("/alerts", plural(acknowledged, "alert"))} acknowledged, still active</div>'
    return f'<div class="rd rd-list">{lines}</div>'


def _thing(thing: Thing, now: datetime, zone: tzinfo) -> str:
    since = f" · {time_html(datetime.fromtimestamp(thing.since, UTC), now, zone)}" if thing.since is not None else ""
    look = f'<div class="rd-soft rd-small">Next: {code_html(shortened(thing.look, 160))}</div>' if thing.look else ""
    return (
        f'<div class="rd-thing">{cards.state_mark(thing.severity, "", thing.severity)}'
        f"<strong>{gauges.link(thing.url, thing.title)}</strong>"
        f'<div class="rd-soft rd-small rd-plain" dir="auto">{code_html(shortened(thing.where, 240))}{since}</div>{look}</div>'
    )


def machines(views: Sequence[MachineView], alerts: Sequence[Alert], tones: Tones, spark: Spark) -> str:
    """A machine's processor, memory and fullest disk in one line, its GPUs in another; the worst first where they are many."""
    shown = views if len(views) <= MAX_ROWS else sorted(views, key=lambda view: _rank(machines_view.standing(view, alerts)[0]))
    rows = "".join(_machine(view, alerts, tones, spark) for view in shown[:MAX_ROWS])
    return f'<div class="rd rd-rows">{rows}{_more(len(views), "/machines")}</div>'


def _rank(severity: str) -> int:
    return ("critical", "warn", "unknown", "ok").index(severity)


def _more(there: int, url: str) -> str:
    if there <= MAX_ROWS:
        return ""
    return f'<div class="rd-row rd-soft">{gauges.link(url, f"and {there - MAX_ROWS:,} more")}</div>'


def _machine(view: MachineView, alerts: Sequence[Alert], tones: Tones, spark: Spark) -> str:
    severity, word, _ = machines_view.standing(view, alerts)
    name = gauges.link(gauges.machine_url(view.name), view.name)
    mark = f'<span class="rd-who">{cards.state_mark(severity, "", word)}<strong>{name}</strong></span>'
    if view.state in ("failing", "halted") and view.problem is not None:
        told = f'<span class="rd-soft rd-plain" dir="auto">{escape(shortened(view.problem.text, 90))}</span>'
        return f'<div class="rd-row">{mark}<span class="rd-what">{told}</span></div>'
    if view.state == "waiting":
        return f'<div class="rd-row">{mark}<span class="rd-what rd-soft">not read yet</span></div>'
    lines = "".join(
        f'<span class="rd-line3">{"".join(parts)}</span>' for parts in (_gpu(view), _host(view, tones, spark)) if parts
    )
    return f'<div class="rd-row">{mark}<span class="rd-what">{lines}</span></div>'


def _gpu(view: MachineView) -> list[str]:
    gpus = machines_view.gpus_of(view)
    if not gpus and not view.expected_gpus:
        return []
    faults = view.gpus.value.faults if view.gpus and view.gpus.value else ()
    used, total = machines_view.vram(view)
    mean = machines_view.gpu_ratio(view)
    drawn = gauges.cells(gpus, faults, view.expected_gpus)
    return [
        f'<span class="rd-pair"><span class="rd-soft">GPU</span> {drawn} {_or_dash(percent(mean))}</span>',
        f'<span class="rd-pair"><span class="rd-soft">VRAM</span> {_or_dash(gauges.used_of(used, total))}</span>',
    ]


def _or_dash(text: str) -> str:
    return gauges.shown(text, "the driver does not tell")


def _host(view: MachineView, tones: Tones, spark: Spark) -> list[str]:
    busy, used = machines_view.busy_ratio(view), machines_view.memory_ratio(view)
    reason = gauges.why(view.host, "the machine does not tell")
    disk = machines_view.fullest(view)
    cpu = gauges.bar(None, percent(busy), reason, tones.of("cpu.busy_ratio", busy))
    memory = gauges.bar(None, percent(used), reason, tones.of("memory.used_ratio", used))
    if disk is None:
        space = unknown_html(gauges.why(view.filesystems, "no file system told its size"))
    else:
        tone = tones.of(f"filesystem.{disk.mount}.used_ratio", disk.used_ratio)
        space = gauges.bar(None, percent(disk.used_ratio), reason, tone, disk.mount)
    return [
        f'<span class="rd-pair"><span class="rd-soft">CPU</span> {spark(view.name, "cpu.busy_ratio", "CPU busy")} {cpu}</span>',
        f'<span class="rd-pair"><span class="rd-soft">RAM</span> {memory}</span>',
        f'<span class="rd-pair"><span class="rd-soft">disk</span> {space}</span>',
    ]


def services(views: Sequence[ServiceView]) -> str:
    shown = views if len(views) <= MAX_ROWS else sorted(views, key=lambda view: _rank(_standing(view)[0]))
    rows = "".join(_service(view) for view in shown[:MAX_ROWS])
    return f'<div class="rd rd-rows">{rows}{_more(len(views), "/services")}</div>'


def _standing(view: ServiceView) -> tuple[str, str]:
    return ("unknown", "stale") if view.liveness.stale else services_view.STATES.get(view.state, ("unknown", view.state))


def _service(view: ServiceView) -> str:
    severity, word = _standing(view)
    latency = services_view.best_latency(view)
    told = services_view.engine_line(view.engine)
    value = seconds(latency.total_seconds) if latency and view.state in ("ok", "degraded") else word
    hover = view.result.message if view.result else ""
    return (
        f'<div class="rd-row"><span class="rd-who">{cards.state_mark(severity, "", word)}'
        f"<strong>{gauges.link(gauges.service_url(view.name), view.name, hover)}</strong></span>"
        f'<span class="rd-what"><span class="rd-end">{escape(value)}</span>'
        f"{f'<span class={chr(34)}rd-soft rd-small rd-end{chr(34)}>{escape(told)}</span>' if told else ''}</span></div>"
    )


def slowest(row: QueryRow) -> tuple[str, float] | None:
    """(stage, seconds) of the stage that took longest."""
    known = [(stage, spent) for stage in STAGES if (spent := row.stage_seconds(stage))]
    return max(known, key=lambda item: item[1], default=None)


def queries(rows: Sequence[QueryRow], now: datetime, zone: tzinfo) -> str:
    longest = max((row.total_seconds for row in rows), default=0.0)
    return f'<div class="rd rd-rows">{"".join(_query(row, longest, now, zone) for row in rows)}</div>'


def _query(row: QueryRow, longest: float, now: datetime, zone: tzinfo) -> str:
    text = shortened(row.question, 90) if row.content and row.question.strip() else "question not kept"
    worst = slowest(row)
    told = ""
    if worst is not None:
        share = percent(worst[1] / row.total_seconds) if row.total_seconds else ""
        told = f'<span class="rd-swatch" style="{colour(worst[0])}"></span>{worst[0]} {seconds(worst[1])} ({share})'
    mark = (
        ""
        if row.outcome == "answered"
        else cards.state_mark(_OUTCOMES.get(row.outcome, "unknown"), row.outcome.replace("_", " "))
    )
    return (
        f'<div class="rd-row rd-wrap"><span class="rd-question-link"><a class="rd-plain" dir="auto" href="{query_url(row.id)}">'
        f"{escape(text)}</a> {mark}</span>"
        f'<span class="rd-what">{query_list.stage_bar(row, longest)}<span class="rd-pair">{seconds(row.total_seconds)}</span>'
        f'<span class="rd-pair rd-soft">{told or number(None)}</span>'
        f'<span class="rd-end rd-soft">{time_html(datetime.fromtimestamp(row.started_at, UTC), now, zone)}</span></span></div>'
    )


_OUTCOMES: Mapping[str, str] = {"failed": "critical", "no_documents": "warn"}


def cause(number: int, finding: Finding) -> str:
    """A cause of slowness in one line: what it is, what it would save, how sure that is."""
    saving = "" if finding.saving_seconds is None else f" · saves about {seconds(finding.saving_seconds)}"
    return f'<div>{number}. {escape(finding.title)}<span class="rd-soft">{saving} · {escape(finding.confidence)}</span></div>'
