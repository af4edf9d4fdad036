"""Recordings to sections of half a minute with their times, from what a transcriber heard. Knows no endpoint and no container."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rag.errors import Cancelled, RagError
from rag.loaders.document import LoadError, Parsed, Section, has_words
from rag.loaders.language import LANGUAGE_LETTERS, detect_language
from rag.loaders.media import MediaReaders, Segment, Transcriber, Transcript, lacking, time_location

ENOUGH_SECONDS = 20.0  # a citation opens at its section's start: longer would open too early, shorter would hold no thought
MOST_SECONDS = 40.0
MOST_CHARS = 700
PAUSE_SECONDS = 4.0
NO_SPEECH = 0.6  # Whisper's own thresholds (no_speech_threshold, logprob_threshold, compression_ratio_threshold)
UNSURE_LOGPROB = -1.0
REPETITIVE = 2.4
REPEATS = 3  # the same sentence so many times in a row is a loop of the model
NAMED = 5

_SENTENCE_ENDS = tuple(".?!…。？！؟׃")
_CLOSING = "\"'”’»)]"


def read_recording(name: str, data: bytes, readers: MediaReaders) -> Parsed:
    """Sections with times where the server tells them. Raises LoadError, Cancelled."""
    if readers.speech is None:
        cause, cure = lacking(".wav", readers) or ("", "")
        raise LoadError(name, cause, cure)
    heard = _heard(name, data, readers.speech, readers)
    kept, notes = without_loops(*without_silence(ordered(heard.segments)))
    if heard.segments:
        sections = [Section(item.text, time_location(item.start, item.end), "speech") for item in grouped(kept)]
    else:
        sections = [Section(heard.text, None, "speech")] if has_words(heard.text) else []
        notes = ("the server gave a text without times: citations cannot open at the second",) if sections else ()
    if not sections:
        doubt = f" ({'; '.join(notes)})" if notes else ""
        raise LoadError(name, f"holds no speech that was understood{doubt}"[:500], "Listen to it; remove it if nobody speaks.")
    lost = tuple(f"{time_location(start, end)} could not be read: {why}"[:500] for start, end, why in heard.failed)
    doubts = _language_notes(heard, readers.speech, " ".join(section.text for section in sections))
    return Parsed(None, sections, (*heard.notes, *lost, *notes, *doubts), heard.language, incomplete=bool(heard.failed))


def _heard(name: str, data: bytes, transcriber: Transcriber, readers: MediaReaders) -> Transcript:
    readers.check()
    try:
        return transcriber.transcribe(data, name, readers.check)
    except (Cancelled, LoadError):
        raise
    except RagError as problem:  # the server's trouble: other files do not need it
        raise LoadError(name, f"could not be transcribed: {problem.message}"[:500], problem.next_step) from problem


def ordered(segments: Sequence[Segment]) -> list[Segment]:
    """In order of time, none ending before it starts, texts trimmed; those without words are left out."""
    tidy = (
        replace(item, start=max(0.0, item.start), end=max(0.0, item.start, item.end), text=item.text.strip()) for item in segments
    )
    return sorted((item for item in tidy if has_words(item.text)), key=lambda item: item.start)


def without_silence(segments: Sequence[Segment]) -> tuple[list[Segment], tuple[str, ...]]:
    """Without what the model made of silence: probably no speech, and unsure of its own words."""
    silent = [item for item in segments if (item.no_speech or 0) > NO_SPEECH and (item.logprob or 0) < UNSURE_LOGPROB]
    kept = [item for item in segments if item not in silent]
    return kept, (_left_out("words that were probably heard in silence", silent),) if silent else ()


def without_loops(segments: Sequence[Segment], notes: tuple[str, ...] = ()) -> tuple[list[Segment], tuple[str, ...]]:
    """One of each run of REPEATS equal segments, and none that repeats itself inside and is unsure of it."""
    kept: list[Segment] = []
    dropped: list[Segment] = []
    for run in _runs(segments):
        inside = [item for item in run if (item.compression or 0) > REPETITIVE and (item.logprob or 0) < UNSURE_LOGPROB]
        good = [item for item in run if item not in inside]
        keep = 1 if len(good) >= REPEATS else len(good)
        kept += good[:keep]
        dropped += [*inside, *good[keep:]]
    return kept, (*notes, _left_out("repetitions that no one speaks", dropped)) if dropped else notes


def _runs(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    run: list[Segment] = []
    for item in segments:
        if run and item.text.casefold() != run[-1].text.casefold():
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def _left_out(what: str, segments: Sequence[Segment]) -> str:
    shown = ", ".join(time_location(item.start, item.end) for item in sorted(segments, key=lambda item: item.start)[:NAMED])
    more = f" and {len(segments) - NAMED} more" if len(segments) > NAMED else ""
    return f"left out {what}: {shown}{more}"


def grouped(segments: Sequence[Segment]) -> Iterator[Segment]:
    """Neighbours joined to ENOUGH_SECONDS and the end of a sentence, at most MOST_SECONDS or MOST_CHARS, never over a pause."""
    held: Segment | None = None
    for item in segments:
        if held is not None and _belongs(held, item):
            held = Segment(held.start, max(held.end, item.end), f"{held.text} {item.text}")
            continue
        if held is not None:
            yield held
        held = item
    if held is not None:
        yield held


def _belongs(held: Segment, item: Segment) -> bool:
    seconds, chars = item.end - held.start, len(held.text) + len(item.text)
    if seconds > MOST_SECONDS or chars > MOST_CHARS or item.start - held.end > PAUSE_SECONDS:
        return False
    return held.end - held.start < ENOUGH_SECONDS or not held.text.rstrip(_CLOSING).endswith(_SENTENCE_ENDS)


def _language_notes(heard: Transcript, transcriber: Transcriber, text: str) -> tuple[str, ...]:
    """Where what was heard, what the user said is spoken and what the words look like disagree."""
    said, wanted = heard.language, transcriber.language
    if said and wanted and said != wanted:
        return (f"heard as `{said}`, while speech.language is `{wanted}`: look whether it was translated or misheard",)
    claimed = said or wanted
    if not claimed or sum(map(str.isalpha, text)) < 5 * LANGUAGE_LETTERS:
        return ()
    looks = detect_language([Section(text, None, "speech")])
    if looks is None or looks == claimed:
        return ()
    return (f"the server says `{claimed}`, the words look like `{looks}`: look whether it was translated or misheard",)
