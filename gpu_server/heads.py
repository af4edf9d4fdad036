"""What stands behind a transformer: pooling, linear heads, dense layers; in fp32 on the packed states. Knows no model by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_server import folders
from gpu_server.devices import import_torch
from gpu_server.packing import Hidden
from gpu_server.weights import read_tensors

POOLINGS = ("cls", "mean", "max", "lasttoken")


def pool(hidden: Hidden, pooling: str) -> Any:
    """One row a text: of its first or last token, or the mean or maximum over all (Reimers & Gurevych 2019)."""
    torch = import_torch()
    states = hidden.states
    starts = torch.tensor(hidden.starts, device=states.device)
    if pooling == "cls":
        return states[starts[:-1]]
    if pooling == "lasttoken":
        return states[starts[1:] - 1]
    rows = torch.arange(len(states), device=states.device)
    # three times as fast as segment_reduce on a CPU, and no loop over texts
    return torch.nn.functional.embedding_bag(rows, states, starts[:-1], mode=pooling)


def to_host(parts: Sequence[Any]) -> list[NDArray[np.float32]]:
    """Matrices on a device as arrays, in one transfer."""
    torch = import_torch()
    if parts[0].device.type == "cpu":
        return [part.numpy() for part in parts]
    flat = torch.cat([part.reshape(-1) for part in parts]).cpu().numpy()
    ends = np.cumsum([part.numel() for part in parts])
    return [piece.reshape(part.shape) for piece, part in zip(np.split(flat, ends[:-1]), parts, strict=True)]


class DenseLayer:
    """sentence-transformers' Dense module: a linear layer and an activation of torch's, in fp32."""

    def __init__(self, folder: Path, device: str) -> None:
        torch = import_torch()
        config = folders.read_config(folder / "config.json")
        if config.get("use_residual") or config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
            folders.refuse(f"the layer in {folder} is of a kind that is not supported", "Name another model.")
        self._activation = activation(str(config.get("activation_function", "torch.nn.modules.activation.Tanh")), folder)
        self._linear = torch.nn.functional.linear
        tensors = read_tensors(folder)
        self._weight = tensors["linear.weight"].float().to(device)
        self._bias = tensors["linear.bias"].float().to(device) if "linear.bias" in tensors else None
        self.width = int(self._weight.shape[0])
        self.memory_bytes = int(self._weight.nbytes + (0 if self._bias is None else self._bias.nbytes))

    def __call__(self, pooled: Any) -> Any:
        return self._activation(self._linear(pooled, self._weight, self._bias))


def linear(layer: Any, device: str) -> tuple[Any, Any]:
    """Weight and bias of a torch linear layer, in fp32 on `device`; copies, since the layer's own keep the whole file mapped."""
    torch = import_torch()
    weight, bias = (part.detach().to(device, torch.float32, copy=True) for part in (layer.weight, layer.bias))
    return weight, bias


def activation(name: str, folder: Path) -> Any:
    """A torch activation by its full name, as sentence-transformers writes it. Raises ModelError."""
    torch = import_torch()
    kind = getattr(torch.nn, name.rsplit(".", 1)[-1], None) if name.startswith("torch.nn.") else None
    if not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
        folders.refuse(f"the layer in {folder} wants the activation {name}, which is not torch's", "Name another model.")
    return kind()
