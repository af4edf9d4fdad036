"""Which GPU carries a load, with how many of them, for what cost. Speeds are the data sheet's bounds times a stated share.

Prices are the user's, with the field report's as examples; a GPU without a price has no cost. Knows nothing measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from deploy.planner.catalogue import Gpu, Model, gpus
from deploy.planner.catalogue import model as find_model
from deploy.planner.limits import bounds, decode
from deploy.planner.placement import Placed, plan
from deploy.planner.request import Request, Service
from latency.hardware.prices import PRESETS, REPORT
from rag.errors import RagError

SPLITS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of a language model: questions a second in the busiest hour, tokens of a question and of an answer, the
    slowest stream that a reader bears. `reached` is the share of the bounds taken for reached: an assumption."""

    requests_per_second: float = 0.2
    prompt_tokens: int = 3000
    answer_tokens: int = 300
    least_tokens_per_second: float = 15.0
    reached: float = 0.5

    def __post_init__(self) -> None:
        limits = (
            ("requests_per_second", self.requests_per_second, 1e-6, 1e6),
            ("prompt_tokens", self.prompt_tokens, 1, 10_000_000),
            ("answer_tokens", self.answer_tokens, 1, 10_000_000),
            ("least_tokens_per_second", self.least_tokens_per_second, 0, 1e6),
            ("reached", self.reached, 0.01, 1),
        )
        for name, value, low, high in limits:
            if not low <= value <= high:
                raise RagError(f"{name} is {value:g}", kind="bad_input", next_step=f"It is {low:g} to {high:g}.")


class GpuPrice(NamedTuple):
    """Euros a month for one GPU, as of `date` (year and month), and who says so."""

    eur_month: float
    date: str
    source: str


@dataclass(frozen=True, slots=True)
class Offer:
    """One type of GPU for the demand. `split` GPUs a copy and `copies` of it; `why_not` says why it cannot be taken.

    `sequences` run at once on a copy; `stream` is the tokens a second of each then, `requests_per_second` what a copy
    carries, both after the share reached. `eur_month` is None without a price."""

    gpu: Gpu
    split: int = 0
    copies: int = 0
    sequences: int = 0
    stream: float | None = None
    requests_per_second: float | None = None
    eur_month: float | None = None
    price: GpuPrice | None = None
    why_not: str = ""


def example_prices() -> dict[str, GpuPrice]:
    """Of one GPU of a type, where the field report has a price."""
    reported = {each.name: each for each in PRESETS}
    found = {each.name: reported[each.price] for each in gpus().values() if each.price in reported}
    return {name: GpuPrice(float(each.eur_month), each.date, f"{each.name}, {REPORT}") for name, each in found.items()}


def known_prices(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, GpuPrice]:
    """The settings' prices (`capacity.gpu_prices`, checked there) over the report's, without names that are no GPU of ours."""
    own = {name: GpuPrice(float(each["eur_month"]), each["date"], each["source"]) for name, each in settings.items()}
    return {name: price for name, price in {**example_prices(), **own}.items() if name in gpus()}


def offers(
    service: Service, demand: Demand, prices: Mapping[str, GpuPrice], buffer_gb: float = 1.0, model: Model | None = None
) -> tuple[Offer, ...]:
    """Every known GPU for a language model's load: those that carry it first, the cheapest first, those without a price after.

    `model` where it is looked up already. Raises RagError for a model that is no language model, or not known."""
    model = model or find_model(service.model)
    if model.shape.kind != "decoder" or service.engine != "vllm":
        raise RagError(
            f"{service.model[:80]} is no language model that vLLM serves", kind="bad_input", next_step="Choose another service."
        )
    asked = replace(service, gpus=(), reserve_gb=None, stated_share=None, fill=True, sequences=1)
    asked = replace(asked, context=max(demand.prompt_tokens + demand.answer_tokens, 16))
    found = [_offer(asked, model, gpu, demand, prices.get(gpu.name), buffer_gb) for gpu in gpus().values()]
    return tuple(sorted(found, key=_order))


def _order(offer: Offer) -> tuple[bool, bool, float, float]:
    return bool(offer.why_not), offer.eur_month is None, offer.eur_month or 0.0, offer.copies * offer.split * offer.gpu.nominal_gb


def _offer(service: Service, model: Model, gpu: Gpu, demand: Demand, price: GpuPrice | None, buffer_gb: float) -> Offer:
    """The fewest GPUs of a type: of the splits that hold the model, the one with which the load takes fewest."""
    best: Offer | None = None
    reasons: list[str] = []
    for split in SPLITS:
        request = Request("fleet", gpu, split, min(buffer_gb, gpu.nominal_gb / 4), services=(replace(service, split=split),))
        try:
            placed = plan(request, {service.model: model}).services[0]
        except RagError as problem:
            reasons.append(problem.message)
            continue
        if not placed.fits:
            reasons.append(f"{split} GPUs: {placed.problem}" if split > 1 else placed.problem)
            continue
        offer = _carried(placed, gpu, demand, price)
        if offer.why_not:
            reasons.append(offer.why_not)
        elif best is None or offer.copies * split < best.copies * best.split:
            best = offer
    return best or Offer(gpu, why_not=reasons[-1] if reasons else "Nothing fits.")


def _carried(placed: Placed, gpu: Gpu, demand: Demand, price: GpuPrice | None) -> Offer:
    """The most sequences whose streams are fast enough, what a copy then carries, and how many copies the load takes."""
    context, split = placed.service.context, placed.service.split
    prefill = bounds(placed, gpu).prefill
    most = min(placed.max_sequences or 0, 256)
    streams = [(n, _stream(placed, gpu, demand, n, context)) for n in range(1, most + 1)]
    quick = [(n, rate) for n, rate in streams if rate is not None and rate >= demand.least_tokens_per_second]
    if prefill is None or not quick:
        fastest = f"{streams[0][1]:.3g}" if streams and streams[0][1] is not None else "an unknown number of"
        return Offer(gpu, why_not=f"{split} × {gpu.name}: {fastest} tokens a second for one reader, fewer than wanted.")
    sequences, stream = quick[-1]
    seconds = demand.prompt_tokens / (prefill * demand.reached) + demand.answer_tokens / (stream * sequences)
    carried = 1 / seconds
    copies = max(1, math.ceil(demand.requests_per_second / carried))
    cost = None if price is None else price.eur_month * copies * split
    return Offer(gpu, split, copies, sequences, stream, carried, cost, price)


def _stream(placed: Placed, gpu: Gpu, demand: Demand, sequences: int, context: int) -> float | None:
    together = decode(placed, gpu, sequences, context)
    return None if together is None else together / sequences * demand.reached
