"""CSV and its relatives to sections of rows. Knows nothing of types: a cell is a text."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from rag.loaders.document import LoadError, Parsed, collect
from rag.loaders.rows import Row, named_lines, numbered, sections
from rag.loaders.text import decode

DELIMITERS = ",;\t|"
SAMPLE_RECORDS = 50
SAMPLE_CHARS = 200_000


def read_csv(name: str, data: bytes) -> Parsed:
    text, notes = decode(name, data)
    if text[:4].lower() == "sep=":  # Excel's own way to say it
        delimiter, skipped = text[4:5], 1
    else:
        delimiter, skipped = find_delimiter(text), 0
    rows = _rows(name, text, delimiter, skipped)
    return Parsed(None, collect(name, sections(named_lines(rows), lambda first, last: numbered("row", first, last))), notes)


def find_delimiter(text: str) -> str:
    """The delimiter by which most records of the beginning have one number of fields, and more than one; else a comma."""
    sample = text[:SAMPLE_CHARS]
    if len(text) > SAMPLE_CHARS:
        sample = sample[: sample.rfind("\n") + 1]

    def merit(delimiter: str) -> tuple[float, int]:
        try:
            records = list(islice(csv.reader(io.StringIO(sample), delimiter=delimiter), SAMPLE_RECORDS))
        except csv.Error:
            return 0.0, 0
        widths = Counter(len(record) for record in records if record)
        width, times = widths.most_common(1)[0] if widths else (1, 0)
        return (times / widths.total(), width) if width > 1 else (0.0, 0)

    return max(DELIMITERS, key=merit)


def _rows(name: str, text: str, delimiter: str, skipped: int) -> Iterator[Row]:
    """Records with their numbers, the first is 1, as a spreadsheet shows them. Raises LoadError."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    number = 0
    try:
        for number, record in enumerate(reader, start=1):
            if number > skipped:
                yield number, record
    except csv.Error as problem:
        cause = f"is broken after row {number} ({problem}); a quote may be open"
        raise LoadError(name, cause, "Close the quote, or save the table again as CSV.") from problem
