"""The wheels that requirements need on the target's Python and platform, by pip from whatever indexes pip is configured with.

Names no index. What is offered as source only is built here, if it builds to a wheel that the target takes.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.offline import closure
from rag.errors import RagError

DOWNLOAD_SECONDS, BUILD_SECONDS = 3600.0, 900.0
MOST_BUILDS, MOST_ROUNDS = 40, 20
LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


@dataclass(frozen=True, slots=True)
class Target:
    """Where the bundle is to run: `3.11`, and a platform tag such as `manylinux_2_28_x86_64`."""

    python: str
    platform: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"3\.\d{1,2}", self.python):
            raise RagError(f"{self.python!r} is no Python version", kind="bad_input", next_step="Write it as 3.11.")
        if not re.fullmatch(r"(manylinux_2_\d{1,2}|linux)_[a-z0-9_]+", self.platform):
            raise RagError(
                f"{self.platform!r} is no platform that a bundle can be made for",
                kind="bad_input",
                next_step="Write it as manylinux_2_28_x86_64: glibc 2.28 or newer, and the processor.",
            )

    def tags(self) -> list[str]:
        """Every tag that such a machine takes, newest first: pip does not derive them from one (PEP 600)."""
        found = re.fullmatch(r"manylinux_2_(\d+)_(\w+)", self.platform)
        if not found:
            return [self.platform]
        tags = []
        for minor in range(int(found[1]), 4, -1):
            tags.append(f"manylinux_2_{minor}_{found[2]}")
            tags += [f"{LEGACY[minor]}_{found[2]}"] if minor in LEGACY else []
        return [*tags, f"linux_{found[2]}"]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where pip looks besides its own configuration; `indexes` is for torch's builds for one CUDA, or none."""

    find_links: tuple[str, ...] = ()
    indexes: tuple[str, ...] = ()
    no_index: bool = False

    def arguments(self) -> list[str]:
        found = [part for place in self.find_links for part in ("--find-links", place)]
        found += [part for place in self.indexes for part in ("--extra-index-url", place)]
        return [*found, *(["--no-index"] if self.no_index else [])]


def collect(requirements: Path, work: Path, target: Target, sources: Sources, say: Callable[[str], None]) -> list[Path]:
    """The wheels, pip's own among them, below `work`; one that is there is not fetched again. Raises RagError."""
    key = hashlib.sha256(_flat(requirements).encode() + repr((target, sources)).encode()).hexdigest()[:12]
    folder = work / f"wheels-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    _drop_torn(folder)
    _download(["-r", str(requirements)], folder, target, sources, say)
    for _ in range(MOST_ROUNDS):
        found = sorted(folder.glob("*.whl"))
        lacking = closure.missing(found, _flat(requirements).splitlines(), target.python, target.platform)
        if not lacking:
            break
        say(f"fetching {', '.join(lacking)}, which the target needs and this machine does not")
        _download(["--no-deps", *lacking], folder, target, sources, say)
    else:
        raise RagError(
            f"the wheels still lack {', '.join(lacking)} for Python {target.python} on {target.platform}",
            kind="not_found",
            next_step="Give a folder that has them with --find-links, or make the bundle with that Python.",
        )
    _add_pip(folder, target, sources)
    return sorted(folder.glob("*.whl"))


def _download(what: list[str], folder: Path, target: Target, sources: Sources, say: Callable[[str], None]) -> None:
    command = [*_pip("download", folder, target, sources), *what]
    built: set[str] = set()
    while (problem := _pip_problem(command, DOWNLOAD_SECONDS)) is not None:
        name = _source_only(problem)
        if name is None or name in built or len(built) == MOST_BUILDS:
            raise RagError(
                f"pip could not download the wheels:\n{problem[-1500:]}",
                kind="not_found",
                next_step="Give a folder that has them with --find-links, or an index with --extra-index.",
            )
        say(f"building {name}, which is offered as source only")
        built.add(name)
        _build(name, folder, sources)


def _drop_torn(folder: Path) -> None:
    """Wheels that a run which was killed left half copied: pip would take them for whole."""
    for wheel in folder.glob("*.whl"):
        if not zipfile.is_zipfile(wheel):
            wheel.unlink()


def installed_bytes(wheels: Sequence[Path]) -> int:
    """What they take when unpacked."""
    return sum(item.file_size for wheel in wheels for item in zipfile.ZipFile(wheel).infolist())


def _flat(requirements: Path) -> str:
    """A requirements file with those that it names."""
    try:
        lines = requirements.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise RagError(f"{requirements} cannot be read: {type(problem).__name__}", kind="bad_input") from problem
    nested = [re.match(r"\s*(?:-r|--requirement)[ =]\s*(\S+)", line) for line in lines]
    return "\n".join([*lines, *(_flat(requirements.parent / match[1]) for match in nested if match)])


def _pip(what: str, folder: Path, target: Target, sources: Sources) -> list[str]:
    platforms = [part for tag in target.tags() for part in ("--platform", tag)]
    command = [sys.executable, "-m", "pip", what, "--quiet", "--dest", str(folder), "--find-links", str(folder)]
    command += ["--only-binary=:all:", "--python-version", target.python, "--implementation", "cp"]
    return [*command, *platforms, *sources.arguments()]


def _pip_problem(command: list[str], seconds: float) -> str | None:
    """What pip said when it failed; None when it did not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as problem:
        return f"{type(problem).__name__}: pip did not end"
    lines = [re.sub(r"(?<=://)[^/\s]*@", "***@", line) for line in done.stderr.splitlines()]  # an index's password
    return "\n".join(lines) or "pip failed without a word" if done.returncode else None


def _source_only(said: str) -> str | None:
    found = re.search(r"No matching distribution found for ([A-Za-z0-9][\w.-]*(?:==[\w.!+-]+)?)", said)
    return found[1] if found else None


def _build(name: str, folder: Path, sources: Sources) -> None:
    """A wheel of a package's source, here; pip does not take it afterwards where it is for another kind of machine."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    problem = _pip_problem([*command, "--find-links", str(folder), *sources.arguments(), name], BUILD_SECONDS)
    if problem:
        raise RagError(
            f"{name} has no wheel for the target, and none could be built here:\n{problem[-1500:]}",
            kind="not_found",
            next_step="Build its wheel on a machine like the target, and give its folder with --find-links.",
        )


def _add_pip(folder: Path, target: Target, sources: Sources) -> None:
    if any(folder.glob("pip-*.whl")):
        return
    problem = _pip_problem([*_pip("download", folder, target, sources), "--no-deps", "pip"], DOWNLOAD_SECONDS)
    if problem is None:
        return
    import ensurepip

    carried = next(iter(sorted((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))), None)
    if carried is None:
        raise RagError(
            f"no wheel of pip is to be had:\n{problem[-500:]}", kind="not_found", next_step="Give it with --find-links."
        )
    (folder / carried.name).write_bytes(carried.read_bytes())
