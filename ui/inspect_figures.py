"""Passages, neighbours and ranks as HTML and chart options for the view Inspect. Pure; everything that was stored or typed is
escaped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

from rag.inspect import terms
from rag.inspect.duplicates import Duplicates
from rag.inspect.neighbours import Neighbour
from rag.inspect.reading import StoredPassage, overlap_chars
from rag.inspect.stages import Fate, StageRun, document_key
from rag.types import Passage
from ui.cards import state_mark
from ui.figures import table
from ui.format import count, escape, number, plural, shortened, unknown_html
from ui.style import STAGE_COLOURS, colour

STAGE_WORDS = {"dense": "dense", "sparse": "BM25", "fused": "fused", "rerank": "reranked"}
MOST_LINES = 80
_BEFORE = {"fused": ("dense", "sparse"), "rerank": ("fused",)}
_GREY = ("#868d96", "#8d949d")
_TEXT = ("#1c2127", "#e6e9ed")
_MISSED = "this route did not find it within its limit"

STYLE = """<style>
.rd-in { display: flex; flex-direction: column; gap: .55rem; }
.rd-in article { border: 1px solid var(--line); border-radius: 6px; padding: .45rem .7rem; scroll-margin-top: 5rem; }
.rd-in article.rd-at { box-shadow: inset 3px 0 0 currentColor; }
.rd-in article:target { border-color: currentColor; }
.rd-in header { display: flex; flex-wrap: wrap; gap: .1rem .9rem; align-items: baseline; }
.rd-in .rd-number { font-weight: 600; min-width: 2em; }
.rd-in .rd-embedded { border-left: 2px solid var(--line); padding-left: .6rem; white-space: pre-wrap; margin-top: .3rem; }
.rd mark { background: color-mix(in srgb, currentColor 16%, transparent); color: inherit; border-radius: 2px; font-weight: 600; }
.rd mark.rd-shared { font-weight: inherit; background: color-mix(in srgb, currentColor 8%, transparent);
  box-shadow: inset 0 -1px 0 var(--soft); }
.rd-lengths { display: flex; align-items: flex-end; gap: 2px; height: 64px; position: relative; margin: .3rem 0 .2rem; }
.rd-lengths a { flex: 1 1 0; min-width: 2px; max-width: 26px; height: 100%; display: flex; align-items: flex-end; }
.rd-lengths i { display: block; width: 100%; min-height: 2px; background: var(--c); border-radius: 2px 2px 0 0; opacity: .75; }
.rd-lengths a:hover i { opacity: 1; } .rd-lengths i.over { outline: 1.5px solid currentColor; }
.rd-lengths b { position: absolute; left: 0; right: 0; border-top: 1.5px dashed currentColor; opacity: .6; pointer-events: none; }
.rd-inside summary { cursor: pointer; list-style: none; } .rd-inside summary::-webkit-details-marker { display: none; }
.rd-inside[open] .rd-short { display: none; } .rd-inside .rd-ptext { max-width: 70ch; }
.rd-cosine { display: inline-block; width: 3.4rem; height: 5px; border-radius: 2px; background: var(--line);
  vertical-align: .15em; margin-left: .45em; overflow: hidden; }
.rd-cosine i { display: block; height: 100%; background: var(--c); }
.st-key-inspect-typed textarea { unicode-bidi: plaintext; text-align: start; }
.rd-words { display: flex; flex-wrap: wrap; gap: .1rem .5rem; }
@media (max-width: 640px) {
  .rd-stacked tr { display: flex; flex-wrap: wrap; border-bottom: 1px solid var(--line); }
  .rd-stacked :is(th, td) { border: 0; flex: 1 1 0; padding-right: .3rem; white-space: normal; }
  .rd-stacked td:first-child { flex: 1 0 100%; } .rd-stacked th:first-child, .rd-stacked .rd-cosine { display: none; }
}
</style>"""


def inspect_url(**params: str | int | float | None) -> str:
    """The address of a look into the store."""
    given = {key: value for key, value in params.items() if value is not None}
    return f"/knowledge?{urlencode({'view': 'inspect', **given})}"


# ------------------------------------------------------------------------------------------------------------- document


class Measured(NamedTuple):
    """A passage with its tokens: of the text, which the chunk limit is about, and of what is embedded; None is unknown."""

    passage: StoredPassage
    tokens: int | None
    indexed_tokens: int | None


def lengths(measured: Sequence[Measured], limit: int) -> str:
    """A column a passage as high as its tokens, and the chunk limit across; each column leads to its passage."""
    known = [item.tokens for item in measured if item.tokens is not None]
    if not known:
        return ""
    top = max(limit, *known) * 1.08
    columns = "".join(_column(item, limit, top) for item in measured)
    line = f'<b style="bottom:{100 * limit / top:.2f}%"></b>'
    longest = f"longest {plural(max(known), 'token')}; the dashed line is ingest.chunk_tokens as set now, {count(limit)}"
    name = f"Passage lengths: {longest}"
    return (
        f'<div class="rd"><div class="rd-lengths" role="img" aria-label="{escape(name)}">{columns}{line}</div>'
        f'<div class="rd-soft rd-small">{plural(len(known), "passage")}, {escape(longest)}</div></div>'
    )


def _column(item: Measured, limit: int, top: float) -> str:
    tokens, position = item.tokens or 0, _position(item.passage)
    over = ' class="over"' if tokens > limit else ""
    told = f"passage {position}: {plural(tokens, 'token')} of {limit:,}" if item.tokens is not None else f"passage {position}"
    bar = f'<i{over} style="{colour("embed")};height:{100 * tokens / top:.2f}%"></i>'
    return f'<a href="#stored-{position}" title="{told}">{bar}</a>'


def _position(passage: StoredPassage) -> int:
    return (passage.position or 0) + 1


def stored_passages(
    measured: Sequence[Measured],
    before: StoredPassage | None,
    collection: str,
    max_tokens: int | None,
    no_tokens: str,
    at: str | None,
) -> str:
    """The passages of a document as cards; `before` is the one in front of the first, for what they share.

    `max_tokens` is what the embedder reads of a text; `no_tokens` why tokens are unknown, `at` the passage that was asked for.
    """
    cards = []
    for item in measured:
        cards.append(_stored(item, before, collection, max_tokens, no_tokens, at))
        before = item.passage
    return f'<div class="rd rd-in">{"".join(cards)}</div>'


def _stored(
    item: Measured, before: StoredPassage | None, collection: str, max_tokens: int | None, no_tokens: str, at: str | None
) -> str:
    passage, position = item.passage, _position(item.passage)
    tokens = f"{count(item.tokens)} tokens" if item.tokens is not None else f"{unknown_html(no_tokens)} tokens"
    cut = item.indexed_tokens is not None and max_tokens is not None and item.indexed_tokens + 2 > max_tokens
    about = [
        f'<span dir="auto">{escape(passage.location)}</span>' if passage.location else "",
        escape(passage.language) if passage.language else "",
        f'<span class="rd-nowrap">{tokens}</span>',
        state_mark("warn", f"embedded up to token {max_tokens}", "the embedder takes no more of a text") if cut else "",
    ]
    near = f'<a href="{escape(inspect_url(collection=collection, passage=passage.id))}">neighbours of this text</a>'
    here = ' class="rd-at"' if passage.id == at else ""
    facts = "".join(f"<span>{text}</span>" for text in about if text)
    return (
        f'<article id="stored-{position}"{here}><header><span class="rd-number">{position}</span>'
        f'<span class="rd-soft rd-words">{facts}</span><span class="rd-small">{near}</span></header>'
        f"{_embedded(item)}{_shared_text(passage, before)}</article>"
    )


def _embedded(item: Measured) -> str:
    """What is embedded and searched beside the text itself, which the indexed text ends with."""
    passage = item.passage
    if not passage.indexed.endswith(passage.text):
        told = "embedded and searched instead of this text:"
        head = passage.indexed
    else:
        told, head = "embedded and searched in front of the text:", passage.indexed[: -len(passage.text)].rstrip("\n")
    if not head or not passage.text:
        return ""
    more = f" ({count(item.indexed_tokens)} tokens in all)" if item.indexed_tokens is not None else ""
    return (
        f'<div class="rd-soft rd-small">{told}{more}</div>'
        f'<div class="rd-soft rd-small rd-embedded" dir="auto">{escape(head)}</div>'
    )


def _shared_text(passage: StoredPassage, before: StoredPassage | None) -> str:
    shared = overlap_chars(before.text, passage.text) if before is not None else 0
    text = escape(passage.text[shared:])
    if shared and before is not None:
        told = f"the end of passage {_position(before)} too: {plural(shared, 'character')}"
        text = f'<mark class="rd-shared" title="{told}">{escape(passage.text[:shared])}</mark>{text}'
    return f'<div class="rd-ptext" dir="auto">{text}</div>'


def jsonl(passages: Iterable[StoredPassage]) -> bytes:
    """One passage a line, with everything that is known of it; UTF-8."""
    return "".join(f"{json.dumps(passage._asdict(), ensure_ascii=False)}\n" for passage in passages).encode()


# ----------------------------------------------------------------------------------------------------------- neighbours


def neighbours_table(
    items: Sequence[Neighbour], collection: str, metric: str, no_dense: str | None, no_sparse: str | None
) -> str:
    """The neighbours with both scores and ranks."""
    dense = "Cosine" if metric == "COSINE" else f"Dense ({metric})"
    heads = ["Passage", dense, "Rank", "BM25 / sparse", "Rank", ""]
    rows = []
    for item in items:
        ranks, scores = item.passage.ranks, item.passage.scores
        rows.append(
            [
                passage_cell(item.passage, collection),
                _cosine(scores.get("dense"), metric, no_dense or _MISSED),
                count(ranks["dense"]) if ranks.get("dense") else unknown_html(no_dense or _MISSED),
                number(scores["sparse"]) if scores.get("sparse") is not None else unknown_html(no_sparse or _MISSED),
                count(ranks["sparse"]) if ranks.get("sparse") else unknown_html(no_sparse or _MISSED),
                _alike(item),
            ]
        )
    return _stacked(table(heads, rows, numeric=(1, 2, 3, 4), wrap=(0,)))


def _stacked(html: str) -> str:
    """A table whose first cell takes a line of its own on a narrow screen."""
    return f'<div class="rd rd-stacked">{html}</div>'


def _cosine(value: float | None, metric: str, reason: str) -> str:
    if value is None:
        return unknown_html(reason)
    bar = (
        f'<span class="rd-cosine" style="{colour("search")}"><i style="width:{max(0.0, min(1.0, value)) * 100:.0f}%"></i></span>'
    )
    return f"{value:.3f}{bar}" if metric == "COSINE" else number(value)


def _alike(item: Neighbour) -> str:
    if item.same_text:
        return state_mark("warn", "the same text")
    return state_mark("warn", "near-duplicate") if item.near_duplicate else ""


def passage_cell(passage: Passage | StoredPassage, collection: str, words: Sequence[str] = ()) -> str:
    """A passage in a table: its title (a link to its document), place, an excerpt that opens to the whole text."""
    title = escape(passage.title or passage.source)
    if passage.document_id:
        address = escape(inspect_url(collection=collection, document=passage.document_id, at=passage.id))
        title = f'<a href="{address}">{title}</a>'
    near = f'<a class="rd-small" href="{escape(inspect_url(collection=collection, passage=passage.id))}">neighbours</a>'
    place = " · ".join(text for text in (passage.source, passage.location) if text)
    short = terms.excerpt(passage.text, words, 200)
    body = f'<div class="rd-plain" dir="auto">{highlighted(short, words)}</div>'
    if short != passage.text:
        body = (
            f'<details class="rd-inside"><summary><div class="rd-short rd-plain" dir="auto">{highlighted(short, words)}</div>'
            f'<span class="rd-soft rd-small">whole text</span></summary>'
            f'<div class="rd-ptext" dir="auto">{highlighted(passage.text, words)}</div></details>'
        )
    return (
        f'<div class="rd-words"><strong dir="auto">{title}</strong>{near}</div>'
        f'<div class="rd-soft rd-small rd-plain" dir="auto">{escape(place)}</div>'
        f"{body}"
    )


def highlighted(text: str, words: Sequence[str]) -> str:
    """The text as HTML, the question's words in it marked."""
    return "".join(
        f"<mark>{escape(piece.text)}</mark>" if piece.word else escape(piece.text) for piece in terms.pieces(text, words)
    )


def duplicates_html(found: Duplicates, texts: Mapping[str, StoredPassage], collection: str, groups: int, members: int) -> str:
    """Groups of near-duplicates, at most `groups` of them with at most `members` passages each."""
    cards = []
    for place, group in enumerate(found.groups[:groups], 1):
        shown = [(texts[key], cosine) for key, cosine in zip(group.ids, group.nearest, strict=True) if key in texts][:members]
        same = len({passage.text.strip() for passage, _ in shown}) == 1 and len(shown) == len(group.ids)
        rows = [[passage_cell(passage, collection), f"{cosine:.3f}"] for passage, cosine in shown]
        left = len(group.ids) - len(shown)
        more = f'<div class="rd-soft rd-small">and {plural(left, "more passage")}</div>' if left else ""
        told = "the same text" if same else f"cosine at least {min(group.nearest):.3f} to another of them"
        head = f'<span class="rd-number">{place}</span><span>{plural(len(group.ids), "passage")}</span>'
        body = _stacked(table(["Passage", "Nearest"], rows, numeric=(1,), wrap=(0,)))
        cards.append(
            f'<article id="group-{place}"><header>{head}<span class="rd-soft">{told}</span></header>{body}{more}</article>'
        )
    return f'<div class="rd rd-in">{"".join(cards)}</div>'


# --------------------------------------------------------------------------------------------------------------- stages


def stage_table(run: StageRun, passages: Sequence[Passage], words: Sequence[str], collection: str, expected: str | None) -> str:
    """Each passage with rank and score by stage, how the rank changed, and where it ended."""
    heads = ["Passage", *(name.capitalize() if name != "BM25" else name for name in STAGE_WORDS.values()), "Ended"]
    rows = (_stage_row(run, passage, words, collection, expected) for passage in passages)
    return _stacked(table(heads, rows, numeric=(1, 2, 3, 4), wrap=(0,)))


def _stage_row(run: StageRun, passage: Passage, words: Sequence[str], collection: str, expected: str | None) -> list[str]:
    here = terms.matched(words, passage.title, passage.location, passage.text)
    is_expected = expected is not None and document_key(passage) == expected
    told = (
        f"{len(here)} of {plural(len(words), 'word')} of the question: {', '.join(here)}" if here else "no word of the question"
    )
    mark = state_mark("warn", "the expected document") if is_expected else ""
    cell = passage_cell(passage, collection, words) + f'<div class="rd-soft rd-small" dir="auto">{escape(told)}</div>{mark}'
    return [cell, *(rank_cell(run, passage, stage) for stage in STAGE_WORDS), fate_mark(run.fate(passage))]


def rank_cell(run: StageRun, passage: Passage, stage: str) -> str:
    """`3 ↑5` with the score below: the rank at a stage and how many places that is above (↑) or below (↓) the stage before."""
    rank, score = passage.ranks.get(stage), passage.scores.get(stage)
    below = f'<div class="rd-soft rd-small">{number(score)}</div>' if score is not None else ""
    if rank is None:
        reason = _MISSED if stage in ("dense", "sparse") else "it did not come so far"
        if stage == "rerank" and not run.reranked:
            reason = dict(run.notes).get("rerank", "nothing was reranked")
        return f"{unknown_html(reason)}{below}"
    return f"<strong>{rank:,}</strong>{_change(passage, stage, rank)}{below}"


def _change(passage: Passage, stage: str, rank: int) -> str:
    """Against the rank before; a passage that both routes found came in by the better one."""
    before = [(other, route) for route in _BEFORE.get(stage, ()) if (other := passage.ranks.get(route))]
    if not before:
        return ""
    best, route = min(before)
    text = f"↑{best - rank}" if best > rank else f"↓{rank - best}" if best < rank else "="
    return f' <span class="rd-soft" title="{STAGE_WORDS[route]} {best}, now {rank}">{text}</span>'


def fate_mark(fate: Fate) -> str:
    return state_mark("ok" if fate == "kept" else "unknown", fate)


def rank_chart(run: StageRun, expected: str | None, dark: bool) -> dict[str, Any]:
    """Rank by stage as options of ECharts, a line a passage, the first rank on top on a scale of doublings.

    Kept passages have the colour of the rerank, the expected document's are dashed, all others pale.
    """
    stages = [stage for stage in STAGE_WORDS if any(passage.ranks.get(stage) for passage in run.passages)]
    drawn = _drawn(run, expected)
    most = max((rank for passage in drawn for stage in stages if (rank := passage.ranks.get(stage))), default=1)
    return {
        "animation": False,
        "grid": {"left": 8, "right": 16, "top": 26, "bottom": 8, "containLabel": True},
        "tooltip": {"trigger": "item", "confine": True, "valueFormatter": "rank %d"},
        "xAxis": {
            "type": "category",
            "data": [STAGE_WORDS[stage] for stage in stages],
            "position": "top",
            "axisTick": {"show": False},
            "splitLine": {"show": True},
        },
        "yAxis": {
            "type": "log",
            "logBase": 2,
            "inverse": True,
            "min": 1,
            "max": max(2, most),
            "axisLabel": {"hideOverlap": True},
        },
        "series": [_series(passage, stages, expected, dark) for passage in reversed(drawn)],
    }


def _drawn(run: StageRun, expected: str | None) -> list[Passage]:
    """Kept ones and the expected document's always, of the rest as many as a reader can follow."""
    first = [item for item in run.passages if item.kept or document_key(item) == expected]
    ids = {item.id for item in first}
    return first + [item for item in run.passages if item.id not in ids][: max(0, MOST_LINES - len(first))]


def _series(passage: Passage, stages: Sequence[str], expected: str | None, dark: bool) -> dict[str, Any]:
    wanted = expected is not None and document_key(passage) == expected
    tone = STAGE_COLOURS["rerank"][dark] if passage.kept else _TEXT[dark] if wanted else _GREY[dark]
    strong = passage.kept or wanted
    name = " · ".join(text for text in (passage.title or passage.source, passage.location) if text)
    return {
        "type": "line",
        "name": shortened(name, 70),
        "data": [passage.ranks.get(stage) for stage in stages],
        "connectNulls": True,
        "color": tone,
        "lineStyle": {"width": 2.5 if strong else 1, "opacity": 1 if strong else 0.3, "type": "dashed" if wanted else "solid"},
        "itemStyle": {"opacity": 1 if strong else 0.45},
        "symbol": "circle",
        "symbolSize": 7 if strong else 4,
        "z": 3 if strong else 2,
        "emphasis": {"focus": "series", "lineStyle": {"width": 3, "opacity": 1}},
    }
