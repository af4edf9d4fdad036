"""Bytes to text in whatever encoding, and the readers of plain text, Markdown and HTML. Knows nothing of files."""

from __future__ import annotations

import re

from rag.loaders.document import SEPARATOR, LoadError, Parsed, Section, SectionKind, short
from rag.outlines import Outline, html_outline, markdown_outline

SAMPLE_BYTES = 65_536
EVIDENCE_BYTES = 4  # fewer bytes beyond ASCII say nothing of their encoding

_CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1b"))
_NAMES = {
    "cp1252": "Windows-1252 (Western Europe)",
    "cp1250": "Windows-1250 (Central Europe)",
    "cp1251": "Windows-1251 (Cyrillic)",
    "cp1253": "Windows-1253 (Greek)",
    "cp1255": "Windows-1255 (Hebrew)",
    "cp1256": "Windows-1256 (Arabic)",
    "shift_jis": "Shift JIS (Japanese)",
    "gb18030": "GB 18030 (Chinese)",
}
_BEYOND_ASCII = re.compile(rb"[\x80-\xff]+")
_HEBREW_WORDS = re.compile(rb"(?<![A-Za-z\x80-\xff])[\xe0-\xfa]+(?![A-Za-z\x80-\xff])")


def decode(name: str, data: bytes, declared: str | None = None) -> tuple[str, tuple[str, ...]]:
    """Text and notes: a BOM decides, then UTF-8, then `declared`, then a guess, noted. Raises LoadError on binary content."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = data.decode("utf-16", "replace")
        if "\0" not in text:  # UTF-32 and binary files share the first bytes
            return text, (("some bytes were no UTF-16 and were replaced",) if "\ufffd" in text else ())
    if data.startswith(b"%PDF-") or b"\0" in data:
        raise LoadError(name, "not a text file", "Give it the suffix of its kind, or save it as text in UTF-8.")
    try:
        return data.decode("utf-8-sig"), ()
    except UnicodeDecodeError:
        pass
    if len(data) - len(data.translate(None, _CONTROLS)) > len(data) // 50:
        raise LoadError(name, "not a text file", "Give it the suffix of its kind, or save it as text in UTF-8.")
    for encoding in [declared] if declared else []:
        try:
            return data.decode(encoding), ()
        except (UnicodeDecodeError, LookupError):
            pass
    text = data.decode("utf-8-sig", "replace")
    wrong = text.count("\ufffd")
    if wrong * 10 <= sum(character > "\x7f" for character in text):  # UTF-8 with a few damaged bytes
        return text, (f"{wrong} bytes were no UTF-8 and were replaced",)
    return _guessed(data)


def _guessed(data: bytes) -> tuple[str, tuple[str, ...]]:
    for encoding in (_guess(data), "cp1252"):
        try:
            return data.decode(encoding), (_note(_NAMES[encoding]),)
        except UnicodeDecodeError:
            pass
    return data.decode("latin-1"), (_note("Latin-1 (Western Europe)"),)


def _note(encoding: str) -> str:
    return f"neither UTF-8 nor UTF-16; read as {encoding}. If letters look wrong, save it as UTF-8"


def _guess(data: bytes) -> str:
    """A code page by charset_normalizer. Of several that fit: Hebrew if its letters form whole words, else Western Europe."""
    from charset_normalizer import from_bytes

    runs = _BEYOND_ASCII.findall(data[:SAMPLE_BYTES])
    if sum(map(len, runs)) < EVIDENCE_BYTES:
        return "cp1252"
    sample = data[:SAMPLE_BYTES]
    if len(data) > SAMPLE_BYTES:  # not within a letter of several bytes
        sample = sample[: sample.rfind(b"\n") + 1] or sample
    matches = list(from_bytes(sample, cp_isolation=list(_NAMES)))
    if not matches:
        return "cp1252"
    best = [match for match in matches if (match.chaos, match.coherence) == (matches[0].chaos, matches[0].coherence)]
    alike = {encoding for match in best for encoding in (match.encoding, *match.could_be_from_charset)}
    if "cp1255" in alike and 2 * len(_HEBREW_WORDS.findall(sample)) > len(runs) and max(map(len, runs)) > 1:
        return "cp1255"
    return "cp1252" if "cp1252" in alike or matches[0].encoding not in _NAMES else str(matches[0].encoding)


def read_text(name: str, data: bytes) -> Parsed:
    text, notes = decode(name, data)
    return Parsed(None, [Section(text, None, "text")], notes)


def read_markdown(name: str, data: bytes) -> Parsed:
    text, notes = decode(name, data)
    return outlined("markdown", markdown_outline(text.replace("\r\n", "\n").replace("\r", "\n")), notes)


def read_html(name: str, data: bytes) -> Parsed:
    declared = re.search(rb"charset\s*=\s*[\"']?\s*([\w-]+)", data[:2048], re.IGNORECASE)
    text, notes = decode(name, data, declared[1].decode("ascii") if declared else None)
    return outlined("html", html_outline(text), notes)


def outlined(kind: SectionKind, outline: Outline, notes: tuple[str, ...]) -> Parsed:
    """Locations are heading paths without the document's title, which is shown beside them anyway."""
    title = short(outline.title, 300)
    sections = []
    for path, text in outline.sections:
        headings = [short(heading, 300) for heading in path]
        shown = headings[1:] if headings and headings[0].casefold() == title.casefold() else headings
        sections.append(Section(text, SEPARATOR.join(shown) or None, kind))
    return Parsed(title, sections, notes)
