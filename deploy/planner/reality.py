"""Plan against measured memory: what each planned process holds beside what it was to hold, and what nobody planned.

Knows readings of a machine's GPUs and a plan. A process is a service's when its name, container or unit holds the service's
`match` or name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from collectors.readings import Containers, GpuProcess, Gpus
from deploy.planner.catalogue import Gpu, gpus
from deploy.planner.memory import CONTEXT_BYTES
from deploy.planner.placement import Plan

DRIFT_RATIO: Final = 0.10
Verdict = Literal["as planned", "more", "less", "not running", "not planned", "unknown"]


@dataclass(frozen=True, slots=True)
class Measured:
    """One process (or services of one process) on one GPU: planned and measured bytes, None where there is none or it is not
    known. `drift_ratio` is the difference by the plan; `reason` says why something is not known."""

    gpu: int
    name: str
    planned_bytes: int | None
    measured_bytes: int | None
    drift_ratio: float | None
    verdict: Verdict
    process: str = ""
    reason: str = ""


def compare(
    plan: Plan, read: Gpus, containers: Containers | None = None, drift: float = DRIFT_RATIO
) -> tuple[Measured, ...] | None:
    """A row for each planned process and GPU, and for each process that is not planned; None when the GPUs' processes could not
    be read. `drift` is the share of the plan beyond which a difference is flagged."""
    if read.gpus is None or read.processes is None:
        return None
    index = {each.uuid: each.index for each in read.gpus if each.uuid}
    labels = {each: _label(each, containers) for each in read.processes}
    return tuple(_rows(plan, read.processes, index, labels, drift))


def _rows(
    plan: Plan, processes: tuple[GpuProcess, ...], index: Mapping[str, int], labels: Mapping[GpuProcess, str], drift: float
) -> Iterator[Measured]:
    taken: set[GpuProcess] = set()
    for gpu, name, words, planned in _planned(plan):
        free = [each for each in processes if each not in taken and index.get(each.gpu_uuid) == gpu]
        here = [each for each in free if any(word in labels[each].lower() for word in words)]
        taken.update(here)
        yield _row(gpu, name, planned, here, labels, drift)
    for each in processes:
        if each not in taken and each.gpu_uuid in index:
            yield Measured(index[each.gpu_uuid], labels[each], None, each.memory_bytes, None, "not planned", labels[each])


def _planned(plan: Plan) -> Iterator[tuple[int, str, list[str], int]]:
    """(GPU, process, words its name may hold, bytes) of what the plan puts on each GPU."""
    found: dict[tuple[int, str], list[int]] = {}
    words: dict[str, set[str]] = {}
    for each in plan.services:
        process = each.service.runs_in
        words.setdefault(process, set()).update(text.lower() for text in (each.service.match, each.service.name, process) if text)
        for gpu in each.gpus:
            found.setdefault((gpu, process), []).append(each.reserved_bytes)
    for (gpu, process), sizes in found.items():
        yield gpu, process, sorted(words[process]), sum(sizes) + CONTEXT_BYTES


def _row(gpu: int, name: str, planned: int, here: list[GpuProcess], labels: Mapping[GpuProcess, str], drift: float) -> Measured:
    if not here:
        return Measured(gpu, name, planned, None, None, "not running", reason="no process on this GPU has its name")
    process = ", ".join(sorted({labels[each] for each in here}))
    sizes = [each.memory_bytes for each in here]
    if any(size is None for size in sizes):
        return Measured(gpu, name, planned, None, None, "unknown", process, "the driver does not tell this process's memory")
    measured = sum(size for size in sizes if size is not None)
    ratio = (measured - planned) / planned
    verdict: Verdict = "as planned" if abs(ratio) <= drift else "more" if ratio > 0 else "less"
    return Measured(gpu, name, planned, measured, ratio, verdict, process)


def _label(process: GpuProcess, containers: Containers | None) -> str:
    """Its name, and the container or unit that owns it by name."""
    owner = process.owner or ""
    kind, _, identity = owner.partition(" ")
    if kind == "docker" and containers is not None and containers.containers:
        named = (each.name for each in containers.containers if each.id and identity.startswith(each.id[:12]))
        owner = next(named, owner)
    return " · ".join(text for text in (process.name or f"process {process.pid}", owner) if text)


def gpu_type(read: Gpus) -> Gpu | None:
    """The known type of a machine's GPUs; None when they are not known or of several types."""
    names = {each.name or "" for each in read.gpus or ()}
    found = {
        known.name: known for known in gpus().values() for name in names if any(_names(part, name) for part in known.matches)
    }
    return next(iter(found.values())) if len(found) == 1 and len(names) == 1 else None


def _names(part: str, name: str) -> bool:
    """Whether a driver's name holds these words whole: an L40S is no L4."""
    return re.search(rf"\b{re.escape(part)}\b", name) is not None
