"""What a measurement depends on: versions, processor, memory, GPUs, system. Reads files and metadata; imports nothing of them."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from collectors.readings import Gpus

PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "tokenizers",
    "numpy",
    "pymilvus",
    "milvus-lite",
    "openai",
    "httpx",
    "streamlit",
    "redis",
    "vllm",
)


def environment(version: str, gpus: Gpus | None = None, *, root: Path = Path("/")) -> dict[str, Any]:
    """What an experiment's numbers depend on: versions, processor, memory, GPUs, system. `version` is RAG Deck's own.

    `gpus` is a reading of the local GPUs; None leaves them unknown. Limits are those of the control group, None without. Nothing
    is imported to learn its version.
    """
    return {
        "ragdeck": version,
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "system": _os_name(root),
        "kernel": platform.release(),
        "machine": platform.node(),
        "cpu": _cpu_model(root),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)),
        "cores_limit": _cpu_limit(root),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "memory_limit_bytes": _number(_text(root / "sys/fs/cgroup/memory.max")),
        **_gpus(gpus),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _gpus(reading: Gpus | None) -> dict[str, Any]:
    if reading is None or reading.gpus is None:
        reasons = [fault.text for fault in reading.faults] if reading else ["not read"]
        return {"gpus": None, "gpus_unknown": "; ".join(reasons), "driver": None}
    listed = [{"index": gpu.index, "name": gpu.name, "memory_bytes": gpu.memory_total_bytes} for gpu in reading.gpus]
    return {"gpus": listed, "driver": reading.driver_version}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None


def _cpu_model(root: Path) -> str | None:
    lines = (line.partition(":") for line in _text(root / "proc/cpuinfo").splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() in ("model name", "Model")), None)


def _os_name(root: Path) -> str:
    lines = (line.partition("=") for line in _text(root / "etc/os-release").splitlines())
    return next((value.strip().strip('"') for key, _, value in lines if key == "PRETTY_NAME"), platform.system())


def _cpu_limit(root: Path) -> float | None:
    """Cores' worth of time that the control group may use (cgroup v2, cpu.max: quota and period in microseconds)."""
    quota, _, period = _text(root / "sys/fs/cgroup/cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None
