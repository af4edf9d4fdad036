"""What a language model, or nobody but the passages, writes: answers and hypotheses, streamed and timed.

Fills the span that the path opened, and keeps what the answer tells of its making. Decides nothing about the path.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gpu_server.interfaces import ChatModel, ChatRequest
from rag import generate
from rag.recorder import Recorder, SpanNote
from rag.types import Passage, Tokens

if TYPE_CHECKING:
    from rag.query import Control, Prompts


class Writing:
    """One query's. `first_token` counts from the query's start, `ttft` from the request; seconds, None until they are known."""

    def __init__(self, stages: Recorder, control: Control, prompts: Prompts) -> None:
        self.stages, self.control, self.prompts = stages, control, prompts
        self.prompt: tuple[Mapping[str, str], ...] = ()
        self.first_token: float | None = None
        self.ttft: float | None = None
        self.tokens = Tokens()
        self.finish_reason: str | None = None

    def without_reasoning(self, text: str) -> str:
        """A chat template that opens `<think>` itself leaves only the closing tag in the stream: seen when it comes."""
        _, tag, answer = text.partition("</think>")
        if tag:
            self.stages.degrade("generate", "the server streamed the reasoning as answer; start it with its reasoning parser")
        return answer if tag else text

    def quote(self, question: str, kept: Sequence[Passage]) -> Generator[str, None, None]:
        """The passages' best sentences, where no language model is configured."""
        with self.stages.span("generate", "quote the best sentences") as note:
            note.handle.set(model="extractive")
            note.where, note.device, note.model = "in-process", "cpu", "extractive (no language model configured)"
            started = self.stages.elapsed()
            for sentence in generate.extract(question, kept):
                if self.first_token is None:
                    self._mark_first(note, started)
                yield f"{sentence}\n\n"
            note.compute = self.stages.elapsed() - started
            self.finish_reason = "stop"

    def answer(self, chat: ChatModel, question: str, kept: Sequence[Passage], model: str | None) -> Generator[str, None, None]:
        """The language model's answer from the passages that fit; `model` None takes the configured one."""
        prompts = self.prompts
        self.prompt, fitted = generate.prompt(prompts.answer, question, kept, prompts.context_tokens)
        if fitted < len(kept):
            self.stages.degrade("generate", f"{fitted} of {len(kept)} passages fit into llm.context_tokens")
        timeout = self.control.timeout(prompts.timeout)
        request = ChatRequest(self.prompt, prompts.max_tokens, prompts.temperature, model=model, timeout=timeout)
        with self.stages.span("generate", "stream the answer") as note:
            yield from self.stream(chat, request, note, is_answer=True)

    def _mark_first(self, note: SpanNote, started: float) -> None:
        self.first_token = self.stages.elapsed()
        self.ttft = self.first_token - started
        note.handle.first_token()

    def stream(
        self, chat: ChatModel, request: ChatRequest, note: SpanNote, *, is_answer: bool = False
    ) -> Generator[str, None, None]:
        """The answer text of one completion as it comes, reasoning left out; fills the span with what is learnt of it."""
        note.describe(chat.info)
        note.handle.set(stream=True, max_tokens=request.max_tokens, temperature=request.temperature)
        request = replace(request, headers={"traceparent": note.handle.traceparent()})
        think = generate.ThinkFilter()
        started = self.stages.elapsed()
        first: float | None = None
        tokens, finish = Tokens(), None
        for delta in chat.stream(request):
            self.control.check()
            text, _ = think.feed(delta.text)
            finish = delta.finish_reason or finish
            if delta.prompt_tokens is not None:
                tokens = Tokens(delta.prompt_tokens, delta.completion_tokens)
            note.timing = delta.timing or note.timing
            text = text if first is not None else text.lstrip()  # blanks after the reasoning are no first token
            if text:
                if first is None:
                    first = self.stages.elapsed()
                    if is_answer:
                        self._mark_first(note, started)
                yield text
        if rest := think.rest():
            yield rest
        ended = self.stages.elapsed()
        note.describe(chat.info)  # once more: the server has named its model by now
        note.compute = ended - started
        note.handle.set(input_tokens=tokens.prompt, output_tokens=tokens.completion, finish_reasons=finish)
        note.facts |= {
            "prompt_tokens": tokens.prompt,
            "completion_tokens": tokens.completion,
            "max_tokens": request.max_tokens,
            "ttft_seconds": None if first is None else first - started,
            "decode_seconds": None if first is None else ended - first,
        }
        if is_answer:
            self.tokens = replace(tokens, per_second=_rate(tokens.completion, first, ended))
            self.finish_reason = finish
            if finish == "length":
                self.stages.degrade("generate", f"the answer was cut at llm.max_tokens ({request.max_tokens})")


def _rate(completion: int | None, first: float | None, ended: float) -> float | None:
    """Tokens a second after the first: the decode rate, without the wait for the first token."""
    if completion is None or first is None or completion < 2 or ended <= first:
        return None
    return (completion - 1) / (ended - first)
