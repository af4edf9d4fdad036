"""Word documents (.docx) to sections under their headings, by python-docx. Knows nothing of layout, images or macros.

The text is read from the XML rather than from python-docx's paragraphs, which leave out content controls, text boxes and
accepted insertions. Deleted text, field codes and tables of contents are left out.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from rag.loaders.document import Parsed, collect
from rag.loaders.numbering import Numbering
from rag.loaders.packages import check_office
from rag.loaders.rows import line, table_text
from rag.loaders.text import outlined
from rag.outlines import HEADING_CHARS, OutlineBuilder

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"  # a copy for old readers
_LEFT_OUT = {f"{_W}{tag}" for tag in ("pPr", "rPr", "tblPr", "tcPr", "trPr", "del", "moveFrom", "instrText")} | {_FALLBACK}
_TRANSPARENT = {f"{_W}{tag}" for tag in ("sdt", "sdtContent", "customXml", "ins", "moveTo", "smartTag")}
_AS_TEXT = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-"}
_FALSE = ("0", "false", "off")
MAX_COLUMNS = 63  # Word's own limit
REPEATED_CHARS = 200


def read_docx(name: str, data: bytes) -> Parsed:
    check_office(name, data)
    document = _open(data)
    styles, numbering = _Styles(document.part), Numbering(next(_related(document.part, "numbering"), None))
    builder, title = OutlineBuilder(), ""
    for block in _blocks(document.element.body):
        if block.tag == f"{_W}tbl":
            builder.add(table_text(_rows(block)) if _first_row_names(block) else _plain_rows(block))
            builder.add("\n\n")
            continue
        style, listed = styles.of(block), styles.list_of(block)
        label, text = numbering.label(*listed) if listed else "", _text(block)
        text = f"{label} {text}" if label and text else text
        if style == "title" and not title and text:
            title = " ".join(text.split())
        elif isinstance(style, int) and 0 < len(text) <= HEADING_CHARS:
            builder.heading(style, " ".join(text.split()))
        elif text and style != "contents":
            builder.add(text + ("\n" if listed else "\n\n"))
    for kind in ("footnotes", "endnotes"):
        if notes := _footnotes(document.part, kind):
            builder.heading(1, kind.capitalize())
            builder.add(notes)
    outline = builder.outline(title or _property_title(document) or None)
    parsed = outlined("docx", outline, ())
    return Parsed(parsed.title, collect(name, parsed.sections))


def _open(data: bytes) -> Any:
    """The document of a package, also where it is a template or has macros, which stay unread."""
    from docx.opc.part import PartFactory
    from docx.package import Package
    from docx.parts.document import DocumentPart

    for kind in (
        "application/vnd.ms-word.document.macroEnabled.main+xml",
        "application/vnd.ms-word.template.macroEnabledTemplate.main+xml",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.template.main+xml",
    ):
        PartFactory.part_type_for.setdefault(kind, DocumentPart)
    part: Any = Package.open(io.BytesIO(data)).main_document_part
    return part.document


def _property_title(document: Any) -> str:
    try:
        return str(document.core_properties.title or "").strip()
    except Exception:  # broken properties are no reason to refuse the text
        return ""


class _Styles:
    """What a paragraph is: a heading's level from 1 on, "title", "contents" (a line of the table of contents), or None."""

    def __init__(self, part: Any) -> None:
        elements = part.styles.element.findall(f"{_W}style")
        self._styles = {element.get(f"{_W}styleId"): element for element in elements}

    def of(self, paragraph: Any) -> int | str | None:
        level = _outline_level(paragraph)
        style = paragraph.find(f"{_W}pPr/{_W}pStyle")
        return level or (self._kind(style.get(f"{_W}val")) if style is not None else None)

    def list_of(self, paragraph: Any) -> tuple[str | None, int, str | None] | None:
        """List, level and the style that brought them: `Numbering.label`'s arguments; None outside lists."""
        element, style_id, seen = paragraph, _value(paragraph, "pPr/pStyle"), set[str | None]()
        by_style = None
        while _value(element, "pPr/numPr/numId") is None:
            if style_id not in self._styles or style_id in seen:
                return None
            seen.add(style_id)
            element, by_style = self._styles[style_id], style_id
            style_id = _value(element, "basedOn")
        level = _value(element, "pPr/numPr/ilvl") or "0"
        return _value(element, "pPr/numPr/numId"), int(level) if level.isdecimal() else 0, by_style

    def _kind(self, style_id: str | None) -> int | str | None:
        seen: set[str | None] = set()
        while style_id in self._styles and style_id not in seen:
            seen.add(style_id)
            style = self._styles[style_id]
            word, _, number = str(_value(style, "name") or "").lower().partition(" ")
            if word == "heading" and number.isdecimal():
                return int(number)
            if word in ("title", "toc"):
                return "title" if word == "title" else "contents"
            if level := _outline_level(style):
                return level
            style_id = _value(style, "basedOn")
        return None


def _value(element: Any, path: str) -> str | None:
    child = element.find("/".join(f"{_W}{tag}" for tag in path.split("/")))
    return child.get(f"{_W}val") if child is not None else None


def _outline_level(element: Any) -> int | None:
    value = _value(element, "pPr/outlineLvl")
    return int(value) + 1 if value is not None and value.isdecimal() and int(value) < 9 else None


def _blocks(container: Any) -> Iterator[Any]:
    """Paragraphs and tables in order, those in content controls and tracked insertions too."""
    for child in container:
        if child.tag in (f"{_W}p", f"{_W}tbl"):
            yield child
        elif child.tag in _TRANSPARENT:
            yield from _blocks(child)


def _text(element: Any) -> str:
    return "".join(_pieces(element)).strip()


def _pieces(element: Any) -> Iterator[str]:
    for child in element:
        tag = child.tag
        if not isinstance(tag, str) or tag in _LEFT_OUT:  # a comment's tag is a function
            continue
        if tag in _AS_TEXT:
            yield _AS_TEXT[tag]
        elif tag.endswith("}t"):  # of Word, of a formula, of a drawing
            yield child.text or ""
        else:
            yield "\n" if tag == f"{_W}p" else ""
            yield from _pieces(child)


def _rows(table: Any) -> list[list[str]]:
    """Cells by column: one that spans columns leaves the next ones empty, one that spans rows is repeated in each."""
    rows: list[list[str]] = []
    for row in _children(table, "tr"):
        cells: list[str] = []
        for cell in _children(row, "tc"):
            merge = cell.find(f"{_W}tcPr/{_W}vMerge")
            goes_on = merge is not None and merge.get(f"{_W}val") != "restart"
            above = rows[-1][len(cells)] if goes_on and rows and len(cells) < len(rows[-1]) else ""
            span = _value(cell, "tcPr/gridSpan") or "1"
            width = min(int(span), MAX_COLUMNS - len(cells)) if span.isdecimal() else 1
            cells += [_text(cell) or (above if len(above) <= REPEATED_CHARS else ""), *[""] * (width - 1)]
        rows.append(cells)
    return rows


def _children(parent: Any, tag: str) -> Iterator[Any]:
    for child in parent:
        if child.tag == f"{_W}{tag}":
            yield child
        elif child.tag in _TRANSPARENT:
            yield from _children(child, tag)


def _first_row_names(table: Any) -> bool:
    """Word's own switch "Header Row", on unless it says otherwise."""
    look = table.find(f"{_W}tblPr/{_W}tblLook")
    return look is None or look.get(f"{_W}firstRow") not in _FALSE


def _plain_rows(table: Any) -> str:
    return "\n".join(filter(None, (line((), cells) for cells in _rows(table))))


def _footnotes(part: Any, kind: str) -> str:
    """The texts of the notes, one a line; "" where there are none."""
    texts = [" ".join(_text(note).split()) for root in _related(part, kind) for note in root if note.get(f"{_W}type") is None]
    return "\n".join(filter(None, texts))


def _related(part: Any, kind: str) -> Iterator[Any]:
    """The root elements of the parts that the document refers to as `kind`."""
    from lxml import etree  # type: ignore[import-untyped]

    for relation in part.rels.values():
        if not relation.is_external and relation.reltype.endswith(f"/{kind}"):
            yield etree.fromstring(relation.target_part.blob, etree.XMLParser(resolve_entities=False, no_network=True))
