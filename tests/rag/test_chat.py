"""The chat client against a real OpenAI-compatible server, and against fakes for the answers that no healthy server gives."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from gpu_server.interfaces import ChatRequest, Delta
from rag.chat import OpenAIChat, base_url
from rag.errors import RagError
from rag.generate import ThinkFilter
from tests.llm import fakes, tiny
from tests.llm.fakes import DONE, SILENCE, FakeServer
from tests.llm.server import LlmServer
from tests.ports import reserved_port

SOON = 30.0  # seconds that a thing may take which should take none: far over any machine's hiccup


def asking(text: str, max_tokens: int = 40, **more: object) -> ChatRequest:
    request = ChatRequest(({"role": "user", "content": text},), max_tokens, temperature=0.2, thinking=False, timeout=60.0)
    return replace(request, **more)  # type: ignore[arg-type]


def client(address: str, model: str | None = "fake", key: str | None = None) -> OpenAIChat:
    return OpenAIChat(address, model, key, timeout=60.0)


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def failure(chat: OpenAIChat, request: ChatRequest | None = None) -> RagError:
    with pytest.raises(RagError) as caught:
        list(chat.stream(request or asking("hello")))
    assert caught.value.address == chat.address
    assert caught.value.next_step
    return caught.value


def until_text(deltas: Iterator[Delta]) -> str:
    return next(delta.text for delta in deltas if delta.text)


# a real server


def test_text_comes_in_pieces_with_counts_and_the_finish_reason(llm_server: LlmServer):
    deltas = list(client(llm_server.address, llm_server.model).stream(asking("a short one please")))
    assert text_of(deltas).split() == tiny.SHORT
    assert sum(1 for delta in deltas if delta.text) == len(tiny.SHORT)
    closing = deltas[-1]
    assert (closing.prompt_tokens, closing.completion_tokens) == (6, len(tiny.SHORT) + 1)  # and the end token
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["stop"]


def test_an_answer_cut_at_max_tokens_says_so(llm_server: LlmServer):
    deltas = list(client(llm_server.address, llm_server.model).stream(asking("on and on", max_tokens=5)))
    assert text_of(deltas).split() == tiny.LONG[:5]
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["length"]
    assert deltas[-1].completion_tokens == 5


def test_thinking_is_switched_off_by_the_request_and_filtered_where_it_is_not(llm_server: LlmServer):
    chat = client(llm_server.address, llm_server.model)
    thinking = list(chat.stream(asking("short", thinking=True)))
    filtered = ThinkFilter()
    pairs = [filtered.feed(delta.text) for delta in thinking]
    assert "".join(answer for answer, _ in pairs).split() == tiny.SHORT
    assert "".join(reasoning for _, reasoning in pairs).split() == tiny.THOUGHT
    assert "think" not in text_of(list(chat.stream(asking("short"))))


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_without_a_model_the_servers_first_is_taken_however_the_address_ends(llm_server: LlmServer, suffix: str):
    chat = client(llm_server.address + suffix, model=None)
    assert chat.model() == llm_server.model
    assert chat.info.name == llm_server.model


def test_an_unknown_model_is_the_servers_error(llm_server: LlmServer):
    problem = failure(client(llm_server.address, "no/such"))
    assert problem.kind == "internal"  # transformers answers 500; a server that says 404 gives 'model', below
    assert "500" in problem.message


def test_a_connection_that_the_server_closed_meanwhile_is_no_error(llm_server: LlmServer):
    chat = client(llm_server.address, llm_server.model)
    failure(chat, asking("short", model="no/such"))  # uvicorn ends the connection after this error without announcing it
    assert text_of(list(chat.stream(asking("short")))).split() == tiny.SHORT


def test_many_askers_share_a_client(llm_server: LlmServer):
    chat = client(llm_server.address, model=None)
    texts: list[str] = []
    askers = [threading.Thread(target=lambda: texts.append(text_of(list(chat.stream(asking("short")))))) for _ in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(60)
    assert [text.split() for text in texts] == [tiny.SHORT] * 4


def test_a_server_killed_in_mid_stream_is_a_connection_error_at_once(doomed_llm_server: LlmServer):
    chat = client(doomed_llm_server.address, doomed_llm_server.model)
    deltas = chat.stream(asking("on and on", max_tokens=20_000))
    assert until_text(deltas)
    doomed_llm_server.kill()
    killed = time.monotonic()
    with pytest.raises(RagError) as caught:
        list(deltas)
    assert time.monotonic() - killed < SOON
    assert caught.value.kind == "connection"
    assert caught.value.address == chat.address
    assert failure(chat).kind == "connection"  # and so is the next question, at once


# cancel and time limits


def test_a_cancel_in_mid_stream_closes_the_connection():
    with FakeServer([(fakes.events(fakes.delta(content="Hello")), SILENCE)]) as server:
        deltas = client(server.address).stream(asking("hello"))
        assert until_text(deltas) == "Hello"
        deltas.close()
        assert server.left.wait(SOON)


def test_a_cancel_before_the_server_answers_closes_the_connection():
    with FakeServer([(SILENCE,)]) as server:
        deltas = client(server.address).stream(asking("hello"))
        assert next(deltas) == Delta()  # a beat, so that a caller can look at its cancel token
        assert server.asked.wait(SOON)
        deltas.close()
        assert server.left.wait(SOON)


def test_every_connection_is_read_by_one_thread():
    with FakeServer([(SILENCE,)]) as server:
        chat = client(server.address)
        streams = [chat.stream(asking("hello")) for _ in range(5)]
        for deltas in streams:
            next(deltas)
        assert sum(thread.name == "chat-reader" for thread in threading.enumerate()) == 1
        for deltas in streams:
            deltas.close()


@pytest.mark.parametrize("said", [(SILENCE,), (fakes.events(fakes.delta(content="Hello")), SILENCE)], ids=["mute", "stalled"])
def test_a_silent_server_is_left_at_the_time_limit(said: tuple[bytes, ...]):
    with FakeServer([said]) as server:
        started = time.monotonic()
        problem = failure(client(server.address), asking("hello", timeout=2.0))
        assert 2.0 <= time.monotonic() - started < 2.0 + SOON
        assert problem.kind == "timeout"
        assert server.left.wait(SOON)


def test_a_server_that_never_stops_talking_is_left_at_the_time_limit_too(llm_server: LlmServer):
    problem = failure(client(llm_server.address, llm_server.model), asking("on and on", max_tokens=30_000, timeout=0.5))
    assert problem.kind == "timeout"


# answers of servers that are ill, misconfigured or of another make


def test_nobody_listens():
    with reserved_port() as port:
        problem = failure(client(f"http://127.0.0.1:{port}"))
    assert problem.kind == "connection"
    assert "VLLM_BASE_URL" in problem.next_step


def test_a_host_that_does_not_exist():
    assert failure(client("http://no-such-host.invalid:8000")).kind == "connection"


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (fakes.error(401, "Incorrect API key: sk-secret"), "authentication", "refused the key"),
        (fakes.error(403, "no"), "authentication", "refused the key"),
        (fakes.error(404, "The model `fake` does not exist."), "model", "The model `fake` does not exist."),
        (fakes.error(400, "maximum context length is 4096 tokens"), "bad_input", "maximum context length"),
        (fakes.error(413, "too large"), "bad_input", "too large"),
        (fakes.error(422, "wrong"), "bad_input", "wrong"),
        (fakes.error(429, "queue is full"), "overloaded", "queue is full"),
        (fakes.error(500, "CUDA out of memory"), "internal", "CUDA out of memory"),
        (fakes.error(502, "bad gateway"), "connection", "bad gateway"),
        (fakes.error(503, "loading"), "overloaded", "loading"),
        (fakes.error(504, "gateway timeout"), "timeout", "gateway timeout"),
        (fakes.reply(200, "<html><body>It works!</body></html>", "text/html"), "bad_answer", "no completion"),
        (fakes.reply(404, "<html>nginx</html>", "text/html"), "model", "404"),
        (fakes.reply(200, ""), "bad_answer", "no completion"),
        (fakes.events("{not json"), "bad_answer", ""),
        (fakes.events('"a string"'), "bad_answer", ""),
        (fakes.events() + DONE, "bad_answer", "no completion"),
        (fakes.events(fakes.delta(content="Hel"), {"error": {"message": "engine died"}}), "internal", "engine died"),
        (fakes.events(fakes.delta(content="Hel"), {"error": "CUDA error"}), "internal", ""),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "connection", ""),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\ncontent-type: text/event-stream\r\n\r\ndata: ", "connection", ""),
    ],
)
def test_each_wrong_answer_has_its_kind(answer: bytes, kind: str, said: str):
    with FakeServer([answer]) as server:
        problem = failure(client(server.address, key="sk-secret"))
    assert (problem.kind, said in problem.message) == (kind, True), problem.message
    assert "sk-secret" not in problem.message


@pytest.mark.parametrize(
    ("listed", "kind"),
    [
        (fakes.reply(200, '{"object": "list", "data": []}'), "model"),
        (fakes.reply(200, "<html>", "text/html"), "bad_answer"),
        (fakes.error(401, "no"), "authentication"),
    ],
)
def test_a_list_of_models_that_cannot_be_used(listed: bytes, kind: str):
    with FakeServer([listed]) as server:
        assert failure(client(server.address, model=None)).kind == kind
        with pytest.raises(RagError) as caught:
            client(server.address, model=None).model()
        assert caught.value.kind == kind


def test_a_server_that_refuses_the_thinking_switch_is_asked_without_it_and_remembered():
    good = fakes.events(fakes.delta(content="Yes", finish="stop")) + DONE
    with FakeServer([fakes.error(400, "chat_template_kwargs: extra fields not permitted"), good]) as server:
        chat = client(server.address)
        for _ in range(2):
            assert text_of(list(chat.stream(asking("hello")))) == "Yes"
    assert ["chat_template_kwargs" in request.body for request in server.requests] == [True, False, False]


def test_a_refusal_for_another_reason_does_not_cost_the_switch():
    good = fakes.events(fakes.delta(content="Yes", finish="stop")) + DONE
    refused = fakes.error(400, "maximum context length")
    with FakeServer([refused, refused, good]) as server:
        chat = client(server.address)
        assert failure(chat).kind == "bad_input"
        assert text_of(list(chat.stream(asking("hello")))) == "Yes"
    assert ["chat_template_kwargs" in request.body for request in server.requests] == [True, False, True]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_that_comes_apart_stays_apart(field: str):
    chunks = [
        fakes.delta(role="assistant"),
        fakes.delta(**{field: "hm, "}),
        fakes.delta(content="Yes"),
        fakes.delta(finish="stop"),
    ]
    with FakeServer([fakes.events(*chunks) + DONE]) as server:
        deltas = list(client(server.address).stream(asking("hello")))
    assert (text_of(deltas), "".join(delta.reasoning for delta in deltas)) == ("Yes", "hm, ")


def test_usage_in_a_chunk_without_choices_and_deltas_that_are_null():
    usage = {**fakes.delta(), "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}}
    null = {**fakes.delta(), "choices": [{"index": 0, "delta": None, "finish_reason": "stop"}]}
    with FakeServer([fakes.events(fakes.delta(content="Yes"), null, usage) + DONE]) as server:
        deltas = [delta for delta in client(server.address).stream(asking("hello")) if delta != Delta()]
    assert [delta.finish_reason for delta in deltas] == [None, "stop", None]
    assert (deltas[-1].prompt_tokens, deltas[-1].completion_tokens) == (7, 2)


def test_what_is_sent():
    with FakeServer([fakes.events(fakes.delta(content="Yes", finish="stop")) + DONE]) as server:
        list(client(server.address, key="sk-1").stream(asking("hello", headers={"traceparent": "00-a-b-01"})))
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["traceparent"] == "00-a-b-01"
    assert request.headers["authorization"] == "Bearer sk-1"
    assert request.body["messages"] == [{"role": "user", "content": "hello"}]
    assert request.body["stream_options"] == {"include_usage": True}
    assert (request.body["max_tokens"], request.body["temperature"]) == (40, 0.2)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("http://gpu:8000", "http://gpu:8000/v1"),
        (" http://gpu:8000/ ", "http://gpu:8000/v1"),
        ("http://gpu:8000/v1", "http://gpu:8000/v1"),
        ("http://gpu:8000/v1/", "http://gpu:8000/v1"),
        ("http://gpu:8000/v1/chat/completions", "http://gpu:8000/v1"),
        ("http://gpu:8000/v1/models", "http://gpu:8000/v1"),
        ("https://cloud/openai", "https://cloud/openai/v1"),
        ("https://cloud/v1beta/openai/", "https://cloud/v1beta/openai"),
        ("https://cloud/api/v3", "https://cloud/api/v3"),
        ("http://vllm/vllm", "http://vllm/vllm/v1"),
    ],
)
def test_forms_of_the_address(given: str, wanted: str):
    assert base_url(given) == wanted


def test_closing_twice_is_harmless():
    chat = client("http://127.0.0.1:9")
    chat.close()
    chat.close()


# a busy server

BUSY = fakes.error(503, "loading").replace(b"connection: close", b"retry-after: 0.2\r\nconnection: close")
WELL = fakes.events(fakes.delta(content="here"), fakes.delta(finish="stop")) + DONE


def patient(address: str, retries: int) -> OpenAIChat:
    return OpenAIChat(address, "fake", None, 60.0, retries)


def test_a_busy_server_is_asked_again_and_the_attempts_are_told():
    with FakeServer([BUSY, BUSY, WELL]) as server:
        deltas = list(patient(server.address, 2).stream(asking("hello")))
    timing = next(delta.timing for delta in deltas if delta.timing)
    assert text_of(deltas) == "here"
    assert (len(server.requests), timing.attempts) == (3, 3)
    assert timing.waited >= 0.4 and len(timing.errors) == 2 and all("loading" in error for error in timing.errors)


def test_a_server_that_stays_busy_is_overloaded_once_the_attempts_are_used():
    with FakeServer([BUSY]) as server:
        assert failure(patient(server.address, 1), asking("hello")).kind == "overloaded"
    assert len(server.requests) == 2


def test_a_refused_request_is_not_asked_again():
    with FakeServer([fakes.error(400, "too long")]) as server:
        assert failure(patient(server.address, 3), asking("hello", thinking=True)).kind == "bad_input"
    assert len(server.requests) == 1


def test_a_pause_longer_than_the_time_limit_is_not_waited_for():
    long = BUSY.replace(b"retry-after: 0.2", b"retry-after: 3600")
    with FakeServer([long, WELL]) as server:
        started = time.monotonic()
        assert failure(patient(server.address, 3), asking("hello")).kind == "overloaded"
        assert time.monotonic() - started < SOON


def test_a_cancel_ends_the_pause():
    slow = BUSY.replace(b"retry-after: 0.2", b"retry-after: 50")
    with FakeServer([slow, WELL]) as server:
        deltas = patient(server.address, 3).stream(asking("hello"))
        next(deltas)  # a beat in the silence
        assert server.asked.wait(SOON)
        deltas.close()
        time.sleep(0.2)
    assert len(server.requests) == 1
