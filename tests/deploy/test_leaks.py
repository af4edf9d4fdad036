"""Leaks that `offline-check` was not first written for: other ways to look up and to send, other models, other pages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.offline import calls, completeness, page, resolver, running, variables
from deploy.offline.findings import CURES
from tests.deploy.test_bundle import model
from tests.deploy.test_offline_check import MINI, ROOT, hooked

# --------------------------------------------------------------------------------------------- sending and looking up


@pytest.mark.parametrize(
    "code, kind, host",
    [
        ("import threading; t = threading.Thread(target=lambda: call(socket.getaddrinfo, 'a.example.com', 1)); t.start(); t.join()",
         "lookup", "a.example.com"),
        ("import asyncio; call(lambda: asyncio.run(loop()))", "lookup", "b.example.com"),
        ("import subprocess, sys; subprocess.run([sys.executable, '-c', 'import socket\\ntry: socket.gethostbyname(\"c.example.com\")\\n"
         "except OSError: pass'])", "lookup", "c.example.com"),
        ("call(socket.create_connection, ('2001:db8::9', 443), 5)", "tcp", "2001:db8::9"),
        ("call(socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect, ('203.0.113.9', 53))", "udp", "203.0.113.9"),
        ("call(socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendmsg, [b'x'], [], 0, ('203.0.113.9', 53))", "udp", "203.0.113.9"),
        ("import urllib.request; call(urllib.request.urlopen, 'http://203.0.113.9/', None, 5)", "tcp", "203.0.113.9"),
    ],
)  # fmt: skip
def test_each_way_out_of_python_is_noted(tmp_path: Path, code: str, kind: str, host: str):
    before = (
        "import socket\n"
        "def call(what, *given):\n    try: what(*given)\n    except OSError: pass\n"
        "async def loop():\n    import asyncio\n    await asyncio.get_running_loop().getaddrinfo('b.example.com', 443)\n"
    )
    _, notes = hooked(tmp_path, before + code)
    assert (kind, host) in {(each["kind"], each["host"]) for each in notes}


def test_a_raw_socket_is_called_so(tmp_path: Path):
    """As root of a namespace of its own: elsewhere raw sockets are refused before they send."""
    notes = tmp_path / "notes.jsonl"
    code = (
        "import socket\nlink = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)\n"
        "try: link.sendto(b'x' * 8, ('203.0.113.9', 0))\nexcept OSError: pass\n"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(running.HOOK), "OFFLINE_CHECK_LOG": str(notes)}
    subprocess.run([*running.NAMESPACE, sys.executable, "-c", code], env=environment, check=True, timeout=60)
    assert [each["kind"] for each in running._attempts(notes)] == ["raw"]


IN_NAMESPACE = """
import json, os, subprocess, sys
from deploy.offline import inside, resolver
inside.loopback_up()
with resolver.listening(["10.99.0.1", "127.0.0.53", "fd00:99::1"]) as asked:
    packet = bytes.fromhex("beef01000001000000000000") + b"\\x07updates\\x07example\\x03com\\x00" + bytes.fromhex("00010001")
    for server, family in (("10.99.0.1", 2), ("127.0.0.53", 2), ("fd00:99::1", 10)):
        code = f"import socket; l = socket.socket({family}, 2); l.settimeout(20); l.sendto({packet!r}, ({server!r}, 53)); print(l.recv(512).hex())"
        said = subprocess.run([sys.executable, "-c", code, "sender"], capture_output=True, text=True).stdout.strip()
        print(json.dumps(said))
print(json.dumps(asked))
print(json.dumps(inside.unrouted()))
"""


def test_the_resolver_hears_every_program_and_names_it():
    done = subprocess.run(
        [*running.NAMESPACE, sys.executable, "-c", IN_NAMESPACE], cwd=ROOT, capture_output=True, text=True, timeout=90
    )
    first, second, sixth, asked, unrouted = map(json.loads, done.stdout.splitlines())
    assert first == second == sixth and first.startswith("beef8183"), "there is no such name"
    assert [name for name, _ in asked] == ["updates.example.com"] * 3
    assert all("import socket; l = " in program for _, program in asked), asked
    assert unrouted == 0, "the name server's address is on this side"


@pytest.mark.parametrize("packet", [b"", b"x", bytes(12), bytes(12) + b"\x3f", bytes(12) + b"\xff" * 300, bytes(12) + b"\x01a"])
def test_what_is_no_question_is_none(packet: bytes):
    with pytest.raises(ValueError):
        resolver.question(packet)


@pytest.mark.parametrize(
    "text, found",
    [("nameserver 10.0.0.2\nnameserver 127.0.0.53 # x\n", ["10.0.0.2", "127.0.0.53"]), ("", ["127.0.0.1"]),
     ("search corp\n#nameserver 9.9.9.9\nnameserver fd00::1\nnameserver fe80::1%eth0\n", ["fd00::1"]),
     ("nameserver fe80::1%eth0\n", [])],
)  # fmt: skip
def test_the_name_servers_of_resolv_conf(text: str, found: list[str]):
    assert resolver.servers(text) == found


def report(**more: Any) -> dict[str, Any]:
    return {"pid": 1, "unrouted_packets": 0, "query": {"outcome": "answered", "error": None}, "served": [], "pages": {},
            "policy": "default-src 'self'", **more}  # fmt: skip


def test_a_name_that_only_the_resolver_heard_is_a_finding():
    seen = {"kind": "lookup", "host": "Milvus.lan", "port": 1, "stack": [], "pid": 1, "thread": "MainThread"}
    asked = [["updates.example.com", "curl -s x"], ["milvus.lan.corp.example.com", "python"], ["db.internal", "psql"]]
    found = running._findings(report(looked_up=asked), [seen], ROOT, frozenset())
    assert [(each.code, each.where) for each in found] == [("dns_lookup", "curl -s x")]
    assert "updates.example.com" in found[0].what


def test_packets_of_a_program_are_a_finding_though_python_looked_a_name_up():
    seen = {"kind": "lookup", "host": "milvus.lan", "port": 1, "stack": [], "pid": 1, "thread": "MainThread"}
    found = running._findings(report(unrouted_packets=3), [seen], ROOT, frozenset())
    assert [each.code for each in found] == ["outbound_unseen"]


def test_code_that_runs_at_each_start_of_python_is_a_finding(tmp_path: Path):
    """A `.pth` file runs before the hook. The venv is a real one, empty but for that file; the app is small."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True, timeout=60)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "a.pth").write_text("\n".join(shared))
    beacon = "import socket; exec('try: socket.create_connection((\"203.0.113.9\", 80), 5)\\nexcept OSError: pass')\n"
    (packages / "beacon.pth").write_text(beacon)
    (tmp_path / "app.py").write_text(MINI.replace("203.0.113.9", "127.0.0.1"))
    (tmp_path / "front.py").write_text("import streamlit as st\nst.write('front')\n")
    code = (
        "import json, os, sys; from pathlib import Path; from deploy.offline import running;"
        f"found = running.run(Path({str(tmp_path)!r}), dict(os.environ), None, None, frozenset(), 'namespace', lambda text: None);"
        "print(json.dumps([each.listed() for each in found.findings]))"
    )
    python = tmp_path / "venv" / "bin" / "python"
    done = subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=150)
    (found,) = [each for each in json.loads(done.stdout) if each["what"].startswith("starting Python alone")]
    assert found["code"] == "outbound_unseen" and "beacon.pth" in found["where"], done.stderr


# ------------------------------------------------------------------------------------------------------------ models


def codes(folder: Path) -> set[tuple[str, str]]:
    return {(each.code, each.what) for each in completeness.problems(completeness.find(str(folder), folder))}


def test_a_whole_model_has_no_problem(tmp_path: Path):
    assert codes(model(tmp_path / "m")) == set()


def test_a_git_lfs_pointer_in_place_of_a_tokenizer(tmp_path: Path):
    folder = model(tmp_path / "m")
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 17098107\n")
    ((code, what),) = codes(folder)
    assert code == "model_incomplete" and "tokenizer.json is a Git LFS pointer" in what


@pytest.mark.parametrize(
    "name, content, said",
    [
        (
            "tokenizer_config.json",
            {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}},
            "tokenization_own.py is missing",
        ),
        ("config.json", {"vision_config": {"auto_map": {"AutoModel": "vision_own.Vision"}}}, "vision_own.py is missing"),
        ("text_encoder/config.json", {"auto_map": {"AutoModel": "other/repo--own.Model"}}, "of the repository other/repo"),
        ("config.json", {"text_config": {"trust_remote_code": True}}, "asks for trust_remote_code"),
        ("modules.json", [{"idx": 0, "path": "", "type": "custom_st.Transformer"}], "custom_st.Transformer"),
    ],
)
def test_code_of_the_model_s_own_wherever_it_is_named(tmp_path: Path, name: str, content: Any, said: str):
    folder = model(tmp_path / "m")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    ((code, what),) = codes(folder)
    assert code == "trust_remote_code" and said in what


def test_a_shard_of_a_sub_model_and_an_index_that_is_gone(tmp_path: Path):
    folder = model(tmp_path / "m")
    (folder / "vae").mkdir()
    index = {"weight_map": {"a": "diffusion-00001-of-00002.safetensors", "b": "diffusion-00002-of-00002.safetensors"}}
    (folder / "vae" / "diffusion.safetensors.index.json").write_text(json.dumps(index))
    (folder / "vae" / "diffusion-00001-of-00002.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    ((code, what),) = codes(folder)
    assert code == "model_shard_missing" and "diffusion-00002-of-00002.safetensors" in what


@pytest.mark.parametrize(
    "names, said",
    [
        (["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"], "1 of 3 shards of model.safetensors are missing, the first is 2"),
        (["model-00002-of-00002.safetensors"], "the first is 1"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "the index of the 2 shards"),
        (["big-00001-of-00002.gguf"], "the first is 2"),
    ],
)  # fmt: skip
def test_shards_that_no_index_names(tmp_path: Path, names: list[str], said: str):
    folder = model(tmp_path / "m")
    for name in names:
        (folder / name).write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    assert any(code == "model_shard_missing" and said in what for code, what in codes(folder))


def test_a_module_of_sentence_transformers_without_its_folder(tmp_path: Path):
    folder = model(tmp_path / "m")
    kinds = ("Transformer", "Dense", "Normalize")
    modules = [
        {"path": f"{n}_{kind}" if n else "", "type": f"sentence_transformers.models.{kind}"} for n, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    assert codes(folder) == {("model_config_missing", f"{folder}: the folder 1_Dense of modules.json is missing")}


# ------------------------------------------------------------------------------------------------- pages and sources


@pytest.mark.parametrize(
    "markup, loads",
    [
        ('<link rel="preconnect" href="https://a.example.com">', True),
        ('<script type=module src=https://a.example.com/x.mjs></script>', True),
        ('<base href="https://a.example.com/">', True),
        ('<video><track src="//a.example.com/x.vtt"></video>', True),
        ('<input type="image" src="https://a.example.com/b.png">', True),
        ("<style>a { background: image-set('https://a.example.com/1.png' 1x) }</style>", True),
        ("<style>@font-face { src: url(data:font/woff2;base64,d09GMg//a.bc) }</style>", False),
        ('<form action="https://a.example.com/"><input name="q"></form>', False),
    ],
)  # fmt: skip
def test_what_loads_and_what_does_not(markup: str, loads: bool):
    assert bool(page.in_html(markup)[0]) == loads


@pytest.mark.parametrize(
    "script, loads",
    [
        ('WebAssembly.instantiateStreaming(fetch("https://a.example.com/x.wasm"))', True),
        ('new SharedWorker("https://a.example.com/w.js")', True),
        ('navigator.sendBeacon("https://a.example.com/b", d)', True),
        ('x.open("GET", "https://a.example.com/b")', True),
        ('new WebSocket("wss://a.example.com/s")', True),
        ('new EventSource(`https://a.example.com/e`)', True),
        ('const help = "https://a.example.com/docs"', False),
        ('window.open("https://a.example.com/docs")', False),
    ],
)  # fmt: skip
def test_what_a_script_loads(script: str, loads: bool):
    assert bool(page.in_script(script)) == loads


@pytest.mark.parametrize(
    "source, code",
    [
        ("import tiktoken\ntiktoken.get_encoding('cl100k_base')", "download_call"),
        ("from tiktoken import encoding_for_model as e\ne('gpt-4')", "download_call"),
        ("import nltk as n\nn.download('punkt')", "download_call"),
        ("import torch\ntorch.hub.load('a/b', 'c')", "download_call"),
        ("import streamlit as st\nst.map(frame)", "remote_asset"),
        ("import streamlit as st\nst.image('https://a.example.com/x.png')", "remote_asset"),
        ("from streamlit import iframe\niframe(src='https://a.example.com/')", "remote_asset"),
        ("import streamlit.components.v1 as c\nc.iframe('https://a.example.com/')", "remote_asset"),
        ("figure.to_html(include_plotlyjs='cdn')", "remote_asset"),
        ("# nltk.download('punkt')\ntext = 'nltk.download()'", None),
        ("import streamlit as st\nst.image(data)\nst.link_button('Help', 'https://a.example.com/')", None),
        ("def map(x): ...\nmap(1)", None),
        ("this is no Python", None),
    ],
)
def test_calls_that_fetch_by_themselves(source: str, code: str | None):
    assert [each.code for each in calls.in_source(source)] == ([code] if code else [])
    assert code is None or code in CURES


@pytest.mark.parametrize(
    "variable, value, code",
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://otlp.example.com", "public_endpoint"),
        ("SENTRY_DSN", "https://planted-secret@o1.ingest.example.com/1", "public_endpoint"),
        ("HF_ENDPOINT", "https://hf-mirror.example.com", "public_endpoint"),
        ("HF_ENDPOINT", "http://mirror.lan", None),
        ("LANGSMITH_TRACING", "true", "telemetry"),
        ("https_proxy", "http://me:planted-secret@10.0.0.9:3128", "proxy_set"),
        ("NO_PROXY", "localhost", None),
    ],
)
def test_variables_that_lead_out(variable: str, value: str, code: str | None):
    found = list(variables.findings({variable: value}, frozenset()))
    assert [each.code for each in found] == ([code] if code else [])
    assert "planted-secret" not in repr(found) and (code is None or code in CURES)
