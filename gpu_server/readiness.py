"""Whether the models answer: proven by a real forward pass of each, after the start and again after a failure.

Knows nothing of HTTP. Lives on one event loop; the passes run in a thread of their own, because a load can take minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Literal

from gpu_server.errors import EngineError

log = logging.getLogger(__name__)

PROOF_SECONDS = 10.0  # a loaded model that takes longer for one short text is not healthy
RETRY_SECONDS = 10.0  # between attempts at models that failed to load

State = Literal["loading", "healthy", "unhealthy"]


class Readiness:
    """The state that `/health` tells.

    `prove(deadline)` loads what is not loaded and runs each model once; it raises what is wrong. The deadline is
    `time.monotonic()` or None: the first proof, which loads, may take as long as it takes.
    """

    def __init__(self, prove: Callable[[float | None], None]) -> None:
        self._prove = prove
        self._proof: asyncio.Future[None] | None = None
        self._retry_at = 0.0
        self._closed = False
        self.proven = False
        self.state: State = "loading"
        self.reason = "the models are being loaded"

    @property
    def takes_requests(self) -> bool:
        """Proven once and not closed. A failure since may be one request's own fault, so the others are still tried."""
        return self.proven and not self._closed

    def start(self) -> None:
        """Load the models and prove them, in the background."""
        loop, proof = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        deadline = time.monotonic() + PROOF_SECONDS if self.proven else None
        self._proof = proof

        def work() -> None:
            problem: Exception | None = None
            try:
                self._prove(deadline)
            except Exception as caught:
                problem = caught
            with contextlib.suppress(RuntimeError):  # the loop ended meanwhile
                loop.call_soon_threadsafe(self._ended, proof, problem)

        threading.Thread(target=work, name="proof", daemon=True).start()

    def doubt(self, problem: BaseException) -> None:
        """A pass failed: the next `check` proves the models again."""
        if self.state == "healthy":
            self.state, self.reason, self._retry_at = "unhealthy", _said(problem), 0.0

    def close(self) -> None:
        """The server is on its way out: no more requests, no more proofs."""
        self._closed = True
        self.state, self.reason = "unhealthy", "the server is shutting down"

    def retry(self) -> None:
        """Prove again where a failure has left doubt, unless that was tried a moment ago; waits for nothing."""
        if self.state == "unhealthy" and not self._closed and self._proof is None and time.monotonic() >= self._retry_at:
            self.start()

    async def check(self) -> State:
        """The state; where it is in doubt, after a new pass, which is waited for as long as PROOF_SECONDS."""
        self.retry()
        if self.state == "unhealthy" and self._proof is not None and self.proven:
            await asyncio.wait([self._proof], timeout=PROOF_SECONDS)
        return self.state

    def _ended(self, proof: asyncio.Future[None], problem: Exception | None) -> None:
        self._proof = None
        proof.set_result(None)
        if self._closed:
            return
        if problem is None:
            self.proven, self.state, self.reason = True, "healthy", ""
            return
        log.error("the models are not healthy: %s", problem)
        self._retry_at = 0.0 if self.proven else time.monotonic() + RETRY_SECONDS
        self.state, self.reason = "unhealthy", _said(problem)


def _said(problem: BaseException) -> str:
    step = problem.next_step if isinstance(problem, EngineError) else ""
    return f"{type(problem).__name__}: {problem}" + (f". {step}" if step else "")
