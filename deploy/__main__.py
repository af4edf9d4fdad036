"""`python -m deploy COMMAND`. Exit codes: 0 ok, 1 failed (for `plan`: does not fit), 2 wrong usage.

Each command is a module `cli_NAME.py` with `add_arguments(parser)` and `run(arguments) -> int`, and a line in `COMMANDS`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence

from rag.errors import RagError

COMMANDS = {
    "plan": "will these models fit on these GPUs, and with which flags",
    "render": "every file of a deployment from one settings file",
    "validate": "does it work: every endpoint, model, store, machine and reported issue",
    "rollback": "switch the reranker off or back to an earlier address, in one command",
    "bundle": "pack everything for a machine without internet",
    "install": "install such a bundle there",
    "offline-check": "prove before the move that nothing calls out",
}


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = _parser(next((word for word in words if word in COMMANDS), None)).parse_args(words)
    try:
        return int(given.run(given))
    except RagError as problem:
        return _refuse(problem, bool(getattr(given, "json", False)))


def _parser(wanted: str | None) -> argparse.ArgumentParser:
    """Only the wanted command is imported: a plan needs no runtime, and an installation nothing at all."""
    parser = argparse.ArgumentParser(prog="python -m deploy", description="Plan, render, check and move a deployment.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in COMMANDS.items():
        module = importlib.import_module(f"deploy.cli_{name.replace('-', '_')}") if name == wanted else None
        command = commands.add_parser(name, help=help_text, description=module.__doc__ if module else None)
        if module:
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def _refuse(problem: RagError, as_json: bool) -> int:
    if as_json:
        error = {"kind": problem.kind, "message": problem.message, "next_step": problem.next_step}
        print(json.dumps({"error": error}, ensure_ascii=False))
    else:
        step = f"\n       {problem.next_step}" if problem.next_step else ""
        print(f"error: {problem.message}{step}", file=sys.stderr)
    return 2 if problem.kind in ("bad_input", "not_found") else 1


if __name__ == "__main__":
    sys.exit(main())
