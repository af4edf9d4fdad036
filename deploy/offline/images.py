"""Container images to files, by `docker save`. Knows nothing of which images a deployment needs."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from rag.errors import RagError

SAVE_SECONDS, LOOK_SECONDS = 3600.0, 60.0


def save(names: Sequence[str], work: Path, say: Callable[[str], None]) -> list[Path]:
    """A tar file for each image below `work`, named by name and id: one that is there is not saved again. Raises RagError."""
    if names and shutil.which("docker") is None:
        raise RagError(
            f"{len(names)} images are asked for, and Docker is not here",
            kind="not_found",
            next_step="Run this where Docker has them, or leave --image out and move them by hand.",
        )
    found = []
    for name in names:
        path = work / "images" / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}@{_id(name)}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            say(f"saving {name}")
            unfinished = path.with_suffix(".unfinished")
            _docker("save", "--output", str(unfinished), name, seconds=SAVE_SECONDS)
            unfinished.replace(path)
        found.append(path)
    return found


def _id(name: str) -> str:
    if name.startswith("-"):
        raise RagError(f"{name!r} is no name of an image", kind="bad_input")
    return _docker("image", "inspect", "--format", "{{.Id}}", name, seconds=LOOK_SECONDS).strip().rpartition(":")[2][:12]


def _docker(*arguments: str, seconds: float) -> str:
    try:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise RagError(f"docker {arguments[0]} did not end: {type(problem).__name__}", kind="timeout") from problem
    if done.returncode:
        said = done.stderr.strip()[-500:]
        raise RagError(
            f"docker {arguments[0]} {arguments[-1]}: {said}", kind="not_found", next_step="Is the daemon up, the image pulled?"
        )
    return done.stdout
