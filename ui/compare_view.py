"""A comparison as HTML: two columns and the difference between them, biggest first; and as CSV. Pure; everything is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, tzinfo

from latency.comparing.agreement import Agreement, Rank
from latency.comparing.compare import Comparison, Row, Side
from latency.comparing.differences import MachineState, Other
from latency.comparing.words import share_text, signed
from latency.reports.comparison import measured
from latency.reports.values import metric_text
from rag.trace_rows import QueryRow
from rag.types import STAGES, Answer
from ui import cards, exports, figures
from ui.format import (
    UNKNOWN,
    absolute,
    count,
    escape,
    number,
    percent,
    plural,
    query_url,
    seconds,
    shortened,
    time_html,
    unknown_html,
    value_html,
)
from ui.style import colour

# Both waterfalls get the same columns, so that one time is at one place in both.
STYLE = """<style>
.rd-cmp .rd-wf { grid-template-columns: 4.6rem minmax(0, 1fr) 6rem; }
.rd-gap { position: relative; display: block; width: 9rem; height: 10px; margin-top: .3em; background: var(--faint);
  border-radius: 2px; cursor: help; }
.rd-gap::after { content: ""; position: absolute; left: 50%; top: -3px; bottom: -3px; border-left: 1px solid var(--line); }
.rd-gap i { position: absolute; top: 0; bottom: 0; background: var(--c); border-radius: 2px; }
.rd-cmp tr:has(+ tr.part) td { border-bottom-color: transparent; } .rd-cmp tr.part td { color: var(--soft); padding-top: 0; }
.rd-cmp tr.part td:first-child { padding-left: 1rem; }
.rd-cmp tr.sum td { font-weight: 600; } .rd-cmp td .rd-soft { font-weight: 400; }
.rd-cmp .rd-total { font-size: 1.6rem; font-weight: 600; letter-spacing: -.01em; margin-right: .6rem; }
.rd-cmp > :nth-child(n+2) + p.rd { margin-top: 1rem; }
@media (max-width: 640px) { .rd-gap { width: 4.5rem; } .rd-cmp .rd-wf { grid-template-columns: 3.9rem minmax(0, 1fr) 4.8rem; }
  .rd-cmp.stages :is(th, td):is(:nth-child(6), :nth-child(7), :nth-child(9)) { display: none; }
  .rd-cmp.sets :is(th, td):nth-child(5) { display: none; }
  .rd-cmp .rd-table td { padding-right: .5rem; }
  .rd-cmp .rd-total { font-size: 1.35rem; } .rd-cmp.else :is(th, td):first-child { display: none; }
  .rd-cmp.else td.wrap { min-width: 5rem; } }
</style>"""

_VERDICTS = {"faster": "ok", "slower": "warn", "no difference": "unknown", "too few": "unknown"}


# ---------------------------------------------------------------------------------------------------------- the two sides


def side_html(name: str, side: Side, label: str, answer: Answer | None, now: datetime, zone: tzinfo) -> str:
    """What a side is: its query, or how many, with the total."""
    if side.n == 1 and answer is not None:
        question = escape(shortened(answer.question, 200)) if answer.question.strip() else "question not kept"
        what = f'<a href="{query_url(answer.id)}">{question}</a>'
        outcome = cards.state_mark(*cards.outcome_words(answer))
    else:
        what = escape(label)
        outcome = f"median of {plural(side.n, 'query', 'queries')}"
    cold = f"{side.cold or 'none'} cold" if side.n > 1 else "cold" if side.cold else "warm"
    details = [outcome, cold, _p95(side), when(side, now, zone)]
    if side.left_out:
        details.append(f"{side.left_out:,} failed and left out")
    return (
        f'<div class="rd rd-cmp"><p class="rd-plain" dir="auto"><strong>{escape(name)}</strong> {what}</p>'
        f'<span class="rd-total">{seconds(side.median_seconds)}</span>'
        f'<span class="rd-soft">{" · ".join(text for text in details if text)}</span></div>'
    )


def _p95(side: Side) -> str:
    return "" if side.p95_seconds is None else f"p95 {seconds(side.p95_seconds)} · n {side.n:,}"


def when(side: Side, now: datetime, zone: tzinfo) -> str:
    first, last = (datetime.fromtimestamp(unix, UTC) for unix in (side.first_unix, side.last_unix))
    return time_html(last, now, zone) if first == last else f"{time_html(first, now, zone)} to {time_html(last, now, zone)}"


def summary_note(found: Comparison) -> str:
    """The sentence, and what it cannot show."""
    word = found.total.verdict.word
    severity = _VERDICTS[word] if not found.single else "unknown"
    return cards.note(severity, f"<strong>{escape(found.summary)}</strong>", escape(found.caution))


def how_html(found: Comparison) -> str:
    """How the numbers came about, below their table."""
    if found.single:
        return '<div class="rd rd-soft rd-small">Differences are B minus A. One run each has no interval.</div>'
    way = f"{plural(found.pairs, 'pair')} of the same question" if found.pairs is not None else "two sets of queries"
    p95 = ""
    if found.p95 is not None:
        p95 = f" p95: {signed(found.p95.difference)}, 99 % interval {signed(found.p95.low)} … {signed(found.p95.high)}."
    return (
        f'<div class="rd rd-soft rd-small">{escape(f"Medians of {way}; differences are B minus A.")} Shares are of what each '
        f"stage contributes in the middle half of the queries. Intervals are bootstrapped.{escape(p95)}</div>"
    )


# ------------------------------------------------------------------------------------------------------------- the stages


def stages_html(found: Comparison) -> str:
    """A row a stage, biggest contribution first, its parts below it, the total at the end."""
    widest = max((abs(row.contribution_seconds) for row in found.stages), default=0.0)
    heads = ["Stage", "A", "B", "Difference", "", "Share"]
    if not found.single:
        heads += ["99 % interval", "B is", "Ran A, B"]
    lines = [line for row in found.stages for line in _lines(row, found, widest)]
    lines += _lines(found.total, found, widest, kind="sum")
    head = "".join(f"<th{_right(place)}>{escape(text)}</th>" for place, text in enumerate(heads))
    return (
        f'<div class="rd rd-scroll rd-cmp stages{"" if found.single else " sets"}"><table class="rd-table"><thead><tr>'
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _right(place: int) -> str:
    return ' class="n"' if place in (1, 2, 3, 5) else ""


def _lines(row: Row, found: Comparison, widest: float, *, kind: str = "") -> list[str]:
    cells = [_name(row, kind), *_two_values(row, kind), signed(row.difference_seconds), "", _share(row)]
    cells[4] = "" if kind == "sum" else gap_html(row, widest)
    if not found.single:
        cells += [_interval(row), _verdict(row), f'<span class="rd-soft">{row.a_ran:,}, {row.b_ran:,}</span>']
    tags = "".join(f"<td{_right(place)}>{cell}</td>" for place, cell in enumerate(cells))
    line = f'<tr class="{kind}">{tags}</tr>' if kind else f"<tr>{tags}</tr>"
    return [line, *(text for part in row.parts for text in _lines(part, found, widest, kind="part"))]


def _name(row: Row, kind: str) -> str:
    if kind == "part":
        return escape(row.name)
    cold = [side for side, number_cold in (("A", row.a_cold), ("B", row.b_cold)) if number_cold] if row.name in STAGES else []
    told = f' <span class="rd-soft">cold in {" and ".join(cold)}</span>' if cold else ""
    swatch = f'<span class="rd-swatch" style="{colour(row.name)}"></span>' if row.name in STAGES else ""
    return f"{swatch}{escape(row.name)}{told}"


def _two_values(row: Row, kind: str) -> list[str]:
    why = "was not measured here" if kind == "part" else "was skipped, or not reached"
    return [value_html(seconds(value), f"{row.name} {why}") for value in (row.a_seconds, row.b_seconds)]


def _share(row: Row) -> str:
    if row.share is None:
        return unknown_html("the totals do not differ, so there is nothing to share")
    return share_text(row.share)


def _interval(row: Row) -> str:
    interval = row.verdict.interval
    if interval is None:
        return unknown_html(row.verdict.reason)
    runs = f"n {interval.n_a:,} and {interval.n_b:,}, which count as {number(interval.effective_n)} independent runs"
    told = f"{interval.statistic}; {runs}"
    return f'<span class="rd-nowrap" title="{escape(told)}">{signed(interval.low)} … {signed(interval.high)}</span>'


def _verdict(row: Row) -> str:
    least = f"{row.verdict.reason}; differences below {seconds(row.verdict.minimum_effect)} are not called"
    return cards.state_mark(_VERDICTS[row.verdict.word], row.verdict.word, least)


def gap_html(row: Row, widest: float) -> str:
    """A bar to the left where B took less, to the right where it took more."""
    value = row.contribution_seconds
    width = 50 * min(1.0, abs(value) / widest) if widest else 0.0
    left = 50 - width if value < 0 else 50.0
    word = "more" if value > 0 else "less"
    told = f"{row.name}: B took {seconds(abs(value))} {word}" if value else f"{row.name}: the same"
    return (
        f'<span class="rd-gap" style="{colour(row.name)}" title="{escape(told)}">'
        f'<i style="left:{left:.2f}%;width:{width:.2f}%"></i></span>'
    )


def waterfalls_html(a: Answer, b: Answer) -> str:
    """Both queries on one time axis."""
    axis = max(axis_seconds(a), axis_seconds(b))
    parts = []
    for name, answer in (("A", a), ("B", b)):
        bars = figures.bars_of(answer.timeline)
        picture = figures.waterfall(bars, axis, stages=answer.stages, first_token=answer.first_token_seconds)
        link = f'<a href="{query_url(answer.id)}">{escape(shortened(answer.question, 90) or answer.id)}</a>'
        parts.append(
            f'<p class="rd rd-plain" dir="auto"><strong>{name}</strong> {seconds(answer.total_seconds)} · {link}</p>{picture}'
        )
    return f'<div class="rd-cmp">{"".join(parts)}</div>'


def axis_seconds(answer: Answer) -> float:
    return max([answer.total_seconds, *(item.start + item.seconds for item in answer.timeline)])


# --------------------------------------------------------------------------------------------------------- what else


def others_html(others: Sequence[Other]) -> str:
    if not others:
        return cards.empty(
            "Nothing else differed", "of what is recorded: options, settings, models, versions, devices, cold starts."
        )
    rows = [[f'<span class="rd-soft">{each.kind}</span>', escape(each.name), _value(each.a), _value(each.b)] for each in others]
    return _narrowing(figures.table(["", "What", "A", "B"], rows, wrap=(1, 2, 3)))


def _narrowing(table: str) -> str:
    """A table that loses its first column on a narrow screen."""
    return f'<div class="rd-cmp else">{table}</div>'


def _value(text: str) -> str:
    return f'<span class="rd-plain" dir="auto">{escape(text)}</span>'


def machines_html(states: Iterable[MachineState]) -> str:
    rows = [
        [
            f'<span class="rd-soft">{escape(state.source)}</span>',
            escape(state.metric),
            *(value_html(metric_text(state.metric, value), "no readings of it") for value in (state.a, state.b)),
            '<span class="rd-soft">differs</span>' if state.notable else "",
        ]
        for state in states
    ]
    return _narrowing(figures.table(["Machine", "Mean while it ran", "A", "B", ""], rows, numeric=(2, 3), wrap=(1,)))


def measures_html(found: Comparison) -> str:
    rows = [
        [
            escape(each.name),
            *(value_html(measured(each, value), "was not measured") for value in (each.a, each.b)),
            f'<span class="rd-soft">{each.n_a:,}, {each.n_b:,}</span>',
        ]
        for each in found.measures
    ]
    return figures.table(["Median of" if not found.single else "", "A", "B", "n A, B"], rows, numeric=(1, 2, 3), wrap=(0,))


# ------------------------------------------------------------------------------------------------------------- results


def agreement_html(alike: Agreement | None) -> str:
    """How alike the passages and answers are, in numbers."""
    if alike is None:
        return cards.empty(
            "The results cannot be compared.", "The sides asked different questions, or one of them found no passages."
        )
    pairs = f"n {plural(alike.compared, 'pair')}"
    same = f"{count(alike.same_answers)} of {count(alike.answers_compared)}" if alike.answers_compared else UNKNOWN
    facts = [
        ("kept by both", percent(alike.overlap), "passages that both kept, of those that either kept"),
        (
            "rank-biased overlap",
            number(alike.rbo),
            "1 is the same list, 0 nothing in common; the first ranks weigh most (p = 0.9)",
        ),
        ("Kendall's tau", number(alike.tau), "order of the passages that both found: 1 the same, −1 reversed"),
        ("same passages, same order", f"{count(alike.same_kept)} of {count(alike.compared)}", "of the kept passages"),
        ("same answer", same, "the same text, where both texts were kept"),
    ]
    parts = "".join(
        f'<span class="rd-pair" title="{escape(why)}"><span class="rd-soft">{escape(name)}</span> {escape(value)}</span>'
        for name, value, why in facts
    )
    return f'<div class="rd rd-pairs">{parts}<span class="rd-soft">{pairs}</span></div>'


def notable_first(ranks: Sequence[Rank]) -> tuple[list[Rank], list[Rank]]:
    """(passages that either side kept, then those that both found at different ranks; the rest)."""
    kept = [each for each in ranks if each.a_kept or each.b_kept]
    others = [each for each in ranks if not (each.a_kept or each.b_kept)]
    moved = [each for each in others if each.a is not None and each.b is not None and each.a != each.b]
    return kept + moved, [each for each in others if each not in moved]


def ranks_html(ranks: Iterable[Rank]) -> str:
    """Each passage's rank on both sides; those that the language model saw in bold."""
    rows = []
    for each in ranks:
        place = " · ".join(text for text in (each.source, each.location) if text)
        title = (
            f'<span class="rd-plain" dir="auto" title="{escape(place)}">{escape(shortened(each.title or each.source, 90))}</span>'
        )
        rows.append([title, _rank(each.a, each.a_kept), _rank(each.b, each.b_kept), _move(each.a, each.b)])
    return figures.table(["Passage", "A", "B", "Moved"], rows, numeric=(1, 2, 3), wrap=(0,))


def _rank(rank: int | None, kept: bool) -> str:
    if rank is None:
        return unknown_html("not among the candidates")
    return f'<strong title="kept">{rank}</strong>' if kept else f'<span class="rd-soft">{rank}</span>'


def _move(a: int | None, b: int | None) -> str:
    if a is None or b is None:
        return f'<span class="rd-soft">{"new" if a is None else "gone"}</span>'
    return "" if a == b else f"{'▲' if b < a else '▼'} {abs(a - b)}"


# ------------------------------------------------------------------------------------------------------------- pickers


def option_text(row: QueryRow, zone: tzinfo) -> str:
    """A stored query in a list to choose from."""
    question = shortened(row.question, 70) if row.content and row.question.strip() else row.id[:12]
    asked = absolute(datetime.fromtimestamp(row.started_at, UTC), zone)
    return f"{question} · {seconds(row.total_seconds)} · {asked}"


# ---------------------------------------------------------------------------------------------------------------- files


def comparison_csv(found: Comparison) -> bytes:
    """A row a stage and a part, seconds unrounded."""
    heads = ["stage", "part", "a_seconds", "b_seconds", "difference_seconds", "contribution_seconds", "share"]
    heads += [
        "interval_low_seconds",
        "interval_high_seconds",
        "confidence",
        "verdict",
        "a_n",
        "b_n",
        "a_ran",
        "b_ran",
        "a_cold",
        "b_cold",
    ]
    rows = []
    for row in (found.total, *found.stages):
        rows.append(_csv_row(row.name, "", row, found))
        rows += [_csv_row(row.name, part.name, part, found) for part in row.parts]
    return exports.to_csv(heads, rows)


def _csv_row(stage: str, part: str, row: Row, found: Comparison) -> list[object]:
    interval = row.verdict.interval
    ends = (interval.low, interval.high, interval.confidence) if interval else (None, None, None)
    return [
        *(stage, part, row.a_seconds, row.b_seconds, row.difference_seconds, row.contribution_seconds, row.share),
        *(*ends, row.verdict.word, found.a.n, found.b.n, row.a_ran, row.b_ran, row.a_cold, row.b_cold),
    ]
