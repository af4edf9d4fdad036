"""A language model in this process, by `transformers`, from a hub name or a folder. Streams on the caller's thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

from gpu_server.devices import import_torch, pick_bf16, pick_device
from gpu_server.interfaces import ChatRequest, Delta, ModelInfo, Timing

BEAT_SECONDS = 0.05


class TransformersChat:
    """Chat completions of a causal language model. Not thread-safe by itself: the pool gives it one worker."""

    def __init__(self, name: str, device: str = "auto", precision: str = "auto") -> None:
        torch = import_torch()
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        self._device = pick_device(device)
        bf16 = pick_bf16(self._device, precision)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(name)
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16 if bf16 else torch.float32)
        self._model = model.eval().to(self._device)
        self._last: _Generation | None = None
        self._info = ModelInfo(
            name=name,
            kind="llm",
            identity=name,
            device=self._device,
            precision="bf16" if bf16 else "fp32",
            max_tokens=getattr(model.config, "max_position_embeddings", None),
        )

    @property
    def info(self) -> ModelInfo:
        return self._info

    def stream(self, request: ChatRequest) -> Iterator[Delta]:
        """Text as it is generated, empty beats in silence, then token counts, finish reason and timing.

        Raises ValueError for a prompt that is too long, TimeoutError at the request's time limit.
        """
        asked, deadline = time.perf_counter(), time.monotonic() + request.timeout
        self._settle(deadline)
        started = time.perf_counter()
        inputs = self._encode(request)
        prompt_tokens = int(inputs["input_ids"].shape[1])
        self._check_length(prompt_tokens, request.max_tokens)
        tokenized = time.perf_counter()
        run = self._last = _Generation(self._model, self._tokenizer, inputs, request, deadline)
        try:
            if self._thinks_already(inputs):
                yield Delta(text="<think>")
            yield from (Delta(text=text) for text in run.texts())
        finally:
            run.stop.set()
        yield Delta(
            prompt_tokens=prompt_tokens,
            completion_tokens=run.generated,
            finish_reason="length" if run.generated >= request.max_tokens else "stop",
            timing=Timing(queue=started - asked, tokenize=tokenized - started, compute=time.perf_counter() - tokenized),
        )

    def _settle(self, deadline: float) -> None:
        """Wait for the end of a generation that was given up: a forward pass, once begun, cannot be ended from outside."""
        if self._last is not None:
            self._last.thread.join(max(0.0, deadline - time.monotonic()))
            if self._last.thread.is_alive():
                raise TimeoutError("the language model was still busy with an answer that was given up")
            self._last = None

    def _check_length(self, prompt_tokens: int, max_tokens: int) -> None:
        limit = self._info.max_tokens
        if limit is not None and prompt_tokens + max_tokens > limit:
            raise ValueError(
                f"the prompt has {prompt_tokens} tokens and llm.max_tokens asks for {max_tokens} more, but {self._info.name} "
                f"holds {limit}: lower llm.context_tokens or llm.max_tokens"
            )

    def _thinks_already(self, inputs: Any) -> bool:
        """The chat template ends in an open <think> (DeepSeek-R1, Qwen3-Thinking): the model itself will only close it."""
        end = self._tokenizer.decode(inputs["input_ids"][0, -4:])
        return bool(end.rstrip().endswith("<think>"))

    def _encode(self, request: ChatRequest) -> Any:
        if getattr(self._tokenizer, "chat_template", None):
            encoded = self._tokenizer.apply_chat_template(
                [dict(message) for message in request.messages],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
                enable_thinking=request.thinking,
            )
        else:  # a base model: the plain texts, one after the other
            text = "\n\n".join(message["content"] for message in request.messages)
            encoded = self._tokenizer(text, return_tensors="pt")
        return {key: value.to(self._device) for key, value in encoded.items() if key in ("input_ids", "attention_mask")}


class _Generation:
    """`generate()` on a thread of its own, its text handed over through a queue; ends early when `stop` is set."""

    def __init__(self, model: Any, tokenizer: Any, inputs: Any, request: ChatRequest, deadline: float) -> None:
        self.stop = threading.Event()
        self.generated = 0
        self.late = False
        self._queue: queue.Queue[str | BaseException | None] = queue.Queue()
        self._model, self._tokenizer, self._inputs, self._request = model, tokenizer, inputs, request
        self._deadline = deadline
        self.thread = threading.Thread(target=self._run, name="transformers-chat", daemon=True)
        self.thread.start()

    def texts(self) -> Iterator[str]:
        while True:
            left = self._deadline - time.monotonic()
            try:
                item = self._queue.get(timeout=max(0.0, min(BEAT_SECONDS, left)))
            except queue.Empty:
                item = ""
            if isinstance(item, BaseException):
                raise item
            if item is None and not self.late:
                return
            if item is None or left <= 0:
                raise TimeoutError("the language model's answer was not finished before the time limit")
            yield item

    def _run(self) -> None:
        from transformers import TextStreamer
        from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

        generation = self

        class Streamer(TextStreamer):  # type: ignore[misc]
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                generation._queue.put(text)

        class Stop(StoppingCriteria):  # type: ignore[misc]
            def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
                import torch

                generation.generated += 1
                generation.late = time.monotonic() > generation._deadline
                stopped = generation.late or generation.stop.is_set()
                return torch.full((input_ids.shape[0],), stopped, dtype=torch.bool, device=input_ids.device)

        sample = self._request.temperature > 0
        try:
            self._model.generate(
                **self._inputs,
                max_new_tokens=self._request.max_tokens,
                do_sample=sample,
                temperature=self._request.temperature if sample else None,
                streamer=Streamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True),
                stopping_criteria=StoppingCriteriaList([Stop()]),
                pad_token_id=self._tokenizer.pad_token_id or self._tokenizer.eos_token_id,
            )
            self._queue.put(None)
        except Exception as problem:
            self._queue.put(problem)
