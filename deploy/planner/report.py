"""A plan as plain data: what the command prints with --json and the page offers for download."""

from __future__ import annotations

from typing import Any

from deploy.planner import cures, flags, limits, request
from deploy.planner.memory import PARTS
from deploy.planner.placement import GpuUse, Placed, Plan


def to_json(plan: Plan) -> dict[str, Any]:
    """The request, what each service gets with formulas and sources, each GPU, and whether it fits. Bytes; null is unknown."""
    return {
        "fits": plan.fits,
        "request": request.to_dict(plan.request),
        "services": [_service(plan, each) for each in plan.services],
        "gpus": [_gpu(each) for each in plan.gpus],
        "notes": list(plan.notes),
    }


def _service(plan: Plan, placed: Placed) -> dict[str, Any]:
    bounds = limits.bounds(placed, plan.request.gpu)
    return {
        "name": placed.service.name,
        "model": placed.service.model,
        "precision": placed.precision,
        "fits": placed.fits,
        "problem": placed.problem or None,
        "short_bytes": placed.short_bytes,
        "cures": [each.text for each in cures.cures(plan, placed.service.name)],
        "gpus": list(placed.gpus),
        "share": placed.share,
        "reserved_bytes": placed.reserved_bytes,
        "figures": {name: getattr(placed.need, name).to_json() for name in PARTS},
        "cache_room_bytes": placed.cache_room_bytes,
        "max_sequences": placed.max_sequences,
        "longest_context": limits.longest_context(placed),
        "upper_bounds": {
            "decode_tokens_per_second": bounds.decode,
            "decode_alone_tokens_per_second": bounds.decode_alone,
            "prefill_tokens_per_second": bounds.prefill,
            "source": bounds.source,
        },
        "environment": flags.environment(placed),
        "command": flags.command(plan, placed),
        "compose": flags.compose_service(plan, placed) if placed.gpus else None,
        "kubernetes": flags.kubernetes_container(plan, placed) if placed.gpus else None,
        "shares_gpu": flags.shares_gpu(plan, placed),
        "notes": list(placed.notes),
    }


def _gpu(use: GpuUse) -> dict[str, Any]:
    return {
        "index": use.index,
        "name": use.gpu.name,
        "usable_bytes": use.gpu.usable_bytes,
        "services": list(use.services),
        "reserved_bytes": use.reserved_bytes,
        "contexts_bytes": use.contexts_bytes,
        "buffer_bytes": use.buffer_bytes,
        "free_bytes": use.free_bytes,
    }
