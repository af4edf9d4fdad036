"""Does this deployment work: endpoints, models, stores, machines and the reported issues, each with cause and cure.

Exit codes: 0 nothing failed (warnings are told), 1 something failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import runtime
from deploy.cli_subject import RunningProcess, ServerProcess, subject, targets
from deploy.validation import kept, report, runner
from deploy.validation.checks import CHECKS, chosen
from deploy.validation.subject import QUESTION, Process
from deploy.validation.types import Check, Report, Result
from deploy.validation.world import World
from rag.errors import HeldError, RagError
from settings import Settings, SettingsError, load

WORD_CHARS = max(map(len, report.WORDS.values()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", metavar="CODE", default=[], help="these checks alone, such as E-5 R0-3 (see --list)")
    parser.add_argument("--list", action="store_true", help="list the checks and what each proves, and no more")
    report_help = "also write this file: .html, .md, .junit.xml or .json; may be repeated"
    parser.add_argument("--report", action="append", type=Path, metavar="FILE", default=[], help=report_help)
    parser.add_argument("--question", default=QUESTION, help="what the full query asks")
    seconds_help = "longest acceptable warm query (default: readiness.answer_seconds of the settings)"
    parser.add_argument("--target-seconds", type=float, help=seconds_help)
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Raises RagError for wrong usage and for settings that cannot be."""
    if arguments.list:
        print("\n".join(f"{each.code:<6}{each.title}: {each.proves}" for each in CHECKS))
        return 0
    checks = chosen(arguments.only)
    formats = [(path, report.format_of(path.name)) for path in arguments.report]
    seconds: float | None = arguments.target_seconds
    if seconds is not None and not 0 < seconds < 1e6:
        raise RagError("--target-seconds is no time", kind="bad_input", next_step="Give seconds above 0.")
    settings = _settings()
    limits = targets(settings) if seconds is None else replace(targets(settings), total_seconds=seconds)
    what = subject(settings, question=arguments.question, limits=limits)
    with process(settings) as get:
        made = _followed(World(what, get), checks, quiet=arguments.json)
    whole = _keep(settings, made)
    for path, kind in formats:
        _write(path, kind, made)
    if arguments.json:
        print(json.dumps(made.to_json(), ensure_ascii=False))
    else:
        print(f"\n{report.summary(made)} in {made.seconds:.1f} s{whole}")
    return 1 if made.count("failed") else 0


def _settings() -> Settings:
    try:
        return load()
    except SettingsError as problem:
        raise RagError(str(problem), kind="bad_input", next_step="Correct the settings (docs/settings.md).") from None


@contextmanager
def process(settings: Settings) -> Iterator[Callable[[], Process]]:
    """What gives the process whose path is validated: a runtime of our own, or the server that has the embedded store open. It is
    built when it is first asked for, so that what needs none of it also works where it cannot be built."""

    def get() -> Process:
        running = runtime.get()
        try:
            running.store.open()
        except HeldError as held:
            if held.url is None:
                raise
            return ServerProcess(held, settings)
        except RagError:
            pass  # the checks of the store and the query say it, each with its own words
        return RunningProcess(running)

    try:
        yield get
    finally:
        runtime.shut_down()


def _followed(world: World, checks: tuple[Check, ...], quiet: bool) -> Report:
    steps = runner.run(world, checks)
    while True:
        try:
            event = next(steps)
        except StopIteration as end:
            made: Report = end.value
            return made
        if event["type"] == "check_finished" and not quiet:
            print("\n".join(lines(Result.from_json(event["result"]))), flush=True)


def lines(result: Result) -> list[str]:
    """A result for the terminal: one line, and of what is wrong cause and cure."""
    head = f"{result.code:<6}{report.WORDS[result.outcome]:<{WORD_CHARS}}  {result.title}"
    found = [f"{head}: {result.evidence}" if result.evidence else head]
    wrong = [item for item in result.items if item.outcome in ("failed", "warning")]
    for item in wrong:
        name = f"{item.subject}: " if item.subject else ""
        found += [f"        {name}{item.evidence}"] if len(wrong) > 1 else []  # a single one stands in the first line
        found += [f"          cause: {item.cause}", f"          cure:  {item.cure}"]
    if result.table:
        widths = [max(len(row[place]) for row in result.table) for place in range(len(result.table[0]))]
        for row in result.table:
            found.append("        " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return [_printable(line) for line in found]


def _printable(text: str) -> str:
    """Servers' words reach the terminal without control characters."""
    return "".join(char if char.isprintable() else "�" for char in text)


def _keep(settings: Settings, made: Report) -> str:
    try:
        kept.save(settings.data_dir, made)
    except RagError as problem:
        print(f"warning: {problem.message}", file=sys.stderr)
        return ""
    return f"; kept in {kept.path_in(settings.data_dir)} for the page Readiness"


def _write(path: Path, kind: str, made: Report) -> None:
    texts = {".html": report.html, ".md": report.markdown, ".junit.xml": report.junit, ".json": _json}
    try:
        path.write_text(texts[kind](made), encoding="utf-8")
    except OSError as problem:
        step = "Name a file in a folder that is there and can be written to."
        raise RagError(f"{path} cannot be written: {problem.strerror}", kind="bad_input", next_step=step) from None


def _json(made: Report) -> str:
    return json.dumps(made.to_json(), ensure_ascii=False, indent=1) + "\n"
