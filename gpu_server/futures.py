"""Futures that follow other futures, with nobody waiting. Knows nothing of models.

An outer future stays pending until its answer is there, so that it can be cancelled all the while; who cancels it cancels what
it follows. It holds what it follows weakly: the callbacks of that hold the outer one, and a ring of both would keep every
answer until the garbage collector comes.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

T = TypeVar("T")
U = TypeVar("U")


def finished(result: T) -> Future[T]:
    """A future that has its result already."""
    future: Future[T] = Future()
    future.set_result(result)
    return future


def attempt(work: Callable[[], T]) -> Future[T]:
    """What `work` gives or raises, as a future that is finished already."""
    future: Future[T] = Future()
    try:
        future.set_result(work())
    except BaseException as problem:
        future.set_exception(problem)
    return future


def started(begin: Callable[[], Future[T]]) -> Future[T]:
    """The future that `begin` gives; one that failed where it raises."""
    try:
        return begin()
    except Exception as problem:
        future: Future[T] = Future()
        future.set_exception(problem)
        return future


def cancel_with(outer: Future[Any], inner: Future[Any]) -> None:
    """Cancel `inner` when `outer` is cancelled."""
    watched = weakref.ref(inner)

    def ended(done: Future[Any]) -> None:
        future = watched()
        if done.cancelled() and future is not None:
            future.cancel()

    outer.add_done_callback(ended)


def follow(outer: Future[T], inner: Future[U], then: Callable[[U], None]) -> None:
    """When `inner` is there, give it to `then`, which settles `outer` or follows on; an error on the way is outer's."""

    def landed(done: Future[U]) -> None:
        if outer.cancelled():
            return
        try:
            then(done.result())
        except BaseException as problem:
            fail(outer, problem)

    cancel_with(outer, inner)
    inner.add_done_callback(landed)


def settle(outer: Future[T], result: T) -> None:
    """Give the answer, unless the caller has gone."""
    if outer.set_running_or_notify_cancel():
        outer.set_result(result)


def fail(outer: Future[Any], problem: BaseException) -> None:
    """Give the error, unless the caller has gone; what was cancelled below is cancelled above."""
    if isinstance(problem, CancelledError):
        outer.cancel()
    elif outer.set_running_or_notify_cancel():
        outer.set_exception(problem)


def when_all(futures: Sequence[Future[Any]], then: Callable[[], None]) -> None:
    """Call `then` once, when all are done, however they ended; at once where there are none."""
    lock = threading.Lock()
    left = len(futures) + 1

    def one(_: object) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last:
            then()

    for future in futures:
        future.add_done_callback(one)
    one(None)
