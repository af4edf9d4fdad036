"""What the page Readiness shows: R4's five criteria, the checks, one check with cause and cure. Pure; everything is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from itertools import groupby
from typing import Any
from urllib.parse import quote

from collectors.views import ServiceView, Snapshot
from deploy.validation.criteria import Criterion, Load, Measured, Times, Watched
from deploy.validation.report import WORDS, commands, summary, with_code
from deploy.validation.subject import Targets
from deploy.validation.types import WORST_FIRST, Item, Outcome, Report, Result
from latency.experiments.experiments import Experiment
from rag.quantities import rank
from rag.trace_rows import QueryRow
from ui import cards, figures
from ui.format import escape, plural, seconds, shortened, time_html, unknown_html
from ui.gauges import link, sentence

SEVERITIES: Mapping[Outcome, str] = {"passed": "ok", "warning": "warn", "failed": "critical", "not_applicable": "unknown"}
MET: Mapping[Outcome, str] = {"passed": "met", "warning": "in part", "failed": "not met", "not_applicable": "not measured"}
FILTERS = ("all", "needs work", "not applicable")
EVIDENCE_CHARS = 180


# 1) what was measured


def measured(
    report: Report | None, snapshot: Snapshot, rows: Sequence[QueryRow], tests: Sequence[Experiment], local: Sequence[str]
) -> Measured:
    """For the criteria: services as the sweep has them, warm queries, the latest load test that finished with a result. `local`
    are the roles of the models in this process."""
    load = next((each for each in tests if each.state == "finished" and each.result and each.result.get("steps")), None)
    return Measured(
        report=report,
        services=tuple(_watched(each) for each in snapshot.services),
        times=_times(rows),
        load=None if load is None or load.result is None else Load(load.id, load.started_at_unix, load.result),
        local_embedder="embedder" in local,
        local_llm="llm" in local,
    )


def _watched(view: ServiceView) -> Watched:
    ages = [part.at for part in (view.liveness, view.functional) if part.at is not None]
    result = view.result
    return Watched(view.name, view.kind, view.state, min(ages, default=None), result.message if result and not result.up else "")


def _times(rows: Sequence[QueryRow]) -> Times | None:
    if not rows:
        return None
    totals = sorted(row.total_seconds for row in rows)
    return Times(totals[rank(95, len(totals))], len(totals), max(row.started_at for row in rows))


# 2) the criteria


def _words_of(text: str) -> str:
    """Escaped, with what stands between backticks as code."""
    return with_code(text).replace("<code>", '<code class="rd-mono">')


def headline(found: Sequence[Criterion]) -> str:
    """`3 of 5 criteria are met; 1 was not measured`."""
    met = sum(each.outcome == "passed" for each in found)
    open_ = sum(each.outcome == "not_applicable" for each in found)
    text = f"{met} of {len(found)} criteria are met"
    return f"{text}; {open_} not measured" if open_ else text


def limits(targets: Targets, origins: Mapping[str, str]) -> str:
    """What is called acceptable here, by which setting, and where that setting comes from."""
    shown = (
        ("an answer within", f"{targets.total_seconds:g} s", "readiness.answer_seconds"),
        ("its first token within", f"{targets.first_token_seconds:g} s", "readiness.first_token_seconds"),
        ("users at once", str(targets.users), "readiness.users"),
        ("evidence counts for", _days(targets.evidence_days), "readiness.evidence_days"),
        ("stored queries of the last", _days(targets.query_days), "readiness.query_days"),
    )
    pairs = "".join(
        f'<span class="rd-pair"><span class="rd-soft">{escape(name)}</span> {escape(value)} '
        f'<span class="rd-soft rd-small"><code class="rd-mono">{key}</code>, {escape(origins.get(key, "default"))}</span></span>'
        for name, value, key in shown
    )
    where = "Acceptable here; to change it, write the key into section [readiness] of dashboard.toml:"
    return f'<div class="rd rd-stack"><div class="rd-soft">{where}</div><div class="rd-pairs">{pairs}</div></div>'


def _days(value: float) -> str:
    return plural(int(value), "day") if value == int(value) else f"{value:g} days"


def criterion(found: Criterion, now: datetime, zone: tzinfo) -> str:
    """A criterion's card: its state, evidence with age, what to do next, and what it rests on."""
    evidence = "".join(f'<div class="rd-soft rd-plain" dir="auto">{_words_of(sentence(line))}</div>' for line in found.evidence)
    step = f'<div class="rd-plain" dir="auto">Next: {_words_of(sentence(found.next_step))}</div>' if found.next_step else ""
    rests = [link(check_url(code), code) for code in found.checks]
    if found.load_id is not None:
        rests.append(link(f"/experiments?id={quote(found.load_id, safe='')}", "load test"))
    on = f'<span class="rd-soft rd-small">rests on {", ".join(rests)}</span>' if rests else ""
    return (
        f'<div class="rd rd-stack"><div class="rd-cardhead"><p class="rd-title">{escape(found.title)}</p>'
        f"{_age(found.at_unix, now, zone)}</div>{_mark(found.outcome, MET[found.outcome])}"
        f"{evidence}{step}{on}</div>"
    )


def _age(at_unix: float | None, now: datetime, zone: tzinfo) -> str:
    if at_unix is None:
        return unknown_html("nothing was measured yet")
    return f'<span class="rd-soft rd-nowrap">{time_html(datetime.fromtimestamp(at_unix, UTC), now, zone)}</span>'


def _mark(outcome: Outcome, word: str) -> str:
    return cards.state_mark(SEVERITIES[outcome], word)


# 3) the list of checks


def title(report: Report) -> str:
    """A sentence over the list."""
    bad = report.count("failed")
    if not bad:
        return f"No check failed: {summary(report)}"
    return f"{plural(bad, 'check')} failed: {summary(report)}"


def chosen(report: Report, which: str) -> tuple[Result, ...]:
    """The results that a filter leaves."""
    if which == "needs work":
        return tuple(each for each in report.results if each.outcome in ("failed", "warning"))
    if which == "not applicable":
        return tuple(each for each in report.results if each.outcome == "not_applicable")
    return report.results


def checks(results: Sequence[Result], now: datetime, zone: tzinfo) -> str:
    """The checks by group, each a link to its own view."""
    if not results:
        return cards.empty("No check is like that.", "Choose another filter.")
    parts = []
    for group, listed in groupby(results, key=lambda each: each.group):
        rows = "".join(_row(each, now, zone) for each in listed)
        parts.append(f'<p class="rd-title" style="margin-top:.7rem">{escape(group)}</p><div class="rd-rows">{rows}</div>')
    return f'<div class="rd">{"".join(parts)}</div>'


def _row(result: Result, now: datetime, zone: tzinfo) -> str:
    """Code, title with the evidence below, outcome; what it took and when only where there is room."""
    url = check_url(result.code)
    cells = (
        ("flex:0 0 2.6rem", "rd-nowrap", link(url, result.code)),
        ("flex:1 1 0;min-width:0", "", f"{link(url, result.title)}{_evidence(result)}"),
        ("flex:0 0 7.6rem", "rd-nowrap", _mark(result.outcome, WORDS[result.outcome].lower())),
        ("flex:0 0 5rem;text-align:right", "rd-wide rd-soft rd-nowrap", escape(seconds(result.seconds))),
        ("flex:0 0 6rem;text-align:right", "rd-wide", _age(result.at_unix, now, zone)),
    )
    shown = "".join(f'<div style="{style}" class="{name}">{html}</div>' for style, name, html in cells)
    return f'<div class="rd-row">{shown}</div>'


def _evidence(result: Result) -> str:
    """The evidence in short; code that the cut opened is closed again."""
    text = shortened(result.evidence, EVIDENCE_CHARS)
    whole = _words_of(text + "`" * (text.count("`") % 2))
    return f'<div class="rd-soft rd-plain rd-small" dir="auto">{whole}</div>' if text else ""


def check_url(code: str) -> str:
    return f"/readiness?check={quote(code, safe='')}"


# 4) one check


def check(result: Result, now: datetime, zone: tzinfo) -> str:
    """All of one check: what it proves, each thing looked at with cause and cure, its table and numbers."""
    worst_first = sorted(result.items, key=lambda item: WORST_FIRST.index(item.outcome))
    items = "".join(_item(item) for item in worst_first) or cards.note(
        "unknown", "<strong>Not applicable here.</strong>", _words_of(sentence(result.reason))
    )
    return (
        f'<div class="rd rd-stack"><div class="rd-head"><span class="rd-state">'
        f"{_mark(result.outcome, WORDS[result.outcome].lower())}</span>"
        f'<span class="rd-soft">{escape(seconds(result.seconds))}</span>{_age(result.at_unix, now, zone)}</div>'
        f'<div class="rd-soft">Proves: {_words_of(result.proves)}</div>{items}{_table(result.table)}'
        f"{_measures(result.measures)}</div>"
    )


def to_copy(result: Result) -> tuple[str, ...]:
    """The commands that its causes and cures name."""
    wrong = [item for item in result.items if item.cause]
    return commands(result.reason, *(text for item in wrong for text in (item.cause, item.cure)))


def _item(item: Item) -> str:
    name = f"<strong>{escape(item.subject)}</strong>: " if item.subject else ""
    line = f"{_mark(item.outcome, WORDS[item.outcome].lower())} {name}{_words_of(sentence(item.evidence))}"
    if not item.cause:
        return f'<div class="rd-plain" dir="auto">{line}</div>'
    return cards.note(
        SEVERITIES[item.outcome],
        line,
        f"<strong>Cause:</strong> {_words_of(sentence(item.cause))}",
        f"<strong>Cure:</strong> {_words_of(sentence(item.cure))}" if item.cure else "",
    )


def _table(table: Sequence[Sequence[str]]) -> str:
    if not table:
        return ""
    head, *rows = table
    return figures.table(tuple(head), [[_words_of(cell) for cell in row] for row in rows])


def _measures(measures: Mapping[str, float]) -> str:
    if not measures:
        return ""
    shown = "".join(
        f'<span class="rd-pair"><span class="rd-soft">{escape(_words(name))}</span> {escape(_number(name, value))}</span>'
        for name, value in measures.items()
    )
    return f'<div class="rd-pairs">{shown}</div>'


def _words(name: str) -> str:
    return name.removesuffix("_seconds").replace("_", " ")


def _number(name: str, value: float) -> str:
    return seconds(value) if name.endswith("_seconds") else f"{value:,.4g}"


# 5) while it runs


def progress(events: Sequence[Mapping[str, Any]]) -> tuple[float, str]:
    """(share done, what is being done) of a validation's events."""
    begun = next((event for event in reversed(events) if event.get("type") == "check_started"), None)
    if begun is None:
        return 0.0, "preparing"
    done = sum(event.get("type") == "check_finished" for event in events)
    return done / max(1, int(begun["of"])), f"{begun['number']} of {begun['of']}: {begun['code']} {begun['title']}"
