"""What goes into a bundle, each by itself: parts of an archive, wheels for a target, images. Real pip and files; no network."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
from pathlib import Path

import pytest

from deploy.offline import bundle, images, parts, sbom, wheels
from deploy.offline.installer import command, environment
from rag.errors import RagError
from tests.deploy.test_bundle import HERE, PLATFORM, QUIET, made_old, program, wanted, wheel

PROCESSOR = images.PROCESSORS[os.uname().machine]


def test_a_wheel_of_a_local_build_keeps_its_version_in_the_bill(tmp_path: Path):
    found = sbom.read_wheel(wheel(tmp_path, "torch", "2.0+cpu"))
    assert (found.version, found.purl) == ("2.0+cpu", "pkg:pypi/torch@2.0%2Bcpu")


def test_parts_that_are_right_are_not_written_again_and_wrong_ones_are(tmp_path: Path):
    source = tmp_path / "big.bin"
    source.write_bytes(os.urandom(3_500_000))
    entries = [parts.entry("big.bin", source)]
    first = parts.write_parts(entries, tmp_path, 1_000_000, QUIET)
    made_old(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("part-*")}
    (tmp_path / "part-00002.tar").write_bytes(b"x" * 1_000_000)
    (tmp_path / "part-00003.tar").unlink()
    assert parts.write_parts(entries, tmp_path, 1_000_000, QUIET) == first
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("part-*")}
    assert {name for name in before if before[name] == after[name]} == {"part-00001.tar", "part-00004.tar"}


def test_files_that_only_look_like_parts_stay(tmp_path: Path):
    (tmp_path / "part-notes.txt").write_text("not ours")
    (tmp_path / "part-00009.tar").write_text("of a larger bundle before")
    (tmp_path / "a").write_text("one")
    parts.write_parts([parts.entry("a", tmp_path / "a")], tmp_path, 1_000_000, QUIET)
    assert {path.name for path in tmp_path.glob("part-*")} == {"part-notes.txt", "part-00001.tar"}


def test_a_wheel_that_a_killed_run_left_torn_is_fetched_again(tmp_path: Path):
    whole = wheel(tmp_path / "links", "leaf", "1.0")
    (tmp_path / "requirements.txt").write_text("leaf==1.0\n")
    found = wheels.Sources((str(tmp_path / "links"),), (), True)
    target = wheels.Target(HERE, PLATFORM)

    def collect() -> Path:
        there = wheels.collect(tmp_path / "requirements.txt", tmp_path / "work", target, found, QUIET)
        return next(path for path in there if path.name == whole.name)

    torn = collect()
    torn.write_bytes(whole.read_bytes()[:200])
    assert collect().read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    "need, python, platform, packed",
    [
        ("stem>=1; python_full_version < '3.11.3'", "3.11", "manylinux_2_28_x86_64", True),
        ("stem>=1; python_version >= '3.13'", "3.13", "manylinux_2_28_x86_64", True),
        ("stem>=1; python_version >= '3.13'", "3.11", "manylinux_2_28_x86_64", False),
        ("stem>=1; platform_machine == 'aarch64'", "3.11", "manylinux_2_28_aarch64", True),
        ("stem>=1; platform_machine == 'sparc64'", "3.11", "manylinux_2_28_x86_64", False),
        ("stem>=1; sys_platform == 'win32'", "3.11", "manylinux_2_28_x86_64", False),
        ("stem>=1; extra == 'all' and python_version >= '3.13'", "3.13", "manylinux_2_28_x86_64", True),
    ],
)
def test_what_only_the_target_needs_is_packed_too(tmp_path: Path, need: str, python: str, platform: str, packed: bool):
    """pip evaluates markers for the Python that it runs on."""
    wheel(tmp_path / "links", "leaf", "1.0", need)
    wheel(tmp_path / "links", "stem", "2.0")
    (tmp_path / "requirements.txt").write_text("leaf[all]==1.0  # a comment\n")
    links = wheels.Sources((str(tmp_path / "links"),), (), True)
    found = wheels.collect(tmp_path / "requirements.txt", tmp_path / "work", wheels.Target(python, platform), links, QUIET)
    assert ("stem-2.0-py3-none-any.whl" in {path.name for path in found}) == packed


def test_what_the_target_needs_and_nobody_has_is_named(tmp_path: Path):
    wheel(tmp_path / "links", "leaf", "1.0", "stem>=1; python_version >= '3.13'")
    (tmp_path / "requirements.txt").write_text("leaf==1.0\n")
    links = wheels.Sources((str(tmp_path / "links"),), (), True)
    with pytest.raises(RagError, match="stem"):
        wheels.collect(tmp_path / "requirements.txt", tmp_path / "work", wheels.Target("3.13", PLATFORM), links, QUIET)


def test_an_interrupted_run_goes_on_with_the_part_it_was_at(tmp_path: Path):
    source = tmp_path / "big.bin"
    source.write_bytes(os.urandom(3_000_000))
    entries = [parts.entry("big.bin", source)]

    def stop(text: str) -> None:
        if text.startswith("part 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parts.write_parts(entries, tmp_path, 1_000_000, stop)
    made_old(tmp_path)
    kept = (tmp_path / "part-00001.tar").stat().st_mtime_ns
    assert len(list(tmp_path.glob("part-*"))) == 2
    assert len(parts.write_parts(entries, tmp_path, 1_000_000, QUIET)) == 4
    assert (tmp_path / "part-00001.tar").stat().st_mtime_ns == kept


@pytest.mark.parametrize("part_bytes", [700, 1024, 1536, 10_000_000])
def test_every_part_size_gives_the_same_archive(tmp_path: Path, part_bytes: int):
    entries = []
    for number, size in enumerate([0, 1, 511, 512, 513, 2000]):
        path = tmp_path / "in" / f"{'long/' * 60}{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * size)
        entries.append(parts.entry(path.relative_to(tmp_path / "in").as_posix(), path))
    out = tmp_path / "out"
    out.mkdir()
    written = parts.write_parts(entries, out, part_bytes, QUIET)
    whole = b"".join((out / part.name).read_bytes() for part in written)
    assert hashlib.sha256(whole).hexdigest() == hashlib.sha256(b"".join(parts.Archive(entries).read(0, len(whole)))).hexdigest()
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        assert [member.size for member in archive] == [0, 1, 511, 512, 513, 2000]


def test_a_file_that_changes_while_it_is_packed_ends_the_run(tmp_path: Path):
    source = tmp_path / "a"
    source.write_text("one")
    entries = [parts.entry("a", source)]
    source.write_text("three")
    with pytest.raises(RagError, match="changed while"):
        parts.write_parts(entries, tmp_path, 1_000_000, QUIET)


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = tmp_path / "a"
    source.write_text("one")
    monkeypatch.setattr(parts.shutil, "disk_usage", lambda path: os.terminal_size((0, 0)) and type("U", (), {"free": 100}))
    with pytest.raises(RagError, match="100 are free"):
        parts.write_parts([parts.entry("a", source)], tmp_path, 1_000_000, QUIET)
    assert not list(tmp_path.glob("part-*"))


def test_images_go_through_docker_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A fake docker: it writes what it was asked to save, and notes what it was given to load."""
    fake = tmp_path / "bin" / "docker"
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/sh\ncase "$1" in\nimage) echo sha256:0123456789abcdef linux/{PROCESSOR};;\nsave) echo saved > "$3";;\n'
        f'load) cat "$3" >> {tmp_path}/loaded;;\nesac\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    asked = wanted(program(tmp_path / "program"), None, images=("vllm/vllm-openai:v1",))
    bundle.make(asked, tmp_path / "bundle", tmp_path / "work", "", QUIET)
    command.install(tmp_path / "bundle", tmp_path / "there", sys.executable, QUIET, QUIET)
    assert (tmp_path / "loaded").read_text() == "saved\n"


def test_images_without_docker_are_an_error_here_and_a_note_over_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "new" / "images").mkdir(parents=True)
    (tmp_path / "new" / "images" / "a.tar").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RagError, match="Docker is not here"):
        images.save(["a"], tmp_path, PLATFORM, QUIET)
    assert environment.load_images(tmp_path / "new", QUIET) == [("a.tar", "Docker is not here")]


@pytest.mark.parametrize(
    "script, said, step",
    [
        ("echo sha256:0123456789abcdef linux/riscv64", "is for linux/riscv64", "docker pull --platform"),
        ("echo 'Cannot connect to the Docker daemon at unix:///nowhere' >&2; exit 1", "Cannot connect", "Start Docker's daemon"),
        ("echo 'Error: No such image: vllm:v1' >&2; exit 1", "No such image", "docker pull vllm:v1"),
        ("echo", "said", "Docker's own"),
    ],
)
def test_images_that_cannot_be_had_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str, step: str):
    """A fake docker that says what the real one does."""
    (tmp_path / "docker").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(RagError, match=said) as refused:
        images.save(["vllm:v1"], tmp_path, PLATFORM, QUIET)
    assert step in (refused.value.next_step or "")


def test_no_image_is_saved_while_another_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A fake docker that has one of two."""
    script = f'case "$1 $5" in "image there") echo sha256:0123456789abcdef linux/{PROCESSOR};; "image "*) exit 1;; *) touch {tmp_path}/saved;; esac'
    (tmp_path / "docker").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(RagError, match="gone"):
        images.save(["there", "gone"], tmp_path, PLATFORM, QUIET)
    assert not (tmp_path / "saved").exists()


def test_a_package_without_a_wheel_for_the_target_is_named(tmp_path: Path):
    (tmp_path / "requirements.txt").write_text("never-made-package==1.0\n")
    found = wheels.Sources((str(tmp_path),), (), True)
    with pytest.raises(RagError, match="never-made-package"):
        wheels.collect(tmp_path / "requirements.txt", tmp_path / "work", wheels.Target(HERE, PLATFORM), found, QUIET)


def test_the_tags_of_a_platform_are_its_own_and_all_older_ones():
    tags = wheels.Target("3.11", "manylinux_2_28_x86_64").tags()
    assert tags[0] == "manylinux_2_28_x86_64" and "manylinux2014_x86_64" in tags and tags[-1] == "linux_x86_64"
    assert "manylinux_2_29_x86_64" not in tags
    for python, platform in (("2.7", "manylinux_2_28_x86_64"), ("3.11", "win_amd64"), ("3.11", "manylinux_2_28_x86_64 --evil")):
        with pytest.raises(RagError):
            wheels.Target(python, platform)
