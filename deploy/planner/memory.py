"""What one service needs of each of its GPUs: weights, key-value cache, activation, framework, graphs, CUDA context.

Knows one service's figures, not where it runs. Activation, framework, graphs and context are bounds: they depend on kernels and
versions, and `reality` compares them with what is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from deploy.planner import cache, precisions
from deploy.planner.catalogue import Model
from deploy.planner.figures import GIB, MIB, NOTHING, Figure, ceil_div
from deploy.planner.shapes import Shape

PartName = Literal["weights", "cache", "activation", "framework", "graphs", "context"]
PARTS: Final[tuple[PartName, ...]] = ("weights", "cache", "activation", "framework", "graphs", "context")
CONTEXT_BYTES: Final = 512 * MIB
GRAPH_BYTES: Final = 20 * MIB
TOKEN_BUDGET: Final = 16_384  # texts of a batch of our own GPU server, in tokens

_ACTIVATION = (
    "our bound: inputs, gate and up outputs, their product and 12 bytes a logit for the sampler; it gives 1.21 GiB for Llama 3 "
    "8B at 8,192 tokens and 256 sequences, where vLLM's logs say 1.19 to 1.26 GiB (vllm pull request 10511)"
)
_ENCODING = "our bound: attention kernels that keep no score matrix; six hidden states and two of the feed-forward width"
_FRAMEWORK = "non_torch_memory of vLLM's logs: 0.01 to 0.20 GiB on one GPU, 0.9 to 2.1 GiB with tensor parallelism (NCCL)"
_GRAPHS = (
    "our bound from vLLM's logs: 1.62 GiB for 86 graphs, 0.31 GiB for 22; "
    "inside the share from vLLM 0.19 on, beside it in older ones"
)
_CONTEXT = "300 to 400 MB (pytorch issues 20532, 107667), taken as 512 MiB; outside what vLLM counts as its share"


@dataclass(frozen=True, slots=True)
class Load:
    """What a service is asked to hold at once: sequences of `context` tokens; `batched` tokens in one step."""

    context: int
    sequences: int
    batched: int


@dataclass(frozen=True, slots=True)
class Need:
    """Figures on each of a service's GPUs, in bytes. `context` is of its process: services of one process share it."""

    weights: Figure
    cache: Figure
    activation: Figure
    framework: Figure
    graphs: Figure
    context: Figure

    def items(self) -> Iterator[tuple[PartName, Figure]]:
        for name in PARTS:
            yield name, getattr(self, name)

    @property
    def inside_bytes(self) -> int:
        """All but the CUDA context: what vLLM's share has to hold."""
        return sum(figure.value_bytes for name, figure in self.items() if name != "context")


def weights_of(model: Model, precision: str, split: int) -> Figure:
    """The folder's own files where they are what is served; else the count from the config."""
    counted = precisions.weights(model.shape, precision, split)
    if model.stored is None or precision != model.precision:
        return counted
    if split == 1:
        return model.stored
    whole = precisions.weights(model.shape, precision, 1).value_bytes
    value = ceil_div(model.stored.value_bytes * counted.value_bytes, whole)
    formula = f"{model.stored.formula}, of it {counted.value_bytes / whole:.3f} on each of {split} GPUs"
    return Figure(value, formula, model.stored.source)


def need(model: Model, precision: str, load: Load, *, cache_format: str, split: int, engine: str, eager: bool) -> Need:
    """The figures of a service on each of its `split` GPUs. `engine` is `vllm`, or any other server that holds what it loads."""
    served = engine == "vllm"
    shape = model.shape
    has_graphs = served and not eager and shape.kind == "decoder"
    return Need(
        weights_of(model, precision, split),
        cache.key_values(shape, load.context, load.sequences, load.batched, cache_format, split),
        activation(shape, load, 4 if precision == "fp32" else 2, split, generates=model.kind == "llm"),
        framework(split) if served else NOTHING,
        graphs(load.sequences) if has_graphs else NOTHING,
        Figure(CONTEXT_BYTES, "512 MiB for a process and GPU", _CONTEXT),
    )


def activation(shape: Shape, load: Load, width: int, split: int = 1, generates: bool = True) -> Figure:
    """The peak of one forward pass beyond weights and cache; `width` bytes a number."""
    if shape.kind != "decoder":
        return _encoding(shape, load, width, split)
    hidden, inner = shape.hidden, shape.intermediate
    if shape.experts is not None:
        inner = shape.experts.per_token * shape.experts.intermediate + shape.experts.shared
        hidden += shape.experts.per_token * shape.hidden // 3
    step = load.batched * (3 * ceil_div(inner, split) + 3 * hidden) * width
    sampler = load.sequences * shape.vocab * 12 if generates else 0
    image = _image_bytes(shape, width)
    seen = f" + largest image {image:,} bytes" if image else ""
    formula = f"{load.batched:,} tokens × (3 × {ceil_div(inner, split):,} + 3 × {hidden:,}) × {width} bytes"
    formula += f" + {load.sequences} sequences × {shape.vocab:,} logits × 12 bytes" if sampler else ""
    return Figure(step + sampler + image, formula + seen, _ACTIVATION)


def _image_bytes(shape: Shape, width: int) -> int:
    """One image of the largest size through the vision tower."""
    tower = shape.vision
    return tower.patches * (6 * tower.hidden + 2 * tower.intermediate) * width if tower else 0


def _encoding(shape: Shape, load: Load, width: int, split: int) -> Figure:
    tokens = load.sequences * shape.frames if shape.kind == "speech" else min(load.context * load.sequences, load.batched)
    each = 6 * shape.hidden + 2 * ceil_div(shape.intermediate, split)
    logits = load.sequences * shape.vocab * 12 if shape.kind == "speech" else 0
    formula = f"{tokens:,} tokens × (6 × {shape.hidden:,} + 2 × {ceil_div(shape.intermediate, split):,}) × {width} bytes"
    return Figure(tokens * each * width + logits, formula + (f" + {logits:,} for logits" if logits else ""), _ENCODING)


def framework(split: int) -> Figure:
    value = GIB // 4 if split == 1 else 2 * GIB
    return Figure(value, "0.25 GiB on one GPU, 2 GiB with tensor parallelism", _FRAMEWORK)


def graphs(sequences: int) -> Figure:
    """CUDA graphs of decoding: vLLM captures batch sizes 1, 2, 4 and every eighth up to 512, and again up to its sequences."""
    captured = _sizes(min(512, 2 * sequences)) + _sizes(min(512, sequences))
    return Figure(captured * GRAPH_BYTES, f"{captured} graphs × 20 MiB", _GRAPHS)


def _sizes(most: int) -> int:
    return sum(size <= most for size in (1, 2, 4)) + most // 8
