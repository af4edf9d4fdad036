"""Files to fixed-size parts of one tar archive, each of which can be written alone: what makes a bundle resumable.

The archive is a function of the files (order, names, sizes, contents, whether executable), so a part's bytes are known by its
number; `cat part-* | tar x` unpacks it without this program. Knows nothing of what the files are.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

from deploy.offline.installer.verifying import CHUNK_BYTES, sha256
from rag.errors import RagError

BLOCK_BYTES = 512
STATE = "parts.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the bundle: where it goes, where it is read from, and what it was when it was hashed."""

    path: str
    source: Path
    bytes: int
    sha256: str
    mode: int
    changed_ns: int

    def listed(self) -> dict[str, str | int]:
        return {"path": self.path, "bytes": self.bytes, "sha256": self.sha256, "mode": self.mode}


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    bytes: int
    sha256: str


def entry(path: str, source: Path) -> Entry:
    """Reads the file once for its checksum. Raises RagError where it cannot be read."""
    try:
        found = source.stat()
        return Entry(path, source, found.st_size, sha256(source), 0o755 if found.st_mode & 0o100 else 0o644, found.st_mtime_ns)
    except OSError as problem:
        raise RagError(f"{source} cannot be read: {problem.strerror}", kind="not_found") from problem


def plan_id(entries: Sequence[Entry], **more: object) -> str:
    """16 hex digits over what the bundle holds: the same inputs give the same bundle."""
    content = json.dumps([[each.listed() for each in entries], more], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class Archive:
    """The tar archive of the entries as an address space; nothing of it is stored."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._pieces: list[bytes | Entry] = []
        for each in entries:
            self._pieces += [_header(each), each, bytes(-each.bytes % BLOCK_BYTES)]
        self._pieces.append(bytes(2 * BLOCK_BYTES))
        sizes = [piece.bytes if isinstance(piece, Entry) else len(piece) for piece in self._pieces]
        self._starts = list(accumulate(sizes, initial=0))
        self.bytes = self._starts[-1]

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` to before `end`. Raises RagError for a file that changed since it was hashed."""
        number = bisect.bisect_right(self._starts, start) - 1
        while start < end:
            piece, offset = self._pieces[number], start - self._starts[number]
            count = min(end, self._starts[number + 1]) - start
            if isinstance(piece, Entry):
                yield from _file(piece, offset, count)
            else:
                yield piece[offset : offset + count]
            start += count
            number += 1


def _header(each: Entry) -> bytes:
    info = tarfile.TarInfo(each.path)
    info.size, info.mode, info.mtime = each.bytes, each.mode, 0
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _file(each: Entry, offset: int, count: int) -> Iterator[bytes]:
    changed = RagError(
        f"{each.source} changed while the bundle was made", kind="bad_input", next_step="Run the command again: it goes on."
    )
    with each.source.open("rb") as file:
        found = os.fstat(file.fileno())
        if (found.st_size, found.st_mtime_ns) != (each.bytes, each.changed_ns):
            raise changed
        file.seek(offset)
        while count:
            chunk = file.read(min(count, CHUNK_BYTES))
            if not chunk:
                raise changed
            count -= len(chunk)
            yield chunk


def write_parts(entries: Sequence[Entry], out: Path, part_bytes: int, plan: str, say: Callable[[str], None]) -> list[Part]:
    """Writes `part-00001.tar` … into `out`; parts that are there and right stay. Raises RagError (no room, a file changed)."""
    archive = Archive(entries)
    spans = [(start, min(start + part_bytes, archive.bytes)) for start in range(0, archive.bytes, part_bytes)]
    names = [f"part-{number:05d}.tar" for number in range(1, len(spans) + 1)]
    done = _right(out, plan, names, spans)
    _need_room(out, sum(end - start for name, (start, end) in zip(names, spans, strict=True) if name not in done))
    for stale in {path.name for path in out.glob("part-*")} - set(names):
        (out / stale).unlink()
    for number, (name, (start, end)) in enumerate(zip(names, spans, strict=True), 1):
        if name not in done:
            done[name] = _write(archive, start, end, out / name)
            _save(out / STATE, plan, done)
        say(f"part {number} of {len(names)}")
    return [Part(name, end - start, done[name]) for name, (start, end) in zip(names, spans, strict=True)]


def _right(out: Path, plan: str, names: Sequence[str], spans: Sequence[tuple[int, int]]) -> dict[str, str]:
    """Checksums of the parts of this plan that are there, whole and as they were written."""
    try:
        state = json.loads((out / STATE).read_text(encoding="utf-8"))
        known = dict(state["parts"]) if state["plan"] == plan else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    found = {}
    for name, (start, end) in zip(names, spans, strict=True):
        path = out / name
        if name in known and path.is_file() and path.stat().st_size == end - start and sha256(path) == known[name]:
            found[name] = str(known[name])
    return found


def _write(archive: Archive, start: int, end: int, path: Path) -> str:
    digest, unfinished = hashlib.sha256(), path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        for chunk in archive.read(start, end):
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    return digest.hexdigest()


def _save(path: Path, plan: str, parts: Mapping[str, str]) -> None:
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps({"plan": plan, "parts": parts}), encoding="utf-8")
    unfinished.replace(path)


def _need_room(out: Path, wanted_bytes: int) -> None:
    free = shutil.disk_usage(out).free
    if free < wanted_bytes:
        raise RagError(
            f"{wanted_bytes:,} bytes are to be written to {out}, and {free:,} are free",
            kind="bad_input",
            next_step="Make room there, or choose another place with --out.",
        )


def listed(parts: Sequence[Part]) -> list[dict[str, str | int]]:
    return [asdict(part) for part in parts]
