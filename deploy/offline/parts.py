"""Files to fixed-size parts of one tar archive, each of which can be written alone: what makes a bundle resumable.

The archive is a function of the files (order, names, sizes, contents, whether executable), so a part's bytes are known by its
number, and a part whose pieces of files are the same as before stays; `cat part-* | tar x` unpacks it without this program.
Knows nothing of what the files are.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import os
import re
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

    def key(self, start: int, end: int) -> str:
        """What these bytes are made of, without reading them: the same key, the same bytes."""
        digest = hashlib.sha256()
        for piece, offset, count in self._pieces_of(start, end):
            own = piece.sha256.encode() if isinstance(piece, Entry) else piece
            digest.update(b"%d %d %d " % (len(own), offset, count) + own)
        return digest.hexdigest()

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` to before `end`. Raises RagError for a file that changed since it was hashed."""
        for piece, offset, count in self._pieces_of(start, end):
            if isinstance(piece, Entry):
                yield from _file(piece, offset, count)
            else:
                yield piece[offset : offset + count]

    def _pieces_of(self, start: int, end: int) -> Iterator[tuple[bytes | Entry, int, int]]:
        """(piece, where in it, how many bytes of it)."""
        number = bisect.bisect_right(self._starts, start) - 1
        while start < end:
            count = min(end, self._starts[number + 1]) - start
            yield self._pieces[number], start - self._starts[number], count
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


def write_parts(entries: Sequence[Entry], out: Path, part_bytes: int, say: Callable[[str], None]) -> list[Part]:
    """Writes `part-00001.tar` … into `out`; parts that are there and right stay. Raises RagError (no room, a file changed)."""
    archive = Archive(entries)
    spans = [(start, min(start + part_bytes, archive.bytes)) for start in range(0, archive.bytes, part_bytes)]
    names = [f"part-{number:05d}.tar" for number in range(1, len(spans) + 1)]
    keys = {name: archive.key(*span) for name, span in zip(names, spans, strict=True)}
    done = _right(out, keys, dict(zip(names, spans, strict=True)))
    _need_room(out, sum(end - start for name, (start, end) in zip(names, spans, strict=True) if name not in done))
    ours = {path.name for path in out.glob("part-*") if re.fullmatch(r"part-\d{5}\.(tar|unfinished)", path.name)}
    for stale in ours - set(names):
        (out / stale).unlink()
    for number, (name, (start, end)) in enumerate(zip(names, spans, strict=True), 1):
        if name not in done:
            done[name] = _write(archive, start, end, out / name)
            _save(out / STATE, keys, done)
        say(f"part {number} of {len(names)}")
    return [Part(name, end - start, done[name]) for name, (start, end) in zip(names, spans, strict=True)]


def _right(out: Path, keys: Mapping[str, str], spans: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """Checksums of the parts that are there, whole, as they were written, and made of the same pieces."""
    try:
        known = {str(name): (str(key), str(digest)) for name, (key, digest) in json.loads((out / STATE).read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
    found = {}
    for name, (start, end) in spans.items():
        path, (key, digest) = out / name, known.get(name, ("", ""))
        if key == keys[name] and path.is_file() and path.stat().st_size == end - start and sha256(path) == digest:
            found[name] = digest
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


def _save(path: Path, keys: Mapping[str, str], parts: Mapping[str, str]) -> None:
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps({name: (keys[name], digest) for name, digest in parts.items()}), encoding="utf-8")
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
