"""Is a model all there on this disk: weights with every shard, tokenizer, hub references, and code of its own.

Looks at files only; knows nothing of how a model is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.offline.findings import Finding
from gpu_server import folders, hub
from gpu_server.errors import ModelError

WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.pt", "*.gguf", "model*.bin")
OWN_TOKENIZERS = (*folders.TOKENIZERS, "merges.txt", "tekken.json", "vocab.bpe", "preprocessor_config.json")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model lies; `repository` is its folder in the hub cache, None for a plain folder."""

    name: str
    folder: Path | None
    repository: Path | None = None
    revision: str | None = None


def hub_cache() -> Path:
    """The cache that huggingface_hub uses here, by its own rules (HF_HUB_CACHE, HF_HOME)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def find(name: str, cache: Path) -> Place:
    """A folder as it is, else what refs/main of the hub cache names."""
    if Path(name).expanduser().is_dir():
        return Place(name, Path(name).expanduser().resolve())
    if hub.bad_name(name) is not None:
        return Place(name, None)
    repository = cache / ("models--" + name.replace("/", "--"))
    if not repository.is_dir():
        return Place(name, None)
    try:
        revision = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        snapshots = sorted((repository / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime)
        return Place(name, snapshots[-1] if snapshots else None, repository)
    folder = repository / "snapshots" / revision
    return Place(name, folder if folder.is_dir() else None, repository, revision)


def problems(place: Place) -> list[Finding]:
    """Everything that keeps the model from loading without network."""
    return [*_hub_problems(place), *(_folder_problems(place.name, place.folder) if place.folder else ())]


def _hub_problems(place: Place) -> Iterator[Finding]:
    if place.folder is None:
        where = str(place.repository or "neither a folder nor in the hub cache")
        yield Finding("model_not_cached", f"{place.name} is not on this machine", where)
    if place.repository is None:
        return
    if place.revision is None:
        yield Finding("model_ref_missing", f"{place.name} has no refs/main", str(place.repository / "refs" / "main"))
    for unfinished in sorted(place.repository.glob("blobs/*.incomplete")):
        yield Finding("model_incomplete", f"{place.name}: a download did not end", str(unfinished))


def _folder_problems(name: str, folder: Path) -> Iterator[Finding]:
    dangling = [path for path in sorted(folder.rglob("*")) if path.is_symlink() and not path.exists()]
    for path in dangling:
        yield Finding("model_shard_missing", f"{name}: {path.name} points to nothing", str(path))
    modules = _read(folder / "modules.json")
    body = folder / str(modules[0].get("path", "")) if isinstance(modules, list) and modules else folder
    config = _read(body / "config.json")
    if not isinstance(config, dict):
        yield Finding("model_config_missing", f"{name}: config.json is missing or broken", str(body / "config.json"))
    if not dangling:
        yield from _weights(name, body)
    if not any((body / each).exists() or (folder / each).exists() for each in OWN_TOKENIZERS):
        yield Finding("model_tokenizer_missing", f"{name} has no tokenizer", str(body))
    yield from _own_code(name, folder)


def _weights(name: str, body: Path) -> Iterator[Finding]:
    """By gpu_server's check where the file names are transformers'; other engines' weights have only to be there."""
    if not any((body / each).exists() for each in folders.SINGLE_WEIGHTS) and any(
        next(body.glob(each), None) for each in WEIGHTS
    ):
        return
    try:
        folders.check_weights(body)
    except ModelError as problem:
        yield Finding("model_shard_missing", f"{name}: {problem}", str(body))


def _own_code(name: str, folder: Path) -> Iterator[Finding]:
    """`auto_map` makes transformers run Python of the model's repository: from the network where `--` names another one."""
    for path in sorted(folder.rglob("*config.json")):
        content = _read(path)
        if not isinstance(content, dict):
            continue
        if content.get("trust_remote_code") is True:
            yield Finding("trust_remote_code", f"{name} asks for trust_remote_code", str(path))
        for target in _targets(content.get("auto_map")):
            repository, _, code = target.rpartition("--")
            module = folder / (code.split(".")[0] + ".py")
            lack = f" of the repository {repository}" if repository else "" if module.exists() else f"; {module.name} is missing"
            yield Finding("trust_remote_code", f"{name} runs code of its own ({code}){lack}", str(path))


def _targets(auto_map: Any) -> list[str]:
    values = auto_map.values() if isinstance(auto_map, dict) else []
    found = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return sorted({item for item in found if isinstance(item, str) and re.search(r"\w\.\w", item)})


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
