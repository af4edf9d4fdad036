"""The server over a real socket with the starter models: every path in its dialect, and plain curl as in the field reports."""

from __future__ import annotations

import base64
import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.gpu_server.serving import ROOT, Served, process

CAT, DOG, TAX = "A cat sat on the mat.", "The dog barks.", "Article 72 of the income tax act."
HEADERS = ("x-total-time", "x-load-time", "x-queue-time", "x-tokenization-time", "x-inference-time")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with process("--device", "cpu", "--precision", "fp32") as served:
        yield served


def curl(*arguments: str) -> Any:
    done = subprocess.run(["curl", "-sS", "--max-time", "30", *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def rows(data: Any) -> np.ndarray:
    return np.array(data, dtype=np.float32)


# as in the field reports


def test_curl_as_in_r0(server: Served):
    health = curl(f"{server.address}/health")
    assert (health["status"], health["device"], health["gpu"], health["model"]) == ("healthy", "cpu", None, "all-MiniLM-L6-v2")
    embedded = curl(
        "-X", "POST", f"{server.address}/embed", "-H", "Content-Type: application/json",
        "-d", '{"texts": ["Hello", "World"], "return_dense": true, "return_sparse": true}',
    )  # fmt: skip
    assert rows(embedded["dense_embeddings"]).shape == (2, 384)
    assert embedded["sparse_embeddings"] is None, "the starter has no sparse weights: unknown, not empty"
    ranked = curl(
        "-X", "POST", f"{server.address}/rerank", "-H", "Content-Type: application/json",
        "-d", json.dumps({"query": "income tax", "documents": [CAT, TAX, DOG], "top_k": 2}),
    )  # fmt: skip
    assert ranked["rankings"][0] == 1 and len(ranked["rankings"]) == len(ranked["scores"]) == 2
    assert 1 > ranked["scores"][0] > ranked["scores"][1] > 0
    assert curl(f"{server.address}/status")["models"][0]["kind"] == "embedder"


def test_curl_as_in_r2(server: Served):
    documents = [{"content": CAT, "metadata": {"page": 1}}, {"content": TAX, "metadata": {"page": 2}}]
    ranked = curl(f"{server.address}/rerank", "--json", json.dumps({"query": "income tax", "documents": documents}))
    assert ranked["rankings"] == [1, 0]


def test_curl_as_in_r3(server: Served):
    body = '{"input": "Hello", "model": "all-MiniLM-L6-v2"}'
    answer = curl(
        f"{server.address}/v1/embeddings", "-H", "Content-Type: application/json", "-H", "Authorization: Bearer x", "-d", body
    )
    assert answer["data"][0]["index"] == 0 and len(answer["data"][0]["embedding"]) == 384
    assert answer["model"] == "all-MiniLM-L6-v2" and answer["usage"]["total_tokens"] == 3


# native


def test_the_same_text_gives_the_same_vector_in_every_dialect(server: Served):
    native = rows(server.post("/embed", {"texts": [CAT, DOG]}).json()["dense_embeddings"])
    tei = rows(server.post("/embed", {"inputs": [CAT, DOG]}).json())
    openai = rows([item["embedding"] for item in server.post("/v1/embeddings", {"input": [CAT, DOG]}).json()["data"]])
    assert np.allclose(native, tei, atol=1e-6) and np.allclose(native, openai, atol=1e-6)
    assert np.allclose(np.linalg.norm(native, axis=1), 1, atol=1e-5)


def test_answers_say_what_they_cost(server: Served):
    answer = server.post("/embed", {"texts": [CAT, "word " * 1000]}, headers={"x-ragdeck-caches": "bypass"})
    times = {name: float(answer.headers[name]) for name in HEADERS}
    assert times["x-inference-time"] > 0
    assert times["x-total-time"] >= times["x-inference-time"]
    assert answer.headers["x-truncated"] == "1", "truncation is never silent"
    assert int(answer.headers["x-compute-tokens"]) > 256
    assert answer.headers["x-cold"] == "0", "the server loads and runs its models before it says healthy"
    assert answer.headers["x-model-identity"] == server.get("/health").json()["models"][0]["identity"]


def test_what_is_not_asked_for_is_null(server: Served):
    answer = server.post("/embed", {"texts": CAT, "return_dense": False, "return_sparse": False}).json()
    assert answer == {"dense_embeddings": None, "sparse_embeddings": None}


def test_a_query_asked_again_comes_from_the_cache_unless_bypassed(server: Served):
    body = {"texts": ["A question that is asked twice?"], "kind": "query"}
    first, again = server.post("/embed", body), server.post("/embed", body)
    assert (first.headers["x-cached"], again.headers["x-cached"]) == ("0", "1")
    assert first.json() == again.json()
    assert server.post("/embed", body, headers={"x-ragdeck-caches": "bypass"}).headers["x-cached"] == "0"
    assert server.post("/embed", body, headers={"x-ragdeck-caches": "sometimes"}).status_code == 422
    assert server.get("/status").json()["caches"]["query_embeddings"]["hits"] >= 1


def test_rerank_gives_raw_scores_when_asked(server: Served):
    body = {"query": "cat", "documents": [{"text": DOG}, CAT]}
    raw = server.post("/rerank", {**body, "raw_scores": True}).json()
    activated = server.post("/rerank", body).json()
    assert raw["rankings"] == activated["rankings"] == [1, 0]
    assert activated["scores"] == pytest.approx([1 / (1 + math.exp(-score)) for score in raw["scores"]], abs=1e-6)


# TEI


def test_tei_rerank_sorts_and_returns_texts(server: Served):
    ranks = server.post("/rerank", {"query": "cat", "texts": [DOG, CAT], "return_text": True}).json()
    assert [(rank["index"], rank["text"]) for rank in ranks] == [(1, CAT), (0, DOG)]
    assert ranks[0]["score"] > ranks[1]["score"]
    assert set(server.post("/rerank", {"query": "cat", "texts": [DOG]}).json()[0]) == {"index", "score"}


def test_tei_truncate_false_refuses_what_would_be_cut(server: Served):
    long = {"inputs": "word " * 1000}
    assert server.post("/embed", long).headers["x-truncated"] == "1"
    refused = server.post("/embed", {**long, "truncate": False})
    assert (refused.status_code, refused.json()["error_type"]) == (413, "Validation")


def test_tei_sparse_is_refused_where_there_are_no_weights(server: Served):
    refused = server.post("/embed_sparse", {"inputs": CAT})
    assert refused.status_code == 422 and "sparse" in refused.json()["error"]


def test_tei_vectors_that_are_not_normalised_are_refused(server: Served):
    assert server.post("/embed", {"inputs": CAT, "normalize": False}).status_code == 422


def test_tei_info(server: Served):
    info = server.get("/info").json()
    assert (info["model_id"], info["max_input_length"]) == ("all-MiniLM-L6-v2", 256)


# OpenAI and Cohere


def test_base64_holds_the_same_numbers(server: Served):
    floats = server.post("/v1/embeddings", {"input": CAT, "encoding_format": "float"}).json()["data"][0]["embedding"]
    packed = server.post("/v1/embeddings", {"input": CAT, "encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(packed), dtype="<f4"), rows(floats))


def test_dimensions_cut_and_normalise_again(server: Served):
    whole = rows(server.post("/v1/embeddings", {"input": CAT}).json()["data"][0]["embedding"])
    cut = rows(server.post("/v1/embeddings", {"input": CAT, "dimensions": 16}).json()["data"][0]["embedding"])
    assert np.allclose(cut, whole[:16] / np.linalg.norm(whole[:16]), atol=1e-6)


@pytest.mark.parametrize("dimensions", [0, -1, 385, 1.5, "16"])
def test_dimensions_that_the_model_has_not_are_refused(server: Served, dimensions: Any):
    refused = server.post("/v1/embeddings", {"input": CAT, "dimensions": dimensions})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "dimensions"


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_rerank_as_cohere_and_jina(server: Served, path: str):
    body = {"model": "starter", "query": "cat", "documents": [DOG, {"text": CAT}], "top_n": 1}
    answer = server.post(path, body, headers={"x-ragdeck-caches": "bypass"}).json()
    (best,) = answer["results"]
    assert (best["index"], best["document"]) == (1, {"text": CAT}) and 0 < best["relevance_score"] < 1
    assert answer["id"] and answer["model"] == "starter cosine" and answer["usage"]["total_tokens"] > 0
    assert "document" not in server.post(path, {**body, "return_documents": False}).json()["results"][0]


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "ALL-minilm-l6-V2", "starter"])
def test_a_model_is_known_by_its_names(server: Served, name: str):
    assert server.post("/v1/embeddings", {"input": CAT, "model": name}).status_code == 200


def test_another_model_is_not_found(server: Served):
    refused = server.post("/v1/embeddings", {"input": CAT, "model": "text-embedding-3-small"})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (404, "model_not_found") and "all-MiniLM-L6-v2" in error["message"]
    refused = server.post("/v2/rerank", {"query": "cat", "documents": [CAT], "model": "rerank-v3.5"})
    assert refused.status_code == 404 and "starter cosine" in refused.json()["message"]


# what the server says of itself


def test_models_are_listed(server: Served):
    assert {row["id"] for row in server.get("/v1/models").json()["data"]} == {"all-MiniLM-L6-v2", "starter cosine"}


def test_status_says_what_is_loaded_and_how_it_is_used(server: Served):
    server.post("/embed", {"texts": [CAT]})
    status = server.get("/status").json()
    assert status["status"] == "healthy" and status["uptime_seconds"] > 0
    embedder = next(model for model in status["models"] if model["kind"] == "embedder")
    assert embedder["state"] == "warm" and embedder["load_seconds"] > 0 and embedder["first_run_seconds"] > 0
    assert embedder["info"]["device"] == "cpu" and embedder["info"]["precision"] == "fp32"
    assert status["requests"]["answered"] >= 1 and status["requests"]["tokens_per_second"] > 0
    assert status["gpus"] == []


def test_metrics_count_requests_texts_and_tokens(server: Served):
    before = {name: server.metric(name) for name in ("te_request_count", "te_request_success", "ragdeck_texts_total")}
    server.post("/embed", {"texts": [CAT, DOG]})
    assert server.metric("te_request_count") == before["te_request_count"] + 1
    assert server.metric("te_request_success") == before["te_request_success"] + 1
    assert server.metric("ragdeck_texts_total") == before["ragdeck_texts_total"] + 2
    assert server.metric("te_request_duration_count") >= 1
    assert server.metric("ragdeck_model_load_seconds") > 0
    assert server.metric("ragdeck_active_requests") == 0, "the scrape does not count itself"


def test_promtool_has_nothing_to_say_against_the_metrics(server: Served):
    server.post("/embed", {"texts": [CAT]})
    page = server.get("/metrics").content
    assert b"# TYPE ragdeck_texts_total counter" in page and b"# TYPE te_queue_size gauge" in page
    promtool = shutil.which("promtool")
    if promtool is not None:  # CI has it
        done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_docs_need_nothing_from_elsewhere(server: Served):
    api = server.get("/openapi.json").json()
    assert {"/embed", "/rerank", "/embed_sparse", "/v1/embeddings", "/v1/rerank", "/health", "/metrics"} <= set(api["paths"])
    body = api["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["encoding_format"]
    page = server.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text and "https://" not in page.text and "//cdn" not in page.text


# the command


def run(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    import os
    import sys

    command = [sys.executable, "-m", "gpu_server", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=150, env={**os.environ, **(environment or {})}
    )


def test_a_taken_port_ends_with_1_and_is_named(server: Served):
    port = server.address.rsplit(":", 1)[1]
    done = run("--port", port)
    assert done.returncode == 1 and port in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("--embedder", "none", "--reranker", "none"), ("--port", "99999"), ("--precision", "fp7")])
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...]):
    assert run(*arguments).returncode == 2


def test_the_environment_sets_defaults():
    done = run("--port", "0", environment={"EMBEDDING_MODEL": "none", "RERANKER_MODEL": "none"})
    assert done.returncode == 2 and "nothing to serve" in done.stderr
