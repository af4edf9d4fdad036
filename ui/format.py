"""Numbers, times and texts as people read them: what `rag.quantities` says, and HTML of it. Pure; HTML made here is escaped.

Three significant digits, the unit beside the number, below one second in ms. Unknown is an en dash, never 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from datetime import UTC, datetime, tzinfo
from html import escape as _escape
from typing import Any
from urllib.parse import quote

from rag.quantities import UNKNOWN as UNKNOWN
from rag.quantities import seconds as seconds
from rag.quantities import significant as significant


def escape(text: object) -> str:
    """Text for HTML, inside elements and quoted attributes alike."""
    return _escape(str(text), quote=True)


def count(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def plural(number: int, noun: str, many: str | None = None) -> str:
    """`1 query`, `2 queries`."""
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"


def percent(ratio: float | None) -> str:
    """A share of one: `61 %`, `< 1 %`."""
    if ratio is None or not math.isfinite(ratio):
        return UNKNOWN
    return "< 1 %" if 0 < ratio < 0.005 else f"{ratio * 100:.0f} %"


def number(value: float | None, unit: str = "") -> str:
    """A plain quantity with three significant digits."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{significant(value)} {unit}".rstrip()


def bytes_text(value: float | None) -> str:
    """`512 B`, `91.2 MiB`, `2.15 GiB`: powers of 1024, three significant digits."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1000:
            return f"{significant(value)} {unit}"
        value /= 1024
    return f"{significant(value)} TiB"


def percentile(name: str, value: float | None, n: int) -> str:
    """`p95 1.42 s · n 212`: never a percentile without its count."""
    return f"{name} {seconds(value)} · n {n:,}"


def code_html(text: object) -> str:
    """Escaped, and what stands between backticks as code: how faults and next steps name commands."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


_CODE = re.compile(r"`([^`\n]+)`")


def parse_time(text: str) -> datetime | None:
    """An ISO 8601 time with its zone (UTC when it names none); None when it is no time."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def absolute(when: datetime, zone: tzinfo = UTC) -> str:
    """`2026-11-21 05:00:12 UTC`."""
    return when.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S %Z")


def relative(when: datetime, now: datetime) -> str:
    """`12 s ago`, `3 min ago`, `2 h ago`, `5 days ago`; a time ahead of the clock is `in 3 s`."""
    gap = (now - when).total_seconds()
    size = abs(gap)
    if size < 1:
        return "just now"
    if size < 100:
        text = f"{size:.0f} s"
    elif size < 5940:
        text = f"{size / 60:.0f} min"
    elif size < 2 * 86400:
        text = f"{size / 3600:.0f} h"
    else:
        text = f"{size / 86400:,.0f} days"
    return f"{text} ago" if gap > 0 else f"in {text}"


def time_html(when: datetime | None, now: datetime, zone: tzinfo = UTC) -> str:
    """Relative, with the absolute time and its zone on hover."""
    if when is None:
        return unknown_html("the time was not recorded")
    return f'<time datetime="{when.isoformat()}" title="{escape(absolute(when, zone))}">{relative(when, now)}</time>'


def unknown_html(reason: str) -> str:
    return f'<abbr class="rd-unknown" title="{escape(reason)}">{UNKNOWN}</abbr>'


def value_html(text: str, reason: str) -> str:
    """A formatted value, or the dash with the reason why it is not known."""
    return unknown_html(reason) if text == UNKNOWN else escape(text)


def shortened(text: str, length: int = 80) -> str:
    """One line of at most `length` characters, cut at a word where there is one."""
    line = " ".join(text.split())
    if len(line) <= length:
        return line
    cut = line[: length - 1]
    at_word = cut.rpartition(" ")[0]
    return f"{at_word if len(at_word) > length // 2 else cut}…"


def query_url(query_id: str) -> str:
    return f"/query?id={quote(query_id, safe='')}"


def csv_cell(value: Any) -> Any:
    """A spreadsheet runs a text that begins like a formula, also after blanks or in full width: an apostrophe goes in front."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


_FORMULA = re.compile(r"[\s\0\u200b\ufeff]*[=+\-@＝＋－＠]|[\t\r\n]")

# ------------------------------------------------------------------------------------------------------------- markdown

_FENCE = re.compile(r"(?ms)^ {0,3}(?P<ticks>`{3,})(?P<language>[^\n`]*)\n(?P<body>.*?)(?:^ {0,3}(?P=ticks)`*[ \t]*$|\Z)")
_TICKS = re.compile(r"`+")
_CITATION = re.compile(r"\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\]")
# Markdown makes links of these by itself, escaped or not. Trailing punctuation is the sentence's.
_ADDRESS = re.compile(r"(?i)(?:https?://|www\.)[^\s`|]*[^\s`|.,;:!?'\")\]*_~]")
_WORD_JOINER = "\u2060"
_SPECIAL = re.compile(r"([$_~\\`\[\]]|:(?=[A-Za-z_+]))")


def plain_markdown(text: str) -> str:
    """Text that markdown shows as it is: every character that could mean something is escaped, and addresses are no links."""
    text = re.sub(r"(?i)(https?:|www)(?=//|\.)", rf"\1{_WORD_JOINER}", text)
    return re.sub(r"([\\`*_{}\[\]()#+\-.!$~:|<>&])", r"\\\1", text)


def answer_markdown(text: str, cited: Collection[int] = ()) -> str:
    """A model's answer for `st.markdown`: its lists, tables, emphasis by `*` and code stay; nothing else gets a meaning.

    No LaTeX (`$`), no HTML, no images or links (both could carry data out), no Streamlit directives (`:red[…]`). Addresses
    are shown as code, which is the only text that markdown makes no links of.
    `[1]` of a number in `cited` becomes a link to the element `passage-1`.
    """
    parts: list[str] = []
    at = 0
    for fence in _FENCE.finditer(text):
        # Written anew at the margin: a list or quotation around it could end the block early and let its content out.
        language = re.sub(r"[^\w+-]", "", fence["language"])
        block = f"\n\n{fence['ticks']}{language}\n{fence['body'].rstrip()}\n{fence['ticks']}\n\n"
        parts += [_lines(text[at : fence.start()], cited), block]
        at = fence.end()
    return "".join([*parts, _lines(text[at:], cited)])


def _lines(text: str, cited: Collection[int]) -> str:
    return "\n".join(_with_code(line, cited) for line in text.split("\n"))


def _with_code(line: str, cited: Collection[int]) -> str:
    """One line with its code spans left alone. A span with `|` is none: a table would cut it in two."""
    parts: list[str] = []
    at = 0
    runs = list(_TICKS.finditer(line))
    while runs:
        opening = runs.pop(0)
        closing = next((n for n, run in enumerate(runs) if len(run.group()) == len(opening.group())), None)
        if closing is None or "|" in line[opening.end() : runs[closing].start()]:
            continue
        end = runs[closing].end()
        parts += [_linked(line[at : opening.start()], cited), line[opening.start() : end]]
        at, runs = end, runs[closing + 1 :]
    return "".join([*parts, _linked(line[at:], cited)])


def _linked(text: str, cited: Collection[int]) -> str:
    parts: list[str] = []
    at = 0
    for match in _CITATION.finditer(text):
        numbers = [int(number) for number in match.group(1).split(",")]
        if all(number in cited for number in numbers):
            parts += [_neutral(text[at : match.start()]), "".join(f"[\\[{n}\\]](#passage-{n})" for n in numbers)]
            at = match.end()
    return "".join([*parts, _neutral(text[at:])])


def _neutral(text: str) -> str:
    parts: list[str] = []
    at = 0
    for address in _ADDRESS.finditer(text):
        parts += [_escaped(text[at : address.start()]), f"`{address.group()}`"]
        at = address.end()
    return "".join([*parts, _escaped(text[at:])])


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))
