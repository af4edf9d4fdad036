"""The original behind a passage: the page of a scan or PDF, the picture, the recording at the second. Knows no query and no job.

What is shown of a picture or PDF is a JPEG made here, of a bounded size: the browser never gets the file itself. Recordings go
to the browser's own player.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from rag.errors import RagError
from rag.loaders import pictures, read
from rag.loaders.media import AUDIO, IMAGES, VIDEO, clock, page_of, second_of
from rag.loaders.render import PdfPages
from rag.types import Passage
from ui import cards
from ui.format import code_html, escape

if TYPE_CHECKING:
    from PIL.Image import Image

PARAMETER = "open"  # of the address: which passage's original is open
SHOWN_PIXELS = 1_600_000
MAX_BYTES = 500_000_000  # the player's file is held in memory while it is shown
KEPT_PAGES = 32
SHOWN = (".pdf", *IMAGES, *AUDIO, *VIDEO)
_TYPES = {
    **dict.fromkeys((".ogg", ".opus"), "audio/ogg"),
    ".mp3": "audio/mpeg",
    ".wav": "audio/wav",
    ".m4a": "audio/mp4",
    ".flac": "audio/flac",
    ".mp4": "video/mp4",
    ".mov": "video/mp4",  # the same container: browsers play it by this name
    ".mkv": "video/x-matroska",
    ".webm": "video/webm",
}


def button_for(passage: Passage, original: Callable[[str], Path | None], key: str) -> None:
    """A button that opens the passage's place in its original; nothing where the original is of no kind that is shown.

    `original` gives the path of a document_id, None where it is not kept. `key` is unique on the page and stable, since it
    stands in the address (`?open=key`): who follows such a link finds the same place open.
    """
    if Path(passage.source).suffix.lower() not in SHOWN or passage.document_id is None:
        return
    if st.button(label(passage), key=f"open-{key}", type="tertiary"):
        st.query_params[PARAMETER] = key
    if st.query_params.get(PARAMETER) == key:
        _dialog(passage, original)


def label(passage: Passage) -> str:
    """What the button does: `Play at 00:01:23`, `Open page 3`, `Open the picture`."""
    suffix = Path(passage.source).suffix.lower()
    if suffix in AUDIO + VIDEO:
        second = second_of(passage.location)
        return "Play" if second is None else f"Play at {clock(second)}"
    number = page_of(passage.location)
    if number is None:
        return "Open the picture" if suffix in IMAGES else "Open the document"
    return f"Open page {number}"


def _closed() -> None:
    st.query_params.pop(PARAMETER, None)


@st.dialog("Original", width="medium", on_dismiss=_closed)
def _dialog(passage: Passage, original: Callable[[str], Path | None]) -> None:
    place = " · ".join(text for text in (passage.source, passage.location) if text)
    st.html(f'<div class="rd rd-soft rd-plain" dir="auto">{escape(place)}</div>')
    path = original(passage.document_id or "")
    if path is None:
        st.html(cards.empty("The original is not kept here.", "Add the document again on the page Knowledge."))
        return
    show(path, passage.location)
    if passage.text:
        with st.expander("What was read here"):
            st.html(f'<div class="rd rd-ptext" dir="auto">{escape(passage.text)}</div>')


def show(path: Path, location: str | None) -> None:
    """The place in the file: a page (`p. 3`), a time (`00:01:23 – 00:01:47`), else its beginning. Says what it cannot show."""
    suffix = path.suffix.lower()
    try:
        size = path.stat().st_size
    except OSError:
        st.html(cards.empty("The original is gone.", f"{path.name} was moved or deleted since it was ingested."))
        return
    if size > MAX_BYTES:
        st.html(cards.empty("The original is too large to be shown here.", f"Open {path.name} on the machine that holds it."))
    elif suffix in AUDIO + VIDEO:
        _play(path, second_of(location) or 0)
    elif suffix in (".pdf", *IMAGES):
        _page(path, size, page_of(location) or 1)
    else:
        st.html(cards.empty(f"There is no view of {suffix or 'such'} files.", "The passage above holds the text that was found."))


def _play(path: Path, second: int) -> None:
    suffix = path.suffix.lower()
    play = st.audio if suffix in AUDIO else st.video
    play(str(path), format=_TYPES[suffix], start_time=second)
    if second:
        st.caption(f"Begins at {clock(second)}.")


def _page(path: Path, size: int, number: int) -> None:
    try:
        with st.spinner("Drawing the page …", show_time=False):
            data, count = page_jpeg(str(path), path.stat().st_mtime_ns, size, number)
    except RagError as problem:
        st.html(cards.note("warn", f"<strong>{escape(problem.message)}</strong>", code_html(problem.next_step)))
        return
    about = f"Page {number} of {count}" if count > 1 else path.name
    st.image(data, width="stretch", alt=about)
    if count > 1:
        st.caption(f"{about}.")


@st.cache_data(max_entries=KEPT_PAGES, show_spinner=False)
def page_jpeg(path: str, modified_ns: int, size: int, number: int) -> tuple[bytes, int]:
    """(JPEG of at most SHOWN_PIXELS, how many pages the file has). `modified_ns` makes a changed file new. Raises RagError."""
    del modified_ns
    name, data = Path(path).name, read(Path(path), max(size, 1))
    if Path(path).suffix.lower() == ".pdf":
        return _pdf_jpeg(name, data, number)
    count = pictures.pages(name, data)
    _check(name, number, count)
    return pictures.jpeg(_fitted(pictures.page(name, data, number))), count


def _pdf_jpeg(name: str, data: bytes, number: int) -> tuple[bytes, int]:
    try:
        pages = PdfPages(data)
    except Exception as problem:  # PDFium's error has no class of its own for broken files
        raise RagError(f"{name} cannot be drawn ({problem})", kind="bad_input", next_step="Open it in a PDF viewer.") from problem
    with pages:
        _check(name, number, pages.count)
        try:
            return pictures.jpeg(pages.picture(number, SHOWN_PIXELS)), pages.count
        except Exception as problem:
            cause = f"page {number} of {name} cannot be drawn ({problem})"
            raise RagError(cause, kind="bad_input", next_step="Open it in a PDF viewer.") from problem


def _fitted(image: Image) -> Image:
    """At most SHOWN_PIXELS."""
    scale = (SHOWN_PIXELS / (image.width * image.height)) ** 0.5
    return image if scale >= 1 else image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))


def _check(name: str, number: int, count: int) -> None:
    if not 1 <= number <= count:
        cause = f"{name} has {count} pages, no page {number}"
        raise RagError(cause, kind="bad_input", next_step="It was changed since it was ingested: ingest it again.")
