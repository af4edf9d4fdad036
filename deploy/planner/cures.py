"""The smallest change that makes a service fit, tried one by one on the whole plan. Knows no measure but the plan itself.

In the order of what they cost the user: less context, fewer sequences, an 8-bit cache, quantised weights, another amount; where
none of these is enough, pairs of them; then more GPUs and a larger GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from deploy.planner.cache import BLOCK_TOKENS
from deploy.planner.catalogue import Gpu, Model, gpus
from deploy.planner.limits import largest
from deploy.planner.placement import Placed, Plan, plan
from deploy.planner.precisions import SIXTEEN_BIT
from deploy.planner.request import Request, Service
from rag.errors import RagError

LEAST_CONTEXT = 512
MOST_PAIRS = 4
QUANTISED = ("fp8", "awq")


@dataclass(frozen=True, slots=True)
class Cure:
    """A change after which the service fits: what to do, and the request with it done."""

    text: str
    request: Request


def cures(found: Plan, name: str) -> tuple[Cure, ...]:
    """Changes that each make the service fit and no other stop fitting, the smallest first; empty where none is known."""
    placed = found.service(name)
    if placed.fits:
        return ()
    known = {each.service.model: each.model for each in found.services}
    trial = _Trial(found, placed, known)
    settings = tuple(trial.single()) or tuple(trial.pairs())[:MOST_PAIRS]
    return (*settings, *trial.hardware())


class _Trial:
    """Tries changed requests on the plan."""

    def __init__(self, found: Plan, placed: Placed, known: Mapping[str, Model]) -> None:
        self.request, self.placed, self.known = found.request, placed, known
        self.fitting = {each.service.name for each in found.services if each.fits} | {placed.service.name}

    def fits(self, request: Request) -> bool:
        try:
            changed = plan(request, self.known)
        except RagError:
            return False  # a split that the heads do not allow
        return all(each.fits for each in changed.services if each.service.name in self.fitting)

    def with_service(self, service: Service) -> Request:
        name = self.placed.service.name
        return replace(self.request, services=tuple(service if each.name == name else each for each in self.request.services))

    def single(self) -> Iterator[Cure]:
        service = self.placed.service
        yield from self._less(service)
        for text, changed in (*self._cache(service), *self._weights(service)):
            if self.fits(self.with_service(changed)):
                yield Cure(text, self.with_service(changed))
        yield from self._unreserved(service)

    def hardware(self) -> Iterator[Cure]:
        """More GPUs, and larger ones."""
        yield from self._more_gpus(self.placed.service)
        yield from self._larger_gpu()

    def pairs(self) -> Iterator[Cure]:
        """Two changes of the service at once, where no single one is enough."""
        service = self.placed.service
        bases = (*self._weights(service), *self._cache(service))
        for text, changed in bases:
            others = self._cache(changed) if changed.cache == service.cache else ()
            for second, both in others:
                if self.fits(self.with_service(both)):
                    yield Cure(_both(text, second), self.with_service(both))
            for cure in self._less(changed):
                yield Cure(_both(text, cure.text), cure.request)

    def _less(self, service: Service) -> Iterator[Cure]:
        if not self.placed.model.shape.has_cache and service.engine == "vllm":
            return
        yield from self._number(service, "context", LEAST_CONTEXT // BLOCK_TOKENS, service.context // BLOCK_TOKENS, BLOCK_TOKENS)
        yield from self._number(service, "sequences", 1, service.sequences - 1, 1)

    def _number(self, service: Service, field: str, low: int, high: int, unit: int) -> Iterator[Cure]:
        def changed(value: int) -> Request:
            return self.with_service(replace(service, **{field: value * unit}))  # type: ignore[arg-type]

        if high < low or not self.fits(changed(low)):
            return
        value = largest(low, high, lambda each: self.fits(changed(each)))
        before = getattr(service, field)
        words = {"context": f"{value * unit:,} tokens of context instead of {before:,}",
                 "sequences": f"{value} sequence{'s' if value > 1 else ''} at once instead of {before}"}  # fmt: skip
        yield Cure(f"Take {words[field]}.", changed(value))

    def _cache(self, service: Service) -> tuple[tuple[str, Service], ...]:
        if service.cache == "fp8" or not self.placed.model.shape.has_cache or service.engine != "vllm":
            return ()
        return (("Keep the cache in 8 bits (--kv-cache-dtype fp8).", replace(service, cache="fp8")),)

    def _weights(self, service: Service) -> tuple[tuple[str, Service], ...]:
        now = self.placed.precision
        if now == "fp32":
            return (("Load the weights as 16-bit floats.", replace(service, precision="fp16")),)
        if now not in SIXTEEN_BIT or service.engine != "vllm":
            return ()
        return tuple((f"Serve {each.upper()} weights instead of {now}.", replace(service, precision=each)) for each in QUANTISED)

    def _unreserved(self, service: Service) -> Iterator[Cure]:
        """Where it was given too little: what it needs instead of what was stated."""
        if service.reserve_gb is None and service.stated_share is None:
            return
        changed = self.with_service(replace(service, reserve_gb=None, stated_share=None))
        if self.fits(changed):
            share = plan(changed, self.known).service(service.name).share
            amount = f"a share of {share:.2f}" if share is not None else "what it needs"
            yield Cure(f"Give it {amount} instead of what is stated.", changed)

    def _more_gpus(self, service: Service) -> Iterator[Cure]:
        for split in (2, 4, 8):
            if service.engine == "vllm" and service.split < split <= self.request.count:
                changed = self.with_service(replace(service, split=split, gpus=()))
                if self.fits(changed):
                    yield Cure(f"Spread it over {split} GPUs (--tensor-parallel-size {split}).", changed)
                    return

    def _larger_gpu(self) -> Iterator[Cure]:
        for each in larger(self.request.gpu):
            changed = replace(self.request, gpu=each)
            if self.fits(changed):
                yield Cure(f"Take {each.name} GPUs instead of {self.request.gpu.name}.", changed)
                return


def _both(first: str, second: str) -> str:
    return f"{first.rstrip('.')} and {second[0].lower()}{second[1:]}"


def larger(gpu: Gpu) -> list[Gpu]:
    """Known GPUs with more memory, the next first."""
    return sorted((each for each in gpus().values() if each.usable_bytes > gpu.usable_bytes), key=lambda each: each.usable_bytes)
