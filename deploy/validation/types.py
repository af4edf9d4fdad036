"""What a check is and what it found. Knows no protocol, no clock and no check."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from deploy.validation.world import World

Outcome = Literal["passed", "warning", "failed", "not_applicable"]

WORST_FIRST: tuple[Outcome, ...] = ("failed", "warning", "passed", "not_applicable")
TEXT_CHARS = 600


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that a check looked at. Texts may hold what a machine or server said: never to be shown unescaped.

    `cause` and `cure` are empty where nothing is wrong; of an item that is not applicable `evidence` is the reason.
    """

    subject: str
    outcome: Outcome
    evidence: str
    cause: str = ""
    cure: str = ""

    def to_json(self) -> dict[str, str]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found. Without items it is not applicable, for `reason`.

    `table` is rows of texts, the first one the head. `measures` are numbers by name, units in the names.
    """

    items: tuple[Item, ...] = ()
    reason: str = ""
    table: tuple[tuple[str, ...], ...] = ()
    measures: Mapping[str, float] = field(default_factory=dict)


class Check(NamedTuple):
    """One check. `proves` is a sentence: what is known once it has passed."""

    code: str
    group: str
    title: str
    proves: str
    run: Callable[[World], Verdict]


@dataclass(frozen=True, slots=True)
class Result:
    """A check's outcome at `at_unix` (its end, Unix seconds); it took `seconds`."""

    code: str
    group: str
    title: str
    proves: str
    outcome: Outcome
    items: tuple[Item, ...]
    reason: str
    table: tuple[tuple[str, ...], ...]
    measures: Mapping[str, float]
    seconds: float
    at_unix: float

    @property
    def worst(self) -> Item | None:
        """The item that the outcome comes from."""
        return next((item for item in self.items if item.outcome == self.outcome), None)

    @property
    def evidence(self) -> str:
        """What was seen, of the worst item; the reason where nothing was applicable."""
        if self.worst is None:
            return self.reason
        named = f"{self.worst.subject}: {self.worst.evidence}" if self.worst.subject else self.worst.evidence
        same = sum(item.outcome == self.outcome for item in self.items) - 1
        return f"{named} (and {same} more)" if same else named

    @property
    def cause(self) -> str:
        return self.worst.cause if self.worst else ""

    @property
    def cure(self) -> str:
        return self.worst.cure if self.worst else ""

    def to_json(self) -> dict[str, Any]:
        plain = ("code", "group", "title", "proves", "outcome", "reason", "seconds", "at_unix", "evidence", "cause", "cure")
        data: dict[str, Any] = {name: getattr(self, name) for name in plain}
        return {
            **data,
            "items": [item.to_json() for item in self.items],
            "table": [list(row) for row in self.table],
            "measures": dict(self.measures),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """The inverse of `to_json`. Raises KeyError, TypeError, ValueError for what is none."""
        if data["outcome"] not in WORST_FIRST:
            raise ValueError(f"no outcome: {data['outcome']!r}")
        return cls(
            **{name: str(data[name]) for name in ("code", "group", "title", "proves", "reason")},
            outcome=data["outcome"],
            items=tuple(Item(**each) for each in data["items"]),
            table=tuple(tuple(str(cell) for cell in row) for row in data["table"]),
            measures={str(name): float(value) for name, value in data["measures"].items()},
            seconds=float(data["seconds"]),
            at_unix=float(data["at_unix"]),
        )


@dataclass(frozen=True, slots=True)
class Report:
    """The results of the checks, in their order. `version` is RAG Deck's own, `seconds` what the last run took."""

    started_at_unix: float
    seconds: float
    version: str
    results: tuple[Result, ...]

    def result(self, code: str) -> Result | None:
        return next((each for each in self.results if each.code == code), None)

    def count(self, outcome: Outcome) -> int:
        return sum(each.outcome == outcome for each in self.results)

    @property
    def outcome(self) -> Outcome:
        return worst(each.outcome for each in self.results)

    def over(self, earlier: Report | None, order: Sequence[str]) -> Report:
        """This report with the results of an earlier one for the checks that did not run this time, in `order` of codes."""
        kept = {each.code: each for each in (*(earlier.results if earlier else ()), *self.results)}
        return dataclasses.replace(self, results=tuple(kept[code] for code in order if code in kept))

    def to_json(self) -> dict[str, Any]:
        counts = {outcome: self.count(outcome) for outcome in WORST_FIRST}
        return {
            "started_at_unix": self.started_at_unix,
            "seconds": self.seconds,
            "version": self.version,
            "outcome": self.outcome,
            "counts": counts,
            "results": [each.to_json() for each in self.results],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """The inverse of `to_json`. Raises KeyError, TypeError, ValueError for what is none."""
        results = tuple(Result.from_json(each) for each in data["results"])
        return cls(float(data["started_at_unix"]), float(data["seconds"]), str(data["version"]), results)


def worst(outcomes: Any) -> Outcome:
    """The worst of outcomes; `not_applicable` of none."""
    found = set(outcomes)
    return next((each for each in WORST_FIRST if each in found), "not_applicable")


def passed(subject: str, evidence: str) -> Item:
    return Item(subject, "passed", cut(evidence))


def failed(subject: str, evidence: str, cause: str, cure: str) -> Item:
    return Item(subject, "failed", cut(evidence), cut(cause), cut(cure))


def warning(subject: str, evidence: str, cause: str, cure: str) -> Item:
    return Item(subject, "warning", cut(evidence), cut(cause), cut(cure))


def skipped(subject: str, reason: str) -> Item:
    """For what cannot be looked at; the reason is said."""
    return Item(subject, "not_applicable", cut(reason))


def cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TEXT_CHARS else line[: TEXT_CHARS - 1] + "…"
