"""R0's incidents 2, 3 and 4: remote models that are not what the local ones are. Asked over HTTP, and seen in signatures."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from collectors import probe_samples as samples
from collectors.attempt import Attempt
from collectors.services import Service, ServiceError
from deploy.validation.types import Check, Item, Verdict, failed, passed, skipped, warning
from deploy.validation.world import World
from gpu_server.errors import EngineError
from gpu_server.interfaces import Embedder, Reranker
from rag.errors import RagError

SCORE_TOLERANCE = 1e-3
DENSE, SPARSE = "dense_embeddings", "sparse_embeddings"
Shape = Mapping[str, tuple[str, ...]]


# 1) R0-2: the interface


def one_interface(world: World) -> Verdict:
    """R0-2: what the path calls is there, by name and parameters, on the models in force; and one query embedding works."""
    process = world.process()
    items: list[Item] = []
    for name, model, kind in (("embedder", process.embedder, Embedder), ("reranker", process.reranker, Reranker)):
        if model is not None:
            items.append(_of_kind(name, model, kind))
    if process.embedder is not None and items[0].outcome == "passed":
        items.append(_embeds_a_query(process.embedder))
    return Verdict(tuple(items), "" if items else f"the models are inside another process ({process.where})")


def _of_kind(name: str, model: object, kind: type) -> Item:
    lacking = tuple(missing(model, kind))
    if not lacking:
        methods = ", ".join(shape(kind))
        return passed(name, f"{type(model).__name__} has {methods}, as every maker's")
    cause = f"{type(model).__name__} was written for another version of the interface: {'; '.join(lacking)}."
    return failed(
        name, lacking[0], cause, "Bring gpu_server/ and the rest to one version; the interface is gpu_server/interfaces.py."
    )


def missing(model: object, kind: type) -> Iterator[str]:
    """What a model lacks of a protocol: methods, and parameters that callers pass by name."""
    for method, parameters in shape(kind).items():
        found = getattr(type(model), method, None)
        if found is None or not callable(found):
            yield f"it has no method {method}()"
            continue
        known = inspect.signature(found).parameters
        takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values())
        lacking = [each for each in parameters if each not in known]
        if lacking and not takes_any:
            yield f"{method}() takes no {', '.join(lacking)}"


def shape(kind: type) -> Shape:
    """The public methods of a protocol with their parameters."""
    methods = {name: value for name, value in vars(kind).items() if inspect.isfunction(value) and not name.startswith("_")}
    return {
        name: tuple(each for each in inspect.signature(value).parameters if each != "self") for name, value in methods.items()
    }


def _embeds_a_query(embedder: Embedder) -> Item:
    try:
        made = embedder.embed([samples.QUERY], "query", caches="bypass")
    except (RagError, EngineError) as problem:
        return failed("query embedding", problem.message, "The embedder cannot do what each query asks of it.", problem.next_step)
    if embedder.info.learned_sparse and made.sparse is None:
        cause = "The server says that its model makes sparse weights, and sends none: half of the hybrid search is missing."
        return failed("query embedding", "dense alone", cause, "Let the server answer return_sparse, or serve another model.")
    both = "dense and sparse in one call" if made.sparse is not None else "dense; the sparse side is BM25 in the store"
    return passed("query embedding", f"{made.dense.shape[1]} dimensions, {both}")


# 2) R0-3: the keys of the result


def result_keys(world: World) -> Verdict:
    """R0-3: `/embed` of each GPU server answers under the names of the contract."""
    items = [_keys(service) for service in world.reached() if service.kind == "gpu_server"]
    return Verdict(tuple(items), "" if items else "no GPU server of our kind is reached")


def _keys(service: Service) -> Item:
    attempt = Attempt(service, time.monotonic() + service.timeout_seconds)
    body = {"texts": [samples.SENTENCES[0]], "return_dense": True, "return_sparse": True}
    try:
        data = attempt.post(attempt.root("/embed"), body)
    except ServiceError as problem:
        return skipped(service.name, f"/embed was not answered (see E-5): {service.said(problem.message)}")
    if not isinstance(data, Mapping):
        found = f"a JSON {type(data).__name__}"
    elif isinstance(data.get(DENSE), list) and (SPARSE in data):
        return passed(service.name, f"{DENSE} and {SPARSE}")
    else:
        found = service.said(", ".join(sorted(map(str, data))) or "no key at all")
    cause = f"The server speaks another version of the contract: KeyError 'dense' and the like follow. It has {found}."
    cure = f"Bring the server to this version, or rename its results to {DENSE} and {SPARSE} (docs/contracts.md, GPU server)."
    return failed(service.name, f"/embed answers with {found}, not with {DENSE}, {SPARSE}", cause, cure)


# 3) R0-4: the shape of the documents


def document_shapes(world: World) -> Verdict:
    """R0-4: texts and objects with `content` get the same scores from each rerank server."""
    items = [_shapes(service) for service in world.reached() if service.kind in ("gpu_server", "rerank")]
    kept = tuple(item for item in items if item is not None)
    return Verdict(kept, "" if kept else "no reranker is reached over HTTP")


def _shapes(service: Service) -> Item | None:
    told: dict[str, list[float] | ServiceError] = {}
    for name, documents in (
        ("texts", list(samples.PASSAGES)),
        ("objects with content", [{"content": text, "metadata": {}} for text in samples.PASSAGES]),
    ):
        try:
            told[name] = _scores(service, documents)
        except ServiceError as problem:
            told[name] = problem
    refused = {name: problem for name, problem in told.items() if isinstance(problem, ServiceError)}
    if len(refused) == len(told):
        return _all_refused(service, refused["texts"])
    if refused:
        name, refusal = next(iter(refused.items()))
        said = service.said(refusal.message)
        cause = f"The server takes one shape of documents alone; callers that send {name} fail there ({said})."
        cure = "Bring the server to a version that takes both, as ours does; the client here finds out which one it takes."
        ours = name == "texts" and service.kind == "gpu_server"  # that is what our own client sends
        return (failed if ours else warning)(service.name, f"refuses {name}", cause, cure)
    texts, objects = (list(each) for each in told.values() if isinstance(each, list))
    if len(texts) != len(objects) or any(
        not math.isclose(one, other, rel_tol=0, abs_tol=SCORE_TOLERANCE) for one, other in zip(texts, objects, strict=False)
    ):
        cause = "It scores the object's text form (braces and keys) instead of its content."
        return failed(service.name, f"{texts} for texts, {objects} for objects", cause, "Let it score `content` alone.")
    return passed(service.name, "texts and objects with content get the same scores")


def _all_refused(service: Service, problem: ServiceError) -> Item | None:
    if problem.failure in ("not_found", "model") and service.kind == "gpu_server":
        return None  # a GPU server without a reranker
    return skipped(service.name, f"/rerank was not answered (see E-5): {service.said(problem.message)}")


def _scores(service: Service, documents: list[Any]) -> list[float]:
    """Scores by the documents' places. Raises ServiceError."""
    attempt = Attempt(service, time.monotonic() + service.timeout_seconds)
    body: dict[str, Any] = {"query": samples.QUERY, "documents": documents, "top_k": len(documents), "top_n": len(documents)}
    if service.model:
        body["model"] = service.model
    path = service.parts.path
    data = attempt.post(attempt.origin + path if path.endswith("/rerank") else attempt.root("/rerank"), body)
    pairs: list[tuple[Any, Any]] = []
    if isinstance(data, Mapping):
        if isinstance(data.get("rankings"), list) and isinstance(data.get("scores"), list):
            pairs = list(zip(data["rankings"], data["scores"], strict=False))
        elif isinstance(data.get("results"), list):
            pairs = [(row.get("index"), row.get("relevance_score")) for row in data["results"] if isinstance(row, Mapping)]
    by_place = {place: score for place, score in pairs if isinstance(place, int) and isinstance(score, int | float)}
    if sorted(by_place) != list(range(len(documents))):
        raise ServiceError("bad_answer", "the answer does not score each document once")
    return [float(by_place[place]) for place in range(len(documents))]


R0_2 = Check(
    "R0-2",
    "Reported issues",
    "Remote models have the whole interface",
    "No method is missing once a query needs it.",
    one_interface,
)
R0_3 = Check(
    "R0-3", "Reported issues", "Results have the keys of the contract", "No KeyError 'dense' at the first query.", result_keys
)
R0_4 = Check(
    "R0-4",
    "Reported issues",
    "Rerankers take texts and objects",
    "A list of dicts or of texts: both are scored.",
    document_shapes,
)
