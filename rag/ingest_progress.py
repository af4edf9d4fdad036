"""What an ingestion has done so far, as events: counts, bytes, rates, and which part of the work limits it. Knows no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gpu_server.interfaces import Embeddings
from rag.loaders import Found
from rag.types import Event, Problem

OUTCOMES = ("added", "replaced", "unchanged", "duplicate", "failed")


@dataclass(slots=True)
class Meter:
    """Counts of one run. Seconds of the parts overlap: reading, embedding and writing go on beside each other.

    `embedding_seconds` is the time in which at least one request was with the embedder; `compute_seconds` what the embedder
    says it computed. `bytes_worked` leaves unchanged files out, which say nothing of the speed.
    """

    files: int = 0
    bytes: int = 0
    started: float = 0.0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    bytes_done: float = 0.0
    bytes_worked: float = 0.0
    embedded: int = 0
    written: int = 0
    tokens: int = 0
    truncated: int = 0
    reading_seconds: float = 0.0
    embedding_seconds: float = 0.0
    compute_seconds: float = 0.0
    writing_seconds: float = 0.0

    def took(self, result: Embeddings, passages: int, seconds: float) -> None:
        """A batch came back from the embedder, which had `seconds` for it beside other requests."""
        self.embedding_seconds += seconds
        self.embedded += passages
        self.tokens += result.tokens
        self.truncated += result.truncated
        self.compute_seconds += result.timing.compute

    @property
    def limit_tokens_per_second(self) -> float | None:
        """The embedder's own speed in this run: tokens over the seconds it computed. None before it said anything.

        Requests overlap, so the sum of their compute times is bounded by the time in which any was under way; a server that
        does not say what it computed counts with that time.
        """
        seconds = min(self.compute_seconds or self.embedding_seconds, self.embedding_seconds)
        return self.tokens / seconds if seconds > 0 and self.tokens else None

    def speed(self, seconds: float) -> dict[str, Any]:
        """Rates over the run of `seconds`. `limit_share` (0 to 1): tokens/s achieved by the embedder's own tokens/s."""
        limit = self.limit_tokens_per_second
        achieved = self.tokens / seconds if seconds > 0 else None
        parts = {"reading": self.reading_seconds, "embedding": self.embedding_seconds, "writing": self.writing_seconds}
        return {
            "tokens_per_second": achieved,
            "limit_tokens_per_second": limit,
            "limit_share": min(1.0, achieved / limit) if achieved is not None and limit else None,
            "reading_seconds": self.reading_seconds,
            "embedding_seconds": self.embedding_seconds,
            "writing_seconds": self.writing_seconds,
            "limited_by": max(parts, key=lambda name: parts[name]) if any(parts.values()) else None,
        }

    def progress(self, now: float) -> Event:
        seconds = now - self.started
        left = max(0, self.bytes - round(self.bytes_done))
        known = self.bytes_worked > 0 or left == 0
        return {
            "type": "progress",
            "files_done": sum(self.counts.values()),
            "files": self.files,
            "passages": self.embedded,
            "tokens": self.tokens,
            "bytes_done": round(self.bytes_done),
            "bytes": self.bytes,
            "passages_per_second": self.embedded / seconds if seconds > 0 else None,
            **self.speed(seconds),
            "seconds": seconds,
            "seconds_left": (seconds * left / self.bytes_worked if left else 0.0) if known else None,
        }

    def summary(self, found: Found, outcome: str, error: Mapping[str, object] | None, now: float) -> Event:
        seconds = now - self.started
        return {
            "type": "ingest_finished",
            "outcome": outcome,
            "files": self.files,
            **self.counts,
            "skipped": sum(item.count for item in found.skipped),
            "skipped_reasons": [asdict(item) for item in found.skipped],
            "not_done": self.files - sum(self.counts.values()),
            "passages": self.written,
            "tokens": self.tokens,
            "truncated": self.truncated,
            "seconds": seconds,
            "passages_per_second": self.written / seconds if seconds > 0 else None,
            **self.speed(seconds),
            "error": error,
        }


def file_finished(
    source: str,
    document_id: str | None,
    outcome: str,
    passages: int = 0,
    notes: tuple[str, ...] = (),
    error: Mapping[str, object] | None = None,
    duplicate_of: str | None = None,
) -> Event:
    """`document_id` is None for a path that was refused; `duplicate_of` the document_id of the one with the same text."""
    return {
        "type": "file_finished",
        "source": source,
        "document_id": document_id,
        "outcome": outcome,
        "passages": passages,
        "notes": list(notes),
        "error": error,
        "duplicate_of": duplicate_of,
    }


def problem_json(problem: BaseException) -> dict[str, object]:
    """A `Problem` as JSON; errors of other trees keep their kind, address and next step where they have them."""
    kind = "connection" if isinstance(problem, ConnectionError) else getattr(problem, "kind", "internal")
    message = str(problem) or type(problem).__name__
    return asdict(Problem(None, str(kind), message, getattr(problem, "address", None), getattr(problem, "next_step", "")))
