"""PDF pages to sections, by pypdf. Knows nothing of scanned pages but that they have no text."""

from __future__ import annotations

import io
import logging
import re
from typing import Any

from rag.loaders.document import LoadError, Parsed, Section, has_words


def read_pdf(name: str, data: bytes) -> Parsed:
    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of every oddity that it reads past
    try:
        reader = PdfReader(io.BytesIO(data))
        locked = reader.is_encrypted and not reader.decrypt("")  # many are encrypted only against editing: no password
        pages = 0 if locked else len(reader.pages)
    except Exception as problem:  # pypdf raises more than its own errors on broken files
        cause = f"is a broken PDF ({problem})"[:500]
        raise LoadError(name, cause, "Open it in a viewer and save or print it again as PDF.") from problem
    if locked:
        raise LoadError(name, "is encrypted with a password", "Save a copy without the password and ingest that.")
    sections, empty, broken = [], 0, list[int]()
    for number in range(1, pages + 1):
        try:
            text = reader.pages[number - 1].extract_text()
        except Exception:  # as above; the other pages are still good
            broken.append(number)
            continue
        if has_words(text):
            sections.append(Section(text, f"p. {number}", "pdf"))
        else:
            empty += 1
    if not sections:
        cause = f"none of its {pages} pages can be read" if broken else f"has no text on its {pages} pages, only images"
        cure = "Print it again as PDF." if broken else "Run text recognition over it (for example ocrmypdf) first."
        raise LoadError(name, cause, cure)
    notes = [f"pages that could not be read: {', '.join(map(str, broken))}"[:500]] if broken else []
    notes += [f"{empty} of {pages} pages have no text (images need text recognition)"] if empty else []
    return Parsed(_title(reader), sections, tuple(notes))


def _title(reader: Any) -> str | None:
    """The title of the metadata, unless a program put a file name or nothing there."""
    try:
        title = str(reader.metadata.title or "").strip()
    except Exception:  # a broken title is no reason to refuse the text
        return None
    return None if re.match(r"(untitled|microsoft word - |.*\.(docx?|indd|tex|dvi)$)", title, re.IGNORECASE) else title or None
