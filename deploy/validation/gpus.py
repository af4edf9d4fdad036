"""R4's first and third issues: attention kernels that the installed vLLM lacks, and services that compete for GPU memory."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collectors.readings import Gpu, GpuProcess
from collectors.services import ProbeResult, Service
from deploy.validation.machines import EngineShare, MachineFacts
from deploy.validation.offline import FAULTS, model_folder
from deploy.validation.types import Check, Item, Verdict, failed, passed, skipped, warning
from deploy.validation.world import World

GIB = 2**30
BUFFER_BYTES = 3e9  # R4's buffer on the A100 40 GB
CONTEXT_RATIO = 0.95  # what is left for CUDA contexts beside the shares
# What vLLM documents of attention sinks (gpt-oss):
# - design/attention_backends, the table that is generated of the backends' own checks: sinks are in FlashAttention 3 (compute
#   capability 9.x alone), TRITON_ATTN (any), and FlashInfer with TRT-LLM kernels (10.0); not in FlashAttention 2 or 4.
# - the release notes of 0.10.1 name gpt-oss as new; the recipe OpenAI/GPT-OSS first named H100, H200 and B200, and now says that
#   Ampere works by default, through TRITON_ATTN.
# - pull request 22714, "Enable gpt-oss on ampere", of August 2025. We know no release note that gives it to 0.10.1, and by
#   issue 22331 ("Sinks are only supported in FlashAttention 3") the image 0.10.1+gptoss has it not: others of 0.10.1 warn.
FIRST_WITH_SINKS = (0, 10, 1)
FIRST_ON_ALL_GPUS = (0, 10, 2)
SOURCES = "docs.vllm.ai, design/attention_backends; vLLM's recipe for gpt-oss"
SINK_TYPES = ("gpt_oss",)
SINK_NAMES = re.compile(r"gpt[-_]?oss", re.IGNORECASE)
FIRST_GPUS = re.compile(r"\b(GH200|H20|H100|H200|H800|B200|B300|GB200|GB300)\b")  # Hopper, and Blackwell of 10.0


# 1) R4-1


def attention(world: World) -> Verdict:
    """R4-1: each language model's attention against what its vLLM version has for the GPUs there, as vLLM documents it (see the
    sources above `FIRST_WITH_SINKS`)."""
    asked = [each for each in world.subject.services if each.kind in ("openai-chat", "ocr")]
    if not asked:
        return Verdict(reason="no language model is served over HTTP")
    probed = {id(service): result for service, result in world.probes("functional")}
    names = [gpu.name for facts in world.machines() if facts.gpus for gpu in facts.gpus.gpus or () if gpu.name]
    return Verdict(tuple(_attention(service, probed.get(id(service)), names) for service in asked))


def _attention(service: Service, result: ProbeResult | None, gpus: Sequence[str]) -> Item:
    """A server that cannot be asked is judged by the model of the settings, as far as that says anything."""
    models = [model for model in (service.model, *((result.models if result else None) or ())) if model]
    if not models:
        return skipped(service.name, "not reached, and the settings name no model" if result is None else "it tells no model")
    return judge_attention(service, models, result.version if result else None, gpus)


def judge_attention(service: Service, models: Sequence[str], version: str | None, gpus: Sequence[str]) -> Item:
    """One server: the models it serves or is asked for, its version as `/version` tells, the GPUs that are watched."""
    needing = next((model for model in models if needs_sinks(model)), None)
    if needing is None:
        shown = ", ".join(sorted(set(models)))
        return passed(
            service.name, f"{shown} needs no attention kernel beyond the usual ones, as far as its configuration is here"
        )
    numbers = version_numbers(version)
    where = ", ".join(sorted(set(gpus))) or "unknown GPUs"
    text = f"{needing} on vLLM {version or 'of unknown version'}, {where}"
    if numbers is None:
        return skipped(service.name, f"{needing} has attention sinks, and the server tells no version at /version")
    if numbers < FIRST_WITH_SINKS:
        cause = (
            "The model's attention has sinks, first done by FlashAttention 3; vLLM has them from 0.10.1 on (its release notes)."
        )
        return failed(service.name, text, cause, _SINK_CURE)
    if numbers < FIRST_ON_ALL_GPUS and not (gpus and all(FIRST_GPUS.search(name) for name in gpus)):
        cause = "Attention sinks came with FlashAttention 3, which is for Hopper GPUs (H100, H200) alone"
        if "gptoss" in (version or ""):
            return failed(
                service.name, text, f"{cause}: this image stops with an error on others (vLLM issue 22331).", _SINK_CURE
            )
        return warning(service.name, text, f"{cause}; no release note says that 0.10.1 has them for others.", _SINK_CURE)
    return passed(service.name, f"{text}: sinks by FlashAttention 3 or TRITON_ATTN ({SOURCES})")


_SINK_CURE = (
    "Update vLLM to 0.10.2 or later (`TRITON_ATTN` serves any GPU), or serve another model (Mistral-7B, Qwen3-8B). "
    "`--enforce-eager` only switches CUDA graphs off: the kernel stays missing."
)


def version_numbers(version: str | None) -> tuple[int, ...] | None:
    """`0.10.1.1+cu128` as (0, 10, 1, 1); a release candidate counts as its release. None for no version."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", version or "")
    return tuple(int(part) for part in match[1].split(".")) if match else None


def needs_sinks(model: str) -> bool:
    """Whether a model's attention has sinks: by its configuration where a folder or the hub cache has it, else by its name."""
    try:
        folder = model_folder("llm", model)
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else None
    except (*FAULTS, ValueError):
        config = None
    if isinstance(config, dict):
        return config.get("model_type") in SINK_TYPES or bool(config.get("attention_sinks"))
    return bool(SINK_NAMES.search(Path(model).name))


# 2) R4-3


def gpu_memory(world: World) -> Verdict:
    """R4-3: what the services on each GPU hold and ask for, against what the GPU has."""
    items = [item for facts in world.machines() for item in _of_machine(facts)]
    return Verdict(tuple(items), "" if items else "no watched machine has a GPU that can be read")


def _of_machine(facts: MachineFacts) -> list[Item]:
    gpus = facts.gpus.gpus if facts.gpus else None
    if not gpus:
        return []
    items = shares(facts.name, facts.engines or (), len(gpus))
    holders: dict[str, list[GpuProcess]] = defaultdict(list)
    for process in (facts.gpus.processes if facts.gpus else None) or ():
        holders[process.gpu_uuid].append(process)
    return [*items, *(judge_gpu(facts.name, gpu, holders.get(gpu.uuid or "", [])) for gpu in gpus)]


def shares(machine: str, engines: Sequence[EngineShare], gpus: int) -> list[Item]:
    """The sum of `--gpu-memory-utilization` on a machine with one GPU; with several it is not known which shares meet."""
    if not engines:
        return []
    told = " + ".join(f"{each.share_ratio:g}{' (default)' if each.default else ''}" for each in engines)
    total, name = sum(each.share_ratio for each in engines), f"{machine}: vLLM's shares"
    text = f"{told} = {total:.2f} of {'the GPU' if gpus == 1 else f'{gpus} GPUs'}"
    if total <= CONTEXT_RATIO * gpus and max(each.share_ratio for each in engines) <= CONTEXT_RATIO:
        return [passed(name, text)]
    cause = "Each vLLM takes its share of the whole GPU at the start, whatever the others hold: the last one finds too little."
    cure = (
        "Give each --gpu-memory-utilization so that the sum leaves a buffer: `python -m deploy plan` writes them (page Capacity)."
    )
    return [failed(name, text, cause, cure)]


def judge_gpu(machine: str, gpu: Gpu, holders: Sequence[GpuProcess]) -> Item:
    """One GPU: free memory against the buffer, and who holds how much where several do."""
    name = f"{machine}: GPU {gpu.index}"
    if gpu.memory_total_bytes is None or gpu.memory_used_bytes is None:
        return skipped(name, "its memory is not told (unified memory, or no permission)")
    free = gpu.memory_total_bytes - gpu.memory_used_bytes
    who = ", ".join(f"{each.name or each.pid} {_gib(each.memory_bytes)}" for each in holders) or "processes unknown"
    text = f"{_gib(gpu.memory_used_bytes)} of {_gib(gpu.memory_total_bytes)} used, {_gib(free)} free; {who}"
    if free >= BUFFER_BYTES:
        return passed(name, text)
    least = f"{BUFFER_BYTES / 1e9:.0f} GB"
    cure = "Lower --gpu-memory-utilization or a context, or move one to another GPU: `python -m deploy plan` says what fits."
    if len(holders) > 1:
        cause = (
            f"{len(holders)} processes share this GPU and leave less than {least}: a long prompt or a restart runs out of memory."
        )
        return failed(name, text, cause, cure)
    return warning(name, text, f"Less than the buffer of {least} is left: a second service finds no room.", cure)


def _gib(value: float | None) -> str:
    return "unknown" if value is None else f"{value / GIB:.1f} GiB"


R4_1 = Check(
    "R4-1",
    "Reported issues",
    "vLLM has the model's attention",
    "No model waits for a kernel such as FlashAttention 3.",
    attention,
)
R4_3 = Check(
    "R4-3", "Reported issues", "Services leave each other GPU memory", "Restarts and long prompts find room.", gpu_memory
)
