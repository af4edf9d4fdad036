"""What the commands that measure share: the runtime of this process, an experiment run to its end with its progress printed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import runtime
from collectors.nvml import Nvml
from jobs import Event, Job, Jobs, Work
from latency.experiments.experiments import Experiment, ExperimentStore, Kind, environment, run
from rag.errors import HeldError, RagError
from rag.types import Options
from runtime import Runtime
from settings import VERSION, Settings

R = TypeVar("R")
STOP_SECONDS = 30.0
NUMBERS = ("candidates", "keep", "llm.max_tokens")
SWITCHES: Mapping[str, bool] = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}


@contextmanager
def opened(otherwise: str = "Run it on the pages of that server") -> Iterator[Runtime]:
    """The runtime of this process with its store open. `otherwise` is what to do where another process has the store."""
    running = runtime.get()
    try:
        try:
            running.store.open()
        except HeldError as held:
            where = f" ({held.url})" if held.url else ""
            step = f"{otherwise}{where}, or end it; a Milvus server (MILVUS_URI) can be shared."
            raise HeldError(held.message, pid=held.pid, url=held.url, next_step=step, address=held.address) from None
        yield running
    finally:
        runtime.shut_down()


def experiment(
    given: argparse.Namespace,
    settings: Settings,
    jobs: Jobs,
    kind: Kind,
    parameters: Mapping[str, Any],
    work: Work[R],
    show: Callable[[Event], str | None],
) -> tuple[Job[R], Experiment]:
    """Run the work as an experiment that is kept, its events printed to standard error. Raises what it ended with."""
    store = ExperimentStore(settings.data_dir / "experiments.db")
    gpus = Nvml()
    fingerprint = environment(VERSION, gpus.read())
    gpus.close()
    job = run(jobs, store, kind=kind, name=given.name or kind, parameters=parameters, work=work, environment=fingerprint)
    try:
        for event in job.follow():
            line = show(event) if event is not None and not given.json else None
            if line:
                print(line, file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        job.cancel()
        job.wait(STOP_SECONDS)
        print(f"what was measured until now is kept as experiment {job.id}", file=sys.stderr)
        raise
    kept = store.get(job.id)
    store.close()
    if job.error is not None:
        raise job.error if isinstance(job.error, RagError) else RagError(f"it broke off: {job.error!r}")
    assert kept is not None
    return job, kept


def document(kept: Experiment, **more: Any) -> None:
    """The experiment as one JSON document on standard output."""
    print(json.dumps({**kept.to_json(), **more}, ensure_ascii=False, default=str))


def pairs(texts: list[str] | tuple[str, ...]) -> dict[str, str]:
    """`KEY=VALUE` each. Raises RagError bad_input."""
    found = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not key or not sign or not value:
            raise RagError(f"{text!r} is no KEY=VALUE", kind="bad_input", next_step="Write it like hyde=off.")
        found[key.strip()] = value.strip()
    return found


def typed(key: str, text: str) -> Any:
    """The value of an option or a model's key as the type it has. Raises RagError bad_input."""
    try:
        if key in NUMBERS:
            return int(text)
        if key == "llm.temperature":
            return float(text)
        return SWITCHES[text] if key == "rerank" else text
    except (ValueError, KeyError):
        expected = "on or off" if key == "rerank" else "a number"
        raise RagError(f"{key} is {text!r}", kind="bad_input", next_step=f"Give {expected}.") from None


def option_values(texts: list[str]) -> dict[str, Any]:
    """Options of a query. Raises RagError bad_input for one that is none."""
    found = {key: typed(key, value) for key, value in pairs(texts).items()}
    known = tuple(Options.__dataclass_fields__)
    if unknown := sorted(set(found) - set(known)):
        raise RagError(
            f"a query has no option {', '.join(unknown)}", kind="bad_input", next_step=f"Choose of {', '.join(known)}."
        )
    return found
