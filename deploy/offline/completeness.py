"""Is a model all there on this disk: weights with every shard, tokenizer, hub references, and code of its own.

Looks at files only; knows nothing of how a model is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.offline.findings import Finding
from gpu_server import folders, hub
from gpu_server.errors import ModelError

WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.pt", "*.gguf", "model*.bin")
LFS = b"version https://git-lfs.github.com/spec/"
LARGEST_POINTER_BYTES = 4096
MOST_SHARDS = 2000
WITHOUT_FILES = (".Normalize", ".LayerNorm")  # modules that may have nothing to load, and then no folder in a hub cache
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
    yield from _pointers(name, folder)
    modules = [each for each in _list(_read(folder / "modules.json")) if isinstance(each, dict)]
    yield from _modules(name, folder, modules)
    body = folder / str(modules[0].get("path", "")) if modules else folder
    config = _read(body / "config.json")
    if not isinstance(config, dict):
        yield Finding("model_config_missing", f"{name}: config.json is missing or broken", str(body / "config.json"))
    if not dangling:
        yield from _weights(name, body)
        yield from _shards(name, folder, body)
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


def _pointers(name: str, folder: Path) -> Iterator[Finding]:
    """Files that `git clone` without Git LFS leaves in place of large ones: tokenizers too."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size < LARGEST_POINTER_BYTES and path.read_bytes().startswith(LFS):
            yield Finding("model_incomplete", f"{name}: {path.name} is a Git LFS pointer, not the file (git lfs pull)", str(path))


def _modules(name: str, folder: Path, modules: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Modules of sentence-transformers behind the transformer: each has a folder, and its own classes are its own code."""
    for module in modules:
        place, kind = folder / str(module.get("path", "")), str(module.get("type", ""))
        if kind and not kind.startswith("sentence_transformers."):
            yield Finding("trust_remote_code", f"{name} runs code of its own ({kind})", str(folder / "modules.json"))
        if not place.is_dir() and not kind.endswith(WITHOUT_FILES):
            yield Finding("model_config_missing", f"{name}: the folder {place.name} of modules.json is missing", str(place))


def _shards(name: str, folder: Path, body: Path) -> Iterator[Finding]:
    """Shards that other indexes below the folder name, and gaps in `00001-of-00003` where no index tells."""
    for index in sorted(folder.rglob("*.index.json")):
        listed = _read(index)
        shards = listed.get("weight_map") if isinstance(listed, dict) else None
        names = set(shards.values()) if isinstance(shards, dict) else set()
        missing = sorted(str(each) for each in names if not (index.parent / str(each)).exists())
        if missing and not (index.parent == body and index.name in folders.SINGLE_WEIGHTS):
            yield Finding("model_shard_missing", f"{name}: {', '.join(missing[:4])} of {index.name} are missing", str(index))
    yield from _numbered(name, folder)


def _numbered(name: str, folder: Path) -> Iterator[Finding]:
    """Gaps in `00001-of-00003` where no index tells, and an index that is gone: GGUF's shards need none."""
    sets: dict[tuple[Path, str, int, str], set[int]] = {}
    for path in sorted(folder.rglob("*-of-*")):
        found = re.fullmatch(r"(.+)-(\d+)-of-(\d+)(\.\w+)", path.name)
        if found:
            sets.setdefault((path.parent, found[1], int(found[3]), found[4]), set()).add(int(found[2]))
    for (place, stem, count, suffix), numbers in sets.items():
        if not any(place.glob("*.index.json")):
            missing = sorted(set(range(1, min(count, MOST_SHARDS) + 1)) - numbers)
            lack = f"the index of the {count} shards of {stem}{suffix} is missing"
            if missing:
                lack = f"{len(missing)} of {count} shards of {stem}{suffix} are missing, the first is {missing[0]}"
            if missing or suffix != ".gguf":
                yield Finding("model_shard_missing", f"{name}: {lack}", str(place))


def licence(folder: Path) -> str | None:
    """What the head of the model's card names; None where it names none."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:LARGEST_POINTER_BYTES]
    except OSError:
        return None
    head = text.split("---")[1] if text.startswith("---") else ""
    found = re.search(r"^license:\s*['\"]?([\w.+-]+)", head, re.M)
    return found[1] if found else None


def _own_code(name: str, folder: Path) -> Iterator[Finding]:
    """`auto_map` makes transformers run Python of the model's repository: from the network where `--` names another one."""
    for path in sorted(folder.rglob("*config.json")):
        content = _read(path)
        if any(each.get("trust_remote_code") is True for each in _dicts(content)):
            yield Finding("trust_remote_code", f"{name} asks for trust_remote_code", str(path))
        for target in sorted({each for found in _dicts(content) for each in _targets(found.get("auto_map"))}):
            repository, _, code = target.rpartition("--")
            module = path.parent / (code.split(".")[0] + ".py")
            module = module if module.exists() else folder / module.name
            lack = f" of the repository {repository}" if repository else "" if module.exists() else f"; {module.name} is missing"
            yield Finding("trust_remote_code", f"{name} runs code of its own ({code}){lack}", str(path))


def _targets(auto_map: Any) -> list[str]:
    values = auto_map.values() if isinstance(auto_map, dict) else []
    found = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return sorted({item for item in found if isinstance(item, str) and re.search(r"\w\.\w", item)})


def _dicts(content: Any) -> Iterator[dict[str, Any]]:
    """An object and those in it: a model of several names code in the config of each."""
    for value in content.values() if isinstance(content, dict) else _list(content):
        yield from _dicts(value)
    if isinstance(content, dict):
        yield content


def _list(content: Any) -> list[Any]:
    return content if isinstance(content, list) else []


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
