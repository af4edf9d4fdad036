"""`python -m latency load`: more and more users ask this process, or a server with `--api`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager

from jobs import Event, Jobs
from latency.cli_run import document, experiment, opened, option_values
from latency.lab import Lab
from latency.load import load
from latency.load.load import LoadPlan, LoadResult
from rag.quantities import seconds
from settings import Settings
from settings import load as load_settings


def run(given: argparse.Namespace) -> int:
    """Test, print the steps and the knee. 1 where a request failed."""
    with _asked(given) as (lab, jobs, settings):
        plan = _plan(given, settings)
        job, kept = experiment(given, settings, jobs, "load", plan.to_json(), load.work(lab, plan), _progress)
    result = job.result
    assert result is not None
    if given.json:
        document(kept)
    else:
        print(_table(result))
        print(f"experiment {kept.id}")
    return 0 if result.steps and not any(step.failed for step in result.steps) else 1


@contextmanager
def _asked(given: argparse.Namespace) -> Iterator[tuple[Lab | None, Jobs, Settings]]:
    """The lab that is asked; None with `--api`, which needs neither models nor store here."""
    if given.api:
        yield None, Jobs(limits={"experiment": 1}), load_settings()
        return
    with opened("Ask it by --api and its address") as running:
        yield running, running.jobs, running.settings


def _plan(given: argparse.Namespace, settings: Settings) -> LoadPlan:
    token = settings.server.token.get_secret_value() if settings.server.token else None
    return LoadPlan(
        users=given.users,
        questions=load.load_questions(given.questions),
        seconds_per_step=given.seconds,
        requests_per_step=given.requests,
        open_rate=given.rate,
        warmup_requests=given.warmup,
        api_url=given.api,
        token=(os.environ.get("RAGDECK_TOKEN") or token) if given.api else None,
        options=option_values(given.set),
    )


def _progress(event: Event) -> str | None:
    if event["type"] == "step_started":
        return f"step {event['step']}/{event['of']}: {event['users']} {'user' if event['users'] == 1 else 'users'} …"
    return None


def _table(result: LoadResult) -> str:
    lines = [f"{'users':>6}{'answered':>10}{'failed':>8}{'per s':>9}{'p50':>10}{'p95':>10}{'p99':>10}"]
    for step in result.steps:
        times = step.total
        p50, p95, p99 = (seconds(getattr(times, name, None)) for name in ("p50", "p95", "p99"))
        rate = "–" if step.throughput is None else f"{step.throughput:.3g}"
        lines.append(f"{step.users:>6}{step.answered:>10}{step.failed:>8}{rate:>9}{p50:>10}{p95:>10}{p99:>10}")
    lines.append(result.knee.text)
    lines += [f"stopped: {result.stopped}"] if result.stopped else []
    return "\n".join(lines)
