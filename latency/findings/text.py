"""Findings as Markdown, for reports, commands and the clipboard; and what is said where there are none. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from latency.findings.words import percent, seconds
from latency.types import Confidence, Evidence, Finding

CONFIDENCE: Mapping[Confidence, str] = {
    "measured": "the cost was measured inside the query",
    "derived": "the cost follows from what is usual here, or from a stated formula",
    "suspected": "the pattern fits; nothing measured proves it",
}
LOOKED_AT = (
    "Looked at: model loads and first runs, queues, retries, the network, the store's state, candidates, HyDE, length of prompt "
    "and answer, decoding; GPUs, processors and disks in the query's own time."
)
LEAST = "A finding has to cost at least 100 ms and 5 % of the time, and to have evidence."
_MEANING = re.compile(r"([\\`*_\[\]<>|~$#&])")


def findings_text(findings: Sequence[Finding]) -> str:
    """A numbered list, best first. What machines and servers said is escaped."""
    if not findings:
        return f"Nothing stands out. {LOOKED_AT} {LEAST}\n"
    return "\n".join(_one(finding, rank) for rank, finding in enumerate(findings, 1))


def _one(finding: Finding, rank: int) -> str:
    lines = [
        f"{rank}. **{_plain(finding.title)}**",
        f"   {_saving(finding)} · {finding.confidence}: {CONFIDENCE[finding.confidence]}",
        "",
        *(f"   - {_plain(item.text)}{_when(item)}" for item in finding.evidence),
        "",
        f"   How the saving follows: {_plain(finding.derivation)}",
        "",
        f"   What to change: {_plain(finding.change)}",
        "",
    ]
    return "\n".join(lines)


def _saving(finding: Finding) -> str:
    if finding.saving_seconds is None:
        return f"costs {seconds(finding.cost_seconds)}; what can be saved is not known"
    share = "" if finding.share is None else f" ({percent(finding.share)})"
    return f"saves about {seconds(finding.saving_seconds)}{share}"


def _when(item: Evidence) -> str:
    if item.start is None:
        return ""
    return f" (at {max(0.0, item.start):.2f}–{max(0.0, item.end if item.end is not None else item.start):.2f} s)"


def _plain(text: str) -> str:
    """One line that Markdown shows as it is."""
    return _MEANING.sub(r"\\\1", " ".join(text.split()))
