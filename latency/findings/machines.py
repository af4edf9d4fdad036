"""Machines: what readings show in the very interval in which a stage took longer than usual.

A reading alone is no finding: a busy GPU is what GPUs are for. It explains what a stage took beyond the usual; where two do, they
share it. Without a baseline only a clock that was held back gives a cost, by its ratio. Our own process and the model servers that
the query asked are `ours` in the readings and never blamed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from latency.findings import advice
from latency.findings.drafts import WHERE, Draft
from latency.findings.ledger import LLM, WORK, Ledger, Piece
from latency.findings.waits import near
from latency.findings.words import count, doing, figure, gib, listed, percent, seconds, worker
from latency.types import LOCAL, Confidence, Evidence, Fact, QueryReadings, Use

BUSY_RATIO = 0.9
HALF = 0.5
VRAM_FULL_RATIO = 0.97
LOW_CLOCK_RATIO = 0.6
IO_PRESSURE_RATIO = 0.4
HEAT = ("sw_thermal_slowdown", "hw_thermal_slowdown")
POWER = ("sw_power_cap", "hw_power_brake_slowdown")
THROTTLES = (*HEAT, *POWER, "hw_slowdown")
SETTING = ("applications_clocks_setting", "display_clock_setting")


@dataclass(frozen=True, slots=True)
class Sign:
    """A reading that could explain a stage's excess. `part` is the share of the stage's time that it explains by itself, where
    a formula says so; it takes the whole excess when it stands alone."""

    code: str
    key: str
    subject: str
    evidence: tuple[Evidence, ...]
    change: str
    part: float | None = None
    certain: Confidence = "derived"


def causes(ledger: Ledger) -> Iterator[Draft]:
    """Each stage's excess, given to what the readings show in its time."""
    readings = ledger.readings
    if readings is None:
        return
    for name, stage in ledger.stages.items():
        if stage.cold:
            continue
        signs = _signs(ledger, name, readings)
        excess = ledger.excess(name)
        if signs and excess:
            yield from _explained(ledger, name, signs, excess)
        elif ledger.usual(name) is None:
            yield from (_by_clock(ledger, name, sign) for sign in signs if sign.part is not None)


def _signs(ledger: Ledger, stage: str, readings: QueryReadings) -> list[Sign]:
    """What could explain it: a GPU's state before the processors', since what runs on a GPU waits for it first."""
    pieces = [piece for piece in ledger.pieces(stage) if piece.end > piece.start]
    found = [sign for gpu in _gpus(ledger, stage, readings) for sign in gpu.signs(pieces)]
    if found:
        return found
    if ledger.stages[stage].where == "http" and stage == "search":
        return [sign for source in _sources(readings) for sign in _disk(readings, source, stage, pieces)]
    found = list(_processors(readings, stage, pieces))
    if not found or stage == "search":
        found += _disk(readings, LOCAL, stage, pieces)
    if ledger.stages[stage].where == "http":
        return [replace(sign, certain="suspected") for sign in found]  # the server may stand on another machine
    return found


def _explained(ledger: Ledger, stage: str, signs: list[Sign], excess: Mapping[str, float]) -> Iterator[Draft]:
    together = sum(excess.values())
    work = ledger.left(stage, *WORK)
    weights = [together / len(signs) if sign.part is None else min(together, sign.part * work) for sign in signs]
    whole = sum(weights) or 1.0
    usual = ledger.usual(stage)
    of = "" if usual is None else f" ({count(usual.n, 'query')})"
    for sign, weight in zip(signs, weights, strict=True):
        taken = sum(ledger.take_excess(stage, pool, value * weight / whole) for pool, value in excess.items())
        shared = (
            ""
            if len(signs) == 1
            else f", of which {percent(weight / whole)} is given to this cause beside {count(len(signs) - 1, 'other')}"
        )
        took = f"{doing(stage).capitalize()} took {seconds(together)} more than usual for its work{of}{shared}"
        piece = ledger.pieces(stage)[0]
        slow = Evidence(f"{took}.", together, "s", piece.span_id or "baseline", piece.start, ledger.pieces(stage)[-1].end)
        yield Draft(
            sign.code,
            sign.key,
            stage,
            sign.subject,
            taken,
            taken,
            f"{took}: {seconds(taken)}.",
            sign.certain,
            (*sign.evidence, slow),
            sign.change,
        )


def _by_clock(ledger: Ledger, stage: str, sign: Sign) -> Draft:
    """Nothing is known of what is usual: the seconds that the clock cost, taken to be in proportion to it."""
    work, part = ledger.left(stage, *WORK), sign.part or 0.0
    taken = ledger.take(stage, work * part, *WORK)
    derivation = (
        f"{seconds(work)} of computing × (1 − clock / highest clock) = {seconds(work)} × {figure(part)} = {seconds(taken)}."
    )
    return Draft(sign.code, sign.key, stage, sign.subject, taken, taken, derivation, "suspected", sign.evidence, sign.change)


# ------------------------------------------------------------------------------------------------------------------ GPUs


@dataclass(frozen=True, slots=True)
class _Gpu:
    """One GPU that a stage may have run on, as the readings show it. `suspected`: it is not known whether it was this one."""

    ledger: Ledger
    readings: QueryReadings
    stage: str
    source: str
    index: int
    suspected: bool

    @property
    def name(self) -> str:
        return f"GPU {self.index}" if self.source == LOCAL else f"GPU {self.index} of {self.source}"

    @property
    def key(self) -> str:
        return f"{self.source}/gpu.{self.index}"

    def signs(self, pieces: Sequence[Piece]) -> Iterator[Sign]:
        finders: tuple[Callable[[Sequence[Piece]], Sign | None], ...] = (self.throttled, self.shared, self.low, self.full)
        found = [sign for finder in finders if (sign := finder(pieces)) is not None]
        codes = {sign.code for sign in found}
        if "gpu_throttled" in codes:  # then the clock is low for that reason
            found = [sign for sign in found if sign.code != "gpu_clocks_low"]
        if "gpu_shared" in codes:  # then it is full because of it
            found = [sign for sign in found if sign.code != "vram_full"]
        if not found and (sleepy := self.asleep(pieces)) is not None:
            found = [sleepy]
        for sign in found:
            yield replace(sign, certain="suspected") if self.suspected else sign

    def mean(self, field: str, pieces: Sequence[Piece]) -> float | None:
        return _mean(self.readings, self.source, f"gpu.{self.index}.{field}", pieces)

    def seen(self, field: str, value: float | None, unit: str, text: str, pieces: Sequence[Piece]) -> Evidence:
        return Evidence(text, value, unit, f"{self.source}/gpu.{self.index}.{field}", pieces[0].start, pieces[-1].end)

    def facts(self, field: str, pieces: Sequence[Piece]) -> list[Fact]:
        """Facts of that name that were true while one of the pieces ran."""
        name = f"gpu.{self.index}.{field}"
        mine = (fact for fact in self.readings.facts if fact.source == self.source and fact.name == name)
        return [fact for fact in mine if any(fact.start <= piece.end and fact.end >= piece.start for piece in pieces)]

    def clocks(self, pieces: Sequence[Piece]) -> tuple[float, float] | None:
        """(mean clock, highest clock), MHz."""
        clock, highest = self.mean("sm_clock_mhz", pieces), self.mean("sm_clock_max_mhz", pieces)
        if highest is None:
            everywhere = self.readings.get(self.source, f"gpu.{self.index}.sm_clock_max_mhz")
            highest = None if everywhere is None else everywhere.mean()
        return None if clock is None or not highest else (clock, highest)

    def throttled(self, pieces: Sequence[Piece]) -> Sign | None:
        words = {word for fact in self.facts("throttle_reasons", pieces) for word in re.split(r"[^a-z_0-9]+", fact.value.lower())}
        reasons = [reason for reason in THROTTLES if reason in words]
        clocks = self.clocks(pieces)
        if not reasons or (clocks is not None and clocks[0] > 0.97 * clocks[1] and reasons == ["sw_power_cap"]):
            return None
        why = "heat" if set(reasons) & set(HEAT) else "its power limit" if set(reasons) & set(POWER) else "a hardware slowdown"
        evidence = [self.seen("throttle_reasons", None, "", f"{self.name} said while it ran: {', '.join(reasons)}.", pieces)]
        if clocks is not None:
            text = f"Its clock was {figure(clocks[0])} MHz of {figure(clocks[1])} MHz."
            evidence.append(self.seen("sm_clock_mhz", clocks[0], "MHz", text, pieces))
        for field, unit, text in (("temperature_celsius", "°C", "It was {} °C hot."), ("power_watts", "W", "It drew {} W.")):
            value = self.mean(field, pieces)
            if value is not None:
                evidence.append(self.seen(field, value, unit, text.format(figure(value)), pieces))
        part = None if clocks is None else max(0.0, 1 - clocks[0] / clocks[1])
        subject = f"{self.name} was held back by {why} during {doing(self.stage)} in {WHERE}"
        return Sign(
            "gpu_throttled", self.key, subject, tuple(evidence), advice.COOL if why == "heat" else advice.MORE_POWER, part
        )

    def shared(self, pieces: Sequence[Piece]) -> Sign | None:
        others = [use for use in self.readings.uses if use.source == self.source and use.gpu == self.index and not use.ours]
        busy = self.mean("utilization_ratio", pieces)
        if not others or (busy is not None and busy < HALF):
            return None
        others = sorted(others, key=lambda use: -(use.memory_bytes or 0))[:3]
        text = f"On {self.name} there were other processes: {listed([_who(use) for use in others])}."
        evidence = [Evidence(text, float(len(others)), "processes", self.key, pieces[0].start, pieces[-1].end)]
        if busy is not None:
            text = f"{self.name} was used to {percent(busy)} during {doing(self.stage)}."
            evidence.append(self.seen("utilization_ratio", busy, "ratio", text, pieces))
        subject = f"{self.name} was shared with another process during {doing(self.stage)} in {WHERE}"
        return Sign(
            "gpu_shared", self.key, subject, tuple(evidence), change, certain="derived" if busy is not None else "suspected"
        )

    def low(self, pieces: Sequence[Piece]) -> Sign | None:
        clocks, busy = self.clocks(pieces), self.mean("utilization_ratio", pieces)
        if clocks is None or busy is None or busy < HALF or clocks[0] > LOW_CLOCK_RATIO * clocks[1]:
            return None
        words = " ".join(fact.value.lower() for fact in self.facts("throttle_reasons", pieces))
        setting = next((reason for reason in SETTING if reason in words), None)
        text = f"{self.name} ran at {figure(clocks[0])} MHz of {figure(clocks[1])} MHz while it was used to {percent(busy)}"
        because = f", by the setting {setting}." if setting else ", and gave no reason for it."
        evidence = (self.seen("sm_clock_mhz", clocks[0], "MHz", text + because, pieces),)
        subject = f"{self.name} ran at a low clock during {doing(self.stage)} in {WHERE}"
        return Sign("gpu_clocks_low", self.key, subject, evidence, advice.RESET_CLOCKS, max(0.0, 1 - clocks[0] / clocks[1]))

    def full(self, pieces: Sequence[Piece]) -> Sign | None:
        used = self.mean("memory_used_ratio", pieces)
        if used is None:
            taken, there = self.mean("memory_used_bytes", pieces), self.mean("memory_total_bytes", pieces)
            used = None if taken is None or not there else taken / there
        if used is None or used < VRAM_FULL_RATIO:
            return None
        text = f"The memory of {self.name} was used to {used * 100:.1f} %: there is no room for larger batches, and blocks are freed and taken anew."
        change = (
            "Leave it room: a lower --gpu-memory-utilization of vLLM, a smaller model or precision, or the models on another GPU."
        )
        subject = f"The memory of {self.name} was full during {doing(self.stage)} in {WHERE}"
        return Sign(
            "vram_full", self.key, subject, (self.seen("memory_used_ratio", used, "ratio", text, pieces),), advice.FREE_VRAM
        )

    def asleep(self, pieces: Sequence[Piece]) -> Sign | None:
        """Persistence mode is off, and this was the query's first work on the GPU."""
        off = [
            fact
            for fact in self.facts("persistence_enabled", pieces)
            if fact.value.lower() in ("off", "false", "0", "no", "disabled")
        ]
        before = self.readings.get(self.source, f"gpu.{self.index}.utilization_ratio")
        busy = () if before is None else before.within(float("-inf"), pieces[0].start)
        if not off or any(value > 0.1 for value in busy[-3:]) or self._is_later(pieces[0].start):
            return None
        text = (
            f"Persistence mode of {self.name} is off: the driver lets it go when nobody uses it, and the first call wakes it up."
        )
        subject = f"{self.name} had to be woken up for {doing(self.stage)} in {WHERE}"
        return Sign(
            "gpu_persistence_off",
            self.key,
            subject,
            (self.seen("persistence_enabled", None, "", text, pieces),),
            advice.PERSISTENCE,
        )

    def _is_later(self, start: float) -> bool:
        """Another stage of this query used the GPU before."""
        stages = self.ledger.stages.items()
        used = (
            name
            for name, stage in stages
            if (stage.device or "").startswith("cuda") or stage.where == "http" and name != "search"
        )
        return any(piece.start < start for name in used for piece in self.ledger.pieces(name) if name != self.stage)


def _who(use: Use) -> str:
    held = "" if use.memory_bytes is None else f", {gib(use.memory_bytes)}"
    owner = "" if use.owner is None else f", {use.owner}"
    return f"{use.name or 'a process'} (pid {use.pid}{held}{owner})"


def _gpus(ledger: Ledger, stage: str, readings: QueryReadings) -> list[_Gpu]:
    """GPUs that the stage may have run on: its own in this process; behind HTTP any that was read, which makes it a suspicion."""
    found = ledger.stages[stage]
    if stage == "search":
        return []
    if found.where == "http" and not (found.device or "").startswith("cpu"):
        known = [(source, index) for source in _sources(readings) for index in readings.gpus(source)]
        return [_Gpu(ledger, readings, stage, source, index, len(known) > 1) for source, index in known]
    device = re.fullmatch(r"cuda(?::(\d+))?", found.device or "")
    index = int(device[1] or 0) if device else None
    return [] if index is None or index not in readings.gpus(LOCAL) else [_Gpu(ledger, readings, stage, LOCAL, index, False)]


def _sources(readings: QueryReadings) -> list[str]:
    return sorted({each.source for each in readings.series} | {each.source for each in readings.facts})


# ---------------------------------------------------------------------------------------------------- processors and disks


def _processors(readings: QueryReadings, stage: str, pieces: Sequence[Piece]) -> Iterator[Sign]:
    busy = _mean(readings, LOCAL, "cpu.busy_ratio", pieces)
    if busy is None or busy < BUSY_RATIO:
        return
    own, others = _own_and_others(readings, pieces, busy)
    known = own is not None and others is not None
    text = f"The processors of this machine were busy to {percent(busy)} during {doing(stage)}"
    if own is not None and others is not None:
        text += f"; this process used {figure(own)} cores, others {figure(others)}"
    evidence = [Evidence(f"{text}.", busy, "ratio", f"{LOCAL}/cpu.busy_ratio", pieces[0].start, pieces[-1].end)]
    for use in _hogs(readings)[:3]:
        said = f"{use.name or 'A process'} (pid {use.pid}{'' if use.owner is None else f', {use.owner}'}) used {figure(use.cpu_ratio or 0)} cores."
        evidence.append(Evidence(said, use.cpu_ratio, "cores", f"{LOCAL}/processes", pieces[0].start, pieces[-1].end))
    if own is not None and others is not None and own > others:
        subject = f"This process's own other work kept the processors busy during {doing(stage)} in {WHERE}"
        yield Sign("cpu_ours", LOCAL, subject, tuple(evidence), advice.OWN_WORK, certain="suspected")
        return
    subject = f"Other processes kept this machine's processors busy during {doing(stage)} in {WHERE}"
    yield Sign("cpu_saturated", LOCAL, subject, tuple(evidence), advice.HOG, certain="derived" if known else "suspected")


def _own_and_others(readings: QueryReadings, pieces: Sequence[Piece], busy: float) -> tuple[float | None, float | None]:
    """Cores that this process and that others used; None where it is not known."""
    own = _mean(readings, LOCAL, "process.cpu_ratio", pieces)
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


def _disk(readings: QueryReadings, source: str, stage: str, pieces: Sequence[Piece]) -> Iterator[Sign]:
    """Disks that had no time left, and tasks that waited for them: for what reads while a query runs."""
    if stage in LLM:
        return
    disks = [each for each in readings.series if each.source == source and re.fullmatch(r"disk\..+\.busy_ratio", each.metric)]
    busy = {each.metric.split(".", 1)[1].rpartition(".")[0]: _mean(readings, source, each.metric, pieces) for each in disks}
    worst = max(((value, name) for name, value in busy.items() if value is not None), default=None)
    pressure = _mean(readings, source, "pressure.io.some_ratio", pieces)
    pressure = _mean(readings, source, "pressure.io.some_10s_ratio", pieces) if pressure is None else pressure
    full = worst is not None and worst[0] >= BUSY_RATIO
    if not full and (pressure is None or pressure < IO_PRESSURE_RATIO):
        return
    evidence = []
    here = "this machine" if source == LOCAL else source
    if worst is not None:
        text = f"The disk {worst[1]} of {here} was busy {percent(worst[0])} of the time during {doing(stage)}."
        evidence.append(
            Evidence(text, worst[0], "ratio", f"{source}/disk.{worst[1]}.busy_ratio", pieces[0].start, pieces[-1].end)
        )
    if pressure is not None and pressure > 0.05:
        text = f"Tasks waited for disks in {percent(pressure)} of the time."
        evidence.append(Evidence(text, pressure, "ratio", f"{source}/pressure.io", pieces[0].start, pieces[-1].end))
    subject = f"A disk of {here} was saturated while the {worker(stage)} worked in {WHERE}"
    yield Sign("disk_saturated", source, subject, tuple(evidence), advice.DISK)


def _mean(readings: QueryReadings, source: str, metric: str, pieces: Sequence[Piece]) -> float | None:
    """Mean of a metric over the intervals, each as long as it is; beside them where none was read within."""
    series = readings.get(source, metric)
    if series is None:
        return None
    slack = 0.3 if source == LOCAL else 2.5  # remote machines are read every two seconds
    values = [value for piece in pieces for value in near(series, piece.start, piece.end, slack)]
    return sum(values) / len(values) if values else None
