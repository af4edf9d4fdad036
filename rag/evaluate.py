"""Retrieval quality on a labelled set in BEIR layout: nDCG@10, MRR@10 and recall@100 by stage, and the time of each.

One document is one passage. Uses a temporary store of its own, never the user's.
"""

from __future__ import annotations

import csv
import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from gpu_server.interfaces import Embedder, RerankCandidate, Reranker
from rag.errors import RagError
from rag.routes import fuse
from rag.store import Store
from rag.types import PassageRow

Judgements = Mapping[str, Mapping[str, int]]
Report = Callable[[str], None]
DEPTH = 100
EVALUATED = ("dense", "sparse", "fused", "rerank")


@dataclass(frozen=True, slots=True)
class Dataset:
    """Documents as (id, title, text), queries by id, and relevance by query id and document id (0 is not relevant)."""

    documents: tuple[tuple[str, str, str], ...]
    queries: Mapping[str, str]
    judgements: Judgements


def ndcg_at(ranked: Sequence[str], relevant: Mapping[str, int], depth: int = 10) -> float:
    """Normalised discounted cumulative gain with linear gains, as trec_eval and BEIR compute it (Järvelin & Kekäläinen 2002)."""
    gains = [relevant.get(key, 0) for key in ranked[:depth]]
    ideal = sorted(relevant.values(), reverse=True)[:depth]
    best = _dcg(ideal)
    return _dcg(gains) / best if best else 0.0


def _dcg(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))


def mrr_at(ranked: Sequence[str], relevant: Mapping[str, int], depth: int = 10) -> float:
    """One over the rank of the first relevant document, 0 when none is among the first `depth`."""
    return next((1 / rank for rank, key in enumerate(ranked[:depth], 1) if relevant.get(key, 0) > 0), 0.0)


def recall_at(ranked: Sequence[str], relevant: Mapping[str, int], depth: int = 100) -> float:
    """Share of the relevant documents among the first `depth`."""
    wanted = {key for key, grade in relevant.items() if grade > 0}
    return len(wanted.intersection(ranked[:depth])) / len(wanted) if wanted else 0.0


def read(folder: Path) -> Dataset:
    """Read `corpus.jsonl`, `queries.jsonl` and `qrels/test.tsv`. Raises RagError that names file and line."""
    documents = tuple(
        (_text(row, "_id", where), str(row.get("title") or ""), str(row.get("text") or ""))
        for where, row in _lines(folder / "corpus.jsonl")
    )
    queries = {_text(row, "_id", where): _text(row, "text", where) for where, row in _lines(folder / "queries.jsonl")}
    judgements: defaultdict[str, dict[str, int]] = defaultdict(dict)
    path = folder / "qrels" / "test.tsv"
    with _opened(path) as handle:
        for number, row in enumerate(csv.reader(handle, delimiter="\t"), 1):
            if number == 1 and row and not row[-1].lstrip("-").isdigit():
                continue
            if len(row) != 3 or not row[2].lstrip("-").isdigit():
                raise _bad(f"{path}:{number}", "expected query id, document id and a whole number, separated by tabs")
            judgements[row[0]][row[1]] = int(row[2])
    judged = {key: queries[key] for key in judgements if key in queries and any(grade > 0 for grade in judgements[key].values())}
    if not documents or not judged:
        raise _bad(str(folder), "no documents, or no query with a relevant document")
    return Dataset(documents, judged, judgements)


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with _opened(path) as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as problem:
                raise _bad(f"{path}:{number}", f"no JSON: {problem}") from None
            if not isinstance(row, dict):
                raise _bad(f"{path}:{number}", "expected a JSON object")
            yield f"{path}:{number}", row


def _opened(path: Path) -> Any:
    try:
        return path.open(encoding="utf-8", newline="")
    except OSError as problem:
        raise RagError(
            f"cannot read {path}: {problem.strerror}",
            kind="not_found",
            next_step="A folder in BEIR layout has corpus.jsonl, queries.jsonl and qrels/test.tsv.",
        ) from None


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise _bad(where, f"{key!r} is missing or no text")
    return value


def _bad(where: str, message: str) -> RagError:
    return RagError(f"{where}: {message}", kind="bad_input", next_step="Correct the file; the layout is BEIR's.")


def evaluate(
    dataset: Dataset, embedder: Embedder, reranker: Reranker, *, candidates: int = 40, report: Report = lambda _: None
) -> dict[str, Any]:
    """Measure the path's retrieval as `answer()` runs it: `candidates` from the fusion go into the reranker.

    For recall@100 the routes are read 100 deep; the reranked order goes on with the fused one behind its candidates.
    Returns the shape of `rag evaluate --json`; `seconds` are means per query.
    """
    with tempfile.TemporaryDirectory(prefix="ragdeck-evaluate-") as folder:
        store = Store(uri=None, data_dir=Path(folder), collection="evaluate", timeout=60.0)
        try:
            name = store.use(embedder.info)
            _fill(store, name, dataset, embedder, report)
            return _measure(store, name, dataset, embedder, reranker, candidates, report)
        finally:
            store.close()


def _fill(store: Store, name: str, dataset: Dataset, embedder: Embedder, report: Report) -> None:
    rows = [
        PassageRow(f"{index}", f"{index}", "evaluate", 0, text or title or "-", title, key)
        for index, (key, title, text) in enumerate(dataset.documents)
    ]
    for start in range(0, len(rows), 64):
        batch = rows[start : start + 64]
        embeddings = embedder.embed([row.indexed_text for row in batch], "passage")
        store.write_rows(name, batch, embeddings.dense, embeddings.sparse)
        report(f"embedded {start + len(batch)} of {len(rows)} documents")
    store.flush(name)


def _measure(
    store: Store, name: str, dataset: Dataset, embedder: Embedder, reranker: Reranker, candidates: int, report: Report
) -> dict[str, Any]:
    ranked: dict[str, list[list[str]]] = {stage: [] for stage in EVALUATED}
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    names = [key for key, _, _ in dataset.documents]
    complete = reranker.uses_route_scores
    for number, text in enumerate(dataset.queries.values(), 1):
        started = time.perf_counter()
        embeddings = embedder.embed([text], "query")
        embedded = time.perf_counter()
        sparse = embeddings.sparse[0] if embeddings.sparse else None
        found = store.search(name, embeddings.dense[0], text, DEPTH, sparse=sparse, complete=complete)
        head = fuse(found.cut(candidates), candidates)
        searched = time.perf_counter()
        scores = reranker.score(text, [RerankCandidate(p.text, p.scores["dense"], p.scores["sparse"]) for p in head])
        order = sorted(range(len(head)), key=lambda index: (-float(scores.values[index]), index))
        ended = time.perf_counter()
        fused = fuse(found, DEPTH)
        reranked = [head[index].id for index in order]
        ids = {
            "dense": [hit.id for hit in found.dense],
            "sparse": [hit.id for hit in found.sparse],
            "fused": [passage.id for passage in fused],
            "rerank": reranked + [passage.id for passage in fused if passage.id not in set(reranked)],
        }
        for stage in EVALUATED:
            ranked[stage].append([names[int(key)] for key in ids[stage]])
        for stage, spent in (("embed", embedded - started), ("search", searched - embedded), ("rerank", ended - searched)):
            seconds[stage].append(spent)
        if number % 25 == 0:
            report(f"searched {number} of {len(dataset.queries)} queries")
    judged = [dataset.judgements[key] for key in dataset.queries]
    return {
        "stages": {stage: _scores(ranked[stage], judged) for stage in EVALUATED},
        "seconds": {stage: round(fmean(spent), 6) for stage, spent in seconds.items()},
        "queries": len(dataset.queries),
        "documents": len(dataset.documents),
        "candidates": candidates,
        "models": {"embedder": embedder.info.name, "reranker": reranker.info.name},
    }


def _scores(ranked: Sequence[Sequence[str]], judged: Sequence[Mapping[str, int]]) -> dict[str, float]:
    pairs = list(zip(ranked, judged, strict=True))
    return {
        "ndcg@10": round(fmean(ndcg_at(order, relevant) for order, relevant in pairs), 4),
        "mrr@10": round(fmean(mrr_at(order, relevant) for order, relevant in pairs), 4),
        "recall@100": round(fmean(recall_at(order, relevant) for order, relevant in pairs), 4),
    }
