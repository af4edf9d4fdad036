"""Clients of model servers against servers that answer rightly and wrongly in every way: real sockets, fake models."""

from __future__ import annotations

import base64
import math
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from gpu_server import transport
from gpu_server.client import RemoteEmbedder, RemoteReranker
from gpu_server.endpoint import Endpoint
from gpu_server.errors import (
    AuthenticationFailed,
    BadAnswer,
    BadInput,
    ConnectionFailed,
    EngineError,
    ForwardFailed,
    ModelError,
    Overloaded,
    TimedOut,
    TooLarge,
)
from gpu_server.interfaces import RerankCandidate
from gpu_server.probes import probe_embedder, probe_reranker
from tests.gpu_server.odd_server import Asked, Handler, Odd, OddServer, odd_server

KEY = "sk-hunter2"
MODEL = {
    "kind": "embedder", "name": "tiny", "identity": "tiny-2-mean-00", "dimension": 2, "max_tokens": 64,
    "learned_sparse": False, "late_interaction": False, "precision": "bf16", "device": "cuda:0",
}  # fmt: skip
RERANKER = {**MODEL, "kind": "reranker", "name": "judge", "identity": "judge-00", "dimension": None}
HEALTH = {"status": "healthy", "device": "cuda", "gpu": "Tiny", "model": "tiny", "models": [MODEL, RERANKER]}
TIMES = {
    "x-total-time": "3.5", "x-load-time": "0.5", "x-queue-time": "1.0", "x-tokenization-time": "0.25", "x-inference-time": "1.5",
    "x-compute-tokens": "7", "x-truncated": "1", "x-cold": "1", "x-cached": "0", "x-model-identity": "tiny-2-mean-00",
}  # fmt: skip


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture
def serve() -> Iterator[Callable[[Handler], OddServer]]:
    with ExitStack() as stack:
        yield lambda handle: stack.enter_context(odd_server(handle))


def vector(text: str) -> list[float]:
    """Predictable arithmetic: the direction of (length, 1)."""
    norm = math.hypot(len(text), 1)
    return [len(text) / norm, 1 / norm]


def openai(texts: Sequence[str]) -> dict[str, Any]:
    rows = [{"object": "embedding", "index": index, "embedding": vector(text)} for index, text in enumerate(texts)]
    return {"object": "list", "data": rows, "model": "tiny", "usage": {"prompt_tokens": 5, "total_tokens": 5}}


def plain(asked: Asked) -> Odd:
    """An OpenAI-compatible server of one model that does nothing wrong."""
    if asked.path == "/v1/models":
        return Odd({"data": [{"id": "tiny"}]})
    return Odd(openai(asked.body["input"])) if asked.path == "/v1/embeddings" else Odd({"detail": "Not Found"}, 404)


def answering(odd: Odd | None) -> Handler:
    """A server whose model always gives this answer."""
    return lambda asked: odd if asked.method == "POST" else plain(asked)


def native(asked: Asked) -> Odd:
    """A server of ours: cosines and lengths, with its headers."""
    if asked.path == "/health":
        return Odd(HEALTH)
    if asked.path == "/embed":
        return Odd({"dense_embeddings": [vector(text) for text in asked.body["texts"]], "sparse_embeddings": None}, headers=TIMES)
    lengths = [len(text) for text in asked.body["documents"]]
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return Odd({"rankings": order, "scores": [lengths[index] - 50.0 for index in order]}, headers=TIMES)


def embedder(server: OddServer, **settings: Any) -> RemoteEmbedder:
    ours = {name: settings.pop(name) for name in ("dialect", "batch_size", "query_prompt", "passage_prompt") if name in settings}
    return RemoteEmbedder(Endpoint(server.address, **{"retries": 0, **settings}), **{"dialect": "openai", **ours})


def reranker(server: OddServer, dialect: Any = "auto", **settings: Any) -> RemoteReranker:
    return RemoteReranker(Endpoint(server.address, **{"retries": 0, **settings}), dialect=dialect)


def candidates(*texts: str) -> list[RerankCandidate]:
    return [RerankCandidate(text) for text in texts]


# ------------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("address", "bare", "versioned", "shown"),
    [
        ("http://h:1", "http://h:1/x", "http://h:1/v1/x", "http://h:1"),
        ("http://h:1/", "http://h:1/x", "http://h:1/v1/x", "http://h:1"),
        ("http://h:1/v1", "http://h:1/x", "http://h:1/v1/x", "http://h:1/v1"),
        ("http://h/v1/embeddings", "http://h/x", "http://h/v1/x", "http://h/v1"),
        ("http://h:8002/rerank", "http://h:8002/x", "http://h:8002/v1/x", "http://h:8002"),
        ("https://h/team/a/v2", "https://h/team/a/x", "https://h/team/a/v2/x", "https://h/team/a/v2"),
        ("https://h/v1beta/openai/", "https://h/x", "https://h/v1beta/openai/x", "https://h/v1beta/openai"),
        ("http://u:secret@h/v1?key=secret", "http://u:secret@h/x?key=secret", "http://u:secret@h/v1/x?key=secret", "http://h/v1"),
    ],
)  # fmt: skip
def test_addresses_with_and_without_path_and_version(address: str, bare: str, versioned: str, shown: str) -> None:
    endpoint = Endpoint(address, api_key=KEY, headers={"X-Team": KEY})
    assert (endpoint.bare("/x"), endpoint.versioned("/x"), endpoint.shown) == (bare, versioned, shown)
    assert "hunter2" not in repr(endpoint)
    assert "secret" not in repr(endpoint)


# ------------------------------------------------------------------------------------------------------------ embeddings


def test_openai_embeddings_come_in_the_texts_order_whatever_the_answers(serve) -> None:
    def shuffled(asked: Asked) -> Odd:
        odd = plain(asked)
        if asked.method == "POST":
            odd.data["data"].reverse()
        return odd

    result = embedder(serve(shuffled)).embed(["a", "bb", "ccc"])
    assert result.dense.dtype == np.float32
    np.testing.assert_allclose(result.dense, [vector("a"), vector("bb"), vector("ccc")], atol=1e-7)
    assert result.sparse is None
    assert result.tokens == 5


def test_base64_and_vectors_of_any_length_are_understood(serve) -> None:
    def encoded(asked: Asked) -> Odd:
        if asked.method != "POST":
            return plain(asked)
        packed = base64.b64encode(struct.pack("<2f", 3.0, 4.0)).decode()
        return Odd({"data": [{"index": 0, "embedding": packed}], "model": "tiny"})

    np.testing.assert_allclose(embedder(serve(encoded)).embed(["x"]).dense, [[0.6, 0.8]], atol=1e-7)


def test_key_headers_model_prompts_and_caches_reach_the_server(serve) -> None:
    server = serve(plain)
    client = embedder(server, model="big", api_key=KEY, headers={"X-Team": "search"}, query_prompt="query: ", passage_prompt="> ")
    client.embed(["a"], "query", caches="bypass")
    client.embed(["a"])
    query, passage = (asked for asked in server.asked if asked.method == "POST")
    assert query.body == {"input": ["query: a"], "model": "big"}
    assert passage.body["input"] == ["> a"]
    assert (query.headers["authorization"], query.headers["x-team"]) == (f"Bearer {KEY}", "search")
    assert (query.headers["x-ragdeck-caches"], passage.headers["x-ragdeck-caches"]) == ("bypass", "use")


def test_many_texts_go_in_several_requests_and_come_back_in_order(serve) -> None:
    server = serve(plain)
    texts = ["x" * (index % 7 + 1) for index in range(150)]
    result = embedder(server, batch_size=64).embed(texts)
    assert [len(body["input"]) for body in server.bodies("/v1/embeddings")] == [64, 64, 22]
    np.testing.assert_allclose(result.dense, [vector(text) for text in texts], atol=1e-7)
    assert result.tokens == 15


def test_a_request_is_bounded_in_bytes_and_by_the_servers_own_limit(serve) -> None:
    def small(asked: Asked) -> Odd:
        return Odd({"model_id": "tei/model", "max_client_batch_size": 3}) if asked.path == "/info" else plain(asked)

    server = serve(small)
    client = embedder(server)
    client.embed(["x"] * 7)
    assert [len(body["input"]) for body in server.bodies("/v1/embeddings")] == [3, 3, 1]
    assert client.info.name == "tei/model"
    server.asked.clear()
    client.embed(["é" * 300_000, "é" * 300_000, "x"])
    assert [len(body["input"]) for body in server.bodies("/v1/embeddings")] == [1, 2]


def test_native_embeddings_carry_the_servers_times_and_identity(serve) -> None:
    server = serve(native)
    client = embedder(server, dialect="auto")
    result = client.embed(["a", "bb"], "query")
    assert server.bodies("/embed")[0] == {"texts": ["a", "bb"], "return_dense": True, "return_sparse": True, "kind": "query"}
    timing = result.timing
    assert (timing.load, timing.queue, timing.tokenize, timing.compute) == pytest.approx((0.0005, 0.001, 0.00025, 0.0015))
    assert timing.network is not None and timing.network >= 0
    assert timing.cold and not timing.network_estimated
    assert (result.tokens, result.truncated, result.cached) == (7, 1, 0)
    info = client.info
    assert (info.name, info.identity, info.dimension, info.device, info.precision) == (
        "tiny",
        "tiny-2-mean-00",
        2,
        "cuda:0",
        "bf16",
    )
    assert (info.where, info.address) == ("http", server.address)
    assert server.paths() == ["/health", "/embed"]


def test_learned_sparse_weights_come_as_numbers_and_are_known_after_the_first_answer(serve) -> None:
    def old(asked: Asked) -> Odd:  # as R0's server, which lists no models
        if asked.path == "/health":
            return Odd({"status": "healthy", "device": "cuda", "model": "BAAI/bge-m3"})
        return Odd({"dense_embeddings": [[1.0, 0.0]], "sparse_embeddings": [{"17": 0.5, "4": 0.25}]})

    client = embedder(serve(old), dialect="auto")
    result = client.embed(["x"])
    assert result.sparse == ({17: 0.5, 4: 0.25},)
    info = client.info
    assert (info.identity, info.learned_sparse, info.dimension) == ("BAAI/bge-m3-2", True, 2)


def test_a_server_that_tells_no_times_gets_an_estimate_of_the_network_marked_as_one(serve) -> None:
    server = serve(plain)
    client = embedder(server)
    first, second = client.embed(["a"]).timing, client.embed(["b"]).timing
    for timing in (first, second):
        assert timing.network_estimated
        assert timing.network is not None and timing.network > 0
        assert timing.compute >= 0
    assert server.paths().count("/v1/models") == 2  # who serves what, and one round trip: not one with each request


def test_info_of_an_openai_endpoint_takes_one_tiny_request_and_then_none(serve) -> None:
    server = serve(plain)
    client = embedder(server)
    assert (client.info.identity, client.info.dimension, client.info.device) == ("tiny-2", 2, "remote")
    assert client.info is client.info
    assert [body["input"] for body in server.bodies("/v1/embeddings")] == [["dimension"]]


def test_our_server_behind_the_openai_path_is_known_by_its_identity(serve) -> None:
    client = embedder(serve(answering(Odd(openai(["a"]), headers={"x-model-identity": "tiny-2-mean-00"}))))
    assert client.info.identity == "tiny-2-mean-00"


def test_tokens_are_estimated_by_bytes() -> None:
    client = RemoteEmbedder(Endpoint("http://127.0.0.1:9"))
    assert [client.count_tokens(text) for text in ("", "word", "words", "שלום", "検索")] == [0, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[1.0, 0.0]], "1 vectors came for 2 texts"),
        ([[1.0, 0.0]] * 3, "3 vectors came for 2 texts"),
        ([[1.0, 0.0], [1.0]], "no rows of numbers"),
        ([[1.0, 0.0], ["a", "b"]], "no rows of numbers"),
        ([[], []], "no rows of numbers"),
        ([[1.0, 0.0], [float("nan"), 0.0]], "NaN or infinity"),
        ([[1.0, 0.0], [1e300, 0.0]], "NaN or infinity"),
        ([[1.0, 0.0], [None, 0.0]], "NaN or infinity"),
        ([[1.0, 0.0], [0.0, 0.0]], "all zeros"),
        ([[1.0, 0.0], "!!"], "base64"),
    ],
)
def test_vectors_that_cannot_be_used_are_an_error_and_never_a_result(serve, rows: list[Any], said: str) -> None:
    data = {"data": [{"index": index, "embedding": row} for index, row in enumerate(rows)]}
    server = serve(answering(Odd(data)))
    with pytest.raises(BadAnswer, match=said) as caught:
        embedder(server).embed(["a", "b"])
    assert caught.value.address == server.address
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (Odd(content=b"<!DOCTYPE html><html>login"), "an HTML page, not JSON"),
        (Odd(content=b""), "empty, not JSON"),
        (Odd(content=b'{"data": ['), "not JSON"),
        (Odd([1, 2]), "a JSON list"),
        (Odd({"result": 1}), "no list under `data`"),
        (Odd({"data": [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}]}), "indices"),
        (Odd({"data": [{"index": 5, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}]}), "indices"),
        (Odd(content=b"x" * 40, headers={"content-encoding": "gzip"}), "cannot be read"),
        (Odd(status=307, headers={"location": "https://elsewhere/"}), "redirects"),
    ],
)
def test_answers_that_are_none(serve, odd: Odd, said: str) -> None:
    server = serve(answering(odd))
    with pytest.raises(BadAnswer, match=said):
        embedder(server, retries=2).embed(["a", "b"])
    assert len(server.bodies("/v1/embeddings")) == 1


@pytest.mark.parametrize("sparse", [[{"1": 0.5}], [{"1": 0.5}, {"x": 1}], [{"1": float("nan")}, {}], [[1], [2]]])
def test_sparse_weights_that_cannot_be_used(serve, sparse: Any) -> None:
    def odd(asked: Asked) -> Odd:
        dense = [[1.0, 0.0], [0.0, 1.0]]
        return Odd(HEALTH) if asked.path == "/health" else Odd({"dense_embeddings": dense, "sparse_embeddings": sparse})

    with pytest.raises(BadAnswer, match="sparse"):
        embedder(serve(odd), dialect="native").embed(["a", "b"])


def test_another_dimension_than_before_names_both_until_the_model_is_reloaded(serve) -> None:
    size = 2
    server = serve(
        lambda asked: Odd(openai([]) | {"data": [{"index": 0, "embedding": [1.0] * size}]}) if asked.body else plain(asked)
    )
    client = embedder(server)
    client.embed(["a"])
    size = 3
    with pytest.raises(BadAnswer, match=r"tiny-2 \(3 dimensions\) where it was tiny-2 \(2 dimensions\)"):
        client.embed(["a"])
    assert client.info.dimension == 2
    client.server.forget()
    assert client.embed(["a"]).dense.shape == (1, 3)
    assert client.info.identity == "tiny-3"


def test_another_model_of_the_same_dimension_names_both(serve) -> None:
    identity = "tiny-2-mean-00"

    def changing(asked: Asked) -> Odd:
        odd = native(asked)
        return odd if asked.path == "/health" else Odd(odd.data, headers={**TIMES, "x-model-identity": identity})

    client = embedder(serve(changing), dialect="native")
    client.embed(["a"])
    identity = "other-2-mean-11"
    with pytest.raises(BadAnswer, match=r"other-2-mean-11 .* tiny-2-mean-00"):
        client.embed(["a"])


def test_texts_that_cannot_be_sent(serve) -> None:
    client = embedder(serve(plain))
    with pytest.raises(BadInput, match="surrogates"):
        client.embed(["half \ud800"])
    with pytest.raises(BadInput, match="no text"):
        client.embed([])


# -------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("status", "body", "error", "said"),
    [
        (400, {"error": {"message": "bad dimensions"}}, BadInput, "bad dimensions"),
        (401, {"detail": "no"}, AuthenticationFailed, "refused the key"),
        (403, {"message": "no"}, AuthenticationFailed, "refused the key"),
        (408, {}, TimedOut, "gave up"),
        (413, {"error": "too big", "error_type": "Validation"}, TooLarge, "too big"),
        (422, {"detail": [{"msg": "field required"}]}, BadInput, "field required"),
        (424, {"error": "CUDA out of memory", "error_type": "Backend"}, ForwardFailed, "out of memory"),
        (429, {"error": {"message": "slow down"}}, Overloaded, "slow down"),
        (500, {"message": "boom"}, ModelError, "boom"),
        (502, {}, ConnectionFailed, "proxy"),
        (503, {"status": "loading", "reason": "being loaded"}, Overloaded, "being loaded"),
        (504, {}, TimedOut, "gave up"),
        (405, {}, BadAnswer, "no such request"),
    ],
)  # fmt: skip
def test_statuses_are_told_apart_with_the_servers_words_and_a_next_step(serve, status, body, error, said) -> None:
    server = serve(answering(Odd(body, status)))
    client = embedder(server, api_key=KEY)
    with pytest.raises(error, match=said) as caught:
        client.embed(["a"])
    assert type(caught.value) is error
    assert caught.value.address == server.address
    assert caught.value.next_step


def test_a_missing_key_is_said_to_be_missing(serve) -> None:
    with pytest.raises(AuthenticationFailed, match="wants a key"):
        embedder(serve(answering(Odd({}, 401)))).embed(["a"])


def test_keys_that_a_server_quotes_are_masked_everywhere(serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    server = serve(answering(Odd({"error": {"message": f"Incorrect key {KEY} of team hunter3"}}, 401)))
    client = embedder(server, api_key=KEY, headers={"X-Team": "hunter3"})
    with pytest.raises(AuthenticationFailed, match=r"Incorrect key \*\*\*") as caught:
        client.embed(["a"])
    everything = f"{caught.value!r} {caught.value.message} {client.server.status!r} {caplog.text}"
    assert "hunter" not in everything


def test_a_model_that_is_not_served_names_those_that_are(serve) -> None:
    server = serve(answering(Odd({"error": {"message": "The model `big` does not exist."}}, 404)))
    with pytest.raises(ModelError, match=r"`big` does not exist.*serves tiny \(asked for: big\)"):
        embedder(server, model="big").embed(["a"])


def test_a_path_that_is_not_there_is_no_model_error(serve) -> None:
    with pytest.raises(BadAnswer, match=r"there is no /v1/embeddings"):
        embedder(serve(lambda asked: Odd({"detail": "Not Found"}, 404))).embed(["a"])


def test_nobody_listens(serve) -> None:
    server = serve(plain)
    server.close()
    client = embedder(server, retries=2)
    with pytest.raises(ConnectionFailed, match=r"refused.*after 3 attempts") as caught:
        client.embed(["a"])
    assert caught.value.address == server.address
    assert client.server.status.state == "failed"
    assert "refused" in (client.server.status.error or "")


def test_https_where_http_is_spoken(serve) -> None:
    server = serve(plain)
    client = RemoteEmbedder(Endpoint(server.address.replace("http:", "https:"), retries=3), dialect="openai")
    with pytest.raises(ConnectionFailed, match="TLS") as caught:
        client.embed(["a"])
    assert "attempts" not in caught.value.message


@pytest.mark.parametrize("odd", [Odd(openai(["a"]), wait=True), Odd(openai(["a"]), drip=True)])
def test_silent_and_dripping_servers_are_left_in_time(serve, odd: Odd) -> None:
    client = embedder(serve(answering(odd)), timeout=2.0, retries=2)
    with pytest.raises(TimedOut, match=r"no complete answer came within 2 s") as caught:
        client.embed(["a"])
    assert isinstance(caught.value, TimeoutError)
    assert "raise timeout" in caught.value.next_step


def test_the_deadline_is_shorter_than_the_time_limit(serve) -> None:
    server = serve(answering(Odd(openai(["a"]), wait=True)))
    with pytest.raises(TimedOut, match="the time left before the deadline"):
        embedder(server).embed(["a"], deadline=time.monotonic() + 3.0)
    (asked,) = (asked for asked in server.asked if asked.method == "POST")
    assert 0 < float(asked.headers["x-request-timeout-seconds"]) <= 3.0
    with pytest.raises(TimedOut, match="before the request was sent"):
        embedder(server).embed(["a"], deadline=time.monotonic() - 1)


def test_a_connection_that_breaks_before_the_answer_is_tried_again_and_counted(serve) -> None:
    server = serve(answering(None))
    with pytest.raises(ConnectionFailed, match="after 3 attempts"):
        embedder(server, retries=2).embed(["a"])


def test_a_connection_that_breaks_in_the_middle_of_the_answer_is_not_tried_again(serve) -> None:
    server = serve(answering(Odd(openai(["a"]), cut=True)))
    with pytest.raises(ConnectionFailed, match="in the middle of the answer"):
        embedder(server, retries=2).embed(["a"])
    assert len(server.bodies("/v1/embeddings")) == 1


def test_a_pooled_connection_that_the_server_closed_costs_no_attempt(serve) -> None:
    served: set[int] = set()

    def once_a_connection(asked: Asked) -> Odd | None:  # as a server that closes idle connections just when one is used
        if asked.connection in served:
            return None
        served.add(asked.connection)
        return plain(asked)

    server = serve(once_a_connection)
    client = embedder(server, retries=0)
    assert all(client.embed([text]).dense.shape == (1, 2) for text in ("a", "b", "c"))
    assert server.connections > 3


def test_connections_are_kept(serve) -> None:
    server = serve(native)
    client = embedder(server, dialect="native")
    for _ in range(5):
        client.embed(["a"])
    assert server.connections == 1


def test_overload_passes_and_the_earlier_failures_are_told_when_it_does_not(serve) -> None:
    statuses = iter([503, 429, 200])
    server = serve(lambda asked: Odd(openai(["a"]), next(statuses)) if asked.method == "POST" else plain(asked))
    assert embedder(server, retries=2).embed(["a"]).dense.shape == (1, 2)
    assert len(server.bodies("/v1/embeddings")) == 3
    statuses = iter([503, 429, 401])
    with pytest.raises(AuthenticationFailed, match=r"after 3 attempts; before: .*503.*429"):
        embedder(server, retries=2).embed(["a"])


def test_what_another_attempt_cannot_help_is_not_tried_again(serve) -> None:
    server = serve(answering(Odd({}, 422)))
    with pytest.raises(BadInput):
        embedder(server, retries=5).embed(["a"])
    assert len(server.bodies("/v1/embeddings")) == 1


def test_retry_after_is_waited_for(serve) -> None:
    statuses = iter([429, 200])
    server = serve(
        lambda asked: Odd(openai(["a"]), next(statuses), {"retry-after": "0.3"}) if asked.method == "POST" else plain(asked)
    )
    started = time.monotonic()
    embedder(server, retries=1).embed(["a"])
    assert time.monotonic() - started >= 0.3


@pytest.mark.parametrize("retry_after", ["3600", "Wed, 21 Oct 2065 07:28:00 GMT"])
@pytest.mark.parametrize("deadline", [50.0, None])
def test_no_wait_goes_past_deadline_or_time_limit(serve, retry_after: str, deadline: float | None) -> None:
    server = serve(answering(Odd({}, 429, {"retry-after": retry_after})))
    end = None if deadline is None else time.monotonic() + deadline
    with pytest.raises(Overloaded) as caught:
        embedder(server, retries=3).embed(["a"], deadline=end)
    assert (caught.value.retry_after or 0) > 3000
    assert len(server.bodies("/v1/embeddings")) == 1


# ------------------------------------------------------------------------------------------------- what stands out there


def test_ten_threads_ask_a_server_once_what_it_is(serve) -> None:
    server = serve(native)
    client = embedder(server, dialect="auto")
    threads = [threading.Thread(target=client.embed, args=(["a"],)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert server.paths().count("/health") == 1
    assert server.paths().count("/embed") == 10


def test_what_was_found_out_before_any_success_is_asked_again(serve) -> None:
    up = False

    def starting(asked: Asked) -> Odd:  # behind a proxy that answers for a server that is not up yet
        return native(asked) if up else Odd({"detail": "nobody"}, 404 if asked.method == "GET" else 502)

    client = embedder(serve(starting), dialect="auto")
    with pytest.raises(EngineError):
        client.embed(["a"])
    up = True
    assert client.embed(["a"]).dense.shape == (1, 2)
    assert client.info.identity == "tiny-2-mean-00"
    assert client.server.status.state == "remote"


def test_a_server_without_the_kind_of_model_says_so(serve) -> None:
    server = serve(lambda asked: Odd({**HEALTH, "models": [MODEL]}))
    with pytest.raises(ModelError, match="serves no reranker") as caught:
        reranker(server).score("q", candidates("a"))
    assert "--reranker" in caught.value.next_step


class CountingLock:
    """A lock that tells how many came to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.came = threading.Semaphore(0)

    def acquire(self, timeout: float) -> bool:
        self.came.release()
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        self._lock.release()


def test_an_openai_server_in_the_place_of_ours_is_told_apart(serve) -> None:
    server = serve(lambda asked: Odd(content=b"") if asked.path == "/health" else plain(asked))
    with pytest.raises(BadAnswer, match="another kind of server") as caught:
        embedder(server, dialect="native").embed(["a"])
    assert "EMBEDDING_BASE_URL" in caught.value.next_step


def test_the_first_failure_is_shared_by_those_who_wait_for_it(serve) -> None:
    going = threading.Event()

    def held(_: Asked) -> Odd:
        going.wait(30)
        return Odd({}, 401)

    server = serve(held)
    client = embedder(server, dialect="native")
    lock = CountingLock()
    client.server._learning = lock  # type: ignore[assignment]
    problems: list[EngineError] = []

    def ask() -> None:
        with pytest.raises(AuthenticationFailed) as caught:
            client.embed(["a"])
        problems.append(caught.value)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert all(lock.came.acquire(timeout=30) for _ in threads)
    going.set()
    for thread in threads:
        thread.join(30)
    assert len(problems) == 5
    assert server.paths() == ["/health"]


# ------------------------------------------------------------------------------------------------------------- reranking


def logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))


RAW = (-2.5, 3.0, 0.0, 3.0, -9.0)
ORDER = (1, 3, 2, 0, 4)


def judging(path: str, data: Any, **known: Any) -> Handler:
    """A server that knows `path` and the GETs in `known` (health, info) only."""

    def handle(asked: Asked) -> Odd:
        if asked.path == path and asked.body:
            return Odd(data)
        if asked.path == path:
            return Odd({"detail": "empty"}, 422)
        name = asked.path.strip("/")
        return Odd(known[name]) if name in known else Odd({"detail": "Not Found"}, 404)

    return handle


NATIVE = {"rankings": list(ORDER), "scores": [logistic(RAW[index]) for index in ORDER]}
COHERE = {"results": [{"index": index, "relevance_score": logistic(RAW[index])} for index in ORDER]}
TEI = [{"index": index, "score": RAW[index]} for index in ORDER]
R2 = {"status": "healthy", "device": "cpu", "model": "BAAI/bge-reranker-v2-m3"}
TEI_INFO = {"model_id": "tei/judge", "model_type": {"reranker": {}}, "max_client_batch_size": 32, "max_input_length": 512}


@pytest.mark.parametrize(
    ("dialect", "handle", "name", "sent"),
    [
        ("auto", judging("/rerank", NATIVE, health=R2), "BAAI/bge-reranker-v2-m3", {"documents", "top_k"}),
        ("native", judging("/rerank", NATIVE), None, {"documents", "top_k"}),
        ("auto", judging("/rerank", TEI, info=TEI_INFO, health=""), "tei/judge", {"texts", "raw_scores", "truncate"}),
        ("tei", judging("/rerank", TEI), None, {"texts", "raw_scores", "truncate"}),
        ("auto", judging("/v1/rerank", COHERE), None, {"documents", "top_n", "return_documents"}),
        ("auto", judging("/rerank", COHERE, health={"unix": 1.0}), None, {"documents", "top_n", "return_documents"}),
        ("cohere", judging("/v1/rerank", COHERE, health=R2), None, {"documents", "top_n", "return_documents"}),
    ],
    ids=["R2", "native", "TEI", "tei", "vLLM", "Infinity", "cohere"],
)  # fmt: skip
def test_every_dialect_gives_raw_scores_in_candidate_order(serve, dialect, handle, name, sent) -> None:
    server = serve(handle)
    client = reranker(server, dialect)
    result = client.score("q", candidates(*"abcde"))
    np.testing.assert_allclose(result.values, RAW, atol=1e-5)
    assert result.values.dtype == np.float32
    assert tuple(sorted(range(5), key=lambda index: (-float(result.values[index]), index))) == ORDER
    (body,) = (asked.body for asked in server.asked if asked.body)
    assert set(body) == {"query", *sent}
    assert name is None or client.info.name == name
    client.score("q", candidates(*"abcde"))
    assert server.paths().count("/health") <= 1


def test_our_server_is_asked_for_raw_scores(serve) -> None:
    server = serve(native)
    result = reranker(server).score("q", candidates("x" * 90, "", "x" * 50))
    assert server.bodies("/rerank")[0]["raw_scores"] is True
    assert result.values.tolist() == [40.0, -50.0, 0.0]
    assert (result.tokens, result.truncated, result.timing.compute) == (7, 1, 0.0015)


def test_saturated_scores_stay_finite_and_in_order(serve) -> None:
    data = {"rankings": [0, 1, 2], "scores": [1.0, 0.5, 0.0]}
    values = reranker(serve(judging("/rerank", data)), "native").score("q", candidates(*"abc")).values
    assert values.tolist() == pytest.approx([34.5, 0.0, -34.5], abs=0.1)


def test_scores_that_are_raw_already_are_left_alone(serve) -> None:
    data = {"rankings": [1, 0], "scores": [5.5, -3.0]}
    assert reranker(serve(judging("/rerank", data)), "native").score("q", candidates(*"ab")).values.tolist() == [-3.0, 5.5]


@pytest.mark.parametrize(
    ("dialect", "path", "data", "said"),
    [
        ("native", "/rerank", {"rankings": [0], "scores": [0.5]}, "1 scores came for 2 texts"),
        ("native", "/rerank", {"rankings": [0, 1], "scores": [0.5]}, "1 scores came with 2 rankings"),
        ("native", "/rerank", {"rankings": [0, 2], "scores": [0.5, 0.4]}, "indices"),
        ("native", "/rerank", {"rankings": [1, 1], "scores": [0.5, 0.4]}, "indices"),
        ("native", "/rerank", {"rankings": [0, 1], "scores": [0.5, float("nan")]}, "NaN"),
        ("native", "/rerank", {"rankings": [0, 1], "scores": [0.5, "high"]}, "no number"),
        ("native", "/rerank", {"scores": [0.5, 0.4]}, "no lists"),
        ("native", "/rerank", [], "no lists"),
        ("cohere", "/v1/rerank", {"results": [{"index": 0, "relevance_score": 0.5}]}, "1 scores came for 2 texts"),
        ("cohere", "/v1/rerank", {"results": [{"relevance_score": 0.5}, {"relevance_score": 0.1}]}, "indices"),
        ("cohere", "/v1/rerank", {"results": [{"index": 0}, {"index": 1}]}, "NaN"),
        ("cohere", "/v1/rerank", {"data": []}, "no list of results"),
        ("tei", "/rerank", {"results": []}, "no list of results"),
    ],
)
def test_scores_that_cannot_be_used_are_an_error_and_never_a_result(serve, dialect, path, data, said) -> None:
    with pytest.raises(BadAnswer, match=said):
        reranker(serve(judging(path, data)), dialect).score("q", candidates("a", "b"))


def test_candidates_beyond_a_servers_limit_go_in_several_requests(serve) -> None:
    def tei(asked: Asked) -> Odd:
        if asked.path == "/info":
            return Odd(TEI_INFO)
        if asked.path != "/rerank":
            return Odd(b"".decode(), 200 if asked.path == "/health" else 404)
        scores = [{"index": index, "score": float(len(text))} for index, text in enumerate(asked.body["texts"])]
        return Odd(sorted(scores, key=lambda item: -item["score"]))

    server = serve(tei)
    texts = ["x" * (index * 7 % 40) for index in range(40)]
    assert reranker(server).score("q", candidates(*texts)).values.tolist() == [float(len(text)) for text in texts]
    assert [len(body["texts"]) for body in server.bodies("/rerank")] == [32, 8]


def test_no_candidates_is_no_request(serve) -> None:
    server = serve(native)
    assert reranker(server).score("q", []).values.shape == (0,)
    assert server.asked == []


# ------------------------------------------------------------------------------------------------------ state and probes


def test_who_the_reranker_is_costs_no_request_before_the_first_call(serve) -> None:
    server = serve(native)
    client = reranker(server)
    assert (client.info.where, client.info.address) == ("http", server.address)
    assert client.server.status.state == "waiting"
    assert server.asked == []
    client.score("q", candidates("a"))
    assert (client.info.name, client.info.device) == ("judge", "cuda:0")


def test_a_probe_gives_time_network_and_model_past_the_caches(serve) -> None:
    server = serve(native)
    for probe, client in ((probe_embedder, embedder(server, dialect="auto")), (probe_reranker, reranker(server))):
        found = probe(client)
        assert found.seconds >= (found.network_seconds or 0)
        assert found.network_seconds is not None
        assert found.info.device == "cuda:0"
    assert {asked.headers["x-ragdeck-caches"] for asked in server.asked if asked.method == "POST"} == {"bypass"}


def test_the_state_follows_the_last_call_and_a_bad_question_is_not_the_servers(serve) -> None:
    status = 200
    client = embedder(serve(lambda asked: Odd(openai(["a"]), status) if asked.method == "POST" else plain(asked)))
    client.embed(["a"])
    assert (client.server.status.state, client.server.status.runs, client.server.status.name) == ("remote", 1, "tiny")
    for status, state in ((422, "remote"), (500, "failed"), (200, "remote")):
        try:
            client.embed(["a"])
        except EngineError as problem:
            assert status != 200, problem
        assert client.server.status.state == state
    assert client.server.status.runs == 2


def test_a_report_is_what_our_server_says_of_this_model(serve) -> None:
    slots = {"models": [{"kind": "embedder", "load_seconds": 2.0}, {"kind": "reranker", "load_seconds": 3.0}]}
    server = serve(lambda asked: Odd(slots) if asked.path == "/status" else native(asked))
    assert reranker(server).server.report()["load_seconds"] == 3.0
    assert embedder(serve(plain)).server.report() == {}
