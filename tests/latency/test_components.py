"""Component tests on real parts: starter models, Milvus Lite embedded and as a server, sockets, files; fakes for GPU and LLM."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from collectors.readings import Fault, Gpu, GpuProcess, Gpus
from collectors.services import Service
from gpu_server.errors import ModelError
from gpu_server.interfaces import ModelInfo, Scores, Timing
from latency.components import components, targets
from latency.components import machine as component_machine
from latency.components.components import ComponentsResult
from latency.components.rows import Bench, Parts, Row, judged
from latency.components.targets import Target
from models import ModelStatus
from rag.chat import OpenAIChat
from rag.errors import HeldError, RagError
from rag.store_lock import StoreLock
from tests.latency.small_lab import SmallLab
from tests.llm import fakes
from tests.llm.fakes import DONE, FakeServer
from tests.ports import free_port, reserved_port

USAGE = {**fakes.delta(), "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}
SPOKEN = (
    *(
        fakes.events(fakes.delta(content=word)) if not index else f"data: {json.dumps(fakes.delta(content=word))}\n\n".encode()
        for index, word in enumerate(["Yes ", "it ", "is."])
    ),
    f"data: {json.dumps(USAGE)}\n\n".encode() + DONE,
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallLab]:
    made = SmallLab(tmp_path_factory.mktemp("components"))
    yield made
    made.stop()


def ran(lab: SmallLab, parts: Parts | None = None, *only: str, held=None, reload: bool = False):
    work = components.work(lab, held or {}, parts or lab.parts(), only=only, reload=reload)
    job = lab.jobs.submit("experiment", "components", work)
    assert job.wait(90)
    return job


def table(job) -> dict[str, Row]:
    assert job.state == "finished", job.error
    assert isinstance(job.result, ComponentsResult)
    return {row.code: row for row in job.result.rows}


# the whole table


@pytest.fixture(scope="module")
def whole(lab: SmallLab):
    return ran(lab, held=targets.preset("r1-a100", "r2-cpu"))


def test_every_component_has_its_rows_with_what_was_timed(whole):
    rows = table(whole)
    timed = {code for code, row in rows.items() if row.seconds is not None}
    assert timed >= {
        *("embedder.load", "embedder.first", "embedder.warm", "reranker.load", "reranker.1", "reranker.20", "reranker.50"),
        *("store.connect", "store.load", "store.connect_load", "store.first_search", "store.search"),
    }
    assert all(row.seconds > 0 for row in rows.values() if row.seconds is not None)
    assert (rows["embedder.warm"].n, rows["store.connect"].n) == (5, 1)
    assert rows["embedder.warm"].seconds == sorted(rows["embedder.warm"].samples)[2]
    assert rows["store.connect_load"].seconds == pytest.approx(rows["store.connect"].seconds + rows["store.load"].seconds)
    assert rows["store.search"].values["rows"] == 4
    assert "copy" in rows["store.connect"].detail
    assert whole.result.count("failed") == 0


def test_what_cannot_be_tested_here_is_skipped_with_the_reason(whole):
    rows = table(whole)
    for code, said in (
        ("llm.short", "no language model"),
        ("network.connect", "in this process"),
        ("disk.read", "no model"),
        ("memory.gpu", "GPU"),
    ):
        assert (rows[code].verdict, rows[code].seconds) == ("skipped", None)
        assert said in rows[code].reason


def test_the_starters_blend_is_held_against_no_target_for_a_model(whole):
    rows = table(whole)
    assert rows["reranker.20"].target is None
    assert "not a reranker model" in rows["reranker.20"].detail
    assert rows["embedder.load"].target == Target(12.41, "R1 A100 80 GB")


def test_the_result_is_json_and_tells_its_counts(whole):
    data = json.loads(json.dumps(whole.result.to_json()))
    assert {row["code"]: row["n"] for row in data["rows"]}["embedder.warm"] == 5
    assert data["summary"] == whole.result.summary
    assert f"{whole.result.count('skipped')} skipped" in data["summary"]
    kinds = [event["type"] for event in whole.events()]
    assert kinds.count("component_started") == len(components.TESTS)
    assert kinds.count("component") == len(data["rows"])


def test_the_process_keeps_its_store_and_its_lock(lab: SmallLab, whole):
    name = lab.store.use(lab.in_force.embedder.info)
    assert lab.store.count(name) == 4
    with pytest.raises(HeldError):
        StoreLock(lab.folder / "milvus.lock").acquire()


def test_only_some_components_and_no_unknown_ones(lab: SmallLab):
    assert set(table(ran(lab, None, "reranker"))) == {f"reranker.{what}" for what in ("load", "first", "1", "20", "50")}
    with pytest.raises(RagError, match="no component test warp"):
        components.work(lab, {}, lab.parts(), only=("warp",))


# verdicts


def test_a_median_over_its_target_is_slow_and_at_it_is_ok():
    row = Row("llm.short", "short", (0.1, 0.5, 0.3))
    assert judged(row, Target(0.3, "me")).verdict == "ok"
    slow = judged(row, Target(0.2, "me"))
    assert (slow.verdict, slow.reason) == ("slow", "1.5 times the target of me")
    assert judged(row, None).verdict == "ok"
    assert judged(replace(row, comparable=False), Target(0.2, "me")).target is None
    assert judged(replace(row, verdict="failed", samples=()), Target(0.2, "me")).verdict == "failed"


def test_what_has_no_target_is_not_called_ok():
    timed = Row("llm.short", "short", (0.1,))
    rows = (
        judged(timed, None),
        judged(timed, Target(0.3, "me")),
        judged(timed, Target(0.01, "me")),
        Row("x", "x", verdict="skipped"),
    )
    assert [row.word for row in rows] == ["no target", "ok", "slow", "skipped"]
    assert ComponentsResult(rows, 1.0).summary == "1 ok, 1 slow, 1 skipped, 1 with no target"


def test_presets_have_the_numbers_of_the_reports_and_a_later_one_wins():
    found = targets.preset("r1-a100", "r2-t4", "r2-cpu")
    assert (found["store.connect_load"].seconds, found["reranker.first"].seconds) == (2.29, 7.25)
    assert found["reranker.50"] == Target(1.5, "R2 CPU", "2025-01")
    assert {code for preset in targets.PRESETS.values() for code in preset.seconds} <= set(targets.CODES)
    with pytest.raises(RagError, match="no targets 'r9'"):
        targets.preset("r9")


def test_targets_by_hand_are_checked_and_one_for_a_kind_is_for_all_of_it():
    found = targets.edited({"network.connect": "0.05", "network.connect:llm": 0.2})
    assert targets.target_of("network.connect:llm", found).seconds == 0.2
    assert targets.target_of("network.connect:store", found).seconds == 0.05
    assert targets.target_of("disk.read", found) is None
    for code, value in (
        ("no.such", 1),
        ("llm.short", 0),
        ("llm.short", -1),
        ("llm.short", "x"),
        ("llm.short", float("nan")),
        ("llm.short", None),
    ):
        with pytest.raises(RagError) as caught:
            targets.edited({code: value})
        assert caught.value.kind == "bad_input"


# models


def test_load_and_first_run_are_the_pools_record_and_with_reload_a_second_copy(lab: SmallLab):
    kept = lab.pool.status()[0]
    rows = table(ran(lab, None, "embedder"))
    assert rows["embedder.load"].samples == (kept.load_seconds,)
    assert "recorded" in rows["embedder.load"].detail
    made = []

    def fresh():
        made.append(lab._fresh_pool())
        return made[-1]

    again = table(ran(lab, replace(lab.parts(), fresh_pool=fresh), "embedder", reload=True))
    assert again["embedder.load"].samples == (made[0].status()[0].load_seconds,)
    assert "second copy" in again["embedder.load"].detail
    assert lab.pool.status()[0].loaded_at == kept.loaded_at  # the one in use was not touched


def test_a_second_copy_that_does_not_fit_is_not_loaded(lab: SmallLab):
    huge = ModelStatus("embedder", "huge", "warm", device="cuda:1", memory_bytes=50 * 10**9)
    gpus = Gpus((Gpu(index=1, memory_free_bytes=60 * 10**9),))
    parts = replace(lab.parts(), models=lambda: [huge], gpus=lambda: gpus)
    row = table(ran(lab, parts, "embedder", reload=True))["embedder.load"]
    assert (row.verdict, row.seconds) == ("skipped", None)
    assert "75 GB are needed on cuda:1, 60 GB are free" in row.reason


def test_a_remote_model_shows_what_its_server_tells_and_skips_what_it_does_not(lab: SmallLab):
    def told(**values):
        status = ModelStatus("reranker", "far", "remote", where="http", address="http://far:8000", **values)
        return table(ran(lab, replace(lab.parts(), models=lambda: [status]), "reranker"))

    rows = told(load_seconds=3.5, first_run_seconds=0.7)
    assert (rows["reranker.load"].seconds, rows["reranker.first"].seconds) == (3.5, 0.7)
    assert "connecting included" in rows["reranker.first"].detail
    assert told()["reranker.load"].reason == "the server at http://far:8000 does not tell"


class FakeReranker:
    """Keeps what it was asked; `wrong` makes it fail from that many candidates."""

    uses_route_scores = False
    info = ModelInfo("fake", "reranker", "fake", "cpu", "fp32")

    def __init__(self, wrong: int = 1000) -> None:
        self.asked, self.wrong = [], wrong

    def score(self, query, candidates, *, deadline=None, caches="use"):
        if len(candidates) >= self.wrong:
            raise ModelError("out of memory", next_step="Take fewer.")
        self.asked.append((query, len(candidates), caches, deadline))
        return Scores(np.zeros(len(candidates), dtype=np.float32), Timing(), tokens=10 * len(candidates))


def test_rerank_runs_bypass_caches_differ_from_each_other_and_end_in_time(lab: SmallLab, monkeypatch):
    reranker = FakeReranker()
    monkeypatch.setattr(lab, "in_force", replace(lab.in_force, reranker=reranker))
    rows = table(ran(lab, None, "reranker"))
    warm = reranker.asked[1:]
    assert [count for _, count, _, _ in warm] == [1] * 5 + [20] * 5 + [50] * 5
    assert {caches for _, _, caches, _ in reranker.asked} == {"bypass"}
    assert len({query for query, count, _, _ in warm if count == 20}) == 5
    assert all(deadline is not None for _, _, _, deadline in reranker.asked)
    assert rows["reranker.50"].values == {"candidates": 50, "tokens": 500}
    assert "4 of them, repeated" in rows["reranker.50"].detail


def test_a_part_that_breaks_keeps_its_rows_until_then_and_costs_no_other(lab: SmallLab, monkeypatch):
    monkeypatch.setattr(lab, "in_force", replace(lab.in_force, reranker=FakeReranker(wrong=50)))
    rows = table(ran(lab, None, "reranker", "embedder"))
    assert rows["reranker.20"].verdict == "ok"
    assert "reranker.50" not in rows
    assert (rows["reranker"].verdict, rows["reranker"].reason) == ("failed", "out of memory. Take fewer.")
    assert rows["embedder.warm"].verdict == "ok"


def test_no_reranker_is_skipped(lab: SmallLab, monkeypatch):
    monkeypatch.setattr(lab, "in_force", replace(lab.in_force, reranker=None))
    assert {row.verdict for row in table(ran(lab, None, "reranker")).values()} == {"skipped"}


# language model


def test_short_and_long_answers_with_first_token_and_rate(lab: SmallLab, monkeypatch):
    with FakeServer([SPOKEN]) as server:
        monkeypatch.setattr(lab, "in_force", replace(lab.in_force, chat=OpenAIChat(server.address, "m", None, timeout=20.0)))
        rows = table(ran(lab, None, "llm"))
    assert set(rows) == {"llm.short", "llm.long"}
    for row in rows.values():
        assert 0 < row.values["ttft_seconds"] <= max(row.samples)
        assert row.values["completion_tokens"] == 3
    assert (rows["llm.short"].n, rows["llm.long"].n) == (5, 2)
    prompts = [request.body["messages"][0]["content"] for request in server.requests]
    assert len(set(prompts)) == len(prompts) == 7
    assert {request.body["max_tokens"] for request in server.requests} == {8, 256}


def test_a_language_model_that_is_away_is_a_failed_row_with_what_to_do(lab: SmallLab, monkeypatch):
    with reserved_port() as port:
        chat = OpenAIChat(f"http://127.0.0.1:{port}", "m", None, timeout=5.0)
        monkeypatch.setattr(lab, "in_force", replace(lab.in_force, chat=chat))
        row = table(ran(lab, None, "llm"))["llm"]
    assert row.verdict == "failed"
    assert row.reason


# store as a server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with reserved_port() as port:
        yield from _serving(tmp_path_factory.mktemp("milvus-server"), port)


def _serving(folder: Path, port: int) -> Iterator[str]:
    command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(folder), "--host", "127.0.0.1"]
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait(20)


class Proxy:
    """A TCP proxy that counts connections."""

    def __init__(self, port: int) -> None:
        self.port, self.count = port, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            self.count += 1
            far = socket.create_connection(("127.0.0.1", self.port))
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    @staticmethod
    def _pass(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):  # either side has gone
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)


def test_a_server_is_connected_to_anew_and_the_open_connection_lives_on(server: str, tmp_path: Path):
    proxy = Proxy(int(server.rpartition(":")[2]))
    lab = SmallLab(tmp_path, uri=proxy.address)
    try:
        before = proxy.count
        rows = table(ran(lab, None, "store"))
        assert proxy.count > before  # not the connection that was there
        assert rows["store.connect"].values["round_trip_seconds"] > 0
        assert "new process" in rows["store.connect"].detail
        assert "only checks it" in rows["store.load"].detail
        assert rows["store.search"].values["round_trip_seconds"] > 0
        assert lab.ask("Why is the first rerank slow?").outcome == "answered"
    finally:
        lab.stop()
        proxy.listener.close()


def test_a_store_that_cannot_be_reached_anew_is_a_failed_row(lab: SmallLab):
    parts = lab.parts()
    with reserved_port() as port:
        store = replace(parts.store, uri=f"http://127.0.0.1:{port}", timeout_seconds=1.0, token="secret-token")
        row = table(ran(lab, replace(parts, store=store), "store"))["store"]
    assert row.verdict == "failed"
    assert "connect" in row.reason
    assert "secret-token" not in json.dumps(row.to_json())


def test_too_many_files_to_copy_is_said(lab: SmallLab, monkeypatch):
    monkeypatch.setattr("latency.components.store.COPY_BYTES", 1)
    rows = table(ran(lab, None, "store"))
    assert (rows["store.connect"].verdict, rows["store.search"].verdict) == ("skipped", "ok")
    assert rows["store.connect"].reason.startswith("already open")


# network


class _Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"data": [{"id": "m"}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


def test_each_remote_address_is_connected_to_and_asked(lab: SmallLab):
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Health)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    closed = f"http://127.0.0.1:{free_port()}"
    services = (
        Service("llm", "openai-chat", f"http://127.0.0.1:{http.server_port}/v1", "m", "sk-very-secret"),
        Service("store", "milvus", closed),
        Service("bad", "http", "http://[half", None),
    )
    try:
        rows = table(
            ran(lab, replace(lab.parts(), endpoints=services), "network", held=targets.edited({"network.connect": 1e-9}))
        )
    finally:
        http.shutdown()
        http.server_close()
    assert rows["network.connect:llm"].n == 5
    assert rows["network.connect:llm"].verdict == "slow"
    assert (rows["network.http:llm"].n, rows["network.http:llm"].verdict) == (3, "ok")
    assert rows["network.connect:store"].verdict == "failed"
    assert "refused" in rows["network.connect:store"].reason
    assert rows["network.connect:bad"].verdict == "failed"
    assert "very-secret" not in json.dumps([row.to_json() for row in rows.values()])


# disk and memory


def bench(lab: SmallLab) -> Bench:
    return Bench(lab.clients(), lab.default_options(), lab.parts())


def test_a_folder_is_read_through_and_its_rate_told(lab: SmallLab, tmp_path: Path):
    (tmp_path / "weights").write_bytes(b"x" * 5_000_000)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "config.json").write_text("{}")
    row = table(ran(lab, replace(lab.parts(), folders={"embedder": lambda: tmp_path}), "disk"))["disk.read:embedder"]
    assert row.values["read_bytes"] == 5_000_002
    assert row.values["bytes_per_second"] == pytest.approx(5_000_002 / row.seconds)
    assert "all of it" in row.detail


def test_reading_is_bounded_in_bytes_and_seconds(lab: SmallLab, tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x" * 6_000_000)
    some = component_machine.read_through(bench(lab), tmp_path, most_bytes=7_000_000)
    assert (some.read_bytes, some.whole) == (7_000_000, False)
    late = component_machine.read_through(bench(lab), tmp_path, most_seconds=0.0)
    assert late.read_bytes < 12_000_000
    assert not late.whole


def test_a_folder_that_is_not_there_is_failed(lab: SmallLab):
    def nowhere() -> Path:
        raise ModelError("no such model", next_step="Copy it.")

    row = table(ran(lab, replace(lab.parts(), folders={"embedder": nowhere}), "disk"))["disk.read:embedder"]
    assert (row.verdict, row.reason) == ("failed", "no such model. Copy it.")


def test_memory_by_model_and_by_gpu_with_who_holds_it(lab: SmallLab):
    gpus = Gpus(
        (Gpu(index=0, uuid="u0", name="Card", memory_total_bytes=80 * 10**9, memory_used_bytes=60 * 10**9),),
        processes=(GpuProcess("u0", 11, "/usr/bin/vllm", 58 * 10**9), GpuProcess("u1", 12, "other", 1)),
    )
    far = ModelStatus("reranker", "far", "remote", where="http", address="http://far", memory_bytes=2 * 10**9)
    parts = replace(lab.parts(), models=lambda: [far, ModelStatus("embedder", "near", "warm")], gpus=lambda: gpus)
    rows = table(ran(lab, parts, "memory"))
    assert rows["memory.reranker"].values == {"memory_bytes": 2 * 10**9}
    assert rows["memory.embedder"].verdict == "skipped"
    assert rows["memory.gpu:0"].values == {"memory_bytes": 60 * 10**9, "memory_total_bytes": 80 * 10**9}
    assert "vllm 11 58.00 GB" in rows["memory.gpu:0"].detail
    assert "other" not in rows["memory.gpu:0"].detail


def test_gpus_that_cannot_be_read_are_not_none_at_all(lab: SmallLab):
    unread = Gpus(None, faults=(Fault("no_driver", "the driver does not answer", "Reload it."),))
    rows = table(ran(lab, replace(lab.parts(), gpus=lambda: unread), "memory"))
    assert "the driver does not answer" in rows["memory.gpu"].reason


# cancelling


def test_a_cancel_keeps_the_rows_until_then(lab: SmallLab):
    entered, go = threading.Event(), threading.Event()

    def stuck() -> Path:
        entered.set()
        go.wait(20)
        return Path(__file__).parent

    work = components.work(lab, {}, replace(lab.parts(), folders={"embedder": stuck}), only=("reranker", "disk", "embedder"))
    job = lab.jobs.submit("experiment", "components", work)
    assert entered.wait(60)
    job.cancel()
    go.set()
    assert job.wait(30)
    assert job.state == "cancelled"
    assert job.result.stopped
    assert {row.code for row in job.result.rows} == {f"reranker.{what}" for what in ("load", "first", "1", "20", "50")}
