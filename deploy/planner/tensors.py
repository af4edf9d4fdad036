"""A model's parameters, tensor by tensor, from its shape: exact counts, and how tensor parallelism cuts each.

Knows no bytes. The lists follow the modules of the transformers library; the tests count the same modules there.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

from deploy.planner.shapes import Experts, Latent, Shape

Part = Literal["embedding", "head", "attention", "mlp", "experts", "router", "small", "vision"]
# How GPUs that share a model share a tensor: each a part of it, a part by key-value head, or each the whole.
Cut = Literal["all", "kv", "none"]


class Tensor(NamedTuple):
    """`number` tensors of `out` × `into` parameters each; `into` 0 is a vector."""

    name: str
    part: Part
    out: int
    into: int = 0
    number: int = 1
    cut: Cut = "all"

    @property
    def parameters(self) -> int:
        return self.out * max(1, self.into) * self.number


@lru_cache(maxsize=256)
def tensors(shape: Shape) -> tuple[Tensor, ...]:
    """Every tensor of the model."""
    makers = {"decoder": _decoder, "encoder": _encoder, "speech": _speech}
    return tuple(each for each in makers[shape.kind](shape) if each.out and each.number)


def parameters(shape: Shape) -> int:
    return sum(each.parameters for each in tensors(shape))


def expert_ratio(shape: Shape, tokens: int) -> float:
    """The share of the experts that at least one of so many tokens is expected to choose, each token choosing uniformly."""
    if shape.experts is None:
        return 1.0
    return 1.0 - (1.0 - shape.experts.per_token / shape.experts.count) ** max(1, tokens)


def active_parameters(shape: Shape) -> float:
    """Parameters that one token is multiplied with: without vision tower, an embedding that is not the head too, and experts
    that are not chosen. An encoder's embedding is among them."""
    total = float(parameters(shape))
    total -= sum(each.parameters for each in tensors(shape) if each.part == "vision")
    if not shape.tied and not shape.headless:
        total -= shape.vocab * shape.hidden
    routed = sum(each.parameters for each in tensors(shape) if each.part == "experts")
    return total - routed * (1.0 - expert_ratio(shape, 1))


def _decoder(shape: Shape) -> Iterator[Tensor]:
    hidden, layers = shape.hidden, shape.layers
    yield Tensor("embed_tokens", "embedding", shape.vocab, hidden)
    if not shape.tied and not shape.headless:
        yield Tensor("lm_head", "head", shape.vocab, hidden)
    yield from _latent(shape, shape.latent) if shape.latent else _attention(shape)
    if shape.experts is None:
        yield from _mlp("mlp", hidden, shape.intermediate, layers)
    else:
        yield from _mlp("mlp", hidden, shape.intermediate, shape.experts.dense_layers)
        yield from _experts(shape, shape.experts)
    yield Tensor("layer norms", "small", hidden, number=shape.norms * layers + 1, cut="none")
    if shape.vision is not None:
        yield Tensor("vision tower", "vision", shape.vision.parameters, cut="none")


def _attention(shape: Shape) -> Iterator[Tensor]:
    layers, queries = shape.layers, shape.heads * shape.head_dim
    pairs = shape.kv_heads * shape.head_dim
    yield Tensor("q_proj", "attention", queries, shape.hidden, layers)
    yield Tensor("k_proj, v_proj", "attention", pairs, shape.hidden, 2 * layers, "kv")
    yield Tensor("o_proj", "attention", shape.hidden, queries, layers)
    if shape.query_bias:
        yield Tensor("q bias", "small", queries, number=layers)
        yield Tensor("k, v bias", "small", pairs, number=2 * layers, cut="kv")
    if shape.output_bias:
        yield Tensor("o bias", "small", shape.hidden, number=layers, cut="none")
    if shape.head_norms:
        yield Tensor("q_norm, k_norm", "small", shape.head_dim, number=2 * layers, cut="none")
    if shape.sinks:
        yield Tensor("sinks", "small", shape.heads, number=layers)


def _latent(shape: Shape, latent: Latent) -> Iterator[Tensor]:
    """Each GPU keeps the two down projections whole; the heads' own projections are cut."""
    layers, hidden, queries = shape.layers, shape.hidden, shape.heads * shape.head_dim
    if latent.query_rank:
        yield Tensor("q_a_proj", "attention", latent.query_rank, hidden, layers, "none")
        yield Tensor("q_a norm", "small", latent.query_rank, number=layers, cut="none")
        yield Tensor("q_b_proj", "attention", queries, latent.query_rank, layers)
    else:
        yield Tensor("q_proj", "attention", queries, hidden, layers)
    rank = latent.key_value_rank
    yield Tensor("kv_a_proj", "attention", rank + latent.rope, hidden, layers, "none")
    yield Tensor("kv_a norm", "small", rank, number=layers, cut="none")
    yield Tensor("kv_b_proj", "attention", shape.heads * (latent.nope + shape.value_dim), rank, layers)
    yield Tensor("o_proj", "attention", hidden, shape.heads * shape.value_dim, layers)


def _mlp(name: str, hidden: int, width: int, layers: int) -> Iterator[Tensor]:
    yield Tensor(f"{name} gate, up", "mlp", width, hidden, 2 * layers)
    yield Tensor(f"{name} down", "mlp", hidden, width, layers)


def _experts(shape: Shape, experts: Experts) -> Iterator[Tensor]:
    layers = shape.layers - experts.dense_layers
    hidden, width, each = shape.hidden, experts.intermediate, experts.count * layers
    yield Tensor("experts gate, up", "experts", width, hidden, 2 * each)
    yield Tensor("experts down", "experts", hidden, width, each)
    yield Tensor("router", "router", experts.count, hidden, layers, "none")
    if experts.balance_bias:
        yield Tensor("router balance", "small", experts.count, number=layers, cut="none")
    if experts.biased:
        yield Tensor("router bias", "small", experts.count, number=layers, cut="none")
        yield Tensor("experts biases", "small", 2 * width + hidden, number=each)
    if experts.shared:
        yield from _mlp("shared expert", hidden, experts.shared, layers)
    if experts.shared_gate:
        yield Tensor("shared expert gate", "router", 1, hidden, layers, "none")


def _encoder(shape: Shape) -> Iterator[Tensor]:
    hidden, layers = shape.hidden, shape.layers
    yield Tensor("word embeddings", "embedding", shape.vocab, hidden)
    yield Tensor("positions, token types", "embedding", shape.positions + shape.token_types, hidden, cut="none")
    yield Tensor("query, key, value, output", "attention", hidden, hidden, 4 * layers)
    yield Tensor("attention biases", "small", hidden, number=4 * layers)
    yield Tensor("intermediate", "mlp", shape.intermediate, hidden, layers)
    yield Tensor("output", "mlp", hidden, shape.intermediate, layers)
    yield Tensor("mlp biases", "small", shape.intermediate + hidden, number=layers)
    yield Tensor("layer norms", "small", hidden, number=2 * (2 * layers + 1), cut="none")
    yield Tensor("pooler or head", "mlp", hidden, hidden, cut="none")
    yield Tensor("pooler or head bias", "small", hidden, cut="none")
    yield Tensor("classes", "small", shape.classes * (hidden + 1), cut="none")


def _speech(shape: Shape) -> Iterator[Tensor]:
    """Whisper: an encoder over frames, a decoder with attention to itself and to them; keys have no bias."""
    hidden, width, encoder, decoder = shape.hidden, shape.intermediate, shape.encoder_layers, shape.layers
    blocks = encoder + 2 * decoder
    yield Tensor("embed_tokens", "embedding", shape.vocab, hidden)
    yield Tensor("positions", "embedding", shape.positions + shape.frames, hidden, cut="none")
    yield Tensor("conv1, conv2", "small", 3 * hidden * (shape.mels + hidden) + 2 * hidden, cut="none")
    yield Tensor("query, key, value, output", "attention", hidden, hidden, 4 * blocks)
    yield Tensor("attention biases", "small", hidden, number=3 * blocks)
    yield Tensor("fc1, fc2", "mlp", width, hidden, 2 * (encoder + decoder))
    yield Tensor("fc biases", "small", width + hidden, number=encoder + decoder)
    yield Tensor("layer norms", "small", hidden, number=2 * (2 * encoder + 3 * decoder + 2), cut="none")
