"""`offline-check` finds each of twelve planted leaks in a copy of the program, and none in the program as it is.

Real processes in a real network namespace without routes; nothing leaves this machine.
"""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy import cli_offline_check
from deploy.offline import completeness, hosts, inside, page, running, sources, static_checks
from deploy.offline.findings import CURES, Finding
from settings import load
from tests.deploy.test_bundle import model

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(600)  # the whole program starts, and each of its pages is opened
VARIABLES = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

LEAKS = """
import socket, subprocess, sys, threading, urllib.request

def look_up():
    try: socket.getaddrinfo("updates.example.com", 443)
    except OSError: pass

def in_thread():
    try: urllib.request.urlopen("http://203.0.113.9/beacon", timeout=5)
    except OSError: pass

def hub():
    from huggingface_hub import HfApi, constants
    constants.HF_HUB_OFFLINE = False
    try: HfApi().model_info("me/model", timeout=5)
    except Exception: pass

look_up()
hub()
thread = threading.Thread(target=in_thread, name="beacon")
thread.start()
thread.join(20)
code = "import socket; socket.socket().connect_ex(('198.51.100.7', 8443))"
subprocess.run([sys.executable, "-c", code], timeout=60)
"""
CDN, STYLE_FONT = "https://cdn.example.com/chart.js", "https://fonts.example.com/inter.woff2"
THEME_FONT = "https://static.example.com/plex.woff2"


def check(root: Path, *arguments: str, **variables: str) -> tuple[int, dict[str, Any]]:
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables}
    command = [sys.executable, "-m", "deploy", "offline-check", "--json", "--root", str(root), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=550)
    assert done.stdout.startswith("{"), done.stderr
    return done.returncode, json.loads(done.stdout)


def copied(to: Path) -> Path:
    for name, path in sources.program_files(ROOT):
        target = to / name.removeprefix("app/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return to


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    return check(copied(tmp_path_factory.mktemp("clean")), **VARIABLES)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    """One run with all twelve."""
    root = copied(tmp_path_factory.mktemp("planted"))
    (root / "leaks.py").write_text(LEAKS)
    with (root / "guard.py").open("a") as file:
        file.write("\nimport leaks  # noqa\n")
    with (root / "pages" / "cache.py").open("a") as file:
        file.write(f"\nimport streamlit as _st\n_st.html('<div><script src=\"{CDN}\"></script></div>')\n")
        file.write(f"_st.html('<style>@font-face {{ src: url({STYLE_FONT}) }}</style><p>text</p>')\n")
    config = root / ".streamlit" / "config.toml"
    text = config.read_text().replace("gatherUsageStats = false", "gatherUsageStats = true")
    config.write_text(f'{text}\n[[theme.fontFaces]]\nfamily = "Plex"\nurl = "{THEME_FONT}"\n')
    (root / "dashboard.toml").write_text('[ocr]\nbase_url = "https://ocr.example.com/v1"\n')
    models = root.parent / "models"
    shutil.rmtree(models, ignore_errors=True)
    sharded = model(models / "sharded")
    (sharded / "model.safetensors").rename(sharded / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    (model(models / "mute") / "tokenizer.json").unlink()
    (model(models / "own") / "config.json").write_text('{"auto_map": {"AutoModel": "modeling_own.OwnModel"}}')
    names = [str(models / name) for name in ("sharded", "mute", "own")]
    return check(root, "--models", *names, HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")


def findings(planted: tuple[int, dict[str, Any]], code: str) -> list[dict[str, Any]]:
    return [each for each in planted[1]["findings"] if each["code"] == code]


def test_the_program_as_it_is_tries_nothing(clean: tuple[int, dict[str, Any]]):
    code, found = clean
    assert (code, found["findings"], found["offline"]) == (0, [], True)


def test_the_run_behind_that_was_a_real_one(clean: tuple[int, dict[str, Any]]):
    ran = clean[1]["run"]
    assert (ran["isolation"], ran["weaker"], ran["unrouted_packets"]) == ("namespace", False, 0)
    assert ran["query"]["outcome"] == "answered"
    assert {stage["stage"] for stage in ran["query"]["stages"]} >= {"embed", "search", "generate"}
    assert ran["pages"] and all(ran["pages"].values()), ran["pages"]
    assert set(ran["pages"]) == {path.stem for path in (ROOT / "pages").glob("*.py") if not path.stem.startswith("_")}


def test_twelve_leaks_end_with_1_and_a_cure_each(planted: tuple[int, dict[str, Any]]):
    code, found = planted
    assert code == 1 and not found["offline"]
    assert all(each["cure"] and each["where"] for each in found["findings"])


def test_leak_a_call_of_the_hub(planted: tuple[int, dict[str, Any]]):
    found = findings(planted, "hub_call")
    assert any("huggingface.co" in each["what"] and "leaks.py:" in each["where"] and "hub" in each["where"] for each in found)
    assert any("huggingface_hub" in frame for each in found for frame in each["stack"])


def test_leak_a_script_from_another_host(planted: tuple[int, dict[str, Any]]):
    where = {each["where"] for each in findings(planted, "remote_asset") if each["what"] == CDN}
    assert "page cache" in where and any("pages/cache.py:" in each for each in where)


def test_leak_telemetry(planted: tuple[int, dict[str, Any]]):
    assert any("gatherUsageStats" in each["what"] and "config.toml:" in each["where"] for each in findings(planted, "telemetry"))


def test_leak_a_name_looked_up(planted: tuple[int, dict[str, Any]]):
    (found,) = [each for each in findings(planted, "dns_lookup") if "updates.example.com:443" in each["what"]]
    assert found["where"].endswith("leaks.py:5 look_up")


def test_leak_a_missing_shard(planted: tuple[int, dict[str, Any]]):
    (found,) = findings(planted, "model_shard_missing")
    assert "model-00002-of-00002.safetensors" in found["what"] and "sharded" in found["where"]


def test_leak_a_missing_tokenizer(planted: tuple[int, dict[str, Any]]):
    (found,) = findings(planted, "model_tokenizer_missing")
    assert found["where"].endswith("mute")


def test_leak_code_of_the_model_s_own(planted: tuple[int, dict[str, Any]]):
    (found,) = findings(planted, "trust_remote_code")
    assert "modeling_own.py is missing" in found["what"] and found["where"].endswith("own/config.json")


def test_leak_a_font_from_another_host(planted: tuple[int, dict[str, Any]]):
    found = {(each["what"], each["where"].split("/")[-1].split(":")[0]) for each in findings(planted, "remote_font")}
    assert {(STYLE_FONT, "page cache"), (THEME_FONT, "config.toml")} <= found
    assert any(what == THEME_FONT and where.startswith("page ") for what, where in found), "the theme goes to every page"


def test_leak_http_in_a_thread(planted: tuple[int, dict[str, Any]]):
    (found,) = [each for each in findings(planted, "outbound_connection") if "203.0.113.9:80" in each["what"]]
    assert "thread beacon" in found["what"] and found["where"].endswith("in_thread")


def test_leak_in_a_child_process(planted: tuple[int, dict[str, Any]]):
    (found,) = [each for each in findings(planted, "outbound_connection") if "198.51.100.7:8443" in each["what"]]
    assert "by a child process" in found["what"]


def test_leak_a_variable_that_is_not_set(planted: tuple[int, dict[str, Any]]):
    assert [each["what"] for each in findings(planted, "offline_variable_unset")] == ["HF_DATASETS_OFFLINE is not set"]


def test_leak_a_public_endpoint(planted: tuple[int, dict[str, Any]]):
    assert [each["what"] for each in findings(planted, "public_endpoint")] == ["ocr.base_url leads to ocr.example.com"]


def test_the_leaks_do_not_keep_the_query_from_its_answer(planted: tuple[int, dict[str, Any]]):
    assert planted[1]["run"]["query"]["outcome"] == "answered"
    assert planted[1]["run"]["unrouted_packets"] > 0, "the kernel saw them too"


# ------------------------------------------------------------------------------------------------ the parts, by themselves


def hooked(tmp_path: Path, code: str, guard: bool = True, **variables: str) -> tuple[str, list[dict[str, Any]]]:
    notes = tmp_path / "notes.jsonl"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(running.HOOK), "OFFLINE_CHECK_LOG": str(notes)}
    environment |= {"OFFLINE_CHECK_GUARD": "1" if guard else "0", **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout, running._attempts(notes)


def test_the_guard_refuses_what_would_leave_and_lets_loopback_through(tmp_path: Path):
    server = socket.create_server(("127.0.0.1", 0))
    code = (
        "import socket, urllib.request\n"
        "for call in (lambda: socket.create_connection(('203.0.113.9', 80), 5), lambda: socket.getaddrinfo('hub.example.com', 80),\n"
        "             lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('203.0.113.9', 53)),\n"
        f"             lambda: socket.create_connection(('localhost', {server.getsockname()[1]}), 5)):\n"
        "    try: call(); print('through')\n"
        "    except OSError as problem: print(type(problem).__name__, problem.errno)\n"
    )
    said, notes = hooked(tmp_path, code)
    server.close()
    assert said.splitlines() == ["OSError 101", f"gaierror {socket.EAI_AGAIN}", "OSError 101", "through"]
    assert [(each["kind"], each["host"]) for each in notes] == [
        ("tcp", "203.0.113.9"), ("lookup", "hub.example.com"), ("udp", "203.0.113.9")]  # fmt: skip


def test_a_sitecustomize_that_was_there_runs_too(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.was_there = True\n")
    said, _ = hooked(tmp_path, "print(was_there)", PYTHONPATH=f"{running.HOOK}{os.pathsep}{tmp_path}")
    assert said == "True\n"


def test_the_kernel_counts_what_another_program_tries():
    """No hook sees bash; the namespace's counter does, and the finding says so."""
    code = (
        "import subprocess; from deploy.offline import inside; inside.loopback_up(); before = inside.unrouted();"
        "subprocess.run(['bash', '-c', 'echo x > /dev/tcp/203.0.113.9/80'], stderr=subprocess.DEVNULL);"
        "print(inside.unrouted() - before)"
    )
    done = subprocess.run([*running.NAMESPACE, sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert int(done.stdout) > 0, done.stderr
    report = {"pid": 1, "unrouted_packets": int(done.stdout), "query": {"outcome": "answered", "error": None}, "served": [],
              "pages": {}, "policy": "default-src 'self'"}  # fmt: skip
    child = {"kind": "process", "host": "bash", "port": None, "stack": [], "pid": 1, "thread": "MainThread"}
    (found,) = running._findings(report, [child], ROOT, frozenset())
    assert found.code == "outbound_unseen" and "bash" in found.where


MINI = """
import json, streamlit as st
from starlette.responses import JSONResponse
from starlette.routing import Route
import socket
try: socket.create_connection(("203.0.113.9", 443), 5)
except OSError: pass
async def health(request): return JSONResponse({})
async def ask(request): return JSONResponse({"outcome": "failed", "error": {"kind": "connection"}})
app = st.App("front.py", routes=[Route("/api/health", health), Route("/api/v1/ask", ask, methods=["POST"])])
"""


@pytest.mark.parametrize("isolation", ["namespace", "guard"])
def test_a_failed_query_and_a_missing_policy_are_findings_with_either_isolation(tmp_path: Path, isolation: str):
    (tmp_path / "app.py").write_text(MINI)
    (tmp_path / "front.py").write_text("import streamlit as st\nst.write('front')\n")
    outcome = running.run(tmp_path, dict(os.environ), None, None, frozenset(), isolation, lambda text: None)
    codes = {each.code for each in outcome.findings}
    assert codes == {"outbound_connection", "query_not_answered", "csp_missing"}, outcome.report
    assert any(each.where.startswith(f"{tmp_path}/app.py:6") for each in outcome.findings)
    assert (outcome.report["unrouted_packets"] is None) == (isolation == "guard")


def test_an_app_that_does_not_start_is_a_finding_with_its_last_words(tmp_path: Path):
    (tmp_path / "app.py").write_text("raise SystemExit('no such setting')\n")
    inside_environment = {**os.environ, "PYTHONPATH": ""}
    job = inside.Job(str(tmp_path), inside_environment, 1, "?", [], False, "", str(tmp_path / "log"))
    (tmp_path / "broken").mkdir()
    broken = inside.Job(str(tmp_path / "broken"), inside_environment, 1, "?", [], False, "", str(tmp_path / "log"))
    assert job.headers == {} and "token" not in repr(job)
    report = inside.use(broken)
    (found,) = running._findings(report, [], tmp_path, frozenset())
    assert found.code == "app_not_started" and "app.py" in found.what


@pytest.fixture
def served(tmp_path: Path) -> Iterator[int]:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            texts = {"/": '<script src="./own.js"></script><script src="https://cdn.example.com/x.js"></script>'
                          '<link rel="stylesheet" href="style.css"><a href="https://docs.example.com/">help</a>',
                     "/own.js": 'import("https://cdn.example.com/y.js"); const docs = "https://docs.example.com/a.js";',
                     "/style.css": "@import url('//fonts.example.com/css?family=Inter'); a { background: url(data:image/png) }"}  # fmt: skip
            self.send_response(200)
            self.send_header("content-security-policy", "default-src 'self' https://cdn.example.com; img-src *")
            self.end_headers()
            self.wfile.write(texts[self.path].encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_page_assets_and_policy_are_read_as_a_browser_loads_them(served: int):
    job = inside.Job("", {}, served, "?", [], False, "", "")
    found, policy = inside._served(job)
    assert [(each["where"], each["url"], each["is_font"]) for each in found] == [
        ("/", "https://cdn.example.com/x.js", False),
        ("/own.js", "https://cdn.example.com/y.js", False),
        ("/style.css", "//fonts.example.com/css?family=Inter", True),
    ]
    assert page.policy_hosts(policy or "") == ["https://cdn.example.com", "*"]
    assert page.policy_hosts("default-src 'self'; img-src 'self' data: blob:") == []


@pytest.mark.parametrize(
    "markup, loads",
    [
        ('<img srcset="https://a.example.com/1.png 1x, /two.png 2x">', True),
        ('<p style="background: url(https://a.example.com/1.png)">', True),
        ('<iframe src="//a.example.com/"></iframe>', True),
        ("<style>@import 'https://a.example.com/a.css';</style>", True),
        ('<a href="https://a.example.com/">read</a>', False),
        ("<!-- https://a.example.com/ -->", False),
        ('<img src="data:image/png;base64,AA//a.bc">', False),
        ('<svg xmlns="http://www.w3.org/2000/svg"></svg>', False),
        ('<link rel="canonical" href="https://a.example.com/">', False),
    ],
)
def test_what_loads_and_what_is_only_written(markup: str, loads: bool):
    assert bool(page.in_html(markup)[0]) == loads


@pytest.mark.parametrize(
    "host, outside",
    [
        ("127.0.0.1", False), ("10.1.2.3", False), ("172.31.0.1", False), ("172.32.0.1", True), ("192.168.1.1", False),
        ("8.8.8.8", True), ("203.0.113.7", True), ("::1", False), ("[fd00::1]", False), ("2606:4700::1", True), ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False), ("milvus", False), ("milvus.default.svc.cluster.local", False), ("host.internal", False),
        ("huggingface.co", True), ("internal.example.com", True), ("llm.ours.example.com", False), ("notours.example.com", True),
    ],
)  # fmt: skip
def test_inside_and_outside(host: str, outside: bool):
    assert hosts.is_outside(host, frozenset({"ours.example.com"})) == outside


def test_every_setting_with_an_address_is_looked_at_and_no_password_is_shown(tmp_path: Path):
    (tmp_path / "dashboard.toml").write_text(
        '[milvus]\nuri = "https://milvus.example.com"\n[redis]\nurl = "redis://:planted-secret@redis.example.com:6379/0"\n'
        '[gpu_server]\nurl = "http://10.0.0.5:8000"\n[alerts]\nnotify = ["ntfys://planted-secret@ntfy.example.com/topic"]\n'
        '[[machines]]\nname = "far"\naddress = "203.0.113.7"\n[[services]]\nname = "web"\nkind = "http"\nurl = "https://web.example.com"\n'
        '[[prometheus]]\nname = "fleet"\nurl = "http://prometheus.lan:9090"\n[traces]\notlp_endpoint = "https://otlp.example.com"\n'
    )
    settings = load({}, tmp_path)
    found = list(static_checks.endpoints(list(cli_offline_check.addresses(settings)), frozenset()))
    assert {each.where for each in found} == {"milvus.uri", "redis.url", "alerts.notify[0]", "machines.far.address",
                                              "services.web.url", "traces.otlp_endpoint"}  # fmt: skip
    assert "planted-secret" not in repr(found)


def test_a_model_of_the_hub_cache_with_each_fault(tmp_path: Path):
    assert [each.code for each in completeness.problems(completeness.find("me/none", tmp_path))] == ["model_not_cached"]
    repository = tmp_path / "models--me--half"
    model(repository / "snapshots" / "abc")
    (repository / "blobs").mkdir()
    (repository / "blobs" / "123.incomplete").write_text("")
    (repository / "snapshots" / "abc" / "extra.safetensors").symlink_to("../../blobs/gone")
    codes = {each.code for each in completeness.problems(completeness.find("me/half", tmp_path))}
    assert codes == {"model_ref_missing", "model_incomplete", "model_shard_missing"}


def test_every_code_has_a_cure_and_every_finding_a_code():
    for code in CURES:
        assert Finding(code, "what").listed()["cure"].endswith(".")
    with pytest.raises(KeyError):
        _ = Finding("unknown", "what").cure


def test_wrong_settings_are_said_and_not_checked(tmp_path: Path):
    (tmp_path / "dashboard.toml").write_text("[server]\nport = 'x'\n")
    code, found = check(tmp_path, "--no-run")
    assert code == 2 and "server.port" in found["error"]["message"]
