"""EPUB books to sections under their chapters' headings. No library: the readable one is AGPL, and a book is HTML in a ZIP.

Knows nothing of styles, scripts or images. A book whose chapters are encrypted (DRM) is refused.
"""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from rag.loaders.document import SEPARATOR, LoadError, Parsed, Section, collect, short
from rag.loaders.packages import open_package
from rag.loaders.text import decode
from rag.outlines import html_outline

MAX_PART_BYTES = 20_000_000  # beautifulsoup holds a chapter at some twenty times its size
_FONTS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")  # obfuscated fonts: the text is open
_PAGES = ("application/xhtml+xml", "text/html", "text/x-oeb1-document")


def read_epub(name: str, data: bytes) -> Parsed:
    with open_package(name, data) as archive:
        _refuse_locked(name, archive)
        root = _xml(name, archive, "META-INF/container.xml")
        place = next((item.get("full-path") for item in root.iter() if _tag(item) == "rootfile"), None)
        if not place:
            raise LoadError(name, "is a broken EPUB book: it does not say where its contents are", "Convert it again.")
        package = _xml(name, archive, place)
        title = next((short(item.text, 300) for item in package.iter() if _tag(item) == "title"), "")
        missing: list[str] = []
        sections = collect(name, _chapters(name, archive, posixpath.dirname(place), package, title, missing))
    notes = (f"chapters that are missing from the file: {', '.join(missing)}"[:500],) if missing else ()
    return Parsed(title, sections, notes)


def _chapters(
    name: str, archive: zipfile.ZipFile, folder: str, package: Any, title: str, missing: list[str]
) -> Iterator[Section]:
    """The pages in reading order. A page without a heading has its own title or its number as its place."""
    items = {item.get("id"): item for item in package.iter() if _tag(item) == "item" and item.get("media-type") in _PAGES}
    spine = list(dict.fromkeys(item.get("idref") for item in package.iter() if _tag(item) == "itemref"))
    entries, seen = set(archive.namelist()), set[str]()
    for number, idref in enumerate(spine, start=1):
        if idref not in items:
            continue
        path = posixpath.normpath(posixpath.join(folder, unquote(items[idref].get("href") or "")))
        if path not in entries:
            missing.append(path)
        if path not in entries or path in seen:
            continue
        seen.add(path)
        page = _read(name, archive, path)
        declared = re.match(rb"[^>]*encoding\s*=\s*[\"']([\w-]+)", page[:200])
        outline = html_outline(decode(name, page, declared[1].decode("ascii") if declared else None)[0], name_cells=True)
        own = short(outline.title, 300)
        for headings, text in outline.sections:
            fallback = own if own and own.casefold() != title.casefold() else f"part {number}"
            yield Section(text, SEPARATOR.join(short(item, 300) for item in headings) or fallback, "html")


def _refuse_locked(name: str, archive: zipfile.ZipFile) -> None:
    if "META-INF/encryption.xml" not in archive.namelist():
        return
    methods = [
        item.get("Algorithm")
        for item in _xml(name, archive, "META-INF/encryption.xml").iter()
        if _tag(item) == "EncryptionMethod"
    ]
    if any(method not in _FONTS for method in methods):
        raise LoadError(name, "is encrypted (copy protection)", "Use a copy of the book without protection.")


def _xml(name: str, archive: zipfile.ZipFile, entry: str) -> Any:
    """The root element. Entities raise defusedxml's error; they are never expanded and nothing is fetched."""
    from defusedxml.ElementTree import fromstring  # type: ignore[import-untyped]

    if entry not in archive.namelist():
        raise LoadError(name, f"is a broken EPUB book: it has no {entry!r:.200}", "Convert it again.")
    return fromstring(_read(name, archive, entry))


def _read(name: str, archive: zipfile.ZipFile, entry: str) -> bytes:
    if (size := archive.getinfo(entry).file_size) > MAX_PART_BYTES:
        raise LoadError(
            name, f"has a part of {size:,} bytes ({entry!r:.200}); the limit is {MAX_PART_BYTES:,}", "Split the book."
        )
    return archive.read(entry)


def _tag(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]
