"""What is known by name: models, GPUs and presets, from the tables shipped beside this file; and models in a folder.

A folder's own weight files win over the count from its config. Knows no hub: a name that is not in the table is refused.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from deploy.planner.figures import MIB, Figure
from deploy.planner.shapes import Shape, Vision, from_config
from rag.errors import RagError

HERE = Path(__file__).parent
LARGEST_FILE_BYTES = 64 * MIB
MOST_FOLDERS = 200
KINDS = ("llm", "embedder", "reranker", "speech")


@dataclass(frozen=True, slots=True)
class Model:
    """`published_parameters` is the publisher's count, None for a folder. `stored_bytes` are those of a folder's weight files."""

    name: str
    kind: str
    shape: Shape
    precision: str
    source: str
    published_parameters: int | None = None
    note: str = ""
    stored: Figure | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """A type of GPU. `usable_bytes` is what a program can take; `nominal_gb` what it is sold as; speeds are data-sheet peaks."""

    name: str
    nominal_gb: float
    usable_bytes: int
    bandwidth_bytes_per_second: float | None = None
    tensor_flops: float | None = None
    bf16: bool = True
    matches: tuple[str, ...] = ()
    price: str | None = None
    source: str = "given in the plan"


@cache
def models() -> Mapping[str, Model]:
    """The shipped models by name, in the table's order."""
    table = tomllib.loads((HERE / "models.toml").read_text(encoding="utf-8"))["models"]
    return {each["name"]: _shipped(each) for each in table}


def _shipped(entry: Mapping[str, Any]) -> Model:
    tower = entry.get("vision")
    vision = Vision(source=entry["source"], **tower) if tower else None
    shape = from_config(entry["config"], vision)
    return Model(
        entry["name"], entry["kind"], shape, entry["precision"], entry["source"], entry["parameters"], entry.get("note", "")
    )


@cache
def gpus() -> Mapping[str, Gpu]:
    """The shipped GPUs by name, smallest first."""
    table = tomllib.loads((HERE / "gpus.toml").read_text(encoding="utf-8"))["gpus"]
    return {each["name"]: gpu_from(each) for each in table}


def gpu_from(entry: Mapping[str, Any]) -> Gpu:
    """A GPU from a table's entry, checked by whoever read it."""
    speed, flops = entry.get("bandwidth_gb_s"), entry.get("tensor_tflops")
    return Gpu(
        entry["name"],
        float(entry["nominal_gb"]),
        int(entry["usable_mib"] * MIB),
        None if speed is None else speed * 1e9,
        None if flops is None else flops * 1e12,
        bool(entry.get("bf16", True)),
        tuple(entry.get("matches", ())),
        entry.get("price"),
        str(entry.get("source", "given in the plan")),
    )


def gpu(name: str) -> Gpu:
    """Raises RagError (`bad_input`) for a name that is not in the table."""
    if name not in gpus():
        known = ", ".join(gpus())
        raise RagError(
            f"the GPU {name[:60]!r} is not known",
            kind="bad_input",
            next_step=f"Known are {known}; others are described in the plan with name, nominal_gb and usable_mib.",
        )
    return gpus()[name]


def model(name: str, folders: bool = True) -> Model:
    """A model by its hub name, or by the path of a folder. Raises RagError (`bad_input`, `not_found`).

    `folders` False refuses paths: for requests of people who may not read this machine's files.
    """
    known = models().get(name)
    if known is not None:
        return known
    looks_local = name.startswith((".", "/", "~")) or (folders and Path(name).expanduser().is_dir())
    if looks_local and folders:
        return in_folder(Path(name).expanduser())
    step = "Give the path of a folder with its config.json, or one of: " if folders else "Choose one of: "
    raise RagError(f"the model {name[:80]!r} is not in the table", kind="not_found", next_step=step + ", ".join(models()) + ".")


# folders


def in_folder(folder: Path) -> Model:
    """The model whose files are in a folder. Raises RagError where its config cannot be read or used."""
    found = described(str(folder), _json(folder / "config.json"), f"{folder.name}/config.json")
    stored = _stored(folder)
    if found.shape.sees and stored is None:
        note = "The vision tower is not counted: its size is not in the config, and the folder has no weight files."
        return replace(found, note=note)
    return replace(found, stored=stored)


def described(name: str, config: Mapping[str, Any], source: str) -> Model:
    """The model that a config describes. Raises RagError (`bad_input`) for a config that cannot be used."""
    shape = from_config(config)
    return Model(name, _kind(shape), shape, shape.quantised.method if shape.quantised else _dtype(config), source)


def folders_in(roots: Sequence[Path]) -> tuple[Path, ...]:
    """Folders with a config.json one or two steps below these, in order; at most `MOST_FOLDERS`, of those that can be read."""
    found = (folder for root in roots for pattern in ("*/config.json", "*/*/config.json") for folder in _matching(root, pattern))
    return tuple(sorted(set(islice(found, MOST_FOLDERS))))


def _matching(root: Path, pattern: str) -> Iterator[Path]:
    try:
        yield from (each.parent.resolve() for each in root.expanduser().glob(pattern) if each.is_file())
    except OSError:
        return  # a root that is not there, or may not be read


def in_roots(name: str, roots: Sequence[Path]) -> Model | None:
    """The model of a folder inside one of these roots; None for any other name, so that nobody asks what lies elsewhere."""
    if not roots or not name.startswith("/"):
        return None
    folder = Path(name).resolve()
    inside = any(folder.is_relative_to(root.expanduser().resolve()) for root in roots)
    return in_folder(folder) if inside else None


def _kind(shape: Shape) -> str:
    return {"encoder": "reranker" if shape.classes else "embedder", "speech": "speech"}.get(shape.kind, "llm")


def _dtype(config: Mapping[str, Any]) -> str:
    inner = config.get("text_config")
    named = config.get("torch_dtype") or config.get("dtype") or (inner.get("torch_dtype") if isinstance(inner, Mapping) else None)
    return {"float32": "fp32", "float16": "fp16"}.get(str(named), "bf16")


def _json(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise RagError(f"{path} is larger than 64 MiB: it is no model's config", kind="bad_input")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        step = "Give the folder that holds the model's config.json and its weight files."
        raise RagError(f"{path} cannot be read: {type(problem).__name__}", kind="bad_input", next_step=step) from problem
    if not isinstance(found, dict):
        raise RagError(f"{path} holds no JSON object", kind="bad_input")
    return found


def _stored(folder: Path) -> Figure | None:
    """Bytes of the weights in the folder: the index's own sum, else the sizes of the files."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        metadata = _json(index).get("metadata")
        total = metadata.get("total_size") if isinstance(metadata, Mapping) else None
        if isinstance(total, int) and not isinstance(total, bool) and total > 0:
            return Figure(total, f"total_size {total:,}", "model.safetensors.index.json of the folder")
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.gguf")) or sorted(folder.glob("pytorch_model*.bin"))
    total = sum(path.stat().st_size for path in files)
    return Figure(total, " + ".join(path.name for path in files[:8]), "sizes of the folder's weight files") if total else None
