"""The users of one step of a load test: turns handed out to threads, which ask and note when. Knows no statistics."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from latency.load.clients import Client
from latency.load.plan import MAX_IN_FLIGHT, LoadPlan
from latency.load.readings import Looks
from latency.load.steps import Heard, Step, Told, step_of

PAUSE_SECONDS = 0.25  # a user who got no answer does not ask again at once

log = logging.getLogger(__name__)


class Turn(NamedTuple):
    """A question to ask; `due` on the step's clock, None: at once."""

    question: str
    due: float | None


class Turns:
    """Hands out what to ask next, to many users, until count or time is used up."""

    def __init__(self, plan: LoadPlan, users: int, clock: Callable[[], float]) -> None:
        questions = list(plan.questions)
        Random(plan.seed).shuffle(questions)  # the same order in every step: they are to be compared
        self._questions = questions
        self._due = None if plan.open_rate is None else arrivals(plan, users)
        self.count = plan.requests_per_step if self._due is None else len(self._due)
        self._end = plan.seconds_per_step
        if self._due and self.count == plan.requests_per_step:  # cut off by their number
            self._end = self._due[-1]
        self._clock, self._lock = clock, threading.Lock()
        self.given = 0
        self._dried: float | None = None

    def next(self) -> Turn | None:
        with self._lock:
            if self._dried is not None or self.given >= self.count or (self._due is None and self._clock() >= self._end):
                self._dry()
                return None
            turn = Turn(self._questions[self.given % len(self._questions)], self._due[self.given] if self._due else None)
            self.given += 1
            return turn

    def end(self) -> None:
        with self._lock:
            self._dry()

    def _dry(self) -> None:
        """Noted once: when a user first found nothing to ask. Where users do not wait that is before the last is due."""
        if self._dried is None:
            self._dried = self._clock()

    def window(self) -> float:
        """How long all users have asked so far, in seconds; at most to the step's end."""
        with self._lock:
            if self._due is None:
                return self._clock() if self._dried is None else self._dried
            return min(self._clock(), self._end)

    def is_over(self) -> bool:
        """Nothing more becomes due."""
        with self._lock:
            return self._dried is not None if self._due is None else self._clock() >= self._end

    def overdue(self) -> int:
        """Questions that were due and that nobody has got round to."""
        with self._lock:
            now = self._clock()
            return sum(due <= now for due in self._due[self.given :]) if self._due else 0


def arrivals(plan: LoadPlan, users: int) -> list[float]:
    """When questions are due in a step, in seconds from its start: users who each ask at random are one Poisson process."""
    rate = (plan.open_rate or 0.0) * users
    random = Random(f"{plan.seed}/{users}")
    found: list[float] = []
    at = random.expovariate(rate)
    while at < plan.seconds_per_step and len(found) < plan.requests_per_step:
        found.append(at)
        at += random.expovariate(rate)
    return found or [plan.seconds_per_step / 2]  # a step in which nobody asks would tell nothing


class StepRun:
    """The users of one step, a thread each (open loop: as many threads as may be in flight)."""

    def __init__(self, plan: LoadPlan, users: int, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self.users = users
        self.rate = None if plan.open_rate is None else plan.open_rate * users
        self._client, self._clock = client, clock
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._heard: list[Heard] = []
        self._flying = self._overdue = 0
        self._window: float | None = None
        self._began = clock()
        self._turns = Turns(plan, users, self.now)
        size = users if self.rate is None else min(MAX_IN_FLIGHT, self._turns.count)
        self._threads = [threading.Thread(target=self._ask, name=f"load-{n}", daemon=True) for n in range(size)]

    def now(self) -> float:
        """Seconds since the step began."""
        return self._clock() - self._began

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while (turn := self._turns.next()) is not None:
            if turn.due is not None and self._stop.wait(max(0.0, turn.due - self.now())):
                return
            with self._lock:
                self._flying += 1
            sent = self.now()
            told = self._told(turn.question)
            ended = self.now()
            with self._lock:
                self._flying -= 1
                self._heard.append(Heard(sent if turn.due is None else turn.due, sent, ended, told))
            if told.error is not None and turn.due is None:
                self._stop.wait(PAUSE_SECONDS)

    def _told(self, question: str) -> Told:
        try:
            return self._client.ask(question, self._stop)
        except Exception as problem:  # a user that dies silently would make the load smaller than it says
            log.exception("a request of the load test failed in the client")
            return Told(error="internal", message=f"{type(problem).__name__}: {problem}")

    @property
    def is_running(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    @property
    def is_asking(self) -> bool:
        return not self._turns.is_over()

    def progress(self) -> dict[str, Any]:
        with self._lock:
            good = sum(each.told.error is None for each in self._heard)
            return {
                "answered": good,
                "failed": len(self._heard) - good,
                "in_flight": self._flying,
                "asked": len(self._heard) + self._flying,
                "seconds": self.now(),
            }

    def give_up(self) -> None:
        """Nobody asks any more; what runs is cancelled where that can be done."""
        if self._window is None:
            self._window = self._turns.window()
            self._overdue = self._turns.overdue()
        self._turns.end()
        self._stop.set()

    def wait(self, seconds: float) -> bool:
        """Wait for the users to end; False when some had not after `seconds`."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        return not self.is_running

    def step(self, looks: Looks) -> Step:
        """What was heard; after `give_up`."""
        with self._lock:
            heard, flying = list(self._heard), self._flying
        window = self._window if self._window is not None else self._turns.window()
        unfinished = flying + self._overdue
        return step_of(heard, self.users, window, rate=self.rate, unfinished=unfinished, readings=looks.summary())
