"""The in-process language model: a real transformers model with known words, alone and in the pool."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_server.interfaces import ChatRequest, Delta
from gpu_server.local_chat import TransformersChat
from gpu_server.model_pool import ModelPool
from tests.llm import tiny

SOON = 60.0


def asking(text: str, max_tokens: int = 40, **more: object) -> ChatRequest:
    request = ChatRequest(({"role": "user", "content": text},), max_tokens, temperature=0.0, thinking=False, timeout=60.0)
    return replace(request, **more)  # type: ignore[arg-type]


def words(deltas: list[Delta]) -> list[str]:
    return "".join(delta.text for delta in deltas).split()


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> TransformersChat:
    return TransformersChat(str(tiny_model), "cpu", "fp32")


def generations() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "transformers-chat"]


def ended() -> bool:
    for thread in generations():
        thread.join(SOON)
    return not generations()


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_text_comes_in_pieces_and_ends_with_the_facts(model: TransformersChat, temperature: float):
    deltas = list(model.stream(asking("a short one please", temperature=temperature)))
    assert words(deltas) == tiny.SHORT
    assert sum(1 for delta in deltas if delta.text) == len(tiny.SHORT)
    closing = deltas[-1]
    assert (closing.prompt_tokens, closing.completion_tokens, closing.finish_reason) == (6, len(tiny.SHORT) + 1, "stop")
    assert closing.timing is not None and closing.timing.compute > 0 and closing.timing.network is None
    assert ended()


def test_max_tokens_cuts(model: TransformersChat):
    deltas = list(model.stream(asking("on and on", max_tokens=5)))
    assert words(deltas) == tiny.LONG[:5]
    assert (deltas[-1].completion_tokens, deltas[-1].finish_reason) == (5, "length")


def test_thinking_reaches_the_template(model: TransformersChat):
    assert words(list(model.stream(asking("short", thinking=True)))) == ["<think>", *tiny.THOUGHT, "</think>", *tiny.SHORT]


def test_closing_the_stream_ends_the_generation(model: TransformersChat):
    assert ended()  # of the tests before
    deltas = model.stream(asking("on and on", max_tokens=20_000))
    assert next(delta.text for delta in deltas if delta.text)
    (thread,) = generations()
    deltas.close()
    thread.join(SOON)
    assert not thread.is_alive()


def test_the_next_answer_comes_whole_after_one_that_was_given_up(model: TransformersChat):
    deltas = model.stream(asking("on and on", max_tokens=20_000))
    next(deltas)
    deltas.close()
    assert words(list(model.stream(asking("short")))) == tiny.SHORT


def test_the_time_limit_is_an_error_and_no_finished_answer(model: TransformersChat):
    with pytest.raises(TimeoutError):
        list(model.stream(asking("on and on", max_tokens=20_000, timeout=0.3)))
    assert ended()


def test_a_prompt_that_is_too_long_says_how_long_and_what_to_lower(model: TransformersChat):
    with pytest.raises(ValueError, match=r"32772 tokens.* 40 more.* holds 32768: lower llm\.context_tokens or llm\.max_tokens"):
        list(model.stream(asking("word " * 32_770)))
    assert words(list(model.stream(asking("short")))) == tiny.SHORT


def test_a_model_that_breaks_raises_and_works_again(model: TransformersChat, monkeypatch: pytest.MonkeyPatch):
    def broken(**_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="out of memory"):
        patched.setattr(model._model, "generate", broken)
        list(model.stream(asking("short")))
    assert words(list(model.stream(asking("short")))) == tiny.SHORT


def test_a_base_model_without_a_chat_template(tmp_path: Path):
    base = TransformersChat(str(tiny.build(tmp_path / "base", template=None)), "cpu", "fp32")
    deltas = list(base.stream(asking("three unknown words", max_tokens=3)))
    assert words(deltas) == tiny.LONG[:3]
    assert deltas[-1].prompt_tokens == 3


def test_a_template_that_opens_the_thought_itself(tmp_path: Path):
    folder = tiny.build(tmp_path / "thinker", template="{{ messages[-1]['content'] }} <think>" + tiny.MARKS["short"])
    deltas = list(TransformersChat(str(folder), "cpu", "fp32").stream(asking("hello")))
    assert deltas[0].text == "<think>"
    assert words(deltas[1:]) == [*tiny.THOUGHT, "</think>", *tiny.SHORT]


def test_a_folder_that_is_not_there_is_an_error_at_load(tmp_path: Path):
    with pytest.raises(OSError):
        TransformersChat(str(tmp_path / "nothing"), "cpu", "fp32")


def test_bf16_says_the_same(tiny_model: Path):
    model = TransformersChat(str(tiny_model), "cpu", "bf16")
    assert model.info.precision == "bf16"
    assert words(list(model.stream(asking("short")))) == tiny.SHORT


# in the pool


def test_the_first_answer_is_cold_and_pays_for_the_load(tiny_model: Path):
    chat = ModelPool().add_chat_model("tiny", lambda: TransformersChat(str(tiny_model), "cpu", "fp32"))
    cold, warm = (list(chat.stream(asking("short")))[-1].timing for _ in range(2))
    assert cold is not None and warm is not None
    assert cold.cold and cold.load > 0
    assert not warm.cold and warm.load == 0


def test_a_warmed_pool_has_no_cold_answer(tiny_model: Path):
    pool = ModelPool()
    chat = pool.add_chat_model("tiny", lambda: TransformersChat(str(tiny_model), "cpu", "fp32"))
    pool.warm_up()
    (status,) = pool.status()
    assert (status.state, status.runs) == ("warm", 1)
    timing = list(chat.stream(asking("short")))[-1].timing
    assert timing is not None and not timing.cold


def test_one_answer_at_a_time_and_a_closed_one_makes_room(tiny_model: Path):
    chat = ModelPool().add_chat_model("tiny", lambda: TransformersChat(str(tiny_model), "cpu", "fp32"))
    first = chat.stream(asking("on and on", max_tokens=20_000))
    assert next(delta.text for delta in first if delta.text)
    with pytest.raises(TimeoutError, match="no turn"):
        list(chat.stream(asking("short", timeout=0.1)))
    first.close()
    assert words(list(chat.stream(asking("short")))) == tiny.SHORT


def test_a_model_that_cannot_load_fails_each_call_with_its_reason(tmp_path: Path):
    pool = ModelPool()
    chat = pool.add_chat_model("tiny", lambda: TransformersChat(str(tmp_path / "nothing"), "cpu", "fp32"))
    for _ in range(2):
        with pytest.raises(OSError):
            list(chat.stream(asking("short")))
    (status,) = pool.status()
    assert status.state == "failed" and status.error is not None
