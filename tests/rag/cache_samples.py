"""Answers, keys and vectors for the tests of the semantic cache."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from rag.cache.types import CachedAnswer, CacheKey
from rag.types import Answer, Citation, Options, Passage, Stage, Tokens

EMBEDDER = "test-4"
KEY = CacheKey.of(
    collection="passages__test",
    content_version="1",
    embedder=EMBEDDER,
    model="llm",
    prompt={"answer": "{question}"},
    options={"keep": 8},
)
NEW_CONTENT = replace(KEY, content_version="2")


def vector(*numbers: float) -> np.ndarray:
    values = np.array(numbers or (1.0, 0.0, 0.0, 0.0), dtype=np.float32)
    return values / np.linalg.norm(values)


def passage(key: str, *, kept: bool) -> Passage:
    return Passage(
        key, f"The text of {key}.", f"{key}.md", f"About {key}", "Intro", "en", key, kept, {"dense": 1}, {"dense": 0.9}
    )


def answer(question: str = "What does Art. 72 say?", text: str = "It limits windows [1].", **changes: Any) -> Answer:
    base = Answer(
        id=hashlib.sha256(question.encode()).hexdigest()[:32],
        question=question,
        started_at="2026-03-01T10:00:00Z",
        outcome="answered",
        answer=text,
        citations=(Citation(1, "kept", "kept.md", "About kept", "Intro"),),
        passages=(passage("kept", kept=True), *(passage(f"spare{n}", kept=False) for n in range(20))),
        stages=(Stage("cache", hit=False, reason="new"), Stage("generate", 6.0, 1)),
        total_seconds=9.5,
        tokens=Tokens(800, 120, 60.0),
        options=Options(),
        finish_reason="stop",
        prompt=({"role": "user", "content": f"Passages … {question}"},),
    )
    return replace(base, **changes)


def entry(question: str = "What does Art. 72 say?", key: CacheKey = KEY, at: float = 1000.0) -> CachedAnswer:
    return CachedAnswer.from_answer(answer(question), key, at)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
