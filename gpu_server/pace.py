"""How many tokens a batch may have, and how fast a model has been of late. Knows nothing of models or threads."""

from __future__ import annotations

from collections import deque

START_TOKENS = 512  # before anything is measured: a second or two for a large model on a CPU, nothing for a GPU
MIN_TOKENS = 256  # of fewer a pass is mostly overhead: the weights are read once a pass, whatever its size
WEIGHT = 0.3  # of the newest measurement
MEMORY_SECONDS = 60.0  # how long batches stay smaller after memory ran out
WINDOW_SECONDS = 30.0


class Pace:
    """The token budget of one worker: what its device computes in `target_seconds`, as measured, up to `max_tokens`.

    Used by its worker alone; `tokens_per_second` may be read by others, None until measured.
    """

    def __init__(self, max_tokens: int, target_seconds: float) -> None:
        self.tokens_per_second: float | None = None
        self._max_tokens = max_tokens
        self._target_seconds = target_seconds
        self._budget = START_TOKENS
        self._memory_tokens = max_tokens
        self._memory_until = 0.0
        self._warm = False

    def budget(self, now: float) -> int:
        """Tokens of the next batch, MIN_TOKENS at least where memory allows; `now` is monotonic seconds."""
        rate = self.tokens_per_second
        tokens = START_TOKENS if rate is None else max(MIN_TOKENS, int(rate * self._target_seconds))
        if now < self._memory_until:
            tokens = min(tokens, self._memory_tokens)
        self._budget = min(tokens, self._max_tokens)
        return self._budget

    def ran(self, tokens: int, seconds: float) -> None:
        """A pass took `seconds`.

        The first one does not count: it also pays for what is set up once. One of less than half the budget counts only where
        it is faster than what is known: it is mostly overhead and says little of a full one.
        """
        if not self._warm:
            self._warm = True
            return
        rate = tokens / max(seconds, 1e-6)
        known = self.tokens_per_second
        if known is None:
            self.tokens_per_second = rate
        elif rate > known or 2 * tokens >= self._budget:
            self.tokens_per_second = known + WEIGHT * (rate - known)

    def out_of_memory(self, tokens: int, now: float) -> None:
        """A batch of so many tokens was too large: none over half of that for a while."""
        self._memory_tokens = max(1, tokens // 2)
        self._memory_until = now + MEMORY_SECONDS


class Recent:
    """Tokens and busy seconds of the last 30 s, in slices of a second. Not thread-safe."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._slices: deque[tuple[int, int, float]] = deque()

    def add(self, tokens: int, seconds: float, now: float) -> None:
        """A pass that ended at `now` (monotonic seconds)."""
        if self._started is None:
            self._started = now - seconds
        if self._slices and self._slices[-1][0] == int(now):
            _, known, busy = self._slices.pop()
            tokens, seconds = tokens + known, seconds + busy
        self._slices.append((int(now), tokens, seconds))
        self._forget(now)

    def rates(self, now: float) -> tuple[float | None, float | None]:
        """Tokens a second, and passes at work at once on the average; None before the first pass."""
        if self._started is None:
            return None, None
        self._forget(now)
        span = max(1.0, min(WINDOW_SECONDS, now - self._started))
        tokens = sum(tokens for _, tokens, _ in self._slices)
        return tokens / span, sum(seconds for _, _, seconds in self._slices) / span

    def _forget(self, now: float) -> None:
        while self._slices and self._slices[0][0] < now - WINDOW_SECONDS:
            self._slices.popleft()
