"""Deleting stored queries, who am I and the audit log over a real server; `python -m access`; what `forget` leaves."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from access import api
from access.__main__ import main
from access.authenticator import Authenticator
from access.limits import Limits
from access.tokens import TokenStore
from collectors.audit import AuditLog
from guard import Guard, Policy
from latency.readings.store import ReadingStore
from rag.evaluation.evaluations import Evaluations
from rag.trace_store import TraceStore
from rag.types import Answer
from tests.rag.cache_samples import answer as sample

PLANTED = "hunter2 was asked for"


@pytest.fixture
def rt(tmp_path: Path) -> Iterator[Any]:
    traces, readings = TraceStore(tmp_path / "traces.db"), ReadingStore(tmp_path / "readings.db")
    yield SimpleNamespace(
        traces=traces,
        readings=readings,
        cache=None,
        settings=SimpleNamespace(data_dir=tmp_path),
        deployment=SimpleNamespace(audit=AuditLog(tmp_path / "audit.log")),
    )
    traces.close()
    readings.close()


@pytest.fixture
def tokens(tmp_path: Path) -> TokenStore:
    return TokenStore(tmp_path / "access.db")


@pytest.fixture
def client(rt: Any, tokens: TokenStore) -> TestClient:
    policy = Policy("127.0.0.1", access=Authenticator(required=True, tokens=tokens), limits=Limits(requests_per_minute=40))
    app = Guard(Starlette(routes=api.routes(lambda: rt)), policy, pause=_no_pause)
    return TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 5))


async def _no_pause(seconds: float) -> None:
    del seconds


def bearer(tokens: TokenStore, *scopes: str) -> dict[str, str]:
    return {"authorization": f"Bearer {tokens.create('p', list(scopes), created_by='x')[0]}"}


def keep(rt: Any, *ids: str) -> list[Answer]:
    answers = [sample(f"{PLANTED} {key}", id=key) for key in ids]
    for answer in answers:
        rt.traces.save(answer)
    assert rt.traces.flush()
    return answers


def test_one_query_goes_with_its_marks(rt: Any, client: TestClient, tokens: TokenStore, tmp_path: Path) -> None:
    answers = keep(rt, "a1", "a2")
    Evaluations(tmp_path).marks.say(answers[0], "bad", f"{PLANTED} in a note")
    operate = bearer(tokens, "operate")
    found = client.delete("/api/v1/queries/a1", headers=operate)
    assert found.status_code == 200 and (found.json()["queries"], found.json()["marks"]) == (1, 1), found.text
    assert rt.traces.get("a1") is None and rt.traces.get("a2") is not None
    assert Evaluations(tmp_path).marks.get("a1") is None
    assert client.delete("/api/v1/queries/a1", headers=operate).status_code == 404
    with closing(sqlite3.connect(tmp_path / "traces.db")) as db:
        assert [row[0] for row in db.execute("SELECT query_id FROM answers")] == ["a2"]


def test_what_is_deleted_is_gone_from_the_files(rt: Any, client: TestClient, tokens: TokenStore, tmp_path: Path) -> None:
    keep(rt, "a1")
    assert PLANTED.encode() in b"".join(path.read_bytes() for path in tmp_path.glob("traces.db*"))
    assert client.delete("/api/v1/queries?all=1", headers=bearer(tokens, "operate")).json()["queries"] == 1
    assert PLANTED.encode() not in b"".join(path.read_bytes() for path in tmp_path.glob("traces.db*"))


def test_many_go_by_filter_and_never_by_accident(rt: Any, client: TestClient, tokens: TokenStore) -> None:
    keep(rt, "a1", "a2", "b1")
    operate = bearer(tokens, "operate")
    for wrong in ("", "?all=0", "?all=1&text=a", "?limit=5", "?txt=a", "?text=a&offset=1", "?all=yes"):
        assert client.delete(f"/api/v1/queries{wrong}", headers=operate).status_code == 400, wrong
    assert rt.traces.count() == 3
    assert client.delete("/api/v1/queries?text=for a", headers=operate).json()["queries"] == 2
    assert [row.id for row in rt.traces.search()] == ["b1"]
    told = [action for action in rt.deployment.audit.read() if action.what == "delete stored queries"]
    assert told[0].outcome == "done" and told[0].who == "p" and told[0].address == "127.0.0.1" and "for a" not in told[0].target


def test_scopes_over_http(rt: Any, client: TestClient, tokens: TokenStore) -> None:
    keep(rt, "a1")
    for scopes, expected in ((["read"], 403), (["ask"], 403), (["read", "ask"], 403), (["operate"], 200)):
        assert client.delete("/api/v1/queries/a1", headers=bearer(tokens, *scopes)).status_code == expected
    assert client.get("/api/v1/whoami").status_code == 401
    me = client.get("/api/v1/whoami", headers=bearer(tokens, "ask", "read")).json()
    assert me == {"name": "p", "how": "api token", "scopes": ["read", "ask"]}
    assert client.get("/api/v1/audit", headers=bearer(tokens, "read")).status_code == 403
    lines = client.get("/api/v1/audit?limit=1", headers=bearer(tokens, "operate")).json()["actions"]
    assert len(lines) == 1 and lines[0]["what"] == "delete a stored query"
    for wrong in ("limit=0", "limit=x", "limit=99999", "limit=²", "who=a"):
        assert client.get(f"/api/v1/audit?{wrong}", headers=bearer(tokens, "operate")).status_code == 400, wrong


def test_a_token_that_asks_too_often_waits(client: TestClient, tokens: TokenStore) -> None:
    header = bearer(tokens, "read")
    answers = [client.get("/api/v1/whoami", headers=header) for _ in range(60)]
    codes = [answer.status_code for answer in answers]
    assert codes[:40] == [200] * 40 and 429 in codes
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1 and refused.json()["error"]["kind"] == "overloaded"


# commands


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAGDECK_DATA", str(tmp_path / "data"))
    (tmp_path / "d.toml").write_text("")
    monkeypatch.setenv("RAGDECK_CONFIG", str(tmp_path / "d.toml"))
    return tmp_path


def test_tokens_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "create", "nightly", "--scope", "read", "--scope", "ask", "--days", "30", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    store = TokenStore(folder / "data" / "access.db")
    who = store.identify(made["token"])
    assert who is not None and who.scopes == {"read", "ask"}
    assert main(["token", "list", "--json"]) == 0
    listed = capsys.readouterr().out
    assert made["token"] not in listed and json.loads(listed)["tokens"][0]["state"] == "active"
    assert main(["token", "list"]) == 0 and main(["token", "revoke", made["id"]]) == 0
    assert store.identify(made["token"]) is None
    assert main(["token", "revoke", "nothing"]) == 1
    capsys.readouterr()
    assert main(["audit", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["actions"]
    assert [(each["what"], each["outcome"]) for each in told] == [
        ("revoke token", "refused"),
        ("revoke token", "done"),
        ("create token (read, ask)", "done"),
    ]
    assert made["token"].split("_", 2)[2] not in json.dumps(told)  # it may hold a "_" itself


@pytest.mark.parametrize("given", [["token"], ["token", "create", "x"], ["token", "create", "x", "--scope", "root"], []])
def test_wrong_usage(folder: Path, given: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == 2
    assert main(["token", "create", " ", "--scope", "read"]) == 2
