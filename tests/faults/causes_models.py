"""Causes in the models: loaded or run for the first time within the request, on the wrong device, far away, queued for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gpu_server.interfaces import RerankCandidate
from gpu_server.pooled import PooledReranker
from latency.types import Case
from tests.faults import readings
from tests.faults.fakes import NAME, FakeCrossEncoder, SlowStarter, Speed
from tests.faults.laboratory import Fault, ask
from tests.faults.servers import QUICK, rerank_server
from tests.faults.world import Bench, World, texts

LOAD_SECONDS = 0.4
CONSTRUCTION_SECONDS = 0.55
WORK_LOADS = (5, 10, 20, 40, 20, 10)
RERANKS_BEFORE = 16


@contextmanager
def embedder_loaded(bench: Bench, world: World) -> Iterator[World]:
    """The real starter model, loaded anew for each request, from a disk that takes its time."""
    speed = Speed("cpu", load=LOAD_SECONDS)
    yield world.with_clients(embedder=bench.new_pool().add_embedder("starter", lambda: SlowStarter(speed)))


@contextmanager
def reranker_loaded(bench: Bench, world: World) -> Iterator[World]:
    speed = Speed(load=LOAD_SECONDS, per_text=QUICK)
    yield world.with_clients(reranker=bench.new_pool().add_reranker(NAME, lambda: FakeCrossEncoder(speed)))


@contextmanager
def first_run(bench: Bench, world: World) -> Iterator[World]:
    """Loaded before the request, never run."""
    speed = Speed(first=LOAD_SECONDS, per_text=QUICK)
    reranker = bench.new_pool().add_reranker(NAME, lambda: FakeCrossEncoder(speed))
    reranker.slot.loaded()
    yield world.with_clients(reranker=reranker)


@contextmanager
def constructed(bench: Bench, world: World) -> Iterator[World]:
    """The server makes its model anew for each request: half a second, however much there is to do."""
    with rerank_server(CONSTRUCTION_SECONDS) as address:
        yield world.with_clients(reranker=bench.remote_reranker(address))


def constructed_before(bench: Bench, world: World) -> Sequence[Case]:
    """It was always so: what is usual is a constant time that no work load explains."""
    with constructed(bench, world) as slow:
        return [ask(slow.with_options(candidates=count, keep=5)) for count in WORK_LOADS]


@contextmanager
def reranker_on_cpu(bench: Bench, world: World) -> Iterator[World]:
    speed = Speed("cpu", per_text=0.011)
    yield world.with_clients(reranker=bench.slow_reranker(speed)).on(readings.idle_gpu)


@contextmanager
def embedder_on_cpu(bench: Bench, world: World) -> Iterator[World]:
    yield world.with_clients(embedder=bench.slow_embedder(Speed("cpu", per_token=0.035))).on(readings.idle_gpu)


@contextmanager
def far_models(bench: Bench, world: World) -> Iterator[World]:
    """A line of 0.3 s to the GPU server; the embedder and the reranker are asked over it."""
    with bench.model_line.slower(0.3):
        yield world


@contextmanager
def hidden_timeout(bench: Bench, world: World) -> Iterator[World]:
    """A gateway gives up on the first attempt; the second is answered, and the query succeeds."""
    with rerank_server(0.0, stalled=0.35) as address:
        yield world.with_clients(reranker=bench.remote_reranker(address))


@contextmanager
def given_up(bench: Bench, world: World) -> Iterator[World]:
    """The server does not answer before our time limit: the query goes on without reranking."""
    with rerank_server(1.0) as address:
        yield world.with_clients(reranker=bench.remote_reranker(address, timeout=0.5))


@contextmanager
def own_queue(bench: Bench, world: World) -> Iterator[World]:
    """Other requests of this process are before the reranker."""
    with busy(bench.reranker):
        yield world


@contextmanager
def server_queue(bench: Bench, world: World) -> Iterator[World]:
    """Requests of others are before the reranker of our GPU server."""
    with busy(bench.served_reranker):
        yield world


@contextmanager
def busy(reranker: PooledReranker) -> Iterator[None]:
    """Half a second of reranking, sent before the query."""
    candidates = [RerankCandidate(text) for text in texts(40)]
    others = [reranker.begin("slow search", candidates) for _ in range(RERANKS_BEFORE)]
    yield
    for other in others:
        other.result(20.0)


FAULTS = (
    Fault("embedder loaded inside the request", "model_loaded", embedder_loaded),
    Fault("reranker loaded inside the request", "model_loaded", reranker_loaded, note="the model is a fake", only_long=True),
    Fault("first run after the load", "first_run", first_run, note="the model is a fake"),
    Fault(
        "remote model constructed for each request",
        "remote_model_per_request",
        constructed,
        base=lambda bench: bench.foreign_reranker,
        history=constructed_before,
        note="the server is a fake",
    ),
    Fault("reranker on the CPU beside an idle GPU", "reranker_on_cpu", reranker_on_cpu, note="the model and the GPU are fakes"),
    Fault(
        "embedder on the CPU beside an idle GPU",
        "embedder_on_cpu",
        embedder_on_cpu,
        base=lambda bench: bench.gpu_embedder,
        note="seconds added to the real model; the GPU is a fake",
    ),
    Fault("models 0.3 s away", "network_model", far_models, base=lambda bench: bench.served_models),
    Fault(
        "a time-out hidden in a retry",
        "retries",
        hidden_timeout,
        base=lambda bench: bench.foreign_reranker,
        note="the server is a fake",
    ),
    Fault(
        "a time-out that ends in the fused order",
        "retries",
        given_up,
        base=lambda bench: bench.foreign_reranker,
        note="the server is a fake",
        only_long=True,
    ),
    Fault(
        "a queue at our GPU server",
        "server_queue",
        server_queue,
        base=lambda bench: bench.served_models,
        note="the model is a fake, the queue is real",
        only_long=True,
    ),
    Fault("our own queue before the reranker", "client_queue", own_queue, note="the model is a fake, the queue is real"),
)
