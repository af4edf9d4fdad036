"""One embedder everywhere: the one in force, each server that embeds, and the collection that is searched.

Sameness is shown by what comes back (dimension, and the vector of one sentence), not by names alone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collectors import probe_samples
from collectors.attempt import Attempt
from collectors.services import Service, ServiceError
from deploy.validation.types import Check, Item, Verdict, failed, passed, skipped, warning
from deploy.validation.world import World
from gpu_server.errors import EngineError
from gpu_server.interfaces import Embeddings, ModelInfo
from rag.errors import RagError

SENTENCE = probe_samples.SENTENCES[0]
SAME_COSINE = 0.99  # bf16 against fp32 is 0.9999, int8 about 0.995; other weights are far below
EMBEDDING_KINDS = ("gpu_server", "openai-embeddings")


def dimensions(world: World) -> Verdict:
    """The length of the vectors of the embedder in force, of each embedding server and of the collection in use."""
    found, items = _told(world)
    if not found:
        return Verdict(tuple(items), "" if items else "no embedder can be asked")
    if len(found) == 1:
        name, dimension = next(iter(found.items()))
        items.append(skipped(name, f"{dimension} dimensions, and nothing else is there to compare them with"))
        return Verdict(tuple(items))
    wanted = _of_the_path(found)
    for name, dimension in found.items():
        items.append(_compared(name, dimension, *wanted))
    return Verdict(tuple(items), measures={f"{name}.dimension": float(value) for name, value in found.items()})


def _compared(name: str, dimension: int, reference: str, wanted: int) -> Item:
    if dimension == wanted:
        return passed(name, f"{dimension} dimensions")
    cause = "Another embedding model stands there than the one that the rest was built with."
    cure = (
        "Choose the embedder that filled the collection (models.embedder, embeddings.model), or ingest again with this one: "
        "`python -m rag ingest --reset`."
    )
    return failed(name, f"{dimension} dimensions, {reference} has {wanted}", cause, cure)


def _of_the_path(found: Mapping[str, int]) -> tuple[str, int]:
    name = "embedder in force" if "embedder in force" in found else next(iter(found))
    return name, found[name]


def _told(world: World) -> tuple[dict[str, int], list[Item]]:
    """(dimension by who told it, items of those that could not)."""
    found: dict[str, int] = {}
    items: list[Item] = []
    try:
        made = embedded(world)
        if made is not None:
            found["embedder in force"] = int(made.dense.shape[1])
    except (RagError, EngineError) as problem:
        items.append(failed("embedder in force", problem.message, "It does not embed.", problem.next_step))
    for service, result in world.probes("functional"):
        if service.kind in EMBEDDING_KINDS and "dimension" in result.measures:
            found[service.name] = int(result.measures["dimension"])
    try:
        for each in world.process().collections():
            if each.active and each.dimension is not None:
                found[f"collection {each.name}"] = each.dimension
    except RagError as problem:
        items.append(skipped("collection", f"the store cannot be read: {problem.message}"))
    return found, items


def embedded(world: World) -> Embeddings | None:
    """The sentence by the embedder in force, past every cache; None where that is inside another process."""
    embedder = world.process().embedder
    return None if embedder is None else embedder.embed([SENTENCE], "passage", caches="bypass")


def identities(world: World) -> Verdict:
    """The same sentence must get the same vector everywhere, and the collection must carry the embedder's identity."""
    items: list[Item] = []
    embedder = world.process().embedder
    if embedder is None:
        where = world.process().where
        return Verdict(reason=f"the embedder is inside another process ({where}): stop it, or validate on its page Readiness")
    own = embedded(world)
    assert own is not None
    for service in world.reached():
        if service.kind in EMBEDDING_KINDS:
            items.append(_same_vector(service, own.dense[0], service in world.subject.path_services))
    items += _collections(world, embedder.info)
    return Verdict(tuple(items), "" if items else "there is nothing beside the embedder in force to compare it with")


def _same_vector(service: Service, own: NDArray[np.float32], on_path: bool) -> Item:
    try:
        other = vector(service, SENTENCE)
    except ServiceError as problem:
        return skipped(service.name, f"no vector came: {service.said(problem.message)}")
    if other.shape != own.shape:
        return skipped(service.name, "its vectors have another length: see the dimensions")
    cosine = float(own @ other / (np.linalg.norm(own) * np.linalg.norm(other)))
    if cosine >= SAME_COSINE:
        return passed(service.name, f"the same vector as the embedder in force: cosine {cosine:.4f}")
    cause = "Other weights, pooling or prompts under the same dimension: search would find at random."
    cure = "Let the server and the settings name one model (models.embedder, embeddings.model) and the same prompts."
    return (failed if on_path else warning)(service.name, f"cosine {cosine:.3f} to the embedder in force", cause, cure)


def vector(service: Service, text: str) -> NDArray[np.float32]:
    """A service's vector of one text, as it gives it, float32 [d]. Raises ServiceError."""
    attempt = Attempt(service, time.monotonic() + service.timeout_seconds)
    data: Any
    if service.kind == "gpu_server":
        data = attempt.post(attempt.root("/embed"), {"texts": [text], "return_dense": True, "return_sparse": False})
        rows = data.get("dense_embeddings") if isinstance(data, Mapping) else None
    else:
        body = {"input": [text], "encoding_format": "float", **({"model": service.model} if service.model else {})}
        if service.model is None:
            listed = attempt.get(attempt.versioned("/models"))
            body["model"] = listed["data"][0]["id"] if isinstance(listed, Mapping) and listed.get("data") else ""
        data = attempt.post(attempt.versioned("/embeddings"), body)
        listed = data.get("data") if isinstance(data, Mapping) else None
        rows = [row.get("embedding") for row in listed] if isinstance(listed, list) else None
    try:
        found = np.array(rows, dtype=np.float32)
    except (TypeError, ValueError):
        found = np.empty(0, np.float32)
    if found.ndim != 2 or not found.size or not np.isfinite(found).all() or not found[0].any():
        raise ServiceError("bad_answer", "the answer holds no vector")
    row: NDArray[np.float32] = found[0]
    return row


def _collections(world: World, info: ModelInfo) -> list[Item]:
    try:
        known = world.process().collections()
    except RagError as problem:
        return [skipped("collection", f"the store cannot be read: {problem.message}")]
    active = next((each for each in known if each.active), None)
    wanted = re.sub(r"[^A-Za-z0-9]+", "_", info.identity)
    if active is not None and active.read_only:
        return [skipped(active.name, "an existing collection does not say which embedder filled it")]
    if active is not None and active.embedder is not None and active.embedder.startswith(wanted):
        return [passed(active.name, f"filled by {info.name}")]
    others = [each.name for each in known if each.entities and each.embedder and not each.name.startswith("answers")]
    if active is None and others:
        cause = "The passages were embedded by another model than the one in force, which sees an empty collection."
        cure = "Set the embedder that filled it, or re-embed it on the page Knowledge (or `python -m rag` store commands)."
        return [failed("collection", f"none of {info.identity}; there are {', '.join(others[:5])}", cause, cure)]
    return [skipped("collection", "nothing has been ingested with this embedder yet")]


CHECKS = (
    Check("M-1", "Models", "One embedder everywhere", "Documents and questions are embedded by the same weights.", identities),
    Check(
        "M-2", "Models", "One dimension everywhere", "Embedder, servers and collection agree on the vectors' length.", dimensions
    ),
)
