"""Is the bundle whole, and does it fit this machine. Writes nothing."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import InstallError

FORMAT = "ragdeck-bundle/1"
CHUNK_BYTES = 1 << 20
LARGEST_MANIFEST_BYTES = 64 << 20
SPARE_BYTES = 200 << 20
COPY_AGAIN = "Copy the bundle again."


def read_manifest(bundle: Path) -> dict[str, Any]:
    """manifest.json, its shape checked. Raises InstallError."""
    path = bundle / "manifest.json"
    try:
        if path.stat().st_size > LARGEST_MANIFEST_BYTES:
            raise InstallError(f"{path} is larger than 64 MB: it is no manifest")
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise InstallError(f"{path} cannot be read: {problem}", f"Is the bundle complete? {COPY_AGAIN}") from problem
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InstallError(f"{path} is no manifest of the format {FORMAT}", "Use the install.py that lies in the bundle.")
    try:
        parts = [(part["name"], part["bytes"], part["sha256"]) for part in manifest["parts"]]
        files = [(file["path"], file["bytes"], file["sha256"], file["mode"]) for file in manifest["files"]]
        (manifest["id"], manifest["total_bytes"], manifest["python"], manifest["platform"], manifest["contents"])
    except (KeyError, TypeError) as problem:
        raise InstallError(f"{path} is not whole: {problem} is missing", COPY_AGAIN) from problem
    for name, *_ in parts:
        if not re.fullmatch(r"part-\d{5}\.tar", str(name)):
            raise InstallError(f"{path} names a part {name!r}, which is no name of a part", COPY_AGAIN)
    for name, *_ in files:
        safe_path(name)
    return manifest


def verify(bundle: Path, manifest: dict[str, Any], say: Callable[[str], None]) -> None:
    """Every part and every file beside them against its checksum. Raises InstallError that names each bad one."""
    wanted: dict[str, tuple[int | None, str]]
    wanted = {part["name"]: (part["bytes"], part["sha256"]) for part in manifest["parts"]}
    problems = []
    for name, digest in _checksums(bundle).items():
        if wanted.setdefault(name, (None, digest))[1] != digest:
            problems.append(f"{name}: SHA256SUMS and manifest.json disagree")
    for number, (name, (size, digest)) in enumerate(sorted(wanted.items()), 1):
        problem = _problem_of(bundle / name, size, digest)
        problems += [f"{name}: {problem}"] if problem else []
        say(f"verified {number} of {len(wanted)} files")
    if problems:
        raise InstallError("the bundle is not whole:\n  " + "\n  ".join(problems), "Copy the files named here again.")


def _checksums(bundle: Path) -> dict[str, str]:
    try:
        lines = (bundle / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as problem:
        raise InstallError(f"SHA256SUMS cannot be read: {problem}", COPY_AGAIN) from problem
    found = {}
    for line in lines:
        match = re.fullmatch(r"([0-9a-f]{64})  ((?:ragdeck_installer/)?\w[\w.-]*)", line)
        if not match:
            raise InstallError(f"SHA256SUMS has a line that is no checksum: {line[:80]!r}", COPY_AGAIN)
        found[match[2]] = match[1]
    missing = {"manifest.json", "install.py"} - found.keys()
    if missing:
        raise InstallError(f"SHA256SUMS does not name {', '.join(sorted(missing))}", COPY_AGAIN)
    return found


def _problem_of(path: Path, size: int | None, digest: str) -> str | None:
    try:
        found = path.stat().st_size
        if size is not None and found != size:
            return f"{found:,} bytes instead of {size:,}"
        return None if sha256(path) == digest else "its checksum is wrong"
    except FileNotFoundError:
        return "missing"
    except OSError as problem:
        return f"cannot be read ({problem.strerror})"


def sha256(path: Path) -> str:
    """64 hex digits. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def safe_path(name: object) -> PurePosixPath:
    """A file's place below the target. Raises InstallError for anything that could lead out of it."""
    text = name if isinstance(name, str) else ""
    path = PurePosixPath(text)
    bad = not text or "\\" in text or "\0" in text or path.is_absolute() or text != str(path)
    if bad or any(part in ("", ".", "..") for part in path.parts):
        raise InstallError(f"the bundle holds a file named {name!r}, which is no place below the target", "Do not install it.")
    return path


def check_machine(manifest: dict[str, Any], python: str, to: Path) -> None:
    """Python, processor, C library and room on the disk. Raises InstallError."""
    found = python_version(python)
    if found != manifest["python"]:
        raise InstallError(
            f"the bundle is for Python {manifest['python']}, and {python} is {found}",
            f"Name one with --python /path/to/python{manifest['python']}, or make the bundle for the one that is here.",
        )
    wanted = str(manifest["platform"])
    if not wanted.endswith(platform.machine()):
        raise InstallError(f"the bundle is for {wanted}, and this is {platform.machine()}", "Make a bundle for this machine.")
    needed = re.match(r"manylinux_(\d+)_(\d+)_", wanted)
    name, version = platform.libc_ver()
    if needed and name == "glibc" and tuple(map(int, version.split("."))) < (int(needed[1]), int(needed[2])):
        raise InstallError(f"the bundle needs glibc {needed[1]}.{needed[2]}, and this is {version}", "Bundle for an older one.")
    wheels = (manifest["contents"].get("wheels") or {}).get("installed_bytes", 0)
    room, free = manifest["total_bytes"] + wheels + SPARE_BYTES, shutil.disk_usage(_existing(to)).free
    if free < room:
        raise InstallError(
            f"{room:,} bytes are needed at {to.parent} and {free:,} are free", "Make room, or choose another --to."
        )


def python_version(python: str) -> str:
    """Such as 3.11. Raises InstallError."""
    show = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        return subprocess.run([python, "-c", show], capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as problem:
        raise InstallError(f"{python} does not run: {problem}", "Name a Python with --python.") from problem


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
