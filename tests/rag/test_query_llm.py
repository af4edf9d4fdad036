"""The whole path with a language model: starter embedder, Milvus Lite, and a real OpenAI-compatible server."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from gpu_server.local_chat import TransformersChat
from gpu_server.model_pool import ModelPool, PooledEmbedder
from gpu_server.starter import StarterEmbedder
from rag.chat import OpenAIChat
from rag.hyde_history import HydeHistory, explores
from rag.query import Clients, Control, Finished, Prompts, answer
from rag.store import Store
from rag.trace import Tracing
from rag.trace_store import TraceStore
from rag.types import Answer, HydeEffect, Options, PassageRow, Stage
from tests.llm import fakes, tiny
from tests.llm.fakes import DONE, SILENCE, FakeServer
from tests.llm.server import LlmServer
from tests.ports import reserved_port

SOON = 30.0  # seconds that a thing may take which should take none: far over any machine's hiccup
QUESTION = "why does the reranker answer so late after a restart"
TEXTS = {
    "kernels": "Kernels are compiled on first use, and so the first rerank after a restart is slow.",
    "warm": "Warm the reranker up at start, and no question waits for it.",
    "tunnel": "Searching Milvus through a tunnel adds a round trip to every query.",
}
# the tiny model says its short recital where the last message holds "short", else the long one for ever
PROMPTS = Prompts("{passages}\n{question} short", "{question} short", hyde_max_tokens=30, max_tokens=60, timeout=60.0)
ENDLESS = replace(PROMPTS, answer="{passages}\n{question}", max_tokens=30_000)
SHORT, LONG = " ".join(tiny.SHORT), " ".join(tiny.LONG)
GOOD = fakes.events(fakes.delta(content="Warm it [1]"), fakes.delta(finish="stop")) + DONE
STALLED = (fakes.events(fakes.delta(content="Warm ")), SILENCE)
PLAIN = Options(hyde="off", keep=2)


@pytest.fixture(scope="module")
def embedder() -> PooledEmbedder:
    return ModelPool().add_embedder("starter", StarterEmbedder)


@pytest.fixture(scope="module")
def store(embedder: PooledEmbedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = Store(uri=None, data_dir=tmp_path_factory.mktemp("llm-path"), collection="passages")
    name = opened.use(embedder.info)
    rows = [PassageRow(key, key, "v", 0, text, f"About {key}", f"{key}.md") for key, text in TEXTS.items()]
    vectors = embedder.embed([row.indexed_text for row in rows]).dense
    for index, row in enumerate(rows):
        opened.write_document(name, [row], vectors[index : index + 1], None, "2026-01-01T00:00:00Z")
    opened.flush(name)
    yield opened
    opened.close()


@pytest.fixture
def clients(embedder: PooledEmbedder, store: Store) -> Clients:
    return Clients(embedder, None, None, store, Tracing(), PROMPTS)


def with_chat(clients: Clients, address: str, prompts: Prompts = PROMPTS, model: str | None = tiny.NAME) -> Clients:
    return replace(clients, chat=OpenAIChat(address, model, None, timeout=60.0), prompts=prompts)


def run(
    clients: Clients, options: Options = PLAIN, control: Control | None = None, question: str = QUESTION, on_token: object = None
) -> tuple[list[dict], Finished]:
    steps, events = answer(question, options, clients, control), []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as end:
            return events, end.value
        if events[-1]["type"] == "token" and callable(on_token):
            on_token()


def stage(found: Answer, name: str) -> Stage:
    return next(item for item in found.stages if item.stage == name)


def tokens(events: list[dict]) -> str:
    return "".join(event["text"] for event in events if event["type"] == "token")


# answers


def test_a_hypothesis_and_an_answer_from_a_real_server(clients: Clients, llm_server: LlmServer):
    events, done = run(with_chat(clients, llm_server.address), Options(hyde="on", keep=2))
    found = done.answer
    assert (found.outcome, found.error) == ("answered", None)
    assert found.answer.split() == tiny.SHORT  # the thought before it is left out
    assert tokens(events).strip() == found.answer
    assert [(citation.number, citation.passage_id) for citation in found.citations] == [(1, found.passages[0].id)]
    assert found.hyde_text is not None and found.hyde_text.split() == tiny.SHORT
    assert found.finish_reason == "stop"
    assert stage(found, "generate").where == "http"
    assert stage(found, "generate").model == tiny.NAME
    assert stage(found, "hyde").skipped is None and stage(found, "hyde").degraded is None


def test_the_prompt_and_the_counts_are_kept(clients: Clients, llm_server: LlmServer):
    events, done = run(with_chat(clients, llm_server.address))
    found = done.answer
    (message,) = found.prompt
    assert message["content"].startswith("[1] ") and message["content"].endswith(f"{QUESTION} short")
    assert next(event["prompt"] for event in events if event["type"] == "prompt") == [message]
    assert found.tokens.prompt == len(message["content"].split()) + 2  # its words, and the template's two marks
    assert found.tokens.completion == len(tiny.THOUGHT) + 2 + len(tiny.SHORT) + 1
    assert found.tokens.per_second is not None and found.tokens.per_second > 0


def test_time_to_the_first_token_and_the_timeline(clients: Clients, llm_server: LlmServer):
    _, done = run(with_chat(clients, llm_server.address), Options(hyde="on", keep=2))
    found = done.answer
    assert found.ttft_seconds is not None and found.first_token_seconds is not None
    assert 0 < found.ttft_seconds < found.first_token_seconds < found.total_seconds
    assert [interval.stage for interval in found.timeline] == ["embed", "hyde", "embed", "search", "generate"]
    assert stage(found, "embed").spans == 2
    generated = found.timeline[-1]
    assert found.ttft_seconds <= generated.seconds
    assert found.first_token_seconds == pytest.approx(generated.start + found.ttft_seconds, abs=0.5)
    for item in found.stages:
        split = item.split
        parts = split.load + split.queue + split.tokenize + split.compute + (split.network or 0.0) + split.other
        assert parts == pytest.approx(item.seconds, abs=1e-6)


def test_an_answer_cut_at_max_tokens_says_so(clients: Clients, llm_server: LlmServer):
    _, done = run(with_chat(clients, llm_server.address, replace(ENDLESS, max_tokens=20)))
    assert done.answer.finish_reason == "length"
    assert "llm.max_tokens (20)" in str(stage(done.answer, "generate").degraded)
    assert done.answer.answer.split() == tiny.LONG[: 20 - 5]


def test_the_models_and_the_trace_that_a_server_is_sent(clients: Clients):
    with FakeServer([GOOD]) as server:
        asked = with_chat(clients, server.address, replace(PROMPTS, hyde_model="small"))
        _, done = run(asked, Options(hyde="on", model="large"))
    written, answered = server.requests
    assert (written.body["model"], answered.body["model"]) == ("small", "large")
    assert (written.body["temperature"], answered.body["temperature"]) == (0.0, PROMPTS.temperature)
    assert written.body["chat_template_kwargs"] == {"enable_thinking": False}
    assert "chat_template_kwargs" not in answered.body
    for request in server.requests:
        assert request.headers["traceparent"].split("-")[1] == done.answer.id


# a language model that fails


def test_a_server_killed_in_mid_answer(clients: Clients, doomed_llm_server: LlmServer):
    asked = with_chat(clients, doomed_llm_server.address, ENDLESS)
    events, done = run(asked, on_token=doomed_llm_server.kill)
    found = done.answer
    assert found.outcome == "failed"
    assert found.error is not None
    assert (found.error.stage, found.error.kind) == ("generate", "connection")
    assert found.error.address == f"{doomed_llm_server.address}/v1"
    assert "VLLM_BASE_URL" in found.error.next_step
    assert sum(passage.kept for passage in found.passages) == 2
    assert found.answer and found.answer in tokens(events)
    spans = {span.stage: span for span in done.spans}
    assert spans["generate"].status == "ERROR" and spans["search"].status != "ERROR"
    assert stage(found, "generate").spans == 1


def test_a_hypothesis_that_fails_degrades_and_the_answer_goes_on(clients: Clients):
    with FakeServer([fakes.error(500, "CUDA out of memory"), GOOD]) as server:
        _, done = run(with_chat(clients, server.address), Options(hyde="on"))
    found = done.answer
    assert (found.outcome, found.answer, found.hyde_text) == ("answered", "Warm it [1]", None)
    assert "CUDA out of memory" in str(stage(found, "hyde").degraded)
    assert stage(found, "embed").spans == 1


def test_an_empty_hypothesis_degrades(clients: Clients):
    empty = fakes.events(fakes.delta(finish="stop")) + DONE
    with FakeServer([empty, GOOD]) as server:
        _, done = run(with_chat(clients, server.address), Options(hyde="on"))
    assert done.answer.outcome == "answered"
    assert "wrote nothing" in str(stage(done.answer, "hyde").degraded)


def test_a_server_that_is_down_degrades_the_hypothesis_and_fails_the_answer(clients: Clients):
    with reserved_port() as port:
        address = f"http://127.0.0.1:{port}"
        _, done = run(with_chat(clients, address), Options(hyde="on"))
    found = done.answer
    assert found.outcome == "failed" and found.error is not None
    assert (found.error.stage, found.error.kind, found.error.address) == ("generate", "connection", f"{address}/v1")
    assert stage(found, "hyde").degraded
    assert found.passages


# cancel and time limits; without the garbage collector, which would close what a cycle of references holds open


@pytest.fixture
def no_gc() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def past(control: Control) -> None:
    """The deadline passes now: no test has to guess how long the stages before take."""
    object.__setattr__(control, "deadline", time.monotonic())


@pytest.mark.usefixtures("no_gc")
def test_a_cancel_in_mid_answer_keeps_what_there_is_and_leaves_the_server(clients: Clients):
    control = Control()
    with FakeServer([STALLED]) as server:
        _, done = run(with_chat(clients, server.address), control=control, on_token=control.cancelled.set)
        assert server.left.wait(SOON)
    assert (done.answer.outcome, done.answer.answer.strip()) == ("cancelled", "Warm")
    assert done.answer.error is not None and done.answer.error.stage == "generate"
    assert done.answer.passages


@pytest.mark.usefixtures("no_gc")
def test_a_cancel_is_obeyed_while_the_server_is_silent(clients: Clients):
    control = Control()
    with FakeServer([(SILENCE,)]) as server:

        def cancel() -> None:
            server.asked.wait(SOON)
            control.cancelled.set()

        threading.Thread(target=cancel, daemon=True).start()
        started = time.monotonic()
        _, done = run(with_chat(clients, server.address), control=control)
        assert time.monotonic() - started < SOON
        assert server.left.wait(SOON)
    assert done.answer.outcome == "cancelled"


def test_after_a_cancel_the_real_server_answers_the_next(clients: Clients, llm_server: LlmServer):
    control = Control()
    _, done = run(with_chat(clients, llm_server.address, ENDLESS), control=control, on_token=control.cancelled.set)
    assert done.answer.outcome == "cancelled"
    assert run(with_chat(clients, llm_server.address))[1].answer.answer.split() == tiny.SHORT


@pytest.mark.usefixtures("no_gc")
def test_a_deadline_in_mid_answer(clients: Clients):
    control = Control()
    with FakeServer([STALLED]) as server:
        _, done = run(with_chat(clients, server.address), control=control, on_token=partial(past, control))
        assert server.left.wait(SOON)
    found = done.answer
    assert found.outcome == "failed" and found.error is not None
    assert (found.error.stage, found.error.kind) == ("generate", "timeout")
    assert found.error.address == f"{server.address}/v1"
    assert found.answer.strip() == "Warm"
    assert found.passages


@pytest.mark.usefixtures("no_gc")
def test_a_deadline_while_tokens_keep_coming(clients: Clients, llm_server: LlmServer):
    control = Control()
    _, done = run(with_chat(clients, llm_server.address, ENDLESS), control=control, on_token=partial(past, control))
    assert done.answer.outcome == "failed" and done.answer.error is not None
    assert (done.answer.error.stage, done.answer.error.kind) == ("generate", "timeout")


def test_a_request_may_take_no_longer_than_the_query(clients: Clients):
    with FakeServer([(SILENCE,)]) as server:
        _, done = run(with_chat(clients, server.address), control=Control(deadline=time.monotonic() + 1.0))
    assert done.answer.outcome == "failed" and done.answer.error is not None
    assert done.answer.error.kind == "timeout"
    assert done.answer.total_seconds < PROMPTS.timeout / 2


def test_the_models_own_time_limit(clients: Clients):
    with FakeServer([STALLED]) as server:
        _, done = run(with_chat(clients, server.address, replace(PROMPTS, timeout=0.3)))
    assert done.answer.outcome == "failed" and done.answer.error is not None
    assert done.answer.error.kind == "timeout"
    assert "llm.timeout_seconds" in done.answer.error.next_step


# when HyDE is tried by itself


def searches(found: Answer) -> int:
    return stage(found, "search").spans


def test_auto_leaves_questions_with_identifiers_alone(clients: Clients):
    with FakeServer([GOOD]) as server:
        _, done = run(with_chat(clients, server.address), Options(hyde="auto"), question="what does article 72 say")
    assert "identifier" in str(stage(done.answer, "hyde").skipped)
    assert len(server.requests) == 1
    assert searches(done.answer) == 1


def test_auto_needs_no_hypothesis_where_the_first_search_is_close(clients: Clients):
    question = "Warm the reranker up at start, and no question waits for it"
    with FakeServer([GOOD]) as server:
        _, done = run(with_chat(clients, server.address), Options(hyde="auto"), question=question)
    assert "close passage" in str(stage(done.answer, "hyde").skipped)
    assert len(server.requests) == 1
    assert searches(done.answer) == 1


def test_auto_searches_again_with_a_hypothesis_where_nothing_is_close(clients: Clients):
    with FakeServer([GOOD]) as server:
        _, done = run(with_chat(clients, server.address), Options(hyde="auto"), question="who was late on holiday")
    assert done.answer.hyde_text == "Warm it [1]"
    assert len(server.requests) == 2
    assert searches(done.answer) == 2


def test_auto_goes_on_with_the_first_search_where_the_hypothesis_fails(clients: Clients):
    with FakeServer([fakes.error(503, "loading"), GOOD]) as server:
        _, done = run(with_chat(clients, server.address), Options(hyde="auto"), question="who was late on holiday")
    assert done.answer.outcome == "answered"
    assert stage(done.answer, "hyde").degraded
    assert searches(done.answer) == 1


# a language model in this process


@pytest.fixture
def local(clients: Clients, tiny_model: Path) -> Clients:
    chat = ModelPool().add_chat_model("tiny", lambda: TransformersChat(str(tiny_model), "cpu", "fp32"))
    return replace(clients, chat=chat)


def test_the_model_in_this_process_answers_cold_then_warm(local: Clients):
    cold, warm = (run(local)[1].answer for _ in range(2))
    assert cold.answer.split() == warm.answer.split() == tiny.SHORT
    assert stage(cold, "generate").cold and not stage(warm, "generate").cold
    assert stage(warm, "generate").where == "in-process" and stage(warm, "generate").device == "cpu"
    assert warm.tokens.completion == len(tiny.THOUGHT) + 2 + len(tiny.SHORT) + 1
    assert stage(warm, "generate").split.compute > 0


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_an_answer_given_up_frees_the_model(local: Clients, how: str):
    run(local)
    control = Control()
    stop = control.cancelled.set if how == "cancel" else partial(past, control)
    _, done = run(replace(local, prompts=ENDLESS), control=control, on_token=stop)
    assert done.answer.outcome == ("cancelled" if how == "cancel" else "failed")
    _, after = run(replace(local, prompts=replace(PROMPTS, timeout=SOON)))
    assert after.answer.answer.split() == tiny.SHORT


def test_a_prompt_too_long_for_the_model_says_what_to_lower(local: Clients):
    _, done = run(replace(local, prompts=replace(PROMPTS, max_tokens=40_000)))
    assert done.answer.outcome == "failed" and done.answer.error is not None
    assert (done.answer.error.stage, done.answer.error.kind) == ("generate", "bad_input")
    assert "llm.max_tokens" in done.answer.error.message


# what the path learns on its way


def facts(found: Answer, name: str) -> list[dict]:
    return [dict(item.facts) for item in found.timeline if item.stage == name]


def test_the_work_of_each_stage_is_kept(clients: Clients, llm_server: LlmServer):
    found = run(with_chat(clients, llm_server.address), Options(hyde="on", keep=2))[1].answer
    question, hypothesis = facts(found, "embed")
    assert question["texts"] == 1 and question["tokens"] > 5 and question["truncated"] == 0
    assert hypothesis["tokens"] > 5
    (search,) = facts(found, "search")
    assert (search["limit"], search["loaded"], search["unflushed_rows"]) == (40, True, 0)
    assert search["round_trips"] in (1, 2) and "round_trip_seconds" not in search  # embedded: there is no network
    (generate,) = facts(found, "generate")
    assert generate["completion_tokens"] == found.tokens.completion and generate["prompt_tokens"] == found.tokens.prompt
    assert generate["ttft_seconds"] > 0 and generate["decode_seconds"] >= 0 and "attempts" not in generate


def test_attempts_are_time_of_the_stage_that_is_no_computing(clients: Clients):
    busy = fakes.error(503, "busy").replace(b"connection: close", b"retry-after: 0.5\r\nconnection: close")
    with FakeServer([busy, GOOD]) as server:
        chat = OpenAIChat(server.address, "fake", None, 60.0, 1)
        found = run(replace(clients, chat=chat))[1].answer
    (generate,) = facts(found, "generate")
    assert (generate["attempts"], len(generate["errors"])) == (2, 1) and generate["waited_seconds"] >= 0.5
    split = stage(found, "generate").split
    assert split.other >= 0.5 and split.compute < stage(found, "generate").seconds - 0.5


def test_what_hyde_changed_is_found_out_after_the_answer(clients: Clients, llm_server: LlmServer):
    done = run(with_chat(clients, llm_server.address), Options(hyde="on", keep=2))[1]
    assert done.answer.hyde_effect is None and done.shadow is not None
    effect = done.shadow()
    assert effect.shadow and effect.overlap == 1.0 and not effect.changed_top  # all three passages are found either way


def test_where_both_searches_ran_no_shadow_is_needed(clients: Clients, llm_server: LlmServer):
    far = "what do elephants eat in winter"
    done = run(with_chat(clients, llm_server.address), Options(hyde="auto", keep=2), question=far)[1]
    assert stage(done.answer, "hyde").skipped is None
    assert done.answer.hyde_effect is not None and not done.answer.hyde_effect.shadow and done.shadow is None


def test_without_a_hypothesis_there_is_nothing_to_compare(clients: Clients):
    done = run(clients)[1]
    assert done.answer.hyde_effect is None and done.shadow is None


def test_a_released_collection_is_loaded_again_within_the_query(clients: Clients):
    name = clients.store.use(clients.embedder.info)
    clients.store.client.release_collection(name)
    found = run(clients)[1].answer
    (search,) = facts(found, "search")
    assert found.outcome == "answered"
    assert search["loaded"] is False and search["open_seconds"] > 0
    split = stage(found, "search").split
    assert split.load == search["open_seconds"] and split.compute > 0


def test_auto_skips_what_stored_queries_say_that_hyde_rarely_changes(clients: Clients, tmp_path):
    traces = TraceStore(tmp_path / "traces.db")
    for number in range(40):
        effect = HydeEffect(False, 1.0, best_dense=0.3)
        asked = f"How do I tune value {chr(97 + number % 26)}{chr(97 + number // 26)}?"
        traces.save(Answer(f"{number:032x}", asked, f"2026-11-21T05:00:{number:02}.000Z", "answered", hyde_effect=effect))
    assert traces.flush()
    history = HydeHistory(traces.path)
    history.refresh()
    question = next(text for n in range(99) if not explores(text := f"How do I boil an egg {'very ' * n}softly?"))
    with FakeServer([GOOD]) as server:
        learnt = replace(with_chat(clients, server.address), hyde_history=history)
        _, done = run(learnt, Options(hyde="auto"), question=question)
        assert "such questions" in str(stage(done.answer, "hyde").skipped)
        assert len(server.requests) == 1, "the answer alone was asked for"
        _, forced = run(learnt, Options(hyde="on"), question=question)
        assert stage(forced.answer, "hyde").skipped is None
    traces.close(5.0)


def test_hyde_that_runs_by_itself_says_why_and_how_close_the_search_came(clients: Clients, tmp_path):
    with FakeServer([GOOD]) as server:
        learnt = replace(with_chat(clients, server.address), hyde_history=HydeHistory(tmp_path / "none.db"))
        _, done = run(learnt, Options(hyde="auto"), question="How do I boil an egg?")
    (interval,) = [each for each in done.answer.timeline if each.stage == "hyde"]
    assert interval.facts["why"]
    assert done.answer.hyde_effect is not None and done.answer.hyde_effect.best_dense is not None
