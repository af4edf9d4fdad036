"""How to start a placed service: command line, environment, and its pieces of a compose file and of a Kubernetes pod.

Plain data; whole files are rendered elsewhere. Knows vLLM's and our own server's options, no other server's.
"""

from __future__ import annotations

import shlex
from typing import Any

from deploy.planner.placement import Placed, Plan, converts_while_loading, needs_other_weights

VLLM_PORT = 8001


def served(placed: Placed) -> str:
    """The weights to load; where they have to be others than the model's own and are not named, words that say so and load
    nothing."""
    service = placed.service
    if needs_other_weights(service, placed.model, placed.precision):
        return f"<{placed.precision.upper()} weights of {service.model}>"
    return service.weights or service.model


def vllm_arguments(placed: Placed) -> list[str]:
    """What follows `vllm serve`."""
    service = placed.service
    found = [served(placed), "--gpu-memory-utilization", f"{placed.share or 0.0:.2f}"]
    if placed.model.shape.kind != "speech":
        found += ["--max-model-len", str(service.context)]
    found += ["--max-num-seqs", str(service.sequences), "--max-num-batched-tokens", str(placed.load.batched)]
    found += ["--tensor-parallel-size", str(service.split), "--kv-cache-dtype", service.cache]
    if placed.precision in ("fp16", "fp32"):
        found += ["--dtype", {"fp16": "half", "fp32": "float"}[placed.precision]]
    elif converts_while_loading(service, placed.model, placed.precision):
        found += ["--quantization", "fp8"]
    if placed.model.kind in ("embedder", "reranker"):
        found += ["--runner", "pooling"]
    if service.eager:
        found.append("--enforce-eager")
    return [*found, "--port", str(service.port or VLLM_PORT)]


def pool_arguments(plan: Plan, process: str) -> list[str]:
    """What follows `python -m gpu_server`, for all services of one process."""
    here = [each for each in plan.services if each.service.runs_in == process]
    found: list[str] = []
    for kind in ("embedder", "reranker"):
        model = next((each.service.model for each in here if each.model.kind == kind), "none")
        found += [f"--{kind}", model]
    precision = "fp32" if any(each.precision == "fp32" for each in here) else "fp16"
    port = next((each.service.port for each in here if each.service.port), 8000)
    return [*found, "--device", "cuda:0", "--precision", precision, "--port", str(port)]


def environment(placed: Placed) -> dict[str, str]:
    """For a process on the machine itself; in a container that was given its GPUs they are counted from 0 again."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, placed.gpus))} if placed.gpus else {}


def command(plan: Plan, placed: Placed) -> str | None:
    """A line for a shell; None for a server whose options are not known, and for what has no GPU yet."""
    service = placed.service
    if not placed.gpus or service.engine == "other":
        return None
    words = ["vllm", "serve", *vllm_arguments(placed)]
    if service.engine == "gpu_server":
        words = ["python", "-m", "gpu_server", *pool_arguments(plan, service.runs_in)]
    assigned = " ".join(f"{name}={value}" for name, value in environment(placed).items())
    return f"{assigned} {shlex.join(words)}"


def compose_service(plan: Plan, placed: Placed) -> dict[str, Any]:
    """The GPU part of a compose file's service: command and devices; shared memory for several GPUs."""
    found: dict[str, Any] = {}
    if placed.service.engine == "vllm":
        found["command"] = vllm_arguments(placed)
    elif placed.service.engine == "gpu_server":
        found["command"] = pool_arguments(plan, placed.service.runs_in)
    device = {"driver": "nvidia", "device_ids": [str(each) for each in placed.gpus], "capabilities": ["gpu"]}
    found["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    if placed.service.split > 1:
        found["ipc"] = "host"
    return found


def kubernetes_container(plan: Plan, placed: Placed) -> dict[str, Any]:
    """The GPU part of a pod's container. Kubernetes gives whole GPUs: what `shares_gpu` is true for needs
    time slicing or MPS."""
    found: dict[str, Any] = {"name": placed.service.runs_in}
    if placed.service.engine == "vllm":
        found["args"] = vllm_arguments(placed)
    elif placed.service.engine == "gpu_server":
        found["args"] = pool_arguments(plan, placed.service.runs_in)
    return found | {"resources": {"limits": {"nvidia.com/gpu": placed.service.split}}}


def shares_gpu(plan: Plan, placed: Placed) -> bool:
    """Whether another process is on one of its GPUs."""
    here = {each.service.runs_in for each in plan.services if set(each.gpus) & set(placed.gpus)}
    return len(here) > 1
