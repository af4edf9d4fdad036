"""What wheels need on the target that is not among them.

pip evaluates the markers of requirements (`python_full_version < "3.11.3"`, `platform_machine == "aarch64"`) for the Python that
it runs on, whatever target it downloads for. This reads the wheels' own metadata again with the target's values. Asks no
network.
"""

from __future__ import annotations

import email.parser
import email.policy
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from packaging.markers import Marker
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

LATEST_PATCH = 99  # which patch release is over there is not known: what the first or a late one needs is needed


class _Wheel(NamedTuple):
    name: str
    version: str
    needs: tuple[Requirement, ...]


def missing(wheels: Sequence[Path], wanted: Iterable[str], python: str, platform: str) -> list[str]:
    """Requirements without their markers that no wheel satisfies. `wanted` are the lines of the requirements file."""
    found: dict[str, list[_Wheel]] = {}
    for path in wheels:
        wheel = _read(path)
        found.setdefault(wheel.name, []).append(wheel)
    environments = [_environment(python, patch, platform) for patch in (0, LATEST_PATCH)]
    waiting = [each for line in wanted if (each := _requirement(line)) is not None and _counts(each.marker, environments, "")]
    waiting += [Requirement(name) for name in found]
    lacking: dict[str, None] = {}
    done: set[tuple[str, str]] = set()
    while waiting:
        need = waiting.pop()
        fitting = [each for each in found.get(canonicalize_name(need.name), ()) if need.specifier.contains(each.version, True)]
        if not fitting:
            lacking[f"{need.name}{_extras(need)}{need.specifier}"] = None
        for wheel in fitting:
            for extra in {"", *need.extras} - {extra for name, extra in done if name == f"{wheel.name}=={wheel.version}"}:
                done.add((f"{wheel.name}=={wheel.version}", extra))
                waiting += [each for each in wheel.needs if _counts(each.marker, environments, extra)]
    return sorted(lacking)


def _extras(need: Requirement) -> str:
    return f"[{','.join(sorted(need.extras))}]" if need.extras else ""


def _counts(marker: Marker | None, environments: Sequence[dict[str, str]], extra: str) -> bool:
    """Without an extra: what holds whatever is asked for; with one: what it adds."""
    return marker is None or any(marker.evaluate({**environment, "extra": extra}) for environment in environments)


def _environment(python: str, patch: int, platform: str) -> dict[str, str]:
    """PEP 508's variables over there: CPython on Linux."""
    full = f"{python}.{patch}"
    processor = re.sub(r"^(manylinux_2_\d+|linux)_", "", platform)
    return {
        "python_version": python, "python_full_version": full, "implementation_version": full, "implementation_name": "cpython",
        "platform_python_implementation": "CPython", "platform_machine": processor, "platform_system": "Linux",
        "sys_platform": "linux", "os_name": "posix",
    }  # fmt: skip


def _requirement(line: str) -> Requirement | None:
    """None for comments, options and files."""
    try:
        return Requirement(re.sub(r"(^|\s)#.*", "", line).strip())
    except InvalidRequirement:
        return None


def _read(path: Path) -> _Wheel:
    with zipfile.ZipFile(path) as archive:
        place = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        text = archive.read(place).decode("utf-8", errors="replace")
    fields = email.parser.Parser(policy=email.policy.compat32).parsestr(text, headersonly=True)
    needs = tuple(each for line in fields.get_all("Requires-Dist") or () if (each := _requirement(line)) is not None)
    return _Wheel(canonicalize_name(str(fields["Name"])), str(fields["Version"]), needs)
