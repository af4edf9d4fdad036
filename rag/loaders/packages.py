"""ZIP containers (.docx .pptx .xlsx .epub) opened within bounds, and what kind of file some bytes are, whatever the suffix.

Nothing is unpacked to disk, and no reference inside a file is followed. Knows nothing of texts.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterable
from typing import IO, Any
from xml.parsers import expat

from rag.loaders.document import LoadError
from rag.loaders.media import IMAGES, RECORDINGS

MAX_ENTRIES = 20_000
MAX_EXPANDED_BYTES = 500_000_000
MAX_TREE_BYTES = 100_000_000  # of XML that a library holds as a tree, at several times its size
MAX_RATIO = 250  # expanded : packed of an entry of more than RATIO_BYTES; real sheets reach about 50, bombs 1,000
RATIO_BYTES = 10_000_000
BLOCK_BYTES = 65_536

BROKEN = (zipfile.BadZipFile, zlib.error)
OFFICE = {".docx": "Word document", ".pptx": "PowerPoint presentation", ".xlsx": "Excel workbook", ".epub": "EPUB book"}

_MAGIC = (
    (b"%PDF-", "a PDF"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF87a", "a GIF image"),
    (b"GIF89a", "a GIF image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x7fELF", "a program"),
    (b"ID3\x03\0", "an MP3 recording"),
    (b"ID3\x04\0", "an MP3 recording"),
    (b"OggS\0", "an Ogg recording"),
    (b"fLaC\0", "a FLAC recording"),
    (b"\x1aE\xdf\xa3", "a video or recording (WebM or Matroska)"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"{\\rtf", "an RTF document"),
)
_PICTURE, _RECORDING = "an image", "a recording"
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_MAIN_TYPES = (
    (rb"(wordprocessingml\.(document|template)|ms-word\.\w+\.macroEnabled\w*)\.main\+xml", ".docx"),
    (rb"(presentationml\.(presentation|slideshow|template)|ms-powerpoint\.\w+\.macroEnabled\w*)\.main\+xml", ".pptx"),
    (rb"(spreadsheetml\.(sheet|template)|ms-excel\.(sheet|template)\.macroEnabled)\.main\+xml", ".xlsx"),
)


# 1) what some bytes are


def check_kind(name: str, suffix: str, data: bytes) -> None:
    """Raise LoadError where the bytes are of another kind than the suffix says, or are locked."""
    found, means = _kind(name, data), _kind_of_suffix(suffix)
    if means in (_PICTURE, _RECORDING):
        if found is not None and means.split()[-1] not in found:
            raise LoadError(name, f"holds {found}, not {means}", "Give it the suffix of its kind.")
        return
    if found == means or (found is None and suffix not in OFFICE):
        return
    if found == "an encrypted Office document":
        raise LoadError(name, "is encrypted with a password", "Save a copy without the password and ingest that.")
    if found == "a broken ZIP container" and suffix in OFFICE:
        raise broken_container(name, suffix)
    found = found or ("an HTML page" if _looks_like_html(data) else "no " + means.split(" ", 1)[1])
    cause = f"is {found}" if found.startswith("no ") else f"holds {found}, not {means}"
    raise LoadError(name, cause, "Give it the suffix of its kind, or save it again in the kind that its suffix says.")


def broken_container(name: str, suffix: str) -> LoadError:
    return LoadError(name, f"is a broken {OFFICE[suffix]}: its ZIP container is cut off or damaged", "Copy or save it again.")


def _kind_of_suffix(suffix: str) -> str:
    if suffix in OFFICE:
        return _with_article(OFFICE[suffix])
    if suffix in IMAGES + RECORDINGS:
        return _PICTURE if suffix in IMAGES else _RECORDING
    return "a PDF" if suffix == ".pdf" else "a text file"


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOU' else 'a'} {noun}"


def _kind(name: str, data: bytes) -> str | None:
    """What the first bytes, or the entries of a container, say; None where they say nothing."""
    if data.startswith(_OLE):
        locked = "EncryptedPackage".encode("utf-16-le") in data
        return "an encrypted Office document" if locked else "an Office document of before 2007 (.doc, .xls, .ppt)"
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _kind_of_zip(name, data)
    if data.startswith(b"\0\0\0") and data[4:8] == b"ftyp":
        return "a video or recording (MP4)"
    if data.startswith(b"RIFF") and data[8:12] in (b"WAVE", b"WEBP"):
        return "a WAV recording" if data[8:12] == b"WAVE" else "a WebP image"
    return next((kind for magic, kind in _MAGIC if data.startswith(magic)), None)


def _looks_like_html(data: bytes) -> bool:
    return re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html)", data[:200], re.IGNORECASE) is not None


def _kind_of_zip(name: str, data: bytes) -> str:
    try:
        archive = _archive(name, data)
        names = set(archive.namelist())
        if "[Content_Types].xml" in names:
            types = _head(archive, "[Content_Types].xml")
            suffix = next((suffix for pattern, suffix in _MAIN_TYPES if re.search(pattern, types)), None)
            return _with_article(OFFICE[suffix]) if suffix else "another kind of Office document"
        kind = _head(archive, "mimetype").strip() if "mimetype" in names else b""
    except (*BROKEN, EOFError, NotImplementedError, RuntimeError, OSError, ValueError):
        return "a broken ZIP container"
    if kind == b"application/epub+zip" or "META-INF/container.xml" in names:
        return "an EPUB book"
    return "an OpenDocument file" if kind.startswith(b"application/vnd.oasis") else "a ZIP archive"


def _head(archive: zipfile.ZipFile, entry: str, limit_bytes: int = 1_000_000) -> bytes:
    with archive.open(entry) as handle:
        return handle.read(limit_bytes)


# 2) containers


def open_package(name: str, data: bytes) -> zipfile.ZipFile:
    """The container with every bound checked before anything is expanded. Raises LoadError, zipfile.BadZipFile.

    The sizes are the directory's; an entry that expands to more than its own fails when it is read.
    """
    archive = _archive(name, data)
    entries = archive.infolist()
    if any(entry.flag_bits & 1 for entry in entries):
        raise LoadError(name, "is encrypted with a password", "Save a copy without the password and ingest that.")
    expanded = sum(entry.file_size for entry in entries)
    worst = max((entry for entry in entries if entry.file_size > RATIO_BYTES), key=_ratio, default=None)
    if expanded > MAX_EXPANDED_BYTES or (worst is not None and _ratio(worst) > MAX_RATIO):
        why = f"{len(data):,} bytes that expand to {expanded:,}" + (f", one entry {_ratio(worst):,.0f}-fold" if worst else "")
        raise LoadError(
            name, f"is or looks like a ZIP bomb ({why})", "Split the document, or save it again with its own program."
        )
    return archive


def _archive(name: str, data: bytes) -> zipfile.ZipFile:
    # counted before zipfile makes an object of each entry
    if (entries := data.count(b"PK\x01\x02")) > MAX_ENTRIES:
        raise LoadError(name, f"holds {entries:,} entries; the limit is {MAX_ENTRIES:,}", "Split the document.")
    return zipfile.ZipFile(io.BytesIO(data))


def _ratio(entry: zipfile.ZipInfo) -> float:
    return entry.file_size / max(entry.compress_size, 1)


def check_office(name: str, data: bytes, streamed: Iterable[str] = ()) -> None:
    """Bounds and XML of an Office file, before a library parses it. `streamed`: folders whose XML is never held as a tree.

    Office files have no document type declarations, and those are what entity bombs and external entities need.
    """
    with open_package(name, data) as archive:
        trees = 0
        for entry in archive.infolist():
            with archive.open(entry) as handle:
                if _declares_type(handle):
                    raise LoadError(
                        name,
                        f"declares a document type in {entry.filename!r:.200}, as entity bombs do and Office files never",
                        "Save it again with its own program if you trust it.",
                    )
            if entry.filename.endswith((".xml", ".rels", ".vml")) and not entry.filename.startswith(tuple(streamed)):
                trees += entry.file_size
    if trees > MAX_TREE_BYTES:
        raise LoadError(name, f"holds {trees:,} bytes of XML; the limit is {MAX_TREE_BYTES:,}", "Split the document.")


class _Seen(Exception):
    """The prolog has ended."""


def _declares_type(handle: IO[bytes]) -> bool:
    """Whether XML has a DOCTYPE. Reads up to the first element; what is no XML has none."""
    declared = []

    def on_doctype(*_: Any) -> None:
        declared.append(True)
        raise _Seen

    def on_element(*_: Any) -> None:
        raise _Seen

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler, parser.StartElementHandler = on_doctype, on_element
    try:
        while block := handle.read(BLOCK_BYTES):
            parser.Parse(block, False)
    except (_Seen, expat.ExpatError, LookupError, ValueError):
        pass
    return bool(declared)
