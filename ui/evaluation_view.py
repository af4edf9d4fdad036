"""Question sets, runs and comparisons of the page Evaluation as HTML. Pure; everything that people typed is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any
from urllib.parse import urlencode

from rag.evaluation.summary import TIMED
from rag.evaluation.types import METRICS, STAGES, Item, Measured, Question, QuestionSet, Run, SetInfo
from ui import cards, figures
from ui.format import count, escape, plural, seconds, shortened, time_html, unknown_html, value_html
from ui.style import colour

METRIC_WORDS: Mapping[str, str] = {
    "ndcg@10": "nDCG@10",
    "recall@10": "Recall@10",
    "recall@100": "Recall@100",
    "mrr@10": "MRR@10",
    "hit@keep": "Hit@keep",
}
METRIC_HELP = (
    "nDCG@10: how well the first ten are ordered, 1 is ideal. Recall@10 and @100: share of the relevant documents among the "
    "first ten, and among all candidates, 100 at most. MRR@10: one over the rank of the first relevant one. Hit@keep: share of "
    "questions with a relevant passage among those an answer is written from."
)
STAGE_HELP: Mapping[str, str] = {
    "dense": "by vector alone",
    "sparse": "by words alone",
    "fused": "both, by reciprocal rank fusion",
    "rerank": "the fused candidates in the reranker's order",
}
_STATES = {"finished": "ok", "running": "warn", "failed": "critical"}
_ENVIRONMENT: Mapping[str, str] = {
    "embedder": "Embedder",
    "embedder_identity": "Embedder, exactly",
    "reranker": "Reranker",
    "reranker_identity": "Reranker, exactly",
    "hyde_model": "HyDE's model",
    "collection": "Collection",
    "content": "Content of the collection",
    "documents": "Documents",
    "passages": "Passages",
    "chunk_tokens": "Longest passage, tokens",
    "overlap_tokens": "Shared by neighbours, tokens",
    "settings": "Settings",
    "version": "RAG Deck",
}
_WHY_UNKNOWN = "not recorded, or not used by this run"


def url(**query: Any) -> str:
    """This page with those parameters."""
    chosen = {key: value for key, value in query.items() if value is not None}
    return f"/evaluation?{urlencode(chosen)}" if chosen else "/evaluation"


def inspect_url(question: str) -> str:
    return f"/knowledge?{urlencode({'view': 'inspect', 'question': question})}"


def ask_url(question: str) -> str:
    return f"/?{urlencode({'q': question})}"


def metric_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _when(unix: float, now: datetime, zone: tzinfo) -> str:
    return time_html(datetime.fromtimestamp(unix, UTC), now, zone)


# ----------------------------------------------------------------------------------------------------------------- sets


def sets_table(sets: Sequence[SetInfo], newest: Mapping[str, Run], now: datetime, zone: tzinfo) -> str:
    """`newest` is the last run with results of a set, by set id."""
    rows = [
        [
            f'<a class="rd-plain" dir="auto" href="{escape(url(set=each.id))}">{escape(each.name)}</a>',
            f"{each.version}",
            count(each.questions),
            count(each.runs),
            _last(newest.get(each.id)),
            f'<span class="rd-soft">{escape(each.origin)}</span>',
            _when(each.created_at_unix, now, zone),
        ]
        for each in sets
    ]
    heads = ["Set", "Version", "Questions", "Runs", "nDCG@10, last run", "From", "Made"]
    return f'<div class="rd-evalsets">{figures.table(heads, rows, numeric=(1, 2, 3, 4), wrap=(0, 5))}</div>'


def _last(run: Run | None) -> str:
    if run is None or run.summary is None:
        return unknown_html("it has not been run yet")
    stage = last_stage(run)
    value = metric_text(run.summary["stages"][stage]["ndcg@10"]["mean"])
    return f'<a href="{escape(url(run=run.id))}" title="{escape(stage)}, {escape(run.setting.words)}">{value}</a>'


def set_line(known: QuestionSet, now: datetime, zone: tzinfo) -> str:
    info = known.info
    judged = [each for question in known.questions for each in question.judgements]
    relevant = sum(each.grade > 0 for each in judged)
    frozen = "a run has used it: editing makes the next version" if info.runs else "not run yet"
    parts = [
        escape(f"version {info.version}"),
        escape(plural(info.questions, "question")),
        escape(f"{plural(len(judged), 'judgement')}, {relevant:,} of them relevant"),
        escape(info.origin),
        _when(info.created_at_unix, now, zone),
        escape(frozen),
    ]
    return f'<div class="rd rd-soft">{" · ".join(parts)}</div>'


def questions_table(questions: Iterable[Question]) -> str:
    rows = [
        [
            f'<span class="rd-plain" dir="auto">{escape(shortened(each.text, 300))}</span>',
            "<br>".join(
                f'<span class="rd-plain" dir="auto">{escape(judged.name)}</span> <span class="rd-soft">{judged.grade}</span>'
                for judged in sorted(each.judgements, key=lambda judged: -judged.grade)
            ),
            tries(each.text),
        ]
        for each in questions
    ]
    return figures.table(["Question", "Judged documents, with grade", ""], rows, wrap=(0, 1))


def tries(question: str) -> str:
    return (
        f'<span class="rd-nowrap"><a href="{escape(inspect_url(question))}" title="what each stage retrieves">Inspect</a> · '
        f'<a href="{escape(ask_url(question))}" title="fills the form on the page Ask">Ask</a></span>'
    )


def faults(lines: Sequence[str], most: int = 20) -> str:
    """Lines of an upload that are left out."""
    shown = [escape(line) for line in lines[:most]]
    more = [f"and {len(lines) - most:,} more"] if len(lines) > most else []
    return cards.note("warn", f"<strong>{plural(len(lines), 'place')} cannot be used:</strong>", *shown, *more)


def unknown_note(sources: Sequence[str], of: str, most: int = 8) -> str:
    """Judged documents that the collection does not hold."""
    named = ", ".join(shortened(each, 80) for each in sources[:most]) + (" …" if len(sources) > most else "")
    return cards.note(
        "warn",
        f"<strong>{plural(len(sources), 'relevant document')} of this set {'is' if len(sources) == 1 else 'are'} not in the "
        f"collection {escape(of)}</strong> and will count as not found.",
        escape(named),
    )


# ----------------------------------------------------------------------------------------------------------------- runs


def last_stage(run: Run) -> str:
    """The stage whose order an answer is written from."""
    stages = run.summary["stages"] if run.summary else {}
    return next((stage for stage in reversed(STAGES) if stage in stages), "fused")


def state_mark(run: Run) -> str:
    return cards.state_mark(_STATES.get(run.state, "unknown"), run.state, run.error or "")


def runs_table(runs: Sequence[Run], metric: str, now: datetime, zone: tzinfo, *, named: bool = False) -> str:
    """One row a run, one column a stage, of one metric; `named` with its set."""
    rows = [
        [
            f'<a class="rd-nowrap" href="{escape(url(run=each.id))}">{_when(each.started_at_unix, now, zone)}</a>',
            f'{_set_name(each) if named else ""}<span class="rd-plain">{escape(each.setting.words)}</span>',
            f"{each.set_version}",
            *(_cell(each, stage, metric) for stage in STAGES),
            value_html(count(each.measured) if each.measured else "–", "nothing was measured"),
            value_html(seconds(each.seconds), "it has not ended, or ended with its process"),
            state_mark(each),
        ]
        for each in runs
    ]
    heads = ["Started", "Setting", "Version", *(stage.capitalize() for stage in STAGES), "n", "Took", "State"]
    return f'<div class="rd-evalruns">{figures.table(heads, rows, numeric=range(2, 9), wrap=(1,))}</div>'


def _set_name(run: Run) -> str:
    return f'<a class="rd-plain" dir="auto" href="{escape(url(set=run.set_id))}">{escape(run.set_name)}</a><br>'


def _cell(run: Run, stage: str, metric: str) -> str:
    if run.summary is None:
        return unknown_html(run.error or "nothing was measured yet")
    found = run.summary["stages"].get(stage)
    if found is None:
        return unknown_html("this setting does not rerank")
    cell = found[metric]
    hover = _interval_words(cell)
    value = metric_text(cell["mean"])
    strong = f"<strong>{value}</strong>" if stage == last_stage(run) else value
    return f'<span title="{escape(f"{METRIC_WORDS[metric]} of {stage}, {hover}")}">{strong}</span>'


def _interval_words(cell: Mapping[str, Any]) -> str:
    if cell["low"] is None:
        return f"n {cell['n']:,}, too few questions for an interval"
    return f"95 % interval {metric_text(cell['low'])} to {metric_text(cell['high'])}, n {cell['n']:,}"


def stages_table(run: Run) -> str:
    """Stages by metrics of one run, each with its interval below."""
    if run.summary is None:
        return cards.empty("Nothing was measured.", run.error or "Start the set again.")
    rows = []
    for stage, found in run.summary["stages"].items():
        swatch = f'<span class="rd-swatch" style="{colour("rerank" if stage == "rerank" else "search")}"></span>'
        name = f'{swatch}{escape(stage)}<div class="rd-soft rd-small">{escape(STAGE_HELP[stage])}</div>'
        rows.append([name, *(_with_interval(found[metric]) for metric in METRICS)])
    table = figures.table(["Stage", *(METRIC_WORDS[metric] for metric in METRICS)], rows, numeric=range(1, 6))
    return f'{table}<div class="rd rd-soft rd-small">{plural(run.measured, "question")}; below each mean its 95 % interval.</div>'


def _with_interval(cell: Mapping[str, Any]) -> str:
    below = unknown_html(_interval_words(cell)) if cell["low"] is None else f"{cell['low']:.3f} – {cell['high']:.3f}"
    return f'{metric_text(cell["mean"])}<div class="rd-soft rd-small">{below}</div>'


def times_table(run: Run) -> str:
    """Seconds a question by stage of the path."""
    spent = run.summary["seconds"] if run.summary else {}
    rows = [
        [
            f'<span class="rd-swatch" style="{colour(stage)}"></span>{escape(stage)}',
            seconds(spent[stage]["mean"]),
            seconds(spent[stage]["p50"]),
            count(spent[stage]["n"]),
        ]
        for stage in TIMED
        if stage in spent
    ]
    return figures.table(["Stage", "Mean", "p50", "n"], rows, numeric=(1, 2, 3))


def notes(run: Run) -> str:
    """What has to be known before the numbers are read; empty when there is nothing."""
    told = run.summary or {}
    lines = []
    if run.error:
        lines.append(escape(run.error))
    if told and told["questions"] < told["of"]:
        lines.append(f"{told['questions']:,} of {plural(told['of'], 'question')} were measured.")
    if told.get("missing_questions"):
        lines.append(
            f"{plural(told['missing_questions'], 'question')} judge {plural(told['missing_judgements'], 'document')} as relevant "
            "that the collection did not hold; they counted as not found."
        )
    if told.get("degraded"):
        reasons = "; ".join(told["degraded_reasons"])
        lines.append(f"{plural(told['degraded'], 'question')} ran with less than was asked for: {escape(reasons)}")
    return cards.note("critical" if run.state == "failed" else "warn", *lines) if lines else ""


def head(run: Run, now: datetime, zone: tzinfo) -> str:
    parts = [
        f'<a href="{escape(url(set=run.set_id, version=run.set_version))}">{escape(run.set_name)}</a>, version {run.set_version}',
        escape(run.setting.words),
        _when(run.started_at_unix, now, zone),
        state_mark(run),
        f"took {seconds(run.seconds)}" if run.seconds is not None else "",
    ]
    return f'<div class="rd rd-soft">{" · ".join(part for part in parts if part)}</div>'


def environment_table(run: Run, other: Run | None = None) -> str:
    """What the numbers depend on; beside another run only what differs."""
    sides = [run, *([other] if other else [])]
    keys = [*_ENVIRONMENT, *sorted({key for side in sides for key in side.environment} - _ENVIRONMENT.keys())]
    rows = []
    for key in keys:
        values = [side.environment.get(key) for side in sides]
        if all(value is None for value in values) or (other is not None and values[0] == values[1]):
            continue
        rows.append([escape(_ENVIRONMENT.get(key, key)), *(value_html(_text(value), _WHY_UNKNOWN) for value in values)])
    if not rows:
        return '<div class="rd rd-soft">Models, chunks and the content of the collection were the same.</div>'
    heads = ["", "A", "B"] if other else ["", ""]
    return figures.table(heads, rows, wrap=(1, 2) if other else (1,))


def _text(value: Any) -> str:
    return "–" if value is None else escape(f"{value:,}" if isinstance(value, int) else str(value))


def results_table(results: Sequence[Measured], metric: str) -> str:
    """One row a question, the worst at the last stage first."""
    ordered = sorted(results, key=lambda each: each.scores[each.last_stage][metric])
    rows = [
        [
            f'<span class="rd-plain" dir="auto">{escape(shortened(each.question, 200))}</span>{_problem(each)}',
            *(_rank(each, stage) for stage in STAGES),
            metric_text(each.scores[each.last_stage][metric]),
            _top(each.top),
            tries(each.question),
        ]
        for each in ordered
    ]
    heads = ["Question", *(stage.capitalize() for stage in STAGES), METRIC_WORDS[metric], "First three at the end", ""]
    return f'<div class="rd-evalresults">{figures.table(heads, rows, numeric=range(1, 6), wrap=(0, 6))}</div>'


def _problem(result: Measured) -> str:
    return f'<div class="rd-soft rd-small">{escape(result.degraded)}</div>' if result.degraded else ""


def _rank(result: Measured, stage: str) -> str:
    if stage not in result.scores:
        return unknown_html("this setting does not rerank")
    rank = result.first[stage]
    return unknown_html("no relevant document among the candidates") if rank is None else f"{rank}"


def _top(items: Sequence[Item], most: int = 3) -> str:
    lines = []
    for each in items[:most]:
        name = each.source if each.location is None else f"{each.source} · {each.location}"
        grade = (
            '<span class="rd-soft" title="nobody judged it">–</span>' if each.grade is None else f"<strong>{each.grade}</strong>"
        )
        lines.append(f'{grade} <span class="rd-plain" dir="auto">{escape(shortened(name, 70))}</span>')
    return "<br>".join(lines) or unknown_html("nothing was found")


STYLE = """<style>
@media (max-width: 640px) {
  .rd-evalsets :is(th, td):is(:nth-child(2), :nth-child(6), :nth-child(7)) { display: none; }
  .rd-evalruns :is(th, td):is(:nth-child(3), :nth-child(4), :nth-child(5), :nth-child(n+8)) { display: none; }
  .rd-evalresults :is(th, td):is(:nth-child(2), :nth-child(3), :nth-child(4), :nth-child(7)) { display: none; }
  .rd-evalpairs :is(th, td):is(:nth-child(2), :nth-child(3), :nth-child(5)) { display: none; }
}
</style>"""
