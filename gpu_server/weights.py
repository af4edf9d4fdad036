"""Weights from a folder through the libraries, in fp32 on the CPU, with nothing missing. Knows nothing of devices or heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpu_server import folders
from gpu_server.devices import import_torch
from gpu_server.errors import EngineError, ModelError
from gpu_server.folders import ModelFolder

ENCODER_DECODERS = ("t5", "mt5", "umt5")  # of which an embedder takes the encoder alone


@contextmanager
def loading(folder: ModelFolder) -> Iterator[None]:
    """Whatever the libraries raise while they load is a ModelError that names the model."""
    try:
        yield
    except EngineError:
        raise
    except Exception as problem:
        raise ModelError(
            f"{folder.name} could not be loaded: {type(problem).__name__}: {problem}",
            next_step=f"Do the files in {folder.path} belong together, and does the model fit into memory?",
        ) from problem


def quiet() -> None:
    """No progress bars and load reports of transformers: they name the unused pooler on every start."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def load_body(folder: ModelFolder) -> Any:
    """The transformer in fp32 on the CPU, without a pooler. Raises ModelError where weights are missing from the file."""
    torch = import_torch()
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

    config = AutoConfig.from_pretrained(str(folder.body), local_files_only=True)
    kind = AutoModelForTextEncoding if config.model_type in ENCODER_DECODERS else AutoModel
    model, report = kind.from_pretrained(
        str(folder.body), config=config, local_files_only=True, dtype=torch.float32, output_loading_info=True
    )
    nothing_missing(folder, [key for key in report["missing_keys"] if "pooler" not in key])
    model.config.use_cache = False
    return model.eval()


def nothing_missing(folder: ModelFolder, keys: Sequence[str]) -> None:
    """Raises ModelError where the weights' files lack a tensor: transformers fills it with random numbers."""
    if keys:
        folders.refuse(
            f"{len(keys)} tensors are missing from the weights in {folder.body}: {', '.join(sorted(keys)[:4])}",
            "Are config.json and the weights of the same model?",
        )


def complete(folder: ModelFolder, model: Any) -> None:
    """The same check for an XLM-R that FlagEmbedding loaded, which gives no report. Raises ModelError."""
    names = {name.removeprefix("roberta.") for file in folder.weights for name in tensor_names(file)}
    wanted = [key.removeprefix("roberta.") for key in model.state_dict()]
    nothing_missing(folder, [key for key in wanted if key not in names and not key.startswith("pooler.")])


def tensor_names(file: Path) -> list[str]:
    """Names of the tensors in a weights file, without reading them."""
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(str(file), "pt") as handle:
            return list(handle.keys())
    return list(import_torch().load(file, map_location="meta", weights_only=True, mmap=True))


def read_tensors(folder: Path) -> dict[str, Any]:
    """All tensors of a small folder."""
    torch = import_torch()
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for file in folders.check_weights(folder):
        found |= load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    return found
