"""What reads pictures and recordings (protocols, their answers) and how a place in one is written and read back.

Knows neither how an endpoint is asked (`rag.media`) nor what a picture or a recording looks like.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rag.loaders.document import SEPARATOR

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")
AUDIO = (".mp3", ".wav", ".m4a", ".ogg", ".opus", ".flac")
VIDEO = (".mp4", ".mkv", ".mov", ".webm")  # .webm may be sound alone: players and servers do not mind
RECORDINGS = AUDIO + VIDEO

NO_OCR = "Set ocr.base_url to the endpoint of a vision model."
NO_SPEECH = "Set speech.base_url to a transcription endpoint (a Whisper server)."

Check = Callable[[], None]  # raises Cancelled when the work is no longer wanted


@dataclass(frozen=True, slots=True)
class PageText:
    """A page as Markdown, "" for an empty one. `cut`: the model reached its token limit. `note`: what else is odd, or ""."""

    text: str
    cut: bool = False
    note: str = ""


class PageReader(Protocol):
    """Reads pictures of pages, up to `parallel` at once, at most `max_pages` of a file. Thread-safe."""

    @property
    def identity(self) -> str:
        """Who reads: changes when another model is set, not when the server moves."""
        ...

    @property
    def max_pages(self) -> int: ...

    @property
    def parallel(self) -> int: ...

    def read(self, image: bytes, check: Check) -> PageText:
        """The text of a JPEG. Raises RagError, and whatever `check` raises."""
        ...


@dataclass(frozen=True, slots=True)
class Segment:
    """What was said from `start` to `end`, in seconds; the model's own doubts where the server tells them.

    `no_speech` is a probability, `logprob` the mean of the tokens', `compression` characters : bytes of the packed text.
    """

    start: float
    end: float
    text: str
    no_speech: float | None = None
    logprob: float | None = None
    compression: float | None = None


@dataclass(frozen=True, slots=True)
class Transcript:
    """A recording in words. Without `segments` there is only `text`. `language` is an ISO 639-1 code where the server knows.

    `failed` are stretches (start, end, reason) that could not be read, though others could.
    """

    text: str
    segments: tuple[Segment, ...] = ()
    language: str | None = None
    notes: tuple[str, ...] = ()
    failed: tuple[tuple[float, float, str], ...] = ()


class Transcriber(Protocol):
    """Turns recordings into words. Thread-safe."""

    @property
    def identity(self) -> str: ...

    @property
    def language(self) -> str | None:
        """The ISO 639-1 code that the user says is spoken; None where the model shall find out."""
        ...

    def transcribe(self, data: bytes, name: str, check: Check) -> Transcript:
        """`name` is the file's; its suffix tells the container. Raises RagError, and whatever `check` raises."""
        ...


def _wanted() -> None:
    """Nobody cancels."""


@dataclass(frozen=True, slots=True)
class MediaReaders:
    """What is there to read pictures and speech; None where no endpoint is set. `check` is asked between and during requests."""

    ocr: PageReader | None = None
    speech: Transcriber | None = None
    check: Check = _wanted

    def fingerprint(self, path: Path) -> str:
        """Who would read such a file; "" where nobody here has to. Belongs into whatever decides that a file is unchanged."""
        suffix = path.suffix.lower()
        reader = self.speech if suffix in RECORDINGS else self.ocr if suffix in (*IMAGES, ".pdf") else None
        return reader.identity if reader else ""


NONE = MediaReaders()


def lacking(suffix: str, readers: MediaReaders) -> tuple[str, str] | None:
    """Why files of this suffix cannot be read here, and the next step; None where they can."""
    if suffix in IMAGES and readers.ocr is None:
        return "pictures need text recognition, and ocr.base_url is not set", NO_OCR
    if suffix in RECORDINGS and readers.speech is None:
        return "recordings need speech recognition, and speech.base_url is not set", NO_SPEECH
    return None


# places


def page_location(number: int) -> str:
    return f"p. {number}"


def page_of(location: str | None) -> int | None:
    """The (first) page of a location such as `p. 3` or `Article 7 › p. 3`, None where it names none."""
    found = re.search(rf"(?:^|{SEPARATOR})p\. (\d{{1,7}})(?!\d)", location or "")
    return int(found[1]) if found else None


def clock(seconds: float) -> str:
    """`00:01:23`, hours always, whole seconds."""
    whole = int(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def time_location(start: float, end: float) -> str:
    """`00:01:23 – 00:01:47`: the second that the start is in, and the one by which the end has passed."""
    return f"{clock(start)} – {clock(math.ceil(end))}"


def second_of(location: str | None) -> int | None:
    """The second at which a location of a recording begins, None where it names none."""
    found = re.search(rf"(?:^|{SEPARATOR})(\d{{2,5}}):([0-5]\d):([0-5]\d)(?!\d)", location or "")
    return int(found[1]) * 3600 + int(found[2]) * 60 + int(found[3]) if found else None


def ranges(numbers: Sequence[int]) -> str:
    """`1–3, 7` of sorted numbers."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in parts)


def pages_named(numbers: Sequence[int]) -> str:
    return f"{'page' if len(numbers) == 1 else 'pages'} {ranges(numbers)}"
