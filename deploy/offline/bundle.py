"""Makes a bundle: everything that RAG Deck needs on a machine without internet, in parts with checksums.

Beside the parts lie `manifest.json`, `sbom.cdx.json`, `SHA256SUMS` and `install.py` with its package: what the other side
reads before it unpacks. What is downloaded or saved first lies in a work folder, which makes another run short.
Knows nothing of settings: what they ask for comes in as `Wanted`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.offline import completeness, images, parts, sbom, sources, wheels
from deploy.offline.installer.verifying import FORMAT
from deploy.offline.parts import Entry
from rag.errors import RagError

INSTALLER = Path(__file__).parent / "installer"
FIRST_BYTES = 1_000_000_000
ORDER = ("models", "images", "wheels", "config", "app")
ENTRY_POINT = '''#!/usr/bin/env python3
"""Installs the bundle that this file lies in: `python3 install.py --to DIR --start`. Needs Python 3.11 or newer, no more."""

import sys

if sys.version_info < (3, 11):  # before anything that an older one cannot even read
    sys.stderr.write("error: install.py needs Python 3.11 or newer, and %s is %d.%d\\n"
                     % ((sys.executable,) + sys.version_info[:2]))
    sys.stderr.write("       Run it by a newer one, such as: python3.11 install.py --to DIR\\n")
    sys.exit(1)

from pathlib import Path

from ragdeck_installer.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).resolve().parent))
'''


@dataclass(frozen=True, slots=True)
class Model:
    """A model to pack; `setting` is the environment variable that must name its place afterwards, None for none."""

    name: str
    setting: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What goes in. `config` is (file name, text) with no secret in it; `secrets` are the settings to be set over there."""

    root: Path
    version: str
    target: wheels.Target
    requirements: str | None = "requirements.txt"
    sources: wheels.Sources = field(default_factory=wheels.Sources)
    models: tuple[Model, ...] = ()
    images: tuple[str, ...] = ()
    config: tuple[tuple[str, str], ...] = ()
    secrets: tuple[str, ...] = ()
    part_bytes: int = 1_000_000_000
    cache: Path = field(default_factory=completeness.hub_cache)


@dataclass(frozen=True, slots=True)
class Made:
    """A bundle that is there. `digest` is the checksum of SHA256SUMS: told by another way, it proves the whole bundle."""

    out: Path
    id: str
    parts: int
    bytes: int
    files: int
    digest: str
    contents: dict[str, Any]


def make(wanted: Wanted, out: Path, work: Path, made_at: str, say: Callable[[str], None]) -> Made:
    """Writes the bundle to `out`; a run that was interrupted goes on where it was. Raises RagError."""
    if wanted.part_bytes < 1_000_000:
        raise RagError("a part has at least 1,000,000 bytes", kind="bad_input")
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    _need_room(work)
    places = _places(wanted)
    found = (
        wheels.collect(wanted.root / wanted.requirements, work, wanted.target, wanted.sources, say) if wanted.requirements else []
    )
    saved = images.save(wanted.images, work, wanted.target.platform, say)
    say("reading every file for its checksum")
    entries, model_settings = _entries(wanted, places, found, saved, work)
    contents = _contents(wanted, [place for _, place in places], found, model_settings)
    key = {"python": wanted.target.python, "platform": wanted.target.platform}
    plan = parts.plan_id(entries, part_bytes=wanted.part_bytes, version=wanted.version, contents=contents, **key)
    made_at = _made_before(out, plan) or made_at
    (out / "SHA256SUMS").unlink(missing_ok=True)
    written = parts.write_parts(entries, out, wanted.part_bytes, say)
    manifest: dict[str, Any] = {"format": FORMAT, "id": plan, "version": wanted.version, "made_at": made_at, **key}
    manifest |= {"contents": contents, "total_bytes": sum(each.bytes for each in entries), "part_bytes": wanted.part_bytes}
    manifest |= {"parts": parts.listed(written), "files": [each.listed() for each in entries]}
    packages = [sbom.read_wheel(each) for each in found]
    bill = sbom.bill(wanted.version, made_at, plan, packages, _billed(places, entries), _billed_images(saved, entries, wanted))
    digest = _write_beside(out, manifest, bill)
    return Made(out, plan, len(written), sum(part.bytes for part in written), len(entries), digest, contents)


def _made_before(out: Path, plan: str) -> str | None:
    """When the same bundle was made there before: made again it keeps its checksum, which somebody may have told already."""
    try:
        before = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        return str(before["made_at"]) if before["id"] == plan else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _billed(places: Sequence[tuple[Model, completeness.Place]], entries: Sequence[Entry]) -> list[sbom.Model]:
    """The models with the checksum of each of their files."""
    digests, found = {each.source: each.sha256 for each in entries}, dict[str, sbom.Model]()
    for _, place in places:
        assert place.folder is not None
        files = tuple((name, digests[path]) for name, path in _whole(place.folder))
        found[place.name] = sbom.Model(place.name, place.revision, completeness.licence(place.folder), files)
    return list(found.values())


def _billed_images(saved: Sequence[Path], entries: Sequence[Entry], wanted: Wanted) -> list[tuple[str, str]]:
    """(name, sha256 of its archive)."""
    digests = {each.source: each.sha256 for each in entries}
    return [(name, digests[path]) for name, path in zip(wanted.images, saved, strict=True)]


def _contents(
    wanted: Wanted, places: Sequence[completeness.Place], found: Sequence[Path], model_settings: dict[str, str]
) -> dict[str, Any]:
    packages = {"requirements": wanted.requirements, "count": len(found), "installed_bytes": wheels.installed_bytes(found)}
    return {
        "wheels": packages if wanted.requirements else None,
        "models": [{"name": place.name, "revision": place.revision} for place in places],
        "model_settings": model_settings,
        "images": list(wanted.images),
        "secrets": list(wanted.secrets),
    }


def _need_room(work: Path) -> None:
    free = shutil.disk_usage(work).free
    if free < FIRST_BYTES:
        raise RagError(
            f"{free:,} bytes are free at {work}: too few to begin with",
            kind="bad_input",
            next_step="Make room for at least 1 GB, or choose another place with --work.",
        )


def _places(wanted: Wanted) -> list[tuple[Model, completeness.Place]]:
    """Where the models lie. Raises RagError that lists everything that is not whole: over there it could not be repaired."""
    places: list[tuple[Model, completeness.Place]] = []
    for model in dict.fromkeys(wanted.models):
        place = completeness.find(model.name, wanted.cache)
        if model.setting or place.folder is None or place.folder not in [other.folder for _, other in places]:
            places.append((model, place))
    bad = [each for _, place in places for each in completeness.problems(place) if each.code != "trust_remote_code"]
    if bad:
        lines = "\n".join(f"  {each.what} ({each.where})" for each in bad)
        raise RagError(f"the models are not whole:\n{lines}", kind="not_found", next_step=bad[0].cure)
    return places


def _entries(
    wanted: Wanted,
    places: Sequence[tuple[Model, completeness.Place]],
    found: Sequence[Path],
    saved: Sequence[Path],
    work: Path,
) -> tuple[list[Entry], dict[str, str]]:
    files = _snapshot(wanted.root, work / "program")
    files |= {f"wheels/{path.name}": path for path in found} | {f"images/{path.name}": path for path in saved}
    model_settings: dict[str, str] = {}
    taken: set[str] = set()
    for model, place in places:
        folder, own = _model_files(place, taken)
        taken.add(folder)
        files |= own
        if model.setting and place.repository is None:
            model_settings[model.setting] = folder
    for name, text in wanted.config:
        path = work / "config" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
        files[f"config/{name}"] = path
    return [parts.entry(name, files[name]) for name in sorted(files, key=_stable_first)], model_settings


def _stable_first(name: str) -> tuple[int, str]:
    """Models, images, wheels, then what changes often: the next version's bundle shares its first parts with this one."""
    return ORDER.index(name.partition("/")[0]), name


def _snapshot(root: Path, folder: Path) -> dict[str, Path]:
    """The program's files as they are now: somebody may be working on them while gigabytes of parts are written."""
    shutil.rmtree(folder, ignore_errors=True)
    files = {}
    for name, source in sources.program_files(root):
        files[name] = folder / name
        files[name].parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, files[name])
    return files


def _model_files(place: completeness.Place, taken: set[str]) -> tuple[str, dict[str, Path]]:
    """(the model's place in the bundle, its files); hub models in the cache's own layout, links replaced by files."""
    assert place.folder is not None
    if place.repository is not None:
        base = f"models/hub/{place.repository.name}"
        folder = f"{base}/snapshots/{place.folder.name}"
        files = {f"{base}/refs/main": place.repository / "refs" / "main"}
    else:
        folder = next(name for name in _names(place.folder.name) if name not in taken)
        files = {}
    return folder, files | {f"{folder}/{name}": path for name, path in _whole(place.folder)}


def _names(name: str) -> Iterator[str]:
    yield f"models/folders/{name}"
    for number in range(2, 100):
        yield f"models/folders/{name}-{number}"


def _whole(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            yield path.relative_to(folder).as_posix(), path.resolve()


def _write_beside(out: Path, manifest: dict[str, Any], bill: dict[str, Any]) -> str:
    """The files beside the parts; SHA256SUMS last, so that a bundle without it is an unfinished one."""
    texts = {
        "manifest.json": json.dumps(manifest, indent=1),
        "sbom.cdx.json": json.dumps(bill, indent=1),
        "install.py": ENTRY_POINT,
    }
    texts |= {f"ragdeck_installer/{path.name}": path.read_text(encoding="utf-8") for path in sorted(INSTALLER.glob("*.py"))}
    (out / "ragdeck_installer").mkdir(exist_ok=True)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    sums = {part["name"]: part["sha256"] for part in manifest["parts"]}
    sums |= {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    (out / "SHA256SUMS").write_text(lines, encoding="utf-8")
    return hashlib.sha256(lines.encode()).hexdigest()
