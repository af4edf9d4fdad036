"""Container images to files, by `docker save`. Knows nothing of which images a deployment needs."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from rag.errors import RagError

SAVE_SECONDS, LOOK_SECONDS = 3600.0, 60.0
PROCESSORS = {"x86_64": "amd64", "aarch64": "arm64"}  # as wheels write it, as Docker does


def save(names: Sequence[str], work: Path, platform: str, say: Callable[[str], None]) -> list[Path]:
    """A tar file for each image below `work`, named by name and id: one that is there is not saved again. Raises RagError.

    `platform` is the tag of the machine over there, such as manylinux_2_28_x86_64.
    """
    if names and shutil.which("docker") is None:
        raise RagError(
            f"{len(names)} images are asked for, and Docker is not here",
            kind="not_found",
            next_step="Run this where Docker has them, or leave --image out and move them by hand.",
        )
    found = []
    for name, number in [(name, _id(name, platform)) for name in names]:  # all are there before gigabytes of the first are saved
        path = work / "images" / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}@{number}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            say(f"saving {name}")
            unfinished = path.with_suffix(".unfinished")
            _docker("save", "--output", str(unfinished), name, seconds=SAVE_SECONDS)
            unfinished.replace(path)
        found.append(path)
    return found


def _id(name: str, platform: str) -> str:
    """Twelve digits of its id. Raises RagError for one that is for another processor: over there it would not start."""
    if name.startswith("-"):
        raise RagError(f"{name!r} is no name of an image", kind="bad_input", next_step="Write it as NAME:TAG.")
    told = _docker("image", "inspect", "--format", "{{.Id}} {{.Os}}/{{.Architecture}}", name, seconds=LOOK_SECONDS).split()
    if len(told) != 2:
        raise RagError(f"docker image inspect {name} said {told!r}", kind="internal", next_step="Is `docker` Docker's own?")
    wanted = next((f"linux/{docker}" for tag, docker in PROCESSORS.items() if platform.endswith(tag)), None)
    if wanted and told[1] != wanted:
        raise RagError(
            f"the image {name} is for {told[1]}, and the bundle for {platform}",
            kind="bad_input",
            next_step=f"Pull that one: docker pull --platform {wanted} {name}",
        )
    return told[0].rpartition(":")[2][:12]


def _docker(*arguments: str, seconds: float) -> str:
    try:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise RagError(
            f"docker {arguments[0]} {arguments[-1]} did not end: {type(problem).__name__}",
            kind="timeout",
            next_step="Is the daemon well? Try that command by hand.",
        ) from problem
    if done.returncode:
        said = done.stderr.strip()[-500:]
        absent = "no such image" in said.lower()
        step = f"docker pull {arguments[-1]}" if absent else "Start Docker's daemon, let this user reach it, then run this again."
        step = "Make room there, or choose another place with --work." if "no space left" in said else step
        raise RagError(f"docker {arguments[0]} {arguments[-1]}: {said}", kind="not_found", next_step=step)
    return done.stdout
