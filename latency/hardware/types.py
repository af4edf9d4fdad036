"""What a comparison of CPU and GPU is asked to do and what it found, as frozen records and their JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from latency.load.steps import Step

Component = Literal["embed", "rerank"]
COMPONENTS: tuple[Component, ...] = ("embed", "rerank")
MODELS: Mapping[str, str] = {"embed": "embedder", "rerank": "reranker"}
PRECISIONS = ("fp32", "bf16", "int8")
HTTP = "http"


@dataclass(frozen=True, slots=True)
class HardwarePlan:
    """What to compare. `candidates` are passages in a call (an embedder also gets one question alone), `clients` call at once.

    A cell takes `seconds_per_cell` or `calls_per_cell`, whichever is first, and at least a call of each client; the whole
    comparison at most `seconds`. `http` also measures the servers in the settings.
    """

    components: tuple[Component, ...] = COMPONENTS
    devices: tuple[str, ...] = ("cpu", "cuda:0")
    precisions: tuple[str, ...] = PRECISIONS
    http: bool = True
    candidates: tuple[int, ...] = (10, 20, 50, 100)
    clients: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    seconds_per_cell: float = 1.0
    calls_per_cell: int = 200
    seconds: float = 1200.0

    def to_json(self) -> dict[str, Any]:
        names = ("components", "devices", "precisions", "candidates", "clients")
        plain = ("http", "seconds_per_cell", "calls_per_cell", "seconds")
        return {name: list(getattr(self, name)) for name in names} | {name: getattr(self, name) for name in plain}

    def sizes(self, component: Component) -> tuple[int, ...]:
        return self.candidates if component == "rerank" else tuple(sorted({1, *self.candidates}))


class Place(NamedTuple):
    """Where a model runs: `device` and `precision` are what was asked for, None for a server."""

    component: Component
    where: str
    device: str | None = None
    precision: str | None = None

    @property
    def name(self) -> str:
        return "HTTP" if self.where == HTTP else f"{self.device} {self.precision}"

    def changes(self) -> dict[str, Any]:
        """As `Lab.variant` takes them."""
        model = MODELS[self.component]
        if self.where == HTTP:
            return {model: HTTP}
        return {model: self.where, f"{model}.device": self.device, f"{model}.precision": self.precision}


@dataclass(frozen=True, slots=True)
class Cell:
    """`size` texts in a call, `clients` at once. `step` has the numbers, or `skipped` the reason why there are none."""

    size: int
    clients: int
    step: Step | None = None
    skipped: str | None = None

    def to_json(self) -> dict[str, Any]:
        step = self.step.to_json() if self.step else None
        return {"size": self.size, "clients": self.clients, "step": step, "skipped": self.skipped}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        step = Step.from_json(data["step"]) if data["step"] else None
        return cls(data["size"], data["clients"], step, data["skipped"])


@dataclass(frozen=True, slots=True)
class Row:
    """A place and its cells. `model`, `device` and `precision` are what the model says of itself; `load_seconds` is what
    building, loading and warming it here took, None for a server. `skipped` is why nothing was measured there."""

    place: Place
    cells: tuple[Cell, ...] = ()
    model: str | None = None
    device: str | None = None
    precision: str | None = None
    address: str | None = None
    load_seconds: float | None = None
    skipped: str | None = None

    def cell(self, size: int, clients: int) -> Cell | None:
        return next((each for each in self.cells if (each.size, each.clients) == (size, clients)), None)

    def measured(self, size: int) -> tuple[Cell, ...]:
        return tuple(each for each in self.cells if each.size == size and each.step is not None and each.step.answered)

    def to_json(self) -> dict[str, Any]:
        names = ("model", "device", "precision", "address", "load_seconds", "skipped")
        data: dict[str, Any] = {name: getattr(self, name) for name in names}
        return {"place": self.place._asdict(), "cells": [cell.to_json() for cell in self.cells], **data}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        """The inverse of `to_json`."""
        cells = tuple(Cell.from_json(each) for each in data["cells"])
        return cls(**{**data, "place": Place(**data["place"]), "cells": cells})


@dataclass(frozen=True, slots=True)
class HardwareResult:
    """A comparison at its end. `texts` says what the passages were; `stopped` why it ended early, if it did."""

    plan: Mapping[str, Any]
    rows: tuple[Row, ...]
    texts: str
    stopped: str | None = None

    def of(self, component: Component) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.place.component == component)

    def to_json(self) -> dict[str, Any]:
        rows = [row.to_json() for row in self.rows]
        return {"plan": dict(self.plan), "rows": rows, "texts": self.texts, "stopped": self.stopped}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> HardwareResult:
        """The inverse of `to_json`."""
        return cls(data["plan"], tuple(Row.from_json(each) for each in data["rows"]), data["texts"], data["stopped"])
