"""Paths to files worth reading, and a file to its bytes within a limit. Knows the suffixes, not what is in the files."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rag.loaders.document import LoadError, printable
from rag.loaders.media import IMAGES, NONE, RECORDINGS, MediaReaders, lacking

SUPPORTED = (
    *(".txt", ".md", ".markdown", ".html", ".htm", ".pdf"),
    *(".docx", ".pptx", ".xlsx", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".epub"),
    *IMAGES,
    *RECORDINGS,
)
_HIDDEN = (".", "~$")  # ~$: what Office keeps beside a document that is open


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to read and the name it is shown by."""

    path: Path
    source: str


@dataclass(frozen=True, slots=True)
class FileProblem:
    """A path that was asked for and cannot be read."""

    source: str
    message: str
    next_step: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """How many files of the folders were left out for one reason, and the first of them."""

    reason: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Found:
    """What `find` made of the paths: files to read, paths that are errors, and what was left out without being one."""

    files: tuple[SourceFile, ...]
    refused: tuple[FileProblem, ...] = ()
    skipped: tuple[Skipped, ...] = ()


# 1) finding files


def find(paths: Sequence[Path], readers: MediaReaders | None = None) -> Found:
    """Walk the paths. Folders give their supported files, sorted, without hidden ones; each file comes once.

    Pictures and recordings that `readers` cannot read are skipped in folders, and refused where they were named.
    """
    search = _Search(readers or NONE)
    for path in paths:
        search.add(path.expanduser())
    return search.found()


class _Search:
    def __init__(self, readers: MediaReaders) -> None:
        self._readers = readers
        self._files: list[SourceFile] = []
        self._refused: list[FileProblem] = []
        self._skipped: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._seen: set[Path] = set()
        self._folders: set[Path] = set()  # walked already, under the present root

    def found(self) -> Found:
        skipped = tuple(Skipped(reason, count, self._examples[reason]) for reason, count in sorted(self._skipped.items()))
        return Found(tuple(self._files), tuple(self._refused), skipped)

    def add(self, path: Path) -> None:
        name = printable(path.name or str(path))
        try:
            mode = path.stat().st_mode
        except OSError as problem:
            self._refuse(path, problem)
            return
        if stat.S_ISDIR(mode):
            self._add_folder(path)
        elif path.suffix.lower() not in SUPPORTED:
            self._refused.append(FileProblem(name, f"{name}: {unsupported(path)}", f"Give one of {' '.join(SUPPORTED)}."))
        elif unread := lacking(path.suffix.lower(), self._readers):
            self._refused.append(FileProblem(name, f"{name}: {unread[0]}", unread[1]))
        else:
            self._add_file(path, name)

    def _add_file(self, path: Path, source: str) -> None:
        real = path.resolve()
        if real not in self._seen:
            self._seen.add(real)
            self._files.append(SourceFile(path, source))

    def _add_folder(self, root: Path) -> None:
        """Real files and folders first, links after them: a file that is reachable both ways keeps its real name."""
        label = root.resolve().name if root.name in ("", "..") else root.name
        before, entries = len(self._files), 0
        self._folders.clear()
        todo, links = [root], list[Path]()
        while todo or links:
            folder = todo.pop() if todo else links.pop(0)
            if folder.is_dir():
                for entry in self._entries(folder, links):
                    entries += 1
                    if entry.is_dir():
                        todo.append(entry)
                    else:
                        self._consider(entry, _source(label, root, entry))
            else:
                entries += 1
                self._consider(folder, _source(label, root, folder))
        self._files[before:] = sorted(self._files[before:], key=lambda file: file.source)
        if entries == 0:
            self._skip("an empty folder", printable(str(root)))

    def _entries(self, folder: Path, links: list[Path]) -> list[Path]:
        """The folder's real, visible entries; its links go to `links`. A folder that was already walked has none."""
        try:
            real = folder.resolve()
            if real in self._folders:
                return []
            entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith(_HIDDEN))
        except (OSError, RuntimeError) as problem:  # RuntimeError: resolve() on a loop of links
            self._refuse(folder, problem)
            return []
        self._folders.add(real)
        links.extend(entry for entry in entries if entry.is_symlink())
        return [entry for entry in entries if not entry.is_symlink()]

    def _consider(self, path: Path, source: str) -> None:
        if path.suffix.lower() not in SUPPORTED:
            self._skip(unsupported(path), source)
        elif unread := lacking(path.suffix.lower(), self._readers):
            self._skip(unread[0], source)
        elif not path.is_file():
            self._skip("a link that leads nowhere" if path.is_symlink() else "not a regular file", source)
        else:
            self._add_file(path, source)

    def _refuse(self, path: Path, problem: Exception) -> None:
        name = printable(str(path))
        self._refused.append(FileProblem(name, f"{name}: {_os_cause(problem)}", _os_cure(problem)))

    def _skip(self, reason: str, source: str) -> None:
        self._skipped[reason] += 1
        self._examples.setdefault(reason, source)


def _source(label: str, root: Path, path: Path) -> str:
    relative = path.relative_to(root).as_posix()
    return printable(f"{label}/{relative}" if label else relative)


def unsupported(path: Path) -> str:
    kind = printable(path.suffix.lower()) + " files" if path.suffix else "files without a suffix"
    return f"{kind} are not supported"


def _os_cause(problem: Exception) -> str:
    if isinstance(problem, FileNotFoundError):
        return "does not exist"
    if isinstance(problem, PermissionError):
        return "may not be read by this user"
    return f"cannot be read ({getattr(problem, 'strerror', None) or problem})"


def _os_cure(problem: Exception) -> str:
    if isinstance(problem, FileNotFoundError):
        return "Check the path; it is read on the machine where this runs."
    if isinstance(problem, PermissionError):
        return "Give the user who runs this the right to read it."
    return "Copy it elsewhere and try again."


# 2) reading one


def read(path: Path, max_bytes: int) -> bytes:
    """The bytes of a regular file of 1 to `max_bytes` bytes. Raises LoadError."""
    name = printable(path.name)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or device would block or never end
            raise LoadError(name, "is not a regular file", "Give a file, or the folder that holds the files.")
        with path.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            data = handle.read(max_bytes + 1) if size <= max_bytes else b""
            size = max(size, len(data))  # it can grow meanwhile
    except OSError as problem:
        raise LoadError(name, _os_cause(problem), _os_cure(problem)) from problem
    if size > max_bytes:
        raise LoadError(
            name, f"too large ({size:,} bytes; the limit is {max_bytes:,})", "Split the file, or raise ingest.max_file_bytes."
        )
    if not data:
        raise LoadError(name, "is empty", "Remove it or give it a text.")
    return data
