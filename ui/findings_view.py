"""Findings on the page: ranked causes with evidence, saving, derivation and what to change.

The first is open, the others on demand. Whatever a machine or a server said is escaped. Knows no causes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import streamlit as st

from latency.findings.text import CONFIDENCE, LEAST, LOOKED_AT, findings_text
from latency.types import Evidence, Finding
from ui import cards
from ui.format import escape, percent, plain_markdown, plural, query_url, seconds
from ui.style import colour

__all__ = ["body", "card", "findings_text", "nothing", "render", "saving_text"]

_SPAN = re.compile(r"[0-9a-f]{16}")
_SHOWN_QUERIES = 3


def render(findings: Sequence[Finding], total_seconds: float, *, many: bool = False) -> None:
    """The findings of a query (`many`: of a set) that took so long; what was looked at where nothing stands out."""
    if not findings:
        st.html(nothing(total_seconds, many=many))
        return
    first, *others = findings
    st.html(card(first, 1, many=many))
    for rank, finding in enumerate(others, 2):
        with st.expander(plain_markdown(" ".join(f"{rank}. {finding.title}".split()))):
            st.html(body(finding, many=many))


def nothing(total_seconds: float, *, many: bool = False) -> str:
    """That no cause stands out is an answer, too."""
    what = "these queries" if many else "this query"
    return cards.empty(f"Nothing stands out in the {seconds(total_seconds)} of {what}.", LOOKED_AT, LEAST)


def card(finding: Finding, rank: int, *, many: bool = False) -> str:
    """One finding whole: its title with its rank, and the body."""
    title = f'<p class="rd-title rd-plain" dir="auto">{rank}. {escape(finding.title)}</p>'
    return f'<div class="rd" style="{_edge(finding)}">{title}</div>{body(finding, many=many)}'


def body(finding: Finding, *, many: bool = False) -> str:
    """Everything but the title."""
    items = "".join(f'<li style="font-size:inherit">{_evidence_html(item, finding)}</li>' for item in finding.evidence)
    parts = [
        f'<div class="rd-plain">{_saving_html(finding)}</div>',
        f'<ul style="margin:.3rem 0;padding-left:1.2rem;font-size:inherit">{items}</ul>' if items else "",
        _paragraph(f"How the saving follows: {escape(finding.derivation)}", "rd-soft rd-small"),
        _paragraph(f"<strong>What to change:</strong> {escape(finding.change)}"),
        _paragraph(_queries_html(finding), "rd-small") if many else "",
    ]
    return f'<div class="rd">{"".join(parts)}</div>'


def _paragraph(html: str, classes: str = "") -> str:
    size = "" if "rd-small" in classes else ";font-size:inherit"
    return f'<p class="rd-plain {classes}" dir="auto" style="margin:.25rem 0{size}">{html}</p>'


def saving_text(finding: Finding) -> str:
    """`saves about 3.1 s (34 %)`; what it costs where the saving cannot be said."""
    if finding.saving_seconds is None:
        return f"costs {seconds(finding.cost_seconds)}; what can be saved is not known"
    share = "" if finding.share is None else f" ({percent(finding.share)})"
    return f"saves about {seconds(finding.saving_seconds)}{share}"


def _saving_html(finding: Finding) -> str:
    meaning = escape(CONFIDENCE[finding.confidence])
    sure = f'<abbr class="rd-soft" title="{meaning}">{escape(finding.confidence)}</abbr>'
    swatch = f'<span class="rd-swatch" style="{_edge(finding)}"></span>'
    where = f"{swatch}{escape(finding.stage)} · " if finding.stage else ""
    return f"{where}<strong>{escape(saving_text(finding))}</strong> · {sure}"


def _edge(finding: Finding) -> str:
    return colour(finding.stage) if finding.stage else ""


def _evidence_html(item: Evidence, finding: Finding) -> str:
    """The sentence with its time on the query's axis; linked to its span, where it came from one."""
    text = f'<span dir="auto" class="rd-plain">{escape(item.text)}</span>'
    when = _when(item)
    if not when:
        return text
    query = finding.query_ids[0] if finding.query_ids else None
    if query is not None and _SPAN.fullmatch(item.source):
        link = f'<a href="{query_url(query)}#span-{item.source}" title="span {item.source}">{when}</a>'
        return f'{text} <span class="rd-soft rd-small rd-nowrap">{link}</span>'
    return f'{text} <span class="rd-soft rd-small rd-nowrap" title="{escape(item.source)}">{when}</span>'


def _when(item: Evidence) -> str:
    """`at 1.20–1.41 s`: from and to, in seconds of the query."""
    if item.start is None:
        return ""
    end = item.start if item.end is None else item.end
    return f"at {max(0.0, item.start):.2f}–{max(0.0, end):.2f} s"


def _queries_html(finding: Finding) -> str:
    links = ", ".join(
        f'<a class="rd-mono" href="{query_url(query_id)}">{escape(query_id[-8:])}</a>'
        for query_id in finding.query_ids[:_SHOWN_QUERIES]
    )
    rest = len(finding.query_ids) - _SHOWN_QUERIES
    return f"Slowest queries: {links}" + (f" and {plural(rest, 'other')}" if rest > 0 else "")
