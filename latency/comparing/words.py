"""A comparison in one sentence. Pure; reads a finished Comparison and computes nothing anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latency.findings.words import count, listed, percent, seconds

if TYPE_CHECKING:
    from latency.comparing.compare import Comparison, Row

TOLD_SHARE = 0.25  # of the difference, to be named beside the largest contribution
PART_SHARE = 0.6  # of a stage's change, to be named as its cause
LEAST_SHOWN = 5e-7  # seconds: what is left of sums of floating point numbers is no difference
PARTS = {
    "load": "loading the model",
    "queue": "waiting in the queue",
    "network": "the network",
    "tokenize": "tokenizing",
    "compute": "computing",
}


def summary(found: Comparison) -> str:
    """`B was 3.10 s faster (32 %): 2.90 s of it in hyde, which A ran and B skipped.`"""
    apart = found.total.verdict
    if apart.word == "no difference" or (apart.word == "too few" and abs(apart.difference) < apart.minimum_effect):
        return _alike(found)
    where = _where(found)
    return f"{_said(found)}{': ' + where if where else ''}."


def _said(found: Comparison) -> str:
    total = found.total
    apart = total.difference_seconds
    share = percent(abs(apart) / total.a_seconds) if total.a_seconds else ""
    details = [text for text in (share, interval_text(found)) if text]
    middle = "" if found.single else " at the median"
    unsure = "" if found.single or total.verdict.called else ", though with too few queries to be sure"
    return f"B was {seconds(abs(apart))} {'slower' if apart > 0 else 'faster'}{middle} ({'; '.join(details)}){unsure}"


def _alike(found: Comparison) -> str:
    a, b = seconds(found.a.median_seconds), seconds(found.b.median_seconds)
    if found.single:
        return f"A and B took the same time, {a} and {b}{_cancelled_out(found)}."
    details = interval_text(found)
    wide = (
        "; the interval is wide, so that a difference that matters may hide in it" if "wide" in found.total.verdict.reason else ""
    )
    return f"No difference: medians {a} and {b}{f' ({details})' if details else ''}{_cancelled_out(found)}{wide}."


def interval_text(found: Comparison) -> str:
    """`99 % interval -3.40 to -2.80 s, 30 pairs`; for sets without an interval how many there were, else nothing."""
    runs = count(found.pairs, "pair") if found.pairs is not None else f"n {found.a.n:,} and {found.b.n:,}"
    interval = found.total.verdict.interval
    if interval is None:
        return "" if found.single else runs
    return f"{percent(interval.confidence)} interval {signed(interval.low)} to {signed(interval.high)}, {runs}"


def signed(value: float) -> str:
    """`+120 ms`, `−3.10 s`."""
    return f"{'−' if value < 0 else '+'}{seconds(abs(value))}" if abs(value) >= LEAST_SHOWN else seconds(0.0)


def share_text(share: float) -> str:
    """`61 %`, `−7 %`."""
    return f"{'−' if share <= -0.005 else ''}{percent(abs(share))}" if abs(share) > 1e-9 else percent(0.0)


def _where(found: Comparison) -> str:
    """The stages that made the difference, the largest with its reason."""
    apart = found.total.contribution_seconds
    rows = [row for row in found.stages if abs(row.contribution_seconds) >= TOLD_SHARE * abs(apart)]
    if not rows or not apart:
        return ""
    reasons = [reason(found, row) if index == 0 else "" for index, row in enumerate(rows)]
    same = all(row.contribution_seconds * apart > 0 for row in rows)
    if same and abs(rows[0].contribution_seconds) <= 1.05 * abs(apart):
        parts = [
            f"{seconds(abs(row.contribution_seconds))} of it {_place(row)}{why}" for row, why in zip(rows, reasons, strict=True)
        ]
    else:
        parts = [f"{_change(row)}{why}" for row, why in zip(rows, reasons, strict=True)]
    return "; ".join(parts)


def _place(row: Row) -> str:
    return row.name if row.name.startswith("between") else f"in {row.name}"


def _change(row: Row) -> str:
    more = "more" if row.contribution_seconds > 0 else "less"
    return f"{row.name} took {seconds(abs(row.contribution_seconds))} {more}"


def _cancelled_out(found: Comparison) -> str:
    """Changes of single stages that are called, or in single queries large, although the total is the same."""
    least = 0.1 * max(found.a.median_seconds, found.b.median_seconds)
    rows = [
        row
        for row in found.stages
        if abs(row.contribution_seconds) >= least and (found.single or row.verdict.called) and not row.name.startswith("between")
    ]
    return f", although {listed([_change(row) for row in rows[:3]])}" if rows else ""


def reason(found: Comparison, row: Row) -> str:
    """`, which A ran and B skipped`, or what else is known to differ about that stage."""
    if bool(row.a_ran) != bool(row.b_ran):
        ran, skipped = ("A", "B") if row.a_ran else ("B", "A")
        return f", which {ran} ran and {skipped} skipped"
    if bool(row.a_cold) != bool(row.b_cold):
        return f", which was cold in {'A' if row.a_cold else 'B'}"
    for other in found.others:
        if other.kind in ("place", "device", "models") and other.name.startswith(f"{row.name} "):
            return f" ({other.a} in A, {other.b} in B)"
    main = row.parts[0] if row.parts else None
    if main and main.name in PARTS and main.contribution_seconds / row.contribution_seconds >= PART_SHARE:
        return f", most of it {PARTS[main.name]}"
    return ""
