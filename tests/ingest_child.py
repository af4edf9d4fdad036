"""A process that ingests a folder as the dashboard does, to be killed at any moment: real store, real ledger, a fake embedder.

    python -m tests.ingest_child DATA FOLDER

Goes on with what an earlier process left unfinished; where there is nothing, starts. Prints `reading` once files are read, and
at the end one JSON line: the store's rows, its documents, the jobs of the ledger and the outcomes of their files.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpu_server.interfaces import Embeddings, ModelInfo, TextKind, Timing
from jobs import Jobs
from library import Library, open_store
from settings import Settings, load

SECONDS_A_TEXT = 0.0005


class FakeEmbedder:
    """Vector = (characters, words, 1, 0); a token is a word. Computes `seconds_a_text` for each; `away` is raised if set."""

    def __init__(self, seconds_a_text: float = 0.0) -> None:
        self.info = ModelInfo("fake", "embedder", "fake-4", "cpu", "fp32", dimension=4)
        self.seconds_a_text = seconds_a_text
        self.away: Exception | None = None
        self.texts: list[str] = []
        self.may_run = threading.Event()
        self.may_run.set()

    def embed(self, texts: Sequence[str], kind: TextKind = "passage", **_: Any) -> Embeddings:
        self.may_run.wait(30)
        if self.away is not None:
            raise self.away
        started = time.perf_counter()
        time.sleep(self.seconds_a_text * len(texts))
        self.texts.extend(texts)
        dense = np.array([[len(text), self.count_tokens(text), 1, 0] for text in texts], dtype=np.float32)
        tokens = sum(map(self.count_tokens, texts))
        return Embeddings(dense, None, Timing(compute=time.perf_counter() - started), tokens=tokens)

    def count_tokens(self, text: str) -> int:
        return len(text.split())


def settings_in(data: Path, **ingest: Any) -> Settings:
    """Settings with the data folder there and no samples."""
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in {"sample_corpus": False, **ingest}.items())
    data.mkdir(parents=True, exist_ok=True)
    (data / "dashboard.toml").write_text(f"[ingest]\n{lines}", encoding="utf-8")
    return load({"RAGDECK_DATA": str(data), "RAGDECK_CONFIG": str(data / "dashboard.toml")}, data)


class Process:
    """What the dashboard holds of ingestion: started as it starts it, stopped as it stops it."""

    def __init__(self, data: Path, embedder: FakeEmbedder | None = None, **ingest: Any) -> None:
        self.settings = settings_in(data, **ingest)
        self.embedder = embedder or FakeEmbedder()
        self.jobs = Jobs()
        self.store = open_store(self.settings, None)
        self.library = Library(self.settings, self.store, self.embedder, self.jobs, data / "no-samples")  # type: ignore[arg-type]

    def start(self) -> Process:
        self.library.prepare()
        assert self.library.problem is None, self.library.problem
        return self

    def stop(self) -> None:
        self.library.stop()
        assert self.jobs.stop(20)
        self.library.close()
        self.store.close()

    def rows(self) -> list[tuple[str, str, str, int]]:
        """(id, document, text, position) of every passage, sorted."""
        name = self.library.collection()
        rows = []
        for document in self.store.documents(name):
            for row in self.store.passages(name, document):
                rows.append((str(row["id"]), document, str(row["text"]), int(row["position"])))
        return sorted(rows)

    def count(self) -> int:
        return self.store.count(self.library.collection())


def main(data: Path, folder: Path) -> None:
    process = Process(data, FakeEmbedder(SECONDS_A_TEXT)).start()
    library = process.library
    job = next(iter(process.jobs.recent("ingest")), None)
    if job is None and not library.ingestions.all():
        job = library.submit([folder])
    if job is not None:
        for event in job.follow():
            if event is not None and event["type"] == "ingest_started":
                print("reading", flush=True)
    known = process.store.documents(library.collection())
    documents = sorted((item.document_id, item.content_hash, item.source, item.passages) for item in known.values())
    jobs = [(item.id, item.state, dict(item.counts)) for item in library.ingestions.all()]
    result = {"rows": process.rows(), "count": process.count(), "documents": documents, "jobs": jobs}
    process.stop()
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
