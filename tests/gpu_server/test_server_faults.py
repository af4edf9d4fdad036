"""What the server does with bad bodies, failing passes, full queues, clients that leave, and SIGTERM under load."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gpu_server.caches import CachedEmbedder, CachedReranker
from gpu_server.dialects import Dialect, refusal
from gpu_server.engine import Engine
from gpu_server.errors import EngineError
from gpu_server.model_pool import ModelPool
from gpu_server.score_stores import score_store
from gpu_server.service import Limits
from tests.gpu_server.serving import FakeEmbedder, FakeReranker, Hold, Served, on_thread, process, wait_until

KEY = "a-key-for-tests"


def engine_of(embedder: FakeEmbedder | None = None, reranker: FakeReranker | None = None, max_queue: int = 1024) -> Engine:
    pool = ModelPool(max_queue_texts=max_queue)
    made_embedder = made_reranker = None
    if embedder is not None:
        made_embedder = CachedEmbedder(pool.add_embedder("fake/Embedder", lambda: embedder))
    if reranker is not None:
        made_reranker = CachedReranker(pool.add_reranker("fake/Reranker", lambda: reranker), score_store(None))
    return Engine(pool, made_embedder, made_reranker)


@pytest.fixture(scope="module")
def fake() -> FakeEmbedder:
    return FakeEmbedder()


@pytest.fixture(scope="module")
def server(fake: FakeEmbedder) -> Iterator[Served]:
    with on_thread(engine_of(fake, FakeReranker()), Limits(body_bytes=2**20, texts=50)) as served:
        served.wait_healthy()
        yield served


# bodies

POSTS = ("/embed", "/rerank", "/v1/embeddings", "/v2/rerank", "/embed_sparse")
BROKEN_BODIES = {
    "empty": b"",
    "no JSON": b"texts=1",
    "a list": b'["a"]',
    "cut off": b'{"texts": ["a"',
    "NaN": b'{"texts": ["a"], "input": "a", "dimensions": NaN}',
    "infinite number": b'{"texts": ["a"], "dimensions": 1e999}',
    "half a character": b'{"texts": ["\\ud800"], "input": "\\ud800", "query": "\\udfff", "documents": ["\\ud800"]}',
    "half a character, raw": b'{"texts": ["\xed\xa0\x80"]}',
    "not UTF-8": b'{"texts": ["\xff\xfe"]}',
    "deep": b'{"texts": ' + b"[" * 50_000,
    "wrong types": b'{"texts": 5, "inputs": {}, "input": 5, "query": [], "documents": "x"}',
    "null": b'{"texts": null, "input": null, "query": null, "documents": null}',
    "mixed": b'{"texts": ["a", 5], "inputs": ["a", null], "input": ["a", {}], "query": "a", "documents": ["a", 5]}',
    "nothing": b"{}",
}


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("name", BROKEN_BODIES)
def test_a_broken_body_is_refused_in_the_dialect(server: Served, path: str, name: str):
    refused = server.post_bytes(path, BROKEN_BODIES[name])
    told = refused.json()
    if path == "/v1/embeddings":
        assert refused.status_code == 400 and told["error"]["type"] == "invalid_request_error" and told["error"]["message"]
    elif path == "/v2/rerank":
        assert refused.status_code == 400 and told["message"]
    else:
        assert refused.status_code in (400, 422) and told["error_type"] in ("Validation", "Empty") and told["error"]


def test_a_wrong_content_type_is_refused(server: Served):
    body = b'{"texts": ["a"]}'
    assert server.post_bytes("/embed", body, "application/x-www-form-urlencoded").status_code == 415
    assert server.post_bytes("/embed", body, "text/plain").status_code == 415
    assert server.post_bytes("/embed", body, "application/json; charset=utf-8").status_code == 200


def test_a_body_that_says_it_is_too_large_is_refused(server: Served):
    refused = server.post("/embed", {"texts": ["x" * 5_000_000]})
    assert refused.status_code == 413 and refused.json()["error_type"] == "Validation"


def test_a_body_that_grows_too_large_is_refused_before_it_ends(server: Served):
    def chunks() -> Iterator[bytes]:
        yield b'{"texts": ["'
        for _ in range(80):
            yield b"x" * 65536
        yield b'"]}'

    try:
        refused = httpx.post(
            f"{server.address}/embed", content=chunks(), headers={"content-type": "application/json"}, timeout=30
        )
    except httpx.WriteError:
        pytest.fail("the client was cut off instead of told")
    assert refused.status_code == 413
    assert server.post("/embed", {"texts": ["a"]}).status_code == 200


def test_the_connection_of_a_refused_body_can_be_used_again(server: Served):
    with httpx.Client(timeout=30) as client:
        statuses = [
            client.post(f"{server.address}/embed", json={"texts": [text]}).status_code for text in ("a", "x" * 5_000_000, "b")
        ]
    assert statuses == [200, 413, 200]


def test_too_many_texts_are_refused(server: Served):
    assert server.post("/embed", {"texts": ["a"] * 50}).status_code == 200
    assert server.post("/embed", {"texts": ["a"] * 51}).status_code == 413
    assert server.post("/v1/embeddings", {"input": ["a"] * 51}).json()["error"]["code"] == "too_large"
    assert server.post("/rerank", {"query": "a", "documents": ["a"] * 51}).status_code == 413


def test_empty_texts(server: Served):
    assert server.post("/embed", {"texts": []}).json()["error_type"] == "Empty"
    assert server.post("/embed", {"inputs": ["a", ""]}).json()["error_type"] == "Empty"
    for wrong in ("", [], ["a", ""]):
        refused = server.post("/v1/embeddings", {"input": wrong})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "input"
    assert server.post("/rerank", {"query": "", "documents": ["a"]}).status_code == 400
    assert server.post("/rerank", {"query": "a", "documents": []}).status_code == 400
    assert server.post("/rerank", {"query": "a", "documents": ["", "b"]}).json()["rankings"] == [1, 0]


def test_a_text_of_100k_characters_is_cut_and_counted(server: Served):
    answer = server.post("/embed", {"texts": ["x" * 100_000, "short"]})
    assert answer.status_code == 200 and answer.headers["x-truncated"] == "1"
    assert answer.json()["dense_embeddings"][0] == pytest.approx([0.99995, 0.0099995], abs=1e-6)


@pytest.mark.parametrize("header", ["0", "-1", "nan", "soon", "1e9"])
def test_a_time_limit_that_is_none_is_refused(server: Served, header: str):
    assert server.post("/embed", {"texts": ["a"]}, headers={"x-request-timeout-seconds": header}).status_code == 422


def test_unknown_paths_and_methods_are_told_in_the_dialect(server: Served):
    assert server.get("/nothing").json()["error_type"] == "Validation"
    assert server.post("/v1/chat/completions", {}).json()["error"]["type"] == "invalid_request_error"
    assert server.get("/embed").status_code == 405


# failures


def test_every_error_of_the_engine_has_a_status_and_a_shape():
    def classes(parent: type[EngineError]) -> Iterator[type[EngineError]]:
        for child in parent.__subclasses__():
            yield child
            yield from classes(child)

    dialects: tuple[Dialect, ...] = ("native", "openai", "cohere")
    unmapped = {"ConnectionFailed", "BadAnswer"}  # of clients; raised here they would be our fault
    for kind in {
        kind for kind in classes(EngineError) if kind.__module__.startswith("gpu_server") and kind.__name__ not in unmapped
    }:
        for dialect in dialects:
            told = refusal(kind("what is wrong", next_step="What to do."), dialect)
            assert 400 <= told.status <= 504 and told.status != 500, kind
            assert told.message == "what is wrong. What to do."


def test_a_failure_of_ours_is_not_told_to_clients():
    told = refusal(KeyError("secret"), "native")
    assert told.status == 500 and "secret" not in told.message


def test_a_poisoned_text_fails_alone_and_the_server_stays_healthy(server: Served):
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        texts = ["good", "poison", "fine", "well"]
        answers = dict(zip(texts, threads.map(lambda text: server.post("/embed", {"texts": [text]}), texts), strict=True))
    assert {text: answer.status_code for text, answer in answers.items()} == {
        "good": 200,
        "poison": 424,
        "fine": 200,
        "well": 200,
    }
    assert answers["poison"].json()["error_type"] == "Backend"
    assert server.post("/v1/embeddings", {"input": "poison"}).json()["error"]["code"] == "backend_failed"
    assert server.get("/health").status_code == 200


def test_a_vector_that_is_no_number_is_a_failure(server: Served):
    refused = server.post("/embed", {"texts": ["?"]})
    assert refused.status_code == 424 and "NaN" in refused.json()["error"]


def test_health_is_proven_again_after_a_failure(server: Served, fake: FakeEmbedder):
    fake.broken = RuntimeError("CUDA error: the device is gone")
    assert server.post("/embed", {"texts": ["a text of its own"]}).status_code == 424
    sick = server.get("/health")
    assert (sick.status_code, sick.json()["status"]) == (503, "unhealthy") and "device is gone" in sick.json()["reason"]
    fake.broken = None
    wait_until(lambda: server.get("/health").status_code == 200)


def test_a_full_queue_answers_429_at_once():
    hold = Hold()
    with on_thread(engine_of(FakeEmbedder(hold), max_queue=4)) as served, concurrent.futures.ThreadPoolExecutor(8) as threads:
        served.wait_healthy()
        hold.close()
        first = threads.submit(served.post, "/embed", {"texts": ["in the model"]})
        assert hold.entered.wait(30)
        waiting = [threads.submit(served.post, "/embed", {"texts": [f"waits {number}"]}) for number in range(4)]
        wait_until(lambda: served.metric("te_queue_size") == 4)
        refused = served.post("/embed", {"texts": ["one too many"]})
        openai = served.post("/v1/embeddings", {"input": "one too many"})
        hold.open.set()
        assert [future.result(30).status_code for future in (first, *waiting)] == [200] * 5
    assert (refused.status_code, refused.json()["error_type"]) == (429, "Overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert (openai.status_code, openai.json()["error"]["code"]) == (429, "overloaded")


def test_work_of_a_client_that_left_is_skipped():
    hold = Hold()
    with on_thread(engine_of(FakeEmbedder(hold))) as served, concurrent.futures.ThreadPoolExecutor(4) as threads:
        served.wait_healthy()
        hold.close()
        first = threads.submit(served.post, "/embed", {"texts": ["in the model"]})
        assert hold.entered.wait(30)
        gone = http.client.HTTPConnection(served.address.removeprefix("http://"), timeout=30)
        gone.request(
            "POST", "/embed", json.dumps({"texts": ["left " + str(n) for n in range(40)]}), {"content-type": "application/json"}
        )
        wait_until(lambda: served.metric("te_queue_size") == 40)
        gone.close()
        wait_until(lambda: served.metric("ragdeck_active_requests") == 1)
        hold.seen.clear()
        hold.open.set()
        assert first.result(30).status_code == 200
        assert served.post("/embed", {"texts": ["afterwards"]}).status_code == 200
    assert sum(hold.seen) == 1, "only the text that came afterwards was computed"


def test_a_request_over_its_time_limit_is_answered_504():
    hold = Hold()
    with on_thread(engine_of(FakeEmbedder(hold))) as served, concurrent.futures.ThreadPoolExecutor(4) as threads:
        served.wait_healthy()
        hold.close()
        first = threads.submit(served.post, "/embed", {"texts": ["in the model"]})
        assert hold.entered.wait(30)
        late = served.post("/embed", {"texts": ["waits"]}, headers={"x-request-timeout-seconds": "0.05"})
        hold.open.set()
        assert first.result(30).status_code == 200
    assert late.status_code == 504 and "error" in late.json()


# start and end


def test_while_the_model_loads_health_says_so_and_requests_are_put_off():
    loaded = threading.Event()

    def load() -> Any:
        assert loaded.wait(30)
        return FakeEmbedder()

    pool = ModelPool()
    engine = Engine(pool, CachedEmbedder(pool.add_embedder("fake/Embedder", load)), None)
    with on_thread(engine) as served:
        wait_until(lambda: _answers(served))
        health, refused = served.get("/health"), served.post("/v1/embeddings", {"input": "a"})
        loaded.set()
        served.wait_healthy()
        assert served.post("/embed", {"texts": ["a"]}).headers["x-cold"] == "0"
    assert (health.status_code, health.json()["status"]) == (503, "loading")
    assert refused.status_code == 503 and refused.headers["retry-after"] and refused.json()["error"]["code"] == "not_ready"


def _answers(served: Served) -> bool:
    try:
        return bool(served.get("/health").status_code)
    except httpx.TransportError:
        return False


def test_a_model_that_cannot_be_loaded_is_told_with_its_reason():
    def load() -> Any:
        raise FileNotFoundError("model.safetensors is missing")

    pool = ModelPool()
    engine = Engine(pool, CachedEmbedder(pool.add_embedder("fake/Embedder", load)), None)
    with on_thread(engine) as served:
        wait_until(lambda: _answers(served) and served.get("/health").json()["status"] == "unhealthy")
        health, refused = served.get("/health"), served.post("/embed", {"texts": ["a"]})
    assert health.status_code == 503 and "model.safetensors is missing" in health.json()["reason"]
    assert refused.status_code == 503 and refused.json()["error_type"] == "Unhealthy"


def test_a_model_that_could_not_be_loaded_is_tried_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gpu_server.readiness.RETRY_SECONDS", 0.0)
    problems = [OSError("the download is not complete")]

    def load() -> Any:
        if problems:
            raise problems.pop()
        return FakeEmbedder()

    pool = ModelPool()
    with on_thread(Engine(pool, CachedEmbedder(pool.add_embedder("fake/Embedder", load)))) as served:
        served.wait_healthy()
        assert served.post("/embed", {"texts": ["a"]}).status_code == 200
    assert not problems


def test_sparse_weights_and_token_vectors_where_the_model_has_them(server: Served):
    answer = server.post("/embed", {"texts": ["ab", "c"], "return_colbert": True}).json()
    assert answer["sparse_embeddings"] == [{str(ord("a")): 2.0}, {str(ord("c")): 1.0}]
    assert [len(rows) for rows in answer["colbert_embeddings"]] == [2, 1]
    assert server.post("/embed_sparse", {"inputs": "ab"}).json() == [[{"index": ord("a"), "value": 2.0}]]


def test_one_model_alone_is_served():
    with on_thread(engine_of(reranker=FakeReranker())) as served:
        served.wait_healthy()
        assert served.post("/rerank", {"query": "ab", "documents": ["a", "abcd"]}).json()["rankings"] == [1, 0]
        refused = served.post("/embed", {"texts": ["a"]})
        assert refused.status_code == 404 and "fake/Reranker" in refused.json()["error"]
        assert served.post("/v1/embeddings", {"input": "a"}).json()["error"]["code"] == "model_not_found"
        assert served.get("/health").json()["model"] == "fake/Reranker"


def test_the_key_is_asked_for_everywhere_but_at_health():
    with on_thread(engine_of(FakeEmbedder()), api_key=KEY) as served:
        served.wait_healthy()
        for path in ("/status", "/metrics", "/docs", "/openapi.json", "/v1/models", "/info"):
            assert served.get(path).status_code == 401, path
            assert served.get(path, headers={"authorization": f"Bearer {KEY}"}).status_code == 200, path
        refused = served.post("/v1/embeddings", {"input": "a"}, headers={"authorization": "Bearer wrong"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert served.post("/embed", {"texts": ["a"]}).json()["error_type"] == "Validation"
        assert served.post("/v2/rerank", {}).json()["message"]


def test_while_the_server_drains_new_requests_are_refused_and_old_ones_answered():
    hold = Hold()
    with on_thread(engine_of(FakeEmbedder(hold))) as served, concurrent.futures.ThreadPoolExecutor(4) as threads:
        served.wait_healthy()
        assert served.drain is not None
        hold.close()
        first = threads.submit(served.post, "/embed", {"texts": ["in the model"]})
        assert hold.entered.wait(30)
        with httpx.Client(timeout=30) as client:
            assert client.get(f"{served.address}/health").headers.get("connection") != "close"
            served.drain()
            wait_until(lambda: served.get("/health").status_code == 503)
            late = client.post(f"{served.address}/embed", json={"texts": ["too late"]})  # on the connection of before
        hold.open.set()
        answered = first.result(30)
    assert (late.status_code, late.headers["connection"]) == (503, "close") and late.json()["error_type"] == "Unhealthy"
    assert answered.status_code == 200 and answered.headers["connection"] == "close"


def _ask_until(stop: threading.Event, served: Served) -> list[int]:
    """Requests one after the other on one connection, each answered in full."""
    body = {"texts": [f"passage {number} of many " * 30 for number in range(16)]}
    statuses: list[int] = []
    with httpx.Client(timeout=60, headers={"x-ragdeck-caches": "bypass"}) as client:
        while not stop.is_set():
            answer = client.post(f"{served.address}/embed", json=body)
            statuses.append(answer.status_code)
            assert answer.status_code == 503 or len(answer.json()["dense_embeddings"]) == 16
    return statuses


def test_sigterm_under_load_answers_every_accepted_request_and_ends_with_0():
    stop = threading.Event()
    with process("--device", "cpu", "--reranker", "none") as served, concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert served.process is not None
        callers = [threads.submit(_ask_until, stop, served) for _ in range(4)]
        wait_until(lambda: served.metric("ragdeck_active_requests") == 4)
        stop.set()
        served.process.send_signal(signal.SIGTERM)
        statuses = [caller.result(60) for caller in callers]  # who was cut off would raise
        assert all(statuses) and {status for answers in statuses for status in answers} <= {200, 503}
        assert served.process.wait(60) == 0
        with (
            pytest.raises(ConnectionRefusedError),
            socket.create_connection(("127.0.0.1", int(served.address.rsplit(":", 1)[1]))),
        ):
            pass


def test_sigterm_while_the_model_loads_ends_with_0():
    with process("--device", "cpu", healthy=False) as served:
        assert served.process is not None
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(60) == 0
