"""Bytes of the key-value cache: for a token, and for a service's sequences. Knows shapes; knows no GPU.

A token's entry in a layer is 2 × key-value heads × head width (grouped, multi-query and full attention alike: they differ in the
heads), or the compressed vector and its rope part, once, with latent attention. Layers with a sliding window keep the window.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from deploy.planner.figures import NOTHING, Figure, ceil_div
from deploy.planner.shapes import Shape
from rag.errors import RagError

BLOCK_TOKENS: Final = 16
BYTES: Final = {"auto": 2, "fp8": 1}
_GROUPED = "Ainslie et al. 2023, GQA: 2 × layers × key-value heads × head width; blocks of 16 tokens as in vLLM"
_LATENT = "DeepSeek-V2 report, multi-head latent attention: compressed vector and rope part, not a head; blocks of 16 as in vLLM"
_PADDED = "; vLLM fills groups of layers up to one size (kv_cache_utils), so the windows count as {padded} layers"
_WINDOWS = "; a window keeps min(window - 1 + batched tokens, context), a block more, as vLLM's SlidingWindowSpec"
_SPEECH = "Whisper: keys and values of the decoder's own tokens and of the encoder's frames"


def entry_bytes(shape: Shape, cache: str = "auto", split: int = 1) -> int:
    """Bytes of one token in one layer, on one of `split` GPUs. Raises RagError for a cache format that is not known."""
    if cache not in BYTES:
        raise RagError(f"the cache format {cache[:40]!r} is not known", kind="bad_input", next_step="Known are auto and fp8.")
    if shape.latent is not None:
        return (shape.latent.key_value_rank + shape.latent.rope) * BYTES[cache]
    return max(1, shape.kv_heads // split) * (shape.head_dim + shape.value_dim) * BYTES[cache]


def token_bytes(shape: Shape, cache: str = "auto", split: int = 1) -> int:
    """Bytes of one token in all layers: what a longer context costs while no window is full. 0 for encoders."""
    return shape.layers * entry_bytes(shape, cache, split) if shape.has_cache else 0


def held_layers(shape: Shape) -> dict[int | None, int]:
    """Layers by window (None sees all) as vLLM keeps them: in groups of equal size, the last one of a kind filled up. The size is
    the rarer kind's count, or the larger count where they are less than half apart."""
    counts = Counter(shape.windows)
    least, most = min(counts.values()), max(counts.values())
    size = most if 2 * most < 3 * least else least
    return {window: ceil_div(count, size) * size for window, count in counts.items()}


def sequence_bytes(shape: Shape, context: int, batched: int, cache: str = "auto", split: int = 1) -> int:
    """Bytes of one sequence of `context` tokens when a step takes up to `batched` tokens."""
    if not shape.has_cache:
        return 0
    entry = entry_bytes(shape, cache, split)
    full = ceil_div(context, BLOCK_TOKENS) * BLOCK_TOKENS
    total = entry * sum(
        layers * (full if window is None else min(full, _windowed(window, context, batched)))
        for window, layers in held_layers(shape).items()
    )
    if shape.kind == "speech":
        total += shape.layers * ceil_div(shape.frames, BLOCK_TOKENS) * BLOCK_TOKENS * entry
    return total


def _windowed(window: int, context: int, batched: int) -> int:
    held = min(window - 1 + batched, context)
    return (ceil_div(held, BLOCK_TOKENS) + 1) * BLOCK_TOKENS


def key_values(shape: Shape, context: int, sequences: int, batched: int, cache: str = "auto", split: int = 1) -> Figure:
    """Bytes on one of `split` GPUs for so many sequences of the whole context at once."""
    if not shape.has_cache:
        return NOTHING
    each = sequence_bytes(shape, context, batched, cache, split)
    windowed = sum(window is not None for window in shape.windows)
    entry = entry_bytes(shape, cache, split)
    layers = f"{shape.layers - windowed} layers" + (f" + {windowed} with a window" if windowed else "")
    padded = sum(count for window, count in held_layers(shape).items() if window is not None)
    filled = _PADDED.format(padded=padded) if padded > windowed else ""
    frames = f" + {shape.frames} frames" if shape.kind == "speech" else ""
    formula = f"{sequences} sequences × {context:,} tokens{frames} × {entry:,} bytes × {layers}"
    source = _SPEECH if shape.kind == "speech" else _LATENT if shape.latent else _GROUPED
    return Figure(each * sequences, formula, source + (_WINDOWS if windowed else "") + filled)
