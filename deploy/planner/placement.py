"""Services on GPUs: what each gets, what stays free, what does not fit. Never gives out more than there is.

Knows needs and GPUs. A service of vLLM gets a share (`--gpu-memory-utilization`), which vLLM fills with cache; its CUDA context
comes on top. Any other service gets what it needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from deploy.planner import servable
from deploy.planner.cache import sequence_bytes
from deploy.planner.catalogue import Gpu, Model
from deploy.planner.catalogue import model as find_model
from deploy.planner.figures import gib
from deploy.planner.memory import CONTEXT_BYTES, Load, Need, PartName, need, weights_of
from deploy.planner.request import Request, Service, consistent

POOLED = ("embedder", "reranker")
OTHER_WEIGHTS = ("awq", "gptq", "int4", "int8", "mxfp4", "q4_k_m")  # each a checkpoint of its own
STEP = 100  # shares are multiples of 1 / STEP


@dataclass(frozen=True, slots=True)
class Placed:
    """A service and what it gets on each of its GPUs (`gpus`, empty where it found no room), in bytes.

    `share` is vLLM's --gpu-memory-utilization, None for other engines. `cache_room_bytes` is what is left for the cache within
    what it gets. `short_bytes` is what is missing on a GPU, 0 for what fits. `problem` says why it does not.
    """

    service: Service
    model: Model
    precision: str
    need: Need
    gpus: tuple[int, ...] = ()
    share: float | None = None
    reserved_bytes: int = 0
    cache_room_bytes: int = 0
    short_bytes: int = 0
    problem: str = ""
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return not self.problem

    @property
    def load(self) -> Load:
        return load_of(self.service, self.model)

    def parts(self) -> Iterator[tuple[PartName, int]]:
        """What its memory on a GPU holds, without its context; vLLM's cache is all its share leaves."""
        for name, figure in self.need.items():
            if name == "cache":
                yield name, max(figure.value_bytes, self.cache_room_bytes) if self.fits else self.cache_room_bytes
            elif name != "context":
                yield name, figure.value_bytes

    @property
    def max_sequences(self) -> int | None:
        """Sequences of the whole context that the cache holds at once; None for models without one."""
        each = sequence_bytes(self.model.shape, self.service.context, self.load.batched, self.service.cache, self.service.split)
        return self.cache_room_bytes // each if each else None


@dataclass(frozen=True, slots=True)
class GpuUse:
    """One GPU: what services hold of it, contexts, the buffer, and what is free beyond it; in bytes."""

    index: int
    gpu: Gpu
    services: tuple[str, ...]
    reserved_bytes: int
    contexts_bytes: int
    buffer_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    request: Request
    services: tuple[Placed, ...]
    gpus: tuple[GpuUse, ...]
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return all(each.fits for each in self.services)

    def service(self, name: str) -> Placed:
        return next(each for each in self.services if each.service.name == name)


@dataclass(slots=True)
class _Room:
    """A GPU while it is filled: bytes given to services, and the processes that have a context there."""

    total: int
    buffer: int
    given: int = 0
    processes: set[str] = field(default_factory=set)
    holds_contexts: bool = False

    def left(self, process: str) -> int:
        """Bytes that a service of this process may still get."""
        contexts = len(self.processes | {process}) * CONTEXT_BYTES
        kept = max(self.buffer, contexts) if self.holds_contexts else self.buffer + contexts
        return self.total - self.given - kept


def load_of(service: Service, model: Model) -> Load:
    """What a service holds at once. A step of vLLM takes no fewer tokens than sequences; and where it cannot cut a text into
    chunks, as with encoders and other pooled models, no fewer than a whole text: it refuses to start otherwise."""
    batched = service.batched
    if service.engine == "vllm":
        batched = max(batched, service.sequences, service.context if model.kind in POOLED else 1)
    return Load(service.context, service.sequences, batched)


def nominal(gpu: Gpu, gb: float) -> int:
    """Bytes of so many of a GPU's nominal GB: that part of what is usable."""
    return int(gpu.usable_bytes * gb / gpu.nominal_gb)


def plan(request: Request, models: Mapping[str, Model] | None = None) -> Plan:
    """Places every service, pinned ones first, then those over several GPUs, then the largest. Raises RagError (`bad_input`,
    `not_found`) for a model or precision that is not known. `models` are those already looked up, by name;
    those that the request brings are known without."""
    consistent(request)
    given = {each.name: each.model() for each in request.models} | dict(models or {})
    known = {each.model: given.get(each.model) or find_model(each.model) for each in request.services}
    asked = [_asked(each, known[each.model], request) for each in _in_one_width(request.services, known)]
    room = nominal(request.gpu, request.buffer_gb)
    rooms = [_Room(request.gpu.usable_bytes, room, holds_contexts=request.buffer_holds_contexts) for _ in range(request.count)]
    order = sorted(range(len(asked)), key=lambda number: _order(asked[number]))
    done = list(asked)
    for number in order:
        done[number] = _place(asked[number], request.gpu, rooms)
    uses = tuple(_use(index, request.gpu, room, done) for index, room in enumerate(rooms))
    return Plan(request, tuple(done), uses, (*request.notes, *_notes(request, done)))


def _in_one_width(services: Sequence[Service], known: Mapping[str, Model]) -> Iterator[Service]:
    """The services; one process of our GPU server loads all its models in 32 bits where one of them needs that."""
    wide = {
        each.runs_in
        for each in services
        if each.engine == "gpu_server" and (each.precision or known[each.model].precision) == "fp32"
    }
    for each in services:
        yield replace(each, precision="fp32") if each.engine == "gpu_server" and each.runs_in in wide else each


def _order(placed: Placed) -> tuple[bool, bool, int, int]:
    service = placed.service
    return service.fill, not service.gpus, -service.split, -placed.need.inside_bytes


def _asked(service: Service, model: Model, request: Request) -> Placed:
    gpu, engine = request.gpu, service.engine
    precision = service.precision or model.precision
    if precision == "bf16" and not gpu.bf16:
        precision = "fp16"
    if engine == "gpu_server":
        servable.check_own(service, precision)
    elif engine == "vllm" and service.split > 1:
        servable.check_split(service, model.shape, precision)
    load = load_of(service, model)
    found = need(model, precision, load, cache_format=service.cache, split=service.split, engine=engine, eager=service.eager)
    return Placed(service, model, precision, found, notes=tuple(_service_notes(service, model, precision, gpu)))


def _service_notes(service: Service, model: Model, precision: str, gpu: Gpu) -> Iterator[str]:
    """What is to be known of a service whatever its place."""
    if model.note:
        yield model.note
    if needs_other_weights(service, model, precision):
        yield f"{service.model} is published as {model.precision}: name its {precision.upper()} weights."
    if converts_while_loading(service, model, precision):
        whole = weights_of(model, model.precision, service.split).value_bytes
        if whole > gpu.usable_bytes - CONTEXT_BYTES:
            yield (
                f"vLLM makes FP8 weights while it loads, and versions that convert at the end hold {gib(whole)} of "
                f"{model.precision} first, which this GPU has not: name FP8 weights."
            )
    if service.context > model.shape.max_context and (model.shape.has_cache or service.engine == "vllm"):
        refused = ": vLLM refuses that" if service.engine == "vllm" else ""
        yield f"{service.context:,} tokens are more than the {model.shape.max_context:,} that the model was made for{refused}."
    if service.cache == "fp8" and gpu.name in ("T4", "V100 16GB"):
        yield "This GPU has no FP8 arithmetic: check that the engine can keep its cache in fp8 there."


def converts_while_loading(service: Service, model: Model, precision: str) -> bool:
    """Whether vLLM is told to make FP8 weights of 16-bit ones (`--quantization fp8`)."""
    return precision == "fp8" and model.shape.quantised is None and not service.weights


def needs_other_weights(service: Service, model: Model, precision: str) -> bool:
    """Whether this precision has to be a checkpoint of its own, and none is named; vLLM makes fp8 while it loads."""
    return not service.weights and precision != model.precision and precision in OTHER_WEIGHTS


# what a service gets


def _place(placed: Placed, gpu: Gpu, rooms: Sequence[_Room]) -> Placed:
    service = placed.service
    process = service.runs_in
    if service.split > len(rooms):
        return replace(placed, problem=f"It takes {service.split} GPUs and there are {len(rooms)}.")
    home = tuple(index for index, room in enumerate(rooms) if process in room.processes)
    is_own = service.engine == "gpu_server"
    if is_own and home and service.gpus and set(service.gpus) != set(home):
        return replace(placed, problem=f"Its process {process} is on GPU {_list(home)}, and it names GPU {_list(service.gpus)}.")
    chosen = service.gpus or (home if is_own and home else _choose(placed, gpu, rooms))
    left = min(rooms[index].left(process) for index in chosen)
    share, reserved, note = _wanted(placed, gpu, left)
    notes = (*placed.notes, note) if note else placed.notes
    if reserved > left:
        problem = f"It wants {gib(reserved)} of GPU {_list(chosen)}, where {gib(max(0, left))} can be given."
        return replace(placed, share=share, short_bytes=reserved - left, problem=problem, notes=notes)
    for index in chosen:
        rooms[index].given += reserved
        rooms[index].processes.add(process)
    return _within(replace(placed, gpus=tuple(chosen), share=share, reserved_bytes=reserved, notes=notes))


def _within(placed: Placed) -> Placed:
    """Whether what it gets holds what it needs."""
    needed = placed.need.inside_bytes
    room = placed.reserved_bytes - (needed - placed.need.cache.value_bytes)
    short = needed - placed.reserved_bytes
    if short <= 0:
        return replace(placed, cache_room_bytes=room)
    problem = f"It gets {gib(placed.reserved_bytes)} and needs {gib(needed)}: {gib(short)} are missing."
    return replace(placed, cache_room_bytes=max(0, room), short_bytes=short, problem=problem)


def _choose(placed: Placed, gpu: Gpu, rooms: Sequence[_Room]) -> tuple[int, ...]:
    """The fullest GPUs that still have room for it, so that the others stay whole; the emptiest where none has."""
    process = placed.service.runs_in
    wanted = _wanted(placed, gpu, max(room.left(process) for room in rooms))[1]
    order = sorted(
        range(len(rooms)), key=lambda index: (process not in rooms[index].processes, rooms[index].left(process), index)
    )
    enough = [index for index in order if rooms[index].left(process) >= wanted]
    if len(enough) >= placed.service.split:
        return tuple(sorted(enough[: placed.service.split]))
    emptiest = sorted(range(len(rooms)), key=lambda index: (-rooms[index].left(process), index))
    return tuple(sorted(emptiest[: placed.service.split]))


def _wanted(placed: Placed, gpu: Gpu, left: int) -> tuple[float | None, int, str]:
    """(share, bytes, a note): what is reserved for it, what was stated, all that is `left`, or what it needs.

    Shares are rounded down where somebody else set the amount, and up to the next hundredth where they must hold a need.
    """
    service, total = placed.service, gpu.usable_bytes
    if service.engine != "vllm":
        if service.reserve_gb is not None:
            return None, max(0, nominal(gpu, service.reserve_gb) - CONTEXT_BYTES), ""
        return None, placed.need.inside_bytes, ""
    if service.reserve_gb is not None:
        share = _down(service.reserve_gb / gpu.nominal_gb)
        return share, int(share * total), _disagreement(service, gpu, share)
    if service.stated_share is not None:
        return service.stated_share, int(service.stated_share * total), ""
    if service.fill:
        share = _down(max(left, 0) / total)
        return share, int(share * total), ""
    share = math.ceil(placed.need.inside_bytes / total * STEP) / STEP
    return share, math.ceil(share * total), ""


def _down(share: float) -> float:
    return math.floor(share * STEP + 1e-9) / STEP


def _disagreement(service: Service, gpu: Gpu, share: float) -> str:
    stated = service.stated_share
    if stated is None or service.reserve_gb is None or abs(stated * gpu.nominal_gb - service.reserve_gb) < 0.005 * gpu.nominal_gb:
        return ""
    return (
        f"Two figures are stated: {service.reserve_gb:g} GB, and a share of {stated:g}, which is "
        f"{stated * gpu.nominal_gb:g} GB of {gpu.nominal_gb:g}. The {service.reserve_gb:g} GB are planned: "
        f"the flag is {share:.2f}."
    )


# what stays


def _use(index: int, gpu: Gpu, room: _Room, services: Sequence[Placed]) -> GpuUse:
    contexts = len(room.processes) * CONTEXT_BYTES
    unused = room.total - room.given - contexts
    buffer = min(room.buffer, unused)
    names = tuple(each.service.name for each in services if index in each.gpus)
    return GpuUse(index, gpu, names, room.given, contexts, buffer, unused - buffer)


def _notes(request: Request, services: Sequence[Placed]) -> Iterator[str]:
    """What two stated figures mean for the buffer, and what the buffer has to hold."""
    gpu = request.gpu
    for index in range(request.count):
        here = [each for each in services if index in each.gpus and each.service.engine == "vllm"]
        stated = [each.service.stated_share if each.service.stated_share is not None else each.share or 0.0 for each in here]
        apart = [each for each in here if _disagreement(each.service, gpu, each.share or 0.0)]
        if not apart:
            continue
        left = (1 - sum(stated)) * gpu.nominal_gb
        enough = "which keeps" if left >= request.buffer_gb - 1e-6 else "less than"
        planned = (1 - sum(each.share or 0.0 for each in here)) * gpu.nominal_gb
        names = " and ".join(each.service.name for each in apart)
        yield (
            f"GPU {index}: the stated shares add up to {sum(stated):.2f} and leave {left:.3g} GB, {enough} the buffer of "
            f"{request.buffer_gb:g} GB. With the figure in GB for {names} the shares leave {planned:.3g} GB: that one is meant."
        )
    for index in range(request.count):
        several = [each.service.name for each in services if index in each.gpus and each.service.engine == "vllm"]
        if len(several) > 1:
            order = ", then ".join(several)
            yield f"GPU {index}: start {order}, each when the one before is ready: vLLM measures free memory while it starts."
    if request.buffer_holds_contexts:
        most = max((len({each.service.runs_in for each in services if i in each.gpus}) for i in range(request.count)), default=0)
        yield f"The buffer also holds the CUDA contexts: {gib(most * CONTEXT_BYTES)} for {most} processes on a GPU."


def _list(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices))
