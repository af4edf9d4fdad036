"""What a look at a watched folder says: real files, and file systems told apart by the device that was noted for a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rag.ingest_ledger import Taken
from rag.ingest_watch import Folder, Seen, state_of
from rag.loaders import find


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "docs"
    path.mkdir()
    return path


def folder(root: Path) -> Folder:
    return Folder(root, find, lambda: 1000.0)


def taken(path: Path) -> Taken:
    seen = state_of(path)
    assert isinstance(seen, Seen)
    return Taken(seen.size, seen.mtime_ns, seen.device, "d" * 32)


def write(path: Path, text: str = "text") -> Path:
    path.write_text(text)
    return path


def test_a_file_is_fresh_with_the_second_look_that_finds_it_the_same(root: Path) -> None:
    watched, path = folder(root), write(root / "a.txt")
    first = watched.look({})
    assert (first.fresh, first.waiting, first.files, first.at_unix) == ((), 1, 1, 1000.0)
    second = watched.look({})
    assert [file.source for file, _ in second.fresh] == ["docs/a.txt"]
    assert second.waiting == 0
    assert watched.look({path: taken(path)}).fresh == ()


def test_a_file_that_is_gone(root: Path) -> None:
    path = write(root / "a.txt")
    noted = {path: taken(path)}
    path.unlink()
    look = folder(root).look(noted)
    assert [gone for gone, _ in look.gone] == [path]
    assert look.problem is None


def test_an_empty_mount_point_removes_nothing(root: Path) -> None:
    path = write(root / "a.txt")
    noted = {path: replace(taken(path), device=taken(path).device + 1)}  # it lay on what was mounted here
    path.unlink()
    look = folder(root).look(noted)
    assert look.gone == ()
    assert look.problem is not None
    assert "file system is away" in look.problem


def test_a_mount_that_came_back_under_another_number_removes_again(root: Path) -> None:
    stays, goes = write(root / "a.txt"), write(root / "b.txt")
    noted = {path: replace(taken(path), device=taken(path).device + 1) for path in (stays, goes)}
    goes.unlink()
    assert [gone for gone, _ in folder(root).look(noted).gone] == [goes]


@pytest.mark.parametrize("what", ["is not there", "is no folder"])
def test_a_folder_that_is_not_one(tmp_path: Path, what: str) -> None:
    root = tmp_path / "docs"
    if what == "is no folder":
        root.write_text("a file")
    look = folder(root).look({root / "a.txt": Taken(1, 1, 1, "d")})
    assert look.gone == ()
    assert look.problem is not None
    assert what in look.problem


def test_a_half_copied_file_after_the_folder_was_away_waits_anew(root: Path) -> None:
    watched = folder(root)
    write(root / "a.txt")
    watched.look({})
    root.rename(root.parent / "away")
    watched.look({})
    (root.parent / "away").rename(root)
    assert watched.look({}).fresh == ()
    assert len(watched.look({}).fresh) == 1


def test_a_file_that_was_touched_is_looked_at_again_and_one_of_another_kind_is_not(root: Path) -> None:
    watched, path = folder(root), write(root / "a.txt")
    write(root / "program.exe")
    noted = {path: replace(taken(path), mtime_ns=1)}
    watched.look(noted)
    assert [file.path for file, _ in watched.look(noted).fresh] == [path]
