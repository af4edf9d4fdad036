"""By what stored queries can be grouped: HyDE, devices, models, places, candidates, caches, settings, versions, origins.

Each option labels the rows of a StageTable. Knows nothing of durations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from latency.percentiles.table import Codes, Rows, StageTable
from rag.types import STAGES

UNKNOWN = "not known"
NOT_RUN = "did not run"


class Labelled(NamedTuple):
    """A value of an option for each row: `labels[codes[i]]`."""

    codes: Codes
    labels: tuple[str, ...]

    def find(self, label: str) -> int:
        return self.labels.index(label) if label in self.labels else -1


class Option(NamedTuple):
    """Something that queries can be grouped by."""

    title: str
    of: Callable[[StageTable, Rows], Labelled]


def _texts(table: StageTable, codes: Codes) -> Labelled:
    return Labelled(codes, tuple(UNKNOWN if name is None else name for name in table.names))


def _of_query(name: str) -> Callable[[StageTable, Rows], Labelled]:
    return lambda table, rows: _texts(table, getattr(table, name)[rows])


def _of_stage(name: str, stage: str) -> Callable[[StageTable, Rows], Labelled]:
    place = STAGES.index(stage)

    def of(table: StageTable, rows: Rows) -> Labelled:
        codes = getattr(table, name)[rows, place]
        ran = ~np.isnan(table.seconds[rows, place])
        labels = (*(UNKNOWN if text is None else text for text in table.names), NOT_RUN)
        return Labelled(np.where(ran, codes, len(labels) - 1).astype(np.int32), labels)

    return of


def _hyde(table: StageTable, rows: Rows) -> Labelled:
    ran = ~np.isnan(table.seconds[rows, STAGES.index("hyde")])
    off = table.hyde[rows] == table.code("off")
    return Labelled(np.where(ran, 0, np.where(off, 1, 2)).astype(np.int32), ("ran", "off", "skipped"))


def _cache(table: StageTable, rows: Rows) -> Labelled:
    hit = table.cache_hit[rows]
    return Labelled(np.where(np.isnan(hit), 2, np.where(hit == 1, 0, 1)).astype(np.int32), ("hit", "miss", "not asked"))


def _heat(table: StageTable, rows: Rows) -> Labelled:
    return Labelled(np.where(table.cold[rows], 0, 1).astype(np.int32), ("cold", "warm"))


def _candidates(table: StageTable, rows: Rows) -> Labelled:
    values, codes = np.unique(table.candidates[rows], return_inverse=True)
    return Labelled(codes.astype(np.int32), tuple(UNKNOWN if np.isnan(value) else f"{value:.0f}" for value in values))


OPTIONS: Mapping[str, Option] = {
    "hyde": Option("HyDE", _hyde),
    "rerank_device": Option("Reranker device", _of_stage("stage_device", "rerank")),
    "rerank_place": Option("Reranker place", _of_stage("stage_place", "rerank")),
    "rerank_model": Option("Reranker", _of_stage("stage_model", "rerank")),
    "embed_device": Option("Embedder device", _of_stage("stage_device", "embed")),
    "embed_place": Option("Embedder place", _of_stage("stage_place", "embed")),
    "embed_model": Option("Embedder", _of_stage("stage_model", "embed")),
    "model": Option("Language model", _of_query("model")),
    "candidates": Option("Candidates", _candidates),
    "cache": Option("Semantic cache", _cache),
    "caches": Option("Caches allowed", _of_query("caches")),
    "heat": Option("Cold or warm", _heat),
    "settings": Option("Settings", _of_query("settings")),
    "version": Option("Version", _of_query("version")),
    "origin": Option("Origin", _of_query("origin")),
    "outcome": Option("Outcome", _of_query("outcome")),
}
