"""How an Answer becomes rows of the trace file and comes back, and how a filter becomes SQL.

Knows nothing of threads or files; those are `trace_store.py` and `trace_file.py`.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import datetime
from hashlib import blake2b
from typing import Any

from rag.errors import RagError
from rag.otlp import SpanRecord
from rag.types import STAGES, Answer, Outcome, Passage, Stage

PASSAGE_SLACK_SECONDS = 3600.0  # how far `last_used_unix` may lag behind; spares rewriting a text for every query
_TEXT_FIELDS = ("text", "title", "source", "location")


@dataclass(frozen=True, slots=True)
class QueryFilter:
    """Which queries; None leaves a condition out. `since` <= start < `until` in Unix seconds, `slower_than` in seconds.

    `text` is searched in the question, without regard to case; a whole id finds that query. `measured` False leaves out what
    replays and load tests asked, True leaves only them; `foreign` True leaves only what other programs told of (OTLP).
    """

    text: str | None = None
    since: float | None = None
    until: float | None = None
    cold: bool | None = None
    outcome: Outcome | None = None
    slower_than: float | None = None
    model: str | None = None
    origin: str | None = None
    measured: bool | None = None
    foreign: bool | None = None

    def sql(self) -> tuple[str, list[Any]]:
        """A WHERE clause (or nothing) and its parameters."""
        tests: list[tuple[str, Any]] = [
            ("started_at_unix >= ?", self.since),
            ("started_at_unix < ?", self.until),
            ("cold = ?", None if self.cold is None else int(self.cold)),
            ("outcome = ?", self.outcome),
            ("total_seconds > ?", self.slower_than),
            ("model = ?", self.model),
            ("origin = ?", self.origin),
            ("(origin = 'measure') = ?", None if self.measured is None else int(self.measured)),
            ("(origin LIKE 'otlp:%') = ?", None if self.foreign is None else int(self.foreign)),
        ]
        clauses = [clause for clause, value in tests if value is not None]
        values = [value for _, value in tests if value is not None]
        if self.text:
            text = storable(self.text)
            # SQLite's LIKE folds ASCII only; other letters go through Python, which costs about 1 us a row
            clauses.append("(question LIKE ? ESCAPE '\\' OR id = ?)" if text.isascii() else "(folded_has(question, ?) OR id = ?)")
            values += [_like(text) if text.isascii() else text.casefold(), text]
        return (" WHERE " + " AND ".join(clauses) if clauses else ""), values


def _like(text: str) -> str:
    for special in "\\%_":
        text = text.replace(special, "\\" + special)
    return f"%{text}%"


@dataclass(frozen=True, slots=True)
class QueryRow:
    """A query as the run list shows it. Times in seconds, `started_at` in Unix seconds; None is unknown or not run."""

    id: str
    started_at: float
    question: str
    outcome: Outcome
    total_seconds: float
    ttft_seconds: float | None
    cold: bool
    cache_hit: bool | None
    model: str | None
    error_stage: str | None
    cache_seconds: float | None
    hyde_seconds: float | None
    embed_seconds: float | None
    search_seconds: float | None
    rerank_seconds: float | None
    generate_seconds: float | None
    content: bool = True
    origin: str = "ask"

    def stage_seconds(self, stage: str) -> float | None:
        value: float | None = getattr(self, f"{stage}_seconds")
        return value


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage of one query; the split in seconds, None unknown. `skipped` holds the reason when it did not run.

    `place` is "in-process" or "http". `units` is its work load: candidates of rerank, tokens of embed, completion tokens of hyde
    and generate, the limit of search.
    """

    query_id: str
    stage: str
    started_at_unix: float
    seconds: float
    cold: bool
    skipped: str | None
    load: float | None
    queue: float | None
    tokenize: float | None
    compute: float | None
    network: float | None
    other: float | None = None
    device: str | None = None
    model: str | None = None
    place: str | None = None
    units: float | None = None


ROW_SQL = ", ".join("started_at_unix" if f.name == "started_at" else f.name for f in fields(QueryRow))
STAGE_SQL = ", ".join(f.name for f in fields(StageRow))
NEVER_NULL = ("id", "started_at", "question", "outcome", "total_seconds", "cold", "content", "origin")


def order_by(sort: str, descending: bool) -> str:
    """ORDER BY for a field of QueryRow; rows where it is unknown come last either way. Raises RagError on other names."""
    if sort not in QueryRow.__dataclass_fields__:
        known = ", ".join(QueryRow.__dataclass_fields__)
        raise RagError(f"Cannot sort queries by {sort!r}.", kind="bad_input", next_step=f"Sort by one of: {known}.")
    column = "started_at_unix" if sort == "started_at" else sort
    direction = "DESC" if descending else "ASC"
    unknown_last = "" if sort in NEVER_NULL else f"{column} IS NULL, "
    return f" ORDER BY {unknown_last}{column} {direction}, id {direction}"


def query_row(row: tuple[Any, ...]) -> QueryRow:
    values = list(row)
    values[6] = bool(values[6])
    values[7] = None if values[7] is None else bool(values[7])
    values[16] = bool(values[16])
    return QueryRow(*values)


def stage_row(row: tuple[Any, ...]) -> StageRow:
    values = list(row)
    values[4] = bool(values[4])
    return StageRow(*values)


@dataclass(frozen=True, slots=True)
class Rows:
    """One query ready to be written."""

    query: dict[str, Any]
    answer: bytes
    spans: bytes
    stages: list[tuple[Any, ...]]
    passages: list[tuple[Any, ...]]


def started_unix(answer: Answer) -> float:
    """Unix seconds of `started_at`. Raises RagError when that is no ISO 8601 time."""
    try:
        return datetime.fromisoformat(answer.started_at).timestamp()
    except ValueError as error:
        raise RagError(f"started_at of query {answer.id} is not a time: {answer.started_at!r}", kind="bad_input") from error


def without_content(answer: Answer) -> Answer:
    """The answer without what the user asked, what was said, and what the documents say; all measurements stay."""
    passages = tuple(passage._replace(text="") for passage in answer.passages)
    return replace(answer, question="", answer="", prompt=(), hyde_text=None, passages=passages)


def to_rows(answer: Answer, spans: Sequence[SpanRecord], *, content: bool) -> Rows:
    hashes = [passage_hash(passage) for passage in answer.passages]
    started = started_unix(answer)
    texts = [
        (
            key,
            storable(p.text),
            storable(p.title),
            storable(p.source),
            storable(p.location) if p.location else p.location,
            started,
        )
        for key, p in zip(hashes, answer.passages, strict=True)
    ]
    return Rows(
        query=_query_columns(answer, started, len(spans), content),
        answer=pack(_answer_body(answer, hashes, content)),
        spans=pack([span.to_json() for span in spans]),
        stages=_stage_rows(answer, started),
        passages=texts,
    )


def _query_columns(answer: Answer, started: float, span_count: int, content: bool) -> dict[str, Any]:
    stages = {stage.stage: stage for stage in answer.stages}
    cache, generate = stages.get("cache"), stages.get("generate")
    columns: dict[str, Any] = {
        "id": answer.id,
        "started_at_unix": started,
        "question": storable(answer.question),
        "outcome": answer.outcome,
        "total_seconds": answer.total_seconds,
        "ttft_seconds": answer.ttft_seconds,
        "cold": int(answer.cold),
        "cache_hit": cache.hit if cache else None,
        "error_stage": answer.error.stage if answer.error else None,
        "error_kind": answer.error.kind if answer.error else None,
        "model": (generate.model if generate else None) or answer.options.model,
        "tokens_completion": answer.tokens.completion,
        "candidates": answer.options.candidates,
        "hyde": answer.options.hyde,
        "rerank": int(answer.options.rerank),
        "caches": answer.options.caches,
        "settings": _text(answer.fingerprint.get("settings")),
        "version": _text(answer.fingerprint.get("version")),
        "content": int(content),
        "span_count": span_count,
        "origin": storable(answer.origin),
        "hyde_ran": int("hyde" in stages and stages["hyde"].skipped is None),
        "hyde_changed": int(answer.hyde_effect.changed_top) if answer.hyde_effect else None,
        "hyde_dense": answer.hyde_effect.best_dense if answer.hyde_effect else None,
        "tokens_prompt": answer.tokens.prompt,
    }
    for name in STAGES:
        stage = stages.get(name)
        columns[f"{name}_seconds"] = stage.seconds if stage and stage.skipped is None else None
    return columns


def _text(value: Any) -> str | None:
    return None if value is None else value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)


def _stage_rows(answer: Answer, started: float) -> list[tuple[Any, ...]]:
    begun: dict[str, float] = {}
    for interval in answer.timeline:
        begun[interval.stage] = min(interval.start, begun.get(interval.stage, interval.start))
    return [
        (
            *(answer.id, stage.stage, started + begun.get(stage.stage, 0.0), stage.seconds, int(stage.cold), stage.skipped),
            *(stage.split.load, stage.split.queue, stage.split.tokenize, stage.split.compute, stage.split.network),
            *(stage.split.other, stage.device, stage.model, stage.where, units(answer, stage.stage)),
        )
        for stage in answer.stages
    ]


_UNITS = {
    "embed": "tokens",
    "search": "limit",
    "rerank": "candidates",
    "hyde": "completion_tokens",
    "generate": "completion_tokens",
}


def units(answer: Answer, stage: str) -> float | None:
    """The work load of a stage, summed over its spans, as `StageRow.units` has it; None where it is not known."""
    name = _UNITS.get(stage, "")
    found = [float(item.facts[name]) for item in answer.timeline if item.stage == stage and name in item.facts]
    return sum(found) if found else None


_PASSAGE_KEYS = tuple(name for name in Passage._fields if name not in _TEXT_FIELDS)


def _answer_body(answer: Answer, hashes: Sequence[bytes], content: bool) -> dict[str, Any]:
    # field by field, not to_json(): that copies deeply, which took more time than all the rest of storing a query
    body = {name: getattr(answer, name) for name in answer.__dataclass_fields__}
    # one list a field, not one object a passage: compresses better and is quicker to build
    body["passages"] = {key: [getattr(passage, key) for passage in answer.passages] for key in _PASSAGE_KEYS}
    body["passages"]["hash"] = [key.hex() for key in hashes]
    body["prompt"] = _without_texts(answer, hashes)
    if not content:
        body["content_omitted"] = True
    return body


def _without_texts(answer: Answer, hashes: Sequence[bytes]) -> list[dict[str, str]]:
    """The prompt with the passages' texts, which are stored already, replaced by their hashes."""
    messages = [dict(message) for message in answer.prompt]
    for message in messages:
        for passage, key in zip(answer.passages, hashes, strict=True):
            if passage.kept and len(passage.text) > 64:
                message["content"] = message["content"].replace(passage.text, f"\0{key.hex()}\0")
    return messages


_TEXT_MARK = re.compile("\0([0-9a-f]{32})\0")


def _with_texts(
    prompt: Sequence[Mapping[str, str]], texts: Mapping[bytes, tuple[str, str, str, str | None]]
) -> list[dict[str, str]]:
    def text(match: re.Match[str]) -> str:
        found = texts.get(bytes.fromhex(match.group(1)))
        return found[0] if found else match.group(0)

    return [{**message, "content": _TEXT_MARK.sub(text, message["content"])} for message in prompt]


def passage_hashes(body: Mapping[str, Any]) -> list[bytes]:
    return [bytes.fromhex(key) for key in body["passages"]["hash"]]


def to_answer(body: Mapping[str, Any], texts: Mapping[bytes, tuple[str, str, str, str | None]]) -> Answer:
    """The inverse of `to_rows`. A passage whose text is gone comes back empty rather than not at all."""
    columns = body["passages"]
    passages = []
    for number, key in enumerate(passage_hashes(body)):
        text = dict(zip(_TEXT_FIELDS, texts.get(key, ("", "", "", None)), strict=True))
        passages.append({**text, **{name: values[number] for name, values in columns.items() if name != "hash"}})
    return Answer.from_json({**body, "passages": passages, "prompt": _with_texts(body.get("prompt", ()), texts)})


def passage_hash(passage: Passage) -> bytes:
    """16 bytes over text, title, source and location; lengths are part of it, so that fields cannot run together."""
    parts = [getattr(passage, name) or "" for name in _TEXT_FIELDS]
    digest = blake2b("\0".join([*(str(len(part)) for part in parts), *parts]).encode("utf-8", "surrogatepass"), digest_size=16)
    return digest.digest()


def pack(value: Any) -> bytes:
    """Compact JSON, or its zlib stream where that is smaller; the first byte tells which (`x` is no JSON)."""
    plain = json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=_simple).encode("utf-8", "surrogatepass")
    packed = zlib.compress(plain, 6)
    return packed if len(packed) < len(plain) else plain


def unpack(body: bytes) -> Any:
    try:
        plain = zlib.decompress(body) if body[:1] == b"x" else body
        return json.loads(plain.decode("utf-8", "surrogatepass"))
    except (zlib.error, ValueError) as error:
        raise RagError(f"A stored query is damaged: {error}", next_step="Other queries can still be read.") from error


def _simple(value: Any) -> Any:
    """JSON for what json does not know: our frozen types, other mappings, numpy scalars, at last the text of anything else."""
    if isinstance(value, Stage):
        return value.to_json()
    if is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    item = getattr(value, "item", None)
    return item() if callable(item) else str(value)


def storable(text: str) -> str:
    """`text` without lone surrogates (file names and arguments can hold them), which SQLite refuses."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
