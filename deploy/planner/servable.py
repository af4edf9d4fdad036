"""What a server cannot do with a model, whatever the memory: heads for so many GPUs, formats it has not. Knows no bytes."""

from __future__ import annotations

from typing import Final

from deploy.planner.precisions import GROUPED, form_of
from deploy.planner.request import Service, bad
from deploy.planner.shapes import Shape

OWN_PRECISIONS: Final = ("fp32", "bf16", "fp16")  # of our GPU server on a GPU


def check_own(service: Service, precision: str) -> None:
    """Raises RagError for what our GPU server cannot do: a model over several GPUs, or weights below 16 bits on a GPU."""
    if service.split > 1:
        step = "Take 1 GPU, or vLLM."
        raise bad(f"service {service.name}: our GPU server keeps a model on one GPU, not on {service.split}", step)
    if precision not in OWN_PRECISIONS:
        step = f"Take {', '.join(OWN_PRECISIONS)}, or vLLM."
        raise bad(f"service {service.name}: our GPU server has no {precision} weights on a GPU", step)


def check_split(service: Service, shape: Shape, precision: str) -> None:
    """Raises RagError where heads or widths cannot be divided among the GPUs."""
    why = _undivided(shape, precision, service.split)
    if why:
        good = (n for n in range(1, 17) if not _undivided(shape, precision, n))
        step = f"Take {', '.join(map(str, good))} GPUs."
        raise bad(f"service {service.name}: {why} cannot be divided among {service.split} GPUs", step)


def _undivided(shape: Shape, precision: str, split: int) -> str:
    """What of a model cannot be cut into so many parts, empty for nothing. Matrices cut along their inputs (output projections)
    have to hold whole groups of a quantised format on each GPU, which vLLM checks when it loads them."""
    together = shape.kv_heads % split == 0 or split % shape.kv_heads == 0
    if shape.heads % split or (shape.latent is None and not together):
        return f"{shape.heads} heads and {shape.kv_heads} key-value heads"
    widths = {shape.intermediate}
    if shape.experts is not None:
        dense = shape.intermediate if shape.experts.dense_layers else 0
        widths = {shape.experts.intermediate, shape.experts.shared, dense}
    group = form_of(shape, precision).group if precision in GROUPED else 1
    for width in sorted(each for each in widths | {shape.heads * shape.value_dim} if each):
        if split > 1 and width % (split * max(1, group)):
            return f"a width of {width:,}" + (f" in groups of {group}" if group > 1 else "")
    return ""
