"""Curated answers as training data, one JSON object a line. Knows no store: entries come in.

Chat lines are what chat fine-tuning takes (`messages`). Embedder lines are `query`, `pos`, `neg`, as FlagEmbedding reads
them: positives are the passages that the answer cites (all kept ones where it cites none), hard negatives those that the search
ranked and the path did not keep.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from rag.cache.types import CachedAnswer


def chat_lines(entries: Iterable[CachedAnswer]) -> Iterator[str]:
    """The prompt as it was sent, or the question where none was, and the answer as it stands now."""
    for entry in entries:
        asked: list[dict[str, Any]] = [dict(message) for message in entry.prompt] or [{"role": "user", "content": entry.question}]
        yield _line({"messages": [*asked, {"role": "assistant", "content": entry.answer}]})


def embedder_lines(entries: Iterable[CachedAnswer]) -> Iterator[str]:
    """Entries without a negative are left out: they teach nothing."""
    for entry in entries:
        cited = {citation.passage_id for citation in entry.citations}
        kept = [passage for passage in entry.passages if passage.kept]
        positives = [passage.text for passage in kept if passage.id in cited] or [passage.text for passage in kept]
        negatives = [passage.text for passage in entry.passages if not passage.kept and passage.text not in positives]
        if positives and negatives:
            yield _line({"query": entry.question, "pos": positives, "neg": negatives})


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
