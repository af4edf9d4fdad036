"""The bill of materials and the audit, on this installation and on small wrong ones. No network is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from copy import deepcopy
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import pytest

from scripts import audit_dependencies as audit
from scripts import sbom
from tests.security.world import ROOT

WANTED = list(sbom.requirements(ROOT / "requirements.txt"))


@cache
def here() -> dict[str, str]:
    """What is installed of what we want, read once: it takes seconds."""
    return sbom.installed(WANTED)


@cache
def _bill() -> dict:
    return sbom.document(here(), "0")


def bill() -> dict:
    return deepcopy(_bill())


def test_the_bill_is_valid_deterministic_and_whole() -> None:
    text = json.dumps(bill(), indent=2)
    assert sbom.problems(text) is None
    assert text == json.dumps(sbom.document(sbom.installed(WANTED), "0"), indent=2)
    named = {(part["name"], part["version"]) for part in bill()["components"]}
    for requirement in WANTED:
        name = requirement.name.lower().replace("_", "-")
        assert (name, distribution(name).version) in named
    assert len(named) > len(WANTED), "what the requirements need is in it too"
    refs = {part["bom-ref"] for part in bill()["components"]}
    assert {ref for part in bill()["dependencies"] for ref in (part["ref"], *part["dependsOn"])} == refs


def test_the_schema_refuses_what_is_no_bill() -> None:
    wrong = bill()
    wrong["components"][0]["type"] = "cabbage"
    assert sbom.problems(json.dumps(wrong)) is not None


def test_the_bill_changes_with_a_version() -> None:
    fewer = dict(list(here().items())[1:])
    assert bill()["serialNumber"] != sbom.document(fewer, "0")["serialNumber"]


def test_a_missing_package_is_said(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("no-such-package-of-ours==1.0\n")
    done = subprocess.run(
        [sys.executable, "scripts/sbom.py", "--requirements", str(tmp_path / "r.txt")], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 2 and b"is not installed" in done.stderr


@pytest.mark.parametrize("text", ["httpx", "httpx>=0.2", "httpx==0.*", "httpx==1.0,==1.0", "httpx @ https://x.invalid/y.whl"])
def test_a_requirement_without_one_version_is_a_finding(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.txt").write_text(f"{text}\n")
    assert [finding.package for finding in audit.pins(tmp_path / "r.txt")] == ["httpx"]


def test_another_version_than_pinned_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("httpx==0.0.1\n")
    assert any("not ==0.0.1" in finding.text for finding in audit.versions(tmp_path / "r.txt", here()))


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-remote.txt"])
def test_our_requirements_have_no_finding(name: str) -> None:
    path = ROOT / name
    packages = sbom.installed(sbom.requirements(path))
    found = [*audit.pins(path), *audit.versions(path, packages), *audit.licences(packages), *audit.sources(packages)]
    assert found == []


def fake_tool(folder: Path, answers: dict[str, list[str]]) -> tuple[str, ...]:
    """A fake pip-audit that knows these vulnerabilities."""
    (folder / "tool.py").write_text(
        f"import json, sys\nknown = {answers!r}\nnames = [line.partition('==') for line in sys.stdin.read().split()]\n"
        "print(json.dumps({'dependencies': [{'name': n, 'version': v, 'vulns': [{'id': i, 'fix_versions': []} for i in known.get(n, [])]}"
        " for n, _, v in names]}))\n"
    )
    return (sys.executable, str(folder / "tool.py"))


def test_advisories_are_findings_and_silence_is_no_success(tmp_path: Path) -> None:
    packages = here()
    found = audit.advisories(packages, fake_tool(tmp_path, {"jinja2": ["OLD-1"], "httpx": ["NEW-1"]})).findings
    assert found is not None and ("httpx", f"{packages['httpx'].version} has NEW-1: no version fixes it yet") in found
    silent = audit.advisories(packages, fake_tool(tmp_path, {}))
    assert silent.findings is None and "knows nothing" in silent.reason
    broken = audit.advisories(packages, (sys.executable, "-c", "import sys; sys.exit('no route to host')"))
    assert broken.findings is None and "no route to host" in broken.reason


def test_a_service_that_does_not_answer_costs_seconds_and_not_the_build(tmp_path: Path) -> None:
    hanging = (sys.executable, "-c", "import time; time.sleep(60)")
    known = audit.advisories(here(), hanging, probe_seconds=0.5)
    assert known.findings is None and "did not answer within" in known.reason


def test_the_fix_and_the_cve_stand_beside_the_finding(tmp_path: Path) -> None:
    """Shapes as pip-audit prints them."""
    problem = {"id": "PYSEC-1", "fix_versions": ["1.1", "2.0"], "aliases": ["GHSA-x", "CVE-2026-1"]}
    (tmp_path / "tool.py").write_text(
        f"import json\nprint(json.dumps({{'dependencies': [{{'name': 'httpx', 'version': '1.0', 'vulns': [{problem!r}]}}]}}))\n"
    )
    known = audit.advisories({}, (sys.executable, str(tmp_path / "tool.py")))
    assert known.findings == (("httpx", "1.0 has PYSEC-1, CVE-2026-1: fixed in 1.1, 2.0"),)


@pytest.mark.parametrize(
    "mode, found, findings, wanted",
    [
        ("report", False, (("a", "bad"),), 0),
        ("report", False, None, 0),
        ("report", True, (), 1),
        ("never", False, None, 0),
        ("require", False, (), 0),
        ("require", False, (("a", "bad"),), 1),
        ("require", False, None, 2),
        ("require", True, None, 1),
    ],
)
def test_what_others_know_fails_a_release_and_no_build(mode: str, found: bool, findings: tuple | None, wanted: int) -> None:
    assert audit.code(mode, found, audit.Advisories(findings)) == wanted
