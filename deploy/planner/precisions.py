"""Bytes of a model's weights in a number format, on one of the GPUs that share it. Knows shapes and tensors, not services.

    fp32, bf16, fp16   4 or 2 bytes a parameter
    fp8, int8          linear layers 1 byte, and a 4-byte scale for each output; the rest as 16-bit floats
    awq, gptq, int4    linear layers 4 bits and, for each group of inputs and output, a 16-bit scale and a 4-bit zero point;
                       gptq also a 4-byte index for each input
    mxfp4              experts 4 bits and an 8-bit scale for 32 of them; the rest as 16-bit floats
    q4_k_m             4.89 bits a parameter of the whole model (GGUF; a mixture of 4- and 6-bit blocks)

Embedding, head, routers, norms, biases and vision towers stay 16-bit floats in all but fp32 and q4_k_m.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from deploy.planner.figures import Figure, ceil_div
from deploy.planner.shapes import Shape
from deploy.planner.tensors import Part, Tensor, parameters, tensors
from rag.errors import RagError

_LINEAR: frozenset[Part] = frozenset({"attention", "mlp", "experts"})


@dataclass(frozen=True, slots=True)
class Precision:
    """A number format for weights. `parts` are those stored in `bits`; a scale of `scale_bytes` is for `group` inputs of an
    output, 0 for all of them."""

    name: str
    bits: float
    parts: frozenset[Part]
    scale_bytes: float
    group: int
    index_bytes: int
    other_bytes: float
    source: str


PRECISIONS = {
    each.name: each
    for each in (
        Precision("fp32", 32, frozenset(), 0, 0, 0, 4, "IEEE 754 binary32"),
        Precision("bf16", 16, frozenset(), 0, 0, 0, 2, "bfloat16"),
        Precision("fp16", 16, frozenset(), 0, 0, 0, 2, "IEEE 754 binary16"),
        Precision("fp8", 8, _LINEAR, 4, 0, 0, 2, "vLLM documentation, FP8 W8A8: linear layers but the head, a scale a channel"),
        Precision("int8", 8, _LINEAR, 4, 0, 0, 2, "vLLM documentation, INT8 W8A8: linear layers but the head, a scale a channel"),
        Precision("awq", 4, _LINEAR, 2.5, 128, 0, 2, "AutoAWQ's tensors qweight, scales and qzeros, groups of 128"),
        Precision("gptq", 4, _LINEAR, 2.5, 128, 4, 2, "GPTQ's tensors qweight, scales, qzeros and g_idx, groups of 128"),
        Precision("int4", 4, _LINEAR, 2.5, 128, 0, 2, "compressed-tensors W4A16: weights, scales, zero points, groups of 128"),
        Precision("mxfp4", 4, frozenset({"experts"}), 1, 32, 0, 2, "OCP Microscaling Formats 1.0, blocks of 32; gpt-oss card"),
        Precision("q4_k_m", 4.89, frozenset(), 0, 0, 0, 4.89 / 8, "llama.cpp, tools/quantize: 4.89 bits a weight, Llama 3.1 8B"),
    )
}  # fmt: skip
SIXTEEN_BIT = frozenset({"bf16", "fp16"})
GROUPED = frozenset({"awq", "gptq", "int4"})


def precision(name: str) -> Precision:
    """The format of that name. Raises RagError (`bad_input`) where there is none."""
    if name not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise RagError(f"the precision {name[:40]!r} is not known", kind="bad_input", next_step=f"Known are {known}.")
    return PRECISIONS[name]


def form_of(shape: Shape, name: str) -> Precision:
    """The format as these weights have it: bits and group of the model's own config where it is published in that format. Raises
    RagError where there is no such format."""
    form, own = precision(name), shape.quantised
    if own is None or own.method != name or name not in GROUPED:
        return form
    return replace(form, bits=own.bits, group=own.group, scale_bytes=2 + own.bits / 8)


def tensor_bytes(tensor: Tensor, form: Precision, split: int, kv_heads: int) -> float:
    """Bytes of a tensor on one of `split` GPUs. Keys and values are cut no finer than a head: more GPUs hold copies."""
    shares = {"all": split, "kv": min(split, kv_heads), "none": 1}[tensor.cut]
    if not tensor.into or tensor.part not in form.parts:
        return tensor.parameters * form.other_bytes / shares
    groups = ceil_div(tensor.into, form.group) if form.group else 1
    per_output = tensor.into * form.bits / 8 + groups * form.scale_bytes
    return tensor.number * (tensor.out * per_output + tensor.into * form.index_bytes) / shares


@lru_cache(maxsize=512)
def weights(shape: Shape, name: str, split: int = 1) -> Figure:
    """Bytes of the weights on one of `split` GPUs. Raises RagError for a precision that is not known."""
    form = form_of(shape, name)
    total = math.ceil(sum(tensor_bytes(each, form, split, shape.kv_heads) for each in tensors(shape)))
    count = parameters(shape)
    among = f", on each of {split} GPUs" if split > 1 else ""
    if form.parts:
        stored = sum(each.parameters for each in tensors(shape) if each.into and each.part in form.parts)
        said = (
            f"{stored:,} parameters of {form.bits:g} bits with scales + {count - stored:,} of {form.other_bytes:g} bytes{among}"
        )
    else:
        said = f"{count:,} parameters × {form.other_bytes:.4g} bytes{among}"
    return Figure(total, said, form.source)
