"""GPUs that a stage may have run on: held back, shared, at a low clock, full, or asleep in the stage's own time. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from latency.findings import advice
from latency.findings.drafts import WHERE
from latency.findings.ledger import Ledger, Piece
from latency.findings.signs import Sign, mean, sources
from latency.findings.words import doing, figure, gib, listed, percent
from latency.types import LOCAL, Evidence, Fact, QueryReadings, Use

HALF = 0.5
VRAM_FULL_RATIO = 0.97
LOW_CLOCK_RATIO = 0.6
HEAT = ("sw_thermal_slowdown", "hw_thermal_slowdown")
POWER = ("sw_power_cap", "hw_power_brake_slowdown")
THROTTLES = (*HEAT, *POWER, "hw_slowdown")
THROTTLED_PART = 0.2  # of the stage's time: GPUs touch their power limit for moments in good health, too
SAMPLE_SECONDS = 0.1  # a reason that was seen once held for about as long
FULL_CLOCK = 0.95  # of the highest: what is held back by less is not what one waits for
SETTING = ("applications_clocks_setting", "display_clock_setting")


@dataclass(frozen=True, slots=True)
class Gpu:
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
        return mean(self.readings, self.source, f"gpu.{self.index}.{field}", pieces)

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
        facts = self.facts("throttle_reasons", pieces)
        words = {word for fact in facts for word in re.split(r"[^a-z_0-9]+", fact.value.lower())}
        reasons = [reason for reason in THROTTLES if reason in words]
        clocks = self.clocks(pieces)
        if not reasons or _covered(facts, pieces) < THROTTLED_PART or (clocks is not None and clocks[0] > FULL_CLOCK * clocks[1]):
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
            "gpu_shared",
            self.key,
            subject,
            tuple(evidence),
            advice.OWN_GPU,
            certain="derived" if busy is not None else "suspected",
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
        text = f"The memory of {self.name} was used to {used * 100:.1f} %: each piece of work has to wait until some is freed."
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
        busy = () if before is None else before.within(float("-inf"), pieces[0].start - SAMPLE_SECONDS / 2)
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


def _covered(facts: Sequence[Fact], pieces: Sequence[Piece]) -> float:
    """The part of the pieces' time in which one of the facts was true."""
    together = sum(piece.end - piece.start for piece in pieces)
    both = sum(
        max(0.0, min(fact.end + SAMPLE_SECONDS / 2, piece.end) - max(fact.start - SAMPLE_SECONDS / 2, piece.start))
        for fact in facts
        for piece in pieces
    )
    return both / together if together > 0 else 0.0


def _who(use: Use) -> str:
    held = "" if use.memory_bytes is None else f", {gib(use.memory_bytes)}"
    owner = "" if use.owner is None else f", {use.owner}"
    return f"{use.name or 'a process'} (pid {use.pid}{held}{owner})"


def gpus(ledger: Ledger, stage: str, readings: QueryReadings) -> list[Gpu]:
    """GPUs that the stage may have run on: its own in this process; behind HTTP any that was read, which makes it a suspicion."""
    found = ledger.stages[stage]
    if stage == "search":
        return []
    if found.where == "http" and not (found.device or "").startswith("cpu"):
        known = [(source, index) for source in sources(readings) for index in readings.gpus(source)]
        return [Gpu(ledger, readings, stage, source, index, True) for source, index in known]
    device = re.fullmatch(r"cuda(?::(\d+))?", found.device or "")
    index = int(device[1] or 0) if device else None
    return [] if index is None or index not in readings.gpus(LOCAL) else [Gpu(ledger, readings, stage, LOCAL, index, False)]
