"""`python -m latency compare | findings`: what stored queries tell. Reads the files alone: a dashboard may run beside it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from latency import baseline
from latency import findings as finding
from latency.cli_tables import compared
from latency.comparing import compare as comparing
from latency.experiments.experiments import ExperimentStore
from latency.readings.store import ReadingStore
from latency.types import Case, Finding
from rag.errors import RagError
from rag.quantities import seconds
from rag.trace_store import QueryFilter, TraceStore
from rag.types import Answer
from settings import load

HOUR_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Stored:
    """The files of stored queries and their readings."""

    folder: Path
    traces: TraceStore
    readings: ReadingStore

    def cases(self, query_ids: Sequence[str]) -> list[Case]:
        """In the given order. Raises RagError not_found."""
        known = self.readings.get_many(query_ids)
        return [Case(self._answer(each), tuple(self.traces.spans(each)), known.get(each)) for each in query_ids]

    def _answer(self, query_id: str) -> Answer:
        answer = self.traces.get(query_id)
        if answer is None:
            raise RagError(f"there is no stored query {query_id}", kind="not_found", next_step="The page Queries lists them.")
        return answer


@contextmanager
def _stored() -> Iterator[Stored]:
    folder = load().data_dir
    traces, readings = TraceStore(folder / "traces.db"), ReadingStore(folder / "readings.db")
    try:
        yield Stored(folder, traces, readings)
    finally:
        readings.close()
        traces.close()


def compare(given: argparse.Namespace) -> int:
    """Print what differs between A and B."""
    with _stored() as stored:
        found = comparing.compare(*(stored.cases(_ids(stored, text)) for text in (given.a, given.b)))
    print(json.dumps(found.to_json(), ensure_ascii=False) if given.json else compared(found))
    return 0


def _ids(stored: Stored, text: str) -> list[str]:
    """`ID`, `ID,ID` or `EXPERIMENT:SIDE`, sides from A or 0. Raises RagError."""
    experiment_id, colon, side = text.partition(":")
    if not colon:
        return [part for part in text.split(",") if part]
    kept = ExperimentStore(stored.folder / "experiments.db").get(experiment_id)
    sides = (kept.result or {}).get("sides") if kept is not None and kept.kind == "replay" else None
    number = int(side) if side.isdigit() else ord(side.upper()) - ord("A") if len(side) == 1 else -1
    if not sides or not 0 <= number < len(sides) or not sides[number]["query_ids"]:
        raise RagError(
            f"{text} is no side of a replay with runs", kind="not_found", next_step="Write EXPERIMENT:A, EXPERIMENT:B and so on."
        )
    return list(sides[number]["query_ids"])


def findings(given: argparse.Namespace) -> int:
    """Print the causes, best first. 0 also where nothing stands out."""
    if given.ids and given.last is not None:
        raise RagError("queries and --last at once", kind="bad_input", next_step="Name queries, or a time.")
    with _stored() as stored:
        ids = given.ids or _since(stored, given.last or HOUR_SECONDS, given.limit)
        cases = stored.cases(ids)
        usual = baseline.from_store(stored.traces)
    found = finding.find(cases[0], usual) if len(cases) == 1 else finding.find_many(cases, usual)
    if given.json:
        print(json.dumps({"queries": len(cases), "findings": [each.to_json() for each in found]}, ensure_ascii=False))
    else:
        print(_report(found, len(cases)))
    return 0


def _since(stored: Stored, last_seconds: float, limit: int) -> list[str]:
    """Queries since then, newest first; those that measured are left out."""
    rows = stored.traces.search(QueryFilter(since=time.time() - last_seconds, measured=False), limit=limit)
    return [row.id for row in rows]


def _report(found: Sequence[Finding], queries: int) -> str:
    if not queries:
        return "no query in that time"
    if not found:
        return f"{queries} {'query' if queries == 1 else 'queries'}: nothing stands out"
    return "\n\n".join(_finding(number, each) for number, each in enumerate(found, 1))


def _finding(number: int, found: Finding) -> str:
    saving = "unknown" if found.saving_seconds is None else seconds(found.saving_seconds)
    where = f" · {len(found.query_ids)} queries" if len(found.query_ids) > 1 else ""
    lines = [f"{number}. {found.title}", f"   cost {seconds(found.cost_seconds)} · saving {saving} · {found.confidence}{where}"]
    lines += [f"   - {each.text}" for each in found.evidence]
    return "\n".join([*lines, f"   → {found.change}", f"   ({found.derivation})"])
