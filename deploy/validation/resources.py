"""Room and ground to stand on: disks, memory, the data folder, the stores, the GPU's driver against torch's CUDA."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from collectors.readings import Gpus
from deploy.validation.machines import MachineFacts
from deploy.validation.offline import FAULTS, model_folder
from deploy.validation.types import Check, Item, Verdict, failed, passed, skipped, warning
from deploy.validation.world import World
from rag.errors import RagError

GIB = 2**30
LEAST_FREE_BYTES = 5 * GIB
DISK_WARN_RATIO, DISK_FAILED_RATIO = 0.90, 0.98
MEMORY_WARN_RATIO, MEMORY_FAILED_RATIO = 0.90, 0.98
# The least Linux driver for each CUDA major release: CUDA Toolkit release notes, table of minor version compatibility.
LEAST_DRIVER = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 65, 6)}


# 1) disks and memory


def disks(world: World) -> Verdict:
    """Room on the disks of the data folder and of every watched machine."""
    items = [_data_disk(world.subject.data_dir)]
    for facts in world.machines():
        if not facts.is_local:
            items += _filesystems(facts)
    return Verdict(tuple(items))


def _data_disk(folder: Path) -> Item:
    there = next((each for each in (folder, *folder.parents) if each.exists()), Path("/"))
    usage = shutil.disk_usage(there)
    return _room("data folder", usage.free, 1 - usage.free / usage.total)


def _room(name: str, free_bytes: int, used_ratio: float) -> Item:
    text = f"{free_bytes / GIB:.1f} GiB free, {used_ratio:.0%} used"
    cure = "Delete what is not needed (`docker image prune`, old model caches), or attach a larger disk."
    if used_ratio >= DISK_FAILED_RATIO or free_bytes < LEAST_FREE_BYTES / 10:
        return failed(name, text, "The disk is full: traces, caches and uploads cannot be written.", cure)
    if used_ratio >= DISK_WARN_RATIO or free_bytes < LEAST_FREE_BYTES:
        return warning(name, text, "The disk is nearly full.", cure)
    return passed(name, text)


def _filesystems(facts: MachineFacts) -> Iterable[Item]:
    known = facts.filesystems.filesystems if facts.filesystems else None
    if known is None:
        yield skipped(facts.name, facts.problems.get("connection") or facts.problems.get("filesystems", "not read"))
        return
    for each in known:
        if each.can_fill and each.available_bytes is not None and each.used_ratio is not None:
            yield _room(f"{facts.name}:{each.mount}", each.available_bytes, each.used_ratio)


def memory(world: World) -> Verdict:
    """Memory on each machine, and for the weights of the models that run in this process."""
    items = [_memory(facts) for facts in world.machines()]
    local = next((facts for facts in world.machines() if facts.is_local), None)
    free = local.host.memory.available_bytes if local and local.host and local.host.memory else None
    for model in world.subject.local_models:
        items.append(_weights(f"{model.role} {model.name}", model.role, model.name, free))
    return Verdict(tuple(items), "" if items else "no machine is watched and no model runs in this process")


def _memory(facts: MachineFacts) -> Item:
    read = facts.host.memory if facts.host else None
    if read is None or read.used_ratio is None or read.available_bytes is None:
        return skipped(facts.name, facts.problems.get("connection") or facts.problems.get("host", "not read"))
    text = f"{read.available_bytes / GIB:.1f} GiB available, {read.used_ratio:.0%} used"
    cure = "End what is not needed, or take a machine with more memory."
    if read.used_ratio >= MEMORY_FAILED_RATIO:
        return failed(facts.name, text, "The next allocation can end a process (out of memory).", cure)
    if read.used_ratio >= MEMORY_WARN_RATIO:
        return warning(facts.name, text, "Memory is short.", cure)
    return passed(facts.name, text)


def _weights(name: str, role: str, model: str, free_bytes: int | None) -> Item:
    """The weights on disk against what is free: a model that is loaded already has its share of what is used."""
    try:
        folder = model_folder(role, model)
    except FAULTS as problem:
        return skipped(name, f"see R4-2: {problem}")
    if folder is None:
        return skipped(name, "it has no weights of its own" if model == "starter" else "it is not on this machine: see R4-2")
    files = [each for each in folder.rglob("*") if each.suffix in (".safetensors", ".bin", ".pt") and each.is_file()]
    size = sum(each.stat().st_size for each in files)
    if free_bytes is None:
        return skipped(name, f"{size / GIB:.2f} GiB of weights; this machine's memory was not read")
    text = f"{size / GIB:.2f} GiB of weights, {free_bytes / GIB:.1f} GiB of memory available now"
    if size > free_bytes:
        cause = "The weights are larger than the memory that is free (unless they are loaded already)."
        return warning(name, text, cause, "Choose a smaller model or precision, a larger machine, or a GPU server.")
    return passed(name, text)


# 2) the data folder and the stores


def data_folder(world: World) -> Verdict:
    """A file is written to disk in the data folder and deleted."""
    folder = world.subject.data_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".validate-") as file:
            file.write(b"ragdeck")
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        cause = f"The user that runs RAG Deck may not write there, or the disk is full or read-only: {problem.strerror}."
        return Verdict((failed("data folder", f"{folder}: {problem}", cause, _DATA_CURE),))
    return Verdict((passed("data folder", f"{folder}: written, synced and deleted"),))


_DATA_CURE = "Give the folder to that user (chown), or set RAGDECK_DATA to one that it may write to."


def stores(world: World) -> Verdict:
    """The collection in use has passages; Redis, where it is set, does its work."""
    items = [_passages(world)]
    for service, result in world.probes("functional"):
        if service.kind == "redis":
            items.append(
                passed(service.name, result.message)
                if result.up
                else failed(service.name, result.message, "Answers and scores cannot be cached.", result.next_step)
            )
    return Verdict(tuple(items))


def _passages(world: World) -> Item:
    try:
        active = next((each for each in world.process().collections() if each.active), None)
    except RagError as problem:
        if problem.kind == "held":
            return skipped("passages", problem.message)
        return failed("passages", problem.message, "The store cannot be opened.", problem.next_step)
    cause = "Nothing has been ingested with the embedder in force."
    cure = "Ingest documents: page Knowledge, or `python -m rag ingest PATH`."
    if active is None or active.entities == 0:
        return failed("passages", "the collection in use is empty" if active else "there is no collection yet", cause, cure)
    if active.entities is None:
        return skipped(active.name, "the store does not tell how many passages it has")
    return passed(active.name, f"{active.entities:,} passages")


# 3) driver and CUDA


def driver(world: World) -> Verdict:
    """The driver of this machine's GPUs against the CUDA that torch was built for."""
    local = next((facts for facts in world.machines() if facts.is_local), None)
    gpus = local.gpus if local else None
    built = torch_cuda() if world.installed("torch") else None
    if gpus is None or not gpus.gpus:
        if world.subject.device.startswith("cuda") and world.subject.local_models:
            text = f"device {world.subject.device}, and the driver shows none"
            cure = "Set DEVICE to auto or cpu, or install the driver (docs/provisioning.md)."
            return Verdict((failed("GPU", text, "The settings want a GPU that this machine has not.", cure),))
        return Verdict(reason=_no_gpu(gpus))
    if not world.installed("torch"):
        return Verdict(reason="torch is not installed here: models run elsewhere")
    return Verdict((judge_driver(gpus.driver_version, built),))


def _no_gpu(gpus: Gpus | None) -> str:
    said = next((fault.text for fault in gpus.faults), "") if gpus else ""
    return f"this machine has no GPU that can be read{f': {said}' if said else ''}"


def judge_driver(version: str | None, built: str | None) -> Item:
    """A driver's version against the CUDA release that torch was built for (`12.8`); None is a build without CUDA."""
    if built is None:
        cause = "The torch that is installed was built without CUDA."
        return warning("torch", "a GPU is there, models in this process run on the CPU", cause, "Install torch for CUDA.")
    numbers = tuple(int(part) for part in re.findall(r"\d+", version or ""))
    least = LEAST_DRIVER.get(int(built.partition(".")[0]))
    if not numbers or least is None:
        return skipped("driver", f"driver {version or 'unknown'}, torch for CUDA {built}: the least driver is not known here")
    text = f"driver {version}, torch for CUDA {built}"
    if numbers < least:
        cause = f"CUDA {built} needs driver {'.'.join(map(str, least))} or later."
        return failed("driver", text, cause, "Update the driver and restart, or install a torch for an older CUDA.")
    return passed("driver", text)


def torch_cuda() -> str | None:
    """The CUDA release that the installed torch was built for, read from its file: torch is not imported. None without CUDA."""
    spec = importlib.util.find_spec("torch")
    folder = next(iter(spec.submodule_search_locations or ()), None) if spec else None
    if folder is None:
        return None
    try:
        text = (Path(folder) / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found[1] if found else None


CHECKS = (
    Check("D-1", "Machines", "Room on the disks", "Traces, caches, uploads and images can still be written.", disks),
    Check("D-2", "Machines", "Memory for the models", "Machines have memory left, and the weights fit into it.", memory),
    Check("D-3", "Machines", "The data folder can be written", "Nothing that is to be kept is lost.", data_folder),
    Check("G-1", "Machines", "Driver and CUDA fit", "torch can use the GPU that is there.", driver),
)
D_4 = Check("D-4", "Path", "The stores are there and filled", "A question has passages to be answered from.", stores)
