"""Traces: what storing, listing and reading them costs, beside a plain layout (one JSON text a query, one row a span).

    python -m benchmarks.bench_traces [--queries 10000]

Every answer is synthetic: made from a seeded random generator and named so in its source, fingerprint and model.
`fill(store, n)` and `Synthetic` are for other benchmarks and browser tests too.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rag.trace import SpanRecord, Tracing
from rag.trace_rows import pack
from rag.trace_store import QueryFilter, TraceStore
from rag.types import Answer, Citation, Interval, Options, Outcome, Passage, Problem, Split, Stage, Tokens

PASSAGES = 2000
DOCUMENTS = 20
UNTIL_UNIX = 1_795_219_200.0  # 2026-11-21T00:00:00Z, the end of the synthetic week
SPAN_SECONDS = 7 * 86400.0
_WORDS = (  # noqa: SIM905
    "pump valve rotor seal pressure inlet manual torque bearing coolant relay sensor gasket filter flange motor turbine shaft "
    "check replace before after every hours when the of and is with below above bar rpm warning must not exceed maintenance"
).split()
_MODEL = "synthetic-llm-8b"


class Synthetic:
    """Makes answers with their spans; the same seed gives the same answers, but for span ids and the random part of ids."""

    def __init__(self, seed: int = 7, *, until_unix: float = UNTIL_UNIX) -> None:
        self._random = random.Random(seed)
        self._until = until_unix
        self._now_ns = 0
        self._tracing = Tracing("rag-deck-synthetic", clock_ns=self._clock, ticks_ns=self._clock)
        self.pool = [self._passage(number) for number in range(PASSAGES)]

    def _clock(self) -> int:
        return self._now_ns

    def _text(self, words: int) -> str:
        return " ".join(self._random.choices(_WORDS, k=words))

    def _passage(self, number: int) -> Passage:
        document = f"{number // 10:04d}"
        return Passage(
            id=f"{self._random.getrandbits(64):016x}",
            text=self._text(self._random.randint(90, 200)),
            source=f"synthetic/manual-{document}.pdf",
            title=f"Synthetic manual {document}",
            location=f"p. {number % 10 + 1}",
            language="en",
            document_id=f"{number // 10:016x}",
        )

    def answers(self, n: int) -> Iterator[tuple[Answer, list[SpanRecord]]]:
        """`n` answers spread over the week before `until_unix`, oldest first."""
        for number in range(n):
            at = self._until - SPAN_SECONDS + SPAN_SECONDS * (number + self._random.random()) / n
            yield self.one(number, at)

    def one(self, number: int, at_unix: float) -> tuple[Answer, list[SpanRecord]]:
        """One answer: 95 % answered, the others without documents, failed in search, or cancelled."""
        rng = self._random
        self._now_ns = int(at_unix * 1e9)
        outcome: Outcome = rng.choices(("answered", "no_documents", "failed", "cancelled"), (95, 2, 2, 1))[0]
        question = f"(synthetic {number}) {self._text(9)}?"
        cold = rng.random() < 0.02
        timeline: list[Interval] = []
        with self._tracing.query(question) as trace:
            last = {"answered": 6, "no_documents": 4, "failed": 4, "cancelled": 5}[outcome]
            for stage in ("embed", "cache", "hyde", "search", "rerank", "generate")[:last]:
                timeline.append(self._stage(trace.span, stage, cold and stage in ("embed", "rerank")))
            answer = self._answer(trace.id, question, trace.started_at, outcome, timeline, trace.elapsed())
            return answer, trace.finish(answer)

    def _stage(self, span: Callable[..., Any], stage: str, cold: bool) -> Interval:
        rng = self._random
        typical = {"embed": 0.008, "cache": 0.003, "hyde": 0.4, "search": 0.012, "rerank": 0.11, "generate": 1.4}[stage]
        compute = typical * rng.lognormvariate(0, 0.35)
        load, queue, tokenize = (rng.uniform(2, 6) if cold else 0.0), rng.expovariate(1 / 0.002), compute * 0.03
        remote = stage in ("hyde", "generate")
        network = rng.uniform(0.0005, 0.003) if remote else None
        seconds = load + queue + tokenize + compute + (network or 0.0)
        attributes: dict[str, Any] = (
            {"collection": "synthetic", "top_k": 40} if stage in ("search", "cache") else {"model": stage}
        )
        if remote:
            attributes = {"model": _MODEL, "provider": "synthetic", "stream": stage == "generate", "max_tokens": 512}
            attributes |= {"temperature": 0.1, "address": "127.0.0.1", "port": 8000}
        with span(stage, stage, **attributes) as handle:
            start = handle.start_seconds
            if stage == "generate":
                self._now_ns += int(compute * 0.2 * 1e9)
                handle.first_token()
                self._now_ns -= int(compute * 0.2 * 1e9)
            self._now_ns += int(seconds * 1e9)
            if remote:
                handle.set(input_tokens=rng.randint(300, 3000), output_tokens=rng.randint(20, 400), finish_reasons=["stop"])
            handle.timing(load=load, queue=queue, tokenize=tokenize, compute=compute, network=network, cold=cold, device="cuda:0")
        return Interval(stage, start, seconds, stage, Split(load, queue, tokenize, compute, network, 0.0), cold)

    def _answer(
        self, id_: str, question: str, started_at: str, outcome: Outcome, timeline: list[Interval], total: float
    ) -> Answer:
        rng = self._random
        passages = self._documents() if outcome == "answered" else ()
        done = outcome == "answered"
        failed = Problem("search", "timeout", "The search took longer than 5 s.", "http://127.0.0.1:19530", "Look at Milvus.")
        kept = passages[:3]
        return Answer(
            id=id_,
            question=question,
            started_at=started_at,
            outcome=outcome,
            error=failed if outcome == "failed" else None,
            answer=self._text(120) + " [1]" if done else "",
            citations=tuple(Citation(n, p.id, p.source, p.title, p.location) for n, p in enumerate(kept, 1)),
            passages=passages,
            stages=tuple(self._sum(interval) for interval in timeline),
            timeline=tuple(timeline),
            total_seconds=total,
            ttft_seconds=total * 0.4 if done else None,
            tokens=Tokens(rng.randint(500, 3000), rng.randint(20, 400), rng.uniform(30, 60)) if done else Tokens(),
            options=Options(hyde=rng.choice(("off", "auto", "on"))),
            fingerprint={"version": "synthetic", "settings": "synthetic-1", "models": {"generate": _MODEL, "embed": "embed"}},
            prompt=({"role": "system", "content": self._text(60)}, {"role": "user", "content": question}) if done else (),
            hyde_text=self._text(80) if done else None,
            finish_reason="stop" if done else None,
        )

    def _documents(self) -> tuple[Passage, ...]:
        rng = self._random
        chosen = rng.sample(self.pool, DOCUMENTS)
        reranked = rng.sample(range(1, DOCUMENTS + 1), DOCUMENTS)
        found = []
        for fused, (passage, rank) in enumerate(zip(chosen, reranked, strict=True), 1):
            scores = {
                "dense": rng.uniform(0.3, 0.8),
                "sparse": rng.uniform(1, 20),
                "fused": 1 / (60 + fused),
                "rerank": rng.gauss(0, 3),
            }
            routes = {"dense": rng.randint(1, 40), "sparse": rng.randint(1, 40), "fused": fused, "rerank": rank}
            for route in routes:
                passage = passage.with_route(route, routes[route], scores[route])
            found.append(passage)
        return tuple(found)

    def _sum(self, interval: Interval) -> Stage:
        model = _MODEL if interval.stage in ("hyde", "generate") else None
        hit = False if interval.stage == "cache" else None
        return Stage(
            interval.stage, interval.seconds, 1, interval.cold, split=interval.split, device="cuda:0", model=model, hit=hit
        )


def fill(store: TraceStore, n: int, *, seed: int = 7, until_unix: float = UNTIL_UNIX) -> list[str]:
    """Store `n` synthetic queries, spread over the week before `until_unix`; returns their ids, oldest first."""
    ids = []
    for answer, spans in Synthetic(seed, until_unix=until_unix).answers(n):
        store.save(answer, spans)
        ids.append(answer.id)
    if not store.flush(300.0):
        raise TimeoutError(f"not all of {n} synthetic queries were written: {store.health()}")
    return ids


# Measuring --------------------------------------------------------------------------------------------------------------


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _median_ms(work: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append((time.perf_counter() - start) * 1e3)
    return statistics.median(taken)


def _text_bytes(answer: Answer) -> int:
    said = [answer.question, answer.answer, answer.hyde_text or "", *(part["content"] for part in answer.prompt)]
    return sum(len(text.encode()) for text in said)


def tracing_overhead_ms() -> float:
    """Milliseconds for a query of seven spans that does nothing, with the attributes of a real one."""
    tracing = Tracing()
    answer = next(Synthetic().answers(1))[0]

    def query() -> None:
        with tracing.query("What is the torque?") as trace:
            for stage in ("embed", "cache", "hyde", "search", "rerank", "generate"):
                with trace.span(stage, stage, model="m", top_k=40, provider="p", address="127.0.0.1", port=8000) as span:
                    span.set(input_tokens=100, output_tokens=20)
                    span.timing(load=0.0, queue=0.001, tokenize=0.001, compute=0.1, network=0.001, cold=False, device="cuda:0")
            trace.finish(answer)

    _median_ms(query, 200)
    return _median_ms(query, 2000)


def measure_ours(folder: Path, queries: int) -> dict[str, Any]:
    """The store: made in chunks, so that what is timed is the store and not the making of answers."""
    store = TraceStore(folder / "traces.db")
    before, seconds, spans, texts, ids = _rss_mib(), 0.0, 0, 0, []
    made = Synthetic().answers(queries)
    while chunk := [pair for _, pair in zip(range(500), made, strict=False)]:
        start = time.perf_counter()
        for answer, records in chunk:
            store.save(answer, records)
        store.flush(120.0)
        seconds += time.perf_counter() - start
        spans += sum(len(records) for _, records in chunk)
        texts += sum(_text_bytes(answer) for answer, _ in chunk)
        ids += [answer.id for answer, _ in chunk]
    stats = store.stats()
    pool = sum(len(p.text.encode()) for p in Synthetic().pool)
    pick = random.Random(1)
    result = {
        "spans_per_second": round(spans / seconds),
        "kib_per_query": round(stats.bytes_on_disk / queries / 1024, 2),
        "kib_per_query_beyond_texts": round((stats.bytes_on_disk - pool - texts) / queries / 1024, 2),
        "list_all_ms": round(_median_ms(store.search, 7), 1),
        "list_slowest_rerank_50_ms": round(_median_ms(lambda: store.search(sort="rerank_seconds", limit=50), 7), 2),
        "find_text_ms": round(_median_ms(lambda: store.search(QueryFilter(text="gasket rotor")), 7), 2),
        "find_text_folded_ms": round(_median_ms(lambda: store.search(QueryFilter(text="gäsket")), 7), 2),
        "stage_rows_rerank_ms": round(_median_ms(lambda: store.stage_rows(stage="rerank"), 3), 1),
        "get_ms": round(_median_ms(lambda: store.get(pick.choice(ids)), 50), 2),
        "spans_ms": round(_median_ms(lambda: store.spans(pick.choice(ids)), 50), 2),
        "revision_us": round(_median_ms(lambda: store.revision, 200) * 1e3, 1),
        "rss_growth_mib": round(_rss_mib() - before, 1),
    }
    store.close()
    return result


def measure_plain(folder: Path, queries: int) -> dict[str, Any]:
    """The obvious layout, for comparison: an Answer as one JSON text with all passages, and one row a span."""
    path = folder / "plain.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("CREATE TABLE queries (id TEXT PRIMARY KEY, started_at TEXT, answer TEXT)")
    db.execute("CREATE TABLE spans (query_id TEXT, span_id TEXT, body TEXT, PRIMARY KEY (query_id, span_id))")
    seconds, spans, ids = 0.0, 0, []
    for answer, records in Synthetic().answers(queries):
        start = time.perf_counter()
        db.execute("BEGIN")
        db.execute("INSERT INTO queries VALUES (?, ?, ?)", (answer.id, answer.started_at, json.dumps(answer.to_json())))
        rows = [(answer.id, record.span_id, json.dumps(record.to_json())) for record in records]
        db.executemany("INSERT INTO spans VALUES (?, ?, ?)", rows)
        db.execute("COMMIT")
        seconds += time.perf_counter() - start
        spans += len(records)
        ids.append(answer.id)

    def rows_of_all() -> list[tuple[Any, ...]]:
        wanted = ("$.question", "$.outcome", "$.total_seconds", "$.ttft_seconds", "$.cold")
        columns = ", ".join(f"json_extract(answer, '{key}')" for key in wanted)
        return db.execute(f"SELECT id, started_at, {columns} FROM queries ORDER BY started_at DESC").fetchall()

    def one(query_id: str) -> Answer:
        return Answer.from_json(json.loads(db.execute("SELECT answer FROM queries WHERE id = ?", (query_id,)).fetchone()[0]))

    pick = random.Random(1)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return {
        "spans_per_second": round(spans / seconds),
        "kib_per_query": round(path.stat().st_size / queries / 1024, 2),
        "list_all_ms": round(_median_ms(rows_of_all, 2), 1),
        "get_ms": round(_median_ms(lambda: one(pick.choice(ids)), 50), 2),
    }


def span_layouts() -> dict[str, float]:
    """Bytes of a query's spans: one compressed blob, beside the JSON of each span on its own."""
    made = list(Synthetic().answers(50))
    blobs = [len(pack([span.to_json() for span in spans])) for _, spans in made]
    rows = [sum(len(pack(span.to_json())) for span in spans) for _, spans in made]
    return {"one_blob_bytes": round(statistics.mean(blobs)), "a_blob_each_bytes": round(statistics.mean(rows))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=10_000)
    queries = parser.parse_args().queries
    overhead = tracing_overhead_ms()
    with tempfile.TemporaryDirectory() as name:
        ours = measure_ours(Path(name), queries)
    with tempfile.TemporaryDirectory() as name:
        plain = measure_plain(Path(name), queries)
    print(f"{'':32}{'ours':>12}{'plain':>12}   ({queries} synthetic queries, 6 stage spans + root, {DOCUMENTS} documents)")
    for key, value in ours.items():
        print(f"{key:32}{value:>12}{plain.get(key, ''):>12}")
    print(f"{'tracing_overhead_ms':32}{overhead:>12.3f}")
    summary = {"benchmark": "traces", "queries": queries, "tracing_overhead_ms": round(overhead, 3), **ours}
    print(json.dumps({**summary, "spans": span_layouts(), "plain": plain}))


if __name__ == "__main__":
    main()
