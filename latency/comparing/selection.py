"""Which queries a side of a comparison is, as one text that fits into an address, and their cases.

    0198f2…,0198f3…                          queries by their ids
    experiment:ID:A                          a side of a stored replay: A is the first
    set:model=qwen3;since=2026-11-21         every stored query that matches, the newest `limit` of them

Knows nothing of comparing or of pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl, quote, urlencode

from latency.types import Case, QueryReadings
from rag.errors import RagError
from rag.trace_rows import QueryFilter, QueryRow
from rag.types import Answer

MOST_QUERIES = 1000
DEFAULT_LIMIT = 200
MOST_LOOKED_AT = 4000  # stored queries that are opened to find those of one fingerprint
KEYS: Mapping[str, str] = {
    "text": "words in the question",
    "since": "a time, or Unix seconds",
    "until": "a time, or Unix seconds",
    "model": "the answering model",
    "origin": "ask, api, cli, measure, otlp:NAME",
    "outcome": "answered, no_documents, failed, cancelled",
    "cold": "yes or no",
    "slower": "seconds",
    "settings": "a fingerprint of settings, or how it begins",
    "version": "of RAG Deck",
    "limit": f"how many at most, {DEFAULT_LIMIT} by default",
}
_OUTCOMES = ("answered", "no_documents", "failed", "cancelled")
_TRUTH = {"yes": True, "1": True, "true": True, "no": False, "0": False, "false": False}


class Traces(Protocol):
    def get(self, query_id: str) -> Answer | None: ...
    def search(
        self, where: QueryFilter = ..., sort: str = ..., descending: bool = ..., limit: int | None = ..., offset: int = ...
    ) -> list[QueryRow]: ...


class Readings(Protocol):
    def get_many(self, query_ids: Iterable[str]) -> dict[str, QueryReadings]: ...


class Experiments(Protocol):
    def get(self, experiment_id: str) -> Any: ...


@dataclass(frozen=True, slots=True)
class Selection:
    """A side as it was asked for: `ids`, or an experiment's side, or what queries must match."""

    text: str
    ids: tuple[str, ...] = ()
    experiment: tuple[str, int] | None = None
    where: QueryFilter | None = None
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    limit: int = DEFAULT_LIMIT


class Loaded(NamedTuple):
    """A side's cases, in no order that matters; `missing` queries are not stored any more."""

    cases: tuple[Case, ...]
    missing: int
    label: str


def parse(text: str) -> Selection:
    """Raises RagError bad_input for what is none."""
    text = text.strip()
    if text.startswith("set:experiment:"):
        text = text.removeprefix("set:")
    if text.startswith("experiment:"):
        return _experiment(text)
    if text.startswith("set:"):
        return _set(text)
    ids = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not ids:
        raise _bad("No query is named.", "Give the id of a query, several with commas, or a set.")
    if len(ids) > MOST_QUERIES:
        raise _bad(f"{len(ids):,} queries are named; at most {MOST_QUERIES:,} are compared.", "Name fewer, or a set.")
    return Selection(text, ids=ids)


def _experiment(text: str) -> Selection:
    name, _, side = text.removeprefix("experiment:").rpartition(":")
    if not name or len(side) != 1 or not "A" <= side.upper() <= "Z":
        raise _bad(f"{text!r} names no side of an experiment.", "Write experiment:ID:A, with A for the first side.")
    return Selection(text, experiment=(name, ord(side.upper()) - ord("A")))


def _set(text: str) -> Selection:
    try:
        pairs = parse_qsl(text.removeprefix("set:"), separator=";", strict_parsing=bool(text.removeprefix("set:")))
    except ValueError as error:
        raise _bad(f"{text!r} is no set: {error}.", "Write set:key=value;key=value.") from None
    values = dict(pairs)
    unknown = sorted(set(values) - set(KEYS))
    if unknown or len(values) != len(pairs):
        raise _bad(f"A set has no {', '.join(unknown) or 'key twice'}.", f"Keys are {', '.join(KEYS)}.")
    where = QueryFilter(
        text=values.get("text"),
        since=_unix(values, "since"),
        until=_unix(values, "until"),
        cold=_choice(values, "cold", _TRUTH),
        outcome=_choice(values, "outcome", {name: name for name in _OUTCOMES}),
        slower_than=_number(values, "slower"),
        model=values.get("model"),
        origin=values.get("origin"),
        measured=None if "origin" in values else False,
    )
    limit = _number(values, "limit")
    if limit is not None and not 1 <= limit <= MOST_QUERIES:
        raise _bad(f"A set has 1 to {MOST_QUERIES:,} queries.", "Choose another limit.")
    fingerprint: dict[str, str] = {key: values[key] for key in ("settings", "version") if key in values}
    return Selection(text, where=where, fingerprint=fingerprint, limit=int(limit or DEFAULT_LIMIT))


def set_text(values: Mapping[str, Any]) -> str:
    """The text of a set; the inverse of `parse` for one. Empty values are left out."""
    known = {key: value for key, value in values.items() if value not in (None, "")}
    return "set:" + urlencode(known, quote_via=quote, safe=":,").replace("&", ";")


def _unix(values: Mapping[str, str], key: str) -> float | None:
    if key not in values:
        return None
    try:
        return float(values[key])
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(values[key])
    except ValueError:
        raise _bad(f"{key}={values[key]!r} is no time.", "Write 2026-11-21T05:00, or Unix seconds.") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _number(values: Mapping[str, str], key: str) -> float | None:
    try:
        return float(values[key]) if key in values else None
    except ValueError:
        raise _bad(f"{key}={values[key]!r} is no number.", "Write a number.") from None


def _choice(values: Mapping[str, str], key: str, known: Mapping[str, Any]) -> Any:
    if key not in values:
        return None
    if values[key] not in known:
        raise _bad(f"{key}={values[key]!r} is unknown.", f"Choose one of {', '.join(known)}.")
    return known[values[key]]


def _bad(message: str, next_step: str) -> RagError:
    return RagError(message, kind="bad_input", next_step=next_step)


def load(selection: Selection, traces: Traces, readings: Readings | None, experiments: Experiments | None) -> Loaded:
    """The cases of a side. Raises RagError not_found where there is none, and as the stores do."""
    if selection.where is not None:
        answers = _matching(selection, traces)
        ids: Sequence[str] = [answer.id for answer in answers]
        label = f"{len(answers):,} queries of {selection.text}"
        step = "Widen the set: its times, its model or its origin."
    else:
        ids, label, step = _named(selection, experiments)
        answers = [answer for query_id in ids if (answer := traces.get(query_id)) is not None]
    if not answers:
        raise RagError(f"No stored query is {selection.text}.", kind="not_found", next_step=step)
    kept = readings.get_many([answer.id for answer in answers]) if readings is not None else {}
    cases = tuple(Case(answer, (), kept.get(answer.id)) for answer in answers)
    return Loaded(cases, len(ids) - len(answers), label)


def _named(selection: Selection, experiments: Experiments | None) -> tuple[Sequence[str], str, str]:
    """(ids, label, what to do when none of them is stored)."""
    if selection.experiment is None:
        label = f"query {selection.ids[0]}" if len(selection.ids) == 1 else f"{len(selection.ids):,} queries"
        return selection.ids, label, "It may have been deleted, or belong to another data folder. Choose one from the list."
    name, place = selection.experiment
    found = experiments.get(name) if experiments is not None else None
    if found is None:
        raise RagError(f"There is no experiment {name}.", kind="not_found", next_step="The page Experiments lists them.")
    sides = (found.result or {}).get("sides")
    sides = [side for side in sides if isinstance(side, Mapping)] if isinstance(sides, list | tuple) else []
    if place >= len(sides) or not sides[place].get("query_ids"):
        raise RagError(
            f"The experiment {found.name or name} has no side {chr(ord('A') + place)} with queries.",
            kind="not_found",
            next_step="Only replays have sides; choose one that has finished.",
        )
    told = sides[place].get("label") or f"side {chr(ord('A') + place)}"
    return list(sides[place]["query_ids"])[:MOST_QUERIES], f"{found.name}: {told}", "Its queries were deleted; replay it again."


def _matching(selection: Selection, traces: Traces) -> list[Answer]:
    """The newest queries that match, at most `limit`."""
    found: list[Answer] = []
    page = 200 if selection.fingerprint else selection.limit
    for offset in range(0, MOST_LOOKED_AT, page):
        rows = traces.search(selection.where or QueryFilter(), limit=page, offset=offset)
        for row in rows:
            answer = traces.get(row.id)
            if answer is not None and all(
                str(answer.fingerprint.get(key, "")).startswith(value) for key, value in selection.fingerprint.items()
            ):
                found.append(answer)
                if len(found) == selection.limit:
                    return found
        if len(rows) < page:
            break
    return found
