"""`python -m rag evaluate --set NAME`: a question set of the page Evaluation over the live collection, kept as its runs are."""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from typing import Any

from rag.errors import RagError
from rag.evaluation.evaluations import Evaluations, Plan, grid, run
from rag.evaluation.types import METRICS, QuestionSet, Run


def run_set(given: argparse.Namespace) -> int:
    """Measure with the settings in force; 0 when every question was measured. Raises RagError, not_found for no such set."""
    import runtime

    running = runtime.get()
    try:
        evaluations = Evaluations(running.settings.data_dir)
        known = _known(evaluations, given.set)
        running.store.open()  # one that another process holds ends this here, with who holds it
        running.pool.warm_up()
        options, ingest = running.default_options(), running.settings.ingest
        about = {"chunk_tokens": ingest.chunk_tokens, "overlap_tokens": ingest.overlap_tokens}
        settings = grid([given.candidates], options.keep, [running.clients().reranker is not None], [False])
        for event in run(evaluations, Plan(known, settings, about), running.clients(), job_id=uuid.uuid4().hex):
            _show(event, known)
        found = evaluations.runs.list(known.info.id, limit=1)[0]
    finally:
        runtime.shut_down()
    print(json.dumps(found.to_json(), ensure_ascii=False) if given.json else table(found))
    return 0 if found.state == "finished" else 1


def _known(evaluations: Evaluations, name: str) -> QuestionSet:
    known = evaluations.sets.named(name)
    if known is None:
        names = ", ".join(each.name for each in evaluations.sets.list()) or "none yet"
        raise RagError(
            f"there is no question set named {name!r}",
            kind="not_found",
            next_step=f"There are: {names}. The page Evaluation makes them.",
        )
    return known


def _show(event: dict[str, Any], known: QuestionSet) -> None:
    if event["type"] == "progress" and event["done"] % 25 == 0:
        print(f"measured {event['done']} of {known.info.questions} questions", file=sys.stderr)


def table(run: Run) -> str:
    """The means by stage, and the mean times, as lines."""
    if run.summary is None:
        return f"nothing was measured: {run.error or run.state}"
    lines = [f"{run.set_name}, version {run.set_version}: {run.measured} questions, {run.setting.words}"]
    lines.append(f"{'':8}" + "".join(f"{name:>12}" for name in METRICS))
    for stage, cells in run.summary["stages"].items():
        lines.append(f"{stage:8}" + "".join(f"{cells[name]['mean']:>12.4f}" for name in METRICS))
    spent = run.summary["seconds"].items()
    lines.append("mean time a question: " + " · ".join(f"{stage} {1000 * told['mean']:.1f} ms" for stage, told in spent))
    return "\n".join(lines)
