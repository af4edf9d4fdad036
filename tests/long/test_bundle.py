"""`make test-long`: a whole bundle, moved to an empty folder, installed and asked a question where there is no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.offline import running

ROOT = Path(__file__).parents[2]
PART_BYTES = 100_000_000

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

# In a namespace of its own: loopback up, install, start, ask, ask again by the command, stop.
THERE = """
import json, os, signal, subprocess, sys
sys.path.insert(0, ROOT)
from deploy.offline.inside import loopback_up, unrouted
loopback_up()
before = unrouted()
clean = {"PATH": os.environ["PATH"], "HOME": HOME}
done = subprocess.run([PYTHON, BUNDLE + "/install.py", "--to", TO, "--start", "--json"], env=clean, capture_output=True, text=True)
print(done.stdout or json.dumps({"said": done.stderr}))
if done.returncode == 0:
    pid = int(open(TO + "/dashboard.pid").read())
    again = subprocess.run([PYTHON, BUNDLE + "/install.py", "--to", TO, "--start", "--json"],
                           env=clean, capture_output=True, text=True)
    print(again.stdout or json.dumps({"said": again.stderr}))
    os.killpg(pid, signal.SIGTERM)
print(json.dumps({"unrouted": unrouted() - before}))
"""


def test_a_bundle_moved_to_a_machine_without_network_answers_a_question(tmp_path: Path):
    """Wheels from wherever pip is configured to find them: the one step that may use a network."""
    made = subprocess.run(
        [sys.executable, "-m", "deploy", "bundle", "--out", str(tmp_path / "here"), "--part-bytes", str(PART_BYTES), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert json.loads(made.stdout)["parts"] > 3
    (tmp_path / "there").mkdir()
    (tmp_path / "here").rename(tmp_path / "there" / "bundle")
    python = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    values = {"ROOT": ROOT, "HOME": tmp_path / "there", "PYTHON": python, "BUNDLE": tmp_path / "there" / "bundle",
              "TO": tmp_path / "there" / "ragdeck"}  # fmt: skip
    script = "".join(f"{name} = {str(value)!r}\n" for name, value in values.items()) + THERE
    command = [*running.NAMESPACE, sys.executable, "-c", script]
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    installed, again, counted = [json.loads(line) for line in done.stdout.split("\n") if line]
    assert installed["changed"] and installed["started"]["outcome"] == "answered", done.stdout + done.stderr
    assert installed["started"]["passages"] > 0
    assert not again["changed"] and again["started"]["outcome"] == "answered", "running it again asks what runs already"
    print(made.stdout, installed, again)
    assert counted == {"unrouted": 0}, "nothing tried to leave"
