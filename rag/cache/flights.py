"""Equal questions at the same moment: one computes, the others wait for it. Knows no store and no answer's worth."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rag.cache.types import CachedAnswer

LOOK_SECONDS = 0.1  # how often one who waits looks whether it was cancelled itself


class Flight:
    """Lands with the answer, or with None where those who wait must compute for themselves."""

    def __init__(self) -> None:
        self._landed = threading.Event()
        self.answer: CachedAnswer | None = None

    def land(self, answer: CachedAnswer | None) -> None:
        self.answer = answer
        self._landed.set()

    def wait(self, check: Callable[[], None]) -> CachedAnswer | None:
        """Until it lands; `check` raises to leave earlier."""
        while not self._landed.wait(LOOK_SECONDS):
            check()
        return self.answer


class Flights:
    """Questions under way in this process, by the id their answer will have. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[str, Flight] = {}

    def join(self, key: str) -> Flight | None:
        """The flight to wait for; None makes the caller its leader, who must `land` it."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is None:
                self._flights[key] = Flight()
            return flight

    def land(self, key: str, answer: CachedAnswer | None) -> None:
        """End a flight; nothing happens where there is none."""
        with self._lock:
            flight = self._flights.pop(key, None)
        if flight is not None:
            flight.land(answer)


def waited(flight: Flight, check: Callable[[], None]) -> tuple[CachedAnswer | None, float]:
    """What it landed with, and the seconds that this took."""
    started = time.perf_counter()
    answer = flight.wait(check)
    return answer, time.perf_counter() - started
