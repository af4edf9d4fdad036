"""What a component test is held against: seconds by the code of a row, from field reports or edited. Knows no component.

A row's code may carry a name after a colon (`network.connect:llm`); a target for `network.connect` is for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from rag.errors import RagError

# Rows that can have a target, with what is timed.
CODES: Mapping[str, str] = {
    "store.connect": "Store: connect",
    "store.load": "Store: open the collection",
    "store.connect_load": "Store: connect and open",
    "store.first_search": "Store: first search",
    "store.search": "Store: search",
    "llm.load": "Language model: load",
    "llm.first": "Language model: first run after load",
    "llm.short": "Language model: short answer",
    "llm.long": "Language model: long answer",
    "embedder.load": "Embedder: load",
    "embedder.first": "Embedder: first run after load",
    "embedder.warm": "Embedder: one question, warm",
    "reranker.load": "Reranker: load",
    "reranker.first": "Reranker: first run after load",
    "reranker.1": "Reranker: 1 candidate, warm",
    "reranker.20": "Reranker: 20 candidates, warm",
    "reranker.50": "Reranker: 50 candidates, warm",
    "network.connect": "Network: TCP connect",
    "network.http": "Network: one cheap request",
    "disk.read": "Disk: read the model's folder",
}


class Target(NamedTuple):
    """At most so many seconds; `source` is who measured or set it, `date` when, None where the report does not say."""

    seconds: float
    source: str
    date: str | None = None


class Preset(NamedTuple):
    """Targets from one report. `about` says what they were measured on."""

    name: str
    about: str
    date: str | None
    seconds: Mapping[str, float]

    def targets(self) -> dict[str, Target]:
        return {code: Target(value, self.name, self.date) for code, value in self.seconds.items()}


PRESETS: Mapping[str, Preset] = {
    "r1-a100": Preset(
        "R1 A100 80 GB",
        "one component at a time on an A100 80 GB, models loaded from the disk, vLLM on the same machine",
        None,
        {
            "store.connect_load": 2.29,
            "llm.short": 0.30,
            "embedder.load": 12.41,
            "embedder.first": 1.39,
            "reranker.load": 1.84,
            "reranker.first": 7.25,
        },
    ),
    "r2-t4": Preset(
        "R2 T4", "bge-reranker-v2-m3 on a T4, upper end of the range", "2025-01", {"reranker.20": 0.15, "reranker.50": 0.2}
    ),
    "r2-cpu": Preset(
        "R2 CPU", "bge-reranker-v2-m3 on a CPU, upper end of the range", "2025-01", {"reranker.20": 0.5, "reranker.50": 1.5}
    ),
}


def preset(*names: str) -> dict[str, Target]:
    """The targets of presets, a later one winning. Raises RagError bad_input for a name that is none."""
    found: dict[str, Target] = {}
    for name in names:
        if name not in PRESETS:
            raise RagError(f"there are no targets {name!r}", kind="bad_input", next_step=f"Choose of {', '.join(PRESETS)}.")
        found |= PRESETS[name].targets()
    return found


def edited(seconds: Mapping[str, Any], source: str = "set by hand", date: str | None = None) -> dict[str, Target]:
    """Targets somebody typed. Raises RagError bad_input for a code that no row has, or what is no positive number."""
    found = {}
    for code, value in seconds.items():
        if code.partition(":")[0] not in CODES:
            raise RagError(f"no component test is called {code!r}", kind="bad_input", next_step=f"Choose of {', '.join(CODES)}.")
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 < number < math.inf:
            raise RagError(f"the target of {code} is {value!r}", kind="bad_input", next_step="Give seconds above 0.")
        found[code] = Target(number, source, date)
    return found


def target_of(code: str, targets: Mapping[str, Target]) -> Target | None:
    """The target of a row: its own, or that of its kind."""
    return targets.get(code) or targets.get(code.partition(":")[0])
