"""Data -> HTML pictures: waterfall, bump chart, tables of timings. Pure functions; everything of the user is escaped.

Positions are percentages, so that a figure fits 390 px and 1440 px. `st.html` strips SVG: lines are CSS clip paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rag.types import ROUTES, STAGES, Answer, Interval, Passage, Split, Stage
from ui.format import escape, number, percent, seconds, shortened, unknown_html, value_html
from ui.style import colour

PARTS = ("load", "queue", "network", "tokenize", "compute", "other")
_PART_WORDS = {
    "load": "loading the model (cold)",
    "queue": "waiting in the queue",
    "network": "on the network",
    "tokenize": "tokenizing",
    "compute": "computing",
    "other": "everything else",
}
_ROUTE_WORDS = {"dense": "dense", "sparse": "sparse", "fused": "fused", "rerank": "reranked"}
_DRAWN_PASSAGES = 60
_NAMED_PASSAGES = 20  # more names than that would need a chart taller than a screen
_NAME_PX = 21


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a waterfall; seconds on the query's time axis. `parts` may be empty: the split is not known (yet)."""

    stage: str
    start: float
    seconds: float
    label: str
    parts: tuple[tuple[str, float], ...] = ()
    cold: bool = False
    running: bool = False


def parts_of(split: Split, total: float) -> tuple[tuple[str, float], ...]:
    """(name, seconds) of a split, without empty parts, in the order drawn; never longer together than `total`."""
    known = [(name, max(0.0, getattr(split, name) or 0.0)) for name in PARTS]
    together = sum(value for _, value in known)
    scale = total / together if together > total > 0 else 1.0
    return tuple((name, value * scale) for name, value in known if value > 0 and total > 0)


def bars_of(timeline: Iterable[Interval]) -> tuple[Bar, ...]:
    return tuple(
        Bar(item.stage, item.start, item.seconds, item.label, parts_of(item.split, item.seconds), item.cold) for item in timeline
    )


def live_bars(events: Iterable[Mapping[str, Any]], elapsed: float) -> tuple[Bar, ...]:
    """The bars of a job that runs, from its events: a stage is open from `stage_started` to its `stage_finished`."""
    bars: list[Bar] = []
    open_since: dict[str, float] = {}
    for event in events:
        kind = event.get("type")
        if kind == "stage_started":
            open_since[str(event["stage"])] = float(event["at"])
        elif kind == "stage_finished":
            stage = event["stage"]
            start = open_since.pop(stage["stage"], None)
            if start is not None:
                bars.append(Bar(stage["stage"], start, float(event["at"]) - start, "", cold=bool(stage.get("cold"))))
        elif kind in ("finished", "failed"):
            open_since.clear()
    bars += [Bar(stage, start, max(0.0, elapsed - start), "running", running=True) for stage, start in open_since.items()]
    return tuple(bars)


# ------------------------------------------------------------------------------------------------------------ waterfall


def axis_ticks(total: float) -> tuple[float, ...]:
    """Five times from 0 to `total`, a quarter of it apart, matching the lines behind the bars."""
    return tuple(total * quarter / 4 for quarter in range(5))


def waterfall(
    bars: Sequence[Bar], total: float, *, stages: Sequence[Stage] = (), first_token: float | None = None, live: bool = False
) -> str:
    """One row a stage in the fixed order, its spans at their times. `total` in seconds is the width of the track."""
    span = max([total, *(bar.start + bar.seconds for bar in bars)], default=0.0) or 1.0
    known = {stage.stage: stage for stage in stages}
    rows = "".join(_row(name, [bar for bar in bars if bar.stage == name], known.get(name), span, first_token) for name in STAGES)
    axis = "".join(f'<span style="left:{tick / span * 100:g}%">{seconds(tick)}</span>' for tick in axis_ticks(span))
    told = ", ".join(f"{bar.stage} {seconds(bar.seconds)} from {seconds(bar.start)}" for bar in bars) or "no stage has run"
    legend = "" if live else _legend(bars, first_token)
    return (
        f'<div class="rd"><div class="rd-wf" role="img" aria-label="{escape(f"Waterfall of {seconds(total)}: {told}")}">{rows}'
        f'<span></span><div class="rd-axis">{axis}</div><span></span></div>{legend}</div>'
    )


def _row(name: str, bars: Sequence[Bar], stage: Stage | None, span: float, first_token: float | None) -> str:
    mark = ""
    if name == "generate" and first_token is not None:
        title = escape(f"first answer token after {seconds(first_token)}")
        mark = f'<i class="rd-mark" style="left:{_percent(first_token, span)}" title="{title}"></i>'
    track = "".join(_bar(bar, span) for bar in bars) + mark
    return (
        f'<span class="rd-name{"" if bars else " rd-idle"}">{name}</span>'
        f'<div class="rd-track" style="{colour(name)}">{track}</div>'
        f'<span class="rd-time">{_row_time(bars, stage)}</span>'
    )


def _row_time(bars: Sequence[Bar], stage: Stage | None) -> str:
    if bars:
        text = seconds(sum(bar.seconds for bar in bars))
        cold = any(bar.cold for bar in bars)
        return f'{text} <abbr title="the model was loaded or ran for the first time">cold</abbr>' if cold else text
    if stage is None:
        return ""
    if stage.stage == "cache" and stage.hit is not None:
        word, reason = ("hit", stage.reason or "the stored answer was used") if stage.hit else ("miss", stage.reason or "")
        return f'<abbr class="rd-soft" title="{escape(reason)}">{word}</abbr>'
    return unknown_html(stage.skipped or stage.reason or "did not run")


def _percent(value: float, span: float) -> str:
    return f"{min(100.0, max(0.0, value / span * 100)):.4f}%"


def _bar(bar: Bar, span: float) -> str:
    left, width = _percent(bar.start, span), _percent(bar.seconds, span)
    inner = "".join(
        f'<i class="{name}" style="width:{value / bar.seconds * 100:.4f}%"></i>' for name, value in bar.parts if bar.seconds > 0
    )
    detail = [f"{bar.stage}: {bar.label}" if bar.label else bar.stage, f"{seconds(bar.seconds)}, from {seconds(bar.start)}"]
    detail += [f"{_PART_WORDS[name]} {seconds(value)}" for name, value in bar.parts]
    classes = "rd-bar running" if bar.running else "rd-bar"
    # a bar too short to see keeps 3 px, and stays inside the track at its very end
    return (
        f'<div class="{classes}" style="left:min({left},calc(100% - 3px));width:{width}" title="{escape(chr(10).join(detail))}">'
        f"{inner}</div>"
    )


def _legend(bars: Sequence[Bar], first_token: float | None) -> str:
    used = [name for name in PARTS if any(part == name for bar in bars for part, _ in bar.parts)]
    if not used:
        return ""
    items = "".join(f'<span><span class="rd-bar"><i class="{name}"></i></span>{_PART_WORDS[name]}</span>' for name in used)
    if first_token is not None:
        items += "<span>┆ first answer token</span>"
    return f'<div class="rd-legend">{items}</div>'


# ----------------------------------------------------------------------------------------------------------- bump chart


def rank_columns(passages: Sequence[Passage]) -> tuple[str, ...]:
    """The routes, in the order drawn, in which at least one passage has a rank."""
    return tuple(route for route in ROUTES if any(passage.ranks.get(route) for passage in passages))


@dataclass(frozen=True, slots=True)
class RankScale:
    """Rank -> distance from the top in px. The first `roomy` ranks are a line of text apart; the rest share what is left."""

    roomy: int
    last: int

    @property
    def height(self) -> float:
        return _NAME_PX * self.roomy + (min(110.0, 4.0 * (self.last - self.roomy)) + 8 if self.last > self.roomy else 0.0)

    def top(self, rank: int) -> float:
        if rank <= self.roomy:
            return _NAME_PX * (rank - 0.5)
        rest = self.height - _NAME_PX * self.roomy - 8
        return _NAME_PX * self.roomy + 4 + rest * (rank - self.roomy) / max(1, self.last - self.roomy)


def bump_chart(passages: Sequence[Passage]) -> str:
    """Rank lines of each passage, first rank on top; kept passages in colour and named, others pale."""
    drawn = list(passages[:_DRAWN_PASSAGES])
    columns = rank_columns(drawn)
    ranks = [rank for passage in drawn for rank in passage.ranks.values() if rank]
    if len(columns) < 2 or not ranks:
        return ""
    final = columns[-1]
    kept_ranks = [rank for passage in drawn if passage.kept and (rank := passage.ranks.get(final))]
    scale = RankScale(min(_NAMED_PASSAGES, max(kept_ranks, default=1)), max(ranks))
    places = {route: 4 + 92 * index / (len(columns) - 1) for index, route in enumerate(columns)}
    marks = [_line(passage, places, scale) for passage in reversed(drawn)]
    marks += [_dots(passage, places, scale) for passage in reversed(drawn)]
    names = "".join(_rank_name(passage, final, scale) for passage in drawn if passage.kept)
    heads = "".join(f'<span style="left:{x:.2f}%">{_ROUTE_WORDS[route]}</span>' for route, x in places.items())
    rules = "".join(f'<b style="left:{x:.2f}%"></b>' for x in places.values())
    told = "; ".join(f"{passage.title}: {rank_line(passage)}" for passage in drawn if passage.kept)
    return (
        f'<div class="rd rd-bump" role="img" aria-label="{escape(f"Ranks by route. {told}")}">'
        f'<div class="rd-bump-cols">{heads}</div><div></div>'
        f'<div class="rd-bump-plot" style="height:{scale.height:.0f}px">{rules}{"".join(marks)}</div>'
        f'<div class="rd-bump-names">{names}</div></div>'
    )


def _line(passage: Passage, places: Mapping[str, float], scale: RankScale) -> str:
    points = [(x, scale.top(rank)) for route, x in places.items() if (rank := passage.ranks.get(route))]
    if len(points) < 2:
        return ""
    half = 1.25 if passage.kept else 0.6
    outline = [f"{x:.2f}% {y - half:.1f}px" for x, y in points] + [f"{x:.2f}% {y + half:.1f}px" for x, y in reversed(points)]
    classes = "rd-line" if passage.kept else "rd-line dropped"
    tone = colour("rerank" if passage.kept else "unknown")
    return f'<div class="{classes}" style="{tone};clip-path:polygon({",".join(outline)})" title="{_hover(passage)}"></div>'


def _hover(passage: Passage) -> str:
    return escape(f"{passage.title}\n{rank_line(passage)}")


def _dots(passage: Passage, places: Mapping[str, float], scale: RankScale) -> str:
    tone = colour("rerank" if passage.kept else "unknown")
    text, size = ("", "rd-dot small") if not passage.kept else ("{}", "rd-dot")
    return "".join(
        f'<i class="{size}" style="{tone};left:{x:.2f}%;top:{scale.top(rank):.1f}px" title="{_hover(passage)}">'
        f"{text.format(rank)}</i>"
        for route, x in places.items()
        if (rank := passage.ranks.get(route))
    )


def _rank_name(passage: Passage, route: str, scale: RankScale) -> str:
    rank = passage.ranks.get(route)
    if not rank or rank > scale.roomy:
        return ""
    name = escape(shortened(passage.title, 60))
    return f'<span style="top:{scale.top(rank):.1f}px" dir="auto" title="{_hover(passage)}">{name}</span>'


def rank_line(passage: Passage) -> str:
    """`dense 3 (0.71) · sparse 1 (12.3) · fused 2 (0.032) · reranked 1 (1.80)`; a route that missed it shows a dash."""
    shown = [route for route in ROUTES if route in passage.ranks or route in passage.scores]
    return " · ".join(_rank_text(passage, route) for route in shown)


def _rank_text(passage: Passage, route: str) -> str:
    rank, score = passage.ranks.get(route), passage.scores.get(route)
    text = f"{_ROUTE_WORDS[route]} {rank if rank else number(None)}"
    return f"{text} ({number(score)})" if score is not None else text


# --------------------------------------------------------------------------------------------------------------- tables


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numeric: Iterable[int] = (), wrap: Iterable[int] = ()) -> str:
    """An HTML table; cells are HTML already. `numeric` columns are right-aligned, `wrap` columns may break lines."""
    right, broken = set(numeric), set(wrap)

    def attribute(index: int) -> str:
        return ' class="n"' if index in right else ' class="wrap"' if index in broken else ""

    head = "".join(f"<th{attribute(index)}>{escape(text)}</th>" for index, text in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(f"<td{attribute(index)}>{cell}</td>" for index, cell in enumerate(row)) + "</tr>" for row in rows
    )
    return f'<div class="rd rd-scroll"><table class="rd-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def timing_table(answer: Answer) -> str:
    """The numbers of the waterfall: one row a stage with its split, below its name where it ran and what was special."""
    heads = ["Stage", "Total", "Share", "Load", "Queue", "Network", "Tokenize", "Compute", "Other"]
    rows = [_timing_row(stage, answer.total_seconds) for stage in answer.stages]
    between = max(0.0, answer.total_seconds - sum(stage.seconds for stage in answer.stages))
    rows.append(['<span class="rd-soft">between stages</span>', seconds(between), _share(between, answer), *[""] * 6])
    return table(heads, rows, numeric=range(1, 9), wrap=(0,))


def _share(part: float, answer: Answer) -> str:
    return percent(part / answer.total_seconds if answer.total_seconds else None)


def _timing_row(stage: Stage, total: float) -> list[str]:
    name = f'<span class="rd-swatch" style="{colour(stage.stage)}"></span>{escape(stage.stage)}'
    if not (stage.spans or stage.seconds):
        why = stage.skipped or stage.reason or "did not run"
        return [f"{name}{_below(why)}", unknown_html(why), *[""] * 7]
    about = [
        *(stage.model, stage.device, stage.where),
        f"{stage.spans} spans" if stage.spans > 1 else None,
        "cold" if stage.cold else None,
        *(stage.degraded, stage.reason),
    ]
    split = [
        value_html(seconds(getattr(stage.split, part)), "no network was measured: the work ran in this process")
        for part in ("load", "queue", "network", "tokenize", "compute", "other")
    ]
    below = _below(" · ".join(text for text in about if text))
    return [f"{name}{below}", seconds(stage.seconds), percent(stage.seconds / total if total else None), *split]


def _below(text: str) -> str:
    return f'<div class="rd-soft rd-plain rd-small" dir="auto">{escape(text)}</div>' if text else ""
