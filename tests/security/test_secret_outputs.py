"""What is made to be sent on or kept elsewhere (reports, backups, bundles, deployment files, what commands print) holds no secret.

On a copy of the data folder of a dashboard in use, with every setting that can hold a secret set to one, and servers that repeat
what they are sent.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomli_w

from deploy.render import reading
from deploy.render.targets import rendered
from latency.comparing.compare import compare
from latency.experiments.experiments import ExperimentStore
from latency.reports.reports import comparison_report, experiment_report, query_report
from latency.types import Case
from rag.trace_store import QueryFilter, TraceStore
from tests.security.canaries import Search, canary
from tests.security.planted import ADDRESSES, DECLARED, IN_ENVIRONMENT, NAMES, plant, with_secret
from tests.security.world import KEY_VARIABLE, ROOT, World

OUTWARD = ("HF_ENDPOINT", "OPENAI_BASE_URL")  # variables that only libraries read: `offline-check` tells where they lead
SEARCH = Search((*NAMES, *OUTWARD))
ALL_VERBS = ("--json", "--verbose")


@dataclass(frozen=True)
class Place:
    """`near` has the settings of the dashboard that was in use; with `far` everything is remote, and refuses."""

    folder: Path
    data: Path
    near: Path
    far: Path
    query_ids: tuple[str, ...]

    def run(self, *words: str, config: Path | None = None, data: Path | None = None) -> Done:
        """`python -m WORDS` in the repository, with these settings. Every variable of ours but theirs is left out."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAGDECK_", "STREAMLIT_", "OTEL_"))}
        environment = {**kept, "HF_HUB_OFFLINE": "1", KEY_VARIABLE: canary(IN_ENVIRONMENT)}
        environment |= {name: f"http://user:{canary(name)}@leads.example.com:9/v1?key={canary(name)}" for name in OUTWARD}
        environment |= {"RAGDECK_DATA": str(data or self.data), "RAGDECK_CONFIG": str(config or self.near)}
        done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, env=environment, capture_output=True, timeout=150)
        return Done(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Done:
    code: int
    out: bytes
    err: bytes

    def holds_none(self) -> None:
        lines = (self.out + b"\n" + self.err).splitlines()
        assert lines
        assert [(found, line[:300]) for line in lines if (found := SEARCH.found(line))] == []


@pytest.fixture(scope="module")
def place(world: World, tmp_path_factory: pytest.TempPathFactory) -> Place:
    for status in (400, 401, 500):
        world.ask_refused(status)
    ids = tuple(row["id"] for row in world.call("GET", "/api/v1/queries").json()["queries"])
    folder = tmp_path_factory.mktemp("outputs")
    world.process.send_signal(signal.SIGSTOP)  # so that the copy is of one moment
    try:
        shutil.copytree(world.data, folder / "data")
    finally:
        world.process.send_signal(signal.SIGCONT)
    settings = tomllib.loads((world.folder / "dashboard.toml").read_text())
    (folder / "near.toml").write_text(tomli_w.dumps(settings))
    for key in (*DECLARED, *ADDRESSES):
        plant(settings, key, with_secret(key, canary(key), f"127.0.0.1:{world.remote.port}/locked"))
    settings["embeddings"]["retries"] = 0
    (folder / "far.toml").write_text(tomli_w.dumps(settings))
    return Place(folder, folder / "data", folder / "near.toml", folder / "far.toml", ids)


def test_every_name_is_planted(place: Place) -> None:
    given = place.far.read_text()
    assert [name for name in NAMES if canary(name) not in given] == [IN_ENVIRONMENT]


# backups


def test_a_backup_and_what_is_restored_from_it(place: Place, tmp_path: Path) -> None:
    archive, target, opened = tmp_path / "a.zip", tmp_path / "restored", tmp_path / "opened"
    saved = place.run("rag", "backup", str(archive), "--with", "uploads", *ALL_VERBS)
    assert saved.code == 0, saved.err
    saved.holds_none()
    with zipfile.ZipFile(archive) as packed:
        assert {"manifest.json", "data/traces.db"} <= set(packed.namelist()), packed.namelist()
        packed.extractall(opened)
    assert SEARCH.in_folder(opened) == {} and SEARCH.found(archive.read_bytes()) == set()
    back = place.run("rag", "restore", str(archive), *ALL_VERBS, data=target)
    assert back.code == 0, back.err
    back.holds_none()
    assert (target / "traces.db").is_file() and SEARCH.in_folder(target) == {}


# commands


NEAR = {
    "findings": ("latency", "findings", "--last", "1d", *ALL_VERBS),
    "findings in words": ("latency", "findings", "--last", "1d"),
    "audit": ("access", "audit", "--json", "--verbose"),
    "tokens": ("access", "token", "list", "--json"),
    "sweep": ("collectors", "sweep", "--timeout", "5", *ALL_VERBS),
    "evaluate": ("rag", "evaluate", "--set", "SET", *ALL_VERBS),
}
FAR = {
    "ask": ("rag", "ask", "boiler", *ALL_VERBS),
    "components": ("latency", "components", "--only", "embedder,llm,network,reranker", *ALL_VERBS),
    "move": ("rag", "move", "--to", "http://127.0.0.1:9", "--token-env", "HOME", *ALL_VERBS),
    "ingest": ("rag", "ingest", "README.md", *ALL_VERBS),
    "sweep": ("collectors", "sweep", "--timeout", "5", *ALL_VERBS),
    "plan": ("deploy", "rollback", "reranker", "--dry-run", "--json"),
    "offline check": ("deploy", "offline-check", "--no-run"),
    "offline check in JSON": ("deploy", "offline-check", "--no-run", "--json"),
}


@pytest.mark.parametrize("name", NEAR)
def test_what_a_command_prints(place: Place, name: str) -> None:
    with contextlib.closing(_sets(place)) as sets:
        words = [next(sets) if word == "SET" else word for word in NEAR[name]]
    place.run(*words).holds_none()


def _sets(place: Place) -> Iterator[str]:
    from rag.evaluation.evaluations import Evaluations

    yield from (each.name for each in Evaluations(place.data).sets.list())


def test_a_way_back_takes_no_password(place: Place) -> None:
    """It would stand in edited.toml, which is shown, carried along and backed up."""
    address = f"http://user:{canary('reranker.api_url')}@127.0.0.1:9"
    for more in ((), ("--dry-run", "--json")):
        done = place.run("deploy", "rollback", "reranker", "--url", address, *more)
        assert done.code == 2
        done.holds_none()


@pytest.mark.parametrize("name", FAR)
def test_what_a_command_prints_where_everything_refuses(place: Place, name: str) -> None:
    done = place.run(*FAR[name], config=place.far)
    done.holds_none()
    if name.startswith("offline"):
        assert all(variable.encode() in done.out for variable in OUTWARD), "they are told"


def test_a_comparison_by_command(place: Place) -> None:
    done = place.run("latency", "compare", *place.query_ids[:2], *ALL_VERBS)
    assert done.code == 0, done.err
    done.holds_none()


@pytest.mark.parametrize("config", [pytest.param("near", marks=pytest.mark.long), "far"])
def test_validation_and_its_reports(place: Place, tmp_path: Path, config: str) -> None:
    names = ("r.html", "r.md", "r.junit.xml", "r.json")
    wanted = [word for name in names for word in ("--report", str(tmp_path / name))]
    done = place.run("deploy", "validate", *wanted, "--json", config=getattr(place, config))
    assert done.code == 1 and len(json.loads(done.out)["results"]) > 10, done.err
    done.holds_none()
    assert {path.name for path in tmp_path.iterdir()} == set(names) and SEARCH.in_folder(tmp_path) == {}
    assert (place.data / "readiness.json").is_file() and SEARCH.in_folder(place.data) == {}


def test_wrong_settings_by_command(place: Place, tmp_path: Path) -> None:
    """Each secret where it cannot be read: what is printed quotes none."""
    wrong = place.far.read_text().replace("[server]", "[server]\nnonsense = 5\nport = 'x'")
    (tmp_path / "wrong.toml").write_text(wrong)
    for words in (("rag", "ask", "x"), ("deploy", "validate"), ("latency", "findings"), ("collectors", "sweep")):
        done = place.run(*words, config=tmp_path / "wrong.toml")
        assert done.code in (1, 2), words
        done.holds_none()


# files


def test_reports_of_queries_comparisons_and_experiments(place: Place) -> None:
    traces, experiments = TraceStore(place.data / "traces.db"), ExperimentStore(place.data / "experiments.db")
    rows = traces.search(QueryFilter(), limit=100)
    cases = [Case(answer, tuple(traces.spans(row.id))) for row in rows if (answer := traces.get(row.id)) is not None]
    assert any(case.answer.outcome == "failed" for case in cases)
    reports = [query_report(case, ()) for case in cases]
    reports.append(comparison_report(compare(cases[:2], cases[2:4]), (cases[0].answer, cases[2].answer)))
    reports += [experiment_report(found) for row in experiments.list() if (found := experiments.get(row.id)) is not None]
    traces.close()
    experiments.close()
    assert len(reports) >= 6
    for report in reports:
        assert SEARCH.found(f"{report.html()}\n{report.markdown()}".encode()) == set()


@pytest.mark.parametrize("preset", reading.PRESETS)
def test_deployment_files_name_secrets_and_hold_none(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variable of the deployment has a value here, and rendering looks at none."""
    site = reading.preset(preset)
    variables = {service.token for service in site.deployment.services if service.token}
    assert variables
    for variable in variables:
        monkeypatch.setenv(variable, canary("server.token"))
    files = rendered(site, "all")
    text = "\n".join(file.text for file in files)
    assert all(variable in text for variable in variables), "they are named"
    assert SEARCH.found(text.encode()) == set()
    for file in files:
        if file.path.endswith("secrets.env.example"):
            given = [line.split("=", 1)[1] for line in file.text.splitlines() if "=" in line and not line.startswith("#")]
            assert [value for value in given if value] == [], file.path


def test_a_bundle_carries_settings_without_secrets(place: Place, tmp_path: Path) -> None:
    """Made by the command, of settings in a file and in the environment."""
    work, out = tmp_path / "work", tmp_path / "out"
    done = place.run(
        "deploy", "bundle", "--out", str(out), "--work", str(work), "--no-wheels", "--json", "--part-bytes", "100000000", config=place.far
    )  # fmt: skip
    assert done.code == 0, done.err
    done.holds_none()
    told = json.loads(done.out)["contents"]["secrets"]
    assert all(any(key in line for line in told) for key in DECLARED), told
    assert SEARCH.in_folder(out) == {} and SEARCH.in_folder(work) == {}


# last: what all of these wrote


def test_what_the_commands_kept_holds_none(place: Place) -> None:
    assert SEARCH.in_folder(place.data) == {}
