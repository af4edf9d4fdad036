"""A language model in this process, by `transformers`, from a hub name or a folder. Streams on the caller's thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

from gpu_server.devices import import_torch, pick_bf16, pick_device
from gpu_server.interfaces import ChatRequest, Delta, ModelInfo, Timing


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
        """Text as it is generated, then one Delta with the token counts, the finish reason and the timing."""
        started = time.perf_counter()
        inputs = self._encode(request)
        prompt_tokens = int(inputs["input_ids"].shape[1])
        tokenized = time.perf_counter()
        limit = self._info.max_tokens
        if limit is not None and prompt_tokens + request.max_tokens > limit:
            raise ValueError(
                f"the prompt has {prompt_tokens} tokens and {request.max_tokens} are asked for; {self._info.name} holds {limit}"
            )
        run = _Generation(self._model, self._tokenizer, inputs, request, time.monotonic() + request.timeout)
        try:
            yield from (Delta(text=text) for text in run.texts())
        finally:
            run.stop.set()
            run.thread.join(timeout=request.timeout)
        yield Delta(
            prompt_tokens=prompt_tokens,
            completion_tokens=run.generated,
            finish_reason="length" if run.generated >= request.max_tokens else "stop",
            timing=Timing(tokenize=tokenized - started, compute=time.perf_counter() - tokenized),
        )

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
        self._queue: queue.Queue[str | BaseException | None] = queue.Queue()
        self._model, self._tokenizer, self._inputs, self._request = model, tokenizer, inputs, request
        self._deadline = deadline
        self.thread = threading.Thread(target=self._run, name="transformers-chat", daemon=True)
        self.thread.start()

    def texts(self) -> Iterator[str]:
        while True:
            try:
                item = self._queue.get(timeout=max(0.01, self._deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError("no token before the time limit") from None
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            if item:
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
                ended = generation.stop.is_set() or time.monotonic() > generation._deadline
                return torch.full((input_ids.shape[0],), ended, dtype=torch.bool, device=input_ids.device)

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
