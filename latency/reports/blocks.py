"""A report as blocks, and the blocks as one HTML file or as Markdown. Pure; knows nothing of queries.

The HTML refers to nothing outside itself and runs nothing: styles are inline, pictures are SVG, and its own
Content-Security-Policy forbids the rest. Every text is hostile: escaped here, and only here. What looks like a credential is
masked, control characters and overrides of the writing direction are taken out, and a report's size is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape as _escape
from itertools import chain
from typing import Any, Literal

MOST_CHARACTERS = 20_000  # of one text
MOST_CELL_CHARACTERS = 500
MOST_ROWS = 400
MOST_REPORT_CHARACTERS = 1_500_000

Tone = Literal["plain", "soft", "warn", "critical"]


@dataclass(frozen=True, slots=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True)
class Quote:
    """A text of somebody else, line for line: an answer, a question."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """`heads` may be empty: then the first cell of each row is its head. `numeric` are columns aligned to the right."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a bar: from `start`, as long as `seconds`; `tone` names its stage, `part` its kind of work."""

    tone: str
    start: float
    seconds: float
    part: str
    title: str


@dataclass(frozen=True, slots=True)
class Bars:
    """A waterfall: rows of (name, pieces, text at the end) on an axis of `seconds`."""

    rows: tuple[tuple[str, tuple[Piece, ...], str], ...]
    seconds: float
    axis: str


Block = Heading | Text | Quote | Table | Bars


@dataclass(frozen=True, slots=True)
class Report:
    """What a report holds; its two forms."""

    title: str
    blocks: tuple[Block, ...]

    def html(self) -> str:
        """One HTML file."""
        title = escape(one_line(self.title))
        body = _bounded((_html(block) for block in self.blocks), _html(_TOO_LONG))
        return _FRAME.format(title=title, style=_style(), body="\n".join(body))

    def markdown(self) -> str:
        """Markdown of GitHub's kind."""
        body = _bounded((_markdown(block) for block in self.blocks), _markdown(_TOO_LONG))
        return "\n\n".join([f"# {plain_markdown(self.title)}", *body]) + "\n"


_TOO_LONG = Text("The rest was left out: the report would be too long to send.", "warn")


def _bounded(parts: Any, ending: str) -> list[str]:
    found: list[str] = []
    left = MOST_REPORT_CHARACTERS
    for part in parts:
        left -= len(part)
        if left < 0:
            return [*found, ending]
        found.append(part)
    return found


# ------------------------------------------------------------------------------------------------------------- the texts

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ufeff]")
_SECRET_KEY = re.compile(r"(?i)(api.?key|passw|secret|authori[sz]ation|cookie|credential|(^|[^a-z])token$|private)")
_SECRETS = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), r"\1 •••"),
    (re.compile(r"://[^/\s@]+@"), "://•••@"),
    (re.compile(r"\b(sk|hf|ghp|gho|xox[abp]|glpat|AKIA)[-_]?[A-Za-z0-9_-]{16,}"), "•••"),
    (re.compile(r"(?i)\b(api[_-]?key|token|password|secret)(\s*[=:]\s*)[^\s&,;\"']{4,}"), r"\1\2•••"),
)


def clean(text: object, most: int = MOST_CHARACTERS) -> str:
    """A text without control characters and credentials, cut to `most` characters."""
    found = str(text).encode("utf-8", "replace").decode("utf-8")  # a lone surrogate cannot be written to a file
    if len(found) > most:
        found = f"{found[:most]}… ({len(found) - most:,} more characters were left out)"
    found = _CONTROL.sub("", found.replace("\r\n", "\n").replace("\r", "\n"))
    for pattern, instead in _SECRETS:
        found = pattern.sub(instead, found)
    return found


def masked(key: str, value: Any) -> Any:
    """The value, or dots where the key says that it is a secret."""
    return "•••" if isinstance(value, str) and value and _SECRET_KEY.search(key) else value


def one_line(text: object, most: int = MOST_CELL_CHARACTERS) -> str:
    return " ".join(clean(text, most).split())


def escape(text: str) -> str:
    return _escape(text, quote=True)


_MEANT = re.compile(r"([\\`*_{}\[\]|#$~@])")


def plain_markdown(text: object, most: int = MOST_CELL_CHARACTERS) -> str:
    """One line that Markdown shows as it is: no emphasis, link, address made a link, image, HTML, formula, list or table cell."""
    line = _MEANT.sub(r"\\\1", one_line(text, most))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = line.replace("://", ":\\//").replace("www.", "www\\.")
    return re.sub(r"^([-+=]|\d+[.)])(?=[\s=-]|$)", lambda mark: f"{mark[0][:-1]}\\{mark[0][-1]}", line)


def fenced(text: str) -> str:
    """A text as a block of code, behind a fence that it cannot close."""
    body = clean(text)
    longest = max((len(run) for run in re.findall(r"`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{body}\n{fence}"


# ----------------------------------------------------------------------------------------------------------------- HTML


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f'<h{level} dir="auto">{escape(one_line(text))}</h{level}>'
        case Text(text, tone):
            return f'<p class="{tone}" dir="auto">{escape(clean(text))}</p>'
        case Quote(text):
            return f'<pre dir="auto">{escape(clean(text))}</pre>'
        case Table():
            return _html_table(block)
        case Bars():
            return _html_bars(block)


def _html_table(table: Table) -> str:
    def cell(tag: str, place: int, text: str) -> str:
        kind = ' class="n"' if place in table.numeric else ""
        return f'<{tag}{kind} dir="auto">{escape(one_line(text))}</{tag}>'

    def row(cells: Sequence[str]) -> str:
        tags = ["td" if table.heads or place else "th" for place in range(len(cells))]
        return (
            "<tr>" + "".join(cell(tag, place, text) for place, (tag, text) in enumerate(zip(tags, cells, strict=True))) + "</tr>"
        )

    head = "".join(cell("th", place, text) for place, text in enumerate(table.heads))
    top = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<div class="scroll"><table>{top}<tbody>{"".join(map(row, table.rows[:MOST_ROWS]))}</tbody></table></div>' + _rest(
        table
    )


def _rest(table: Table) -> str:
    return f'<p class="soft">{len(table.rows) - MOST_ROWS:,} more rows were left out.</p>' if len(table.rows) > MOST_ROWS else ""


def _html_bars(bars: Bars) -> str:
    span = bars.seconds or 1.0
    rows = "".join(
        f'<tr><th>{escape(one_line(name))}</th><td class="bar">{_svg(pieces, span)}</td>'
        f'<td class="n">{escape(one_line(end))}</td></tr>'
        for name, pieces, end in bars.rows
    )
    used = {piece.part for _, pieces, _ in bars.rows for piece in pieces}
    legend = "".join(
        f'<span><svg viewBox="0 0 10 10" class="swatch" aria-hidden="true"><rect width="10" height="10" class="{part}"/></svg> '
        f"{escape(words)}</span>"
        for part, words in PARTS.items()
        if part in used
    )
    return (
        f'<table class="bars"><tbody>{rows}<tr><th></th><td class="axis"><span>0</span><span>{escape(bars.axis)}</span></td>'
        f'<td></td></tr></tbody></table><p class="legend">{legend}</p>'
    )


PARTS: Mapping[str, str] = {
    "load": "loading the model",
    "queue": "waiting in the queue",
    "network": "on the network",
    "tokenize": "tokenizing",
    "compute": "computing",
    "other": "everything else",
}


def _svg(pieces: Sequence[Piece], span: float) -> str:
    rects = "".join(
        f'<rect x="{piece.start / span * 1000:.2f}" width="{max(1.5, piece.seconds / span * 1000):.2f}" height="10" '
        f'class="{_known(piece.part, PARTS)} {_known(piece.tone, STAGE_COLOURS)}">'
        f"<title>{escape(one_line(piece.title))}</title></rect>"
        for piece in pieces
    )
    return f'<svg viewBox="0 0 1000 10" preserveAspectRatio="none" role="img">{rects}</svg>'


def _known(name: str, names: Mapping[str, Any]) -> str:
    """A class of ours, or none: another program's stages have names that we did not choose."""
    return name if name in names else ""


# Stage -> (light, dark): those of ui.style, which this layer may not import; a test holds them together.
STAGE_COLOURS: Mapping[str, tuple[str, str]] = {
    "cache": ("#7d8590", "#a0a7b0"),
    "hyde": ("#9160d8", "#b794f4"),
    "embed": ("#1d5fb4", "#4c93ee"),
    "search": ("#2aa79b", "#4fd1c5"),
    "rerank": ("#c47f00", "#e5a93b"),
    "generate": ("#4a8a22", "#86c75c"),
}


def _style() -> str:
    light, dark = ("".join(f".{stage}{{fill:{colours[side]}}}" for stage, colours in STAGE_COLOURS.items()) for side in (0, 1))
    return f"{_STYLE}{light}@media screen and (prefers-color-scheme:dark){{{_DARK}{dark}}}"


_STYLE = """
:root{color-scheme:light dark;--text:#1c2127;--back:#fff;--line:#dcdfe4;--soft:#5c6570;--faint:#f4f5f7;
--warn:#b4460c;--critical:#c01f3f}
*{box-sizing:border-box}body{font:15px/1.5 system-ui,sans-serif;color:var(--text);background:var(--back);max-width:62rem;
margin:0 auto;padding:1.5rem 1rem 3rem;font-variant-numeric:tabular-nums}
h1{font-size:1.4rem;line-height:1.3;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:2rem 0 .5rem}
h3{font-size:1rem;margin:1.2rem 0 .3rem}
h1,h2,h3,p,pre,td,th{unicode-bidi:plaintext;text-align:start}p{margin:.4rem 0;overflow-wrap:anywhere}
.soft,.legend,.axis{color:var(--soft);font-size:.85rem}
.warn,.critical{border-left:3px solid var(--warn);padding-left:.7rem}.critical{border-color:var(--critical)}
pre{font:inherit;white-space:pre-wrap;overflow-wrap:anywhere;background:var(--faint);border-radius:6px;
padding:.6rem .8rem;margin:.4rem 0}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem;margin:.4rem 0}
th,td{border-bottom:1px solid var(--line);padding:.25rem .9rem .25rem 0;vertical-align:top;overflow-wrap:break-word}
td:not(.n):not(:first-child){min-width:6rem}td:not(.n):last-child{min-width:11rem}
th{font-weight:500;color:var(--soft);white-space:nowrap}.n{text-align:right;white-space:nowrap}
table.bars{width:100%;table-layout:auto}.bars th,.bars td{border:0;vertical-align:middle;padding:.1rem .6rem .1rem 0}
.bars td.bar{width:100%}.bar svg{display:block;width:100%;height:14px;background:var(--faint)}
.axis{display:flex;justify-content:space-between}.legend span{margin-right:1rem;white-space:nowrap}
.swatch{width:.8em;height:.8em;display:inline-block}.swatch rect{fill:var(--soft)}
.load{fill-opacity:.45}.queue{fill-opacity:.25}.network{fill-opacity:.62}.tokenize{fill-opacity:.8}.other{fill-opacity:.15}
@media (max-width:640px){body{font-size:14px}th,td{padding-right:.5rem}}
@media print{body{max-width:none;padding:0;font-size:11px}h2,h3{break-after:avoid}
tr,pre,.bars{break-inside:avoid}.scroll{overflow:visible}}
"""
_DARK = ":root{--text:#e6e9ed;--back:#14171b;--line:#333a43;--soft:#9aa4af;--faint:#1e2329;--warn:#ff9a5c;--critical:#ff6b81}"
_FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="referrer" content="no-referrer"><title>{title}</title><style>{style}</style></head>
<body><h1 dir="auto">{title}</h1>
{body}
</body></html>
"""


# ------------------------------------------------------------------------------------------------------------- Markdown

_BAR_CHARACTERS = 40


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {plain_markdown(text)}"
        case Text(text, tone):
            line = plain_markdown(text, MOST_CHARACTERS)
            return f"> {line}" if tone in ("warn", "critical") else line
        case Quote(text):
            return fenced(text)
        case Table():
            return _markdown_table(block)
        case Bars():
            return _markdown_bars(block)


def _markdown_table(table: Table) -> str:
    columns = len(table.heads) or max((len(row) for row in table.rows), default=1)
    heads = table.heads or ("",) * columns
    rule = ["---:" if place in table.numeric else "---" for place in range(columns)]
    rows = [[plain_markdown(cell) or " " for cell in row] for row in chain([heads], table.rows[:MOST_ROWS])]
    lines = [f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]]]
    left_out = len(table.rows) - MOST_ROWS
    return "\n".join(lines) + (f"\n\n{left_out:,} more rows were left out." if left_out > 0 else "")


def _markdown_bars(bars: Bars) -> str:
    """Bars of characters, in a block of code."""
    span = bars.seconds or 1.0
    width = max((len(name) for name, _, _ in bars.rows), default=0)
    lines = []
    for name, pieces, end in bars.rows:
        cells = [" "] * _BAR_CHARACTERS
        for piece in pieces:
            first = min(_BAR_CHARACTERS - 1, int(piece.start / span * _BAR_CHARACTERS))
            last = max(first + 1, round((piece.start + piece.seconds) / span * _BAR_CHARACTERS))
            for place in range(first, min(last, _BAR_CHARACTERS)):
                cells[place] = "░" if piece.part in ("load", "queue") else "█"
        lines.append(f"{name:<{width}} |{''.join(cells)}| {end}")
    return fenced("\n".join([*lines, f"{'':<{width}}  0{bars.axis:>{_BAR_CHARACTERS - 1}}"]))
