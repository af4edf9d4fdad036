"""What an unpacked bundle needs to run: a venv with its wheels, its images in Docker, its settings and start scripts."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import STEPS, InstallError, explained

PIP_SECONDS, IMAGE_SECONDS, VENV_SECONDS = 3600.0, 3600.0, 300.0
MAY_WRITE = """[ -w "$here/data" ] && { [ ! -e "$here/.env" ] || [ -r "$here/.env" ]; } || {
  echo "error: $(id -un) may not write $here/data or not read $here/.env" >&2
  echo "       Start it as the user who installed it, or give it to this one: chown -R $(id -un) '$here'" >&2
  exit 1
}
"""
UNKNOWN_STEP = "What pip or Python said stands above; what was there before is unchanged."
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false",
}


def make_venv(folder: Path, final: Path, python: str, requirements: str) -> None:
    """A venv in `folder` with the bundle's wheels; its scripts say `final`, where the folder will lie. Raises InstallError.

    pip runs out of its own wheel: `ensurepip` is a package of its own on some systems, and old where it is there.
    """
    venv, wheels = folder / ".venv", folder / "wheels"
    pip = next(iter(sorted(wheels.glob("pip-*.whl"))), None)
    if pip is None:
        raise InstallError("the bundle holds no wheel of pip", "Make the bundle again.")
    _run([python, "-m", "venv", "--without-pip", str(venv)], f"the venv could not be made in {folder}", VENV_SECONDS)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON"))}
    clean["TMPDIR"] = str(wheels)  # /tmp may be small, or full: this goes with the wheels
    install = [str(venv / "bin" / "python"), str(pip / "pip"), "install", "--isolated", "--no-index", "--no-cache-dir"]
    install += ["--disable-pip-version-check", "--quiet", "--find-links", str(wheels)]
    install += ["-r", str(folder / "app" / requirements), "pip"]
    _run(install, f"the wheels could not be installed in {folder}", PIP_SECONDS, {**clean, "PIP_CONFIG_FILE": os.devnull})
    _move(venv, str(folder).encode(), str(final).encode())


def _move(venv: Path, old: bytes, new: bytes) -> None:
    """A venv's scripts hold its place; the interpreter itself finds it by where it lies."""
    for script in [venv / "pyvenv.cfg", *(venv / "bin").iterdir()]:
        if script.is_file() and not script.is_symlink():
            content = script.read_bytes()
            if old in content and b"\0" not in content:
                script.write_bytes(content.replace(old, new))


def _run(command: list[str], what: str, seconds: float, environment: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise InstallError(f"{what}: {problem}", explained(problem)[1]) from problem
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise InstallError(f"{what}:\n{said}", next((STEPS[code] for code in STEPS if os.strerror(code) in said), UNKNOWN_STEP))


def load_images(folder: Path, say: Callable[[str], None]) -> list[tuple[str, str]]:
    """Loads `images/*.tar` into Docker. Returns (file, reason) of those that could not be loaded: the program needs none."""
    images = sorted((folder / "images").glob("*.tar"))
    if not images or shutil.which("docker") is None:
        return [(image.name, "Docker is not here") for image in images]
    left = []
    for image in images:
        say(f"loading {image.name}")
        try:
            _run(["docker", "load", "--input", str(image)], "docker load failed", IMAGE_SECONDS)
        except InstallError as problem:
            left.append((image.name, " ".join(str(problem).split())))
    return left


def write_settings(folder: Path, final: Path, contents: dict[str, Any], python: str) -> None:
    """`.env` with the offline variables and the models' places, secrets named and left open; dashboard.toml; start scripts."""
    places = {name: str(final / place) for name, place in (contents.get("model_settings") or {}).items()}
    hub = {"HF_HUB_CACHE": str(final / "models" / "hub"), "RAGDECK_DATA": str(final / "data")}
    own = {**OFFLINE, **hub, **places}
    carried = (folder / "config" / "env").read_text(encoding="utf-8") if (folder / "config" / "env").is_file() else ""
    kept = [line for line in carried.splitlines() if line.partition("=")[0].strip() not in own]
    secrets = [f"# set it here, it was set where the bundle was made: {name}=" for name in contents.get("secrets") or []]
    lines = ["# Written by install.py.", *(f"{name}={_quoted(value)}" for name, value in own.items()), *kept, *secrets]
    (folder / ".env").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / ".env").chmod(0o600)
    (folder / "data").mkdir(exist_ok=True)
    for source, target in (("dashboard.toml", "dashboard.toml"), ("edited.toml", "data/edited.toml")):
        if (folder / "config" / source).is_file():
            shutil.copyfile(folder / "config" / source, folder / target)
    (folder / "app" / ".env").symlink_to(Path("..") / ".env")
    if (folder / "dashboard.toml").is_file():
        (folder / "app" / "dashboard.toml").symlink_to(Path("..") / "dashboard.toml")
    _write_scripts(folder, {**OFFLINE, **hub}, python)


def _quoted(value: str) -> str:
    """As `.env` files write it: a path may hold ` #`, which would begin a comment."""
    plain = all(each.isalnum() or each in "/._-:" for each in value)
    return value if plain else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _write_scripts(folder: Path, variables: dict[str, str], python: str) -> None:
    """`start.sh` starts the dashboard; `python.sh` runs anything else of the installation, such as `-m rag ask`."""
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    interpreter = '"$here/.venv/bin/python"' if (folder / ".venv").exists() else shlex.quote(python)
    for name, what in (("start.sh", 'app.py "$@"'), ("python.sh", '"$@"')):
        check = MAY_WRITE if name == "start.sh" else ""
        start = f'#!/bin/sh\nhere=$(cd "$(dirname "$0")" && pwd)\n{check}{exports}cd "$here/app" && exec {interpreter} {what}\n'
        (folder / name).write_text(start, encoding="utf-8")
        (folder / name).chmod(0o755)
