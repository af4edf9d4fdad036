"""Services as HTML: one row each, where the seconds of a probe went, what a model server does, and how long each was up. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import tzinfo
from typing import Any

from collectors.history import Point
from collectors.services import Latency, ProbeResult
from collectors.views import Part, ServiceView
from collectors.vllm_metrics import Engine
from ui import cards, figures, gauges
from ui.exports import to_csv
from ui.format import UNKNOWN, code_html, count, escape, number, percent, plural, seconds, shortened, unknown_html
from ui.gauges import shown

HEADS = ("Service", "State", "Answers in", "Works in", "Last 30 min", "Up, 24 h", "Version", "Certificate", "Probed")
STATES: Mapping[str, tuple[str, str]] = {
    "ok": ("ok", "works"),
    "degraded": ("warn", "slow or degraded"),
    "loading": ("warn", "loading"),
    "failed": ("critical", "failed"),
    "waiting": ("unknown", "not probed yet"),
}
_ORDER = ("failed", "loading", "degraded", "waiting", "ok")
SORTS: Mapping[str, Callable[[ServiceView], Any]] = {
    "as in the settings": lambda view: 0,
    "name": lambda view: view.name.casefold(),
    "worst state first": lambda view: _ORDER.index(view.state),
    "slowest first": lambda view: -(latency.total_seconds if (latency := best_latency(view)) else 0.0),
}
UPTIMES: Mapping[str, float] = {"24 h": 86_400.0, "7 d": 7 * 86_400.0, "30 d": 30 * 86_400.0}
# (field of Latency, word, class of waterfall parts)
_PARTS = (
    ("dns_seconds", "name", "tokenize"),
    ("connect_seconds", "connect", "network"),
    ("tls_seconds", "TLS", "load"),
    ("first_byte_seconds", "first byte", "compute"),
)

Spark = Callable[[ServiceView], str]
Uptime = Callable[[ServiceView], float | None]


def best_latency(view: ServiceView) -> Latency | None:
    """Of the functional probe where there is one, else of liveness; None where neither went well."""
    for part in (view.functional, view.liveness):
        if part.value is not None and part.value.up:
            return part.value.latency
    return None


def latency_metric(view: ServiceView) -> str:
    """What its latency is kept as in the history."""
    return "service.liveness_seconds" if view.functional.absent else "service.functional_seconds"


def uptime(points: Iterable[Point]) -> float | None:
    """The share of probes that found it up, from the points of `service.up`; None without any."""
    found = [(point.mean, point.samples) for point in points]
    samples = sum(count_ for _, count_ in found)
    return sum(mean * count_ for mean, count_ in found) / samples if samples else None


def uptimes(points_of: Callable[[float], Sequence[Point]], now: float) -> dict[str, str]:
    """Uptime over a day, a week and a month; the longer spans only where the history reaches beyond the shorter ones.
    `points_of(seconds)` gives the points of `service.up` of so long."""
    found: dict[str, str] = {}
    shorter = 0.0
    for word, length in UPTIMES.items():
        points = points_of(length)
        if not points or points[0].at > now - shorter:
            break
        found[word] = uptime_text(uptime(points))
        shorter = length
    return found


def uptime_text(ratio: float | None) -> str:
    """`100 %`, `99.95 %`: never rounded up to 100."""
    if ratio is None:
        return UNKNOWN
    return "100 %" if ratio >= 1 else f"{min(99.99, ratio * 100):.2f} %"


def title(views: Sequence[ServiceView]) -> str:
    failed = [view.name for view in views if view.state == "failed"]
    if failed:
        return (
            f"{len(failed)} of {plural(len(views), 'service')} {'fails' if len(failed) == 1 else 'fail'}: {', '.join(failed[:3])}"
        )
    slow = [view.name for view in views if view.state in ("degraded", "loading")]
    if slow:
        return f"{plural(len(views), 'service')}; not all right: {', '.join(slow[:3])}"
    waiting = sum(view.state == "waiting" for view in views)
    if waiting:
        return f"{len(views) - waiting} of {plural(len(views), 'service')} probed so far"
    return f"{plural(len(views), 'service')}, all of them work" if len(views) != 1 else "The one service works"


def state(view: ServiceView) -> str:
    severity, word = STATES.get(view.state, ("unknown", view.state))
    if view.liveness.stale:
        severity, word = "unknown", "stale"
    return cards.state_mark(severity, word, view.result.message if view.result else "")


# ----------------------------------------------------------------------------------------------------------------- table


def table(views: Sequence[ServiceView], zone: tzinfo, spark: Spark, up: Uptime) -> str:
    rows = [[*_who(view), *_latencies(view), spark(view), *_rest(view, zone, up(view))] for view in views]
    return f'<div class="rd-services">{figures.table(HEADS, rows, numeric=(5, 8), wrap=(0,))}</div>'


def _who(view: ServiceView) -> list[str]:
    result = view.result
    lines = gauges.below(f"{view.kind} · {view.address}")
    if result is not None and result.state != "ok":
        lines += _small(result.message, 160) + (_small(f"Next: {result.next_step}", 200) if result.next_step else "")
    return [f"<strong>{gauges.link(gauges.service_url(view.name), view.name)}</strong>{lines}", state(view)]


def _small(text: str, length: int) -> str:
    return f'<div class="rd-plain rd-small" dir="auto">{escape(shortened(text, length))}</div>'


def _latencies(view: ServiceView) -> list[str]:
    return [
        _latency(view.liveness, "not probed yet"),
        _latency(view.functional, "probed on demand only" if view.functional.absent else "not probed yet: it answers first"),
    ]


def _latency(part: Part[ProbeResult], reason: str) -> str:
    if part.value is None:
        return unknown_html(reason)
    if not part.value.up:
        return unknown_html(f"{part.value.message or 'it failed'} (after {seconds(part.value.latency.total_seconds)})")
    return (
        f'<span class="rd-gauge"><span>{seconds(part.value.latency.total_seconds)}</span>{split_bar(part.value.latency)}</span>'
    )


def _rest(view: ServiceView, zone: tzinfo, up: float | None) -> list[str]:
    newest = _results(view)
    version = next((result.version for result in newest if result.version), None)
    days = next((result.certificate_days for result in newest if result.certificate_days is not None), None)
    plain = "it is reached without TLS" if newest else "not probed yet"
    return [
        shown(uptime_text(up), "nothing was kept in this time"),
        escape(shortened(version, 40)) if version else unknown_html("it does not tell its version"),
        certificate(days, plain),
        gauges.age(view.liveness, zone),
    ]


def _results(view: ServiceView) -> list[ProbeResult]:
    return [part.value for part in (view.functional, view.liveness) if part.value is not None]


def certificate(days: float | None, reason: str) -> str:
    """How long it is still valid."""
    if days is None:
        return unknown_html(reason)
    if days < 0:
        return cards.state_mark("critical", f"expired {abs(days):.0f} days ago")
    tone = "critical" if days < 2 else "warn" if days < 14 else ""
    text = f"{days:.0f} days"
    return cards.state_mark(tone, text) if tone else f'<span class="rd-nowrap">{text}</span>'


# --------------------------------------------------------------------------------------------------------------- latency


def split_of(latency: Latency) -> list[tuple[str, float, str]]:
    """(word, seconds, class): name, connect, TLS, first byte, and what is left of the total."""
    known = [(word, float(value), kind) for name, word, kind in _PARTS if (value := getattr(latency, name))]
    rest = latency.total_seconds - sum(value for _, value, _ in known)
    return [*known, ("the rest", rest, "other")] if known and rest > 0.0005 * latency.total_seconds else known


def split_bar(latency: Latency) -> str:
    parts = split_of(latency)
    together = sum(value for _, value, _ in parts)
    if not together:
        return ""
    told = "\n".join(f"{word} {seconds(value)}" for word, value, _ in parts)
    drawn = "".join(f'<i class="{kind}" style="width:{value / together * 100:.2f}%"></i>' for _, value, kind in parts)
    return f'<span class="rd-bar rd-split" title="{escape(told)}">{drawn}</span>'


def split_line(latency: Latency) -> str:
    """The split in words, with the patterns of the bar."""
    told = "".join(
        f'<span><span class="rd-bar"><i class="{kind}"></i></span>{escape(word)} {seconds(value)}</span>'
        for word, value, kind in split_of(latency)
    )
    return f'<div class="rd rd-legend">{told}</div>' if told else ""


# ------------------------------------------------------------------------------------------------------------ one service


def header(view: ServiceView, uptimes: Mapping[str, str], zone: tzinfo) -> str:
    """State, kind, address, uptime over a day, a week and a month, certificate, and when it was last probed."""
    days = next((result.certificate_days for result in _results(view) if result.certificate_days is not None), None)
    up = " · ".join(f"{word} {text}" for word, text in uptimes.items() if text != UNKNOWN)
    parts = [escape(view.kind), escape(view.address), f"up: {escape(up)}" if up else ""]
    parts.append(f"certificate: {certificate(days, '')}" if days is not None else "")
    told = "".join(f'<span class="rd-part">{part}</span>' for part in parts if part)
    return f'<div class="rd rd-head"><span class="rd-state">{state(view)}</span>{told}{gauges.age(view.liveness, zone)}</div>'


def probe(result: ProbeResult | None, kind: str, reason: str) -> str:
    """What one probe found, whole."""
    heading = {"liveness": "Does it answer?", "functional": "Does it work?"}[kind]
    if result is None:
        return gauges.card_title(heading, unknown_html(reason)) + f'<div class="rd rd-soft">{escape(reason)}</div>'
    mark = cards.state_mark(*STATES[result.state])
    models = ", ".join(result.models) if result.models else ""
    pairs = {
        "in": seconds(result.latency.total_seconds),
        "version": result.version or "",
        "models": shortened(models, 120),
        "device": result.device or "",
        **{_measure_word(name): _measure(name, value) for name, value in result.measures.items()},
    }
    line = "".join(
        f'<span class="rd-pair"><span class="rd-soft">{escape(n)}</span> {escape(v)}</span>' for n, v in pairs.items() if v
    )
    told = [escape(text) for text in (result.message, *result.notes) if text]
    if result.next_step and result.state != "ok":
        told.append(f"<strong>Next:</strong> {code_html(result.next_step)}")
    lines = "".join(f'<div class="rd-plain" dir="auto">{text}</div>' for text in told)
    body = f'<div class="rd">{lines}<div class="rd-pairs">{line}</div></div>'
    return gauges.card_title(heading, mark) + body + split_line(result.latency)


def _measure_word(name: str) -> str:
    for unit in ("_seconds", "_ratio", "_bytes"):
        name = name.removesuffix(unit)
    return {"ttft": "TTFT"}.get(name, name.replace("_", " "))


def _measure(name: str, value: float) -> str:
    if name.endswith("_seconds"):
        return seconds(value)
    return percent(value) if name.endswith("_ratio") else number(value)


# ---------------------------------------------------------------------------------------------------------------- engine


def engine(found: Engine) -> str:
    """What a model server tells of itself: its queue, its cache, and its latencies since the look before."""
    idle = "nothing was observed since the look before" if found.seconds else "the first look: rates need two"
    never = "this server does not tell"
    now = {
        "running": (count_of(found.running), never),
        "waiting": (count_of(found.waiting), never),
        "KV cache used": (percent(found.kv_cache_used_ratio), never),
        "prefix cache hits": (percent(found.prefix_cache_hit_ratio), idle),
        "requests": (number(found.requests_per_second, "/s"), idle),
        "failures": (number(found.failures_per_second, "/s"), never),
        "prompt": (number(found.prompt_tokens_per_second, "tok/s"), idle),
        "generated": (number(found.generation_tokens_per_second, "tok/s"), idle),
        "preemptions": (count_of(found.preemptions), never),
        "cold requests": (count_of(found.cold_requests), never),
    }
    pairs = "".join(
        f'<span class="rd-pair"><span class="rd-soft">{escape(name)}</span> {shown(text, reason)}</span>'
        for name, (text, reason) in now.items()
        if not (text == UNKNOWN and reason == never)
    )
    rows = [row for name, field in _LATENCIES.items() if (row := _quantiles(found, name, field, idle))]
    about = " · ".join(text for text in (found.models, f"over {seconds(found.seconds)}" if found.seconds else "") if text)
    table_ = figures.table(["", "p50", "p95", "p99"], rows, numeric=(1, 2, 3)) if rows else ""
    restarted = '<div class="rd-soft">Its counters began anew: it was restarted.</div>' if found.restarted else ""
    return f'<div class="rd">{gauges.below(about)}<div class="rd-pairs">{pairs}</div>{restarted}</div>{table_}'


_LATENCIES: Mapping[str, str] = {
    "first token (TTFT)": "ttft",
    "each further token": "per_token",
    "whole request": "request",
    "in the queue": "queue",
    "prefill": "prefill",
    "decode": "decode",
    "computing": "compute",
}


def _quantiles(found: Engine, name: str, field: str, idle: str) -> list[str] | None:
    values = [getattr(found, f"{field}_{quantile}_seconds", None) for quantile in ("p50", "p95", "p99")]
    if all(value is None for value in values):
        return None
    return [escape(name), *(shown(seconds(value), idle) for value in values)]


def count_of(value: float | None) -> str:
    return UNKNOWN if value is None else count(round(value))


def engine_line(part: Part[Engine] | None) -> str:
    """`2 running · 0 waiting · KV 31 %`, or nothing."""
    found = part.value if part else None
    if found is None:
        return ""
    known = {
        "running": count_of(found.running),
        "waiting": count_of(found.waiting),
        "KV cache": percent(found.kv_cache_used_ratio),
    }
    return " · ".join(f"{name} {text}" for name, text in known.items() if text != UNKNOWN)


# ---------------------------------------------------------------------------------------------------------------- export

_COLUMNS: Mapping[str, Callable[[ServiceView], Any]] = {
    "service": lambda view: view.name,
    "kind": lambda view: view.kind,
    "address": lambda view: view.address,
    "state": lambda view: view.state,
    "liveness_seconds": lambda view: view.liveness.value.latency.total_seconds if view.liveness.value else None,
    "functional_seconds": lambda view: view.functional.value.latency.total_seconds if view.functional.value else None,
    "version": lambda view: view.result.version if view.result else None,
    "certificate_days": lambda view: view.result.certificate_days if view.result else None,
    "message": lambda view: view.result.message if view.result else None,
    "next_step": lambda view: view.result.next_step if view.result else None,
    "age_seconds": lambda view: view.liveness.age_seconds,
}


def csv(views: Iterable[ServiceView]) -> bytes:
    return to_csv(tuple(_COLUMNS), ([of(view) for of in _COLUMNS.values()] for view in views))
