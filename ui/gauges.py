"""Small pieces that show a reading: bars, cells of GPUs, ages, and why a value is not known. Pure; everything is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote

from collectors.readings import Fault, Gpu
from collectors.rules import Rule
from collectors.views import Part, Problem
from ui.format import UNKNOWN, bytes_text, code_html, escape, number, percent, seconds, time_html, unknown_html
from ui.style import colour

NOT_COLLECTED = "not collected: the settings of this machine leave it out (collect)"
FAULT_SEVERITIES: Mapping[str, str] = {"critical": "critical", "warning": "warn", "note": "unknown"}


def machine_url(name: str) -> str:
    return f"/machine?name={quote(name, safe='')}"


def service_url(name: str) -> str:
    return f"/services?name={quote(name, safe='')}"


def alert_url(number: int) -> str:
    return f"/alerts?id={number}"


def link(url: str, text: str, hover: str = "") -> str:
    title = f' title="{escape(hover)}"' if hover else ""
    return f'<a class="rd-plain" href="{escape(url)}"{title}>{escape(text)}</a>'


# -------------------------------------------------------------------------------------------------------------- unknown


def why(part: Part[Any] | None, otherwise: str) -> str:
    """Why something of a part is not known: not collected, not read yet, a failure, what the machine said; else `otherwise`."""
    if part is None:
        return NOT_COLLECTED
    if part.value is None:
        return said(part.problem) if part.problem else "not read yet"
    faults: Iterable[Fault] = getattr(part.value, "faults", ())
    return "; ".join(said(fault) for fault in faults if fault.severity != "note" or part.absent) or otherwise


def said(problem: Problem | Fault) -> str:
    """What is wrong and what to do, as sentences."""
    return f"{sentence(problem.text)} {problem.next_step}" if problem.next_step else problem.text


def sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!", ":", "…")) else f"{text}."


def nothing(reason: str) -> str:
    """In the place of a whole table: the dash with its reason, which is said openly too."""
    return f'<div class="rd">{unknown_html(reason)} <span class="rd-soft rd-plain" dir="auto">{code_html(reason)}</span></div>'


def shown(text: str, reason: str) -> str:
    """A formatted value, or the dash with its reason."""
    return unknown_html(reason) if text == UNKNOWN else f'<span class="rd-nowrap">{escape(text)}</span>'


# ---------------------------------------------------------------------------------------------------------------- tones


class Tones:
    """The severity of single values by the thresholds of the alert rules in force. Windows and durations are the alerts' own."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules = tuple(rule for rule in rules if rule.enabled)
        self._known: dict[str, tuple[Rule, ...]] = {}

    def of(self, metric: str, value: float | None) -> str:
        """`warn`, `critical`, or "" for what needs no colour. `metric` as in the rules: `gpu.0.temperature_celsius`."""
        if value is None:
            return ""
        rules = self._known.get(metric)
        if rules is None:
            rules = self._known[metric] = tuple(rule for rule in self._rules if fnmatchcase(metric, rule.metric))
        levels = {rule.level(value) for rule in rules}
        return next((level for level in ("critical", "warn") if level in levels), "")


# ----------------------------------------------------------------------------------------------------------------- bars


def bar(ratio: float | None, text: str, reason: str, tone: str = "", hover: str = "") -> str:
    """A text with a thin bar below it; without a ratio the text alone."""
    if text == UNKNOWN:
        return unknown_html(reason)
    title = f' title="{escape(hover)}"' if hover else ""
    style = f' style="{colour(tone)}"' if tone else ""
    drawn = "" if ratio is None else f'<span class="rd-bar1"><i style="width:{min(1.0, max(0.0, ratio)) * 100:.1f}%"></i></span>'
    return f'<span class="rd-gauge{" rd-toned" if tone else ""}"{style}{title}><span>{escape(text)}</span>{drawn}</span>'


def used_of(used: float | None, total: float | None) -> str:
    """`19.1 / 22.5 GiB`; both in the unit of the total."""
    if used is None or total is None:
        return bytes_text(used if total is None else None)
    text = bytes_text(total)
    unit = text.rpartition(" ")[2]
    scaled = used / 1024 ** ("B", "KiB", "MiB", "GiB", "TiB").index(unit)
    return f"{'< 0.01' if 0 < scaled < 0.01 else number(scaled)} / {text}"


def duration(value: float | None) -> str:
    """As `format.seconds`, in days where it is more than two."""
    return seconds(value) if value is None or value < 2 * 86_400 else f"{value / 86_400:,.0f} days"


def ratio_of(part: float | None, total: float | None) -> float | None:
    return None if part is None or not total else part / total


def meter_line(ratio: float | None, tone: str = "") -> str:
    """A bar as wide as its card."""
    width = 0.0 if ratio is None else min(1.0, max(0.0, ratio)) * 100
    style = f"{colour(tone)};width:{width:.1f}%" if tone else f"width:{width:.1f}%"
    return f'<div class="rd-meter" role="img" aria-label="{escape(percent(ratio))}"><i style="{style}"></i></div>'


def cells(gpus: Iterable[Gpu], faults: Iterable[Fault] = (), expected: int | None = None) -> str:
    """One cell a GPU, filled by utilization; framed where something is wrong with it, crossed out where it is missing."""
    wrong = {fault.subject: fault for fault in faults if fault.subject and fault.severity != "note"}
    drawn = [_cell(gpu, wrong.get(f"gpu {gpu.index}") or wrong.get(f"gpu {gpu.pci_bus_id}")) for gpu in gpus]
    missing = max(0, (expected or 0) - len(drawn))
    drawn += [f'<i class="gone" style="{colour("critical")}" title="a GPU that was there is missing"></i>'] * missing
    return f'<span class="rd-cells">{"".join(drawn)}</span>'


def _cell(gpu: Gpu, fault: Fault | None) -> str:
    memory = used_of(gpu.memory_used_bytes, gpu.memory_total_bytes)
    told = (
        f"GPU {gpu.index} {gpu.name or ''}\n{percent(gpu.utilization_ratio)} · {memory} · {number(gpu.temperature_celsius, '°C')}"
    )
    told += f"\n{fault.text}" if fault else ""
    tone = colour(FAULT_SEVERITIES.get(fault.severity, "warn")) if fault else colour("warn") if gpu.slowed else ""
    classes = " ".join(name for name, on in (("wrong", tone), ("unknown", gpu.utilization_ratio is None)) if on)
    height = (gpu.utilization_ratio or 0.0) * 100
    return f'<i class="{classes}" style="{tone};--v:{min(100.0, height):.0f}%" title="{escape(told)}"></i>'


# ----------------------------------------------------------------------------------------------------------------- ages


def age(part: Part[Any] | None, zone: tzinfo) -> str:
    """When a part was last read: relative by our own clock, absolute on hover; marked where it is stale."""
    if part is None or part.at is None or part.age_seconds is None:
        return unknown_html(why(part, "not read yet") if part is None or part.value is None else "not read yet")
    at = datetime.fromtimestamp(part.at, UTC)
    text = time_html(at, at + timedelta(seconds=part.age_seconds), zone)
    return f'<span class="rd-nowrap rd-stale">{text}</span>' if part.stale else f'<span class="rd-nowrap rd-soft">{text}</span>'


def below(text: str) -> str:
    """A quiet line under a cell's text."""
    return f'<div class="rd-soft rd-plain rd-small" dir="auto">{escape(text)}</div>' if text else ""


def card_title(text: str, after: str = "") -> str:
    """The title of a card; `after` is HTML at its right, such as an age."""
    return f'<div class="rd rd-cardhead"><p class="rd-title">{escape(text)}</p>{after}</div>'
