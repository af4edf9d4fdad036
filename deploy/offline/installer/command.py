"""The command: a bundle to a folder, whole or not at all.

Everything goes into `DIR.new`, which takes the place of `DIR` when it is whole: a run that ends early leaves what was there,
and running it again starts afresh or finds nothing to do. What was there before stays beside it, as the way back.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .environment import load_images, make_venv, write_settings
from .errors import InstallError, explained
from .starting import running_pid, start
from .swapping import alone, back, begin, finish, installed_id, places, recover, remove, swap
from .unpacking import unpack
from .verifying import check_machine, check_place, read_manifest, sha256, verify


def install(bundle: Path, to: Path, python: str, say: Callable[[str], None], note: Callable[[str], None]) -> bool:
    """Brings the bundle to `to`. Returns False where the same one was there already, whole. Raises InstallError, OSError."""
    manifest = read_manifest(bundle)
    check_place(to)  # before gigabytes are read
    verify(bundle, manifest, say)
    at = places(to)
    with alone(to):
        for text in recover(at):
            note(text)
        different = _different(to, manifest)
        if installed_id(to) == manifest["id"] and not different:
            return False
        if installed_id(to) == manifest["id"]:
            note(f"{len(different)} files were not as they were installed ({different[0]} …): installed again")
        elif to.exists() and installed_id(to) is None and any(to.iterdir()):
            raise InstallError(f"{to} holds something else", "Choose an empty or a new folder with --to.")
        _not_running(to)
        remove(at.new)  # what a run that was killed left takes no room
        check_machine(manifest, python, to)
        begin(at.new, {"id": manifest["id"], "version": manifest.get("version")})
        try:
            _fill(at.new, to, bundle, manifest, python, say, note)
            finish(at.new)
        except BaseException:
            remove(at.new)
            raise
        for text in swap(at):
            note(text)
    return True


def _not_running(to: Path) -> None:
    pid = running_pid(to)
    if pid is not None:
        raise InstallError(f"the dashboard in {to} is running", f"Stop it first, its data are moved: kill {pid}")


def _different(to: Path, manifest: dict[str, Any]) -> list[str]:
    """Installed files that are missing or of another size; checksums would take as long as the installation."""
    files = [each for each in manifest["files"] if not each["path"].startswith("wheels/")]
    found = [each["path"] for each in files if _size(to / each["path"]) != each["bytes"]]
    wanted = [".venv/bin/python"] if manifest["contents"].get("wheels") else []
    return found + [name for name in (*wanted, "start.sh") if not (to / name).exists()]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


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
    if new.stat().st_mode & 0o055 != 0o055:
        given = f"chown -R USER {shlex.quote(str(to))}"
        note(f"not everybody can enter it (umask): start it as the user who installed it, or give it to another one: {given}")
    for name, reason in load_images(new, say):
        note(f"{name} was not loaded: {reason}; later: docker load --input {shlex.quote(str(to / 'images' / name))}")
    write_settings(new, to, contents, python)


def add_arguments(parser: argparse.ArgumentParser, bundle: Path | None = None) -> None:
    many: dict[str, Any] = {"nargs": "?", "default": bundle} if bundle else {}
    parser.add_argument("bundle", type=Path, metavar="BUNDLE_DIR", help="the folder with manifest.json and the parts", **many)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--to", type=Path, metavar="DIR", help="where it is installed; an installation that is there is upgraded")
    what.add_argument("--verify", action="store_true", help="check the bundle and do no more")
    parser.add_argument("--back", action="store_true", help="with --to: return to the installation before the last upgrade")
    parser.add_argument("--start", action="store_true", help="start the dashboard and ask it one question")
    parser.add_argument("--port", type=int, default=8502, help="port for --start (default 8502)")
    parser.add_argument("--python", default=sys.executable, help="the Python that the venv is made with (default: this one)")
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")


def run(given: argparse.Namespace) -> int:
    """Exit code 0 done, 1 failed, 130 interrupted."""
    say: Callable[[str], None] = _progress if sys.stderr.isatty() and not given.json else lambda text: None
    try:
        report = _verified(given, say) if given.verify else _back(given, say) if given.back else _installed(given, say)
    except (InstallError, OSError, tarfile.TarError, subprocess.SubprocessError, KeyboardInterrupt) as problem:
        _refuse(problem, given.json)
        return 130 if isinstance(problem, KeyboardInterrupt) else 1
    print(json.dumps(report, ensure_ascii=False) if given.json else "\n".join(_lines(report)))
    return 0


def _verified(given: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    bundle = given.bundle.absolute()
    manifest = read_manifest(bundle)
    verify(bundle, manifest, say)
    report = {"verified": True, "id": manifest["id"], "parts": len(manifest["parts"]), "bytes": manifest["total_bytes"]}
    return {**report, "digest": sha256(bundle / "SHA256SUMS")}


def _back(given: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Needs no parts: the installation before is there whole."""
    to, began = given.to.absolute(), time.monotonic()
    check_place(to)
    with alone(to):
        notes = recover(places(to))
        _not_running(to)
        notes.append(f"back at bundle {back(places(to))}; data are those of now, settings those it had")
    report: dict[str, Any] = {"installed": str(to), "changed": True, "seconds": time.monotonic() - began}
    report |= {"secrets_to_set": [], "settings_file": str(to / ".env"), "notes": notes}
    return report | ({"started": start(to, given.port, say)} if given.start else {})


def _installed(given: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    bundle, to, began = given.bundle.absolute(), given.to.absolute(), time.monotonic()
    notes: list[str] = []
    changed = install(bundle, to, given.python, say, notes.append)
    secrets = read_manifest(bundle)["contents"].get("secrets") or []
    report: dict[str, Any] = {"installed": str(to), "changed": changed, "seconds": time.monotonic() - began}
    report |= {"secrets_to_set": secrets, "settings_file": str(to / ".env"), "notes": notes}
    return report | ({"started": start(to, given.port, say)} if given.start else {})


def _refuse(problem: BaseException, as_json: bool) -> None:
    message, step = explained(problem)
    if as_json:
        error = {"kind": "bad_input", "message": message, "next_step": step}
        print(json.dumps({"error": error}, ensure_ascii=False))
    else:
        print(f"error: {message}" + (f"\n       {step}" if step else ""), file=sys.stderr)


def _lines(report: dict[str, Any]) -> list[str]:
    if "verified" in report:
        whole = f"verified: {report['parts']} part(s), {report['bytes']:,} bytes, bundle {report['id']}"
        return [whole, f"checksum of SHA256SUMS, to be compared with what was told by another way: {report['digest']}"]
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
