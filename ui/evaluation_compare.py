"""Two runs beside each other as HTML: the verdict, the means, the questions that changed. Pure; everything typed is escaped."""

from __future__ import annotations

from collections.abc import Sequence

from rag.evaluation.summary import Comparison, Pair
from rag.evaluation.types import METRICS, STAGES, Run
from ui import cards, figures
from ui.evaluation_view import METRIC_WORDS, metric_text, tries, url
from ui.format import escape, plural, shortened, unknown_html


def verdict(found: Comparison) -> str:
    """What the comparison says, in a sentence, with its interval."""
    told, name = found.difference, METRIC_WORDS[found.metric]
    if told is None:
        return cards.empty("The runs share no question.", "Compare runs of the same set, or of versions that share questions.")
    where = (
        f"{name} of {found.stage_b}"
        if found.stage_a == found.stage_b
        else f"{name}, {found.stage_a} in A and {found.stage_b} in B"
    )
    gap = f"{told.mean:+.3f}"
    if told.low is None or told.high is None or told.p is None:
        return cards.note(
            "unknown", f"<strong>{escape(where)}: B minus A is {gap}</strong>; {told.n} questions are too few to tell."
        )
    interval = f"95 % interval {told.low:+.3f} to {told.high:+.3f}, p {told.p:.3g} (randomisation test), n {told.n:,}"
    if not told.called:
        return cards.note(
            "unknown", f"<strong>{escape(where)}: no difference can be told</strong>; B minus A is {gap}, {interval}."
        )
    word, severity = ("better", "ok") if told.mean > 0 else ("worse", "warn")
    return cards.note(severity, f"<strong>{escape(where)}: B is {word} by {abs(told.mean):.3f}</strong>; {interval}.")


def pairs_line(found: Comparison) -> str:
    same = len(found.pairs) - len(found.better) - len(found.worse)
    parts = [f"{len(found.better):,} better in B", f"{len(found.worse):,} worse", f"{same:,} the same"]
    if found.only_a or found.only_b:
        parts.append(f"left out: {found.only_a:,} only in A, {found.only_b:,} only in B")
    return f'<div class="rd rd-soft">{" · ".join(parts)}</div>'


def pairs_table(pairs: Sequence[Pair], metric: str, most: int = 20) -> str:
    rows = [
        [
            f'<span class="rd-plain" dir="auto">{escape(shortened(each.question, 200))}</span>',
            metric_text(each.a),
            metric_text(each.b),
            f"{each.gap:+.3f}",
            f"{_place(each.first_a)} → {_place(each.first_b)}",
            tries(each.question),
        ]
        for each in pairs[:most]
    ]
    name = METRIC_WORDS[metric]
    table = figures.table(["Question", f"{name} A", "B", "Change", "First relevant at", ""], rows, numeric=range(1, 5), wrap=(0,))
    more = f'<div class="rd rd-soft rd-small">and {len(pairs) - most:,} more</div>' if len(pairs) > most else ""
    return f'<div class="rd-evalpairs">{table}{more}</div>'


def _place(rank: int | None) -> str:
    return unknown_html("no relevant document among the candidates") if rank is None else f"{rank}"


def beside_table(a: Run, b: Run) -> str:
    """The means of two runs, stage by stage: A → B."""
    stages = [stage for stage in STAGES if any(run.summary and stage in run.summary["stages"] for run in (a, b))]
    rows = [[escape(stage), *(_pair(a, b, stage, metric) for metric in METRICS)] for stage in stages]
    return figures.table(["Stage", *(METRIC_WORDS[metric] for metric in METRICS)], rows, numeric=range(1, 6))


def _pair(a: Run, b: Run, stage: str, metric: str) -> str:
    values = [run.summary["stages"].get(stage, {}).get(metric) if run.summary else None for run in (a, b)]
    texts = [unknown_html("this run has no such stage") if each is None else metric_text(each["mean"]) for each in values]
    return f'<span class="rd-nowrap">{texts[0]} → {texts[1]}</span>'


def sides(a: Run, b: Run) -> str:
    """Which run is which."""
    lines = (
        f'<div><strong>{name}</strong> <a href="{escape(url(run=run.id))}">{escape(run.setting.words)}</a> '
        f'<span class="rd-soft">version {run.set_version}, {plural(run.measured, "question")}</span></div>'
        for name, run in (("A", a), ("B", b))
    )
    return f'<div class="rd">{"".join(lines)}</div>'
