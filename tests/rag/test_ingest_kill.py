"""Killed by SIGKILL at seeded moments and started again: the same result as an uninterrupted run, in the same job."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def write_files(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        sentences = (f"Pump {number} opens valve {part} at {number + part} bar." for part in range(200))
        (folder / f"{number:03}.md").write_text(f"# Pump {number}\n\n" + " ".join(sentences))
    for number in range(0, count, 10):  # the same text under another path
        text = (folder / f"{number:03}.md").read_text()
        (folder / f"copy-{number:03}.md").write_text(text.replace(" ", "  "))
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 cut")
    return folder


def start(data: Path, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.ingest_child", str(data), str(folder)],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def to_the_end(data: Path, folder: Path) -> dict[str, Any]:
    process = start(data, folder)
    out, problems = process.communicate(timeout=120)
    assert process.returncode == 0, problems[-3000:]
    return json.loads(out.splitlines()[-1])


def kill_after(data: Path, folder: Path, seconds: float) -> bool:
    """Start, kill that long after it began to read; False when it had ended before."""
    process = start(data, folder)
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(seconds)
    process.kill()
    rest = process.communicate(timeout=20)[0]
    return first == "reading\n" and not rest


def killed(tmp_path: Path, kills: int, files: int, longest_seconds: float) -> None:
    folder, chance = write_files(tmp_path / "docs", files), random.Random(7)
    whole = to_the_end(tmp_path / "whole", folder)
    assert whole["jobs"][0][1:] == ["finished", {"added": files, "duplicate": files // 10, "failed": 1}]
    assert len(whole["rows"]) == whole["count"] > 5 * files
    interrupted = sum(kill_after(tmp_path / "killed", folder, chance.uniform(0, longest_seconds)) for _ in range(kills))
    assert interrupted, "no kill came while it worked"
    again = to_the_end(tmp_path / "killed", folder)
    assert again["rows"] == whole["rows"]
    assert again["documents"] == whole["documents"]
    assert again["count"] == whole["count"], "rows are left that belong to no document"
    assert len(again["jobs"]) == 1, "it went on in the job that was begun"
    state, counts = again["jobs"][0][1:]
    between = counts.pop("unchanged", 0)  # killed when the store had a document and the ledger did not: found there as it is
    assert between <= interrupted
    counts["added"] += between
    assert [state, counts] == whole["jobs"][0][1:]


def test_three_kills_and_the_result_is_that_of_an_uninterrupted_run(tmp_path: Path) -> None:
    killed(tmp_path, kills=3, files=60, longest_seconds=0.4)
