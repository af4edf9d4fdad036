"""One query's findings: the causes in the order in which they take their seconds, surest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from latency.findings import generation, machines, models, network, retrieval, waits
from latency.findings.drafts import Draft, finding, joined, ranked
from latency.findings.ledger import LEAST_SECONDS, LEAST_SHARE, Ledger
from latency.types import Baseline, Case, Finding

Finder = Callable[[Ledger], Iterator[Draft]]
_FINDERS: tuple[Finder, ...] = (
    models.loaded,
    waits.given_up,
    waits.retries,
    waits.own_queue,
    retrieval.not_loaded,
    network.store,
    network.model,
    waits.llm_queue,
    models.first_run,
    retrieval.unflushed,
    generation.long_prompt,
    machines.causes,
    waits.beside_others,
    generation.rest_of_long_prompt,
    generation.slow_decode,
    generation.slow_first_token,
    models.remote_constant,
    models.remote_slow,
    models.on_processor,
    generation.long_answer,
    retrieval.too_many_candidates,
    retrieval.truncation,
    retrieval.hyde_cost,
    retrieval.cache_misses,
)


def drafts(case: Case, baseline: Baseline) -> list[Draft]:
    """Every cause of the case, small ones too; no two hold the same second."""
    ledger = Ledger(case, baseline)
    if ledger.total <= 0:
        return []
    return joined(draft for finder in _FINDERS for draft in finder(ledger) if draft.worth > 0)


def is_material(draft: Draft, total: float) -> bool:
    """Whether it is worth anybody's attention in a query that took so many seconds."""
    return draft.worth >= LEAST_SECONDS and draft.worth >= LEAST_SHARE * total


def find(case: Case, baseline: Baseline) -> tuple[Finding, ...]:
    """Why this query took its time, the cause to remove first first; () is "nothing stands out". Pure."""
    answer = case.answer
    found = (draft for draft in drafts(case, baseline) if is_material(draft, answer.total_seconds))
    return ranked(finding(draft, answer.total_seconds, answer.id) for draft in found)
