"""The page Latency over 100,000 stored queries: reading the table, one more query, and what a rerun computes.

    python -m benchmarks.bench_latency [--queries 100000] [--hour 600] [--rounds 5]

The stored queries are synthetic (seeded; named so in their version), the last hour's with passages, spans and readings at 20 Hz.
`page_rerun_ms` is the whole script of the page in Streamlit's AppTest over all queries, each time with another filter, so that
nothing is kept from before. `fill(path, n)` is for tests too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from streamlit.testing.v1 import AppTest

import runtime
from benchmarks.bench_traces import Synthetic
from latency.baseline import from_store
from latency.percentiles import percentiles, recent, summary, what_if
from latency.percentiles.percentiles import COLUMNS, Selection
from latency.percentiles.summary import View
from latency.percentiles.table import StageTables
from latency.percentiles.what_if import Scenario
from latency.readings.store import ReadingStore
from latency.types import LOCAL, QueryReadings, Series
from rag.trace_file import closing, open_file
from rag.trace_rows import STAGE_SQL, QueryFilter, to_rows
from rag.trace_store import TraceStore
from rag.types import Answer, Interval, Options, Outcome, Split, Stage, Tokens

UNTIL_UNIX = 1_795_219_200.0  # 2026-11-21T00:00:00Z, the end of the synthetic time
DAYS = 30
_ORDER = ("cache", "hyde", "embed", "search", "rerank", "generate")
_TYPICAL = {"cache": 0.004, "hyde": 1.6, "embed": 0.012, "search": 0.06, "rerank": 0.19, "generate": 3.4}
_LOADS = {"embed": 9.0, "rerank": 1.8}


class Stored:
    """Makes answers as a deployment would leave them: slower by day, a reranker that moved from the CPU to a GPU after two
    thirds of the time, another language model at the end, cache hits, cold starts, measured runs, and another program's."""

    def __init__(self, seed: int = 11) -> None:
        self._random = random.Random(seed)

    def answers(self, n: int, until_unix: float = UNTIL_UNIX, days: float = DAYS) -> Iterator[Answer]:
        """`n` answers spread over the `days` before `until_unix`, oldest first."""
        for number in range(n):
            share = (number + self._random.random()) / n
            yield self.one(number, until_unix - days * 86_400 * (1 - share), share)

    def one(self, number: int, at: float, share: float) -> Answer:
        rng = self._random
        origin = rng.choices(("ask", "api", "measure", "otlp:shop"), (50, 32, 12, 6))[0]
        outcome: Outcome = rng.choices(("answered", "no_documents", "failed", "cancelled"), (95, 2, 2, 1))[0]
        hit, cold = origin != "measure" and rng.random() < 0.12, rng.random() < 0.01
        busy = 1 + 0.5 * max(0.0, math.sin((at % 86_400) / 86_400 * 2 * math.pi - 1.5))
        ran = ["cache"] if hit else [name for name in _ORDER if name != "hyde" or rng.random() < 0.35]
        ran = ran if outcome == "answered" else ran[:3]
        stages, timeline, at_seconds = [], [], 0.001
        for name in ran:
            stage, units = self._stage(name, busy, cold, share)
            stages.append(stage)
            facts = {} if units is None else {_FACTS[name]: units}
            timeline.append(Interval(name, at_seconds, stage.seconds, name, stage.split, stage.cold, facts))
            at_seconds += stage.seconds + 0.0003
        stages = [replace(each, hit=hit) if each.stage == "cache" else each for each in stages]
        return Answer(
            id=f"{int(at * 1000):012x}{rng.getrandbits(80):020x}",
            question=f"(synthetic {number}) Which seal fits pump {rng.randint(1, 400)}?",
            started_at=datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"),
            outcome=outcome,
            stages=tuple(stages),
            timeline=tuple(timeline),
            total_seconds=at_seconds,
            ttft_seconds=None if "generate" not in ran else 0.4 * busy,
            tokens=Tokens(900, int(stages[-1].seconds * 45)) if "generate" in ran else Tokens(),
            options=Options(hyde="auto", candidates=rng.choice((20, 40, 40, 40, 100))),
            fingerprint={"version": "synthetic", "settings": f"synthetic-{int(share * 4)}"},
            origin=origin,
        )

    def _stage(self, name: str, busy: float, cold: bool, share: float) -> tuple[Stage, float | None]:
        rng = self._random
        on_gpu = share > 2 / 3
        compute = _TYPICAL[name] * rng.lognormvariate(0, 0.35) * busy * (4.0 if name == "rerank" and not on_gpu else 1.0)
        load = _LOADS[name] * rng.uniform(0.8, 1.3) if cold and name in _LOADS else 0.0
        network = rng.uniform(0.02, 0.05) if name == "search" else 0.002 if name in ("hyde", "generate") else None
        queue = rng.expovariate(1 / 0.004) if name in ("embed", "rerank") else 0.0
        seconds = compute + load + queue + (network or 0.0)
        model = {"embed": "synthetic-embedder", "rerank": "synthetic-reranker"}.get(name)
        if name in ("hyde", "generate"):
            model = "synthetic-8b" if share < 0.9 else "synthetic-14b"
        stage = Stage(
            name,
            seconds,
            1,
            bool(load),
            device=("cuda:0" if on_gpu else "cpu") if name == "rerank" else "cpu" if name == "embed" else None,
            model=model,
            where="in-process" if name in ("embed", "rerank") else None,
            split=Split(load=load, queue=queue, compute=compute, network=network),
        )
        units = {"embed": 14.0, "search": 40.0, "rerank": 40.0, "hyde": 90.0, "generate": round(seconds * 45)}.get(name)
        return stage, units


_FACTS = {
    "embed": "tokens",
    "search": "limit",
    "rerank": "candidates",
    "hyde": "completion_tokens",
    "generate": "completion_tokens",
}


def fill(path: Path, n: int, *, seed: int = 11, until_unix: float = UNTIL_UNIX, days: float = DAYS) -> list[str]:
    """Write `n` synthetic queries into the trace file, past the store's queue; returns their ids, oldest first."""
    ids: list[str] = []
    with closing(open_file(path)) as db:
        db.execute("BEGIN")
        for answer in Stored(seed).answers(n, until_unix, days):
            rows = to_rows(answer, (), content=True)
            columns = ", ".join(rows.query)
            db.execute(f"INSERT INTO queries ({columns}) VALUES ({_marks(rows.query)})", tuple(rows.query.values()))
            db.execute("INSERT INTO answers VALUES (?, ?)", (answer.id, rows.answer))
            db.execute("INSERT INTO spans VALUES (?, ?)", (answer.id, rows.spans))
            db.executemany(f"INSERT INTO stages ({STAGE_SQL}) VALUES ({_marks(STAGE_SQL.split(','))})", rows.stages)
            ids.append(answer.id)
        db.execute("COMMIT")
    return ids


def _marks(columns: Any) -> str:
    return ", ".join("?" * len(columns))


def busy_hour(store: TraceStore, readings: ReadingStore, n: int, until_unix: float = UNTIL_UNIX) -> None:
    """Store `n` more queries in the last hour, with all that a real one leaves behind."""
    whole = Synthetic(3)
    for number, answer in enumerate(Stored(12).answers(n, until_unix, 1 / 24)):
        like, spans = whole.one(number, until_unix)
        store.save(replace(answer, passages=like.passages, prompt=like.prompt), spans)
        readings.save(_readings(answer, until_unix))
    store.flush(120.0)
    readings.flush(120.0)


def _readings(answer: Answer, at: float) -> QueryReadings:
    rng = random.Random(answer.id)
    times = tuple(tick / 20 for tick in range(int(answer.total_seconds * 20) + 2))
    names = [f"gpu.0.{name}" for name in ("utilization_ratio", "memory_used_bytes", "power_watts", "sm_clock_hertz")]
    names += ["cpu.busy_ratio", "process.cpu_ratio", "memory.used_bytes", "disk.sda.busy_ratio"]
    series = [Series(LOCAL, name, times, tuple(rng.uniform(0.1, 0.4) for _ in times)) for name in names]
    return QueryReadings(answer.id, at, answer.total_seconds, tuple(series))


def measured(store: TraceStore, readings: ReadingStore, hour: int, rounds: int) -> dict[str, float]:
    """Milliseconds of the page's data path, of one more query, and of the findings of the last hour."""
    tables = StageTables(store.path)
    before = _rss_mib()
    first = _ms(lambda: tables.at(store.revision), 1)
    grown = _rss_mib() - before
    table = tables.at(store.revision)
    views = [View(Selection(), column, option=option) for column in COLUMNS for option in ("hyde", "rerank_device", "model")]
    rows = percentiles.choose(table, Selection()).rows
    pages = iter(views * rounds)
    scenario = Scenario(0.5, 0.3, rerank_seconds=0.1, near_store=True, tokens_per_second=60)
    result = {
        "first_read_ms": first,
        "first_read_mib": grown,
        "stages_ms": _ms(lambda: summary.whole(table, Selection()), rounds),
        "column_ms": _ms(lambda: summary.focus(table, next(pages)), rounds * 3),
        "slowest_ms": _ms(lambda: tables.rows(table.ids[summary.listed(table, views[0])[:10]].tolist()), rounds),
        "what_if_ms": _ms(lambda: what_if.predict(table, rows, scenario), rounds),
    }
    busy_hour(store, readings, hour)
    result["one_more_query_ms"] = _ms(lambda: _one_more(store, tables), rounds)
    where = QueryFilter(since=UNTIL_UNIX - 3600, measured=False)
    result["usual_ms"] = _ms(lambda: from_store(store, before=UNTIL_UNIX - 3600), rounds)
    usual = from_store(store, before=UNTIL_UNIX - 3600)
    result["findings_of_an_hour_ms"] = _ms(lambda: recent.findings(store, readings, usual, where), rounds)
    found = recent.findings(store, readings, usual, where)
    return {**result, "queries_of_the_hour": found.looked_at, "findings": len(found.findings), "full_reads": tables.full_reads}


def _one_more(store: TraceStore, tables: StageTables) -> None:
    """A query was stored: the table is brought up to date. The storing is timed too, which is milliseconds."""
    store.save(next(Stored(time.time_ns()).answers(1, UNTIL_UNIX, 1 / 86_400)))
    store.flush()
    tables.at(store.revision)


def page_reruns(data: Path, rounds: int) -> dict[str, float]:
    """The page itself over the same file: the first run, and reruns each with a filter that no other run had."""
    os.environ |= {"RAGDECK_DATA": str(data), "HF_HUB_OFFLINE": "1"}
    app = AppTest.from_string(_FRAME, default_timeout=120)
    app.query_params["range"] = "all"
    first = _ms(app.run, 1)
    spent = []
    for column in COLUMNS:
        for heat in ("all", "warm")[: max(1, rounds // 2)]:
            app.selectbox(key="stage").set_value(column)
            app.segmented_control(key="heat").set_value(heat)
            spent.append(_ms(app.run, 1))
    if app.exception:
        raise RuntimeError(f"the page failed: {app.exception[0].message}")
    again = _ms(app.run, rounds)
    runtime.shut_down()
    return {
        "page_first_ms": first,
        "page_rerun_ms": round(median(spent), 1),
        "page_rerun_longest_ms": max(spent),
        "page_same_ms": again,
    }


_FRAME = """
import streamlit as st
from ui.links import page
st.navigation([st.Page(page(name), default=name == "latency") for name in ("latency", "ask", "queries", "query")]).run()
"""


def _ms(call: Callable[[], Any], rounds: int) -> float:
    spent = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        spent.append((time.perf_counter() - started) * 1000)
    return round(median(spent), 1)


def _rss_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--hour", type=int, default=600, help="queries of the last hour")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traces.db"
        print(f"storing {given.queries} synthetic queries …")
        fill(path, given.queries)
        store, readings = TraceStore(path), ReadingStore(Path(folder) / "readings.db")
        try:
            result = measured(store, readings, given.hour, given.rounds)
        finally:
            store.close()
            readings.close()
        result |= page_reruns(Path(folder), given.rounds)
    for key, value in result.items():
        print(f"{key:32}{value:>12,.1f}")
    print(json.dumps({"benchmark": "latency", "queries": given.queries, "rounds": given.rounds, **result}))


if __name__ == "__main__":
    main()
