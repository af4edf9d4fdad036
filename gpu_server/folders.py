"""What a model folder holds, checked before anything loads: role, architecture, weights that are all there, tokenizer, heads.

Reads headers and small files, never whole weights. Every fault is a ModelError with what is missing, where, and what to do.
Knows nothing of torch models; `embedders.py` and `rerankers.py` load what was found here.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from gpu_server import hub
from gpu_server.errors import ModelError

Kind = Literal["bge-m3", "sentence-transformer", "cross-encoder"]

SINGLE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "vocab.txt", "vocab.json")
HEADS = ("sparse_linear.pt", "colbert_linear.pt")
NO_EMBEDDER = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "ForTokenClassification", "ForQuestionAnswering")
COPY_AGAIN = "Download or copy the model again."
SAMPLES = 256
SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder that passed the checks. `body` holds the transformer: the folder itself, or sentence-transformers' first module.

    `modules` is sentence-transformers' list of modules behind the transformer, empty for a plain model.
    """

    name: str
    short_name: str
    path: Path
    body: Path
    kind: Kind
    config: dict[str, Any]
    weights: tuple[Path, ...]
    modules: tuple[dict[str, Any], ...] = ()

    def hash8(self) -> str:
        """Eight hex digits over samples of the weights, heads and layers behind the transformer included."""
        return weights_hash(self.weights)


def embedder(name: str) -> ModelFolder:
    """Find and check an embedder's folder. Raises ModelError."""
    return _found(name, check_embedder)


def reranker(name: str) -> ModelFolder:
    """Find and check a cross-encoder's folder. Raises ModelError."""
    return _found(name, check_reranker)


def reranker_identity(name: str) -> str | None:
    """The identity that this cross-encoder will have once it is loaded; None where its folder is not here, or not whole."""
    path = hub.local(name)
    try:
        return identity(check_reranker(path, name)) if path else None
    except (ModelError, OSError):
        return None


def _found(name: str, check: Any) -> ModelFolder:
    def problem_with(path: Path) -> ModelError | None:
        try:
            check(path, name)
        except ModelError as problem:
            return problem
        return None

    found: ModelFolder = check(hub.find(name, problem_with), name)
    return found


def check_embedder(path: Path, name: str = "") -> ModelFolder:
    """`path` as an embedder: BGE-M3 where its heads or its name say so, else a sentence-transformers or plain encoder."""
    modules = _modules(path)
    body = path / modules[0].get("path", "") if modules else path
    config = read_config(body / "config.json")
    found = architecture(config)
    if found.endswith("ForSequenceClassification"):
        refuse(f"{path} is a reranker or classifier ({found}); an embedder was asked for", "Set it as the reranker instead.")
    if not modules and found.endswith(NO_EMBEDDER):
        refuse(f"{path} is a {found}; an embedder was asked for", "Name an embedder, for example BAAI/bge-m3.")
    short = hub.short_name(path)
    heads = [path / head for head in HEADS]
    is_m3 = config.get("model_type") == "xlm-roberta" and (heads[0].exists() or heads[1].exists() or short.endswith("bge-m3"))
    extra = _check_heads(heads, int(config.get("hidden_size", 0))) if is_m3 else _module_weights(path, modules[1:])
    weights = (*check_weights(body), *extra)
    check_tokenizer(body)
    kind: Kind = "bge-m3" if is_m3 else "sentence-transformer"
    return ModelFolder(_shown(name, path), short, path, body, kind, config, weights, () if is_m3 else tuple(modules[1:]))


def check_reranker(path: Path, name: str = "") -> ModelFolder:
    """`path` as a cross-encoder: a sequence classifier with one label."""
    config = read_config(path / "config.json")
    found = architecture(config)
    if not found.endswith("ForSequenceClassification"):
        refuse(
            f"{path} is a {found}; a reranker (…ForSequenceClassification with one label) was asked for",
            "Name a cross-encoder, for example BAAI/bge-reranker-v2-m3. Rerankers made of language models are not supported.",
        )
    labels = len(config.get("id2label") or range(int(config.get("num_labels", 2))))
    if labels != 1:
        refuse(f"{path} is a classifier of {labels} labels; a reranker has one", "Name a cross-encoder with one label.")
    weights = check_weights(path)
    check_tokenizer(path)
    return ModelFolder(_shown(name, path), hub.short_name(path), path, path, "cross-encoder", config, weights)


def architecture(config: dict[str, Any]) -> str:
    """The class that wrote the folder, or the model's type where it does not say."""
    names = config.get("architectures") or [config.get("model_type") or "model of unknown architecture"]
    return str(names[0])


def weights_hash(files: Iterable[Path]) -> str:
    """Eight hex digits over each file's size and 256 samples spread over it.

    Samples, because reading gigabytes would delay a start; spread, because a fine-tuned model may share its first layers.
    """
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(str(size).encode())
        with file.open("rb") as handle:
            for sample in range(SAMPLES):
                handle.seek(size * sample // SAMPLES)
                digest.update(handle.read(SAMPLE_BYTES))
    return digest.hexdigest()[:8]


def identity(folder: ModelFolder, *parts: str | int) -> str:
    """`name-part-…-hash`: what a collection is named by; the folder's path is no part of it."""
    name = re.sub(r"[^\w.-]", "_", folder.short_name)
    return "-".join([name, *map(str, parts), folder.hash8()])


# the parts of a folder


def read_json(path: Path) -> Any:
    """A JSON file of a model folder, an object or a list of objects. Raises ModelError."""
    if not path.exists():
        refuse(f"{path.name} is missing in {path.parent}{_broken_off(path.parent)}", f"Is this a model folder? {COPY_AGAIN}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        refuse(f"{path} cannot be read: {problem}", COPY_AGAIN)
    if not all(isinstance(item, dict) for item in (content if isinstance(content, list) else [content])):
        refuse(f"{path} is not what its name says: it holds {str(content)[:40]!r}", COPY_AGAIN)
    return content


def read_config(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object. Raises ModelError."""
    content = read_json(path)
    if not isinstance(content, dict):
        refuse(f"{path} holds a list, not an object", COPY_AGAIN)
    return content


def check_weights(folder: Path) -> tuple[Path, ...]:
    """The files of a model's weights, each complete. Raises ModelError naming what is missing."""
    found = next((folder / name for name in SINGLE_WEIGHTS if (folder / name).exists()), None)
    if found is None:
        refuse(
            f"no weights in {folder}: neither model.safetensors nor pytorch_model.bin, whole or in shards{_broken_off(folder)}",
            COPY_AGAIN,
        )
    if not found.name.endswith(".index.json"):
        check_complete(found)
        return (found,)
    shards = [folder / name for name in sorted(set(read_config(found).get("weight_map", {}).values()))]
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing or not shards:
        refuse(
            f"{len(missing)} of {len(shards)} shards of the weights are missing in {folder}: "
            f"{', '.join(missing[:4])}{_broken_off(folder)}",
            COPY_AGAIN,
        )
    for shard in shards:
        check_complete(shard)
    return tuple(shards)


def check_complete(file: Path) -> None:
    """Whether a weights file is whole: its length by its own header. Raises ModelError."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        start = handle.read(24)
        if start.startswith(b"version https://git-lfs"):
            refuse(f"{file} is a Git LFS pointer, not the weights", "Run `git lfs pull` in the model's folder.")
        if file.suffix == ".safetensors":
            wanted = _safetensors_size(handle, start, size)
            if wanted != size:
                refuse(f"{file} is not whole: {size:,} bytes of {wanted or 'an unknown number of'}", COPY_AGAIN)
        elif not size or (start.startswith(b"PK") and not zipfile.is_zipfile(handle)):
            refuse(f"{file} is not whole: the end of the archive is missing after {size:,} bytes", COPY_AGAIN)


def _safetensors_size(handle: Any, start: bytes, size: int) -> int | None:
    """Bytes the file must have: 8 for the header's length, the header, the tensors. None where the header itself is cut."""
    if len(start) < 8:
        return None
    (header_size,) = struct.unpack("<Q", start[:8])
    if header_size > size:
        return None
    handle.seek(8)
    try:
        tensors = json.loads(handle.read(header_size))
        end = max((item["data_offsets"][1] for key, item in tensors.items() if key != "__metadata__"), default=0)
    except (ValueError, LookupError, TypeError):
        return None
    return 8 + int(header_size) + int(end)


def check_tokenizer(folder: Path) -> None:
    """Raises ModelError where the folder has no tokenizer."""
    if not any((folder / name).exists() for name in TOKENIZERS):
        refuse(f"no tokenizer in {folder}: none of {', '.join(TOKENIZERS)}{_broken_off(folder)}", COPY_AGAIN)


def _check_heads(heads: Sequence[Path], hidden: int) -> tuple[Path, ...]:
    """BGE-M3's two heads, there and of the right shape: FlagEmbedding would put random ones in their place without a word."""
    from gpu_server.devices import import_torch

    torch = import_torch()
    missing = [head.name for head in heads if not head.exists()]
    if missing:
        refuse(
            f"{' and '.join(missing)} missing in {heads[0].parent}{_broken_off(heads[0].parent)}: "
            "without its heads BGE-M3 makes no sparse weights",
            COPY_AGAIN,
        )
    for head, rows in zip(heads, (1, hidden), strict=True):
        check_complete(head)
        try:
            tensors = torch.load(head, map_location="cpu", weights_only=True)
            shapes = {key: tuple(value.shape) for key, value in tensors.items()}
        except Exception as problem:  # unpickling raises what it likes
            refuse(f"{head} cannot be read: {problem}", COPY_AGAIN)
        if shapes != {"weight": (rows, hidden), "bias": (rows,)}:
            refuse(f"{head} holds {shapes}, not a linear layer from {hidden} to {rows}", "Are the heads those of another model?")
    return tuple(heads)


def _modules(path: Path) -> list[dict[str, Any]]:
    """sentence-transformers' modules, the transformer first; empty for a plain model."""
    if not (path / "modules.json").exists():
        return []
    about = path / "config_sentence_transformers.json"
    kind = read_config(about).get("model_type", "SentenceTransformer") if about.exists() else "SentenceTransformer"
    if kind != "SentenceTransformer":
        refuse(f"{path} is a {kind}; an embedder of dense vectors was asked for", "Name a SentenceTransformer model.")
    modules: list[dict[str, Any]] = read_json(path / "modules.json")
    if not modules or not str(modules[0].get("type", "")).endswith(".Transformer"):
        first = modules[0].get("type") if modules else "nothing"
        refuse(f"{path} does not begin with a transformer but with {first}", "Name a model made of a transformer and pooling.")
    return modules


def _module_weights(path: Path, modules: Sequence[dict[str, Any]]) -> tuple[Path, ...]:
    """Weights of the layers behind the transformer, whole."""
    dense = [module for module in modules if str(module.get("type", "")).endswith(".Dense")]
    return tuple(file for module in dense for file in check_weights(path / str(module["path"])))


def _broken_off(folder: Path) -> str:
    """A remark where the hub's client left unfinished files: in its cache, or in a folder it downloaded to."""
    places = [folder / ".cache" / "huggingface" / "download"]
    if folder.parent.name == "snapshots":
        places.append(folder.parent.parent / "blobs")
    left = sum(1 for place in places if place.is_dir() for _ in place.glob("*.incomplete"))
    return f" (a download broke off: {left} .incomplete file{'s' if left > 1 else ''})" if left else ""


def _shown(name: str, path: Path) -> str:
    """The name that callers see: a hub name as it was asked for; of a folder its last part, since paths are nobody's business."""
    return name if hub.HUB_NAME.fullmatch(name) and not Path(name).exists() else hub.short_name(path)


def refuse(message: str, next_step: str) -> NoReturn:
    raise ModelError(message, next_step=next_step)
