"""The API behind its guard on a real server with a real runtime (starter models, embedded store)."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import anyio
import httpx
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from collectors import metrics_api
from gpu_server.interfaces import Embedder, Embeddings
from guard import Guard, Policy
from jobs import Job
from rag import api
from rag.errors import RagError
from rag.types import Options
from runtime import Runtime
from settings import load

PATIENCE = 60.0
MAX_RUNNING = 2
NOTES = {
    "gpu.md": "# GPU memory\n\nWhen the GPU runs out of memory, lower the batch size or unload a model.\n",
    "milvus.md": "# Milvus\n\nMilvus refuses connections until its port 19530 is open in the firewall.\n",
    "he.md": "# זיכרון\n\nכאשר הזיכרון מלא, יש להקטין את גודל האצווה.\n",
}
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


class HeldEmbedder:
    """Named a fake: the real embedder, which answers once it is let go."""

    def __init__(self, inner: Embedder, going: threading.Event) -> None:
        self.info, self._inner, self._going = inner.info, inner, going

    def embed(self, *arguments: Any, **options: Any) -> Embeddings:
        assert self._going.wait(PATIENCE)
        return self._inner.embed(*arguments, **options)

    def count_tokens(self, text: str) -> int:
        return self._inner.count_tokens(text)


@dataclass
class Served:
    """A running API. `warming` is what its health said before the models were warm."""

    url: str
    runtime: Runtime
    warming: httpx.Response | None = None

    def get(self, path: str, **params: Any) -> httpx.Response:
        return httpx.get(self.url + path, params=params, timeout=PATIENCE, verify=False)

    def ask(self, body: Any, **headers: str) -> httpx.Response:
        given: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {"json": body}
        all_headers = {"content-type": "application/json", **headers}
        return httpx.post(f"{self.url}/api/v1/ask", headers=all_headers, timeout=PATIENCE, verify=False, **given)

    def answer(self, question: str, **options: Any) -> dict[str, Any]:
        response = self.ask({"query": question, "collection": "notes", **options})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Every query waits at its first stage, for an embedder that is let go in the end."""
        before, going = self.runtime.models, threading.Event()
        self.runtime.models = replace(before, embedder=HeldEmbedder(before.embedder, going))
        try:
            yield
        finally:
            going.set()
            self.runtime.models = before

    def running(self) -> list[Job[Any]]:
        return [job for job in self.runtime.jobs.recent("query") if not job.done]


def serve(get_runtime: Callable[[], Any]) -> contextlib.AbstractContextManager[str]:
    routes = [*api.routes(get_runtime), *metrics_api.routes_of(get_runtime)]
    return serving(Guard(Starlette(routes=routes), Policy("127.0.0.1")))


@contextlib.contextmanager
def serving(app: Guard) -> Iterator[str]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        wait_for(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(PATIENCE)


def wait_for(happened: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (result := happened()):
        assert time.monotonic() < end, "did not happen in time"
        threading.Event().wait(0.01)
    return result


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The active collection is empty, `notes` has three documents."""
    root = tmp_path_factory.mktemp("api")
    (root / "dashboard.toml").write_text(f"[ingest]\nsample_corpus = false\n[query]\nmax_running = {MAX_RUNNING}\n")
    for name, text in NOTES.items():
        (root / "notes").mkdir(exist_ok=True)
        (root / "notes" / name).write_text(text)
    runtime = Runtime(load({"RAGDECK_DATA": str(root / "data")}, root=root))
    opened, prepare = threading.Event(), runtime.library.prepare

    def prepare_when_opened() -> None:
        assert opened.wait(PATIENCE)
        prepare()

    runtime.library.prepare = prepare_when_opened  # type: ignore[method-assign]
    with serve(lambda: runtime) as url:
        served = Served(url, runtime)
        runtime.start()
        served.warming = served.get("/api/health")
        opened.set()
        assert runtime.wait_warm(PATIENCE)
        job = runtime.submit_ingest([root / "notes"], "notes")
        assert job.wait(PATIENCE) and job.state == "finished", job.error
        yield served
        runtime.stop()


def refused(response: httpx.Response, status: int, kind: str) -> str:
    """The error's message; fails where it is another error or one that does not say what to do."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["kind"] == kind and error["next_step"]
    return str(error["message"])


def events(text: str) -> list[dict[str, Any]]:
    """The data of server-sent events; id and event lines must agree with it."""
    found = []
    for block in text.split("\n\n"):
        if not block or block.startswith(":"):
            continue
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        data = json.loads(fields["data"])
        assert (fields["id"], fields["event"]) == (str(data["seq"]), data["type"])
        found.append(data)
    return found


# 1) asking


def scraped(served: Served) -> dict[tuple[str, ...], float]:
    """The samples of /metrics by name and values of their labels."""
    page = served.get("/metrics").text
    families = text_string_to_metric_families(page)
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def test_what_is_asked_is_counted_for_prometheus(served: Served) -> None:
    before = scraped(served)
    served.answer("When does Milvus refuse connections?", caches="bypass")
    served.ask({"query": "Milvus?", "collection": "notes"}, **{"x-ragdeck-origin": "measure"})
    refused(served.ask({"query": ""}), 400, "bad_input")
    after = scraped(served)

    def grown(*sample: str) -> float:
        return after[sample] - before.get(sample, 0.0)

    assert grown("ragdeck_queries_total", "api", "answered") == grown("ragdeck_queries_total", "measure", "answered") == 1
    assert grown("ragdeck_query_seconds_count") == 1, "what is asked to measure is not what users wait"
    assert grown("ragdeck_query_stage_seconds_count", "search") == 1 and grown("ragdeck_query_stage_seconds_sum", "search") > 0
    assert after["ragdeck_jobs_running", "query"] == 0 and after["ragdeck_jobs_limit", "query"] == MAX_RUNNING
    with served.held():
        jobs = [served.runtime.submit_query("held?", Options(collection="notes", caches="bypass")) for _ in range(MAX_RUNNING)]
        refused(served.ask({"query": "one more?", "collection": "notes"}), 429, "overloaded")
        now = scraped(served)
        assert now["ragdeck_jobs_running", "query"] == MAX_RUNNING
        assert now["ragdeck_refused_queries_total",] == after["ragdeck_refused_queries_total",] + 1
    assert all(job.wait(PATIENCE) for job in jobs)
    assert after["ragdeck_machine_up", "local", "local"] in (0, 1), "what is watched is on the same page"


def test_an_answer_in_json(served: Served) -> None:
    answer = served.answer("What do I do when the GPU runs out of memory?")
    assert answer["outcome"] == "answered" and "batch size" in answer["answer"]
    assert answer["citations"][0]["source"].endswith("gpu.md")
    assert [stage["stage"] for stage in answer["stages"]] == ["cache", "hyde", "embed", "search", "rerank", "generate"]
    assert answer["total_seconds"] > 0 and answer["error"] is None and len(answer["id"]) == 32
    assert answer["options"]["collection"] == "notes" and answer["passages"][0]["kept"]


def test_hebrew_goes_in_and_out(served: Served) -> None:
    question = "מה עושים כאשר הזיכרון מלא?"
    response = served.ask({"query": question, "collection": "notes"})
    assert response.json()["question"] == question and question in response.text
    assert any(passage["source"].endswith("he.md") for passage in response.json()["passages"])


def test_options_are_taken_and_an_answers_options_can_be_sent_again(served: Served) -> None:
    answer = served.answer("port of Milvus", candidates=3, keep=1, rerank=False, hyde="off", caches="bypass")
    assert sum(passage["kept"] for passage in answer["passages"]) == 1
    again = served.ask({"query": "port of Milvus", **answer["options"]}).json()
    assert again["options"] == answer["options"]
    assert [passage["id"] for passage in again["passages"]] == [passage["id"] for passage in answer["passages"]]


def test_question_is_another_name_for_query(served: Served) -> None:
    assert served.ask({"question": "Milvus?", "collection": "notes"}).json()["question"] == "Milvus?"


def test_an_empty_collection_is_an_answer_not_an_error(served: Served) -> None:
    response = served.ask({"query": "Is there anything?"})
    answer = response.json()
    assert (response.status_code, answer["outcome"], answer["passages"], answer["error"]) == (200, "no_documents", [], None)
    assert answer["answer"]


def test_a_query_that_fails_says_where_and_has_a_status_of_its_own(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise RagError("nobody answers", kind="connection", address="http://milvus:19530", next_step="Start Milvus.")

    monkeypatch.setattr(served.runtime.store, "search", away)
    response = served.ask({"query": "x", "collection": "notes"})
    assert response.status_code == 502
    answer = response.json()
    assert answer["outcome"] == "failed"
    assert answer["error"] == {
        "stage": "search",
        "kind": "connection",
        "message": "nobody answers",
        "address": "http://milvus:19530",
        "next_step": "Start Milvus.",
    }


# 2) events


@pytest.mark.parametrize("way", ["accept", "body"])
def test_events_come_in_order_and_end_with_the_answer(served: Served, way: str) -> None:
    asked = {"query": "How do I free GPU memory?", "collection": "notes", "caches": "bypass"}
    body = {**asked, **({"stream": True} if way == "body" else {})}
    response = served.ask(body, **({"accept": "text/event-stream"} if way == "accept" else {}))
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream") and response.headers["cache-control"] == "no-cache"
    seen = events(response.text)
    assert [event["seq"] for event in seen] == list(range(1, len(seen) + 1))
    assert [event["at"] for event in seen] == sorted(event["at"] for event in seen)
    kinds = [event["type"] for event in seen]
    assert kinds.count("finished") == 1 and kinds[-1] == "finished"
    for stage in ("embed", "search", "rerank", "generate"):
        begun = next(event["seq"] for event in seen if event["type"] == "stage_started" and event["stage"] == stage)
        ended = next(event["seq"] for event in seen if event["type"] == "stage_finished" and event["stage"]["stage"] == stage)
        assert begun < ended
    answer = seen[-1]["answer"]
    assert "".join(event["text"] for event in seen if event["type"] == "token").strip() == answer["answer"]
    assert served.get(f"/api/v1/queries/{answer['id']}").json()["id"] == answer["id"]


def test_a_failed_query_ends_its_events_with_failed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.runtime.store, "search", lambda *_, **__: 1 / 0)
    response = served.ask({"query": "x", "collection": "notes"}, accept="text/event-stream")
    assert response.status_code == 200
    last = events(response.text)[-1]
    assert last["type"] == "failed" and last["answer"]["error"]["stage"] == "search"


def test_what_is_wrong_with_a_streamed_question_is_a_plain_error(served: Served) -> None:
    refused(served.ask({"query": ""}, accept="text/event-stream"), 400, "bad_input")


# 3) what is refused


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"{'query': 1}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"query": 1' + b"0" * 5000 + b"}",
        b"{}",
        b'{"query"}',
    ],
)
def test_bodies_that_are_no_question(served: Served, body: bytes) -> None:
    refused(served.ask(body), 400, "bad_input")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("query", 7),
        ("query", None),
        ("query", ["x"]),
        ("candidates", "40"),
        ("candidates", True),
        ("candidates", 0),
        ("candidates", 1001),
        ("candidates", 1.5),
        ("keep", 0),
        ("keep", -1),
        ("keep", 10**30),
        ("rerank", 1),
        ("rerank", "no"),
        ("rerank", None),
        ("hyde", True),
        ("hyde", "sometimes"),
        ("caches", "never"),
        ("model", 7),
        ("collection", []),
        ("stream", "yes"),
        ("stream", None),
    ],
)
def test_wrong_values_are_named(served: Served, key: str, value: Any) -> None:
    message = refused(served.ask({"query": "x", key: value}), 400, "bad_input")
    assert key in message


@pytest.mark.parametrize("key", ["top_k", "Query", "candidate", "", "__class__", "remote_parent"])
def test_unknown_keys_are_named(served: Served, key: str) -> None:
    assert repr(key) in refused(served.ask({"query": "x", key: 1}), 400, "bad_input")


@pytest.mark.parametrize("question", ["", " ", "\n\t", "\u2003"])
def test_an_empty_question(served: Served, question: str) -> None:
    assert "empty" in refused(served.ask({"query": question}), 400, "bad_input")


def test_too_long_a_question(served: Served) -> None:
    assert "20,001 characters" in refused(served.ask({"query": "x" * 20_001}), 400, "bad_input")
    assert "1,000,000 characters" in refused(served.ask({"query": "x" * 1_000_000}), 400, "bad_input")
    assert "4,000" in refused(served.ask({"query": "x" * 4_000_000}), 413, "bad_input")


def test_half_a_character_is_refused_and_odd_ones_are_not(served: Served) -> None:
    assert "surrogate" in refused(served.ask(rb'{"query": "a \ud800 b"}'), 400, "bad_input")
    assert "surrogate" in refused(served.ask(rb'{"query": "a", "model": "\udfff"}'), 400, "bad_input")
    assert (
        served.answer("null \0 and \u2028 and \U0001f600 and \ufffd?")["question"]
        == "null \0 and \u2028 and \U0001f600 and \ufffd?"
    )


def test_an_answer_with_half_a_character_is_still_answered() -> None:
    """A language model can break off between the halves of one."""
    assert api._bytes({"text": "a\ud83d"}) == b'{"text":"a?"}'


def test_methods_and_content_types(served: Served) -> None:
    assert served.get("/api/v1/ask").status_code == 405
    assert served.ask(b"query=x", **{"content-type": "text/plain"}).status_code == 415


def test_more_queries_than_may_run_are_told_to_wait(served: Served) -> None:
    statuses: list[int] = []
    asking = [
        threading.Thread(target=lambda: statuses.append(served.ask({"query": "x", "collection": "notes"}).status_code))
        for _ in range(MAX_RUNNING)
    ]
    with served.held():
        for thread in asking:
            thread.start()
        wait_for(lambda: len(served.running()) == MAX_RUNNING)
        refused(served.ask({"query": "one more"}), 429, "overloaded")
        refused(served.ask({"query": "one more"}, accept="text/event-stream"), 429, "overloaded")
        assert served.get("/api/health").status_code == 200  # busy is not broken
    for thread in asking:
        thread.join(PATIENCE)
    assert statuses == [200] * MAX_RUNNING
    assert served.ask({"query": "one more", "collection": "notes"}).status_code == 200


# 4) clients that go away


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_client_that_goes_away_cancels_its_query(served: Served, accept: str) -> None:
    body = json.dumps({"query": "never mind", "collection": "notes"}).encode()
    head = f"POST /api/v1/ask HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {accept}\r\nContent-Type: application/json\r\n"
    with served.held():
        with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), timeout=PATIENCE) as line:
            line.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            job = wait_for(served.running)[0]
        wait_for(job.cancelled.is_set)
    assert job.wait(PATIENCE) and job.state == "cancelled"
    assert served.get(f"/api/v1/queries/{job.result.id}").json()["outcome"] == "cancelled"


def test_a_client_that_goes_away_is_noticed_while_tokens_flow() -> None:
    """Without a silence in the events, too: a language model may write for a minute."""

    class Gone:
        async def is_disconnected(self) -> bool:
            return True

    def flood(job: Job[None]) -> Iterator[dict[str, Any]]:
        while not job.cancelled.is_set():
            yield {"type": "token", "text": "x"}
            job.cancelled.wait(0.01)
        return None

    async def follow(job: Job[Any]) -> None:
        async for _ in api._followed(job, Gone()):  # type: ignore[arg-type]
            assert job.elapsed() < PATIENCE

    job: Job[Any] = Job("query", "x")
    threading.Thread(target=job.run, args=(flood,), daemon=True).start()
    anyio.run(follow, job)
    assert job.state == "cancelled"


# 5) traces


def test_a_query_joins_its_callers_trace_under_an_id_of_its_own(served: Served) -> None:
    ids = [served.ask({"query": "traced", "collection": "notes"}, traceparent=TRACEPARENT).json()["id"] for _ in range(2)]
    assert len({*ids, TRACE_ID}) == 3
    stored = served.get(f"/api/v1/queries/{ids[0]}", spans="1").json()
    assert {span["trace_id"] for span in stored["spans"]} == {TRACE_ID}
    assert stored["spans"][0]["parent_id"] == TRACEPARENT.split("-")[2]
    assert "spans" not in served.get(f"/api/v1/queries/{ids[0]}").json()


@pytest.mark.parametrize(
    "header", ["", "nonsense", f"00-{'0' * 32}-b7ad6b7169203331-01", f"ff-{TRACE_ID}-b7ad6b7169203331-01", "x" * 5000]
)
def test_a_traceparent_that_is_none_is_left_out(served: Served, header: str) -> None:
    response = served.ask({"query": "traced", "collection": "notes"}, traceparent=header)
    assert response.status_code == 200
    spans = served.get(f"/api/v1/queries/{response.json()['id']}", spans="1").json()["spans"]
    assert {span["trace_id"] for span in spans} == {response.json()["id"]}


# 6) stored queries


@pytest.fixture(scope="module")
def listed(served: Served) -> list[str]:
    """Ids of five queries whose questions share a word that no other has, oldest first."""
    found = [served.answer(f"zebra {number} in Milvus 100%?")["id"] for number in range(5)]
    assert served.runtime.traces.flush(PATIENCE)  # a list has what is committed, which is a moment after the answer
    return found


def ids(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [row["id"] for row in response.json()["queries"]]


def test_queries_newest_first_in_pages_with_the_whole_count(served: Served, listed: list[str]) -> None:
    newest = listed[::-1]
    assert ids(served.get("/api/v1/queries", limit=5)) == newest
    pages = [served.get("/api/v1/queries", text="zebra", limit=2, offset=offset) for offset in (0, 2, 4, 6)]
    assert [ids(page) for page in pages] == [newest[:2], newest[2:4], newest[4:], []]
    assert {page.json()["total"] for page in pages} == {5}
    assert (pages[1].json()["limit"], pages[1].json()["offset"]) == (2, 2)
    row = pages[0].json()["queries"][0]
    assert row["question"] == "zebra 4 in Milvus 100%?" and row["outcome"] == "answered" and row["total_seconds"] > 0
    assert "answer" not in row


def test_filters(served: Served, listed: list[str]) -> None:
    def found(**given: Any) -> list[str]:
        return ids(served.get("/api/v1/queries", text="ZEBRA", **given))

    rows = {row["id"]: row for row in served.get("/api/v1/queries", text="zebra").json()["queries"]}
    third = rows[listed[2]]["started_at"]
    assert found(since=third) == listed[:1:-1] and found(until=third) == listed[1::-1]
    assert found(outcome="answered") == listed[::-1] and found(outcome="failed") == []
    assert found(cold="1") + found(cold="0") == listed[::-1]
    assert found(slower_than=1000) == [] and len(found(slower_than=0)) == 5
    assert found(model="extractive (no language model configured)") == listed[::-1] and found(model="another") == []
    assert ids(served.get("/api/v1/queries", text="4 in Milvus 100%")) == [listed[4]]
    assert ids(served.get("/api/v1/queries", text="%_%")) == []
    assert ids(served.get("/api/v1/queries", text=listed[0])) == [listed[0]]


@pytest.mark.parametrize(
    "given",
    [
        {"limit": "x"},
        {"limit": "0"},
        {"limit": "1001"},
        {"offset": "-1"},
        {"offset": str(10**30)},
        {"since": "yesterday"},
        {"cold": "maybe"},
        {"outcome": "lost"},
        {"slower_then": "1"},
        {"limit": "1.5"},
        {"limit": "9" * 5000},
        {"text": "x" * 20_001},
        {"text": "\0"},
    ],
)
def test_filters_that_are_none(served: Served, given: dict[str, str]) -> None:
    refused(served.get("/api/v1/queries", **given), 400, "bad_input")


@pytest.mark.parametrize(
    "given",
    [{"text": "%" * 20_000}, {"text": "' OR 1=1 --"}, {"since": "nan"}, {"until": "-inf"}, {"offset": "999999"}],
)
def test_odd_filters_find_nothing(served: Served, listed: list[str], given: dict[str, str]) -> None:
    assert ids(served.get("/api/v1/queries", **given)) == []


def test_one_query_is_what_was_answered(served: Served) -> None:
    answer = served.answer("firewall port?")
    stored = served.get(f"/api/v1/queries/{answer['id']}").json()
    assert stored == answer


@pytest.mark.parametrize("key", ["nothing", "0" * 32, "..%2f..%2fetc", "x" * 5000, "שאלה", "' OR 1=1 --"])
def test_a_query_that_is_not_there(served: Served, key: str) -> None:
    response = served.get(f"/api/v1/queries/{key}")
    assert response.status_code == 404
    if "/" not in httpx.URL(f"{served.url}/{key}").path[1:]:
        refused(response, 404, "not_found")


@pytest.mark.parametrize("key", ["%00", "%0A", "a%1fb", "%7f"])
def test_a_path_with_control_characters_is_refused(served: Served, key: str) -> None:
    assert served.get(f"/api/v1/queries/{key}").status_code == 400


def test_a_trace_store_that_cannot_be_read_is_an_error_that_says_so(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RagError("the disk is full", next_step="Free some space.")

    for name in ("search", "get"):
        monkeypatch.setattr(served.runtime.traces, name, broken)
    assert refused(served.get("/api/v1/queries"), 500, "internal") == "the disk is full"
    assert refused(served.get("/api/v1/queries/x"), 500, "internal") == "the disk is full"


# 7) health


def test_health_is_503_while_warming_and_200_after(served: Served) -> None:
    assert served.warming is not None
    assert (served.warming.status_code, served.warming.json()["status"]) == (503, "warming")
    response = served.get("/api/health")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ok",
        "version": served.runtime.status().version,
        "models": {"embedder": "warm", "reranker": "warm"},
        "store": None,
    }


def test_a_server_whose_settings_are_wrong_says_so_without_details() -> None:
    def broken() -> Any:
        raise ValueError("milvus.uri: http://user:secret@host")

    with serve(broken) as url:
        health = httpx.get(f"{url}/api/health", timeout=PATIENCE, verify=False)
        assert (health.status_code, health.json()) == (503, {"status": "broken"})
        for response in (
            httpx.get(f"{url}/api/v1/queries", timeout=PATIENCE, verify=False),
            httpx.get(f"{url}/api/v1/queries/x", timeout=PATIENCE, verify=False),
            httpx.post(f"{url}/api/v1/ask", json={"query": "x"}, timeout=PATIENCE, verify=False),
        ):
            refused(response, 500, "internal")
            assert "secret" not in response.text


def test_the_runtime_is_asked_for_at_each_request() -> None:
    asked: list[int] = []

    def held() -> Any:
        asked.append(1)
        raise RagError("another process has the store", kind="held", next_step="Ask it.")

    with serve(held) as url:
        assert asked == []
        for _ in range(2):
            refused(httpx.get(f"{url}/api/v1/queries", timeout=PATIENCE, verify=False), 409, "held")
    assert len(asked) == 2
