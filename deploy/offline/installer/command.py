"""The command: a bundle to a folder, whole or not at all.

Everything goes into `DIR.new`, which takes the place of `DIR` when it is whole: a run that ends early leaves what was there,
and running it again starts afresh or finds nothing to do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .environment import load_images, make_venv, write_settings
from .errors import InstallError
from .starting import running_pid, start
from .unpacking import unpack
from .verifying import check_machine, read_manifest, verify

KEPT = ("data", ".env", "dashboard.toml")  # what an upgrade takes over from the installation before it


def install(bundle: Path, to: Path, python: str, say: Callable[[str], None], note: Callable[[str], None]) -> bool:
    """Brings the bundle to `to`. Returns False where the same one was there already. Raises InstallError."""
    manifest = read_manifest(bundle)
    verify(bundle, manifest, say)
    new, previous = to.with_name(to.name + ".new"), to.with_name(to.name + ".previous")
    _finish_swap(to, previous)
    if installed_id(to) == manifest["id"]:
        return False
    if to.exists() and installed_id(to) is None and any(to.iterdir()):
        raise InstallError(f"{to} holds something else", "Choose an empty or a new folder with --to.")
    pid = running_pid(to)
    if pid is not None:
        raise InstallError(f"the dashboard in {to} is running", f"Stop it first, its data are moved: kill {pid}")
    check_machine(manifest, python, to)
    if new.exists():
        shutil.rmtree(new)
    new.mkdir(parents=True)
    _fill(new, to, bundle, manifest, python, say, note)
    if to.exists():
        to.rename(previous)
    new.rename(to)
    _finish_swap(to, previous)
    return True


def _fill(
    new: Path,
    to: Path,
    bundle: Path,
    manifest: dict[str, Any],
    python: str,
    say: Callable[[str], None],
    note: Callable[[str], None],
) -> None:
    unpack(bundle, manifest, new, say)
    contents = manifest["contents"]
    if contents.get("wheels"):
        say("installing the wheels")
        make_venv(new, to, python, contents["wheels"]["requirements"])
        shutil.rmtree(new / "wheels")
    for name in load_images(new, say):
        note(f"{name} was not loaded: Docker is not here; load it later from {to / 'images'}")
    write_settings(new, to, contents, python)
    record = {"id": manifest["id"], "version": manifest.get("version")}
    (new / "installed.json").write_text(json.dumps(record), encoding="utf-8")


def installed_id(to: Path) -> str | None:
    """Which bundle lies at `to`; None where none does."""
    try:
        found = json.loads((to / "installed.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(found["id"]) if isinstance(found, dict) and "id" in found else None


def _finish_swap(to: Path, previous: Path) -> None:
    """What an upgrade takes over from the one before it, after both renames; a run that ended in between is finished here."""
    if not previous.exists():
        return
    if not to.exists():
        previous.rename(to)
        return
    for name in KEPT:
        source, target = previous / name, to / name
        if source.exists():
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(source, target)
    shutil.rmtree(previous)


def add_arguments(parser: argparse.ArgumentParser, bundle: Path | None = None) -> None:
    many: dict[str, Any] = {"nargs": "?", "default": bundle} if bundle else {}
    parser.add_argument("bundle", type=Path, metavar="BUNDLE_DIR", help="the folder with manifest.json and the parts", **many)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--to", type=Path, metavar="DIR", help="where it is installed; an installation that is there is upgraded")
    what.add_argument("--verify", action="store_true", help="check the bundle and do no more")
    parser.add_argument("--start", action="store_true", help="start the dashboard and ask it one question")
    parser.add_argument("--port", type=int, default=8502, help="port for --start (default 8502)")
    parser.add_argument("--python", default=sys.executable, help="the Python that the venv is made with (default: this one)")
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")


def run(given: argparse.Namespace) -> int:
    """Exit code 0 done, 1 failed."""
    say: Callable[[str], None] = _progress if sys.stderr.isatty() and not given.json else lambda text: None
    try:
        report = _verified(given, say) if given.verify else _installed(given, say)
    except (InstallError, OSError, tarfile.TarError, subprocess.SubprocessError) as problem:
        _refuse(problem, given.json)
        return 1
    print(json.dumps(report, ensure_ascii=False) if given.json else "\n".join(_lines(report)))
    return 0


def _verified(given: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    bundle = given.bundle.absolute()
    manifest = read_manifest(bundle)
    verify(bundle, manifest, say)
    return {"verified": True, "id": manifest["id"], "parts": len(manifest["parts"]), "bytes": manifest["total_bytes"]}


def _installed(given: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    bundle, to, began = given.bundle.absolute(), given.to.absolute(), time.monotonic()
    notes: list[str] = []
    changed = install(bundle, to, given.python, say, notes.append)
    secrets = read_manifest(bundle)["contents"].get("secrets") or []
    report: dict[str, Any] = {"installed": str(to), "changed": changed, "seconds": time.monotonic() - began}
    report |= {"secrets_to_set": secrets, "settings_file": str(to / ".env"), "notes": notes}
    return report | ({"started": start(to, given.port, say)} if given.start else {})


def _refuse(problem: Exception, as_json: bool) -> None:
    step = getattr(problem, "next_step", "")
    if as_json:
        error = {"kind": "bad_input", "message": str(problem), "next_step": step}
        print(json.dumps({"error": error}, ensure_ascii=False))
    else:
        print(f"error: {problem}" + (f"\n       {step}" if step else ""), file=sys.stderr)


def _lines(report: dict[str, Any]) -> list[str]:
    if "verified" in report:
        return [f"verified: {report['parts']} parts, {report['bytes']:,} bytes, bundle {report['id']}"]
    done = f"installed in {report['seconds']:.0f} s" if report["changed"] else "this bundle is installed already"
    lines = [f"{report['installed']}: {done}", *report["notes"]]
    if report["secrets_to_set"]:
        lines.append(f"set in {report['settings_file']}: {', '.join(report['secrets_to_set'])}")
    started = report.get("started")
    if not started:
        return [*lines, f"start it: {report['installed']}/start.sh"]
    answered = f"one question answered from {started['passages']} passages" if started["answer"] else "no documents to ask yet"
    return [*lines, f"{started['address']} is healthy after {started['healthy_seconds']:.0f} s; {answered}"]


def _progress(text: str) -> None:
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def main(arguments: Sequence[str], bundle: Path) -> int:
    parser = argparse.ArgumentParser(prog="install.py", description="Install this bundle of RAG Deck without internet.")
    add_arguments(parser, bundle)
    return run(parser.parse_args(arguments))
