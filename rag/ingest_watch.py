"""Watched folders: what is new, changed or gone since the last look. By polling, which also works on network mounts.

Knows the file system and what was taken in before; ingests and removes nothing itself. A file is taken in once two looks in a row
found it the same, so that a half-copied one waits. A file counts as gone only where its folder can be seen and lies on the file
system that it lay on: a mount that is away takes no document along.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from rag.errors import RagError
from rag.ingest_ledger import Taken
from rag.ingest_record import Record
from rag.loaders import Found, SourceFile, printable

LONGEST_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What tells one state of a file from another."""

    size: int
    mtime_ns: int
    device: int

    def is_taken(self, taken: Taken | None) -> bool:
        return taken is not None and (taken.size, taken.mtime_ns) == (self.size, self.mtime_ns)


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a folder. `fresh` are files to take in, as they were seen; `gone` was taken in and is no more.

    `waiting` counts files that still change; `problem` says why nothing can be said of the folder or of parts of it. `files` is
    None where the folder cannot be seen.
    """

    root: Path
    at_unix: float
    files: int | None = None
    fresh: tuple[tuple[SourceFile, Seen], ...] = ()
    gone: tuple[tuple[Path, Taken], ...] = ()
    waiting: int = 0
    problem: str | None = None


class Folder:
    """One watched folder. `look` is for one thread."""

    def __init__(self, root: Path, find: Callable[[Sequence[Path]], Found], clock: Callable[[], float]) -> None:
        """`clock` gives Unix seconds."""
        self.root = root
        self._find, self._clock = find, clock
        self._before: Mapping[Path, Seen] = {}

    def look(self, taken: Mapping[Path, Taken]) -> Look:
        """Compare with the look before and with what was taken in (paths as they were found)."""
        at = self._clock()
        if not os.path.isdir(self.root):
            self._before = {}
            what = "is no folder" if os.path.lexists(self.root) else "is not there"
            return Look(
                self.root, at, problem=f"{printable(str(self.root))} {what}: nothing is removed, and it is looked for again."
            )
        found = self._find([self.root])
        seen = {file.path: state for file in found.files if (state := state_of(file.path)) is not None}
        changed = [file for file in found.files if file.path in seen and not seen[file.path].is_taken(taken.get(file.path))]
        fresh = [(file, seen[file.path]) for file in changed if self._before.get(file.path) == seen[file.path]]
        self._before = seen
        missing = {path: item for path, item in taken.items() if path not in seen}
        gone, away = self._gone(missing, {state.device for path, state in seen.items() if path in taken})
        problems = [problem.message for problem in found.refused[:1]]
        if away:
            problems.append(f"{away:,} files cannot be seen: their file system is away, and they stay in the collection.")
        return Look(
            self.root,
            at,
            files=len(seen),
            fresh=tuple(fresh),
            gone=gone,
            waiting=len(changed) - len(fresh),
            problem=" ".join(problems) or None,
        )

    def _gone(self, missing: Mapping[Path, Taken], present: set[int]) -> tuple[tuple[tuple[Path, Taken], ...], int]:
        """Which of the missing files are truly gone, and how many only cannot be seen. `present`: devices of those still there,
        which tell a file system that came back under another number."""
        gone, away = [], 0
        for path, item in missing.items():
            device = _device_without(path)
            if device is not None and (device == item.device or device in present):
                gone.append((path, item))
            elif not os.path.lexists(path):
                away += 1
        return tuple(gone), away


@dataclass(frozen=True, slots=True)
class WatchState:
    """A watched folder for the page. `at_unix` None: not looked at yet. `job_id` is the last ingestion it caused."""

    root: Path
    at_unix: float | None = None
    files: int | None = None
    waiting: int = 0
    removed: int = 0
    job_id: str | None = None
    problem: str | None = None
    next_look_seconds: float | None = None


class Library(Protocol):
    """What watching needs of whoever ingests."""

    def collection(self) -> str:
        """The collection in use. Raises RagError."""
        ...

    def take_in(self, root: Path, files: Sequence[Path]) -> tuple[str, bool] | None:
        """Ingest and wait: the job's id and whether it came to its end; None while one of that folder waits or is paused."""
        ...

    def remove(self, document_id: str) -> int: ...


class Watcher:
    """Looks at all folders, one after the other. `look` may be called by one thread at a time; `states` by any."""

    def __init__(
        self,
        folders: Sequence[Folder],
        library: Library,
        record: Record,
        seconds: float,
        longest_seconds: float = LONGEST_SECONDS,
    ) -> None:
        """`seconds` lie between two looks, up to `longest_seconds` after ingestions that failed as a whole."""
        self._folders, self._library, self._record = folders, library, record
        self._seconds, self._longest = seconds, longest_seconds
        self._wait = seconds
        self.states: tuple[WatchState, ...] = tuple(WatchState(folder.root) for folder in folders)

    def run(self, ended: Callable[[], bool], wait: threading.Event) -> None:
        """Look until `ended`; `wait` is waited on between looks, and set when it is to end."""
        while not ended():
            self.look()
            if wait.wait(self._wait):
                return

    def look(self) -> bool:
        """One look at each folder; False when an ingestion failed as a whole and the next look should come later."""
        states, well = [], True
        for folder, before in zip(self._folders, self.states, strict=True):
            try:
                state, good = self._look(folder, before)
            except RagError as problem:  # the store or the model is away: nothing is taken in, nothing lost
                state, good = replace(before, problem=f"{problem.message} {problem.next_step}".strip()), False
            states.append(state)
            well = well and good
        self._wait = self._seconds if well else min(2 * self._wait, max(self._longest, self._seconds))
        self.states = tuple(replace(state, next_look_seconds=self._wait) for state in states)
        return well

    def _look(self, folder: Folder, before: WatchState) -> tuple[WatchState, bool]:
        collection = self._library.collection()
        look = folder.look(self._record.taken(collection, folder.root))
        for path, item in look.gone:
            if item.original is None:
                self._library.remove(item.document_id)
            self._record.untake(collection, folder.root, path)
        taken = self._library.take_in(folder.root, [file.path for file, _ in look.fresh]) if look.fresh else None
        state = WatchState(
            folder.root,
            look.at_unix,
            look.files,
            look.waiting,
            before.removed + len(look.gone),
            taken[0] if taken else before.job_id,
            look.problem,
        )
        return state, taken is None or taken[1]


def state_of(path: Path) -> Seen | None:
    """The file's state now, None when it cannot be had."""
    try:
        status = path.stat()
    except OSError:  # gone between listing and looking, or not to be had: the next look tells
        return None
    return Seen(status.st_size, status.st_mtime_ns, status.st_dev)


def _device_without(path: Path) -> int | None:
    """The device of the nearest folder above a file that does not exist; None where it does, or that cannot be said."""
    try:
        os.lstat(path)
        return None
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError:
        return None
    for folder in path.parents:
        try:
            return os.stat(folder).st_dev
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return None
    return None
