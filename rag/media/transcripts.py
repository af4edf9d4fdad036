"""A transcription endpoint's JSON to a `Transcript`. Pure: knows the shapes that servers answer in, and no HTTP.

OpenAI, faster-whisper servers and whisper.cpp send segments with numbers, vLLM its duration as a text and its doubts as null,
models without times `{"text"}` alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rag.errors import RagError
from rag.loaders.media import Segment, Transcript
from rag.media.languages import code


def transcript(answer: Any) -> Transcript:
    """Raises RagError where the answer is none of a transcription."""
    if isinstance(answer, str):
        return Transcript(answer.strip())
    if not isinstance(answer, Mapping) or not isinstance(answer.get("text"), str) and not _listed(answer):
        said = answer.get("error") if isinstance(answer, Mapping) else None
        raise RagError(
            f"the answer holds no transcription: {str(said or answer)[:200]}",
            kind="bad_answer",
            next_step="Check that speech.base_url is a transcription endpoint.",
        )
    found = [_segment(item) for item in _listed(answer)]
    segments = tuple(item for item in found if item is not None)
    text = answer.get("text") if isinstance(answer.get("text"), str) else " ".join(item.text for item in segments)
    notes = ("some segments had no times and were left out",) if len(segments) < len(found) and segments else ()
    return Transcript(str(text).strip(), segments, code(answer.get("language") or answer.get("detected_language")), notes)


def shifted(part: Transcript, seconds: float) -> tuple[Segment, ...]:
    """The segments of a part that begins at `seconds` of the whole."""
    return tuple(item.__class__(item.start + seconds, item.end + seconds, *_rest(item)) for item in part.segments)


def _rest(item: Segment) -> tuple[str, float | None, float | None, float | None]:
    return item.text, item.no_speech, item.logprob, item.compression


def _listed(answer: Mapping[str, Any]) -> Sequence[Any]:
    segments = answer.get("segments")
    return segments if isinstance(segments, list) else ()


def _segment(item: Any) -> Segment | None:
    if not isinstance(item, Mapping):
        return None
    start, end, text = _number(item.get("start")), _number(item.get("end")), item.get("text")
    if start is None or end is None or not isinstance(text, str):
        return None
    doubts = (_number(item.get(key)) for key in ("no_speech_prob", "avg_logprob", "compression_ratio"))
    return Segment(start, end, text, *doubts)


def _number(value: Any) -> float | None:
    """JSON's number, or one written as a text; None for anything else, NaN included."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
