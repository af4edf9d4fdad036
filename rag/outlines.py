"""Markdown and HTML to texts under heading paths. Knows nothing of files, encodings or passages."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

HEADING_CHARS = 300  # a longer one is text: it would not fit beside a citation

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_ATX = re.compile(r" {0,3}(#{1,6})(?=[ \t]|$)")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_NOT_PARAGRAPH = re.compile(r"\s*([-*+] |[>|]|\d+[.)] |```|~~~)|\s*$| {4}|\t|.{200}")
_LINK = re.compile(r"!?\[([^\[\]\n]*)\]\([^()\n]*\)")
_DROPPED_TAGS = ("script", "style", "nav", "noscript", "template", "svg", "iframe", "title")
_INLINE_TAGS = (
    *("a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "img", "ins"),
    *("kbd", "label", "mark", "q", "ruby", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time", "tt", "u"),
    *("var", "wbr"),
)


@dataclass(frozen=True, slots=True)
class Outline:
    """`sections` are (heading path, text) in document order; the path is empty before the first heading."""

    title: str | None
    sections: tuple[tuple[tuple[str, ...], str], ...]


class OutlineBuilder:
    """Headings and texts in document order to an `Outline`."""

    def __init__(self) -> None:
        self._path: list[tuple[int, str]] = []
        self._pieces: list[str] = []
        self._sections: list[tuple[tuple[str, ...], str]] = []
        self._bare = False  # the last heading has no text of its own yet

    def add(self, piece: str) -> None:
        self._pieces.append(piece)

    def heading(self, level: int, text: str) -> None:
        self._close(level)
        while self._path and self._path[-1][0] >= level:
            self._path.pop()
        self._path.append((level, text))
        self._bare = True

    def _close(self, level: int) -> None:
        text = "".join(self._pieces).strip("\n")
        self._pieces.clear()
        if text.strip():
            self._bare = False
        elif self._bare and level <= self._path[-1][0]:
            text = self._path[-1][1]  # a heading with nothing under it: its words would be in no text and no path
        if text.strip():
            self._sections.append((tuple(heading for _, heading in self._path), text))

    def outline(self, title: str | None) -> Outline:
        self._close(0)
        return Outline(title, tuple(self._sections))


def markdown_outline(text: str) -> Outline:
    """Sections of Markdown with `\\n` newlines, as written. The title is the first `# ` heading, else the front matter's."""
    front_title, body = _front_matter(text)
    builder, title, fence, previous = OutlineBuilder(), None, "", ""
    for line in [*body.split("\n"), ""]:
        # a line is held back until the next one shows whether it is a heading (text over === or ---)
        setext = None if fence or _NOT_PARAGRAPH.match(previous) or _ATX.match(previous) else _SETEXT.match(line)
        if setext:
            level, heading, held = (1 if setext[1][0] == "=" else 2), _plain(previous), ""
        else:
            builder.add(previous + "\n")
            fence = fence_after(fence, line)
            atx = None if fence or len(line) > HEADING_CHARS else _ATX.match(line)
            level, heading = (len(atx[1]), _plain(_atx_text(line[atx.end() :]))) if atx else (0, "")
            held = "" if heading else line
        if heading:
            builder.heading(level, heading)
            title = heading if title is None and level == 1 else title
        previous = held
    return builder.outline(title or front_title)


def fence_after(fence: str, line: str) -> str:
    """The open code fence after this line, "" when none is open."""
    match = _FENCE.match(line)
    if match is None:
        return fence
    if not fence:
        return "" if match[1][0] == "`" and "`" in match[2] else match[1]
    return "" if match[1].startswith(fence) and not match[2].strip() else fence


def _atx_text(text: str) -> str:
    text = text.strip()
    without = text.rstrip("#")
    return without.strip() if not without or without[-1] in " \t" else text


def _plain(heading: str) -> str:
    """A heading without links, emphasis, code marks and `{#anchor}`."""
    heading = _LINK.sub(r"\1", heading.strip()).replace("**", "").replace("__", "").replace("`", "")
    return heading.split(" {#")[0].strip()


def _front_matter(text: str) -> tuple[str | None, str]:
    """The YAML title and the text after the front matter. Only a block with a `key:` line is one; a rule is none."""
    if not text.startswith("---\n"):
        return None, text
    end = re.compile(r"^(---|\.\.\.)[ \t]*$", re.MULTILINE).search(text, 4)
    block = text[4 : end.start()] if end else ""
    if end is None or not re.match(r"(#.*\n|[ \t]*\n)*[\w-]+:(\s|$)", block):
        return None, text
    title = re.search(r"^title:[ \t]*(.+)$", block, re.MULTILINE)
    return (title[1].strip().strip("\"'") or None) if title else None, text[end.end() :]


def html_outline(text: str, *, name_cells: bool = False) -> Outline:
    """The page's main text without scripts, styles and navigation. The title is that of <title>, else of the first <h1>.

    `name_cells`: the cells of a table with a header row carry their columns' names (`batch: 8 | seconds: 0.11`).
    """
    from bs4 import BeautifulSoup

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # XHTML and markup without tags are both fine here
        soup = BeautifulSoup(text, "html.parser")
    titles = [" ".join(tag.get_text(" ").split()) for tag in (soup.title, soup.h1) if tag is not None]
    for tag in soup.find_all(lambda tag: tag.name in _DROPPED_TAGS or tag.get("role") == "navigation"):
        tag.extract()
    if name_cells:
        _name_cells(soup)
    main = soup.find("main")
    root = main if main is not None and any(map(str.isalnum, main.get_text())) else soup
    return _html_texts(root).outline(next(filter(None, titles), None))


def _name_cells(soup: Any) -> None:
    """Write the header's names into the cells of plain tables: those without spans or tables inside."""
    for table in soup.find_all("table"):
        rows = [row.find_all(["th", "td"]) for row in table.find_all("tr")]
        odd = table.find(lambda tag: tag.name == "table" or tag.has_attr("rowspan") or tag.has_attr("colspan"))
        if odd or len(rows) < 2 or len(rows[0]) < 2 or any(cell.name != "th" for cell in rows[0]):
            continue
        names = [" ".join(cell.get_text(" ").split()) for cell in rows[0]]
        for row in rows[1:]:
            for name, cell in zip(names, row, strict=False):
                if name and cell.get_text(strip=True):
                    cell.insert(0, f"{name}: ")
        rows[0][0].find_parent("tr").extract()


def _html_texts(root: Any) -> OutlineBuilder:
    builder, line, preformatted = OutlineBuilder(), list[str](), 0
    for event, node in _walk(root):
        if event == "text":
            line.append(str(node) if preformatted else re.sub(r"\s+", " ", node))
        elif node.name in ("td", "th"):
            line.append(" | " if event == "open" and "".join(line).strip() else "")
        elif node.name not in _INLINE_TAGS:
            text = "".join(line)
            text = text.strip("\n") if preformatted else re.sub(" +", " ", text).strip()
            line.clear()
            if node.name == "pre":
                preformatted += 1 if event == "open" else -1
            if 0 < len(text) <= HEADING_CHARS and event == "close" and re.fullmatch("h[1-6]", node.name):
                builder.heading(int(node.name[1]), " ".join(text.split()))
            elif text:
                builder.add(text + ("\n" if node.name in ("li", "tr", "br", "dt", "dd") else "\n\n"))
    builder.add(re.sub(" +", " ", "".join(line)).strip())
    return builder


def _walk(root: Any) -> Iterator[tuple[Literal["open", "text", "close"], Any]]:
    """Tags and strings in document order, on a stack of our own: broken pages nest deeper than Python recurses."""
    from bs4.element import PreformattedString, Tag

    stack = [(root, iter(root.children))]
    while stack:
        parent, children = stack[-1]
        for child in children:
            if isinstance(child, Tag):
                yield "open", child
                stack.append((child, iter(child.children)))
                break
            if not isinstance(child, PreformattedString):  # comments, doctypes
                yield "text", child
        else:
            stack.pop()
            if parent is not root:
                yield "close", parent
