"""Answers and lists as files: JSON and CSV. Pure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from rag.trace_rows import QueryRow
from rag.types import ROUTES, Answer, Split
from ui.format import csv_cell

SPLIT = tuple(field.name for field in fields(Split))


def to_csv(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """RFC 4180 with a byte order mark, without which spreadsheets misread Hebrew; unknown is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([csv_cell(head) for head in heads])
    writer.writerows([["" if cell is None else csv_cell(cell) for cell in row] for row in rows])
    return out.getvalue().encode("utf-8-sig", "replace")  # a document may hold half a character


def answer_text(answer: Answer) -> str:
    """The answer with its sources below, to paste elsewhere."""
    sources = [
        f"[{item.number}] {item.title} ({item.source}{', ' + item.location if item.location else ''})"
        for item in answer.citations
    ]
    return "\n\n".join(part for part in (answer.answer, "\n".join(sources)) if part)


def answer_json(answer: Answer) -> bytes:
    return json.dumps(answer.to_json(), ensure_ascii=False, indent=2).encode()


def stages_csv(answer: Answer) -> bytes:
    heads = ["query_id", "stage", "seconds", "spans", "cold", "skipped", "degraded", "device", "model", "where", *SPLIT]
    rows = (
        [
            *(answer.id, stage.stage, stage.seconds, stage.spans, stage.cold, stage.skipped, stage.degraded),
            *(stage.device, stage.model, stage.where),
            *(getattr(stage.split, name) for name in SPLIT),
        ]
        for stage in answer.stages
    )
    return to_csv(heads, rows)


def passages_csv(answer: Answer) -> bytes:
    heads = ["query_id", "passage_id", "kept", "title", "source", "location", "language"]
    heads += [f"{route}_{what}" for route in ROUTES for what in ("rank", "score")] + ["text"]
    rows = (
        [
            *(answer.id, item.id, item.kept, item.title, item.source, item.location, item.language),
            *(value for route in ROUTES for value in (item.ranks.get(route), item.scores.get(route))),
            item.text,
        ]
        for item in answer.passages
    )
    return to_csv(heads, rows)


def queries_csv(rows: Iterable[QueryRow]) -> bytes:
    heads = [field.name for field in fields(QueryRow)]
    return to_csv(heads, ([getattr(row, name) for name in heads] for row in rows))
