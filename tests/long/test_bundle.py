"""`make test-long`: the life of a move where there is no network. A bundle is installed and asked, upgraded by one of a changed
program, and taken back; settings, data and stored queries are followed through all of it.

As a program (`python tests/long/test_bundle.py PLAN`) it is what happens over there, in a network namespace without routes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.offline import running, sources
from deploy.offline.inside import loopback_up, unrouted

ROOT = Path(__file__).parents[2]
PART_BYTES = 100_000_000
ADDRESS = "http://127.0.0.1:8502"  # the port that install.py starts it on
VERSIONS = ("7.0.1", "7.0.2")
QUESTION = {"query": "How is an answer kept?", "caches": "bypass"}

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


# --------------------------------------------------------------------------------------------- here, where bundles are made


def program(folder: Path, version: str) -> None:
    """This program in a folder of its own, with another version and a file that only this version has."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, source in sources.program_files(ROOT):
        target = folder / name.removeprefix("app/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    settings = folder / "settings.py"
    lines = [f'VERSION = "{version}"' if line.startswith("VERSION = ") else line for line in settings.read_text().splitlines()]
    settings.write_text("\n".join(lines) + "\n")
    (folder / "docs" / f"only-in-{version}.md").write_text(f"# Version {version}\n")


def bundled(base: Path, version: str) -> Path:
    """Wheels from wherever pip is configured to find them: the one step that may use a network."""
    program(base / "program", version)
    out = base / "here" / version
    command = [
        sys.executable,
        "-m",
        "deploy",
        "bundle",
        "--out",
        out,
        "--work",
        base / "work",
        "--part-bytes",
        PART_BYTES,
        "--json",
    ]
    made = subprocess.run([str(each) for each in command], cwd=base / "program", capture_output=True, text=True, timeout=1200)
    assert made.returncode == 0, made.stdout + made.stderr
    assert json.loads(made.stdout)["parts"] > 3
    (base / "there").mkdir(exist_ok=True)
    return out.rename(base / "there" / version)


def test_a_move_is_installed_upgraded_and_taken_back_without_a_network(tmp_path: Path) -> None:
    bundles = [str(bundled(tmp_path, version)) for version in VERSIONS]
    python = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"  # one without our packages
    plan = {"home": str(tmp_path / "there"), "python": str(python), "bundles": bundles, "to": str(tmp_path / "there" / "ragdeck")}
    command = [*running.NAMESPACE, sys.executable, __file__, json.dumps(plan)]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    seen = {name: value for line in done.stdout.splitlines() for name, value in json.loads(line).items()}
    print(json.dumps({name: seen[name] for name in ("first", "upgrade", "back")}, indent=1))
    for name in ("first", "again", "upgrade", "back"):
        assert seen[name]["started"]["outcome"] == "answered" and seen[name]["started"]["passages"] > 0, (name, seen[name])
    assert [seen[name]["changed"] for name in ("first", "again", "upgrade", "back")] == [True, False, True, True]
    assert "is running" in seen["upgrade while it runs"]["error"]["message"]
    old, new, back = (seen[f"state of the {name}"] for name in ("first", "upgrade", "back"))
    assert [each["version"] for each in (old, new, back)] == [VERSIONS[0], VERSIONS[1], VERSIONS[0]]
    assert [each["only_in"] for each in (old, new, back)] == [[VERSIONS[0]], [VERSIONS[1]], [VERSIONS[0]]]
    # Settings: .env moves along with an upgrade, and is its own again after --back; edited.toml is data.
    assert [each["reranked"] for each in (old, new, back)] == [False, True, False], "off at first; on after the upgrade"
    assert [each["most_running"] for each in (old, new, back)] == [3, 3, 5], "edited.toml is data: those of now"
    assert seen["reranked after the upgrade"] is False, "what .env said before it"
    # Data: a stored query stays readable by its id, whole, through both.
    assert set(old["queries"]) < set(new["queries"]) < set(back["queries"])
    assert seen["asked first, read after the upgrade"] == seen["asked first, read at the end"] == seen["asked first"]
    assert seen["asked after the upgrade, read at the end"] == seen["asked after the upgrade"]
    assert seen["unrouted"] == 0, "nothing tried to leave"


# ------------------------------------------------------------------------------------------------------ there, without routes


def life(plan: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(what, what was seen of it), in order."""
    loopback_up()
    before, (first, second), to = unrouted(), plan["bundles"], Path(plan["to"])
    yield "first", installed(plan, first)
    stopped(to)
    (to / ".env").write_text((to / ".env").read_text() + "RERANKER_ENABLED=false\n")
    (to / "data" / "edited.toml").write_text("[query]\nmax_running = 3\n")
    yield "again", installed(plan, first)
    asked = called("/api/v1/ask", QUESTION)
    yield "asked first", kept(asked["id"])
    yield "state of the first", state(to)
    yield "upgrade while it runs", installed(plan, second)
    stopped(to)
    yield "upgrade", installed(plan, second)
    yield "reranked after the upgrade", reranked(called("/api/v1/ask", QUESTION))
    yield "asked first, read after the upgrade", kept(asked["id"])
    stopped(to)
    text = (to / ".env").read_text()
    (to / ".env").write_text(text.replace("RERANKER_ENABLED=false", "RERANKER_ENABLED=true"))
    yield "started by hand", installed(plan, second)
    later = called("/api/v1/ask", QUESTION)
    yield "asked after the upgrade", kept(later["id"])
    yield "state of the upgrade", state(to)
    (to / "data" / "edited.toml").write_text("[query]\nmax_running = 5\n")
    stopped(to)
    yield "back", installed(plan, second, "--back")
    yield "asked first, read at the end", kept(asked["id"])
    yield "asked after the upgrade, read at the end", kept(later["id"])
    yield "state of the back", state(to)
    stopped(to)
    yield "unrouted", unrouted() - before


def installed(plan: dict[str, Any], bundle: str, *more: str) -> Any:
    """What install.py says; it starts the dashboard, which goes on running."""
    command = [plan["python"], f"{bundle}/install.py", "--to", plan["to"], "--start", "--json", *more]
    clean = {"PATH": os.environ["PATH"], "HOME": plan["home"]}
    done = subprocess.run(command, env=clean, cwd="/", capture_output=True, text=True)
    return json.loads(done.stdout) if done.stdout else {"said": done.stderr}


def stopped(to: Path) -> None:
    """As its message says: kill PID; then it is waited for."""
    pid = int((to / "dashboard.pid").read_text())
    os.kill(pid, signal.SIGTERM)
    while Path(f"/proc/{pid}/cwd").exists():  # a process that has ended and is not collected has none
        time.sleep(0.2)


def called(path: str, body: dict[str, Any] | None = None) -> Any:
    data = json.dumps(body).encode() if body else None
    asked = urllib.request.Request(ADDRESS + path, data, {"content-type": "application/json"} if body else {})
    with urllib.request.urlopen(asked, timeout=180) as answer:
        return json.load(answer)


def kept(key: str) -> Any:
    """A stored query as it is read."""
    found = called(f"/api/v1/queries/{key}")
    return {name: found[name] for name in ("id", "question", "answer", "outcome", "passages")}


def reranked(answer: dict[str, Any]) -> bool:
    return any(each["stage"] == "rerank" and not each.get("skipped") for each in answer["stages"])


def state(to: Path) -> dict[str, Any]:
    """The program that runs, the settings it goes by and the queries that it knows."""
    answer = called("/api/v1/ask", QUESTION)
    return {
        "version": called("/api/health")["version"],
        "only_in": [each.stem.removeprefix("only-in-") for each in (to / "app" / "docs").glob("only-in-*")],
        "reranked": reranked(answer),
        "most_running": most_running(to),
        "queries": [each["id"] for each in called("/api/v1/queries")["queries"]],
    }


def most_running(to: Path) -> int:
    """As the installation's own program reads its settings."""
    show = "from settings import load; import os; from pathlib import Path; print(load(os.environ, Path('.')).query.max_running)"
    return int(subprocess.run([to / "python.sh", "-c", show], capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    for name, value in life(json.loads(sys.argv[1])):
        print(json.dumps({name: value}), flush=True)
