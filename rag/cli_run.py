"""What every command of ours does around its work: settings, errors and signals to exit codes, and how an error is printed."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from contextlib import suppress
from typing import Any, NoReturn

from gpu_server.errors import EngineError
from rag.errors import HeldError, RagError


def run(given: argparse.Namespace, quiet: int = logging.WARNING) -> int:
    """Run `given.run(given)`; 0 ok, 1 failed, 2 wrong usage, 130 stopped. `quiet` is the level logged without --verbose."""
    logging.basicConfig(level=logging.DEBUG if given.verbose else quiet, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _stop)
    from settings import SettingsError

    with suppress(SettingsError):  # a command that needs the settings says what is wrong with them
        _mask_secrets()
    try:
        code: int = given.run(given)
    except SettingsError as problem:
        return _fail(given, "bad_input", str(problem), "", 2)
    except (RagError, EngineError) as problem:
        step = problem.next_step
        return _fail(given, problem.kind, problem.message, step, 2 if problem.kind == "bad_input" else 1, problem)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return code


def _mask_secrets() -> None:
    """What libraries log may hold a key or a password. Raises SettingsError."""
    from access.wiring import redact_logs
    from settings import load

    redact_logs(load())
    # Below INFO it writes where notifications go, and those addresses carry keys in their paths
    logging.getLogger("apprise").setLevel(logging.INFO)


def _stop(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _fail(given: argparse.Namespace, kind: str, message: str, step: str, code: int, problem: Exception | None = None) -> int:
    if given.json:
        error: dict[str, Any] = {"kind": kind, "message": message, "next_step": step}
        if isinstance(problem, HeldError):
            error |= {"pid": problem.pid, "url": problem.url}
        print(json.dumps({"error": error}, ensure_ascii=False))
    else:
        print(f"error: {message}" + (f"\n  {step}" if step else ""), file=sys.stderr)
    return code
