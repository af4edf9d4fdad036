"""Guessing is slowed down: wrong tokens wait for their answer. Knows ASGI's client address, and no token."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.types import Scope

from access.limits import address_key

FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS, FORGET_SECONDS = 0.1, 2.0, 60.0
CLIENTS_REMEMBERED = 1024


class WrongTokens:
    """Slows down guessing: each wrong token of one client waits longer for its answer, up to 2 s. Nobody else waits.

    The right token never waits. This stops a simple loop; what makes guessing hopeless is a long token.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def seconds(self, scope: Scope) -> float:
        """Count a wrong token; returns how long its answer waits."""
        address, now = address_key((scope.get("client") or ("",))[0]), self._clock()
        count, last = self._counts.pop(address, (0, now))
        count = count + 1 if now - last < FORGET_SECONDS else 1
        self._counts[address] = (count, now)
        if len(self._counts) > CLIENTS_REMEMBERED:
            self._counts.popitem(last=False)
        return min(LAST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(count - 1, 10))
