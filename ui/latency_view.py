"""What the page Latency says: the sentence on top, percentiles by stage, groups, outliers, what-if; as HTML and as CSV. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any
from urllib.parse import urlencode

from latency.percentiles import percentiles
from latency.percentiles.options import OPTIONS
from latency.percentiles.percentiles import (
    DONE,
    EVERY,
    PERCENTS,
    TOTAL,
    Change,
    Chosen,
    Group,
    Heat,
    Selection,
    StageLine,
    Summary,
    Trend,
)
from latency.percentiles.recent import Recent
from latency.percentiles.summary import Outlier, Pick, View
from latency.percentiles.what_if import Estimate, Prediction
from latency.types import Finding
from ui.figures import PARTS, table
from ui.format import absolute, escape, number, percent, plural, query_url, seconds, unknown_html
from ui.style import colour

DEFINITION = (
    "Percentiles by nearest rank: pN is the time of a query that exists, and links to it. All queries that match are counted; "
    "nothing is sampled."
)
NOT_CONTROLLED = "The groups may differ in more than this. To change one thing only, replay a query."
_OUTCOMES = {DONE: "ended", EVERY: "all", "no_documents": "no documents"}
_ORIGINS = {EVERY: "all", "ask": "the page Ask", "measure": "measured runs"}
_GONE = "no query ran it"
# the heads of the stage table that are percentiles, as they index Summary.rows
_LINKED = tuple(f"p{each}" for each in PERCENTS)


def outcome_words(outcome: str) -> str:
    return _OUTCOMES.get(outcome, outcome)


def origin_words(origin: str) -> str:
    return _ORIGINS.get(origin, f"traces of {origin[5:]}" if origin.startswith("otlp:") else origin)


def column_words(column: str) -> str:
    return "HyDE" if column == "hyde" else column


def title(column: str) -> str:
    """The column as the first word of a title."""
    return "Whole query" if column == TOTAL else "HyDE" if column == "hyde" else column.capitalize()


# ---------------------------------------------------------------------------------------------------------------- head


def sentence(lines: Sequence[StageLine], column: str, heat: Heat) -> str:
    """`p95 was 12.1 s over 84 queries; generate took 61 % of all time`; or of the stage that is looked at."""
    line = next(each for each in lines if each.stage == column)
    told, warm = line.of(heat), "" if heat == "all" else f"{heat} "
    if told is None:
        return f"No {warm}query matches" if column == TOTAL else f"{title(column)}: no {warm}run matches"
    if column != TOTAL:
        share = f"; it took {percent(line.share)} of all time" if heat == "all" else ""
        return f"{title(column)}: p95 was {seconds(told.p95)} over {plural(told.n, f'{warm}run')}{share}"
    first = percentiles.leading(tuple(lines))
    took = f"; {column_words(first.stage)} took {percent(first.share)} of all time" if first else ""
    return f"p95 was {seconds(told.p95)} over {plural(told.n, f'{warm}query', f'{warm}queries')}{took}"


def counted(chosen: Chosen, selection: Selection, span: str) -> str:
    """How many queries count, of how many, and why the others do not."""
    reasons = [
        (chosen.measured, plural(chosen.measured, "measured run")),
        (chosen.other_origin, f"{chosen.other_origin:,} of another origin"),
        (chosen.other_outcome, f"{chosen.other_outcome:,} {_unended(selection)}"),
        (chosen.other_value, f"{chosen.other_value:,} with another value"),
    ]
    out = ", ".join(words for count, words in reasons if count)
    when = "in all" if span == "all" else f"of the last {span}"
    left = f"; left out: {out}" if out else ""
    return f"{chosen.n:,} of {plural(chosen.within, 'query', 'queries')} {when}{left}"


def _unended(selection: Selection) -> str:
    return "that failed or were cancelled" if selection.outcome == DONE else "that ended otherwise"


# ------------------------------------------------------------------------------------------------------------ findings


def findings_title(found: Recent) -> str:
    """`Last hour: 3 causes in 574 queries`."""
    asked = plural(found.queries, "query", "queries")
    if not found.findings:
        return f"Last hour: nothing stands out in {asked}" if found.queries else "Last hour: no query"
    some = f", the slowest {found.looked_at:,} looked at" if found.looked_at < found.queries else ""
    return f"Last hour: {plural(len(found.findings), 'cause')} in {asked}{some}"


FINDING_CSV = (
    "code",
    "title",
    "stage",
    "cost_seconds",
    "saving_seconds",
    "share",
    "confidence",
    "queries",
    "change",
    "derivation",
)


def finding_rows(found: Sequence[Finding]) -> list[list[Any]]:
    return [
        [
            *(each.code, each.title, each.stage, each.cost_seconds, each.saving_seconds, each.share, each.confidence),
            *(len(each.query_ids), each.change, each.derivation),
        ]
        for each in found
    ]


# --------------------------------------------------------------------------------------------------------- stage table

STAGE_HEADS = ("Stage", "Share", "n", *_LINKED, "Longest", "Mean", "Made of", "Cold")


def stage_table(lines: Sequence[StageLine], heat: Heat, ids: Mapping[int, str]) -> str:
    """One row a stage, the total first; each percentile links to the query whose time it is."""
    rows = [_stage_row(line, heat, ids) for line in lines]
    return table(STAGE_HEADS, rows, numeric=(2, 3, 4, 5, 6, 7, 8))


def _stage_row(line: StageLine, heat: Heat, ids: Mapping[int, str]) -> list[str]:
    told = line.of(heat)
    name = _stage_name(line.stage)
    if told is None:
        why = f"no {heat} run" if heat != "all" else _GONE
        return [name, "", "0", *[unknown_html(why)] * 6, "", ""]
    values = (told.p50, told.p90, told.p95, told.p99, told.longest)
    cells = [_linked(value, ids.get(row)) for value, row in zip(values, told.rows, strict=True)]
    share = _bar(line.stage, line.share) if line.stage != TOTAL else ""
    return [name, share, f"{told.n:,}", *cells, seconds(told.mean), _made_of(line), _cold(line)]


def _stage_name(stage: str) -> str:
    if stage == TOTAL:
        return "<strong>total</strong>"
    return f'<span class="rd-nowrap"><span class="rd-swatch" style="{colour(stage)}"></span>{stage}</span>'


def _linked(value: float, query_id: str | None) -> str:
    text = seconds(value)
    return text if query_id is None else f'<a href="{query_url(query_id)}" title="{escape(f"query {query_id}")}">{text}</a>'


def _bar(stage: str, share: float | None) -> str:
    """A bar as wide as the stage's part of all time, and the part in words."""
    return (
        '<span class="rd-nowrap" style="display:inline-flex;gap:.5rem;align-items:center">'
        f"{_mini(stage, share or 0.0)}<span>{percent(share)}</span></span>"
    )


def _mini(name: str, ratio: float) -> str:
    """A bar in a stage's colour; left out on narrow screens."""
    width = min(100.0, max(0.0, ratio * 100))
    inner = f'<i style="{colour(name)};width:{width:.2f}%"></i>'
    return f'<span class="rd-wide"><span class="rd-mini" style="width:7rem;margin:0">{inner}</span></span>'


def _made_of(line: StageLine) -> str:
    """The mean split of a stage as a small bar, its numbers on hover."""
    known = [(part, line.parts.get(part, 0.0)) for part in PARTS if line.parts.get(part, 0.0) > 0]
    together = sum(spent for _, spent in known)
    if not together:
        return ""
    bars = "".join(f'<i class="{part}" style="width:{spent / together * 100:.2f}%"></i>' for part, spent in known)
    told = escape("means: " + ", ".join(f"{part} {seconds(spent)}" for part, spent in known))
    return f'<div class="rd-bar rd-split" style="{colour(line.stage)};min-width:4rem" title="{told}">{bars}</div>'


def _cold(line: StageLine) -> str:
    """How many were cold, and how long those took; the warm ones on hover."""
    if line.cold is None:
        return '<span class="rd-soft">none</span>'
    warm = f"warm: p50 {seconds(line.warm.p50)}, p95 {seconds(line.warm.p95)}, n {line.warm.n:,}" if line.warm else "none warm"
    told = f"cold: p50 {seconds(line.cold.p50)}, p95 {seconds(line.cold.p95)}, n {line.cold.n:,}\n{warm}"
    return f'<abbr class="rd-nowrap" title="{escape(told)}">{line.cold.n:,} · p50 {seconds(line.cold.p50)}</abbr>'


_SUMMARY_HEADS = ("n", *(f"p{each}_seconds" for each in PERCENTS), "longest_seconds", "mean_seconds", "sum_seconds")
STAGE_CSV = ("stage", "runs", "share", *_SUMMARY_HEADS)


def stage_rows(lines: Sequence[StageLine]) -> list[list[Any]]:
    """For CSV: every stage with all, warm and cold runs."""
    heats: tuple[Heat, ...] = ("all", "warm", "cold")
    return [
        [line.stage, heat, line.share if heat == "all" else None, *told[:8]]
        for line in lines
        for heat in heats
        if (told := line.of(heat)) is not None
    ]


# -------------------------------------------------------------------------------------------------------------- groups


def group_table(groups: Sequence[Group], option: str, column: str, ids: Mapping[int, str], url: Mapping[str, str]) -> str:
    """One row a value, most queries first; its name shows that value alone."""
    longest = max((group.summary.p95 for group in groups if group.summary), default=0.0)
    heads = (OPTIONS[option].title, "n", "", "p50", "p95", "Longest", "Mean", "p50 to first")
    rows = [_group_row(group, groups[0].summary, option, column, longest, ids, url) for group in groups]
    return table(heads, rows, numeric=(1, 3, 4, 5, 6, 7), wrap=(0,))


def _group_row(
    group: Group,
    first: Summary | None,
    option: str,
    column: str,
    longest: float,
    ids: Mapping[int, str],
    url: Mapping[str, str],
) -> list[str]:
    alone = page_url(url, by=OPTIONS[option].title, only=group.value)
    name = f'<a class="rd-plain" href="{escape(alone)}" title="look at these alone">{escape(group.value)}</a>'
    told = group.summary
    if told is None:
        why = f"{plural(group.queries, 'query', 'queries')}; {column_words(column)} ran in none of them so"
        return [name, "0", "", *[unknown_html(why)] * 4, ""]
    bar = _mini(column, told.p95 / longest if longest else 0.0)
    times = [_linked(value, ids.get(told.rows[at])) for value, at in ((told.p50, 0), (told.p95, 2), (told.longest, 4))]
    return [name, _of(told.n, group.queries), bar, *times, seconds(told.mean), _against(told, first)]


def _of(n: int, queries: int) -> str:
    return f"{n:,}" if n == queries else f'<abbr title="it ran in {n:,} of {queries:,} queries">{n:,}</abbr>'


def _against(told: Summary, first: Summary | None) -> str:
    if first is None or told is first or not first.p50:
        return ""
    return f"{(told.p50 / first.p50 - 1) * 100:+.0f} %".replace("-", "−")


GROUP_CSV = ("option", "value", "column", "queries", *_SUMMARY_HEADS)


def group_rows(groups: Sequence[Group], option: str, column: str) -> list[list[Any]]:
    return [[option, group.value, column, group.queries, *(group.summary[:8] if group.summary else ())] for group in groups]


def page_url(url: Mapping[str, str], **changes: str | None) -> str:
    """This page with these query parameters changed; None takes one away."""
    wanted = {**url, **changes}
    query = urlencode({key: value for key, value in wanted.items() if value is not None})
    return f"/latency?{query}" if query else "/latency"


# --------------------------------------------------------------------------------------------------- changes, outliers


def change_list(changes: Sequence[Change], zone: tzinfo) -> str:
    """The numbered lines of the trend in words."""
    if not changes:
        return ""
    lines = "".join(
        f'<div><span class="rd-number">{position}</span> {escape(OPTIONS[change.option].title)}: {escape(change.before)} → '
        f'{escape(change.after)} <span class="rd-soft">{moment(change.at, zone)}</span></div>'
        for position, change in enumerate(changes, 1)
    )
    return f'<div class="rd rd-small">{lines}</div>'


def moment(unix: float, zone: tzinfo) -> str:
    return absolute(datetime.fromtimestamp(unix, UTC), zone)


def outlier_table(found: Sequence[Outlier]) -> str:
    """What is beyond p99 of each column, the longest as links."""
    rows = [
        [
            _stage_name(each.column),
            seconds(each.p99),
            f"{each.n:,}",
            '<span class="rd-pairs">' + "".join(f"<span>{_linked(spent, key)}</span>" for key, spent in each.longest) + "</span>",
        ]
        for each in found
    ]
    return table(["", "p99", "Beyond it", "The longest"], rows, numeric=(1, 2), wrap=(3,))


OUTLIER_CSV = ("column", "query_id", "seconds")


# ------------------------------------------------------------------------------------------------------------- what if


def prediction_table(found: Prediction) -> str:
    """As it was, as it would have been, and the difference."""
    pairs = (("p50", found.before_p50, found.p50), ("p95", found.before_p95, found.p95))
    rows = [[name, _estimate(was), _estimate(would), _saved(was.value, would.value)] for name, was, would in pairs]
    rows.append(["mean", seconds(found.before_mean), seconds(found.mean), _saved(found.before_mean, found.mean)])
    return table([f"n {found.n:,}", "Measured", "Estimated", "Difference"], rows, numeric=(1, 2, 3))


def _estimate(found: Estimate) -> str:
    about = f'<div class="rd-soft rd-small">{seconds(found.low)} to {seconds(found.high)}</div>'
    return f"{seconds(found.value)}{about}"


def _saved(was: float, would: float) -> str:
    gap = would - was
    if not was or abs(gap) < 5e-7:
        return "none"
    sign = "+" if gap > 0 else "−"
    return f"{sign}{seconds(abs(gap))} ({sign}{number(abs(gap) / was * 100)} %)"


PREDICTION_CSV = ("percentile", "measured_seconds", "estimated_seconds", "low_seconds", "high_seconds", "n")


def prediction_rows(found: Prediction) -> list[list[Any]]:
    pairs = (("p50", found.before_p50, found.p50), ("p95", found.before_p95, found.p95))
    rows: list[list[Any]] = [[name, was.value, would.value, would.low, would.high, found.n] for name, was, would in pairs]
    return [*rows, ["mean", found.before_mean, found.mean, None, None, found.n]]


def seconds_from(unix: float, zone: tzinfo) -> float:
    """How far that zone is from UTC at that time, in seconds."""
    offset = datetime.fromtimestamp(unix, zone).utcoffset()
    return offset.total_seconds() if offset else 0.0


def assumptions(found: Prediction) -> str:
    """That it is an estimate, from what, and how to check it."""
    first = (
        f"An estimate from {found.n:,} stored queries with what is changed replaced, not a measurement: everything else is taken "
        "as it was. The ranges hold 95 % of resamples of as many queries. Check it by a replay."
    )
    lines = [first, *found.assumptions] if found.assumptions else ["Move a control: nothing is changed yet."]
    return '<div class="rd rd-soft rd-small">' + "".join(f"<div>{escape(line)}</div>" for line in lines) + "</div>"


# ---------------------------------------------------------------------------------------------------------------- lists


def list_title(count: int, shown: int, view: View, pick: Pick | None, zone: tzinfo) -> str:
    """`The 20 slowest of 84 queries`, of those in a bar where one was picked."""
    what = "slowest" if view.column == TOTAL else f"with the slowest {column_words(view.column)}"
    of = f"The {shown:,} {what} of {count:,} queries" if count > shown else f"{plural(count, 'query', 'queries')}, slowest first"
    if pick is None:
        return of
    if pick.kind == "time":
        return f"{of}, asked from {moment(pick.least, zone)} to {moment(pick.most, zone)}"
    return f"{of}, {column_words(view.column)} from {seconds(pick.least)} to {seconds(pick.most)}"


def window(view: View, found: Trend, now: float) -> tuple[float, float]:
    """From when to when a trend is drawn, in Unix seconds."""
    end = max(now, found.buckets[-1].start + found.step)
    return (end - view.length, end) if view.length else (found.buckets[0].start, end)
