"""The README's file map is true, its commands exist, and every relative link leads somewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tracked() -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    return {line.split("/")[0] for line in listed.stdout.splitlines()}


def mapped() -> list[str]:
    table = README.split("## What is where", 1)[1]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [path for cell in cells for path in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("path", mapped())
def test_what_the_map_names_exists(path):
    found = ROOT / path
    assert found.is_dir() if path.endswith("/") else found.is_file()


def test_the_map_names_everything_at_the_top():
    named = {path.rstrip("/") for path in mapped()} | set(re.findall(r"`(_\w+\.py)`", README))
    assert tracked() - named - {"README.md", ".gitignore", "LICENSE"} == set()


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_relative_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


def test_the_makes_of_the_readme_are_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([\w-]+)`|^make ([\w-]+)", README, re.M):
        assert re.search(rf"^{target[0] or target[1]}:", makefile, re.M)


def test_every_variable_in_the_readme_is_a_setting():
    reference = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)`", README)):
        assert f"`{name}`" in reference, name


def test_direct_dependencies_are_pinned():
    for name in ("requirements.txt", "requirements-remote.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            if line and not line.startswith(("#", "-r ")):
                assert re.fullmatch(r"[\w.\[\]-]+==[\w.+]+", line), line
