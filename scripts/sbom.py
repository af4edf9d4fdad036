"""`python scripts/sbom.py [--output FILE]`: what an installation consists of, as CycloneDX 1.6 JSON. Needs no network.

Walks the installed packages that the requirements name, and theirs; `deploy/offline/sbom.py` describes each.
The same packages give the same bytes: no time, no random serial number, sorted.
With `--validate` the document is held against CycloneDX's own schema.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import uuid
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from deploy.offline import sbom as metadata  # noqa: E402
from deploy.offline.sbom import Wheel  # noqa: E402

SPEC_VERSION = "1.6"
_NAMESPACE = uuid.UUID("5c1a2f6e-6d8b-5c0e-9e55-52414744454b")


class MissingPackage(ValueError):
    """A package that the requirements name is not installed here."""


def requirements(path: Path) -> Iterator[Requirement]:
    """The requirements of a file and of those that it includes with `-r`. Comments are left out."""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r "):
            yield from requirements(path.parent / text.removeprefix("-r ").strip())
        elif text:
            yield Requirement(text)


def installed(wanted: Iterable[Requirement]) -> dict[str, Distribution]:
    """By canonical name: the wanted packages and all that they need on this machine. Raises MissingPackage."""
    found: dict[str, Distribution] = {}
    done: set[tuple[str, str]] = set()
    waiting = [(requirement, extra, True) for requirement in wanted for extra in ("", *requirement.extras)]
    while waiting:
        requirement, extra, direct = waiting.pop()
        name = str(canonicalize_name(requirement.name))
        if (name, extra) in done:
            continue
        done.add((name, extra))
        try:
            package = distribution(name)
        except PackageNotFoundError:
            if direct:
                raise MissingPackage(f"{requirement} is not installed: run `make test` first") from None
            continue
        found[name] = package
        waiting += [(each, more, False) for each in needs(package, extra) for more in ("", *each.extras)]
    return dict(sorted(found.items()))


def needs(package: Distribution, extra: str = "") -> list[Requirement]:
    """What the package needs on this machine, with that extra of it."""
    needed = [Requirement(text) for text in package.requires or ()]
    return [each for each in needed if each.marker is None or each.marker.evaluate({"extra": extra})]


def described(package: Distribution) -> Wheel:
    """The package by its own metadata, as a bundle describes its wheels."""
    return metadata.described(package.read_text("METADATA") or package.read_text("PKG-INFO") or "")


def licence(package: Distribution) -> str | None:
    """The licence as the package names it, or None."""
    return described(package).licence


def document(packages: dict[str, Distribution], version: str) -> dict[str, Any]:
    """The bill of materials as JSON's types."""
    components = [_component(package) for package in packages.values()]
    parts = [{"ref": described(package).purl, "dependsOn": sorted(_edges(package, packages))} for package in packages.values()]
    serial = uuid.uuid5(_NAMESPACE, hashlib.sha256(json.dumps([version, components, parts]).encode()).hexdigest())
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {"component": {"type": "application", "bom-ref": "rag-deck", "name": "rag-deck", "version": version}},
        "components": components,
        "dependencies": parts,
    }


def _component(package: Distribution) -> dict[str, Any]:
    told = metadata.component(described(package))
    record = package.read_text("RECORD")
    if record:  # the digests of all its files: one changed file changes it
        lines = sorted(
            line for line in record.splitlines() if ",sha256=" in line and "__pycache__" not in line and "bin/" not in line
        )
        told["properties"] = [{"name": "rag-deck:record-sha256", "value": hashlib.sha256("\n".join(lines).encode()).hexdigest()}]
    return told


def _edges(package: Distribution, packages: dict[str, Distribution]) -> set[str]:
    names = {str(canonicalize_name(each.name)) for each in needs(package)}
    return {described(packages[name]).purl for name in names if name in packages}


def problems(text: str) -> str | None:
    """What CycloneDX's schema says against the document; None where it is valid."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    found = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    return None if found is None else str(found)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the bill of materials of the installed requirements.")
    parser.add_argument("--requirements", type=Path, default=ROOT / "requirements.txt")
    parser.add_argument("--output", type=Path, help="file to write; standard output without it")
    parser.add_argument("--validate", action="store_true", help="hold it against CycloneDX's schema")
    given = parser.parse_args()
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    try:
        bill = document(installed(requirements(given.requirements)), version[1] if version else "0")
    except MissingPackage as problem:
        print(problem, file=sys.stderr)
        return 2
    text = json.dumps(bill, indent=2, ensure_ascii=False) + "\n"
    wrong = problems(text) if given.validate else None
    if wrong:
        print(f"not valid CycloneDX: {wrong}", file=sys.stderr)
        return 1
    if given.output:
        given.output.write_text(text, encoding="utf-8")
        print(f"{len(bill['components'])} packages in {given.output}")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
