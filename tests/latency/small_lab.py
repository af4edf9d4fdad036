"""A Lab without settings and pages: the real path, the starter models, Milvus Lite, real traces and readings files."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from collectors.sweep import Sweep
from gpu_server.model_pool import ModelPool
from gpu_server.starter import StarterEmbedder, StarterReranker
from jobs import Job, Jobs
from latency.components.rows import Parts, StorePlace
from latency.lab import Variant
from latency.readings.store import ReadingStore
from latency.types import Baseline
from models import ModelStatus
from rag.errors import RagError
from rag.query import Clients, Control, Prompts, answer
from rag.store import Store
from rag.trace import Tracing
from rag.trace_store import TraceStore
from rag.types import Answer, Event, Options, PassageRow

TEXTS = {
    "kernels": "Kernels are compiled on first use, and so the first rerank after a restart is slow.",
    "warm": "Warm the reranker up at start, and no question waits for it.",
    "tunnel": "Searching Milvus through a tunnel adds a round trip to every query.",
    "disk": "Weights are read from the disk once and lie in memory afterwards.",
}


def fill(store: Store, embedder: Any) -> str:
    """The four documents, one passage each."""
    name = store.use(embedder.info)
    rows = [PassageRow(key, key, "v", 0, text, f"About {key}", f"{key}.md") for key, text in TEXTS.items()]
    vectors = embedder.embed([row.indexed_text for row in rows]).dense
    for index, row in enumerate(rows):
        store.write_document(name, [row], vectors[index : index + 1], None, "2026-01-01T00:00:00Z")
    store.flush(name)
    return name


class SmallLab:
    """`made` gives the clients of a variant from those in force and the changes asked for; `entered` and `left` count them."""

    def __init__(self, folder: Path, *, uri: str | None = None, **clients: Any) -> None:
        self.folder, self.uri = folder, uri
        self.pool = ModelPool()
        embedder = self.pool.add_embedder("starter", StarterEmbedder)
        reranker = self.pool.add_reranker("starter", StarterReranker, uses_route_scores=True)
        self.store = Store(uri=uri, data_dir=folder, collection="passages")
        fill(self.store, embedder)
        self.traces = TraceStore(folder / "traces.db")
        self.readings = ReadingStore(folder / "readings.db")
        self.jobs = Jobs(limits={"query": 4, "experiment": 1})
        self.sweep = Sweep()
        defaults: dict[str, Any] = {
            "embedder": embedder,
            "reranker": reranker,
            "chat": None,
            "store": self.store,
            "tracing": Tracing(),
            "prompts": Prompts("{passages}{question}", "{question}", timeout=30.0),
            "fingerprint": {"version": "test", "settings": "one"},
        }
        self.in_force = Clients(**{**defaults, **clients})
        self.made: Callable[[Clients, Mapping[str, Any]], Clients] = lambda clients, _: clients
        self.entered, self.left = 0, 0
        self.asked: list[tuple[str, Options, str, Variant | None]] = []

    @property
    def chat(self) -> Any:
        return self.in_force.chat

    def clients(self) -> Clients:
        return self.in_force

    def default_options(self) -> Options:
        return Options(hyde="off", candidates=4, keep=2)

    def submit_query(
        self,
        question: str,
        options: Options | None = None,
        *,
        remote_parent: str | None = None,
        origin: str = "ask",
        variant: Variant | None = None,
    ) -> Job[Answer]:
        wanted = options or self.default_options()
        if wanted.candidates < 1:
            raise RagError("candidates is below 1", kind="bad_input", next_step="Choose 1 to 1000.")
        self.asked.append((question, wanted, origin, variant))
        clients = variant.clients if variant else self.in_force

        def work(job: Job[Answer]) -> Generator[Event, None, Answer]:
            done = yield from answer(question, wanted, clients, Control(job.cancelled))
            named = replace(done.answer, origin=origin)
            self.traces.save(named, done.spans)
            return named

        return self.jobs.submit("query", question, work)

    @contextmanager
    def variant(self, changes: Mapping[str, Any]) -> Iterator[Variant]:
        self.entered += 1
        try:
            yield Variant(changes, self.made(self.in_force, changes))
        finally:
            self.left += 1

    def baseline(self, *, before: float | None = None) -> Baseline:
        return Baseline()

    def parts(self) -> Parts:
        return Parts(store=StorePlace(self.uri, self.folder, "passages"), models=self._models, fresh_pool=self._fresh_pool)

    def _models(self) -> list[ModelStatus]:
        names = {each.name for each in fields(ModelStatus)} - {"device"}
        known = [({name: getattr(slot, name) for name in names if hasattr(slot, name)}, slot.info) for slot in self.pool.status()]
        return [ModelStatus(**values, device=info.device if info else None) for values, info in known]

    def _fresh_pool(self) -> ModelPool:
        pool = ModelPool()
        pool.add_embedder("starter", StarterEmbedder)
        pool.add_reranker("starter", StarterReranker, uses_route_scores=True)
        return pool

    def ask(self, question: str, options: Options | None = None) -> Answer:
        """One stored query."""
        job = self.submit_query(question, options)
        assert job.wait(60)
        assert job.result is not None
        return job.result

    def stop(self) -> None:
        self.jobs.stop()
        self.store.close()
        self.pool.stop()
        self.traces.close()
        self.readings.close()
