"""The last `offline-check` of a data folder, kept for the page Readiness."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rag.errors import RagError

NAME = "offline-check.json"
MOST_FINDINGS = 100


class Proof(NamedTuple):
    """`weaker`: a hook in each Python process stood in for a network namespace. `findings` are codes with what was found."""

    at_unix: float
    weaker: bool
    findings: tuple[tuple[str, str], ...]


def save(data_dir: Path, listed: Mapping[str, Any], clock: Callable[[], float] = time.time) -> None:
    """Keep a run's result as `offline-check --json` prints it. Raises RagError where it cannot be written."""
    findings = [[each["code"], each["what"]] for each in listed["findings"][:MOST_FINDINGS]]
    text = json.dumps({"at_unix": clock(), "weaker": listed["run"]["weaker"], "findings": findings}, ensure_ascii=False)
    path = data_dir / NAME
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".new").write_text(text, encoding="utf-8")
        path.with_suffix(".new").replace(path)
    except OSError as problem:
        raise RagError(f"the result cannot be kept in {path}: {problem}", next_step="Make room, or run it again.") from problem


def load(data_dir: Path) -> Proof | None:
    """None where there is none, or none that can be read."""
    try:
        data = json.loads((data_dir / NAME).read_text(encoding="utf-8"))
        return Proof(
            float(data["at_unix"]), bool(data["weaker"]), tuple((str(code), str(what)) for code, what in data["findings"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
