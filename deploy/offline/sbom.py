"""What is in a bundle, as a CycloneDX 1.6 bill of materials: wheels with licences and dependencies, models, images.

`scripts/sbom.py` writes the bill of an installation with the same `component`. Asks no network. A licence is an SPDX expression
where the metadata give one, or a classifier that can mean one licence only; else it has the name that the package gives it.
"""

from __future__ import annotations

import email.message
import email.parser
import email.policy
import re
import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from deploy.offline.installer.verifying import sha256

# Classifiers with one meaning. "BSD License", "Apache Software License" and their like name families.
CLASSIFIED = {
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
}


@dataclass(frozen=True, slots=True)
class Wheel:
    """A package by its own METADATA; `needs` are normalised names, those that only an extra wants left out.

    `sha256` is the wheel's, "" where the package is known as installed only. `spdx` is the licence as an SPDX expression, None
    where the metadata leave open which it is.
    """

    name: str
    version: str
    licence: str | None
    summary: str
    needs: tuple[str, ...]
    sha256: str
    spdx: str | None = None

    @property
    def purl(self) -> str:
        return f"pkg:pypi/{self.name}@{self.version.replace('+', '%2B')}"


@dataclass(frozen=True, slots=True)
class Model:
    """A model with (path, sha256) of each of its files; the licence as its card names it."""

    name: str
    revision: str | None
    licence: str | None
    files: tuple[tuple[str, str], ...]


def read_wheel(path: Path) -> Wheel:
    """Raises zipfile.BadZipFile or LookupError for what is no wheel."""
    with zipfile.ZipFile(path) as archive:
        places = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
        text = archive.read(places[0]).decode("utf-8", errors="replace")
    return described(text, sha256(path))


def described(text: str, digest: str = "") -> Wheel:
    """The package that METADATA describes. Raises LookupError where it names no name or version."""
    fields = email.parser.Parser(policy=email.policy.compat32).parsestr(text, headersonly=True)
    if not fields["Name"] or not fields["Version"]:
        raise LookupError("the metadata name no package and version")
    needs = [
        each for each in fields.get_all("Requires-Dist") or [] if "extra ==" not in each.replace("'", '"').replace("  ", " ")
    ]
    names = {normal(match[0]) for each in needs if (match := re.match(r"[A-Za-z0-9][\w.-]*", each))}
    summary = " ".join(str(fields.get("Summary") or "").split())[:300]
    name, version = normal(str(fields["Name"])), str(fields["Version"])
    return Wheel(name, version, _licence(fields), summary, tuple(sorted(names)), digest, _spdx(fields))


def _spdx(fields: email.message.Message) -> str | None:
    """The expression field; else the one classifier, or the text where it is an SPDX id and no second classifier doubts it."""
    if fields.get("License-Expression"):
        return spdx(str(fields["License-Expression"]))
    listed = _classified(fields)
    if len(listed) > 1:
        return None
    return spdx(str(fields.get("License") or "")) or next((CLASSIFIED[each] for each in listed if each in CLASSIFIED), None)


def spdx(text: str) -> str | None:
    """An SPDX expression as SPDX writes it (`apache-2.0` is Apache-2.0); None for what is none."""
    try:
        return str(canonicalize_license_expression(text))
    except InvalidLicenseExpression:
        return None


def _licence(fields: email.message.Message) -> str | None:
    """As the package names it: the SPDX expression, else its classifiers, else the first line of its own text; or None."""
    if fields.get("License-Expression"):
        return str(fields["License-Expression"])
    text = str(fields.get("License") or "").strip().splitlines()
    return " AND ".join(_classified(fields)) or (text[0].strip()[:100] if text else None)


def _classified(fields: email.message.Message) -> list[str]:
    listed = {line.rpartition("::")[2].strip() for line in fields.get_all("Classifier") or () if line.startswith("License ::")}
    return sorted(listed - {"OSI Approved"})


def normal(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def bill(
    version: str,
    made_at: str,
    bundle_id: str,
    wheels: Sequence[Wheel],
    models: Sequence[Model],
    images: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """The bill of materials; `made_at` is RFC 3339, an image is (name, sha256 of its archive),
    https://cyclonedx.org/docs/1.6/json/."""
    own = {"type": "application", "bom-ref": "ragdeck", "name": "ragdeck", "version": version}
    components = [component(wheel) for wheel in wheels]
    components += [_model(model) for model in models]
    components += [
        {"type": "container", "bom-ref": f"image:{name}", "name": name, **_hashes(digest)}
        for name, digest in dict(images).items()
    ]
    by_name = {wheel.name: wheel.purl for wheel in wheels}
    depends = [{"ref": "ragdeck", "dependsOn": [str(each["bom-ref"]) for each in components]}]
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


def _model(model: Model) -> dict[str, Any]:
    """A model and its files, each with its checksum."""
    files = [
        {"type": "file", "bom-ref": f"model:{model.name}:{path}", "name": path, **_hashes(digest)} for path, digest in model.files
    ]
    return {
        "type": "machine-learning-model",
        "bom-ref": f"model:{model.name}",
        "name": model.name,
        **({"version": model.revision} if model.revision else {}),
        **_licences(model.licence, spdx(model.licence or "")),
        "components": files,
    }


def _hashes(digest: str) -> dict[str, Any]:
    return {"hashes": [{"alg": "SHA-256", "content": digest}]} if digest else {}


def _licences(name: str | None, expression: str | None) -> dict[str, Any]:
    """One id, an expression of several, or a name that is no id: CycloneDX has a place for each."""
    if expression is None:
        return {"licenses": [{"license": {"name": name}}]} if name else {}
    plain = " " not in expression and not expression.startswith("LicenseRef-") and not expression.endswith("+")
    return {"licenses": [{"license": {"id": expression}} if plain else {"expression": expression}]}


def component(wheel: Wheel) -> dict[str, Any]:
    """A package as CycloneDX has it; what is not known of it is left out."""
    return {
        "type": "library",
        "bom-ref": wheel.purl,
        "name": wheel.name,
        "version": wheel.version,
        **({"description": wheel.summary} if wheel.summary else {}),
        "purl": wheel.purl,
        **_hashes(wheel.sha256),
        **_licences(wheel.licence, wheel.spdx),
    }
