"""Secrets planted in every setting that takes one, then everything that the dashboard gives out or keeps is searched for them.

Pages, their WebSockets and downloads are searched where they are looked at: test_pages.py.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import time
import zlib
from pathlib import Path

import psutil
import pytest

from tests.collectors.sshd import eventually as comes
from tests.security.canaries import Search, canary
from tests.security.payloads import PAYLOAD
from tests.security.planted import ADDRESSES, DECLARED, IN_ENTRIES, IN_ENVIRONMENT, NAMES, with_secret
from tests.security.test_matrix import ours
from tests.security.world import KEY_VARIABLE, SECRETS, STATUSES, World

SEARCH = Search(SECRETS)
KEYS = {KEY_VARIABLE: canary(IN_ENVIRONMENT)}


# the search itself: a search that finds nothing anywhere would pass every test below


@pytest.mark.parametrize("name", SECRETS)
def test_the_search_finds_a_secret_in_every_form(name: str) -> None:
    secret = canary(name)
    forms = [secret.encode(), secret[5:17].encode(), secret.upper().encode(), base64.b64encode(f"user:{secret}".encode())]
    forms += [base64.b64encode(b"xx" + secret.encode()), zlib.compress(secret.encode()), gzip.compress(secret.encode())]
    for form in forms:
        assert SEARCH.found(b"before " + form if not form.startswith((b"x\x9c", b"\x1f")) else form) == {name}
    assert SEARCH.found(secret[:11].encode()) == set()


def test_the_search_finds_a_secret_in_files_and_rows(tmp_path: Path) -> None:
    import sqlite3

    db = sqlite3.connect(tmp_path / "a.db")
    db.execute("CREATE TABLE t (body BLOB)")
    db.execute("INSERT INTO t VALUES (?)", (zlib.compress(canary("llm.api_key").encode()),))
    db.commit()
    db.close()
    (tmp_path / "log").write_text(canary("server.token"))
    assert SEARCH.in_folder(tmp_path) == {f"{tmp_path}/a.db t": {"llm.api_key"}, f"{tmp_path}/log": {"server.token"}}


# the product


def test_every_secret_setting_is_planted(world: World) -> None:
    given = (world.folder / "dashboard.toml").read_text()
    assert [name for name in SECRETS if canary(name) not in given] == [IN_ENVIRONMENT]


def test_the_settings_say_themselves_what_may_be_secret() -> None:
    """Not so few that the lists are empty for another reason; what is planted is taken, and hidden, as each is declared."""
    assert {"server.token", "llm.api_key", "redis.url", "alerts.notify", "embeddings.headers"} <= set(DECLARED)
    assert {"llm.base_url", "milvus.uri", "traces.otlp_endpoint"} <= set(ADDRESSES)
    assert {"machines.passphrase", "services.api_key", "services.url", "prometheus.headers"} <= set(IN_ENTRIES)
    assert len(NAMES) == len(set(NAMES))
    assert all(canary(key) in str(with_secret(key, canary(key))) for key in (*DECLARED, *ADDRESSES))


def test_secrets_reach_those_whom_they_are_for(used: World) -> None:
    """Else nothing was at stake: servers got the keys, and repeated them."""
    sent = json.dumps([(path, headers) for path, headers, _ in used.remote.requests])
    for name in (
        "llm.base_url",
        "reranker.api_url",
        "services.headers",
        "services.api_key",
        "prometheus.headers",
        IN_ENVIRONMENT,
    ):
        secret = canary(name)
        basic = base64.b64encode(f"user:{secret}".encode()).decode()
        assert secret in sent or basic in sent, name


def test_answers_of_the_api_hold_none(used: World) -> None:
    told = used.call("GET", "/api/v1/queries?limit=1000").json()
    assert told["total"] >= len(STATUSES)
    for row in told["queries"]:
        body = used.call("GET", f"/api/v1/queries/{row['id']}?spans=1")
        assert SEARCH.found(body.content + str(body.headers).encode()) == set()
    looked = {call.path for call in ours() if call.method == "GET" and "{" not in call.path}
    assert looked >= {"/metrics", "/api/v1/openapi.json", "/api/v1/audit", "/api/v1/whoami"}
    for path in sorted(looked | {"/nothing", "/_stcore/health", "/signin", "/_stcore/metrics", "/_stcore/host-config"}):
        answer = used.call("GET", path)
        assert SEARCH.found(answer.content + str(answer.headers).encode()) == set(), path


def test_spans_that_are_sent_on_hold_none(used: World) -> None:
    bodies = [body for path, _, body in used.remote.asked("/otlp")]
    assert bodies and [SEARCH.found(body) for body in bodies if SEARCH.found(body)] == []


def test_command_lines_hold_none(used: World) -> None:
    """Of the dashboard and what it started, and of what its logins started on the machine: `ps` shows them to everybody."""
    seen: dict[int, bytes] = {}

    def looked() -> bool:
        """For two sweeps of the machine: what they start there lives shortly."""
        for number in _descendants(used.process.pid) | _descendants(used.sshd_pid):
            with contextlib.suppress(OSError):
                seen.setdefault(number, Path(f"/proc/{number}/cmdline").read_bytes())
        return len(seen) > 6

    assert comes(looked, 90), "commands are to run on the machine"
    assert {number: line for number, line in seen.items() if SEARCH.found(line)} == {}


def _descendants(pid: int) -> set[int]:
    with contextlib.suppress(psutil.Error):
        return {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
    return set()


def test_prompts_and_alerts_hold_none(used: World) -> None:
    bodies = [body for path, _, body in used.remote.requests if not path.startswith("/otlp")]
    assert [found for body in bodies if (found := SEARCH.found(body))] == []


def test_files_and_logs_hold_none(used: World) -> None:
    """Everything that was written: data folder, log, what Redis was given."""
    time.sleep(1.0)  # what is still being written
    written = {str(path) for path in used.data.rglob("*") if path.is_file()}
    assert any(path.endswith("traces.db") for path in written) and used.log.stat().st_size > 0
    leaks = SEARCH.in_folder(used.data) | {"log": SEARCH.found(used.log.read_bytes())}
    assert {place: names for place, names in leaks.items() if names} == {}


def test_redis_holds_none(used: World) -> None:
    import redis

    client = redis.Redis.from_url(f"redis://:{canary('redis.url')}@127.0.0.1:{used.redis.port}/0")
    kept = [key + b"\n" + (client.dump(key) or b"") for key in client.scan_iter()]
    client.close()
    assert SEARCH.found(b"\n".join(kept)) == set()


def test_the_settings_as_they_are_shown_hold_none(world: World) -> None:
    from settings import load

    settings = load({"RAGDECK_CONFIG": str(world.folder / "dashboard.toml"), "RAGDECK_DATA": str(world.data), **KEYS})
    shown = (
        json.dumps(settings.masked(), default=str) + settings.fingerprint() + repr(settings.server) + repr(settings.llm.api_key)
    ) + f"{settings!r} {settings!s}"
    assert settings.services[1]["url"].startswith("http") and "/locked" in repr(settings), "addresses themselves are shown"
    assert PAYLOAD[:20] in str(settings.machines[0]["name"])
    assert SEARCH.found(shown.encode()) == set()


@pytest.mark.parametrize(
    "url",
    [
        "http://user:{}@host/page",
        "http://host/page?api_key={}&x=1",
        "http://host/#{}",
        "milvus.example:19530?token={}",
        "user:{}@10.0.0.5:19530",
        "postgresql://u:p@{}@host/db?password={}",
        " http://user:{} x@host/",
        "redis://:{}\\n@host",
    ],
)
@pytest.mark.parametrize("table", ["services", "prometheus"])
def test_addresses_of_entries_are_shown_without_what_is_secret(tmp_path: Path, table: str, url: str) -> None:
    from settings import load

    secret = canary("services.url")
    given = url.replace("{}", secret)
    extras = f'more = [{{ url = "{given}", api_key = "{secret}" }}]'
    (tmp_path / "dashboard.toml").write_text(f'[[{table}]]\nname = "one"\nurl = "{given}"\n{extras}\n')
    settings = load({"RAGDECK_CONFIG": str(tmp_path / "dashboard.toml"), "RAGDECK_DATA": str(tmp_path)})
    for shown in (repr(settings), str(settings), json.dumps(settings.masked())):
        assert SEARCH.found(shown.encode()) == set()
        assert "'one'" in shown or '"one"' in shown
    entry = getattr(settings, table)[0]
    assert secret in entry["url"], "who uses it still has it"


def test_wrong_settings_are_told_without_secrets(tmp_path: Path) -> None:
    """Each secret in a table where a value cannot be: the message quotes none."""
    from settings import SettingsError, load

    for key in (*sorted(DECLARED), *ADDRESSES):
        table, _, name = key.rpartition(".")
        for wrong in (
            f'{name} = ["{canary(key)}", 5]',
            f'{name} = {{ a = "{canary(key)}" , b = 7 }}',
            f'{name}x = "{canary(key)}"',
        ):
            (tmp_path / "dashboard.toml").write_text(f"[{table}]\n{wrong}\n")
            try:
                load({"RAGDECK_CONFIG": str(tmp_path / "dashboard.toml"), "RAGDECK_DATA": str(tmp_path)})
            except SettingsError as problem:
                said = str(problem) + repr(problem.problems)
                assert SEARCH.found(said.encode()) == set(), key
