"""Machines: what readings show in the very interval in which a stage took longer than usual.

A reading alone is no finding: a busy GPU is what GPUs are for. It explains what a stage took beyond the usual; where two do, they
share it. Without a baseline only a clock that was held back gives a cost, by its ratio. Our own process and the model servers
that the query asked are `ours` in the readings and never blamed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from latency.findings.drafts import Draft
from latency.findings.gpus import gpus
from latency.findings.hosts import disks, processors
from latency.findings.ledger import WORK, Ledger
from latency.findings.signs import Sign, sources
from latency.findings.words import count, doing, figure, percent, seconds, sentence
from latency.types import LOCAL, Evidence, QueryReadings


def causes(ledger: Ledger) -> Iterator[Draft]:
    """Each warm stage's excess, given to what the readings show in its time."""
    readings = ledger.readings
    if readings is None:
        return
    for name, stage in ledger.stages.items():
        excess, known = ledger.excess(name), ledger.usual(name) is not None
        if stage.cold or (known and not excess):
            continue
        signs = _signs(ledger, name, readings)
        if signs and excess:
            yield from _explained(ledger, name, signs, excess)
        elif not known:
            yield from (_by_clock(ledger, name, sign) for sign in signs if sign.part is not None)


def _signs(ledger: Ledger, stage: str, readings: QueryReadings) -> list[Sign]:
    """What could explain it: a GPU's state before the processors', since what runs on a GPU waits for it first."""
    pieces = [piece for piece in ledger.pieces(stage) if piece.end > piece.start]
    found = [sign for gpu in gpus(ledger, stage, readings) for sign in gpu.signs(pieces)] if pieces else []
    if found or not pieces:
        return found
    is_remote = ledger.stages[stage].where == "http"
    if is_remote and stage == "search":
        return [sign for source in sources(readings) for sign in disks(readings, source, stage, pieces)]
    found = list(processors(readings, stage, pieces))
    if not found or stage == "search":
        found += disks(readings, LOCAL, stage, pieces)
    # a server may stand on another machine than the one whose processors were read
    return [replace(sign, certain="suspected") for sign in found] if is_remote else found


def _explained(ledger: Ledger, stage: str, signs: list[Sign], excess: Mapping[str, float]) -> Iterator[Draft]:
    """The excess shared among the signs: by their own estimate, or equally where one has none."""
    together, work = sum(excess.values()), ledger.left(stage, *WORK)
    weights = [together / len(signs) if sign.part is None else min(together, sign.part * work) for sign in signs]
    whole = sum(weights) or 1.0
    pieces = ledger.pieces(stage)
    usual = ledger.usual(stage)
    took = f"{sentence(doing(stage))} took {seconds(together)} more than usual for its work"
    text = f"{took} ({count(usual.n, 'query')} say what is usual)." if usual else f"{took}."
    slow = Evidence(text, together, "s", pieces[0].span_id or "baseline", pieces[0].start, pieces[-1].end)
    for sign, weight in zip(signs, weights, strict=True):
        taken = sum(ledger.take_excess(stage, pool, value * weight / whole) for pool, value in excess.items())
        others = len(signs) - 1
        share = f"; this cause's part beside {count(others, 'other')} is {percent(weight / whole)}" if others else ""
        derivation = f"{took}{share}: {seconds(taken)}."
        evidence = (*sign.evidence, slow)
        yield Draft(sign.code, sign.key, stage, sign.subject, taken, taken, derivation, sign.certain, evidence, sign.change)


def _by_clock(ledger: Ledger, stage: str, sign: Sign) -> Draft:
    """Nothing is known of what is usual: the seconds that the clock cost, taken to be in proportion to it."""
    work, part = ledger.left(stage, *WORK), sign.part or 0.0
    taken = ledger.take(stage, work * part, *WORK)
    derivation = f"{seconds(work)} of computing × (1 − clock / highest clock {figure(1 - part)}) = {seconds(taken)}."
    return Draft(sign.code, sign.key, stage, sign.subject, taken, taken, derivation, "suspected", sign.evidence, sign.change)
