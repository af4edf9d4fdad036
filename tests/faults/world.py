"""What the path calls in the laboratory: models, stores and servers, healthy as they stand here, and shared by a run of causes.

A `World` is one state of it all, ready to be asked. The `Bench` owns the parts and builds healthy worlds by name.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpu_server.caches import CachedEmbedder, CachedReranker
from gpu_server.client import RemoteEmbedder, RemoteReranker
from gpu_server.endpoint import Endpoint
from gpu_server.engine import Engine
from gpu_server.interfaces import Embedder, EmbeddingModel
from gpu_server.model_pool import ModelPool
from gpu_server.pooled import PooledEmbedder, PooledReranker
from gpu_server.score_stores import score_store
from gpu_server.starter import StarterEmbedder, StarterReranker
from latency.types import QueryReadings
from rag.chat import OpenAIChat
from rag.query import Clients, Prompts
from rag.store import Store
from rag.trace import Tracing
from rag.types import Answer, Options, PassageRow
from tests.faults import readings
from tests.faults.fakes import NAME, FakeCrossEncoder, SlowStarter, Speed
from tests.faults.servers import QUICK, FakeVllm, Pace, Proxy, milvus_server, rerank_server
from tests.gpu_server.serving import on_thread

CORPUS = Path(__file__).parents[2] / "samples" / "field-guide"
PASSAGES = 600
EMBEDDED = 60  # the first passages have real vectors, the rest random ones: they only fill
LONG_PASSAGES = 20
LONG_CHARACTERS = 5_200
UNFLUSHED_ROWS = 2_500
COLLECTION = "passages"
QUESTIONS = (
    "Why is the first rerank after a restart slow?",
    "What makes a search through a tunnel slow?",
    "Why is the GPU idle while a query is slow?",
    "How long does the embedder take to load on the first question?",
    "Why are models recreated for each request?",
)
OPTIONS = Options(hyde="off", candidates=40, keep=6, caches="bypass")
PROMPTS = Prompts(
    "Answer from the passages.\n{passages}\nQuestion: {question}",
    "Answer in one paragraph.\n{question}",
    max_tokens=64,
    timeout=20.0,
)

Machine = Callable[[QueryReadings, Answer], QueryReadings]


@dataclass(frozen=True)
class World:
    """Everything a query needs, and what is to be read beside it. `machines` change a calm machine's readings, in turn."""

    clients: Clients
    options: Options = OPTIONS
    questions: Sequence[str] = QUESTIONS
    machines: tuple[Machine, ...] = ()
    llm: FakeVllm | None = None
    asked: Iterator[int] = field(default_factory=itertools.count)

    def question(self) -> str:
        return self.questions[next(self.asked) % len(self.questions)]

    def readings(self, answer: Answer) -> QueryReadings:
        found = readings.calm(answer)
        for machine in self.machines:
            found = machine(found, answer)
        return found

    def on(self, *machines: Machine) -> World:
        """The same on a machine in trouble."""
        return replace(self, machines=self.machines + machines)

    def with_clients(self, **changes: object) -> World:
        return replace(self, clients=replace(self.clients, **changes))  # type: ignore[arg-type]

    def with_options(self, **changes: object) -> World:
        return replace(self, options=replace(self.options, **changes))  # type: ignore[arg-type]


class Bench:
    """The laboratory's parts, each built when it is first wanted. A context: leaving it ends every server and store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open = ExitStack()
        self.rerank_speed = Speed(per_text=QUICK)
        self.llm = self._open.enter_context(FakeVllm())
        self._lines: dict[float, str] = {}
        self._far: dict[float, Store] = {}
        self._far_worlds: dict[float, World] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    # 1) models

    @cached_property
    def starter(self) -> EmbeddingModel:
        """The real starter model, loaded once."""
        return StarterEmbedder("cpu")

    @cached_property
    def pool(self) -> ModelPool:
        return self.new_pool()

    def new_pool(self) -> ModelPool:
        """A pool that is stopped with the bench."""
        pool = ModelPool()
        self._open.callback(pool.stop, 1.0)
        return pool

    @cached_property
    def embedder(self) -> PooledEmbedder:
        embedder = self.pool.add_embedder("starter", lambda: self.starter)
        embedder.prove()
        return embedder

    def slow_embedder(self, speed: Speed) -> PooledEmbedder:
        """The starter's vectors at another speed, in a pool of its own, warm."""
        embedder = self.new_pool().add_embedder("starter", lambda: SlowStarter(speed, self.starter))
        embedder.prove()
        return embedder

    def slow_reranker(self, speed: Speed) -> PooledReranker:
        """The fake cross-encoder at another speed, in a pool of its own, warm."""
        reranker = self.new_pool().add_reranker(NAME, lambda: FakeCrossEncoder(speed))
        reranker.prove()
        return reranker

    @cached_property
    def reranker(self) -> PooledReranker:
        reranker = self.pool.add_reranker(NAME, lambda: FakeCrossEncoder(self.rerank_speed))
        reranker.prove()
        return reranker

    def new_chat(self, llm: FakeVllm) -> OpenAIChat:
        chat = OpenAIChat(llm.address, None, None, 20.0, retries=2)
        self._open.callback(chat.close)
        chat.model()
        return chat

    # 2) stores

    @cached_property
    def store(self) -> Store:
        """Milvus Lite in this process, with three collections: passages, long passages, and rows that were never flushed."""
        store = Store(uri=None, data_dir=self.folder / "lite", collection=COLLECTION)
        self._open.callback(store.close)
        fill(store, self.embedder, texts(PASSAGES), EMBEDDED)
        return store

    @cached_property
    def long(self) -> str:
        """The collection of long passages: eight of them are 10,000 tokens."""
        parts = texts(PASSAGES)
        joined = [" ".join(parts[(number * 7 + step) % len(parts)] for step in range(40)) for number in range(LONG_PASSAGES)]
        fill(self.store, self.embedder, [text[:LONG_CHARACTERS] for text in joined], 0, "long")
        return "long"

    @cached_property
    def flushed(self) -> str:
        fill(self.store, self.embedder, many(UNFLUSHED_ROWS), 0, "flushed")
        return "flushed"

    @cached_property
    def unflushed(self) -> str:
        fill(self.store, self.embedder, many(UNFLUSHED_ROWS), 0, "unflushed", flush=False)
        return "unflushed"

    @cached_property
    def milvus(self) -> str:
        """The address of a Milvus server that holds the passages."""
        address = self._open.enter_context(milvus_server(self.folder / "server"))
        store = Store(uri=address, data_dir=self.folder, collection=COLLECTION)
        fill(store, self.embedder, texts(PASSAGES), EMBEDDED)
        store.close()
        return address

    def milvus_through(self, round_trip: float) -> str:
        """The address of that server, so far away."""
        if round_trip not in self._lines:
            self._lines[round_trip] = self._open.enter_context(Proxy(self.milvus, round_trip / 2)).address
        return self._lines[round_trip]

    def far_store(self, round_trip: float) -> Store:
        """A store on that server, so far away; connected and open."""
        if round_trip not in self._far:
            store = Store(uri=self.milvus_through(round_trip), data_dir=self.folder, collection=COLLECTION, timeout=20.0)
            self._open.callback(store.close)
            store.use(self.embedder.info)
            self._far[round_trip] = store
        return self._far[round_trip]

    # 3) servers of models

    @cached_property
    def served_pool(self) -> ModelPool:
        return self.new_pool()

    @cached_property
    def served_reranker(self) -> PooledReranker:
        """The reranker of the GPU server, without its cache."""
        return self.served_pool.add_reranker(NAME, lambda: FakeCrossEncoder(Speed("cpu", per_text=QUICK)))

    @cached_property
    def gpu_server(self) -> str:
        """The address of our GPU server's app with the starter embedder and the fake cross-encoder."""
        pool = self.served_pool
        embedder = CachedEmbedder(pool.add_embedder("starter", lambda: SlowStarter(Speed("cpu"), self.starter)))
        reranker = CachedReranker(self.served_reranker, score_store(None))
        served = self._open.enter_context(on_thread(Engine(pool, embedder, reranker)))
        served.wait_healthy()
        return served.address

    def remote_embedder(self, address: str) -> RemoteEmbedder:
        embedder = RemoteEmbedder(Endpoint(address, timeout=20.0), dialect="native")
        self._open.callback(embedder.server.close)
        embedder.embed(["warm"], "query")
        return embedder

    def remote_reranker(self, address: str, timeout: float = 20.0) -> RemoteReranker:
        reranker = RemoteReranker(Endpoint(address, timeout=timeout), dialect="native")
        self._open.callback(reranker.server.close)
        reranker.server.served(None)  # what stands there is asked once
        reranker.server.transport.round_trip()
        return reranker

    # 4) healthy worlds

    @cached_property
    def local(self) -> World:
        """Everything near: starter embedder, fake cross-encoder on a GPU that is none, Milvus Lite, a quick language model."""
        clients = Clients(
            self.embedder, self.reranker, self.new_chat(self.llm), self.store, Tracing(), PROMPTS, {"version": "laboratory"}
        )
        return World(clients, llm=self.llm)

    @cached_property
    def starter_only(self) -> World:
        """The starter's blend in place of a cross-encoder, as a fresh installation has it."""
        reranker = self.new_pool().add_reranker("starter", StarterReranker, uses_route_scores=True)
        reranker.prove()
        return self.local.with_clients(reranker=reranker)

    def far_world(self, round_trip: float) -> World:
        """The passages in a Milvus server so far away, its connection open."""
        if round_trip not in self._far_worlds:
            self._far_worlds[round_trip] = self.starter_only.with_clients(store=self.far_store(round_trip))
        return self._far_worlds[round_trip]

    @cached_property
    def flushed_world(self) -> World:
        """Searches in a larger collection, flushed as it should be."""
        return self.starter_only.with_options(collection=self.flushed)

    @cached_property
    def long_world(self) -> World:
        """Long passages, of which a budget of 1,200 tokens lets one into the prompt."""
        prompts = replace(self.local.clients.prompts, context_tokens=1_200)
        return self.local.with_options(collection=self.long, keep=8).with_clients(prompts=prompts)

    @cached_property
    def foreign_reranker(self) -> World:
        """A rerank server that is not ours and reports no times."""
        address = self._open.enter_context(rerank_server(0.0))
        return self.local.with_clients(reranker=self.remote_reranker(address))

    @cached_property
    def slow_writer(self) -> World:
        """A language model of 60 tokens a second that says nothing but the question: such a hypothesis
        leaves what is found for the first three questions as it is."""
        llm = self._open.enter_context(FakeVllm(Pace(per_token=0.016, echoes=True)))
        return replace(self.local.with_clients(chat=self.new_chat(llm)), llm=llm, questions=QUESTIONS[:3])

    @cached_property
    def gpu_embedder(self) -> World:
        """An embedder that says it runs on a GPU."""
        return self.local.with_clients(embedder=self.slow_embedder(Speed("cuda:0")))

    @cached_property
    def served_models(self) -> World:
        """Embedder and reranker behind our GPU server, through a line that `model_line` makes longer."""
        address = self.model_line.address
        return self.local.with_clients(embedder=self.remote_embedder(address), reranker=self.remote_reranker(address))

    @cached_property
    def model_line(self) -> Proxy:
        return self._open.enter_context(Proxy(self.gpu_server))


def texts(count: int) -> list[str]:
    """Paragraphs of the sample documents, the English ones on symptoms first, repeated with a number until there are enough."""
    folders = [CORPUS / "symptoms", CORPUS / "milvus", CORPUS / "serving", CORPUS / "gpu", CORPUS / "models"]
    files = [path for folder in folders for path in sorted(folder.glob("*.md"))]
    parts = [part.strip() for path in files for part in path.read_text().split("\n\n") if len(part) > 120]
    return [f"{parts[number % len(parts)]} ({number})" for number in range(count)]


def many(count: int) -> list[str]:
    return [
        f"Line {number}: pump {number % 89} ran slow after a restart, valve {number % 37} was idle." for number in range(count)
    ]


def fill(
    store: Store, embedder: Embedder, passages: Sequence[str], embedded: int, base: str | None = None, *, flush: bool = True
) -> None:
    """Write the passages: the first `embedded` with their vectors, the others with random ones."""
    name = store.use(embedder.info, base)
    rows = [PassageRow(f"p{n}", f"d{n}", "v", 0, text, "Field guide", "guide.md", None, "en") for n, text in enumerate(passages)]
    vectors = random_vectors(len(rows), embedder.info.dimension or 0)
    if embedded:
        vectors[:embedded] = embedder.embed([row.indexed_text for row in rows[:embedded]]).dense
    store.write_rows(name, rows, vectors, None)
    if flush:
        store.flush(name)


def random_vectors(count: int, dimension: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(7).normal(size=(count, dimension)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)
