"""Which device and precision a model runs on, and torch imported the way a dashboard on a shared machine needs it."""

from __future__ import annotations

import os
from typing import Any, Literal

from gpu_server.errors import ModelError

Precision = Literal["fp32", "bf16", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "int8")


def import_torch() -> Any:
    """torch, with OpenMP threads that wait for each other by spinning shortly and then sleep.

    Measured on two virtual cores, 12 tokens through layers of MiniLM's size in bf16. Alone: 6.4 ms when threads sleep at once,
    1.7 ms with a spin count of 5000, no better with 12000. With two foreign processes burning: 4.2 ms (p95 15) sleeping,
    11 ms (p95 12) with 5000. libgomp's own setting, one core taken: 765 ms for a query, in an earlier measurement.
    libgomp reads this when torch is first loaded, so it is set before.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    import torch

    return torch


def pick_device(wanted: str) -> str:
    """`auto` is the first GPU when torch sees one, else the CPU. Raises ModelError for a GPU that is not there."""
    if wanted == "cpu":
        return wanted
    return devices(wanted)[0]


def devices(wanted: str) -> tuple[str, ...]:
    """Where a model gets one worker each: every GPU for `auto` and `cuda`, else the one device named.

    Raises ModelError for a GPU that is not there.
    """
    if wanted == "cpu":
        return ("cpu",)
    cuda = import_torch().cuda
    count = cuda.device_count() if cuda.is_available() else 0
    if wanted in ("auto", "cuda") and count:
        return tuple(f"cuda:{index}" for index in range(count))
    if wanted == "auto":
        return ("cpu",)
    if wanted in [f"cuda:{index}" for index in range(count)]:
        return (wanted,)
    raise ModelError(
        f"the device {wanted!r} is not there: torch sees {count} GPUs",
        next_step="use 'auto', 'cpu', 'cuda' or 'cuda:N'; for GPUs torch must be a CUDA build and the driver loaded",
    )


def pick_precision(device: str, wanted: str) -> Precision:
    """What `wanted` means on `device`; `auto` is bf16 on GPUs and on CPUs with AVX512-BF16, else fp32. Raises ModelError.

    Measured on a CPU that has it: bf16 takes half the time for passages, cosine to fp32 over 0.999.
    """
    gpu = device.startswith("cuda")
    if wanted == "auto":
        return "bf16" if gpu or cpu_has_bf16() else "fp32"
    if wanted == "fp16" and not gpu:
        raise ModelError("fp16 runs on GPUs only", next_step="use bf16, int8 or fp32 on a CPU")
    if wanted == "int8" and gpu:
        raise ModelError("int8 runs on CPUs only", next_step="use bf16 or fp16 on a GPU")
    for precision in PRECISIONS:
        if precision == wanted:
            return precision
    raise ModelError(f"unknown precision {wanted!r}", next_step="use auto, fp32, bf16, fp16 or int8")


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware (AVX512-BF16; AMX comes with it)."""
    supported = getattr(import_torch().cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())


def pick_bf16(device: str, precision: str) -> bool:
    """Whether a model runs in bf16."""
    return precision not in ("fp16", "int8") and pick_precision(device, precision) == "bf16"
