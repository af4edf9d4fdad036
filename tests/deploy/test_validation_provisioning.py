"""The provisioning script with a fake gcloud, named as one: it asks before it changes, and changes nothing without --apply."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "deploy" / "guides" / "provision_gce.sh"
GUIDE = ROOT / "docs" / "provisioning.md"
CHANGES = ("instances create", "firewall-rules create", "firewall-rules update", "compute ssh")
FAKE_GCLOUD = """#!/bin/sh
printf '%s\\n' "$*" >> "$CALLS"
case "$*" in
  *project-info*) printf 'CPUS_ALL_REGIONS\\t32.0\\t0.0\\nGPUS_ALL_REGIONS\\t%s\\t0.0\\n' "$QUOTA" ;;
  *"regions describe"*) printf 'NVIDIA_L4_GPUS\\t1.0\\t0.0\\n' ;;
  *"zone:us-central1-c"*nvidia-l4*) echo nvidia-l4 ;;
  *"describe-from-family gone"*) echo "ERROR: was not found" >&2; exit 1 ;;
  *describe-from-family*) echo pytorch-v20260101 ;;
  *"firewall-rules list"*) [ -z "$KNOWN" ] || echo rag-gpu-models ;;
  *"instances list"*) [ -z "$KNOWN" ] || echo rag-gpu ;;
esac
"""


def run(folder: Path, *arguments: str, quota: str = "1.0", known: str = "") -> tuple[int, str, list[str]]:
    """(exit code, what it said, the calls of gcloud)."""
    gcloud, calls = folder / "gcloud", folder / "calls"
    gcloud.write_text(FAKE_GCLOUD)
    gcloud.chmod(0o755)
    calls.write_text("")
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(calls), "QUOTA": quota, "KNOWN": known}
    done = subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60, env=environment)
    return done.returncode, done.stdout + done.stderr, calls.read_text().splitlines()


USUAL = ("--project", "p", "--sources", "203.0.113.7/32,198.51.100.0/24")


def changes(calls: list[str]) -> list[str]:
    return [call for call in calls if any(change in call for change in CHANGES)]


def test_without_apply_nothing_is_changed_and_all_is_shown(tmp_path: Path) -> None:
    code, said, calls = run(tmp_path, *USUAL)
    assert code == 0 and calls and not changes(calls) and "Nothing was changed" in said
    assert "instances create rag-gpu" in said and "--machine-type g2-standard-4" in said and "--boot-disk-size 120GB" in said
    assert "zone: us-central1-c" in said, "the first zone has no L4 here"
    assert not run(tmp_path, *USUAL, "--offline")[2]


def test_apply_makes_the_machine_and_opens_it_to_the_named_sources(tmp_path: Path) -> None:
    code, _, calls = run(tmp_path, *USUAL, "--apply")
    made = changes(calls)
    assert code == 0 and [call.split()[1] for call in made] == ["instances", "firewall-rules", "ssh", "ssh"]
    assert (
        "--source-ranges 203.0.113.7/32,198.51.100.0/24" in made[1]
        and "--image-family pytorch-2-9-cu129-ubuntu-2404-nvidia-580" in made[0]
    )
    again = changes(run(tmp_path, *USUAL, "--apply", known="yes")[2])
    assert "firewall-rules update" in again[0] and not any("instances create" in call for call in again)


def test_a_project_without_quota_ends_before_any_change(tmp_path: Path) -> None:
    code, said, calls = run(tmp_path, *USUAL, "--apply", quota="0.0")
    assert code == 1 and "GPUS_ALL_REGIONS leaves no GPU" in said and not changes(calls)
    code, said, calls = run(tmp_path, *USUAL, "--image-family", "gone", "--apply")
    assert code == 1 and "has no image family gone" in said and "--no-standard-images" in said and not changes(calls)
    code, said, calls = run(tmp_path, *USUAL, "--zones", "us-central1-a", "--apply")
    assert code == 1 and "none of us-central1-a has an L4" in said and not changes(calls)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--project", "p"),
        ("--project", "p", "--sources", "0.0.0.0/0"),
        ("--project", "p", "--sources", "10.0.0.1/32,::/0"),
        ("--project", "p", "--sources", "$(reboot)"),
        ("--project", "p", "--sources", "10.0.0.1/32,2001:db8::/64"),
        (*USUAL, "--name", "UPPER"),
        (*USUAL, "--disk-gb", "10"),
        (*USUAL, "--zones"),
        (*USUAL, "--apply", "--offline"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_asked(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code, said, calls = run(tmp_path, *arguments)
    assert code == 2 and said.startswith("error: ") and not calls


def test_the_script_is_clean_and_the_guide_names_what_is_there() -> None:
    checker = shutil.which("shellcheck")
    command = [checker, str(SCRIPT)] if checker else ["bash", "-n", str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    text = GUIDE.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:deploy|docs)/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).exists(), path
    options = set(re.findall(r"^  (--[\w-]+)", SCRIPT.read_text(), re.MULTILINE))
    assert {each for each in re.findall(r"provision_gce\.sh ([^`]+)", text)} and set(
        re.findall(r"--(?:project|sources|apply)", text)
    ) <= options
