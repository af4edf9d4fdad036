"""`python scripts/audit_dependencies.py [--advisories report|never|require]`: what is wrong with what is installed.

Always, without a network: every requirement is pinned exactly and installed so, every package names a licence that asks for a
notice only, nothing comes from a folder or a URL, and what is installed fits together. Where the advisory service can be reached,
`pip-audit` looks every package up; where it cannot, that is said, and is no success of that part.
`report` prints what is known and fails for none of it: an advisory of this morning must not break a build of yesterday's commit.
`require` is for a release. Exit code 1 for a finding, 2 where advisories were required and could not be had.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.sbom import ROOT, MissingPackage, installed, licence, needs, requirements

ADVISORY_SECONDS, PROBE_SECONDS, SOCKET_SECONDS = 120.0, 25.0, 5
PROBE = "jinja2==2.10"  # known to be vulnerable since 2019: a service that does not know it knows nothing
# Packages whose licence stands in no field of their metadata, looked up by hand: name -> licence.
LOOKED_UP: Mapping[str, str] = {"flagembedding": "MIT"}
# Words of licences that ask more of who hands the product on than their notice.
COPYLEFT = ("AGPL", "Affero", "SSPL", "Commons Clause", "proprietary")


class Finding(NamedTuple):
    package: str
    text: str


def pins(path: Path) -> Iterator[Finding]:
    """Requirements that name no single version, and names that stand twice."""
    seen: set[str] = set()
    for requirement in requirements(path):
        specifiers = [str(each) for each in requirement.specifier]
        if requirement.url or len(specifiers) != 1 or not specifiers[0].startswith("==") or "*" in specifiers[0]:
            yield Finding(requirement.name, f"is not pinned exactly: {requirement}")
        if requirement.name.lower() in seen:
            yield Finding(requirement.name, "is required twice")
        seen.add(requirement.name.lower())


def versions(path: Path, packages: Mapping[str, Distribution]) -> Iterator[Finding]:
    """Installed packages that are other versions than pinned, or that do not fit what needs them."""
    for requirement in requirements(path):
        package = packages.get(requirement.name.lower().replace("_", "-"))
        if package is not None and not requirement.specifier.contains(package.version, prereleases=True):
            yield Finding(requirement.name, f"{package.version} is installed, not {requirement.specifier}")
    for name, package in packages.items():
        for need in needs(package):
            other = packages.get(need.name.lower().replace("_", "-"))
            if other is not None and not need.specifier.contains(other.version, prereleases=True):
                yield Finding(name, f"needs {need}, and {other.version} is installed")


def licences(packages: Mapping[str, Distribution]) -> Iterator[Finding]:
    """Packages whose licence is not known, or asks for more than a notice."""
    for name, package in packages.items():
        named = licence(package) or LOOKED_UP.get(name)
        if named is None:
            yield Finding(name, "names no licence")
        elif any(word.lower() in named.lower() for word in COPYLEFT):
            yield Finding(name, f"its licence needs a decision: {named}")


def sources(packages: Mapping[str, Distribution]) -> Iterator[Finding]:
    """Packages that came from elsewhere than a registry (PEP 610): a folder, a repository, a URL."""
    for name, package in packages.items():
        origin = package.read_text("direct_url.json")
        if origin is not None:
            yield Finding(name, f"was installed from {json.loads(origin).get('url', 'a place of its own')}")


class Advisories(NamedTuple):
    """`findings` None: the service could not be asked, `reason` says why."""

    findings: tuple[Finding, ...] | None
    reason: str = ""


def advisories(
    packages: Mapping[str, Distribution],
    command: tuple[str, ...] = (sys.executable, "-m", "pip_audit"),
    probe_seconds: float = PROBE_SECONDS,
) -> Advisories:
    """Known vulnerabilities of exactly these versions; one package is asked for first, so that a dead service costs little."""
    try:
        if not _asked([PROBE], command, probe_seconds):
            return Advisories(
                None, f"the advisory service answers, but knows nothing even of {PROBE}: a mirror without advisories"
            )
        listed = [f"{name}=={package.version.partition('+')[0]}" for name, package in packages.items()]
        return Advisories(tuple(_asked(listed, command, ADVISORY_SECONDS)))
    except subprocess.TimeoutExpired as problem:
        return Advisories(None, f"the advisory service did not answer within {problem.timeout:.0f} s")
    except (OSError, ValueError) as problem:
        return Advisories(None, f"the advisory service cannot be asked: {problem}")


def _asked(listed: list[str], command: tuple[str, ...], seconds: float) -> list[Finding]:
    """Raises ValueError with the tool's last words, OSError, TimeoutExpired."""
    given = [
        *command,
        "--requirement",
        "/dev/stdin",
        "--disable-pip",
        "--no-deps",
        "--format",
        "json",
        "--progress-spinner",
        "off",
        "--timeout",
        str(SOCKET_SECONDS),
    ]
    done = subprocess.run(given, input="\n".join(listed), capture_output=True, text=True, timeout=seconds)
    try:
        told: Any = json.loads(done.stdout)
    except ValueError:
        raise ValueError((done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]) from None
    return [
        Finding(each["name"], f"{each['version']} has {_name(problem)}: {_cure(problem)}")
        for each in told["dependencies"]
        for problem in each.get("vulns", ())
    ]


def _name(problem: Mapping[str, Any]) -> str:
    """The identifier and the CVE that it is, which is what people look for."""
    return ", ".join(dict.fromkeys([problem["id"], *(each for each in problem.get("aliases", ()) if each.startswith("CVE-"))]))


def _cure(problem: Mapping[str, Any]) -> str:
    return f"fixed in {', '.join(problem['fix_versions'])}" if problem["fix_versions"] else "no version fixes it yet"


def main() -> int:
    parser = argparse.ArgumentParser(description="Look for what is wrong with the installed dependencies.")
    parser.add_argument("--requirements", type=Path, default=ROOT / "requirements.txt")
    parser.add_argument("--advisories", choices=("report", "never", "require"), default="report")
    given = parser.parse_args()
    try:
        packages = installed(requirements(given.requirements))
    except MissingPackage as problem:
        print(problem, file=sys.stderr)
        return 1
    known = Advisories(None, "not asked (--advisories never)") if given.advisories == "never" else advisories(packages)
    rules = (pins(given.requirements), versions(given.requirements, packages), licences(packages), sources(packages))
    found, vulnerable = [finding for rule in rules for finding in rule], known.findings or ()
    for finding in (*found, *vulnerable):
        print(f"{finding.package}: {finding.text}")
    asked = "not checked: " + known.reason if known.findings is None else f"{len(vulnerable)} known vulnerabilities"
    print(f"{len(packages)} packages, {len(found)} findings; advisories: {asked}")
    return code(given.advisories, bool(found), known)


def code(mode: str, found: bool, known: Advisories) -> int:
    """The exit code: what `report` learns from others is told and fails nothing."""
    if found or (mode == "require" and known.findings):
        return 1
    return 2 if mode == "require" and known.findings is None else 0


if __name__ == "__main__":
    sys.exit(main())
