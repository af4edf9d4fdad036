"""The report of one query: what happened, where the time went, what stands out, what the machines did. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from latency.findings.words import count, figure, percent, seconds
from latency.reports.blocks import Bars, Block, Heading, Piece, Quote, Report, Table, Text
from latency.reports.values import NO_CONTENT, PARTS, UNKNOWN, flattened, metric_text, number, pairs_table
from latency.types import Case, Finding, QueryReadings
from rag.types import ROUTES, STAGES, Answer, Interval, Passage, Stage

MOST_PASSAGES = 60
MOST_SERIES = 80


def query_report(case: Case, findings: Sequence[Finding] | None = None, *, content: bool = True) -> Report:
    """Of one query. `findings` None leaves their section out; () says that nothing stands out."""
    answer = case.answer
    title = answer.question if content and answer.question else f"Query {answer.id}"
    blocks = [
        _head(answer),
        *_problem(answer, content),
        Heading("Where the time went"),
        waterfall(answer),
        _stage_table(answer),
        *(() if findings is None else _findings(findings)),
        *_readings(case.readings),
        *(_answer(answer) if content else [Text(NO_CONTENT, "soft")]),
        *_passages(answer, content),
        Heading("Options and versions"),
        pairs_table({**_options(answer), **flattened(answer.fingerprint)}),
    ]
    return Report(title, tuple(blocks))


def _head(answer: Answer) -> Table:
    tokens = answer.tokens
    rate = UNKNOWN if tokens.per_second is None else f"{figure(tokens.per_second)} tokens/s"
    return pairs_table(
        {
            "Query": answer.id,
            "Asked at": answer.started_at,
            "Asked by": answer.origin,
            "Outcome": answer.outcome.replace("_", " "),
            "Total": seconds(answer.total_seconds),
            "First token": f"{seconds(answer.first_token_seconds)} after the question, "
            f"{seconds(answer.ttft_seconds)} after the request to the model",
            "Tokens": f"prompt {number(tokens.prompt)}, answer {number(tokens.completion)}, {rate}",
            "Cold": ", ".join(stage.stage for stage in answer.stages if stage.cold) or "none",
        }
    )


def _problem(answer: Answer, content: bool) -> Iterator[Block]:
    if answer.error is not None:
        told = f": {answer.error.message}" if content else ""
        yield Text(f"Failed in {answer.error.stage or 'the query'} ({answer.error.kind}){told}", "critical")
        if answer.error.next_step:
            yield Text(f"Next: {answer.error.next_step}")
    for stage in answer.stages:
        if stage.degraded:
            yield Text(f"{stage.stage}: {stage.degraded if content else 'degraded'}", "warn")


def waterfall(answer: Answer, axis_seconds: float | None = None) -> Bars:
    """The query's spans; on an axis of `axis_seconds`, so that two can be compared."""
    ends = [item.start + item.seconds for item in answer.timeline]
    span = max([answer.total_seconds, *ends, axis_seconds or 0.0])
    names = [*STAGES, *sorted({item.stage for item in answer.timeline} - set(STAGES))]
    rows = []
    for name in names:
        spans = [item for item in answer.timeline if item.stage == name]
        pieces = tuple(piece for item in spans for piece in _pieces(item))
        rows.append((name, pieces, seconds(sum(item.seconds for item in spans)) if spans else UNKNOWN))
    return Bars(tuple(rows), span, seconds(span))


def _pieces(item: Interval) -> Iterator[Piece]:
    at = item.start
    known = [(part, getattr(item.split, part) or 0.0) for part in PARTS]
    if not any(value for _, value in known):
        known = [("compute", item.seconds)]
    for part, value in known:
        if value > 0:
            yield Piece(item.stage, at, value, part, f"{item.stage} {item.label}: {part} {seconds(value)}")
            at += value


def _stage_table(answer: Answer) -> Table:
    rows = [_stage_row(stage, answer.total_seconds) for stage in answer.stages]
    between = answer.total_seconds - sum(stage.seconds for stage in answer.stages)
    rows.append(("between stages", seconds(max(0.0, between)), _share(between, answer.total_seconds), *[""] * 7))
    heads = ("Stage", "Total", "Share", "Load", "Queue", "Network", "Tokenize", "Compute", "Other", "About")
    return Table(heads, tuple(rows), frozenset(range(1, 9)))


def _stage_row(stage: Stage, total: float) -> tuple[str, ...]:
    if not (stage.spans or stage.seconds):
        return (stage.stage, UNKNOWN, *[""] * 7, stage.skipped or stage.reason or "did not run")
    about = [stage.model, stage.device, stage.where, "cold" if stage.cold else None, stage.reason]
    split = [seconds(getattr(stage.split, part)) for part in PARTS]
    named = " · ".join(text for text in about if text)
    return (stage.stage, seconds(stage.seconds), _share(stage.seconds, total), *split, named)


def _share(part: float, total: float) -> str:
    return percent(max(0.0, part) / total) if total else UNKNOWN


def _findings(findings: Sequence[Finding]) -> Iterator[Block]:
    yield Heading("Findings")
    if not findings:
        yield Text("Nothing stands out.")
    for place, each in enumerate(findings, 1):
        yield Heading(f"{place}. {each.title}", 3)
        saving = "unknown" if each.saving_seconds is None else seconds(each.saving_seconds)
        yield Text(f"Cost {seconds(each.cost_seconds)}; expected saving {saving}. {each.derivation} ({each.confidence})", "soft")
        yield Text(f"What to change: {each.change}")
        if each.evidence:
            yield Table(("Evidence", "From"), tuple((item.text, item.source) for item in each.evidence))


def _readings(readings: QueryReadings | None) -> Iterator[Block]:
    yield Heading("Machines and services meanwhile")
    if readings is None or not (readings.series or readings.facts or readings.uses):
        yield Text("No readings were kept with this query.", "soft")
    else:
        rows = []
        for series in readings.series[:MOST_SERIES]:
            found = series.within(0.0, readings.seconds)
            if found:
                values = (min(found), sum(found) / len(found), max(found))
                rows.append(
                    (series.source, series.metric, *(metric_text(series.metric, value) for value in values), str(len(found)))
                )
        yield Table(("Machine", "Metric", "Lowest", "Mean", "Highest", "n"), tuple(rows), frozenset({2, 3, 4, 5}))
        facts = tuple((fact.source, fact.name, fact.value) for fact in readings.facts)
        foreign = tuple(
            (use.source, "another process", _use(use.name, use.gpu, use.cpu_ratio)) for use in readings.uses if not use.ours
        )
        if facts or foreign:
            yield Table(("Machine", "What", "Was"), facts + foreign)
    for note in readings.notes if readings else ():
        yield Text(note, "soft")


def _use(name: str, gpu: int | None, cpu_ratio: float | None) -> str:
    where = "" if gpu is None else f" on GPU {gpu}"
    return f"{name}{where}" + ("" if cpu_ratio is None else f", {figure(cpu_ratio)} cores")


def _answer(answer: Answer) -> Iterator[Block]:
    yield Heading("Answer")
    yield Quote(answer.answer) if answer.answer else Text("There is no answer, or its text was not kept.", "soft")
    if answer.citations:
        rows = tuple((f"[{item.number}]", item.title, item.source, item.location or "") for item in answer.citations)
        yield Table(("", "Title", "Source", "Where"), rows)


def _passages(answer: Answer, content: bool) -> Iterator[Block]:
    yield Heading("Passages and their ranks")
    routes = [route for route in ROUTES if any(route in passage.ranks for passage in answer.passages)]
    rows = tuple(_passage_row(passage, routes, content) for passage in answer.passages[:MOST_PASSAGES])
    if not rows:
        yield Text("The query ended before the search, or nothing was found.", "soft")
        return
    named = ("Title", "Source") if content else ("Passage",)
    numeric = frozenset(range(len(named) + 1, len(named) + 1 + len(routes)))
    yield Table((*named, "Kept", *(f"{route} rank" for route in routes)), rows, numeric)
    if len(answer.passages) > MOST_PASSAGES:
        yield Text(f"The first {MOST_PASSAGES} of {count(len(answer.passages), 'passage')}.", "soft")


def _passage_row(passage: Passage, routes: Sequence[str], content: bool) -> tuple[str, ...]:
    place = " · ".join(text for text in (passage.source, passage.location) if text)
    named = (passage.title, place) if content else (passage.id,)
    return (*named, "kept" if passage.kept else "", *(number(passage.ranks.get(route)) for route in routes))


def _options(answer: Answer) -> dict[str, Any]:
    return {name.replace("_", " "): getattr(answer.options, name) for name in answer.options.__dataclass_fields__}
