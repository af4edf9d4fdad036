"""Excel workbooks (.xlsx) to sections of rows, by openpyxl, read as a stream. Knows nothing of charts, colours or macros.

A formula's cell has the value that was stored when the file was last computed; nothing is computed here.
"""

from __future__ import annotations

import datetime
import io
import re
import warnings
import zipfile
from collections.abc import Iterator
from itertools import islice
from typing import Any

from rag.loaders.document import MAX_TEXT_CHARS, LoadError, Parsed, Section, collect
from rag.loaders.packages import check_office
from rag.loaders.rows import Row, named_lines, numbered, sections

MAX_ROWS = 1_048_576  # Excel's own; a forged row number would else stand for billions of empty rows
MAX_CELLS = 30_000_000
BLOCK_BYTES = 1_000_000
STREAMED = ("xl/worksheets/", "xl/sharedStrings")

_NO_VALUE = re.compile(rb"<f[ >][^<]*</f>(<v\s*/>|<v></v>)?</c>")


def read_xlsx(name: str, data: bytes) -> Parsed:
    from openpyxl import load_workbook  # type: ignore[import-untyped]

    check_office(name, data, streamed=STREAMED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of extensions and styles it does not know
        workbook = load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
        try:
            found = collect(name, _all(name, workbook))
            title = str(workbook.properties.title or "").strip() or None
        finally:
            workbook.close()
    unknown = _formulas_without_value(data)
    notes = (
        (f"{unknown} formulas have no stored value and were left out; save the workbook in its own program",) if unknown else ()
    )
    return Parsed(title, found, notes)


def _all(name: str, workbook: Any) -> Iterator[Section]:
    cells_left = MAX_CELLS
    for sheet in workbook.worksheets:
        sheet.reset_dimensions()  # they are often wrong, and every row would be padded to them

        def rows(sheet: Any = sheet) -> Iterator[Row]:
            nonlocal cells_left
            for number, cells in enumerate(islice(sheet.iter_rows(), MAX_ROWS), start=1):
                cells_left -= len(cells)
                if cells_left < 0:
                    raise LoadError(name, f"holds more than {MAX_CELLS:,} cells", "Split the workbook, or save it as CSV.")
                texts = [_cell(cell) for cell in cells]
                if sum(map(len, texts)) > MAX_TEXT_CHARS:  # many cells can share one long text
                    raise LoadError(name, f"has a row of more than {MAX_TEXT_CHARS:,} characters", "Save the workbook again.")
                yield number, texts

        where = f"sheet {sheet.title}"
        yield from sections(named_lines(rows()), lambda first, last, where=where: f"{where}, {numbered('row', first, last)}")  # type: ignore[misc]


def _cell(cell: Any) -> str:
    """A value as a person reads it: whole dates without a time, percentages as such, numbers without binary dust."""
    value = cell.value
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int | float):
        percent = "%" in (cell.number_format or "")
        return f"{value * 100:.10g}%" if percent else f"{value:.15g}" if isinstance(value, float) else str(value)
    if isinstance(value, datetime.datetime):
        text = value.isoformat(" ", "seconds")
        return text.removesuffix(" 00:00:00")
    return str(value)


def _formulas_without_value(data: bytes) -> int:
    """How many formulas were never computed: programs that write workbooks without Excel leave their values out."""
    count = 0
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in archive.namelist():
            if not entry.startswith("xl/worksheets/"):
                continue
            rest = b""
            with archive.open(entry) as handle:
                while block := handle.read(BLOCK_BYTES):
                    whole, end, rest = (rest + block).rpartition(b"</c>")
                    count += len(_NO_VALUE.findall(whole + end))
                    rest = rest[-BLOCK_BYTES:]
    return count
