"""R4's five success criteria, each from what was measured: checks, the services watched, stored queries, the latest load test.

Pure: what was measured comes in. Nothing is assumed: what was not measured is said to be so, with what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from collectors.services import ServiceKind
from deploy.validation.subject import Targets
from deploy.validation.types import Outcome, Report, Result, worst
from rag.quantities import seconds

SECONDS_PER_DAY = 86_400.0
LEAST_QUERIES = 8  # below that a 95th percentile is only the slowest query
# R4's six services, by the kinds that serve each
ROLES: Mapping[str, tuple[ServiceKind, ...]] = {
    "API": ("http",),
    "embedding": ("openai-embeddings", "gpu_server"),
    "OCR": ("ocr",),
    "language model": ("openai-chat",),
    "Whisper": ("whisper",),
    "frontend": ("http",),
}
NOT_MEASURED = "not measured yet"


class Watched(NamedTuple):
    """A service as the sweep sees it: `state` is `ok`, `degraded`, `loading`, `failed` or `waiting`, `at_unix` its last probe."""

    name: str
    kind: ServiceKind
    state: str
    at_unix: float | None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Times:
    """Warm answered queries of the last `query_days`: p95 of the total in seconds, its count, the newest one's time."""

    p95_seconds: float
    count: int
    newest_unix: float


class Load(NamedTuple):
    """The latest finished load test: `result` is `LoadResult` in JSON."""

    id: str
    at_unix: float
    result: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything that the criteria look at; None or empty where nothing was measured."""

    report: Report | None = None
    services: tuple[Watched, ...] = ()
    times: Times | None = None
    load: Load | None = None
    own_frontend: bool = True
    local_embedder: bool = False
    local_llm: bool = False


@dataclass(frozen=True, slots=True)
class Criterion:
    """One criterion: whether it is met (`not_applicable`: not measured), on what evidence, as of when (the oldest part; Unix
    seconds, None where nothing was measured), and what to do next. `checks` are the codes behind it; `load_id` an experiment."""

    key: str
    title: str
    outcome: Outcome
    evidence: tuple[str, ...]
    at_unix: float | None
    next_step: str = ""
    checks: tuple[str, ...] = ()
    load_id: str | None = None


def criteria(measured: Measured, targets: Targets, now: float) -> tuple[Criterion, ...]:
    """The five, in R4's order. `now` is Unix seconds."""
    found = (
        _services(measured),
        _from_checks(
            measured.report,
            "offline",
            "Works offline",
            ("O-1", "O-2", "R4-2"),
            "`python -m deploy offline-check` proves that nothing tries to connect.",
        ),
        _languages(measured.report),
        _times(measured, targets),
        _load(measured, targets),
    )
    return tuple(_while_it_counts(each, targets, now) for each in found)


def _while_it_counts(found: Criterion, targets: Targets, now: float) -> Criterion:
    """A criterion that was met so long ago that it proves nothing any more is met in part."""
    if found.outcome != "passed" or found.at_unix is None:
        return found
    days = (now - found.at_unix) / SECONDS_PER_DAY
    if days <= targets.evidence_days:
        return found
    again = _test_of(targets) if found.key == "load" else "Run the checks again."
    said = f"Part of this was measured {days:.0f} days ago; after {targets.evidence_days:g} it does not count. {again}"
    return replace(found, outcome="warning", next_step=said)


# 1) six services healthy


def _services(measured: Measured) -> Criterion:
    known = [each for each in measured.services if each.at_unix is not None]
    functional = measured.report.result("E-5") if measured.report else None
    roles = {role: _of_role(role, kinds, measured) for role, kinds in ROLES.items()}
    missing = [role for role, found in roles.items() if found is None]
    bad = [f"{each.name} is {each.state}: {each.message}".rstrip(": ") for each in known if each.state not in ("ok", "degraded")]
    evidence = [f"{role}: {found}" for role, found in roles.items() if found is not None]
    times = [each.at_unix for each in known if each.at_unix is not None] + ([functional.at_unix] if functional else [])
    if functional is not None and functional.outcome == "failed":
        bad += [f"{item.subject} did not work: {item.evidence}" for item in functional.items if item.outcome == "failed"]
    if bad:
        return Criterion("services", "Six services healthy", "failed", tuple(bad), _oldest(times), _SERVICES_STEP, ("E-4", "E-5"))
    if not known and functional is None:
        return Criterion(
            "services", "Six services healthy", "not_applicable", (NOT_MEASURED,), None, _SERVICES_STEP, ("E-4", "E-5")
        )
    if missing:
        evidence.append(f"not part of this deployment, or not named in its settings: {', '.join(missing)}")
    outcome: Outcome = "warning" if missing else "passed"
    step = _SERVICES_STEP if missing else ""
    return Criterion("services", "Six services healthy", outcome, tuple(evidence), _oldest(times), step, ("E-4", "E-5"))


_SERVICES_STEP = "Name each service in [[services]] (kind and url), run the checks, and see the page Services."


def _of_role(role: str, kinds: tuple[ServiceKind, ...], measured: Measured) -> str | None:
    """Who fills a role of R4; of the kind `http` the name decides."""
    fitting = [each for each in measured.services if each.kind in kinds and each.at_unix is not None]
    if kinds == ("http",):
        fitting = [each for each in fitting if role.lower() in each.name.lower()]
        if not fitting and measured.own_frontend:
            return "this dashboard" + (" and its /api" if role == "API" else "")
    if fitting:
        return ", ".join(f"{each.name} {each.state}" for each in fitting)
    inside = measured.local_embedder if role == "embedding" else measured.local_llm if role == "language model" else False
    return "in this process" if inside else None


# 2) and 3) from checks


def _from_checks(report: Report | None, key: str, title: str, codes: Sequence[str], more: str) -> Criterion:
    found = _found(report, codes)
    if len(found) < len(codes):
        return Criterion(key, title, "not_applicable", (NOT_MEASURED,), None, "Run the checks.", tuple(codes))
    outcome = worst(each.outcome for each in found)
    bad = next((each for each in found if each.outcome == outcome and each.cure), None)
    return Criterion(key, title, outcome, _told(found), _oldest_of(found), bad.cure if bad else more, tuple(codes))


def _languages(report: Report | None) -> Criterion:
    """Text, audio and documents: all three must have been shown; one that is not set up is told."""
    title, codes = "Hebrew text, audio and documents work", ("L-1", "L-2", "L-3")
    found = _found(report, codes)
    if len(found) < len(codes):
        return Criterion("languages", title, "not_applicable", (NOT_MEASURED,), None, "Run the checks.", codes)
    outcome = worst(each.outcome for each in found)
    absent = [each for each in found if each.outcome == "not_applicable"]
    if outcome == "passed" and absent:
        outcome = "warning"
    bad = next((each.cure for each in found if each.outcome in ("failed", "warning") and each.cure), "")
    step = bad or ("; ".join(each.reason for each in absent) and "Set up what is missing, or do without it knowingly.")
    return Criterion("languages", title, outcome, _told(found), _oldest_of(found), step, codes)


def _found(report: Report | None, codes: Iterable[str]) -> list[Result]:
    return [each for code in codes if report is not None and (each := report.result(code)) is not None]


def _told(found: Sequence[Result]) -> tuple[str, ...]:
    return tuple(f"{each.title}: {each.evidence or each.outcome}" for each in found)


# 4) response times


def _times(measured: Measured, targets: Targets) -> Criterion:
    title, codes = f"Answers within {targets.total_seconds:g} s", ("Q-1", "Q-2")
    found = _found(measured.report, codes)
    query = next((each for each in found if each.code == "Q-1"), None)
    total = query.measures.get("total_seconds") if query else None
    evidence, outcomes, times = [], [], []
    if query is not None:
        outcomes.append(query.outcome if total is None else _within(total, targets.total_seconds))
        evidence.append(f"one full query: {query.evidence}")
        times.append(query.at_unix)
        if query.outcome in ("failed", "warning"):
            outcomes.append(query.outcome)
    if measured.times is not None:
        p95, count = measured.times.p95_seconds, measured.times.count
        evidence.append(f"warm answered queries: p95 {seconds(p95)}, n {count:,}")
        times.append(measured.times.newest_unix)
        if count >= LEAST_QUERIES:
            outcomes.append(_within(p95, targets.total_seconds))
    first = next((each for each in found if each.code == "Q-2"), None)
    if first is not None and first.outcome != "not_applicable":
        outcomes.append(first.outcome)
        evidence.append(f"first token: {first.evidence}")
    if not outcomes:
        return Criterion("times", title, "not_applicable", tuple(evidence) or (NOT_MEASURED,), None, "Run the checks.", codes)
    outcome = worst(outcomes)
    step = "" if outcome == "passed" else "See where the time goes on the page Latency: it names causes and what they cost."
    return Criterion("times", title, outcome, tuple(evidence), _oldest(times), step, codes)


def _within(seconds: float, limit: float) -> Outcome:
    return "passed" if seconds <= limit else "failed"


# 5) load


def _test_of(targets: Targets) -> str:
    return f"Run a load test with up to {max(targets.users, 4)} users on the page Experiments (`python -m latency load`)."


def _load(measured: Measured, targets: Targets) -> Criterion:
    title, load = f"Stable with {targets.users} users at once", measured.load
    run = _test_of(targets)
    if load is None:
        return Criterion("load", title, "not_applicable", ("no load test has finished yet",), None, run)
    steps = [each for each in load.result.get("steps") or () if isinstance(each, Mapping)]
    reached = max((int(each["users"]) for each in steps), default=0)
    enough = min((int(each["users"]) for each in steps if int(each["users"]) >= targets.users), default=reached)
    upto = [each for each in steps if int(each["users"]) <= enough]
    evidence = [*(_step(each) for each in steps), str((load.result.get("knee") or {}).get("text") or "no knee was looked for")]
    wrong = [each for each in upto if sum(each["errors"].values()) or each["unfinished"] or not each["answered"]]
    slow = [each for each in upto if (_p95(each) or 0.0) > targets.total_seconds]
    outcome: Outcome = "passed"
    step = ""
    if wrong:
        outcome, step = "failed", "Look at the errors of the load test, and at the queue of the stage that grew."
    elif reached < targets.users:
        outcome, step = "warning", f"The test went to {reached} users only. {run}"
    elif slow:
        outcome, step = "failed", "Answers take too long under this load: the load test names what was full."
    return Criterion("load", title, outcome, tuple(evidence), load.at_unix, step, (), load.id)


def _step(each: Mapping[str, Any]) -> str:
    failed = sum(each["errors"].values())
    p95 = _p95(each)
    took = "" if p95 is None else f", p95 {seconds(p95)}"
    wrong = f", {failed} failed" if failed else ""
    left = f", {each['unfinished']} unfinished" if each["unfinished"] else ""
    return f"{each['users']} users: {each['answered']} answered{took}{wrong}{left}"


def _p95(each: Mapping[str, Any]) -> float | None:
    total = each.get("total")
    value = total.get("p95") if isinstance(total, Mapping) else None
    return None if value is None else float(value)


def _oldest(times: Iterable[float]) -> float | None:
    return min(times, default=None)


def _oldest_of(found: Iterable[Result]) -> float | None:
    return _oldest(each.at_unix for each in found)
