"""Which device and precision a model runs on, and torch imported the way a dashboard on a shared machine needs it."""

from __future__ import annotations

import os
from typing import Any


def import_torch() -> Any:
    """torch, with OpenMP threads that sleep instead of spin while they wait for each other.

    Measured on two shared virtual cores: with one of them taken by another process, a spinning pool makes one query's
    embedding 765 ms; sleeping, it stays at 9 ms. libgomp reads this when torch is first loaded, so it is set before.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    import torch

    return torch


def pick_device(wanted: str) -> str:
    """`auto` is the first GPU when torch sees one, else the CPU."""
    if wanted != "auto":
        return wanted
    torch = import_torch()
    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_bf16(device: str, precision: str) -> bool:
    """bf16 on GPUs, and on CPUs with AVX512-BF16 (measured here: half the time for passages, cosine to fp32 over 0.999)."""
    if precision in ("fp32", "fp16", "int8"):
        return False
    if precision == "bf16" or device.startswith("cuda"):
        return True
    torch = import_torch()
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())
