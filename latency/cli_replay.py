"""`python -m latency replay ID…`: stored queries again with something changed, then compared side by side."""

from __future__ import annotations

import argparse
from typing import Any

from jobs import Event
from latency.cli_run import document, experiment, opened, pairs, typed
from latency.cli_tables import compared
from latency.comparing.compare import compare
from latency.experiments import replay
from latency.experiments.replay import Change, ReplayResult
from rag.quantities import seconds

AS_STORED = "as-stored"


def run(given: argparse.Namespace) -> int:
    """Replay, print each side's median and the comparison with side A. 1 where a side has no run that counts."""
    sides = [change(given.base), *(change(text) for text in given.change)]
    parameters = {"query_ids": given.ids, "sides": [side.to_json() for side in sides], "times": given.times}
    with opened() as running:
        work = replay.work(running, given.ids, sides, given.times)
        job, kept = experiment(given, running.settings, running.jobs, "replay", parameters, work, _progress)
        result = job.result
        assert result is not None
        found = [replay.cases(running, result.query_ids(side)) for side in range(len(sides))]
    comparisons = [compare(found[0], other) for other in found[1:] if found[0] and other]
    if given.json:
        document(kept, comparisons=[each.to_json() for each in comparisons])
    else:
        print(_sides(result))
        print("\n".join(f"\n{compared(each)}" for each in comparisons))
        print("\n".join([*(f"note: {note}" for note in result.notes), f"experiment {kept.id}"]))
    return 0 if all(result.good(side) for side in range(len(sides))) else 1


def change(text: str) -> Change:
    """`hyde=off,reranker.device=cpu` as a Change. Raises RagError bad_input."""
    if text.strip() == AS_STORED:
        return Change()
    options: dict[str, Any] = {}
    models: dict[str, Any] = {}
    for key, value in pairs(text.split(",")).items():
        (options if key in replay.OPTIONS else models)[key] = typed(key, value)
    return Change(options, models)


def _progress(event: Event) -> str | None:
    if event["type"] not in ("run", "warm_up"):
        return None
    made = event["run"]
    place = f"{event['done']:>4}/{event['of']}" if event["type"] == "run" else f"{'warm-up':>9}"
    remark = made["error"] or made["degraded"] or ""
    return f"{place}  {_letter(made['side'])}  {seconds(made['total_seconds']):>8}  {remark}"


def _letter(side: int) -> str:
    return chr(ord("A") + side) if side < 26 else str(side)


def _sides(result: ReplayResult) -> str:
    lines = [f"{'':3}{'median':>10}{'n':>5}{'failed':>8}"]
    for index, side in enumerate(result.sides):
        failed = sum(run.side == index and run.error is not None for run in result.runs)
        median = seconds(result.median_seconds(index))
        lines.append(f"{_letter(index):3}{median:>10}{len(result.good(index)):>5}{failed:>8}  {side.label}")
    return "\n".join(lines)
