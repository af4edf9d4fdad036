"""A model's name to a folder on this machine: a folder as it is, a Hugging Face hub name from the cache, else downloaded.

What is in the cache is used without asking the network, so that a start needs none and weights never change by themselves.
Knows nothing of what a folder must hold; `folders.py` checks that.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from gpu_server.errors import ModelError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
WANTED = ["*.json", "*.txt", "*.model", "*.safetensors", "*.bin", "*.pt"]
OTHER_FORMATS = ["onnx/*", "openvino/*", "*openvino*", "original/*", "training_args.bin", "optimizer.pt", "scheduler.pt"]
LIST_TIMEOUT_SECONDS = 10.0


def bad_name(name: str) -> str | None:
    """Why `name` can be neither a folder nor a hub name, or None; looks at this machine only."""
    if not name.strip():
        return "the model's name is empty"
    path = Path(name).expanduser()
    if path.is_file():
        return f"{name} is a file; a model is a folder or a name on the Hugging Face hub"
    if not path.is_dir() and _is_path(name):
        return f"there is no folder {name}"
    if not path.is_dir() and not HUB_NAME.fullmatch(name):
        return f"{name!r} is neither a folder nor a name on the Hugging Face hub"
    return None


def find(name: str, problem_with: Callable[[Path], ModelError | None]) -> Path:
    """The folder of a model; a cached one that `problem_with` finds fault with is downloaded again. Raises ModelError.

    With HF_HUB_OFFLINE set nothing is downloaded: the fault itself is raised.
    """
    reason = bad_name(name)
    if reason:
        raise ModelError(reason, next_step="Name a model folder, or a model as the hub writes it: BAAI/bge-m3.")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    cached = _cached(name)
    problem = problem_with(cached) if cached else None
    if cached and problem is None:
        return cached
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise problem or ModelError(
            f"{name} is not in the hub cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE is set",
            next_step="Give the path of a folder, copy the model into the cache, or unset HF_HUB_OFFLINE.",
        )
    return _download(name)


def local(name: str) -> Path | None:
    """The folder of a model that is here already, complete or not; downloads nothing."""
    if bad_name(name):
        return None
    folder = Path(name).expanduser()
    return folder.resolve() if folder.is_dir() else _cached(name)


def short_name(folder: Path) -> str:
    """The model's name without its owner: of a hub cache folder the repository's, else the folder's own."""
    for part in folder.parts:
        if part.startswith("models--"):
            return part.rsplit("--", 1)[-1]
    return folder.name


def _is_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name


def _cached(name: str) -> Path | None:
    """The cached snapshot, complete or not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=["config.json"]))
    except IncompleteSnapshotError as problem:
        return Path(problem.snapshot_path) if problem.snapshot_path else None
    except (LocalEntryNotFoundError, OSError, ValueError):  # ValueError: a name that the hub's client does not take
        return None


def _download(name: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    try:
        files = [item.rfilename for item in HfApi().model_info(name, timeout=LIST_TIMEOUT_SECONDS).siblings or ()]
        twice = ["*.bin"] if any(file.endswith(".safetensors") for file in files) else []  # the same weights again
        return Path(snapshot_download(name, allow_patterns=WANTED, ignore_patterns=OTHER_FORMATS + twice))
    except Exception as problem:  # the hub's errors, the transport's, the disk's: what the caller needs is the next step
        raise _failure(name, problem) from problem


def _failure(name: str, problem: Exception) -> ModelError:
    from huggingface_hub import errors

    if isinstance(problem, errors.GatedRepoError):
        return ModelError(
            f"the hub wants its terms accepted for {name}",
            next_step="Accept them on the model's page, then set HF_TOKEN to a token of that account.",
        )
    if isinstance(problem, errors.RepositoryNotFoundError):
        return ModelError(
            f"the hub has no model {name}, or it is private",
            next_step="Check the spelling (owner/name); for a private one set HF_TOKEN. A folder is given by its path.",
        )
    if isinstance(problem, OSError) and not isinstance(problem, errors.HfHubHTTPError):
        return ModelError(
            f"{name} could not be stored: {problem}", next_step="Is there room on the disk of the hub cache (HF_HOME)?"
        )
    return ModelError(
        f"{name} could not be downloaded: {type(problem).__name__}: {problem}",
        next_step="Check the way to the hub (HF_ENDPOINT, proxy), or copy the model here and give its folder.",
    )
