"""Runs checks one after another and makes the report. A check that breaks costs its own result and no other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

from deploy.validation.types import Check, Report, Result, Verdict, failed, worst
from deploy.validation.world import World
from gpu_server.errors import EngineError
from rag.errors import RagError

log = logging.getLogger(__name__)

Event = dict[str, Any]


def never() -> bool:
    return False


def run(world: World, checks: Sequence[Check], cancelled: Callable[[], bool] = never) -> Generator[Event, None, Report]:
    """Yields `check_started {code, title, number, of}` and `check_finished {result}`; returns the report of those that ran until
    `cancelled` said so."""
    started, began = world.now(), time.monotonic()
    results: list[Result] = []
    for number, check in enumerate(checks, 1):
        if cancelled():
            break
        yield {"type": "check_started", "code": check.code, "title": check.title, "number": number, "of": len(checks)}
        results.append(one(world, check))
        yield {"type": "check_finished", "result": results[-1].to_json()}
    return Report(started, time.monotonic() - began, world.subject.version, tuple(results))


def one(world: World, check: Check) -> Result:
    """The result of one check. Never raises."""
    began = time.monotonic()
    verdict = _verdict(world, check)
    return Result(
        code=check.code,
        group=check.group,
        title=check.title,
        proves=check.proves,
        outcome=worst(item.outcome for item in verdict.items),
        items=verdict.items,
        reason=verdict.reason if not verdict.items else "",
        table=verdict.table,
        measures=verdict.measures,
        seconds=time.monotonic() - began,
        at_unix=world.now(),
    )


def _verdict(world: World, check: Check) -> Verdict:
    try:
        return check.run(world)
    except (RagError, EngineError) as problem:
        if problem.kind == "held":
            return Verdict(reason=f"{problem.message}. {problem.next_step}")
        return Verdict((failed("", problem.message, "What the check needs cannot be had.", problem.next_step),))
    except Exception as problem:
        log.exception("check %s broke off", check.code)
        cause = "This is a fault of the check: the log says more."
        return Verdict((failed("", f"the check itself failed: {type(problem).__name__}", cause, "Report it with the log."),))
