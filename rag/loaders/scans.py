"""Pictures of pages to sections, by whoever reads them: in parallel, each page on its own. Knows no model and no endpoint."""

from __future__ import annotations

import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rag.errors import Cancelled, RagError
from rag.loaders import pictures
from rag.loaders.document import LoadError, Parsed, Section, has_words
from rag.loaders.media import Check, MediaReaders, PageReader, PageText, lacking, page_location, pages_named

if TYPE_CHECKING:
    from PIL.Image import Image

BEAT_SECONDS = 0.1
ENDING_KINDS = ("connection", "authentication", "model")  # no other page would fare better
SCRIPT_LETTERS = 60

Picture = Callable[[], "Image"]


@dataclass(frozen=True, slots=True)
class Read:
    """One page: its text, or why there is none."""

    number: int
    page: PageText | None
    problem: Exception | None = None


def read_image(name: str, data: bytes, readers: MediaReaders) -> Parsed:
    """A picture file: one section a page. A picture of one page has no location. Raises LoadError, Cancelled."""
    if readers.ocr is None:
        cause, cure = lacking(".png", readers) or ("", "")
        raise LoadError(name, cause, cure)
    count = pictures.pages(name, data)
    numbers = range(1, min(count, readers.ocr.max_pages) + 1)
    reads = read_pages([(number, _opener(name, data, number)) for number in numbers], readers.ocr, readers.check)
    require_some(name, reads)
    sections = [Section(text, page_location(number) if count > 1 else None, "scan") for number, text in texts(reads)]
    told = notes(reads) + not_sent(range(len(numbers) + 1, count + 1), readers.ocr.max_pages)
    return Parsed(None, sections, told, incomplete=failed(reads))


def _opener(name: str, data: bytes, number: int) -> Picture:
    return lambda: pictures.page(name, data, number)


def read_pages(pages: Iterable[tuple[int, Picture]], reader: PageReader, check: Check) -> list[Read]:
    """The pages in order. A page that fails does not stop the others, unless the reader itself is away. Raises Cancelled.

    Pictures are made here, one at a time, and at most `reader.parallel` of them are held.
    """
    done: list[Read] = []
    running: dict[Future[PageText], int] = {}
    away: Exception | None = None
    given_up = threading.Event()

    def still_wanted() -> None:
        if given_up.is_set():
            raise Cancelled("the reading was cancelled")

    with ThreadPoolExecutor(max_workers=reader.parallel, thread_name_prefix="ocr") as workers:
        try:
            for number, picture in pages:
                while len(running) >= reader.parallel:
                    away = _collect(running, done, check) or away
                check()
                if away is not None:
                    done.append(Read(number, None, away))
                    continue
                try:
                    image = picture()
                    if pictures.is_blank(image):
                        done.append(Read(number, PageText("")))
                        continue
                    running[workers.submit(reader.read, pictures.jpeg(image), still_wanted)] = number
                except Exception as problem:  # the page's own: it cannot be drawn
                    done.append(Read(number, None, problem))
            while running:
                away = _collect(running, done, check) or away
        finally:
            given_up.set()
    return sorted(done, key=lambda read: read.number)


def _collect(running: dict[Future[PageText], int], done: list[Read], check: Check) -> Exception | None:
    """Wait for some page; what is returned says that the reader is away."""
    finished: set[Future[PageText]] = set()
    while not finished:
        check()
        finished, _ = wait(running, timeout=BEAT_SECONDS, return_when=FIRST_COMPLETED)
    away = None
    for future in finished:
        number, problem = running.pop(future), future.exception()
        if problem is None:
            done.append(Read(number, future.result()))
        elif isinstance(problem, Exception):
            done.append(Read(number, None, problem))
            away = problem if getattr(problem, "kind", None) in ENDING_KINDS else away
        else:
            raise problem
    return away


# what became of them


def texts(reads: Sequence[Read]) -> list[tuple[int, str]]:
    return [(read.number, read.page.text) for read in reads if read.page is not None and has_words(read.page.text)]


def failed(reads: Sequence[Read]) -> bool:
    return any(read.problem is not None for read in reads)


def require_some(name: str, reads: Sequence[Read]) -> None:
    """Raise LoadError where not one page gave words."""
    if texts(reads):
        return
    problem = next((read.problem for read in reads if read.problem is not None), None)
    if problem is None:
        raise LoadError(name, "shows no words", "Remove it, or check that the picture can be read.")
    if isinstance(problem, LoadError) and len(reads) == 1:
        raise problem
    bad = [read.number for read in reads if read.problem is not None]
    which = f"{pages_named(bad)} could not be read: " if len(reads) > 1 else "could not be read: "
    cure = problem.next_step if isinstance(problem, RagError) else "Repair or convert the file."
    raise LoadError(name, f"{which}{_said(problem)}"[:500], cure) from problem


def notes(reads: Sequence[Read]) -> tuple[str, ...]:
    """What a reader of the document should know of its scanned pages."""
    told: list[str] = []
    reasons: dict[str, list[int]] = {}
    for read in reads:
        if read.problem is not None:
            reasons.setdefault(_said(read.problem), []).append(read.number)
        elif read.page is not None and read.page.note:
            reasons.setdefault(read.page.note, []).append(read.number)
    told += [f"{pages_named(numbers)}: {reason}"[:500] for reason, numbers in reasons.items()]
    cut = [read.number for read in reads if read.page is not None and read.page.cut]
    told += [f"{pages_named(cut)} {_was(cut)} cut at ocr.max_tokens"] if cut else []
    empty = [read.number for read in reads if read.page is not None and not has_words(read.page.text)]
    told += [f"{pages_named(empty)} {_was(empty)} read and {'has' if len(empty) == 1 else 'have'} no words"] if empty else []
    return tuple(told)


def not_sent(numbers: Sequence[int], max_pages: int) -> tuple[str, ...]:
    return (f"{pages_named(numbers)} {_was(numbers)} not read: ocr.max_pages is {max_pages:,}",) if numbers else ()


def other_script(pages: Sequence[tuple[int, str]], scanned: Iterable[int]) -> tuple[str, ...]:
    """A note on scanned pages in another script than most of the document: vision models translate what they should copy."""
    scripts = {number: found for number, text in pages if (found := _script(text)) is not None}
    if not scripts:
        return ()
    counts = Counter(scripts.values())
    main, many = counts.most_common(1)[0]
    odd = sorted(number for number in scanned if scripts.get(number, main) != main)
    if not odd or many <= len(scripts) - many:
        return ()
    found = "/".join(sorted({scripts[number].capitalize() for number in odd}))
    return (
        f"{pages_named(odd)} {_was(odd)} read as {found}, the others are {main.capitalize()}: look whether it was translated",
    )


def _script(text: str) -> str | None:
    """The script of most letters (`LATIN`, `HEBREW`), None for few letters."""
    letters = [character for character in text[:4000] if character.isalpha()]
    if len(letters) < SCRIPT_LETTERS:
        return None
    return Counter(unicodedata.name(letter, "?").split()[0] for letter in letters).most_common(1)[0][0]


def _said(problem: Exception) -> str:
    return problem.message if isinstance(problem, RagError) else f"{type(problem).__name__}: {problem}"[:300]


def _was(numbers: Sequence[int]) -> str:
    return "was" if len(numbers) == 1 else "were"
