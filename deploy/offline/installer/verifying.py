"""Is the bundle whole, and does it fit this machine. Writes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import InstallError

FORMAT = "ragdeck-bundle/1"
CHUNK_BYTES = 1 << 20
LARGEST_MANIFEST_BYTES = 64 << 20
SPARE_BYTES = 200 << 20
COPY_AGAIN = "Copy the bundle again."
REPAIR = "Copy the files named here again. Parts on other disks may be linked into that folder: ln -s /other/part-00001.tar ."


def read_manifest(bundle: Path) -> dict[str, Any]:
    """manifest.json, its shape checked. Raises InstallError."""
    path = bundle / "manifest.json"
    try:
        if path.stat().st_size > LARGEST_MANIFEST_BYTES:
            raise InstallError(f"{path} is larger than 64 MB: it is no manifest")
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as problem:
        step = "Name the folder with the parts; where `bundle` was interrupted, run it again there: it goes on."
        raise InstallError(f"{bundle} holds no finished bundle: manifest.json is missing", step) from problem
    except (OSError, ValueError) as problem:
        raise InstallError(f"{path} cannot be read: {problem}", COPY_AGAIN) from problem
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
    problems, found = [], dict[str, str]()
    for name, digest in _checksums(bundle).items():
        if wanted.setdefault(name, (None, digest))[1] != digest:
            problems.append(f"{name}: SHA256SUMS and manifest.json disagree")
    of_digest = {digest: name for name, (_, digest) in wanted.items()}
    for number, (name, (size, digest)) in enumerate(sorted(wanted.items()), 1):
        problem = _problem_of(bundle / name, size, digest, of_digest)
        if problem:
            found[name] = problem
        say(f"verified {number} of {len(wanted)} files")
    problems += [f"{name}: {problem}" for name, problem in found.items()]
    if problems:
        problems += _strangers(bundle, wanted) if "missing" in found.values() else []
        raise InstallError(f"the bundle in {bundle} is not whole:\n  " + "\n  ".join(problems), REPAIR)


def _strangers(bundle: Path, wanted: dict[str, tuple[int | None, str]]) -> list[str]:
    """Files that are called otherwise and have the size of one that is missing: some disks and downloads change names."""
    missing = {size: name for name, (size, _) in wanted.items() if size is not None and not (bundle / name).exists()}
    others = [path for path in sorted(bundle.iterdir()) if path.is_file() and path.name not in wanted]
    return [
        f"{path.name} has the size of {missing[path.stat().st_size]}: is it that one? rename it"
        for path in others
        if path.stat().st_size in missing
    ]


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


def _problem_of(path: Path, size: int | None, digest: str, of_digest: dict[str, str]) -> str | None:
    try:
        found = path.stat().st_size
        if size is not None and found != size:
            return f"{found:,} bytes instead of {size:,}"
        own = sha256(path)
        other = of_digest.get(own)
        return None if own == digest else f"it is {other}, wrongly named" if other else "its checksum is wrong"
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
    if manifest["contents"].get("wheels"):
        _check_venv(python)
    if sys.platform != "linux" or not wanted.endswith(platform.machine()):
        here = f"{sys.platform} {platform.machine()}"
        raise InstallError(f"the bundle is for {wanted}, and this is {here}", "Make a bundle for this machine.")
    if "manylinux" in wanted and any(Path("/lib").glob("ld-musl-*")) and platform.libc_ver()[0] != "glibc":
        raise InstallError(f"the bundle is for {wanted}, and this system has musl instead of glibc", "Use one with glibc.")
    needed = re.match(r"manylinux_(\d+)_(\d+)_", wanted)
    name, version = platform.libc_ver()
    if needed and name == "glibc" and tuple(map(int, version.split("."))) < (int(needed[1]), int(needed[2])):
        raise InstallError(f"the bundle needs glibc {needed[1]}.{needed[2]}, and this is {version}", "Bundle for an older one.")
    wheels = (manifest["contents"].get("wheels") or {}).get("installed_bytes", 0)
    room, free = manifest["total_bytes"] + wheels + SPARE_BYTES, shutil.disk_usage(_existing(to.parent)).free
    if free < room:
        previous = to.with_name(to.name + ".previous")
        step = f"Delete {previous}, the one before, " if previous.exists() else "Make room, "
        raise InstallError(f"{room:,} bytes are needed at {to.parent} and {free:,} are free", f"{step}or choose another --to.")


def check_place(to: Path) -> None:
    """Can `to` be made and replaced, which takes two names beside it. Raises InstallError."""
    above = _existing(to.parent)
    if to.exists() and not to.is_dir():
        raise InstallError(f"{to} is a file", "Choose a folder with --to.")
    if not above.is_dir():
        raise InstallError(f"{above} is a file", "Choose a folder with --to.")
    for mount in (to, to / "data"):
        if os.path.ismount(mount):
            step = (
                f"Choose a folder below it: --to {to / 'ragdeck'}" if mount == to else "Mount it elsewhere, and link data to it."
            )
            raise InstallError(f"{mount} is a mount point, which cannot be renamed", step)
    if not os.access(above, os.W_OK | os.X_OK):
        step = f"{to.name}.new and {to.name}.previous are made there too: run it as a user who may, or choose another --to."
        raise InstallError(f"{above} cannot be written", step)
    if os.statvfs(above).f_flag & os.ST_NOEXEC:
        step = "Mount it without noexec, or choose a place on another disk with --to: programs and libraries are run from there."
        raise InstallError(f"{above} is on a disk that is mounted noexec", step)


def _check_venv(python: str) -> None:
    """Debian and Ubuntu have Pythons without `venv`; `ensurepip` is not needed. Raises InstallError."""
    done = subprocess.run([python, "-m", "venv", "--help"], capture_output=True, text=True, timeout=60)
    if done.returncode:
        step = "Install Python's whole standard library (Debian, Ubuntu: python3-venv), or name another Python with --python."
        said = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise InstallError(f"{python} can make no venv: {said}", step)


def python_version(python: str) -> str:
    """Such as 3.11. Raises InstallError."""
    show = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        return subprocess.run([python, "-c", show], capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as problem:
        raise InstallError(f"{python} does not run: {problem}", "Name a Python with --python.") from problem


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
