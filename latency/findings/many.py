"""Findings of a set: the same cause in many queries is one finding; and what only a set shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from latency.baseline import build, near_equal
from latency.findings import advice
from latency.findings.drafts import WHERE, Draft, doubt, ranked, title
from latency.findings.ledger import ENOUGH, LEAST_SECONDS, LLM
from latency.findings.retrieval import CACHE_HIT_SECONDS
from latency.findings.single import drafts, is_material
from latency.findings.words import component, count, percent, seconds, worker
from latency.types import Baseline, Case, Evidence, Finding, Key

SET_SHARE = 0.08  # of the set's total: what is small in each query and measured in many
LEAST_EACH_SECONDS = 0.02
AGAIN_AND_AGAIN = 0.8  # of the requests to a server load its model: then it is built for each
LEAST_REPEATS = 3
REPEATED_SHARE = 0.1  # of the questions had been asked before
_EVIDENCE_EACH = 6


@dataclass(frozen=True, slots=True)
class _Hit:
    """A draft and the case that it was found in."""

    draft: Draft
    case: Case
    material: bool

    @property
    def total(self) -> float:
        return self.case.answer.total_seconds


def find_many(cases: Sequence[Case], baseline: Baseline) -> tuple[Finding, ...]:
    """The causes over all these queries, costs summed, the one to remove first first; shares are of the set's total. Pure.

    What is usual for a model that the baseline does not know is taken from the set itself.
    """
    total = sum(case.answer.total_seconds for case in cases)
    if total <= 0:
        return ()
    known = _with_own(cases, baseline)
    hits = [_Hit(draft, case, is_material(draft, case.answer.total_seconds)) for case in cases for draft in drafts(case, known)]
    groups: dict[tuple[str, str], list[_Hit]] = {}
    for hit in _built_anew(hits, cases):
        groups.setdefault((hit.draft.code, hit.draft.key), []).append(hit)
    kept = [wanted for group in groups.values() if (wanted := _worth_telling(group, total))]
    found = [_grouped(group, len(cases), total) for group in kept]
    return ranked([*found, *_repeated(cases, kept, known, total)])


def _with_own(cases: Sequence[Case], baseline: Baseline) -> Baseline:
    ran = {Key.of(stage) for case in cases for stage in case.answer.stages if stage.skipped is None and stage.seconds > 0}
    if ran <= baseline.usual.keys():
        return baseline
    return replace(baseline, usual={**build(cases).usual, **baseline.usual})


def _worth_telling(group: Sequence[_Hit], total: float) -> list[_Hit]:
    """The hits that count: those that matter in their query; where all is measured also small ones that matter together."""
    material = [hit for hit in group if hit.material]
    small = [hit for hit in group if hit.material or hit.draft.confidence == "measured" and hit.draft.worth >= LEAST_EACH_SECONDS]
    together = sum(hit.draft.worth for hit in small)
    return small if together >= max(LEAST_SECONDS, SET_SHARE * total) else material


def _built_anew(hits: Sequence[_Hit], cases: Sequence[Case]) -> Iterator[_Hit]:
    """A server that loads its model in most requests builds it for each of them: that is what has to be changed."""
    asked = Counter(
        component(stage.stage)
        for case in cases
        for stage in case.answer.stages
        if stage.where == "http" and stage.skipped is None
    )
    loads = Counter(hit.draft.key for hit in hits if hit.draft.code == "model_loaded" and _is_remote(hit))
    for hit in hits:
        key = hit.draft.key
        constant = loads[key] >= max(ENOUGH, AGAIN_AND_AGAIN * asked[key])
        yield replace(hit, draft=_anew(hit.draft)) if hit.draft.code == "model_loaded" and _is_remote(hit) and constant else hit


def _is_remote(hit: _Hit) -> bool:
    stage = hit.case.stage(hit.draft.stage or "")
    return stage is not None and stage.where == "http" and stage.stage not in LLM


def _anew(draft: Draft) -> Draft:
    return replace(
        draft,
        code="remote_model_per_request",
        subject=f"The remote {worker(draft.stage or '')} loaded its model again in {WHERE}",
        change=advice.BUILD_ONCE,
    )


def _grouped(group: Sequence[_Hit], size: int, total: float) -> Finding:
    """One finding of a code and key over its queries."""
    slowest = sorted(group, key=lambda hit: -hit.total)
    lead = max(group, key=lambda hit: hit.draft.worth).draft
    cost = sum(hit.draft.cost for hit in group)
    savings = [hit.draft.saving for hit in group if hit.draft.saving is not None]
    saving = sum(savings) if savings else None
    where = f"{len(group):,} of {count(size, 'query')}"
    theirs = seconds(sum(hit.total for hit in group))
    text = f"It was found in {where}, for {seconds(cost)} of their {theirs}; in the worst for {seconds(lead.cost)}."
    derivation = f"Sum over {count(len(group), 'query')}: {seconds(saving)}. In the worst: {lead.derivation}"
    return Finding(
        code=lead.code,
        title=title(lead, where, cost, total),
        stage=lead.stage,
        cost_seconds=cost,
        saving_seconds=saving,
        derivation=derivation if len(group) > 1 else lead.derivation,
        confidence=doubt(hit.draft.confidence for hit in group),
        evidence=(Evidence(text, float(len(group)), "queries", "set"), *lead.evidence[:_EVIDENCE_EACH]),
        change=lead.change,
        share=None if saving is None else saving / total,
        key=lead.key,
        query_ids=tuple(dict.fromkeys(hit.case.answer.id for hit in slowest)),
    )


def _repeated(cases: Sequence[Case], kept: Sequence[Sequence[_Hit]], baseline: Baseline, total: float) -> Iterator[Finding]:
    """Questions that had been asked before and were answered anew: what no other finding explains of their time."""
    explained: Counter[str] = Counter()
    for group in kept:
        for hit in group:
            explained[hit.case.answer.id] += hit.draft.worth  # type: ignore[assignment]
    asking = [
        case for case in cases if case.answer.origin != "measure" and case.answer.outcome == "answered" and _could_hit(case)
    ]
    asked = sorted(asking, key=lambda case: case.answer.started_at)
    again = [asked[index] for index in near_equal([case.answer.question for case in asked])]
    left = {case.answer.id: case.answer.total_seconds - explained[case.answer.id] - CACHE_HIT_SECONDS for case in again}
    slowest = [case.answer.id for case in sorted(again, key=lambda case: -case.answer.total_seconds) if left[case.answer.id] > 0]
    saving = sum(value for value in left.values() if value > 0)
    if len(slowest) < max(LEAST_REPEATS, REPEATED_SHARE * len(asked)) or saving < max(LEAST_SECONDS, SET_SHARE * total):
        return
    repeated = f"{len(again):,} of {count(len(asked), 'question')}"
    text = f"{repeated} had been asked before in the same words, and were answered from scratch."
    recent = f"Of the last {count(baseline.queries, 'query')}, {baseline.near_equal_questions:,} repeated an earlier question."
    evidence = [Evidence(text, float(len(again)), "questions", "set")]
    if baseline.queries:
        evidence.append(Evidence(recent, float(baseline.near_equal_questions), "questions", "baseline"))
    cost = f"{seconds(saving)} ({percent(saving / total)})"
    yield Finding(
        code="cache_misses",
        title=f"{len(slowest):,} of {count(len(cases), 'query')} repeated an earlier question without a cache hit: {cost}",
        stage="cache",
        cost_seconds=saving,
        saving_seconds=saving,
        derivation=f"Their time less what others explain and {seconds(CACHE_HIT_SECONDS)} a cache hit: {seconds(saving)}.",
        confidence="derived",
        evidence=tuple(evidence),
        change=advice.CACHE,
        share=saving / total,
        key="cache",
        query_ids=tuple(slowest),
    )


def _could_hit(case: Case) -> bool:
    cache = next((stage for stage in case.answer.stages if stage.stage == "cache"), None)
    return case.answer.options.caches == "use" and not (cache is not None and cache.hit)
