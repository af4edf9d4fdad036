"""Runs the app and one query cut off from every network, and makes findings of what it tried.

In a network namespace without routes nothing gets out, whoever tries. Where the system allows none, a hook in each Python
process refuses instead: weaker, because it does not see C code and other programs; the report says which it was.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.offline.findings import Finding
from deploy.offline.hosts import is_outside
from deploy.offline.inside import Job
from deploy.offline.page import policy_hosts
from rag.errors import RagError

HOOK = Path(__file__).parent / "hook"
HERE = Path(__file__).parents[2]
LONGEST_SECONDS = 1500.0
PROBE_SECONDS = 20.0
STACK_SHOWN = 14
HUB_HOSTS = ("huggingface.co", "hf.co")
NAMESPACE = ("unshare", "--user", "--map-root-user", "--net")
QUESTION = "What is this documentation about?"


@dataclass(frozen=True, slots=True)
class Run:
    """What happened. `isolation` is `namespace` or `guard`; `attempts` are all that were noted, inside hosts included."""

    isolation: str
    findings: tuple[Finding, ...]
    attempts: tuple[dict[str, Any], ...]
    report: dict[str, Any]


def namespace_refusal() -> str | None:
    """Why this system allows no network namespace of one's own; None where it does."""
    if shutil.which(NAMESPACE[0]) is None:
        return "the program unshare (util-linux) is not here"
    try:
        done = subprocess.run([*NAMESPACE, "true"], capture_output=True, text=True, timeout=PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as problem:
        return f"unshare did not end: {type(problem).__name__}"
    return done.stderr.strip() or "unshare failed" if done.returncode else None


def run(
    root: Path,
    environ: Mapping[str, str],
    edited: Path | None,
    token: str | None,
    allowed: frozenset[str],
    isolation: str,
    say: Callable[[str], None],
    question: str = QUESTION,
) -> Run:
    """Starts the app of `root` with data of its own, asks `question`, opens every page. Raises RagError.

    `edited` is the settings file of the pages, which the app's own data folder would have; `allowed` are names inside.
    """
    with tempfile.TemporaryDirectory(prefix="ragdeck-offline-") as name:
        folder = Path(name)
        data = folder / "data"
        data.mkdir()
        if edited is not None and edited.is_file():
            shutil.copyfile(edited, data / "edited.toml")
        pages = sorted(path.stem for path in (root / "pages").glob("*.py") if not path.stem.startswith("_"))
        notes, outcome, job_file = folder / "attempts.jsonl", folder / "report.json", folder / "job.json"
        guard = isolation == "guard"
        environment = {**environ, "RAGDECK_DATA": str(data), "OFFLINE_CHECK_LOG": str(notes), "PYTHONDONTWRITEBYTECODE": "1"}
        environment |= {"OFFLINE_CHECK_GUARD": "1" if guard else "0"}
        environment["PYTHONPATH"] = os.pathsep.join([str(HOOK), *filter(None, [environ.get("PYTHONPATH")])])
        job = Job(str(root), environment, _port(guard), question, pages, not guard, str(outcome), str(folder / "log"), token)
        job_file.write_text(json.dumps(asdict(job)), encoding="utf-8")
        job_file.chmod(0o600)
        say("running the app cut off from the network: start, query, every page")
        _inside(job_file, environ, guard)
        report = json.loads(outcome.read_text(encoding="utf-8"))
        attempts = _attempts(notes)
    return Run(isolation, tuple(_findings(report, attempts, root, allowed)), tuple(attempts), report)


def _port(guard: bool) -> int:
    """Any is free in a namespace of one's own."""
    if not guard:
        return 8502
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _inside(job: Path, environ: Mapping[str, str], guard: bool) -> None:
    command = [*(() if guard else NAMESPACE), sys.executable, "-m", "deploy.offline.inside", str(job)]
    try:
        done = subprocess.run(command, cwd=HERE, env=dict(environ), capture_output=True, text=True, timeout=LONGEST_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise RagError(f"the run did not end: {type(problem).__name__}", kind="timeout") from problem
    if done.returncode:
        raise RagError(f"the run failed: {done.stderr.strip()[-1500:]}", kind="internal")


def _attempts(notes: Path) -> list[dict[str, Any]]:
    if not notes.is_file():
        return []
    lines = notes.read_text(encoding="utf-8", errors="replace").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def _findings(report: Mapping[str, Any], attempts: list[dict[str, Any]], root: Path, allowed: frozenset[str]) -> list[Finding]:
    outside = [each for each in attempts if each["kind"] != "process" and is_outside(str(each["host"]), allowed)]
    found = [_of_attempt(each, report, root) for each in outside]
    found += _unseen_names(report, attempts, allowed)
    alone = report.get("python_alone") or {}
    if alone.get("packets") or alone.get("names"):
        what = f"starting Python alone sends {alone['packets']} packets and looks up {', '.join(alone['names']) or 'nothing'}"
        found.append(Finding("outbound_unseen", what, f"files that run code then: {', '.join(alone['files']) or 'none'}"))
    reached = [each for each in attempts if each["kind"] not in ("process", "lookup")]
    if report.get("unrouted_packets") and not reached:
        programs = sorted({str(each["host"]) for each in attempts if each["kind"] == "process"})
        what = f"{report['unrouted_packets']} packets had no route, and no Python code sent them"
        found.append(Finding("outbound_unseen", what, f"child processes: {', '.join(programs) or 'none'}"))
    if report.get("problem"):
        return [*found, Finding("app_not_started", str(report["problem"]), str(root / "app.py"))]
    query = report["query"]
    if query["outcome"] not in ("answered", "no_documents"):
        found.append(Finding("query_not_answered", f"{query['outcome']}: {query['error']}", "POST /api/v1/ask"))
    served = [*report["served"], *(each for page in report["pages"].values() for each in page["remote"])]
    for each in served:
        found.append(Finding("remote_font" if each["is_font"] else "remote_asset", each["url"], each["where"]))
    return [*found, *_policy(report["policy"])]


def _unseen_names(report: Mapping[str, Any], attempts: list[dict[str, Any]], allowed: frozenset[str]) -> list[Finding]:
    """Names that the resolver was asked for and the hook was not: C code, or another program. A search domain may hang on."""
    seen = {str(each["host"]).lower().rstrip(".") for each in attempts if each["kind"] == "lookup"}
    asked: dict[str, str] = {}
    for name, program in report.get("looked_up") or ():
        own = any(name == each or name.startswith(f"{each}.") for each in seen)
        if not own and is_outside(name, allowed):
            asked.setdefault(name, program)
    return [
        Finding("dns_lookup", f"look-up of {name}, not by Python code", program or "a program that had ended")
        for name, program in asked.items()
    ]


def _policy(policy: str | None) -> list[Finding]:
    if policy is None:
        return [Finding("csp_missing", "the page is served without a content-security-policy", "/")]
    hosts = policy_hosts(policy)
    return [Finding("csp_missing", f"the content-security-policy allows {', '.join(hosts)}", "/")] if hosts else []


def _of_attempt(attempt: Mapping[str, Any], report: Mapping[str, Any], root: Path) -> Finding:
    frames = [(str(file), int(line), str(name)) for file, line, name in attempt["stack"]]
    shown = [frame for frame in frames if not _is_standard(frame[0])] or frames
    own = next((frame for frame in shown if _is_own(frame[0], root)), shown[0] if shown else ("?", 0, "?"))
    target = f"{attempt['host']}:{attempt['port']}" if attempt["port"] else str(attempt["host"])
    at_hub = any(f"{os.sep}huggingface_hub{os.sep}" in frame[0] for frame in frames)
    at_hub = at_hub or str(attempt["host"]).endswith(HUB_HOSTS)
    code = "hub_call" if at_hub else "dns_lookup" if attempt["kind"] == "lookup" else "outbound_connection"
    what = f"{'look-up of' if attempt['kind'] == 'lookup' else attempt['kind'].upper() + ' to'} {target}"
    what += "" if attempt["pid"] == report["pid"] else f", by a child process ({attempt['program']})"
    what += f", thread {attempt['thread']}" if attempt["thread"] != "MainThread" else ""
    stack = tuple(f"{file}:{line} {name}" for file, line, name in shown[:STACK_SHOWN])
    return Finding(code, what, f"{own[0]}:{own[1]} {own[2]}", stack)


def _is_standard(file: str) -> bool:
    standard = sysconfig.get_path("stdlib")
    return file.startswith("<") or (file.startswith(standard) and "site-packages" not in file)


def _is_own(file: str, root: Path) -> bool:
    return file.startswith(f"{root}{os.sep}") and "site-packages" not in file
