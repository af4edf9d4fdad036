"""The way back (R2): switch the reranker off, or to an earlier address, in one command, and back again with --undo.

Exit codes: 0 done, 1 failed, 2 wrong usage. Writes edited.toml in the data folder that RAGDECK_DATA names; dashboard and API have
one each, and take it up at their next start.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _settings_sources import masked_text
from rag.errors import RagError
from settings import Settings, SettingsError, edited, load, save_edited

NAME = "rollback-reranker.json"
KEYS = ("reranker.enabled", "reranker.api_url")
RESTART = "Start what runs again: `systemctl restart ragdeck-dashboard` (or end `make dashboard` and start it anew)."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("part", choices=("reranker",), help="what goes back")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--url", metavar="URL", help="the address to go back to, instead of switching it off")
    how.add_argument("--undo", action="store_true", help="as it was before the first rollback that was not undone")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Raises RagError."""
    try:
        settings = load()
        done = undo(settings, arguments.dry_run) if arguments.undo else back(settings, arguments.url, arguments.dry_run)
    except SettingsError as problem:
        step = "Change it where it is decided: the environment and dashboard.toml win over data/edited.toml."
        raise RagError(str(problem), kind="bad_input", next_step=step) from None
    if arguments.json:
        print(json.dumps(done, ensure_ascii=False))
    else:
        print("\n".join(_lines(done, arguments.dry_run, arguments.undo)))
    return 0


def back(settings: Settings, url: str | None, dry_run: bool = False) -> dict[str, Any]:
    """Switch the reranker off, or to `url`. What edited.toml said before is kept for `undo`, once: a second rollback does not
    overwrite it. Raises SettingsError, RagError, with nothing changed."""
    if url is not None and "@" in url:  # edited.toml is shown, carried and backed up: it takes no secret
        step = "Put the address with its password into RERANKER_API_URL, or its key into RERANKER_API_KEY."
        raise RagError("the address holds a user or a password", kind="bad_input", next_step=step)
    changes: dict[str, Any] = {"reranker.enabled": False} if url is None else {"reranker.enabled": True, "reranker.api_url": url}
    if settings.reranker.enabled and url is not None:
        del changes["reranker.enabled"]  # it is on: a stronger source may say so, which is no obstacle
    before = _state(settings)
    if not dry_run:
        path = settings.data_dir / NAME
        known = path.exists()
        if not known:
            _write(path, {key: edited(settings, key) for key in KEYS})
        try:
            settings = save_edited(settings, changes)
        except SettingsError:
            if not known:
                path.unlink()
            raise
    return _told(before, {**before, **changes} if dry_run else _state(settings), changes)


def undo(settings: Settings, dry_run: bool = False) -> dict[str, Any]:
    """As edited.toml was. Raises RagError not_found where nothing is to be undone."""
    path = settings.data_dir / NAME
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        changes = {key: kept[key] for key in KEYS}
    except FileNotFoundError:
        raise RagError("there is no rollback to undo", kind="not_found", next_step="Nothing was changed.") from None
    except (OSError, ValueError, KeyError, TypeError) as problem:
        step = f"Delete it, and change {' and '.join(KEYS)} in the settings by hand."
        raise RagError(f"{path} cannot be read: {problem}", kind="bad_input", next_step=step) from None
    before = _state(settings)
    if dry_run:
        return _told(before, before, changes)
    settings = save_edited(settings, changes)
    path.unlink()
    return _told(before, _state(settings), changes)


def _state(settings: Settings) -> dict[str, Any]:
    return {"reranker.enabled": settings.reranker.enabled, "reranker.api_url": settings.reranker.api_url}


def _told(before: Mapping[str, Any], after: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    told = {"before": before, "after": after, "written": changes}
    return {**{name: {key: _plain(each) for key, each in values.items()} for name, values in told.items()}, "next_step": RESTART}


def _plain(value: object) -> object:
    """An address without what may be secret in it."""
    return masked_text(value) if isinstance(value, str) else value


def _write(path: Path, data: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data), encoding="utf-8")
    except OSError as problem:
        step = "Make the data folder writable: without this file there would be no way back."
        raise RagError(f"{path} cannot be written: {problem.strerror}", next_step=step) from None


def _lines(done: Mapping[str, Any], dry_run: bool, undone: bool) -> list[str]:
    changed = [key for key in KEYS if done["before"][key] != done["after"][key]]
    would = "would be" if dry_run else "is now"
    lines = [f"{key} {would} {_shown(done['after'][key])} (before: {_shown(done['before'][key])})" for key in changed]
    lines = lines or ["nothing changes: the settings in force say so already"]
    if dry_run:
        return [*lines, "nothing was written (--dry-run)"]
    return [*lines, RESTART] + ([] if undone else ["Undo it with `python -m deploy rollback reranker --undo`."])


def _shown(value: object) -> str:
    return "unset" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
