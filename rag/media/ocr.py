"""Pages read by a vision model behind an OpenAI-compatible chat endpoint. Knows nothing of files: a JPEG comes, Markdown goes.

The answer is streamed, so that a model that loops is stopped, a connection that breaks is told from a page that ends, and a
cancel is obeyed in the middle of a page.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from gpu_server.interfaces import ChatRequest
from rag.chat import OpenAIChat
from rag.errors import Cancelled, Kind, RagError
from rag.loaders.media import Check, PageText
from rag.loaders.pictures import smaller
from rag.media.page_text import loop_start, page_markdown

LOOP_CHECK_CHARS = 400
BROKEN_ANSWERS = 2  # attempts for one page whose answer breaks off

PROMPT = (
    "Write down the text of this page as Markdown, in reading order and in the language of the page: do not translate, "
    "summarise, correct or explain. Keep headings, lists and tables (as Markdown tables). Leave out pictures, and page headers "
    "and footers that only repeat. If there is no text, write exactly [empty page]. Write nothing else."
)
STOPPED = "the model repeated itself and was stopped; text after that may be missing"

_NEXT_STEPS: dict[Kind, str] = {
    "connection": "Check that the server at ocr.base_url runs and was not restarted.",
    "authentication": "Check ocr.api_key.",
    "model": "Check ocr.model against the models that the server lists, and ocr.base_url.",
    "timeout": "Look at the server's queue, raise ocr.timeout_seconds, or lower ocr.parallel.",
    "overloaded": "Lower ocr.parallel, or raise ocr.retries.",
    "bad_input": "Check that ocr.model takes images, and lower ocr.max_tokens.",
    "bad_answer": "Check that ocr.base_url is an OpenAI-compatible server with a vision model.",
    "internal": "Look at the log of the server at ocr.base_url.",
}


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    finish_reason: str | None
    looped: bool = False


class VisionReader:
    """`rag.loaders.media.PageReader` over HTTP. Thread-safe; `timeout_seconds` is the deadline of one page."""

    def __init__(
        self,
        address: str,
        model: str | None,
        api_key: str | None,
        timeout_seconds: float,
        retries: int,
        max_pages: int,
        parallel: int,
        max_tokens: int,
    ) -> None:
        self._chat = OpenAIChat(address, model, api_key, timeout_seconds, retries)
        self._model, self._timeout_seconds, self._max_tokens = model, timeout_seconds, max_tokens
        self.max_pages, self.parallel = max_pages, parallel

    @property
    def identity(self) -> str:
        return f"ocr:{self._model or ''}"

    def read(self, image: bytes, check: Check) -> PageText:
        """A page too large for the server is sent once more at a smaller size. Raises RagError, and whatever `check` raises."""
        note = ""
        try:
            answer = self._patiently(image, check)
        except RagError as problem:
            if not _too_large(problem):
                raise _mapped(problem) from problem
            answer, note = self._smaller(image, check), "sent at a smaller size, since the server refused the larger one"
        notes = [note, STOPPED if answer.looped else ""]
        cut = answer.finish_reason == "length" and not answer.looped
        return PageText(page_markdown(answer.text), cut, "; ".join(filter(None, notes)))

    def _smaller(self, image: bytes, check: Check) -> _Answer:
        try:
            return self._patiently(smaller(image), check)
        except RagError as problem:
            if not _too_large(problem):
                raise _mapped(problem) from problem
            raise RagError(
                f"the server refuses the page's picture as too large, at a smaller size too: {problem.message}",
                kind="bad_input",
                address=self._chat.address,
                next_step="Raise the server's limits (nginx: client_max_body_size; vLLM: --max-model-len).",
            ) from problem

    def _patiently(self, image: bytes, check: Check) -> _Answer:
        """Asked again where the answer breaks off in its middle."""
        for _ in range(BROKEN_ANSWERS - 1):
            try:
                return self._ask(image, check)
            except _BrokenOff:
                check()
        return self._ask(image, check)

    def _ask(self, image: bytes, check: Check) -> _Answer:
        check()
        pieces: list[str] = []
        length = looked_at = 0
        finish_reason: str | None = None
        stream = self._chat.stream(self._request(image))
        try:
            for delta in stream:
                check()
                pieces.append(delta.text)
                length += len(delta.text)
                finish_reason = delta.finish_reason or finish_reason
                if length - looked_at >= LOOP_CHECK_CHARS:
                    looked_at = length
                    if (start := loop_start(text := "".join(pieces))) is not None:
                        return _Answer(text[:start], finish_reason, looped=True)
        except Cancelled:
            raise
        except RagError as problem:
            if problem.kind in ("connection", "internal") and length:
                raise _BrokenOff(f"the answer broke off after {length:,} characters: {problem.message}", problem) from problem
            raise
        finally:
            stream.close()  # type: ignore[attr-defined]
        if finish_reason is None:
            raise _BrokenOff(f"the answer broke off after {length:,} characters", None)
        text = "".join(pieces)
        start = loop_start(text.rstrip())
        return _Answer(text if start is None else text[:start], finish_reason, looped=start is not None)

    def _request(self, image: bytes) -> ChatRequest:
        url = f"data:image/jpeg;base64,{base64.b64encode(image).decode('ascii')}"
        content: Any = [{"type": "text", "text": PROMPT}, {"type": "image_url", "image_url": {"url": url}}]
        messages = ({"role": "user", "content": content},)
        return ChatRequest(messages, self._max_tokens, temperature=0.0, thinking=False, timeout=self._timeout_seconds)

    def close(self) -> None:
        self._chat.close()


class _BrokenOff(RagError):
    """Half an answer came."""

    def __init__(self, message: str, problem: RagError | None) -> None:
        # not "connection": the server is there, and the next page may fare better
        super().__init__(message, kind="bad_answer", address=problem.address if problem else None)
        self.next_step = _NEXT_STEPS["connection"]


def _too_large(problem: RagError) -> bool:
    """413, or more tokens than the model takes: image tokens count."""
    status = getattr(problem.__cause__, "status_code", None)
    return status == 413 or status == 400 and "context length" in problem.message.lower()


def _mapped(problem: RagError) -> RagError:
    """In the words of text recognition: the chat client's errors name the settings of the answers' model."""
    if isinstance(problem, _BrokenOff):
        return problem
    message = problem.message.replace("the language model", "the vision model")
    return type(problem)(
        message, kind=problem.kind, address=problem.address, next_step=_NEXT_STEPS.get(problem.kind, problem.next_step)
    )
