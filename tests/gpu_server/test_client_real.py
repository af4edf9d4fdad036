"""Clients against the real GPU server, in every dialect it speaks: the same numbers as the models in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_server import makers
from gpu_server.client import RemoteEmbedder, RemoteReranker
from gpu_server.endpoint import Endpoint
from gpu_server.errors import AuthenticationFailed, ModelError, TimedOut, TooLarge
from gpu_server.interfaces import Embedder, RerankCandidate, Reranker, identity_of
from gpu_server.model_pool import ModelPool
from tests.gpu_server.serving import Served, process

KEY = "sk-real-hunter2"
TEXTS = ["Why is the first query slow?", "שאלה", "", "word " * 600, "a"]
QUERY = "why is reranking slow"
PASSAGES = ["Kernels are compiled at first.", "kernels", "A tunnel adds a round trip.", "kernels", "GPU memory is full.", ""]


@pytest.fixture(scope="module")
def server(tiny_cross_encoder: Path) -> Iterator[Served]:
    arguments = ("--device", "cpu", "--precision", "fp32", "--reranker", str(tiny_cross_encoder), "--max-body-bytes", "200000")
    with process(*arguments, environment={"GPU_SERVER_TOKEN": KEY}) as served:
        yield served


@pytest.fixture(scope="module")
def local_embedder() -> Embedder:
    return ModelPool().add_embedder("starter", makers.embedder("starter", "cpu", "fp32"))


@pytest.fixture(scope="module")
def local_reranker(tiny_cross_encoder: Path) -> Reranker:
    return ModelPool().add_reranker("tiny", makers.reranker(str(tiny_cross_encoder), "cpu", "fp32"))


def endpoint(server: Served, **more: Any) -> Endpoint:
    return Endpoint(server.address, **{"api_key": KEY, "retries": 0, **more})


def test_native_vectors_identity_and_facts_are_those_of_the_model_in_this_process(
    server: Served, local_embedder: Embedder
) -> None:
    client = RemoteEmbedder(endpoint(server))
    there, here = client.embed(TEXTS), local_embedder.embed(TEXTS)
    np.testing.assert_allclose(there.dense, here.dense, atol=1e-5)
    assert (there.sparse, there.tokens, there.truncated) == (None, here.tokens, here.truncated)
    for field in ("name", "kind", "identity", "dimension", "max_tokens", "learned_sparse", "device", "precision"):
        assert getattr(client.info, field) == getattr(local_embedder.info, field), field
    assert (client.info.where, local_embedder.info.where) == ("http", "in-process")


def test_the_openai_path_finds_the_same_collection(server: Served, local_embedder: Embedder) -> None:
    client = RemoteEmbedder(endpoint(server), dialect="openai")
    there, here = client.embed(["a", "bb"]), local_embedder.embed(["a", "bb"])
    np.testing.assert_allclose(there.dense, here.dense, atol=1e-5)
    assert (client.info.identity, client.info.dimension) == (local_embedder.info.identity, 384)
    assert there.tokens == here.tokens


def test_the_servers_times_are_apart_from_the_networks(server: Served) -> None:
    client = RemoteEmbedder(endpoint(server))
    client.embed(["connect"])
    started = time.perf_counter()
    timing = client.embed(["how long does this take?"], "query", caches="bypass").timing
    seconds = time.perf_counter() - started
    assert timing.compute > 0 and timing.tokenize > 0
    assert timing.network is not None and 0 < timing.network < seconds
    assert timing.queue + timing.tokenize + timing.compute + timing.network <= seconds
    assert not timing.network_estimated and not timing.cold


def test_the_servers_cache_is_used_and_bypassed_as_asked(server: Served) -> None:
    client = RemoteEmbedder(endpoint(server))
    cached = [client.embed(["asked before?"], "query", caches=mode).cached for mode in ("use", "use", "bypass", "refresh", "use")]
    assert cached == [0, 1, 0, 0, 1]


@pytest.mark.parametrize("dialect", ["auto", "native", "cohere", "tei"])
def test_scores_and_their_order_are_those_of_the_model_in_this_process(
    server: Served, local_reranker: Reranker, dialect: Any
) -> None:
    client = RemoteReranker(endpoint(server), dialect=dialect)
    candidates = [RerankCandidate(text) for text in PASSAGES]
    there, here = client.score(QUERY, candidates).values, local_reranker.score(QUERY, candidates).values
    np.testing.assert_allclose(there, here, atol=1e-5)
    assert order(there) == order(here)
    assert there[1] == there[3]  # equal passages stay in their order


def order(values: Any) -> list[int]:
    return sorted(range(len(values)), key=lambda index: (-float(values[index]), index))


def test_refusals_of_the_real_server_are_told_apart(server: Served) -> None:
    with pytest.raises(AuthenticationFailed, match="refused the key"):
        RemoteEmbedder(endpoint(server, api_key="sk-other")).embed(["a"])
    with pytest.raises(AuthenticationFailed, match="wants a key"):
        RemoteReranker(endpoint(server, api_key=None)).score("q", [RerankCandidate("a")])
    with pytest.raises(ModelError, match=r"all-MiniLM-L6-v2.*asked for: gpt-embed"):
        RemoteEmbedder(endpoint(server, model="gpt-embed"), dialect="openai").embed(["a"])
    with pytest.raises(TooLarge, match="200,000 bytes"):
        RemoteEmbedder(endpoint(server)).embed(["x" * 300_000])
    with pytest.raises(TimedOut):
        RemoteEmbedder(endpoint(server)).embed(["a"], deadline=time.monotonic() - 1)


def test_the_servers_report_of_a_model(server: Served) -> None:
    client = RemoteEmbedder(endpoint(server))
    client.embed(["a"])
    report = client.server.report()
    assert report["load_seconds"] > 0
    assert report["runs"] > 0


def test_who_scores_is_known_before_anything_is_scored(server: Served, tiny_cross_encoder: Path) -> None:
    name = str(tiny_cross_encoder)
    asked: list[str] = []

    def tells() -> str | None:
        asked.append(name)
        return makers.reranker_identity(name)

    local = ModelPool().add_reranker(name, makers.reranker(name, "cpu", "fp32"), identity=tells)
    remote = RemoteReranker(endpoint(server))
    before = identity_of(local), identity_of(remote)
    local.score(QUERY, [RerankCandidate(PASSAGES[0])])
    assert before == (local.info.identity,) * 2 == (identity_of(local), identity_of(remote))
    assert asked == [name], "a loaded model says itself who it is"


def test_a_server_that_is_away_keeps_nobody_from_asking_who_it_is() -> None:
    remote = RemoteReranker(Endpoint("http://127.0.0.1:9", retries=0))
    assert identity_of(remote) == remote.info.identity


def test_a_model_that_is_not_here_is_not_downloaded_to_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("gpu_server.hub._download", lambda name: pytest.fail("it was downloaded"))
    assert makers.reranker_identity("nobody/knows-this") is None
    assert makers.reranker_identity(str(tmp_path)) is None, "a folder without a model"
