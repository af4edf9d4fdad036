"""Rows of cells to lines in which every value carries its column's name, and lines to sections with row numbers.

Knows no file format. Cells are texts; "" is an empty one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from rag.loaders.document import Section

SECTION_CHARS = 800  # about one passage: a citation names few rows
LOOK_ROWS = 12  # how far a header is looked for, and its columns' values
LABEL_CHARS = 100
MIN_FILLED_RATIO = 0.6

Row = tuple[int, Sequence[str]]
Line = tuple[int, str]

_DATE = r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T]\d{1,2}:\d\d(:\d\d(\.\d+)?)?)?"
_NUMBER = r"[-+−(]?\s*[$€£₪¥]?\s*[-−]?[\d.,'’\s]*\d[\d.,]*([eE][-+]?\d+)?\s*[%$€£₪¥)]*"
_VALUE = re.compile(rf"{_DATE}|{_NUMBER}|\d{{1,2}}:\d\d(:\d\d)?|true|false", re.IGNORECASE)
_YEAR = re.compile(r"(19|20)\d\d")


def line(names: Sequence[str], cells: Sequence[str]) -> str:
    """`Name: Ada; Role: engineer`; cells of a column without a name stand alone. "" for an empty row."""
    named = []
    for index, cell in enumerate(cells):
        if value := " ".join(cell.split()):
            name = names[index] if index < len(names) else ""
            named.append(f"{name}: {value}" if name else value)
    return ("; " if any(names) else " | ").join(named)


def named_lines(rows: Iterable[Row]) -> Iterator[Line]:
    """A line for each row with something in it. Blank rows part tables; each may have a header of its own.

    The first table's header is its first row of labels that fills most columns. A later table has one only where the
    cells below it are numbers or dates: a gap in a list must not turn a person's row into column names.
    """
    names: Sequence[str] = ()
    first, stream = True, iter(rows)
    while True:
        block = _until_blank(stream)
        head = list(islice(block, LOOK_ROWS))
        if not head:
            return
        at = _header(head, certain=not first)
        widest = max(len(_filled(cells)) for _, cells in head)
        if at is None and (widest == 1 or max(len(cells) for _, cells in head) > len(names)):
            names = names if widest == 1 else ()
        shown = () if at is not None or widest == 1 else names
        for index, (number, cells) in enumerate(head):
            if index == at:
                names = shown = [" ".join(cell.split()) for cell in cells]
            else:
                yield number, line(shown, cells)
        for number, cells in block:
            yield number, line(shown, cells)
        first = first and widest == 1  # a title above the table is no table


def _until_blank(rows: Iterator[Row]) -> Iterator[Row]:
    """The next rows up to a blank one; blank rows before them are passed over."""
    begun = False
    for number, cells in rows:
        if any(not cell.isspace() for cell in cells if cell):
            begun = True
            yield number, cells
        elif begun:
            return


def _filled(cells: Sequence[str]) -> list[str]:
    return [cell.strip() for cell in cells if cell.strip()]


def _header(head: Sequence[Row], *, certain: bool) -> int | None:
    """The index of the row that names the columns; `certain`: only where values below it show that it is one."""
    widest = max(len(_filled(cells)) for _, cells in head)
    if widest < 2:
        return None
    for index, (_, cells) in enumerate(head[:-1]):
        filled = _filled(cells)
        if len(filled) >= MIN_FILLED_RATIO * widest and len(filled) >= 2:
            below = [row for _, row in head[index + 1 :]]
            return index if _labels(filled) and (not certain or _values_below(cells, below)) else None
    return None


def _labels(cells: Sequence[str]) -> bool:
    """Whether these can be column names: short texts, or years beside at least one text."""
    texts = [cell for cell in cells if not _VALUE.fullmatch(cell)]
    years = [cell for cell in cells if _YEAR.fullmatch(cell)]
    return bool(texts) and len(texts) + len(years) == len(cells) and max(map(len, cells)) <= LABEL_CHARS


def _values_below(cells: Sequence[str], below: Sequence[Sequence[str]]) -> bool:
    columns = [index for index, cell in enumerate(cells) if cell.strip()]
    return any(
        _VALUE.fullmatch(row[index].strip()) for row in below for index in columns if index < len(row) and row[index].strip()
    )


def table_text(rows: Sequence[Sequence[str]]) -> str:
    """A small table as lines, for a format whose sections are larger than a table."""
    return "\n".join(text for _, text in named_lines(enumerate(rows, start=1)))


def sections(lines: Iterable[Line], locate: Callable[[int, int], str]) -> Iterator[Section]:
    """Neighbouring lines together, up to SECTION_CHARS; `locate(first, last)` names their rows."""
    texts: list[str] = []
    first = last = length = 0
    for number, text in lines:
        if not text:
            continue
        if texts and length + len(text) > SECTION_CHARS:
            yield Section("\n".join(texts), locate(first, last), "rows")
            texts, length = [], 0
        first = first if texts else number
        texts.append(text)
        last, length = number, length + len(text)
    if texts:
        yield Section("\n".join(texts), locate(first, last), "rows")


def numbered(noun: str, first: int, last: int) -> str:
    """`row 12` or `rows 2–40`."""
    return f"{noun} {first}" if first == last else f"{noun}s {first}–{last}"
