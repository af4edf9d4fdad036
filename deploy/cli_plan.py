"""Will these models fit on these GPUs: memory, placement and flags. Exit codes: 0 fits, 1 does not, 2 wrong usage."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from deploy.planner import catalogue, flags, limits, presets, report, request
from deploy.planner.cures import cures
from deploy.planner.figures import gib
from deploy.planner.placement import GpuUse, Placed, Plan, plan
from deploy.planner.request import Request
from rag.errors import RagError

LARGEST_PLAN_BYTES = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("file", nargs="?", type=Path, metavar="FILE", help="a plan, TOML or JSON (see --toml)")
    what.add_argument("--preset", choices=presets.NAMES, help="an allocation of the field reports")
    what.add_argument("--models", action="store_true", help="list the models and GPUs that are known by name")
    parser.add_argument("--toml", action="store_true", help="print the plan as a file to edit, and no more")
    parser.add_argument("--formulas", action="store_true", help="print each figure's formula and source")
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Raises RagError for a plan that cannot be read or used."""
    if arguments.models:
        return _models(arguments.json)
    asked = presets.preset(arguments.preset) if arguments.preset else read(arguments.file)
    if arguments.toml:
        print(request.to_toml(asked), end="")
        return 0
    found = plan(asked)
    if arguments.json:
        print(json.dumps(report.to_json(found), ensure_ascii=False))
    else:
        print("\n".join(_lines(found, arguments.formulas)))
    return 0 if found.fits else 1


def read(path: Path) -> Request:
    """The plan of a file. Raises RagError (`bad_input`)."""
    try:
        if path.stat().st_size > LARGEST_PLAN_BYTES:
            raise RagError(f"{path} is larger than 1 MB: it is no plan", kind="bad_input")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise RagError(f"{path} cannot be read: {type(problem).__name__}", kind="bad_input") from problem
    return request.from_json(text) if path.suffix == ".json" else request.from_toml(text)


def _models(as_json: bool) -> int:
    if as_json:
        models = [{"name": each.name, "kind": each.kind, "precision": each.precision, "source": each.source,
                   "parameters": each.published_parameters} for each in catalogue.models().values()]  # fmt: skip
        print(json.dumps({"models": models, "gpus": list(catalogue.gpus())}, ensure_ascii=False))
        return 0
    for model in catalogue.models().values():
        print(f"{model.name:<44}{model.kind:<10}{model.precision:<7}{model.published_parameters or 0:>16,}")
    print("GPUs: " + ", ".join(catalogue.gpus()))
    return 0


def _lines(found: Plan, formulas: bool) -> list[str]:
    asked = found.request
    many = f"{asked.count} × " if asked.count > 1 else ""
    lines = [
        f"{asked.name}: {many}{asked.gpu.name}, {gib(asked.gpu.usable_bytes)} usable: {'fits' if found.fits else 'DOES NOT FIT'}"
    ]
    for each in found.services:
        lines += _service(found, each, formulas)
    lines += [_gpu(each) for each in found.gpus]
    return [*lines, *(f"note: {each}" for each in found.notes)]


def _service(found: Plan, placed: Placed, formulas: bool) -> list[str]:
    service = placed.service
    where = f"GPU {', '.join(map(str, placed.gpus))}" if placed.gpus else "nowhere"
    lines = ["", f"{service.name}: {service.model} ({placed.precision}) on {where}, {gib(placed.reserved_bytes)} of each"]
    lines.append("  " + ", ".join(f"{name} {gib(size)}" for name, size in placed.parts() if size))
    if formulas:
        lines += [
            f"    {name}: {figure.formula}  [{figure.source}]" for name, figure in placed.need.items() if figure.value_bytes
        ]
    if placed.max_sequences is not None and placed.fits:
        longest = limits.longest_context(placed)
        reach = f"; {service.sequences} sequences of up to {longest:,} tokens" if longest else ""
        lines.append(f"  at most {placed.max_sequences} sequences of {service.context:,} tokens{reach}")
    bounds = limits.bounds(placed, found.request.gpu)
    if bounds.decode is not None and placed.fits:
        lines.append(f"  upper bounds: {bounds.decode:,.0f} tokens/s decoded together, {bounds.decode_alone:,.0f} alone")
    if not placed.fits:
        lines.append(f"  DOES NOT FIT. {placed.problem}")
        lines += [f"    cure: {each.text}" for each in cures(found, service.name)] or [
            "    no single change or pair makes it fit"
        ]
    command = flags.command(found, placed)
    lines += [f"  {command}"] if command else []
    return lines + [f"  note: {each}" for each in placed.notes]


def _gpu(use: GpuUse) -> str:
    names = ", ".join(use.services) or "nothing"
    return (
        f"GPU {use.index}: {names}; {gib(use.reserved_bytes)} given, {gib(use.contexts_bytes)} contexts, "
        f"{gib(use.buffer_bytes)} buffer, {gib(use.free_bytes)} free"
    )
