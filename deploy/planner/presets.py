"""The field reports' allocations as plans, by name. Knows no more than the files beside it."""

from __future__ import annotations

from functools import cache

from deploy.planner import request
from deploy.planner.catalogue import HERE
from deploy.planner.request import Request
from rag.errors import RagError

NAMES = ("l4", "a100-80", "t4", "a100-40", "h100x8")


@cache
def preset(name: str) -> Request:
    """Raises RagError (`not_found`) for a name that is none of `NAMES`."""
    if name not in NAMES:
        raise RagError(f"there is no preset {name[:40]!r}", kind="not_found", next_step=f"Take one of {', '.join(NAMES)}.")
    return request.from_toml((HERE / "presets" / f"{name}.toml").read_text(encoding="utf-8"))
