"""One installation takes the place of another, and the way back.

Three folders beside each other: `DIR`, `DIR.new` that is being filled, `DIR.previous` that was there before. Each is marked as
ours by a file in it, or left alone. Data exist once: they move along by a rename, between the two renames of the folders,
while there is no `DIR` that could be started; a run that ends there is finished by the next one.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from .errors import InstallError

RECORD, MARK = "installed.json", "unfinished.json"
SETTINGS = (".env", "dashboard.toml")


class Places(NamedTuple):
    to: Path
    new: Path
    previous: Path


def places(to: Path) -> Places:
    return Places(to, to.with_name(to.name + ".new"), to.with_name(to.name + ".previous"))


@contextmanager
def alone(to: Path) -> Iterator[None]:
    """Keeps a second installer away from the folder beside which both would write. Raises InstallError."""
    to.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(to.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as problem:
        os.close(handle)
        raise InstallError(f"another install.py is at work in {to.parent}", "Wait until it has ended.") from problem
    except OSError:
        pass  # a network file system without locks
    try:
        yield
    finally:
        os.close(handle)


def installed_id(folder: Path) -> str | None:
    """Which bundle lies there, whole; None where none does."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(found["id"]) if isinstance(found, dict) and "id" in found else None


def begin(new: Path, record: Mapping[str, object]) -> None:
    remove(new)
    new.mkdir(parents=True)
    (new / MARK).write_text(json.dumps(record), encoding="utf-8")


def finish(new: Path) -> None:
    """From here on it counts as an installation."""
    os.replace(new / MARK, new / RECORD)


def remove(folder: Path) -> None:
    """Deletes a folder of ours, its mark last: what is left by a run that ends here is still known. Raises InstallError."""
    if not folder.exists():
        return
    marked = (folder / MARK).exists() or installed_id(folder) is not None
    if not folder.is_dir() or (any(folder.iterdir()) and not marked):
        raise InstallError(
            f"{folder} holds something else", "The installer needs that name: move it away, or choose another --to."
        )
    if (folder / RECORD).exists():
        os.replace(folder / RECORD, folder / MARK)
    for child in folder.iterdir():
        if child.name != MARK:
            _drop(child)
    shutil.rmtree(folder)


def _drop(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def recover(at: Places) -> list[str]:
    """After a run that ended between the renames: forwards where the new one is whole, else back. Returns notes."""
    if at.to.exists() or installed_id(at.previous) is None:
        return []
    if installed_id(at.new) is None:
        at.previous.rename(at.to)
        return []
    notes = _carry(at.previous, at.new, at.to)
    at.new.rename(at.to)
    return notes


def swap(at: Places) -> list[str]:
    """`DIR.new` takes the place of `DIR`, which stays as `DIR.previous`. Returns notes."""
    if installed_id(at.to) is None:
        if at.to.exists():
            at.to.rmdir()
        at.new.rename(at.to)
        return []
    _room_for_previous(at.previous)
    at.to.rename(at.previous)
    return [*recover(at), f"the installation before this one lies in {at.previous}; --back returns to it"]


def back(at: Places) -> str:
    """`DIR.previous` and `DIR` change places; settings are those it had, data those of now. Returns its bundle's id."""
    found = installed_id(at.previous)
    if found is None or installed_id(at.to) is None:
        raise InstallError(f"{at.previous} holds no installation to go back to", "Install the bundle of that version again.")
    remove(at.new)
    at.previous.rename(at.new)
    at.to.rename(at.previous)
    _move_data(at.previous, at.new)
    at.new.rename(at.to)
    return found


def _room_for_previous(previous: Path) -> None:
    if (previous / "data").exists():
        raise InstallError(
            f"{previous / 'data'} is in the way", "Move these data to a safe place first: they belong to no version."
        )
    remove(previous)


def _move_data(old: Path, new: Path) -> None:
    if (old / "data").exists() or (old / "data").is_symlink():
        _drop(new / "data")
        os.replace(old / "data", new / "data")


def _carry(old: Path, new: Path, to: Path) -> list[str]:
    """Data and settings of the old one to the new one; doing it twice changes nothing. Returns notes."""
    _move_data(old, new)
    notes: list[str] = []
    for name in SETTINGS:
        source, target, link = _settings_file(old, name), new / name, new / "app" / name
        if source.is_file():
            own = target.read_text(encoding="utf-8") if target.is_file() else ""
            shutil.copy2(source, target)
            if name == ".env":
                text, notes = with_new_models(source.read_text(encoding="utf-8"), own, to)
                target.write_text(text, encoding="utf-8")
            if not link.is_symlink():
                link.symlink_to(Path("..") / name)
    return notes


def _settings_file(folder: Path, name: str) -> Path:
    """Where somebody put a file in place of the link beside the program, that one is what was in force."""
    beside = folder / "app" / name
    return beside if beside.is_file() and not beside.is_symlink() else folder / name


def with_new_models(kept: str, own: str, to: Path) -> tuple[str, list[str]]:
    """The kept `.env` with the places of the new bundle's models, and notes on models that did not come along.

    Values below `DIR/models/folders` are the installer's: a folder of the bundle before is no more there.
    """
    below = str(to / "models" / "folders") + os.sep

    def ours(line: str) -> bool:
        return not line.lstrip().startswith("#") and line.partition("=")[2].strip().strip("'\"").startswith(below)

    lines = [line for line in kept.splitlines() if not ours(line)]
    by_user = {line.partition("=")[0].strip() for line in lines}
    new = {line.partition("=")[0]: line for line in own.splitlines() if ours(line)}
    gone = {line.partition("=")[0].strip() for line in kept.splitlines() if ours(line)} - new.keys()
    lines += [line for name, line in new.items() if name not in by_user]
    return "\n".join(lines) + "\n", [
        f"{name} named a model that this bundle does not hold: set it again" for name in sorted(gone)
    ]
