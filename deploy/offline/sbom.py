"""What is in a bundle, as a CycloneDX 1.6 bill of materials: wheels with licences and dependencies, models, images."""

from __future__ import annotations

import email.parser
import email.policy
import re
import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.offline.installer.verifying import sha256


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel by its own METADATA; `needs` are normalised names, those that only an extra wants left out."""

    name: str
    version: str
    licence: str | None
    summary: str
    needs: tuple[str, ...]
    sha256: str

    @property
    def purl(self) -> str:
        return f"pkg:pypi/{self.name}@{self.version.replace('+', '%2B')}"


def read_wheel(path: Path) -> Wheel:
    """Raises zipfile.BadZipFile or LookupError for what is no wheel."""
    with zipfile.ZipFile(path) as archive:
        places = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
        text = archive.read(places[0]).decode("utf-8", errors="replace")
    fields = email.parser.Parser(policy=email.policy.compat32).parsestr(text, headersonly=True)
    licence = fields.get("License-Expression") or fields.get("License")
    licence = (
        licence if licence and "\n" not in licence and len(licence) < 120 else _classified(fields.get_all("Classifier") or [])
    )
    needs = [
        each for each in fields.get_all("Requires-Dist") or [] if "extra ==" not in each.replace("'", '"').replace("  ", " ")
    ]
    names = {normal(match[0]) for each in needs if (match := re.match(r"[A-Za-z0-9][\w.-]*", each))}
    summary = str(fields.get("Summary") or "")[:300]
    return Wheel(normal(str(fields["Name"])), str(fields["Version"]), licence, summary, tuple(sorted(names)), sha256(path))


def _classified(classifiers: Sequence[str]) -> str | None:
    found = [each.rpartition("::")[2].strip() for each in classifiers if each.startswith("License ::")]
    return " / ".join(found) or None


def normal(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def bill(
    version: str,
    made_at: str,
    bundle_id: str,
    wheels: Sequence[Wheel],
    models: Sequence[tuple[str, str | None]],
    images: Sequence[str],
) -> dict[str, Any]:
    """The bill of materials; `made_at` is RFC 3339, a model is (name, revision), https://cyclonedx.org/docs/1.6/json/."""
    own = {"type": "application", "bom-ref": "ragdeck", "name": "ragdeck", "version": version}
    components = [_library(wheel) for wheel in wheels]
    components += [
        {
            "type": "machine-learning-model",
            "bom-ref": f"model:{name}",
            "name": name,
            **({"version": revision} if revision else {}),
        }
        for name, revision in models
    ]
    components += [{"type": "container", "bom-ref": f"image:{name}", "name": name} for name in images]
    by_name = {wheel.name: wheel.purl for wheel in wheels}
    depends = [{"ref": "ragdeck", "dependsOn": [str(component["bom-ref"]) for component in components]}]
    depends += [{"ref": wheel.purl, "dependsOn": [by_name[name] for name in wheel.needs if name in by_name]} for wheel in wheels]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, bundle_id)}",
        "version": 1,
        "metadata": {"timestamp": made_at, "component": own},
        "components": components,
        "dependencies": depends,
    }


def _library(wheel: Wheel) -> dict[str, Any]:
    licence = {"licenses": [{"license": {"name": wheel.licence}}]} if wheel.licence else {}
    return {
        "type": "library",
        "bom-ref": wheel.purl,
        "name": wheel.name,
        "version": wheel.version,
        "description": wheel.summary,
        "purl": wheel.purl,
        "hashes": [{"alg": "SHA-256", "content": wheel.sha256}],
        **licence,
    }
