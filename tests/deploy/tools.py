"""The real tools that check what is rendered: found beside Python or on the path. CI has them all; elsewhere a test does without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path


def tool(name: str) -> str | None:
    """Where a tool is. None where there is none and this is not CI, with a warning that names what was not checked."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        assert not os.environ.get("CI"), f"CI needs {name}"
        warnings.warn(f"{name} is not installed: what it would check was not checked", stacklevel=2)
    return found


def ran(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """What a tool says, both streams in `stdout`."""
    return subprocess.run(
        [str(each) for each in command], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=150
    )  # fmt: skip
