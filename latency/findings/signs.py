"""A sign: a reading that could explain why a stage took longer than usual. Shared by what looks at GPUs and at the host. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latency.findings.ledger import Piece
from latency.findings.waits import near
from latency.types import LOCAL, Confidence, Evidence, QueryReadings

BUSY_RATIO = 0.9


@dataclass(frozen=True, slots=True)
class Sign:
    """A reading that could explain a stage's excess. `part` is the share of the stage's time that it explains by itself, where
    a formula says so; it takes the whole excess when it stands alone."""

    code: str
    key: str
    subject: str
    evidence: tuple[Evidence, ...]
    change: str
    part: float | None = None
    certain: Confidence = "derived"


def sources(readings: QueryReadings) -> list[str]:
    """Every machine and service that was read."""
    return sorted({each.source for each in readings.series} | {each.source for each in readings.facts})


def mean(readings: QueryReadings, source: str, metric: str, pieces: Sequence[Piece]) -> float | None:
    """Mean of a metric over the intervals, each as long as it is; beside them where none was read within."""
    series = readings.get(source, metric)
    if series is None:
        return None
    slack = 0.3 if source == LOCAL else 2.5  # remote machines are read every two seconds
    values = [value for piece in pieces for value in near(series, piece.start, piece.end, slack)]
    return sum(values) / len(values) if values else None
