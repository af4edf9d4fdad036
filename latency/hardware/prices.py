"""What a machine costs against what it does: monthly cost, cost per million queries, break-even, and a recommendation. Pure.

Measured numbers come from `latency.hardware.hardware`; the field report's are kept apart, as reported. Prices are of the date
that they carry and editable. Knows no currency but euros and looks nothing up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from latency.hardware.types import HardwareResult, Row
from rag.errors import RagError
from rag.quantities import seconds

MONTH_SECONDS = 365.25 / 12 * 86_400
MOST_MACHINES = 1000
REPORT = "the report of 2025-01"
RULE = "a GPU is worth it from about 10 active users, or where precision matters"
RULE_USERS = 10


class Price(NamedTuple):
    """A machine's price: euros a month, as of `date` (year and month)."""

    name: str
    eur_month: float
    date: str = "2025-01"


PRESETS: tuple[Price, ...] = (
    Price("Hetzner T4", 40),
    Price("OVH V100", 100),
    Price("Scaleway V100", 80),
    Price("AWS g4dn.xlarge", 120),
    Price("Azure NC4as T4", 150),
)
TRAFFIC_EUR_MONTH = (2.0, 5.0)  # reported, a month


class Reported(NamedTuple):
    """What the report says of reranking: seconds for so many candidates, or requests a second (`candidates` None)."""

    device: str
    candidates: int | None
    low: float
    high: float


REPORTED: tuple[Reported, ...] = (
    Reported("CPU", 20, 0.2, 0.5),
    Reported("T4", 20, 0.05, 0.15),
    Reported("CPU", 50, 0.8, 1.5),
    Reported("T4", 50, 0.1, 0.2),
    Reported("CPU", None, 5, 10),
    Reported("T4", None, 50, 100),
)
REPORTED_INT8 = "INT8 on the CPU takes 30 to 40 % less time."


def prices(changes: Mapping[str, Any] | None = None) -> tuple[Price, ...]:
    """The presets, with prices changed or added by name: `{"Hetzner T4": 45, "Ours": {"eur_month": 80, "date": "2026-03"}}`; None
    takes one away. Raises RagError for what is no price."""
    found = {price.name: price for price in PRESETS}
    for name, value in (changes or {}).items():
        if value is None:
            found.pop(name, None)
            continue
        data = value if isinstance(value, Mapping) else {"eur_month": value}
        eur, date = data.get("eur_month"), str(data.get("date", "entered"))
        if isinstance(eur, bool) or not isinstance(eur, int | float) or not 0 <= eur < 1e7:
            raise RagError(f"the price of {name!r} is {eur!r}", kind="bad_input", next_step="Give euros a month, 0 or more.")
        found[name] = Price(name, float(eur), date)
    return tuple(found.values())


@dataclass(frozen=True, slots=True)
class Needs:
    """What is wanted, and what machines cost, in euros a month. The last four are assumptions for people to change: no report
    gives a processor's price; a month's load is not even (`peak_factor`: the busiest hour against the mean), and a machine is
    not run at its limit (`use_ratio`)."""

    gpu: Price = PRESETS[0]
    queries_month: float = 100_000
    active_users: int = 5
    candidates: int = 20
    target_seconds: float = 0.5
    precision_matters: bool = False
    traffic_eur_month: float = sum(TRAFFIC_EUR_MONTH) / 2
    cpu_eur_month: float = 20.0
    peak_factor: float = 4.0
    use_ratio: float = 0.7

    def __post_init__(self) -> None:
        """Raises RagError for a number that cannot be."""
        limits = (
            ("queries_month", self.queries_month, 1, 1e12),
            ("active_users", self.active_users, 0, 1e9),
            ("target_seconds", self.target_seconds, 0.001, 3600),
            ("traffic_eur_month", self.traffic_eur_month, 0, 1e7),
            ("cpu_eur_month", self.cpu_eur_month, 0, 1e7),
            ("peak_factor", self.peak_factor, 1, 1000),
            ("use_ratio", self.use_ratio, 0.01, 1),
        )
        for name, value, low, high in limits:
            if not low <= value <= high:
                raise RagError(f"{name} is {value:g}", kind="bad_input", next_step=f"It is {low:g} to {high:g}.")


@dataclass(frozen=True, slots=True)
class Option:
    """A place that was measured, as something to rent. `per_second` is queries a second (a question embedded, where that was
    measured there too, and its candidates reranked) within the target; where the target is missed, at best. `p95` is of
    reranking for one client, `n` its count. `assumed` says what was taken for granted."""

    name: str
    hardware: Literal["cpu", "gpu"]
    precision: str | None
    p95: float
    n: int
    per_second: float
    clients: int
    meets_target: bool
    assumed: str = ""


@dataclass(frozen=True, slots=True)
class Cost:
    """An option's cost at the load wanted: `capacity_month` queries a month one machine carries; euros."""

    option: Option
    machines: int
    capacity_month: float
    eur_month: float
    eur_per_million: float
    eur_per_million_full: float


@dataclass(frozen=True, slots=True)
class Advice:
    """`choice` names the place, None where it cannot be said. `break_even_queries_month` is the load from which the best GPU
    place costs no more than the best CPU place: 0.0 from the first query, None never or unknown (`break_even_text` says)."""

    choice: str | None
    text: str
    reasons: tuple[str, ...]
    costs: tuple[Cost, ...]
    break_even_queries_month: float | None
    break_even_text: str


# 1) options


def options(result: HardwareResult, needs: Needs) -> tuple[Option, ...]:
    """Every place in which reranking so many candidates was measured."""
    embedders = {row.place[1:]: row for row in result.of("embed")}
    found = [_option(row, embedders.get(row.place[1:]), needs) for row in result.of("rerank")]
    return tuple(each for each in found if each is not None)


def _option(row: Row, embedder: Row | None, needs: Needs) -> Option | None:
    """A query takes the machine's time for both models: throughputs add up as resistances in a row do."""
    cells = [cell.step for cell in row.measured(needs.candidates) if cell.step and cell.step.total]
    if not cells:
        return None
    within = [step for step in cells if step.total and step.total.p95 <= needs.target_seconds]
    best = max(within or cells, key=lambda step: step.throughput)
    rate = best.throughput
    asked = [cell.step.throughput for cell in embedder.measured(1) if cell.step] if embedder else []
    if asked and rate > 0:
        rate = 1 / (1 / rate + 1 / max(asked))
    device = (row.device or "").split(":")[0]
    is_cpu = device == "cpu"
    assumed = "" if device in ("cpu", "cuda") else "The server does not say what it runs on; it is priced as a GPU."
    alone = min(cells, key=lambda step: step.users)
    assert alone.total is not None
    hardware: Literal["cpu", "gpu"] = "cpu" if is_cpu else "gpu"
    return Option(
        row.place.name, hardware, row.precision, alone.total.p95, alone.total.n, rate, best.users, bool(within), assumed
    )


# 2) costs


def capacity_month(per_second: float, needs: Needs) -> float:
    """Queries a month that one machine carries when its busiest hour takes `use_ratio` of it."""
    return per_second * needs.use_ratio / needs.peak_factor * MONTH_SECONDS


def machines(queries_month: float, capacity: float) -> int:
    return max(1, math.ceil(queries_month / capacity)) if capacity > 0 else MOST_MACHINES


def _machine_price(option: Option, needs: Needs) -> float:
    return needs.cpu_eur_month if option.hardware == "cpu" else needs.gpu.eur_month


def eur_month(option: Option, needs: Needs, queries_month: float) -> float:
    """Machines for that load, and for a GPU, which stands elsewhere, the traffic to it."""
    count = machines(queries_month, capacity_month(option.per_second, needs))
    return count * _machine_price(option, needs) + (needs.traffic_eur_month if option.hardware == "gpu" else 0.0)


def cost(option: Option, needs: Needs) -> Cost:
    capacity = capacity_month(option.per_second, needs)
    total = eur_month(option, needs, needs.queries_month)
    full = eur_month(option, needs, capacity) / capacity * 1e6 if capacity > 0 else math.inf
    count = machines(needs.queries_month, capacity)
    return Cost(option, count, capacity, total, total / needs.queries_month * 1e6, full)


def break_even(cpu: Option, gpu: Option, needs: Needs) -> float | None:
    """Queries a month from which the GPU costs no more than the CPU; 0.0 from the first one, None never.

    The CPU's cost rises by a machine at each multiple of its capacity: only there the order can change for the better.
    """
    step = capacity_month(cpu.per_second, needs)
    for count in range(MOST_MACHINES):
        load = step * count
        just_above = math.nextafter(load, math.inf) if count else 1.0
        if eur_month(cpu, needs, just_above) >= eur_month(gpu, needs, just_above):
            return load
    return None


# 3) advice


def advise(result: HardwareResult, needs: Needs) -> Advice:
    """What to run on, with its reasons: of what meets the target the cheapest at the load wanted, then the fastest."""
    found = options(result, needs)
    costs = tuple(cost(option, needs) for option in found)
    reasons: list[str] = []
    fitting = [each for each in costs if each.option.meets_target]
    for each in costs:
        if not each.option.meets_target:
            reasons.append(
                f"{each.option.name} misses the target: p95 {seconds(each.option.p95)} for {needs.candidates} candidates "
                f"(n {each.option.n}), {seconds(needs.target_seconds)} wanted."
            )
    chosen = min(fitting, key=lambda each: (round(each.eur_month, 2), each.option.p95), default=None)
    even, even_text = _break_even(found, needs)
    reasons += [_int8(found), _cost_reason(chosen), even_text, *_unknown(found, needs), _rule(needs, chosen)]
    assumed = sorted({each.assumed for each in found if each.assumed})
    text = _text(chosen, costs, needs)
    kept = tuple(reason for reason in (*reasons, *assumed) if reason)
    return Advice(chosen.option.name if chosen else None, text, kept, costs, even, even_text)


def _text(chosen: Cost | None, costs: Sequence[Cost], needs: Needs) -> str:
    if not costs:
        return f"Nothing can be said: reranking {needs.candidates} candidates was measured nowhere."
    if chosen is None:
        best = min(costs, key=lambda each: each.option.p95)
        missed = f"reranks {needs.candidates} candidates within {seconds(needs.target_seconds)}"
        return f"No place that was measured {missed}; {best.option.name} comes closest."
    price = f"{chosen.eur_month:.0f} EUR a month" + (f" for {chosen.machines} machines" if chosen.machines > 1 else "")
    others = sum(each.option.meets_target for each in costs) > 1
    why = "the cheapest that meets the target" if others else "the only one that meets the target"
    return f"{chosen.option.name}: {why}, {price}, p95 {seconds(chosen.option.p95)} (n {chosen.option.n})."


def _break_even(found: Sequence[Option], needs: Needs) -> tuple[float | None, str]:
    """Of the CPU and GPU places with the highest throughput each, those within the target first."""
    best = {
        kind: max(
            (each for each in found if each.hardware == kind), key=lambda each: (each.meets_target, each.per_second), default=None
        )
        for kind in ("cpu", "gpu")
    }
    cpu, gpu = best["cpu"], best["gpu"]
    if cpu is None or gpu is None:
        missing = "CPU" if cpu is None else "GPU"
        return None, f"The break-even load is not known: no {missing} was measured."
    load = break_even(cpu, gpu, needs)
    names = f"{gpu.name} ({needs.gpu.name}, {needs.gpu.eur_month:g} EUR) against {cpu.name} ({needs.cpu_eur_month:g} EUR)"
    if load is None:
        return None, f"{names}: by cost alone the GPU does not pay at any load."
    if load == 0:
        return 0.0, f"{names}: the GPU costs no more from the first query on."
    side = "above" if needs.queries_month > load else "below"
    return load, f"{names}: by cost the GPU pays from {load:,.0f} queries a month; {needs.queries_month:,.0f} are {side} that."


def _int8(found: Sequence[Option]) -> str:
    cpu = {each.precision: each for each in found if each.hardware == "cpu"}
    if "int8" not in cpu or "fp32" not in cpu:
        return ""
    saved = 1 - cpu["int8"].p95 / cpu["fp32"].p95
    said = f"{abs(saved) * 100:.0f} % {'less' if saved >= 0 else 'more'}"
    return f"INT8 on the CPU takes {said} time than fp32 here (p95, one client); {REPORT} says 30 to 40 % less."


def _cost_reason(chosen: Cost | None) -> str:
    if chosen is None:
        return ""
    option = chosen.option
    clients = "one client" if option.clients == 1 else f"{option.clients} clients at once"
    return (
        f"One {option.name} carries {chosen.capacity_month:,.0f} queries a month at {option.per_second:.3g} a second "
        f"({clients}); {chosen.eur_per_million:,.0f} EUR per million queries at the load wanted."
    )


def _unknown(found: Sequence[Option], needs: Needs) -> list[str]:
    if any(each.hardware == "gpu" for each in found):
        return [f"The speed is that of the GPU that was measured; the price is {needs.gpu.name}'s, which may be another one."]
    if found and all(each.hardware == "cpu" for each in found):
        return [f"No GPU was measured. {REPORT.capitalize()} has 50 to 150 ms for 20 candidates on a T4."]
    return []


def _rule(needs: Needs, chosen: Cost | None) -> str:
    speaks = needs.active_users >= RULE_USERS or needs.precision_matters
    users = f"{needs.active_users} active users" + (", and precision matters" if needs.precision_matters else "")
    verdict = "for" if speaks else "against"
    text = f"The rule of {REPORT}, not measured here: {RULE}. {users}: it speaks {verdict} a GPU."
    if chosen is not None and speaks != (chosen.option.hardware == "gpu"):
        text += " It disagrees with what was measured here."
    return text
