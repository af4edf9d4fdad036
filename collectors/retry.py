"""How long to wait before a machine is tried again, and how many are tried at once. Knows no machine."""

from __future__ import annotations

import threading
from collections import Counter
from random import Random

FIRST_SECONDS = 2.0
LONGEST_SECONDS = 60.0
CONNECTS_AT_ONCE = 32
CONNECTS_PER_DOOR = 8  # an sshd drops some of more than ten that have not logged in yet (MaxStartups)


def back_off(failures: int, random: Random, longest: float = LONGEST_SECONDS) -> float:
    """Seconds to wait after so many failures in a row (from 1): doubled each time, and by chance up to a half less, so that
    machines that failed together do not come back together."""
    seconds = min(longest, FIRST_SECONDS * 2.0 ** min(failures - 1, 30))
    return seconds * (1.0 - 0.5 * random.random())


class Doors:
    """Counts connections that are being made, in all and through each door (a host and port that several machines may share)."""

    def __init__(self, at_once: int = CONNECTS_AT_ONCE, per_door: int = CONNECTS_PER_DOOR) -> None:
        self._at_once = at_once
        self._per_door = per_door
        self._inside: Counter[str] = Counter()
        self._lock = threading.Lock()

    def enter(self, door: str) -> bool:
        """Whether one more may go; then `leave` must follow."""
        with self._lock:
            if self._inside.total() >= self._at_once or self._inside[door] >= self._per_door:
                return False
            self._inside[door] += 1
            return True

    def leave(self, door: str) -> None:
        with self._lock:
            self._inside[door] -= 1
            if not self._inside[door]:
                del self._inside[door]
