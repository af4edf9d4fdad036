"""A backup file: a zip archive whose manifest names every member, its size and its sha256. Written in one go, checked whole.

    manifest.json                      format, versions, collections with their layouts and counts, data files, members
    collections/0001/00001.jsonl       rows without their dense vectors, one JSON object a line
    collections/0001/00001.dense.npy   the vectors of that field for the same rows, float32 [rows, dimension]
    data/traces.db                     files of the data folder by their names

Knows nothing of Milvus and SQLite. The checksums find damage; they are no signature: who can write the file can write them too.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from rag.errors import RagError

FORMAT, VERSION = "ragdeck-backup", 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024
_MEMBER = re.compile(r"(collections/\d{4}/\d{5}\.(jsonl|\w{1,255}\.npy))|(data/[\w.\- ()\[\]]+)|(data/uploads/[\w.\- ()\[\]]+)")


class ArchiveWriter:
    """Adds members to a file that has its name only once it is whole."""

    def __init__(self, path: Path) -> None:
        self.path, self._part = path, path.with_name(path.name + ".part")
        self._members: dict[str, dict[str, Any]] = {}
        self._zip: Any = None

    def __enter__(self) -> ArchiveWriter:
        if self.path.exists():
            raise RagError(
                f"{self.path} exists already", kind="bad_input", next_step="Name another file; a backup replaces none."
            )
        with mapped(self._part, "written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)  # it holds questions and documents
            self._zip = zipfile.ZipFile(os.fdopen(file, "w+b"), "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        return self

    def add(self, name: str, data: bytes | Path) -> None:
        """Bytes or a file. Raises RagError where the disk is full."""
        digest, size = hashlib.sha256(), 0
        with mapped(self._part, "written"), self._zip.open(name, "w", force_zip64=True) as out:
            source: IO[bytes]
            with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as source:
                while chunk := source.read(CHUNK_BYTES):
                    digest.update(chunk)
                    size += len(chunk)
                    out.write(chunk)
        self._members[name] = {"sha256": digest.hexdigest(), "bytes": size}

    def finish(self, about: Mapping[str, Any]) -> None:
        """Write the manifest and give the file its name."""
        manifest = {"format": FORMAT, "version": VERSION, **about, "members": self._members}
        with mapped(self._part, "written"):
            self._zip.writestr(MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1))
            file = self._zip.fp
            self._zip.close()
            self._zip = None
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(self._part, self.path)

    def __exit__(self, *_: object) -> None:
        if self._zip is not None:  # it broke off
            with suppress(OSError, ValueError):
                file, self._zip.fp = self._zip.fp, None  # no directory onto a full disk
                file.close()
        self._part.unlink(missing_ok=True)


class Archive:
    """A backup file opened to read; `manifest` is known to fit the members. Raises RagError bad_input for what is no backup."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with mapped(path, "read"):
            self._zip = zipfile.ZipFile(path)
        try:
            self.manifest = self._read_manifest()
            self._check_names()
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def _read_manifest(self) -> dict[str, Any]:
        with mapped(self.path, "read"):
            try:
                if self._zip.getinfo(MANIFEST).file_size > MAX_MANIFEST_BYTES:
                    raise self.bad("its manifest is too large")
                manifest = json.loads(self._zip.read(MANIFEST))
            except (KeyError, ValueError, RecursionError):
                raise self.bad("it has no manifest that can be read") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise self.bad("its manifest is of another program")
        if not isinstance(manifest.get("version"), int) or manifest["version"] > VERSION:
            raise RagError(
                f"{self.path} was written by a newer version (format {manifest.get('version')}; this one knows {VERSION})",
                kind="bad_input",
                next_step="Update this program, then restore it.",
            )
        return manifest

    def _check_names(self) -> None:
        names = [info.filename for info in self._zip.infolist() if info.filename != MANIFEST]
        members = self.manifest.get("members")
        if not isinstance(members, dict) or len(names) != len(set(names)) or set(names) != set(members):
            raise self.bad("its members are not those that its manifest names")
        for name in names:
            if not _MEMBER.fullmatch(name) or ".." in name.split("/") or name.split("/")[-1] == ".":
                raise self.bad(f"it has a member with a path of its own: {name!r}")
        for record in members.values():
            if not isinstance(record, dict) or not isinstance(record.get("bytes"), int):
                raise self.bad("its manifest gives no sizes")

    @property
    def members(self) -> Mapping[str, Mapping[str, Any]]:
        members: Mapping[str, Mapping[str, Any]] = self.manifest["members"]
        return members

    def verify(self, cancelled: Callable[[], bool] = lambda: False) -> Iterator[int]:
        """Read every member and compare its checksum; yields the bytes read, member by member. Raises RagError bad_input."""
        for name, record in self.members.items():
            digest, size = hashlib.sha256(), 0
            for chunk in self.chunks(name):
                size += len(chunk)
                if size > record["bytes"] or cancelled():
                    break
                digest.update(chunk)
            if cancelled():
                return
            if size != record["bytes"] or digest.hexdigest() != record.get("sha256"):
                raise self.bad(f"{name} is damaged: its checksum is not the one in the manifest")
            yield size

    def chunks(self, name: str) -> Iterator[bytes]:
        with mapped(self.path, "read"), self._zip.open(name) as source:
            while chunk := source.read(CHUNK_BYTES):
                yield chunk

    def read(self, name: str) -> bytes:
        """A member whole; its size is the manifest's, which `verify` has compared."""
        return b"".join(self.chunks(name))

    def extract(self, name: str, path: Path) -> None:
        with mapped(path, "written"), path.open("xb") as out:
            for chunk in self.chunks(name):
                out.write(chunk)

    def bad(self, what: str) -> RagError:
        return RagError(
            f"{self.path} cannot be restored: {what}",
            kind="bad_input",
            next_step="Copy it once more from where it was made, or take another backup. Nothing was changed.",
        )


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raises RagError where the disk has less than that and a tenth free."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes * 1.1:
        raise RagError(
            f"the disk of {folder} has {free / 2**20:,.0f} MiB free, and {needed_bytes * 1.1 / 2**20:,.0f} MiB are needed",
            kind="internal",
            address=str(folder),
            next_step="Free space, or name another folder. Nothing was changed.",
        )


@contextmanager
def mapped(path: Path, doing: str) -> Iterator[None]:
    """The errors of the system and of zip files as RagErrors that name the file."""
    try:
        yield
    except RagError:
        raise
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError) as error:
        raise RagError(
            f"{path} is damaged or no backup: {error}",
            kind="bad_input",
            address=str(path),
            next_step="Copy it once more from where it was made: it may be cut off. Nothing was changed.",
        ) from error
    except FileNotFoundError as error:
        raise RagError(
            f"there is no {path}", kind="not_found", address=str(path), next_step="Name a file that is there."
        ) from error
    except OSError as error:
        raise RagError(
            f"{path} could not be {doing}: {error.strerror or error}",
            kind="internal",
            address=str(path),
            next_step="Check space, quota and access rights of its folder. No half-written file was left.",
        ) from error
    except Exception as error:
        if type(error).__module__ != "zlib":
            raise
        raise RagError(
            f"{path} is damaged: {error}",
            kind="bad_input",
            address=str(path),
            next_step="Take another backup. Nothing was changed.",
        ) from error
