"""`python -m latency components`: the table of the component tests, held against targets."""

from __future__ import annotations

import argparse

from jobs import Event
from latency.cli_run import document, experiment, opened, pairs
from latency.components import components, targets
from latency.components.components import ComponentsResult, Row
from parts import parts
from rag.quantities import seconds

BYTES = ("memory_bytes", "memory_total_bytes")


def run(given: argparse.Namespace) -> int:
    """Test, print. 1 where a component failed or was slower than a target that was asked for."""
    wanted = targets.preset(*given.preset) | targets.edited(pairs(given.target), "the command line")
    held = wanted or targets.preset("r1-a100")
    only = tuple(part for part in (given.only or "").split(",") if part)
    parameters = {
        "targets": {code: target._asdict() for code, target in held.items()},
        "only": list(only),
        "reload": given.reload,
    }
    with opened() as running:
        work = components.work(running, held, parts(running), only=only, reload=given.reload)
        job, kept = experiment(given, running.settings, running.jobs, "components", parameters, work, _progress)
    result = job.result
    assert result is not None
    if given.json:
        document(kept)
    else:
        print(table(result))
        print(f"\n{result.summary} · {seconds(result.seconds)} · experiment {kept.id}")
    return 1 if result.count("failed") or (wanted and result.count("slow")) else 0


def _progress(event: Event) -> str | None:
    return f"{event['component']} …" if event["type"] == "component_started" else None


def table(result: ComponentsResult) -> str:
    """One line a row; reasons and details beneath."""
    heads = f"{'':34}{'median':>10}{'n':>4}{'target':>10}  verdict"
    return "\n".join([heads, *(_line(row) for row in result.rows)])


def _line(row: Row) -> str:
    target = seconds(row.target.seconds) if row.target else ""
    head = f"{row.name[:33]:34}{seconds(row.seconds):>10}{row.n or '':>4}{target:>10}  {row.word}"
    notes = [text for text in (row.reason, _values(row), row.detail) if text]
    return "\n".join([head, *(f"    {note}" for note in notes)])


def _values(row: Row) -> str:
    """The further numbers that are worth a line."""
    values, told = row.values, []
    if values.get("ttft_seconds") is not None:
        told.append(f"first token after {seconds(values['ttft_seconds'])}")
    if values.get("tokens_per_second") is not None:
        told.append(f"{values['tokens_per_second']:.3g} tokens/s")
    if values.get("bytes_per_second") is not None:
        told.append(f"{values['bytes_per_second'] / 1e6:.3g} MB/s")
    if values.get("round_trip_seconds") is not None:
        told.append(f"round trip {seconds(values['round_trip_seconds'])}")
    told += [f"{name.removesuffix('_bytes')} {values[name] / 1e9:.3g} GB" for name in BYTES if values.get(name) is not None]
    return ", ".join(told)
