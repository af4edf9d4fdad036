"""Functional probes of models: against our real GPU server, a real OpenAI-compatible server, and fakes for what those never do."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from collectors import probe_samples as samples
from collectors.probes import engine_metrics, probe
from collectors.services import ProbeResult, Service
from collectors.vllm_metrics import engine
from tests.collectors.service_fakes import fake_service, running, wait_for
from tests.llm import tiny
from tests.ports import free_port


def works(address: str, kind: Any, **changes: Any) -> ProbeResult:
    return probe(Service("probed", kind, address, **{"timeout_seconds": 20.0, **changes}), "functional")


# ------------------------------------------------------------------------------------------------------- real servers


@pytest.fixture(scope="module")
def gpu_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Our GPU server with the starter models, healthy."""
    port, home = free_port(), tmp_path_factory.mktemp("gpu_server")
    environment = {**os.environ, "DEVICE": "cpu", "RAGDECK_DATA_DIR": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gpu_server", "--port", str(port)]
    with running(command, port, env=environment, cwd=Path(__file__).parents[2]) as process:
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: probe(Service("gpu", "gpu_server", address)).up, process)
        yield address


def test_our_gpu_server_embeds_and_ranks(gpu_server: str):
    alive = probe(Service("gpu", "gpu_server", gpu_server))
    assert (alive.state, alive.device) == ("ok", "cpu") and alive.models
    result = works(gpu_server, "gpu_server")
    assert result.up, result
    assert result.version and result.models == alive.models
    assert result.measures["dimension"] == 384 and result.measures["norm"] == pytest.approx(1, abs=1e-3)
    assert result.measures["embed_seconds"] + result.measures["rerank_seconds"] == pytest.approx(result.latency.total_seconds)


@pytest.mark.parametrize("kind", ["openai-embeddings", "rerank"])
def test_our_gpu_server_in_its_other_dialects(gpu_server: str, kind: str):
    assert probe(Service("gpu", kind, gpu_server)).state == "ok"  # type: ignore[arg-type]
    assert works(f"{gpu_server}/v1", kind).up
    missing = works(gpu_server, "openai-embeddings", model="nobody/knows")
    assert (missing.state, missing.failure) == ("failed", "model") and "nobody/knows" in missing.message


def test_what_our_gpu_server_counts(gpu_server: str):
    service = Service("gpu", "gpu_server", gpu_server)
    before = engine_metrics(service)
    assert works(gpu_server, "gpu_server").up
    reading = engine(engine_metrics(service), before, 2.0)
    assert reading.requests_per_second == 1.0, "an embedding and a ranking in two seconds"
    assert reading.running is not None and reading.request_p95_seconds is not None and reading.queue_p50_seconds is not None
    assert reading.prompt_tokens_per_second and reading.models and reading.kv_cache_used_ratio is None


def test_a_real_openai_server_generates_a_token(llm_server):
    alive = probe(Service("llm", "openai-chat", llm_server.address, timeout_seconds=30))
    assert alive.state == "ok" and tiny.NAME in (alive.models or ())
    result = works(f"{llm_server.address}/v1", "openai-chat", timeout_seconds=60, model=tiny.NAME)
    assert result.state == "ok", result
    assert 0 < result.measures["ttft_seconds"] <= result.latency.total_seconds
    missing = works(llm_server.address, "openai-chat", model="nobody/knows", timeout_seconds=60)
    assert missing.state == "failed"


# ---------------------------------------------------------------------------------------------------------- embeddings


def embeddings(*vectors: Any) -> dict[str, Any]:
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    return {"object": "list", "model": "served", "data": data}


@pytest.mark.parametrize(
    "body, state, failure, said",
    [
        (embeddings([0.6, 0.8], [0.8, 0.6]), "ok", None, "2 dimensions"),
        (embeddings([3.0, 4.0], [4.0, 3.0]), "ok", None, "2 dimensions"),
        (embeddings([0.6, 0.8], [0.6, 0.8]), "degraded", "model", "same vector"),
        (embeddings([0.6, 0.8]), "failed", "bad_answer", "1 vectors"),
        (embeddings([0.6, 0.8], [0.6]), "failed", "bad_answer", "different lengths"),
        (embeddings([], []), "failed", "bad_answer", "empty"),
        (embeddings([0.0, 0.0], [0.6, 0.8]), "failed", "bad_answer", "zero"),
        (embeddings([0.6, None], [0.6, 0.8]), "failed", "bad_answer", "finite"),
        (embeddings([0.6, True], [0.6, 0.8]), "failed", "bad_answer", "finite"),
        (embeddings([0.6, 10**400], [0.6, 0.8]), "failed", "bad_answer", "finite"),
    ],
)
def test_vectors_are_looked_at(body, state, failure, said):
    with fake_service({"POST /v1/embeddings": body}) as fake:
        result = works(fake.address, "openai-embeddings", model="m")
        sent = json.loads(fake.asked[0].body)
    assert (result.state, result.failure) == (state, failure), result
    assert said in result.message
    assert sent["input"] == list(samples.SENTENCES) and sent["model"] == "m"


def test_vectors_with_nan_and_vectors_that_are_not_normalised():
    with fake_service({"POST /v1/embeddings": '{"data": [{"embedding": [NaN, 1]}, {"embedding": [1, 1]}]}'}) as fake:
        assert works(fake.address, "openai-embeddings", model="m").failure == "bad_answer"
        fake.answers["POST /v1/embeddings"] = embeddings([3.0, 4.0], [4.0, 3.0])
        result = works(fake.address, "openai-embeddings", model="m")
    assert result.measures["norm"] == 5.0 and "not normalised" in result.notes[0]
    assert result.models == ("served",)


def test_without_a_model_in_the_settings_the_first_one_served_is_asked():
    models = {"data": [{"id": "first"}, {"id": "second"}]}
    with fake_service({"GET /v1/models": models, "POST /v1/embeddings": embeddings([0.6, 0.8], [0.8, 0.6])}) as fake:
        assert works(fake.address, "openai-embeddings").state == "ok"
        assert json.loads(fake.asked[1].body)["model"] == "first"
        fake.answers["GET /v1/models"] = {"data": []}
        assert works(fake.address, "openai-embeddings").failure == "model"


def test_a_cached_answer_is_not_asked_for():
    with fake_service({"POST /v1/embeddings": embeddings([0.6, 0.8], [0.8, 0.6])}) as fake:
        works(fake.address, "openai-embeddings", model="m")
    assert fake.asked[0].headers["x-ragdeck-caches"] == "bypass"


# -------------------------------------------------------------------------------------------------------------- rerank

NATIVE = {"rankings": [1, 0], "scores": [0.9, 0.1]}
COHERE = {"results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]}
TEI = [{"index": 1, "score": 0.9}, {"index": 0, "score": 0.1}]


def only(**wanted: type) -> Any:
    """A handler that takes bodies with these fields alone, as strict servers do, and answers in TEI's shape."""

    async def handle(request: Request) -> Response:
        body = await request.json()
        for name, kind in wanted.items():
            if name not in body or not isinstance(body[name][0], kind):
                return JSONResponse({"detail": [{"loc": ["body", name], "msg": "Field required"}]}, 422)
        return JSONResponse(NATIVE if "documents" in wanted else TEI)

    return handle


@pytest.mark.parametrize(
    "answers, note",
    [
        ({"POST /rerank": NATIVE}, "documents as texts"),
        ({"POST /rerank": COHERE}, "documents as texts"),
        ({"POST /rerank": only(documents=dict)}, "documents with content"),
        ({"POST /rerank": only(texts=str)}, "TEI's texts"),
        ({"POST /v1/rerank": COHERE}, "Cohere's shape"),
    ],
)
def test_rerank_in_every_shape(answers, note):
    with fake_service(answers) as fake:
        result = works(fake.address, "rerank")
    assert result.state == "ok", result
    assert result.measures["right_first"] == 1.0 and any(note in said for said in result.notes)
    assert result.latency.total_seconds >= result.measures["rerank_seconds"] > 0


@pytest.mark.parametrize(
    "body",
    [
        {"rankings": [1], "scores": [0.9]},
        {"rankings": [1, 0], "scores": [0.9]},
        {"rankings": [1, 1], "scores": [0.9, 0.8]},
        {"rankings": [0, 2], "scores": [0.9, 0.8]},
        {"rankings": [1, 0], "scores": [0.9, None]},
        {"results": [{"index": 1}, {"index": 0}]},
        [{"index": 1, "score": 0.9}],
    ],
)
def test_scores_that_do_not_add_up(body):
    with fake_service({"POST /rerank": body}) as fake:
        result = works(fake.address, "rerank")
    assert (result.state, result.failure) == ("failed", "bad_answer"), result


def test_a_wrong_winner_is_a_note_and_no_failure():
    with fake_service({"POST /rerank": {"rankings": [0, 1], "scores": [0.9, 0.1]}}) as fake:
        wrong = works(fake.address, "rerank")
        fake.answers["POST /rerank"] = {"rankings": [1, 0], "scores": [0.5, 0.5]}
        constant = works(fake.address, "rerank")
    for result in (wrong, constant):
        assert result.state == "ok" and result.measures["right_first"] == 0.0
        assert "does not put the passage" in result.notes[0]


def test_a_reranker_of_its_own_with_the_url_of_its_endpoint():
    with fake_service({"POST /api/rerank": NATIVE, "GET /api/health": {"status": "ok"}}) as fake:
        assert works(f"{fake.address}/api/rerank", "rerank").state == "ok"
        assert probe(Service("r", "rerank", f"{fake.address}/api/rerank")).state == "ok"
        result = works(f"{fake.address}/elsewhere", "rerank")
    assert (result.state, result.failure) == ("failed", "not_found")


def test_a_gpu_server_with_a_reranker_alone():
    health = {"status": "healthy", "device": "cpu", "model": "BAAI/bge-reranker-v2-m3"}
    with fake_service({"GET /health": health, "POST /rerank": NATIVE}) as fake:
        result = works(fake.address, "gpu_server")
        assert result.state == "ok" and "rerank_seconds" in result.measures and "dimension" not in result.measures
        del fake.answers["POST /rerank"]
        assert works(fake.address, "gpu_server").failure == "model"
        fake.answers["GET /health"] = {**health, "models": [{"name": "r", "kind": "reranker"}]}
        assert works(fake.address, "gpu_server").failure == "not_found", "it says that it has a reranker"


# ---------------------------------------------------------------------------------------------------------------- chat


def stream(*chunks: Any) -> Response:
    lines = "".join(f"data: {chunk if isinstance(chunk, str) else json.dumps(chunk)}\n\n" for chunk in chunks)
    return Response(lines, headers={"content-type": "text/event-stream"})


def delta(finish: str | None = None, **said: str) -> dict[str, Any]:
    return {"model": "served", "choices": [{"index": 0, "delta": said, "finish_reason": finish}]}


@pytest.mark.parametrize(
    "chunks",
    [
        (delta(role="assistant"), delta(content="P"), "[DONE]"),
        (delta(reasoning_content="hm"), "[DONE]"),
        (delta(reasoning="hm"), "[DONE]"),
        (delta(finish="length", content=""), "[DONE]"),
        ("not json", delta(content="P")),
    ],
)
def test_a_token_is_recognised(chunks):
    with fake_service({"POST /v1/chat/completions": stream(*chunks)}) as fake:
        result = works(fake.address, "openai-chat", model="m")
        sent = json.loads(fake.asked[0].body)
    assert result.state == "ok" and result.measures["ttft_seconds"] > 0 and result.models == ("served",)
    assert (sent["max_tokens"], sent["stream"]) == (1, True)


@pytest.mark.parametrize(
    "chunks, failure",
    [
        ((delta(role="assistant"), "[DONE]"), "bad_answer"),
        ((), "bad_answer"),
        ((delta(content="P"), {"error": {"message": "CUDA error"}}), "server_error"),
        (({"error": "CUDA error"},), "server_error"),
    ],
)
def test_a_stream_that_fails(chunks, failure):
    with fake_service({"POST /v1/chat/completions": stream(*chunks)}) as fake:
        result = works(fake.address, "openai-chat", model="m")
    assert (result.state, result.failure) == ("failed", failure)


def test_the_first_token_is_timed_apart_from_the_head_and_the_end():
    async def slowly(request: Request) -> Response:
        async def pieces() -> Any:
            import asyncio

            yield b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n'
            await asyncio.sleep(1.0)
            yield b'data: {"choices": [{"delta": {"content": "P"}}]}\n\n'
            await asyncio.sleep(1.0)
            yield b"data: [DONE]\n\n"

        return StreamingResponse(pieces(), media_type="text/event-stream")

    with fake_service({"POST /v1/chat/completions": slowly}) as fake:
        result = works(fake.address, "openai-chat", model="m")
    first_byte, ttft = result.latency.first_byte_seconds, result.measures["ttft_seconds"]
    assert first_byte is not None and first_byte + 0.5 < ttft < result.latency.total_seconds - 0.5


def test_a_server_that_does_not_stream():
    whole = {"model": "served", "choices": [{"message": {"role": "assistant", "content": "Paris"}}]}
    with fake_service({"POST /v1/chat/completions": whole, "GET /version": {"version": "0.11.0"}}) as fake:
        result = works(fake.address, "openai-chat", model="m")
        fake.answers["POST /v1/chat/completions"] = JSONResponse({"error": {"message": "The model `m` does not exist."}}, 404)
        missing = works(fake.address, "openai-chat", model="m")
    assert result.state == "ok" and "ttft_seconds" not in result.measures and "does not stream" in result.notes[0]
    assert result.version == "0.11.0"
    assert (missing.failure, missing.state) == ("model", "failed")


# ----------------------------------------------------------------------------------------------------- speech and pages


@pytest.mark.parametrize("language", ["he", "en"])
def test_a_spoken_sentence_is_sent_and_its_words_counted(language):
    heard: dict[str, Any] = {}

    async def transcribe(request: Request) -> Response:
        form = await request.form()
        heard.update({name: value for name, value in form.items() if isinstance(value, str)})
        heard["audio"] = await form["file"].read()  # type: ignore[union-attr]
        return JSONResponse({"text": f"« {samples.SPEECH[language].upper()}! »"})

    with fake_service({"POST /v1/audio/transcriptions": transcribe}) as fake:
        result = works(f"{fake.address}/v1", "whisper", model="w", language=language)
    assert result.state == "ok" and result.measures["word_recall_ratio"] == 1.0
    assert (heard["model"], heard["language"]) == ("w", language)
    with wave.open(io.BytesIO(heard["audio"])) as audio:
        assert (audio.getframerate(), audio.getnchannels(), audio.getsampwidth()) == (16_000, 1, 2)
        assert 1.5 < audio.getnframes() / audio.getframerate() < 3


def test_a_transcript_of_something_else():
    with fake_service({"POST /v1/audio/transcriptions": {"text": "thank you for watching"}}) as fake:
        result = works(fake.address, "whisper", model="w")
        fake.answers["POST /v1/audio/transcriptions"] = {"text": ""}
        silent = works(fake.address, "whisper", model="w")
    for each in (result, silent):
        assert (each.state, each.failure) == ("degraded", "model") and each.measures["word_recall_ratio"] == 0.0
    assert "thank you for watching" in result.notes[0]


def test_a_page_is_sent_and_its_words_counted():
    seen: list[Image.Image] = []

    async def read(request: Request) -> Response:
        body = await request.json()
        url = body["messages"][0]["content"][1]["image_url"]["url"]
        seen.append(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))
        text = "**Invoice 4071**\nDelivery: 12 pumps\nחֶשְׁבּוֹן מספר 4071"
        return JSONResponse({"model": "ocr", "choices": [{"message": {"content": text}}]})

    with fake_service({"POST /v1/chat/completions": read}) as fake:
        result = works(fake.address, "ocr", model="o")
        fake.answers["POST /v1/chat/completions"] = {"choices": [{"message": {"content": "I see no image."}}]}
        blind = works(fake.address, "ocr", model="o")
    assert result.state == "ok" and 0.6 < result.measures["word_recall_ratio"] < 1.0
    assert seen[0].size == (620, 300)
    assert (blind.state, blind.failure) == ("degraded", "model")
