"""Causes on their way to findings: drafts of one code and key are put together, small ones dropped, the rest ranked. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from latency.findings.words import percent, seconds, sentence
from latency.types import Confidence, Evidence, Finding

WHERE = "{where}"  # stands in a draft's subject for "this query" or "12 of 84 queries"
_DOUBT: Mapping[Confidence, int] = {"measured": 0, "derived": 1, "suspected": 2}
# a cause that is only suspected comes after one that is measured, unless it costs much more
_WEIGHTS: Mapping[Confidence, float] = {"measured": 1.0, "derived": 0.95, "suspected": 0.7}
_MOST_EVIDENCE = 12


@dataclass(frozen=True, slots=True)
class Draft:
    """A cause before it is known whether it matters. `subject` is a sentence without its end, with WHERE in it.

    `saving` None: it costs `cost` seconds, and nobody can say how many of them can be saved."""

    code: str
    key: str
    stage: str | None
    subject: str
    cost: float
    saving: float | None
    derivation: str
    confidence: Confidence
    evidence: tuple[Evidence, ...]
    change: str

    @property
    def worth(self) -> float:
        return self.cost if self.saving is None else self.saving


def joined(drafts: Iterable[Draft]) -> list[Draft]:
    """One draft for each code and key: costs and savings are summed, the costliest speaks for all."""
    groups: dict[tuple[str, str], list[Draft]] = {}
    for draft in drafts:
        groups.setdefault((draft.code, draft.key), []).append(draft)
    return [_one(group) for group in groups.values()]


def _one(group: Sequence[Draft]) -> Draft:
    lead = max(group, key=lambda each: each.worth)
    if len(group) == 1:
        return lead
    savings = [each.saving for each in group if each.saving is not None]
    evidence = dict.fromkeys(item for each in sorted(group, key=lambda each: -each.worth) for item in each.evidence)
    derivations = list(dict.fromkeys(each.derivation for each in group))
    total = f" Together {seconds(sum(savings))}." if len(savings) > 1 and len(derivations) > 1 else ""
    return replace(
        lead,
        cost=sum(each.cost for each in group),
        saving=sum(savings) if savings else None,
        confidence=doubt(each.confidence for each in group),
        evidence=tuple(evidence)[:_MOST_EVIDENCE],
        derivation=" ".join(derivations) + total,
    )


def doubt(confidences: Iterable[Confidence]) -> Confidence:
    """The least certain of them."""
    return max(confidences, key=lambda each: _DOUBT[each])


def expected_worth(finding: Finding) -> float:
    """What findings are ranked by: seconds to be saved (to be had at all, where that is unknown), less where it is uncertain."""
    worth = finding.cost_seconds * 0.5 if finding.saving_seconds is None else finding.saving_seconds
    return worth * _WEIGHTS[finding.confidence]


def ranked(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda each: (-expected_worth(each), each.code, each.key)))


def title(draft: Draft, where: str, cost: float, total: float) -> str:
    """The subject as a whole sentence, with its cost: `The reranker was loaded inside this query: 1.84 s (62 %)`."""
    words = draft.subject.replace(WHERE, where)
    return f"{sentence(words)}: {seconds(cost)} ({percent(cost / total)})"


def finding(draft: Draft, total: float, query_id: str) -> Finding:
    """The draft as a finding of one query."""
    share = None if draft.saving is None or total <= 0 else draft.saving / total
    return Finding(
        code=draft.code,
        title=title(draft, "this query", draft.cost, total),
        stage=draft.stage,
        cost_seconds=draft.cost,
        saving_seconds=draft.saving,
        derivation=draft.derivation,
        confidence=draft.confidence,
        evidence=draft.evidence,
        change=draft.change,
        share=share,
        key=draft.key,
        query_ids=(query_id,),
    )
