"""The report of a comparison: `latency.comparing.compare` in tables, and the two typical queries on one time axis. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from latency.comparing.compare import Comparison, Row, Side
from latency.comparing.differences import Measure
from latency.comparing.words import interval_text, share_text, signed
from latency.findings.words import figure, percent, seconds
from latency.reports.blocks import Block, Heading, Report, Table, Text
from latency.reports.query import MOST_SERIES, waterfall
from latency.reports.values import NO_CONTENT, UNKNOWN, metric_text, number, pairs_table, time_text
from rag.types import Answer


def comparison_report(
    found: Comparison,
    typical: tuple[Answer, Answer] | None = None,
    *,
    names: tuple[str, str] = ("A", "B"),
    content: bool = True,
) -> Report:
    """Of a comparison. `typical` are the queries whose waterfalls are shown, `names` what the sides are called."""
    blocks: list[Block] = [Text(found.summary)]
    if found.caution:
        blocks.append(Text(found.caution, "warn"))
    blocks += [_sides(found, names), Heading("Stage by stage"), _comparison_table(found)]
    blocks.append(Text(_how(found), "soft"))
    if typical:
        blocks += _waterfalls(typical)
    blocks += [*_others(found, content), *_measures(found.measures), *_agreement(found, content)]
    if not content:
        blocks.append(Text(NO_CONTENT, "soft"))
    return Report("Two queries compared" if found.single else "Two sets of queries compared", tuple(blocks))


def _sides(found: Comparison, names: tuple[str, str]) -> Table:
    rows = [("", "A", "B"), *([("is", *names)] if names != ("A", "B") else [])]
    for label, told in _SIDE_ROWS:
        rows.append((label, told(found.a), told(found.b)))
    if found.single:
        rows.append(("query", found.a.ids[0], found.b.ids[0]))
    return Table((), tuple(rows))


_SIDE_ROWS: tuple[tuple[str, Callable[[Side], str]], ...] = (
    ("queries", lambda side: number(side.n)),
    ("median of the total", lambda side: seconds(side.median_seconds)),
    ("p95 of the total", lambda side: f"{seconds(side.p95_seconds)}, n {side.n:,}" if side.p95_seconds is not None else UNKNOWN),
    ("cold", lambda side: number(side.cold)),
    ("failed, left out", lambda side: number(side.left_out)),
    ("asked", lambda side: _times(side)),
)


def _times(side: Side) -> str:
    first, last = (time_text(unix) for unix in (side.first_unix, side.last_unix))
    return first if first == last else f"{first} to {last}"


def _comparison_table(found: Comparison) -> Table:
    rows = [row for stage in (found.total, *found.stages) for row in _comparison_rows(stage)]
    heads = ("Stage", "A", "B", "Difference", "Share", "Contributes", "99 % interval", "B is", "Ran A, B", "Cold A, B")
    shown = 5 if found.single else len(heads)
    return Table(heads[:shown], tuple(row[:shown] for row in rows), frozenset(range(1, 7)))


def _comparison_rows(row: Row, indent: str = "") -> Iterator[tuple[str, ...]]:
    interval = row.verdict.interval
    yield (
        f"{indent}{row.name}",
        seconds(row.a_seconds),
        seconds(row.b_seconds),
        signed(row.difference_seconds),
        UNKNOWN if row.share is None else share_text(row.share),
        signed(row.contribution_seconds),
        f"{signed(interval.low)} to {signed(interval.high)}" if interval else UNKNOWN,
        row.verdict.word,
        f"{row.a_ran:,}, {row.b_ran:,}",
        f"{row.a_cold:,}, {row.b_cold:,}",
    )
    for part in row.parts:
        yield from _comparison_rows(part, "– ")


def _how(found: Comparison) -> str:
    if found.single:
        return "A difference is B minus A. One run each has no interval and no verdict."
    way = "in pairs of the same question" if found.pairs is not None else "as two sets"
    return (
        f"A difference is B minus A, compared {way} ({interval_text(found)}). A difference is called when the 99 % bootstrap "
        "interval excludes none and the difference is large enough to matter. What a stage contributes is of the queries in the "
        "middle half; contributions add up, medians do not."
    )


def _waterfalls(typical: tuple[Answer, Answer]) -> list[Block]:
    axis = max(waterfall(answer).seconds for answer in typical)
    found: list[Block] = [Heading("A typical query of each side, on one time axis")]
    for name, answer in zip("AB", typical, strict=True):
        found += [Text(f"{name}: {answer.id}, {seconds(answer.total_seconds)}", "soft"), waterfall(answer, axis)]
    return found


def _others(found: Comparison, content: bool) -> Iterator[Block]:
    yield Heading("What else differed")
    rows = tuple((each.kind, each.name, each.a, each.b) for each in found.others if content or each.name != "question")
    if rows:
        yield Table(("", "What", "A", "B"), rows)
    else:
        yield Text("Nothing else that is recorded: options, settings, models, versions, devices, cold starts.")
    if found.machines:
        machines = tuple(
            (
                state.source,
                state.metric,
                metric_text(state.metric, state.a),
                metric_text(state.metric, state.b),
                "differs" if state.notable else "",
            )
            for state in found.machines[:MOST_SERIES]
        )
        yield Table(("Machine", "Mean while the queries ran", "A", "B", ""), machines, frozenset({2, 3}))
    else:
        yield Text("No readings of machines were kept with these queries.", "soft")


def _measures(measures: Sequence[Measure]) -> Iterator[Block]:
    if measures:
        yield Heading("Tokens, first token, work")
        rows = tuple(
            (each.name, measured(each, each.a), measured(each, each.b), f"{each.n_a:,}, {each.n_b:,}") for each in measures
        )
        yield Table(("Median of", "A", "B", "n A, B"), rows, frozenset({1, 2, 3}))


def measured(measure: Measure, value: float | None) -> str:
    """A measure's value with its unit."""
    if value is None:
        return UNKNOWN
    if measure.unit == "s":
        return seconds(value)
    return f"{value:,.0f} {measure.unit}" if value == int(value) else f"{figure(value)} {measure.unit}"


def _agreement(found: Comparison, content: bool) -> Iterator[Block]:
    yield Heading("Passages and answers")
    alike = found.agreement
    if alike is None:
        yield Text("The sides asked different questions, or found no passages: their results cannot be compared.", "soft")
        return
    yield pairs_table(
        {
            "Pairs compared": alike.compared,
            "Kept by both": UNKNOWN if alike.overlap is None else percent(alike.overlap),
            "Rank-biased overlap (p 0.9)": UNKNOWN if alike.rbo is None else figure(alike.rbo),
            "Kendall's tau of common passages": UNKNOWN if alike.tau is None else figure(alike.tau),
            "Same passages in the same order": f"{alike.same_kept} of {alike.compared}",
            "Same answer": f"{alike.same_answers} of {alike.answers_compared}",
        }
    )
    if alike.ranks:
        rows = tuple(
            (
                each.title if content else each.passage_id,
                each.source if content else "",
                _kept(each.a, each.a_kept),
                _kept(each.b, each.b_kept),
            )
            for each in alike.ranks
        )
        yield Table(("Passage", "Source", "Rank in A", "Rank in B"), rows, frozenset({2, 3}))


def _kept(rank: int | None, kept: bool) -> str:
    return number(rank) + (" kept" if kept else "")
