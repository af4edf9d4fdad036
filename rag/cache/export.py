"""Curated answers as training data, and judged pairs, one JSON object a line. Knows no store: entries come in.

Chat lines are what chat fine-tuning takes (`messages`). Embedder lines are `query`, `pos`, `neg`, as FlagEmbedding reads
them: positives are the passages that the answer cites (all kept ones where it cites none), hard negatives those that the search
ranked and the path did not keep.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from rag.cache.calibrate import Pair
from rag.cache.types import CachedAnswer

PAGE = 200
# Half of a pair cannot be written as UTF-8, and readers that split at every Unicode line end would break an object in two
_UNSAFE = re.compile("[\x85\u2028\u2029\ud800-\udfff]")


class Preview(NamedTuple):
    """What an export would hold: how many entries go in, lines of either format, and the first line of each."""

    entries: int
    chat: int
    embedder: int
    first_chat: str | None
    first_embedder: str | None


def chat_lines(entries: Iterable[CachedAnswer]) -> Iterator[str]:
    """The prompt as it was sent, or the question where none was, and the answer as it stands now."""
    for entry in entries:
        asked: list[dict[str, Any]] = [dict(message) for message in entry.prompt] or [{"role": "user", "content": entry.question}]
        yield _line({"messages": [*asked, {"role": "assistant", "content": entry.answer}]})


def embedder_lines(entries: Iterable[CachedAnswer]) -> Iterator[str]:
    """Entries without a negative are left out: they teach nothing."""
    for entry in entries:
        cited = {citation.passage_id for citation in entry.citations}
        kept = [passage for passage in entry.passages if passage.kept and passage.text.strip()]
        positives = [passage.text for passage in kept if passage.id in cited] or [passage.text for passage in kept]
        known = {passage.text for passage in kept}
        negatives = [item.text for item in entry.passages if not item.kept and item.text.strip() and item.text not in known]
        if positives and negatives:
            yield _line({"query": entry.question, "pos": _once(positives), "neg": _once(negatives)})


def pair_lines(pairs: Iterable[Pair]) -> Iterator[str]:
    """As `rag.cache.calibrate.read_pairs` takes them."""
    for pair in pairs:
        yield _line({name: getattr(pair, name) for name in ("id", "family", "language", "label", "kind", "a", "b")})


def chosen(page: Callable[[int, int], list[CachedAnswer]], *, good_only: bool) -> Iterator[CachedAnswer]:
    """Every entry that `page(limit, offset)` gives, once, or those marked good alone. Raises what `page` raises."""
    seen: set[str] = set()
    offset = 0
    while entries := page(PAGE, offset):
        offset += len(entries)
        for entry in entries:
            if entry.id not in seen and (entry.good or not good_only):
                seen.add(entry.id)
                yield entry


def preview(entries: Iterable[CachedAnswer]) -> Preview:
    """One pass; holds one entry at a time."""
    total = chat = embedder = 0
    first_chat = first_embedder = None
    for entry in entries:
        total += 1
        for line in chat_lines([entry]):
            chat, first_chat = chat + 1, first_chat or line
        for line in embedder_lines([entry]):
            embedder, first_embedder = embedder + 1, first_embedder or line
    return Preview(total, chat, embedder, first_chat, first_embedder)


def to_bytes(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _once(texts: list[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _line(value: dict[str, Any]) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
