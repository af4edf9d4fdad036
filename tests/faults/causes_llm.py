"""Causes in the language model: it queues, refuses, reads long, writes slowly or much; and HyDE, which it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from latency.types import Case
from tests.faults.laboratory import Fault, Injection, ask
from tests.faults.world import Bench, World

HYDE_ASKED = 3


def paced(**changes: Any) -> Injection:
    """The server at another pace."""

    @contextmanager
    def inject(bench: Bench, world: World) -> Iterator[World]:
        with bench.llm.at(**changes):
            yield world

    return inject


@contextmanager
def long_prompt(bench: Bench, world: World) -> Iterator[World]:
    """Eight long passages, because the budget allows it: more than 10,000 tokens."""
    yield world.with_clients(prompts=replace(world.clients.prompts, context_tokens=12_000))


@contextmanager
def long_answer(bench: Bench, world: World) -> Iterator[World]:
    with bench.llm.at(tokens=440):
        yield world.with_clients(prompts=replace(world.clients.prompts, max_tokens=512))


@contextmanager
def idle_hyde(bench: Bench, world: World) -> Iterator[World]:
    """A hypothesis of 20 tokens before each search; it says what the question says."""
    yield world.with_options(hyde="on")


def hyde_before(bench: Bench, world: World) -> Sequence[Case]:
    """Queries with HyDE, each with its shadow search; repeated until there are enough to say how often it changes anything."""
    with idle_hyde(bench, world) as slow:
        cases = [ask(slow) for _ in range(HYDE_ASKED)]
    return [replace(case, answer=replace(case.answer, id=f"{number:032x}")) for number, case in enumerate(cases * 4)]


FAULTS = (
    Fault("vLLM queues", "llm_queue", paced(queue=0.4, waiting=5)),
    Fault("vLLM's KV cache is full", "kv_cache_full", paced(queue=0.4, waiting=3, kv_ratio=0.997, preemptions=1), only_long=True),
    Fault("slow first token", "ttft_slow", paced(prefill=0.43), only_long=True),
    Fault("slow decoding", "decode_slow", paced(per_token=0.021)),
    Fault("503 first, then an answer", "retries", paced(refusals=1, retry_after=1)),
    Fault("prompt of 10,000 tokens", "prompt_too_long", long_prompt, base=lambda bench: bench.long_world),
    Fault("long answer", "answer_long", long_answer, only_long=True),
    Fault(
        "HyDE that changes nothing",
        "hyde_cost",
        idle_hyde,
        base=lambda bench: bench.slow_writer,
        history=hyde_before,
        note="of the queries before, every fourth was asked",
    ),
)
