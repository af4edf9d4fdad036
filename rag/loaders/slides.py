"""PowerPoint presentations (.pptx) to one section per slide, by python-pptx. Knows nothing of images, layout or animation.

A slide's text is its title, its shapes in their order (tables by column names, charts by series), then the speaker notes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from rag.loaders.document import Parsed, Section, collect
from rag.loaders.packages import check_office
from rag.loaders.rows import line, table_text


def read_pptx(name: str, data: bytes) -> Parsed:
    from pptx import Presentation

    check_office(name, data)
    presentation = Presentation(io.BytesIO(data))
    sections, broken = list[Section](), list[int]()
    for number, slide in enumerate(presentation.slides, start=1):
        try:
            sections.append(Section(_slide_text(slide), f"slide {number}", "pptx"))
        except Exception:  # python-pptx fails in many ways on odd shapes; the other slides are still good
            broken.append(number)
    notes = (f"slides that could not be read: {', '.join(map(str, broken))}"[:500],) if broken else ()
    return Parsed(_title(presentation), collect(name, sections), notes)


def _title(presentation: Any) -> str | None:
    """The title of the properties, unless PowerPoint's own placeholder; else the first slide's."""
    try:
        title = str(presentation.core_properties.title or "").strip()
    except Exception:  # broken properties are no reason to refuse the text
        title = ""
    if title and title != "PowerPoint Presentation":
        return title
    first = next(iter(presentation.slides), None)
    shape = first.shapes.title if first is not None else None
    return shape.text_frame.text.strip() or None if shape is not None else None


def _slide_text(slide: Any) -> str:
    title = slide.shapes.title
    texts = [title.text_frame.text] if title is not None else []
    own = title.shape_id if title is not None else None
    texts += [text for shape in slide.shapes if shape.shape_id != own for text in _shape_texts(shape)]
    if slide.has_notes_slide and (frame := slide.notes_slide.notes_text_frame) is not None and frame.text.strip():
        texts.append(f"Notes: {frame.text.strip()}")
    return "\n\n".join(text.strip() for text in texts if text.strip())


def _shape_texts(shape: Any) -> Iterator[str]:
    if hasattr(shape, "shapes"):  # a group
        for member in shape.shapes:
            yield from _shape_texts(member)
    elif getattr(shape, "has_table", False):
        rows = [["" if cell.is_spanned else cell.text_frame.text for cell in row.cells] for row in shape.table.rows]
        yield table_text(rows) if shape.table.first_row else "\n".join(line((), cells) for cells in rows)
    elif getattr(shape, "has_chart", False):
        yield _chart_text(shape.chart)
    elif shape.has_text_frame:
        yield shape.text_frame.text


def _chart_text(chart: Any) -> str:
    """The values as stored in the slide: a line per category, each with the names of its series."""
    title = chart.chart_title.text_frame.text if chart.has_title and chart.chart_title.has_text_frame else ""
    lines = [title]
    for plot in chart.plots:
        names = ["", *(str(series.name) for series in plot.series)]
        columns = [list(series.values) for series in plot.series]
        for index, category in enumerate(plot.categories):
            values = [f"{column[index]:.15g}" if index < len(column) and column[index] is not None else "" for column in columns]
            lines.append(line(names, [str(category), *values]))
    return "\n".join(filter(None, lines))
