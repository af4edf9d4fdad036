"""How long a text is, in tokens, for the splitter. Knows neither the tokenizer nor what the texts are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

MAX_TEXT_BYTES = 60_000  # Milvus takes 65,535 in a VARCHAR
BYTES_PER_TOKEN = 32  # no prose has so many; WordPiece counts any run of over 100 characters without a space as one token

CountTokens = Callable[[str], int]


@dataclass(slots=True)
class Measure:
    """The splitter's callback: tokens, or bytes in units of BYTES_PER_TOKEN where that is more.

    The bytes keep text that is few tokens but long (base64, minified code) within the store's limit, and spare
    tokenising what is too long anyway. An exception may not cross the splitter's Rust: it is kept and raised by `check`.
    """

    count_tokens: CountTokens
    limit_tokens: int
    problem: Exception | None = None

    def __call__(self, text: str) -> int:
        unit = self._unit()
        if len(text) > self.most_chars():
            return math.ceil(len(text) / unit)
        by_bytes = math.ceil(len(text.encode("utf-8", "surrogatepass")) / unit)
        if self.problem is not None or by_bytes > self.limit_tokens:
            return by_bytes
        try:
            return max(self.count_tokens(text), by_bytes)
        except Exception as problem:
            self.problem = problem
            return by_bytes

    def _unit(self) -> float:
        return min(BYTES_PER_TOKEN, MAX_TEXT_BYTES / self.limit_tokens)

    def most_chars(self) -> float:
        """No text with more characters fits."""
        return self._unit() * self.limit_tokens

    def fits(self, text: str, limit_tokens: int | None = None) -> bool:
        """Whether `text` has at most `limit_tokens` (the measure's own limit where None). Raises what the counter raised."""
        size = self(text)
        self.check()
        return size <= (self.limit_tokens if limit_tokens is None else limit_tokens)

    def check(self) -> None:
        if self.problem is not None:
            raise self.problem
