"""What the page Cache shows of two questions side by side and of calibrations: HTML, chart options. Pure; all is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rag.cache.calibrate import Calibration, Point, Rates
from rag.cache.guards import Check, both_read
from rag.cache.question import DIRECTED, Kind, Question
from rag.cache.types import Candidate, Thresholds
from ui import cards, figures
from ui.cache_figures import with_interval
from ui.format import escape, percent, unknown_html, value_html

_LINES = (("#1d5fb4", "#4c93ee"), ("#7d8590", "#a0a7b0"))
_READ: Mapping[str, tuple[Kind, ...]] = {
    "article": ("article",),
    "number": ("number",),
    "unit": ("quantity",),
    "date": ("date",),
    "identifier": ("identifier",),
    "negation": ("negation",),
    "direction": ("pole",),
    "name": ("name",),
    "modality": ("modal",),
    "content": ("word", "pole"),
    "order": ("number", "quantity", "article", "date", "identifier", "name", "word", "pole", "negation"),
}


# --------------------------------------------------------------------------------------------------------------- 1) tester


def verdict(found: Candidate, thresholds: Thresholds | None) -> str:
    """In words, as a note."""
    if found.refused is None:
        return cards.note("ok", "<strong>A hit: the second question's answer would be given to the first.</strong>")
    why = f"Because: {escape(found.refused)}."
    step = (
        ""
        if thresholds
        else "Calibrate thresholds for this embedder in the view Calibration; until then only equal questions hit."
    )
    return cards.note("warn", "<strong>No hit: the first question would be answered anew.</strong>", why, step)


def checks(asked: str, found: Candidate, thresholds: Thresholds | None) -> str:
    """Every guard with what it read on both sides, then the thresholds."""
    first, second = both_read(asked, found.question)
    rows = [_check_row(check, first, second) for check in found.checks]
    least = (None, None) if thresholds is None else (thresholds.dense, thresholds.agreement)
    for name, value, wanted in (("cosine", found.dense, least[0]), ("agreement", found.agreement, least[1])):
        rows.append(_likeness_row(name, value, wanted))
    return figures.table(["Guard", "Verdict", "Read in the first", "Read in the second", "Said"], rows, wrap=(2, 3, 4))


def _check_row(check: Check, first: Question, second: Question) -> list[str]:
    mark = cards.state_mark("ok", "agrees") if check.passed else cards.state_mark("critical", "refuses")
    sides = (_side(read(check.name, question)) for question in (first, second))
    said = "" if check.passed else f'<span class="rd-plain" dir="auto">{escape(check.said)}</span>'
    return [escape(check.name), mark, *sides, said]


def _side(text: str) -> str:
    return f'<span class="rd-plain" dir="auto">{escape(text)}</span>' if text else '<span class="rd-soft">none</span>'


def read(guard: str, question: Question) -> str:
    """What a guard looks at in a question. Plain text."""
    if guard == "language":
        return question.language
    if guard == "question":
        return ", ".join(sorted(question.asks))
    if guard == "role":
        return ", ".join(f"{token.role} {token.said}" for token in question.tokens if token.role in DIRECTED)
    said = [token.said for token in question.of(*_READ.get(guard, ()))]
    return " ".join(said) if guard == "order" else ", ".join(dict.fromkeys(said))


def _likeness_row(name: str, value: float | None, wanted: float | None) -> list[str]:
    shown = f"{value:.3f}" if value is not None else unknown_html("the embedder did not give both vectors")
    if wanted is None:
        mark = cards.state_mark("unknown", "not judged", "no thresholds for this embedder")
    elif value is None or value < wanted:
        mark = cards.state_mark("critical", "refuses")
    else:
        mark = cards.state_mark("ok", "agrees")
    return [name, mark, shown, "", f"at least {wanted:.2f} is wanted" if wanted is not None else ""]


# ---------------------------------------------------------------------------------------------------------- 2) calibration


def calibration(found: Calibration) -> str:
    """What the thresholds do to the pairs they were chosen on, and to those held out, by language and kind."""
    rows = [_rates_row("chosen on", found.chosen_on), _rates_row("held out", found.held_out)]
    parts = (*found.by_language.items(), *found.by_kind.items())
    rows += [_rates_row(f"held out: {name}", rates) for name, rates in parts]
    return figures.table(["Pairs", *_RATES_HEADS], rows, numeric=range(1, 6), wrap=(0,))


_RATES_HEADS = ("Paraphrases found", "Recall", "Near misses hit", "at most (95 %)", "Precision [95 %]")


def curve_table(points: Iterable[Point], chosen: float) -> str:
    rows = []
    for point in points:
        name = f"{point.dense:.2f}"
        rows.append(_rates_row(f"{name}, chosen" if abs(point.dense - chosen) < 0.005 else name, point.rates))
    return figures.table(["Least cosine", *_RATES_HEADS], rows, numeric=range(1, 6))


def _rates_row(name: str, rates: Rates) -> list[str]:
    return [
        escape(name),
        f"{rates.hits:,} of {rates.same:,}" if rates.same else unknown_html("no paraphrase among them"),
        value_html(percent(rates.recall), "no paraphrase among them"),
        f"{rates.false_hits:,} of {rates.different:,}" if rates.different else unknown_html("no near miss among them"),
        unknown_html("no near miss among them") if rates.false_hits_upper is None else f"{rates.false_hits_upper * 100:.1f} %",
        with_interval(rates.precision, rates.precision_low, rates.precision_high),
    ]


def curve_options(points: Sequence[Point], dark: bool) -> dict[str, Any]:
    """Precision with its interval (up) against recall (right); one point a cosine. ECharts."""
    known = [(point, point.rates) for point in points if point.rates.precision is not None and point.rates.recall is not None]
    names = {"precision": (2.5, "solid", 0), "precision_low": (1.2, "dashed", 1), "precision_high": (1.2, "dashed", 1)}
    series = [
        {
            "type": "line",
            "name": name.replace("_", ", ").replace("low", "least (95 %)").replace("high", "most (95 %)"),
            "data": [
                [round((rates.recall or 0) * 100, 2), round(getattr(rates, name), 4), point.dense] for point, rates in known
            ],
            "color": _LINES[tone][dark],
            "lineStyle": {"width": width, "type": line},
            "symbolSize": 5 if width > 2 else 3,
            "tooltip": {"valueFormatter": "%.3f"},
        }
        for name, (width, line, tone) in names.items()
    ]
    return {
        "animation": False,
        "grid": {"left": 4, "right": 14, "bottom": 22, "top": 30, "containLabel": True},
        "legend": {"type": "scroll", "top": 0, "left": 0, "itemHeight": 8, "itemWidth": 18, "textStyle": {"fontSize": 11}},
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": {
            "type": "value",
            "scale": True,
            "axisLabel": {"formatter": "{value} %"},
            "name": "recall",
            "nameLocation": "middle",
            "nameGap": 24,
        },
        "yAxis": {"type": "value", "scale": True, "max": 1, "splitNumber": 4},
        "series": series,
    }


def curve_words(chosen: Thresholds) -> str:
    """Plain text."""
    held = chosen.measured.get("held_out") or {}
    precision = f"{held['precision']:.3f}" if held.get("precision") is not None else "unknown"
    limits = f"cosine {chosen.dense:.2f}, agreement {chosen.agreement:.2f}"
    return f"{limits}; recall {percent(held.get('recall'))}, precision {precision}"
