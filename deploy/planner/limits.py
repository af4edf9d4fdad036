"""How much a placed service carries: most sequences, longest context, and upper bounds of its speed from the GPU's data sheet.

Bounds, not forecasts: no server reaches them. Decoding cannot be faster than the memory can be read, prefill not faster than the
tensor cores multiply. Knows no measured speed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deploy.planner.cache import BLOCK_TOKENS, sequence_bytes
from deploy.planner.catalogue import Gpu
from deploy.planner.placement import Placed
from deploy.planner.precisions import form_of, tensor_bytes
from deploy.planner.tensors import active_parameters, expert_ratio, tensors

LONGEST = 10_000_000
SOURCE = (
    "roofline: Williams, Waterman, Patterson 2009; 2 operations a parameter and token (Kaplan et al. 2020), 2 × layers × heads × "
    "(key + value width) × position of attention; each step reads the active weights once and every sequence's cache"
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Upper bounds, None where the data sheet or the model gives none. Tokens a second: `decode` of all sequences together when
    each has the whole context, `decode_alone` of one sequence, `prefill` of prompts as long as the context."""

    decode: float | None
    decode_alone: float | None
    prefill: float | None
    source: str = SOURCE


def largest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number in low…high for which `fits` holds, where it holds for all below that too; `low` where for none."""
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def longest_context(placed: Placed, sequences: int | None = None) -> int | None:
    """Tokens of context (a multiple of 16) for so many sequences at once in what the service gets, 0 where not one block fits;
    None for models whose cache does not grow with a context. At most what the model was made for."""
    shape, service = placed.model.shape, placed.service
    if shape.kind != "decoder":
        return None
    many = sequences or service.sequences

    def fits(blocks: int) -> bool:
        each = sequence_bytes(shape, blocks * BLOCK_TOKENS, placed.load.batched, service.cache, service.split)
        return each * many <= placed.cache_room_bytes

    return min(largest(0, LONGEST // BLOCK_TOKENS, fits) * BLOCK_TOKENS, shape.max_context)


def concurrency(placed: Placed, context: int) -> int | None:
    """Sequences of so many tokens that the cache holds at once; None for models without a cache."""
    service = placed.service
    each = sequence_bytes(placed.model.shape, context, placed.load.batched, service.cache, service.split)
    return placed.cache_room_bytes // each if each else None


def bounds(placed: Placed, gpu: Gpu) -> Bounds:
    """Upper bounds of speed of a placed service on its GPUs."""
    shape, service = placed.model.shape, placed.service
    if shape.kind != "decoder" or placed.model.kind != "llm":
        return Bounds(None, None, _prefill(placed, gpu))
    return Bounds(decode(placed, gpu, service.sequences), decode(placed, gpu, 1), _prefill(placed, gpu))


def decode(placed: Placed, gpu: Gpu, sequences: int, context: int | None = None) -> float | None:
    """Tokens a second of so many sequences together: each step reads the weights it needs and every sequence's cache."""
    if gpu.bandwidth_bytes_per_second is None:
        return None
    service, shape = placed.service, placed.model.shape
    read = read_bytes(placed, sequences) / service.split
    each = sequence_bytes(shape, context or service.context, 1, service.cache, service.split)
    return sequences * gpu.bandwidth_bytes_per_second / (read + sequences * each)


def read_bytes(placed: Placed, tokens: int) -> float:
    """Bytes of weights that a step over so many tokens reads, of the whole model: of experts as many as are expected with uniform
    choice, of an embedding that is not the head too, and of the vision tower, nothing."""
    shape = placed.model.shape
    form = form_of(shape, placed.precision)
    is_head = shape.tied and not shape.headless
    skipped = {"vision"} if is_head else {"vision", "embedding"}
    chosen = expert_ratio(shape, tokens)
    return sum(
        tensor_bytes(each, form, 1, shape.kv_heads) * (chosen if each.part == "experts" else 1.0)
        for each in tensors(shape)
        if each.part not in skipped
    )


def _prefill(placed: Placed, gpu: Gpu) -> float | None:
    """The head is left out: a prompt needs its last token's only. 8-bit formats may multiply at twice the 16-bit rate."""
    shape, service = placed.model.shape, placed.service
    if gpu.tensor_flops is None or shape.kind == "speech":
        return None
    attention = 2 * shape.layers * shape.heads * (shape.head_dim + shape.value_dim) * (service.context // 2)
    if shape.kind == "encoder":
        attention *= 2
    multiplied = active_parameters(shape) - shape.vocab * shape.hidden
    twice = 2 if placed.precision in ("fp8", "int8", "mxfp4") else 1
    return gpu.tensor_flops * twice * service.split / (2 * multiplied + attention)
