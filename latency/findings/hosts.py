"""Processors and disks of the machine that a stage ran on: busy with what, in the stage's own time. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from latency.findings import advice
from latency.findings.drafts import WHERE
from latency.findings.ledger import LLM, Piece
from latency.findings.signs import BUSY_RATIO, Sign, mean
from latency.findings.words import doing, figure, percent, worker
from latency.types import LOCAL, Evidence, QueryReadings, Use

IO_PRESSURE_RATIO = 0.4


def processors(readings: QueryReadings, stage: str, pieces: Sequence[Piece]) -> Iterator[Sign]:
    """This machine's processors without time left: by others, or by work of this process beside the query."""
    busy = mean(readings, LOCAL, "cpu.busy_ratio", pieces)
    if busy is None or busy < BUSY_RATIO:
        return
    own, others = _own_and_others(readings, pieces, busy)
    known = own is not None and others is not None
    text = f"The processors of this machine were busy to {percent(busy)} during {doing(stage)}"
    if own is not None and others is not None:
        text += f"; this process used {figure(own)} cores, others {figure(others)}"
    evidence = [Evidence(f"{text}.", busy, "ratio", f"{LOCAL}/cpu.busy_ratio", pieces[0].start, pieces[-1].end)]
    for use in _hogs(readings)[:3]:
        owner = "" if use.owner is None else f", {use.owner}"
        said = f"{use.name or 'A process'} (pid {use.pid}{owner}) used {figure(use.cpu_ratio or 0)} cores."
        evidence.append(Evidence(said, use.cpu_ratio, "cores", f"{LOCAL}/processes", pieces[0].start, pieces[-1].end))
    if own is not None and others is not None and own > others:
        subject = f"This process's own other work kept the processors busy during {doing(stage)} in {WHERE}"
        yield Sign("cpu_ours", LOCAL, subject, tuple(evidence), advice.OWN_WORK, certain="suspected")
        return
    subject = f"Other processes kept this machine's processors busy during {doing(stage)} in {WHERE}"
    yield Sign("cpu_saturated", LOCAL, subject, tuple(evidence), advice.HOG, certain="derived" if known else "suspected")


def _own_and_others(readings: QueryReadings, pieces: Sequence[Piece], busy: float) -> tuple[float | None, float | None]:
    """Cores that this process and that others used; None where it is not known."""
    own = mean(readings, LOCAL, "process.cpu_ratio", pieces)
    cores = readings.get(LOCAL, "cpu.cores")
    number = (cores.mean() if cores is not None else None) or _cores_listed(readings)
    if own is not None and number:
        return own, max(0.0, busy * number - own)
    hogs = [use.cpu_ratio or 0.0 for use in _hogs(readings)]
    return own, sum(hogs) if hogs else None


def _cores_listed(readings: QueryReadings) -> float | None:
    listed = [each for each in readings.series if each.source == LOCAL and re.fullmatch(r"core\.\d+\.busy_ratio", each.metric)]
    return float(len(listed)) or None


def _hogs(readings: QueryReadings) -> list[Use]:
    others = [
        use for use in readings.uses if use.source == LOCAL and use.gpu is None and not use.ours and (use.cpu_ratio or 0) >= 0.1
    ]
    return sorted(others, key=lambda use: -(use.cpu_ratio or 0.0))


def disks(readings: QueryReadings, source: str, stage: str, pieces: Sequence[Piece]) -> Iterator[Sign]:
    """Disks that had no time left, and tasks that waited for them: for what reads while a query runs."""
    if stage in LLM:
        return
    worst = _busiest(readings, source, pieces)
    pressure = mean(readings, source, "pressure.io.some_ratio", pieces)
    pressure = mean(readings, source, "pressure.io.some_10s_ratio", pieces) if pressure is None else pressure
    full = worst is not None and worst[0] >= BUSY_RATIO
    if not full and (pressure is None or pressure < IO_PRESSURE_RATIO):
        return
    evidence = []
    here = "this machine" if source == LOCAL else source
    start, end = pieces[0].start, pieces[-1].end
    if worst is not None:
        text = f"The disk {worst[1]} of {here} was busy {percent(worst[0])} of the time during {doing(stage)}."
        evidence.append(Evidence(text, worst[0], "ratio", f"{source}/disk.{worst[1]}.busy_ratio", start, end))
    if pressure is not None and pressure > 0.05:
        text = f"Tasks waited for disks in {percent(pressure)} of the time."
        evidence.append(Evidence(text, pressure, "ratio", f"{source}/pressure.io", start, end))
    subject = f"A disk of {here} was saturated while the {worker(stage)} worked in {WHERE}"
    yield Sign("disk_saturated", source, subject, tuple(evidence), advice.DISK)


def _busiest(readings: QueryReadings, source: str, pieces: Sequence[Piece]) -> tuple[float, str] | None:
    """(share of the time it was busy, name) of the source's busiest disk; None where none was read."""
    found = [
        each.metric for each in readings.series if each.source == source and re.fullmatch(r"disk\..+\.busy_ratio", each.metric)
    ]
    busy = (
        (mean(readings, source, metric, pieces), metric.removeprefix("disk.").removesuffix(".busy_ratio")) for metric in found
    )
    return max(((value, name) for value, name in busy if value is not None), default=None)
