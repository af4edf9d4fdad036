"""Every file of a deployment from one settings file. Exit codes: 0 ok, 1 differs (--check) or edited by hand, 2 wrong usage."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from deploy.render import files, reading
from deploy.render.files import Difference
from deploy.render.site import Site
from deploy.render.targets import TARGETS, rendered
from rag.errors import RagError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the settings of the deployment, TOML")
    what.add_argument("--preset", choices=reading.PRESETS, help="a stack that is shipped; --show prints it to start from")
    parser.add_argument("--show", action="store_true", help="print the settings file, and write nothing")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write")
    parser.add_argument("--target", choices=[*TARGETS, "all"], default="all", help="what to make (default all)")
    parser.add_argument("--check", action="store_true", help="say what differs from DIR, and write nothing")
    parser.add_argument("--force", action="store_true", help="overwrite files that somebody edited")
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Raises RagError for settings that cannot be used, and for files that somebody edited."""
    if arguments.show:
        print(_text(arguments), end="")
        return 0
    site = reading.preset(arguments.preset) if arguments.preset else reading.read(arguments.file)
    if arguments.out is None:
        raise RagError("--out is missing", kind="bad_input", next_step="Name the folder to write into, or to compare with.")
    made = rendered(site, arguments.target)
    if not made:
        raise RagError(
            f"{site.source} asks for nothing of {arguments.target}", kind="bad_input", next_step=_reason(arguments.target)
        )
    whole = arguments.target == "all"
    if arguments.check:
        found = files.compare(made, arguments.out, whole)
    else:
        found = files.write(made, arguments.out, arguments.force, whole)
    _report(site, found, arguments)
    return int(arguments.check and any(each.change != "unchanged" for each in found))


def _text(arguments: argparse.Namespace) -> str:
    path = arguments.file or reading.PRESETS_FOLDER / f"{arguments.preset}.toml"
    try:
        return str(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        raise RagError(f"{path} cannot be read: {type(problem).__name__}", kind="not_found") from problem


def _reason(target: str) -> str:
    return {
        "systemd": 'A service needs run_by = "systemd".',
        "docker": 'A service needs run_by = "compose", or a host of kind "kubernetes".',
        "compose": 'A service needs run_by = "compose".',
        "kubernetes": 'A host needs kind = "kubernetes".',
        "firewall": "[firewall] with ssh_from is missing: rules without it would lock everybody out.",
        "proxy": "[tls] is missing, or its host is no machine.",
    }.get(target, "")


def _report(site: Site, found: Sequence[Difference], arguments: argparse.Namespace) -> None:
    if arguments.json:
        changes = [{"path": each.path, "change": each.change} for each in found]
        said = {"source": site.source, "sha256": site.digest, "checked": arguments.check, "files": changes}
        print(json.dumps({**said, "warnings": list(site.warnings())}, ensure_ascii=False))
        return
    for each in found:
        if each.change != "unchanged":
            print(f"{each.change:<10}{each.path}")
    same = sum(each.change == "unchanged" for each in found)
    print(f"{len(found)} files, {same} unchanged{', nothing written' if arguments.check else ''}")
    for warning in site.warnings():
        print(f"warning: {warning}")
    for host, plan in site.plans.items():
        for note in plan.notes:
            print(f"note: {host}: {note}")
