"""How often one caller's refusals are written down: the first of each minute, then one line that counts the others.

A log turns over when it is full. Without a bound, whoever may only read could push the lines of others out of it by asking again
and again for what is not theirs. Knows the log's two calls and no page.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from access.scopes import Identity
from collectors.audit import AuditLog

log = logging.getLogger(__name__)

WINDOW_SECONDS = 60.0
OF_ONE_KIND = 5
"""Refusals of one identity at one thing that a window writes."""
OF_ALL_KINDS = 20
"""Refusals of one identity, whatever it asked for, that a window writes."""
IDENTITIES = 1024
NOT_WRITTEN = "refusals that were not written one by one"

Later = Callable[[float, Callable[[], None]], object]


def later(seconds: float, call: Callable[[], None]) -> None:
    """Call it then, on a thread that keeps no process alive."""
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()


@dataclass
class _Window:
    """What one identity was refused since `began` (by the clock)."""

    log: AuditLog
    name: str
    address: str | None
    began: float
    written: Counter[str] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)

    def is_full(self, what: str) -> bool:
        return self.written[what] >= OF_ONE_KIND or self.written.total() >= OF_ALL_KINDS

    def count(self) -> None:
        """Write how many were held back. Raises OSError."""
        if self.held:
            parts = ", ".join(f"{what} ({count})" for what, count in self.held.most_common())
            said = f"{self.held.total()} more within {WINDOW_SECONDS:g} s: {parts}"
            self.log.end(self.log.begin(self.name, "", NOT_WRITTEN, self.address), "refused", said)


class Refusals:
    """Thread-safe, in bounded memory. `clock` gives seconds; `later` has a window closed when nobody asks any more."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, later: Later = later) -> None:
        self._clock, self._later = clock, later
        self._windows: OrderedDict[tuple[Path, str], _Window] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, log: AuditLog, who: Identity, address: str | None, what: str, why: str, target: str = "") -> None:
        """Write a refusal, or count it. Raises OSError."""
        self.settle()
        key = log.path, who.key
        with self._lock:
            window = self._windows.setdefault(key, _Window(log, who.name, address, self._clock()))
            full, first = window.is_full(what), not window.held
            (window.held if full else window.written)[what] += 1
            oldest = self._windows.popitem(last=False)[1] if len(self._windows) > IDENTITIES else None
        if oldest is not None:
            oldest.count()
        if not full:
            log.end(log.begin(who.name, "", what, address, target), "refused", why)
        elif first:
            self._later(window.began + WINDOW_SECONDS - self._clock() + 0.1, self._settle_quietly)

    def settle(self) -> None:
        """Close the windows whose time is over. Raises OSError."""
        with self._lock:
            now = self._clock()
            over = [key for key, window in self._windows.items() if now - window.began >= WINDOW_SECONDS]
            closed = [self._windows.pop(key) for key in over]
        for window in closed:
            window.count()

    def _settle_quietly(self) -> None:
        try:
            self.settle()
        except OSError as problem:
            log.error("a count of refusals could not be written into the audit log: %s", problem.strerror)
