"""Checks other than the reported issues, the runner, reports, what is kept, the command, the criteria."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

import numpy as np
import pytest

from collectors.machines import Machine
from collectors.readings import Filesystem, Filesystems
from collectors.services import Service
from collectors.shell import Output
from deploy import __main__ as deploy_command
from deploy.offline import proof
from deploy.validation import access, criteria, kept, machines, report, resources, runner
from deploy.validation.checks import CHECKS, CODES, chosen
from deploy.validation.machines import ClockReading, Listener, MachineFacts
from deploy.validation.subject import LocalModel, OwnServer, Targets, is_loopback
from deploy.validation.types import Check, Item, Report, Verdict, failed, passed, skipped, warning
from gpu_server.interfaces import Embeddings, ModelInfo, Timing
from rag.errors import RagError
from settings import load, reference
from tests.collectors.service_fakes import Certificate, fake_service, make_certificate
from tests.deploy.validation_cases import NOW, FakeProcess, collection, result, world
from tests.ports import free_port
from tests.ui.deployment_fakes import host

EVIL = '"><img src=x onerror=alert(1)>'


# ------------------------------------------------------------------------------------------------------------- endpoints


def services(world_of: str, **others: Service) -> tuple[Service, ...]:
    return (Service("works", "http", world_of, timeout_seconds=20.0), *others.values())


def test_each_endpoint_is_followed_to_the_step_that_fails(tmp_path: Path) -> None:
    with fake_service({"GET /": "hello"}) as fake:
        named = Service("named", "http", "http://no-such-host.invalid:80", timeout_seconds=20.0)
        closed = Service("closed", "http", f"http://127.0.0.1:{free_port()}", timeout_seconds=20.0)
        plain = Service("plain", "http", f"https://127.0.0.1:{fake.port}", timeout_seconds=20.0)
        made = world(tmp_path, path_services=services(fake.address, a=named, b=closed, c=plain))
        found = {code: result(code, made) for code in ("E-1", "E-2", "E-3", "E-4", "E-5")}
    by_name = {code: {item.subject: item.outcome for item in each.items} for code, each in found.items()}
    assert by_name["E-1"] == {"works": "passed", "named": "failed", "closed": "passed", "plain": "passed"}
    assert by_name["E-2"] == {"works": "passed", "named": "not_applicable", "closed": "failed", "plain": "passed"}
    assert by_name["E-3"] == {"plain": "failed"} and "does not speak TLS" in found["E-3"].evidence
    assert by_name["E-5"]["works"] == "passed" and by_name["E-5"]["closed"] == "not_applicable"


@pytest.mark.parametrize(("days", "name", "said"), [(-1.0, "localhost", "expired"), (30.0, "elsewhere", "not made out to")])
def test_bad_certificates_are_found(tmp_path: Path, days: float, name: str, said: str) -> None:
    made = make_certificate(tmp_path / "tls", days=days, name=name)
    found = result("E-3", tls_world(tmp_path, made))
    assert found.outcome == "failed" and said in found.evidence and found.cure


def tls_world(folder: Path, certificate: Certificate, **values: Any) -> Any:
    with fake_service({"GET /": "x"}, certificate) as fake:
        service = Service("tls", "http", fake.address, ca_file=certificate.authority, timeout_seconds=20.0)
        made = world(folder, path_services=(replace(service, **values),), is_loopback=lambda host: False)
        made.connections()
    return made


def test_a_certificate_near_its_end_and_one_that_is_not_checked_are_warned_of(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path / "tls", days=5.0)
    import time

    made = tls_world(tmp_path, certificate)
    made.now = time.time
    found = result("S-2", made)
    assert found.outcome == "warning" and "ends in 5 days" in found.evidence.replace("4 days", "5 days")
    assert "not checked" in result("S-2", tls_world(tmp_path, certificate, verify=False)).evidence


def test_a_key_in_clear_beyond_loopback_fails(tmp_path: Path) -> None:
    keyed = Service("llm", "openai-chat", "http://10.0.0.9:8001", api_key="sk-planted-secret")
    found = result("S-2", world(tmp_path, path_services=(keyed,)))
    assert found.outcome == "failed" and "sk-planted" not in json.dumps(found.to_json())
    assert result("S-2", world(tmp_path, path_services=(replace(keyed, api_key=None),))).outcome == "warning"
    here = replace(keyed, url="http://127.0.0.1:8001")
    assert result("S-2", world(tmp_path, path_services=(here,))).outcome == "not_applicable"


# ---------------------------------------------------------------------------------------------------------------- tokens


def redis_world(folder: Path, url: str) -> Any:
    return world(folder, path_services=(Service("redis", "redis", url, timeout_seconds=20.0),), is_loopback=lambda host: False)


def fake_redis(password: str | None) -> Iterator[int]:
    """A fake of Redis that knows AUTH, SET, GET, DEL, PING and INFO."""
    kept_values: dict[bytes, bytes] = {}

    def serve(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            open_ = password is None
            while head := lines.readline():
                words = [lines.read(int(lines.readline()[1:]) + 2)[:-2] for _ in range(int(head[1:]))]
                name = words[0].upper()
                if name == b"AUTH":
                    open_ = words[-1].decode() == password
                    connection.sendall(b"+OK\r\n" if open_ else b"-WRONGPASS invalid\r\n")
                elif not open_:
                    connection.sendall(b"-NOAUTH Authentication required.\r\n")
                elif name == b"SET":
                    kept_values[words[1]] = words[2]
                    connection.sendall(b"+OK\r\n")
                elif name == b"GET":
                    value = kept_values[words[1]]
                    connection.sendall(b"$%d\r\n%s\r\n" % (len(value), value))
                else:
                    connection.sendall({b"PING": b"+PONG\r\n", b"DEL": b":1\r\n"}.get(name, b"$0\r\n\r\n"))

    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        try:
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
        except OSError:
            return

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.mark.parametrize("password", [None, "right-password"])
def test_a_store_that_serves_strangers_is_found(tmp_path: Path, password: str | None) -> None:
    for port in fake_redis(password):
        url = f"redis://:{password}@127.0.0.1:{port}/0" if password else f"redis://127.0.0.1:{port}/0"
        found = result("S-3", redis_world(tmp_path, url))
    assert found.outcome == ("passed" if password else "failed"), found.evidence
    assert "right-password" not in json.dumps(found.to_json())


def test_http_models_that_serve_strangers_are_found(tmp_path: Path) -> None:
    answers = {"POST /v1/embeddings": {"data": [{"embedding": [1.0, 0.0], "index": 0}, {"embedding": [0.0, 1.0], "index": 1}]}}
    with fake_service(answers) as fake:  # type: ignore[arg-type]
        service = Service("embedder", "openai-embeddings", fake.address, "m", "the-key", timeout_seconds=20.0)
        made = world(tmp_path, path_services=(service,), is_loopback=lambda host: False)
        found = result("S-3", made)
        sent = [each.headers.get("authorization") for each in fake.asked]
    assert found.outcome == "failed" and "without a token" in found.evidence and "--api-key" in found.cure
    assert "Bearer the-key" not in sent, "the right key is not what strangers have"


def test_our_own_server_beyond_loopback_needs_a_token(tmp_path: Path) -> None:
    own = OwnServer("dashboard", "0.0.0.0", free_port())
    assert result("S-3", world(tmp_path, own=(own,))).outcome == "failed"
    assert result("S-3", world(tmp_path, own=(replace(own, token="t"),))).outcome == "not_applicable", "it does not run"
    with fake_service({"GET /api/v1/queries": {"queries": []}}) as fake:
        started_without = OwnServer("dashboard", "0.0.0.0", fake.port, "token")
        assert "answered 200 without" in result("S-3", world(tmp_path, own=(started_without,))).evidence


# -------------------------------------------------------------------------------------------------------------- machines

PROC_NET_TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 19024 1 0000000000000000 100 0 0 10 0
   1: 0100007F:2136 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 30211 1 0000000000000000 100 0 0 10 0
   2: 00000000:18EB 00000000:0000 0A 00000000:00000000 00:00000000 00000000   101        0 28411 1 0000000000000000 100 0 0 10 0
   3: 0A00000F:A2B4 0A000001:01BB 01 00000000:00000000 00:00000000 00000000     0        0 40001 1 0000000000000000 20 4 30 10 -1
  sl  local_address                         remote_address                        st tx_queue rx_queue
   0: 00000000000000000000000000000000:4C4A 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000
   1: 00000000000000000000000001000000:0277 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000
   2: 0000000000000000FFFF00000100007F:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000
   3: broken
   4: 0000:zz 0 0A
"""


def test_listening_sockets_are_read_from_proc() -> None:
    found = machines.parse_listeners(PROC_NET_TCP)
    assert set(found) == {
        Listener("0.0.0.0", 22),
        Listener("127.0.0.1", 8502),
        Listener("0.0.0.0", 6379),
        Listener("::", 19530),
        Listener("::1", 631),
        Listener("127.0.0.1", 8080),
    }
    assert [each.port for each in found if each.is_loopback] == [8080, 8502, 631]


def test_ports_open_by_accident_are_found(tmp_path: Path) -> None:
    facts = MachineFacts("vps", False, "vps.example", listeners=machines.parse_listeners(PROC_NET_TCP))
    milvus = Service("store", "milvus", "vps.example:19530")
    found = result("S-1", world(tmp_path, facts=[facts], watched=(milvus,)))
    by_name = {item.subject: item for item in found.items}
    assert by_name["vps:6379"].outcome == "failed" and "Redis" in by_name["vps:6379"].cause
    assert "ufw allow from SOURCE" in by_name["vps:6379"].cure
    assert by_name["vps:22"].outcome == "passed" and by_name["vps:19530"].outcome == "passed"
    unread = MachineFacts("vps", False, problems={"connection": "login refused"})
    assert "login refused" in result("S-1", world(tmp_path, facts=[unread])).evidence


def test_a_dashboard_started_wider_than_its_settings_is_found(tmp_path: Path) -> None:
    facts = MachineFacts("local", True, listeners=(Listener("0.0.0.0", 8502),))
    own = OwnServer("dashboard", "127.0.0.1", 8502)
    assert "started with another address" in result("S-1", world(tmp_path, facts=[facts], own=(own,))).cause
    meant = OwnServer("dashboard", "0.0.0.0", 8502, "token")
    assert result("S-1", world(tmp_path, facts=[facts], own=(meant,))).outcome == "passed"


@pytest.mark.parametrize(("offset", "outcome"), [(0.2, "passed"), (-4.0, "warning"), (120.0, "failed")])
def test_clocks_are_compared_within_what_is_known(tmp_path: Path, offset: float, outcome: str) -> None:
    facts = MachineFacts("vps", False, clock=ClockReading(offset, 0.05))
    assert result("T-1", world(tmp_path, facts=[facts])).outcome == outcome
    unsure = replace(facts, clock=ClockReading(offset, 200.0))
    assert result("T-1", world(tmp_path, facts=[unsure])).outcome == "passed", "no more is said than is known"


def test_times_of_date_with_and_without_a_fraction() -> None:
    assert machines.parse_clock("1763750000.250000000\n") == (1763750000.25, 0.0)
    assert machines.parse_clock("1763750000.%N\n") == (1763750000.5, 0.5), "BusyBox"
    assert machines.parse_clock("date: invalid option") is None


class FakeReader:
    """A fake of a machine's reader: 40 s ahead of a clock that stands at 1,000,000,000 s."""

    connected = True

    def connect(self, timeout: float) -> None: ...
    def rest(self, part: Any) -> None: ...
    def disconnect(self) -> None: ...
    def close(self) -> None: ...

    def read(self, part: Any, timeout: float) -> Any:
        full = Filesystem("/", "sda1", "ext4", 100 * 2**30, 99 * 2**30, 2**30, 0.99)
        return {"host": host(used=0.99), "filesystems": Filesystems((full,))}.get(part)

    def run(self, command: str, timeout: float) -> Output:
        texts = {machines.CLOCK: "1000000040.0", machines.LISTENERS: PROC_NET_TCP, machines.ENGINES: ""}
        return Output(texts[command], "", 0, 0.01)


def test_a_machine_is_read_over_its_reader(tmp_path: Path) -> None:
    facts = machines.read(Machine("vps", "vps.example"), lambda machine: FakeReader(), lambda: 1e9)  # type: ignore[arg-type,return-value]
    assert facts.clock == ClockReading(40.0, 0.0) and facts.listeners and facts.engines == () and facts.gpus is None
    made = world(tmp_path, facts=[facts])
    assert result("T-1", made).outcome == "failed" and result("D-1", made).outcome == "failed"
    assert result("D-2", made).outcome == "failed"


def test_this_machine_is_read_for_real(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        facts = machines.read(Machine("local"))
        assert Listener("127.0.0.1", listener.getsockname()[1]) in (facts.listeners or ())
    assert facts.host and facts.filesystems and facts.is_local and facts.clock is None


# ------------------------------------------------------------------------------------------------------ ground to stand on


def test_a_data_folder_that_cannot_be_written_is_found(tmp_path: Path) -> None:
    assert result("D-3", world(tmp_path)).outcome == "passed" and not list((tmp_path / "data").iterdir())
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "data").write_text("a file")
    found = result("D-3", world(blocked))
    assert found.outcome == "failed" and "RAGDECK_DATA" in found.cure


@pytest.mark.parametrize(
    ("driver", "cuda", "outcome"),
    [("550.54.15", "12.8", "passed"), ("470.82.01", "12.8", "failed"), ("550.54.15", "13.0", "failed"), ("550.54.15", None, "warning"), (None, "12.8", "not_applicable")],
)  # fmt: skip
def test_driver_against_cuda(driver: str | None, cuda: str | None, outcome: str) -> None:
    assert resources.judge_driver(driver, cuda).outcome == outcome


def test_the_cuda_of_torch_is_read_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (tmp_path / "torch" / "version.py").write_text(
        "from typing import Optional\n__version__ = '2.13.0+cu128'\ncuda: Optional[str] = '12.8'\n"
    )
    spec = resources.importlib.util.spec_from_file_location("torch", tmp_path / "torch" / "__init__.py", submodule_search_locations=[str(tmp_path / "torch")])  # fmt: skip
    monkeypatch.setattr(resources.importlib.util, "find_spec", lambda name: spec)
    assert resources.torch_cuda() == "12.8"


def test_an_empty_store_fails_and_a_filled_one_passes(tmp_path: Path) -> None:
    assert result("D-4", world(tmp_path, FakeProcess(known=[collection(entities=0)]))).outcome == "failed"
    assert result("D-4", world(tmp_path, FakeProcess(known=[collection()]))).evidence == "passages__m: 5 passages"
    away = RagError("Milvus is away", kind="connection", next_step="Start it.")
    assert result("D-4", world(tmp_path, FakeProcess(known=away))).cure == "Start it."


class OneVector:
    """A fake embedder whose every vector is the one it is given."""

    def __init__(self, *vector: float) -> None:
        self.vector = np.array(vector, np.float32)
        self.info = ModelInfo("m", "embedder", "m", "cpu", "fp32", dimension=len(vector))

    def embed(self, texts: Any, kind: Any = "passage", *, vectors: Any = None, priority: int = 0, deadline: Any = None, caches: Any = "use") -> Embeddings:  # fmt: skip
        return Embeddings(np.stack([self.vector] * len(texts)), None, Timing(), 1)

    def count_tokens(self, text: str) -> int:
        return 1


@pytest.mark.parametrize(("own", "identity", "dimension"), [((1.0, 0.0), "passed", "passed"), ((0.0, 1.0), "failed", "passed"), ((1.0, 0.0, 0.0), "not_applicable", "failed")])  # fmt: skip
def test_one_embedder_everywhere(tmp_path: Path, own: tuple[float, ...], identity: str, dimension: str) -> None:
    rows = {"data": [{"embedding": [1.0, 0.0], "index": 0}, {"embedding": [0.6, 0.8], "index": 1}]}
    with fake_service({"POST /v1/embeddings": rows, "GET /v1/models": {"data": [{"id": "m"}]}}) as fake:
        service = Service("embedder", "openai-embeddings", fake.address, "m", timeout_seconds=20.0)
        made = world(tmp_path, FakeProcess(embedder=OneVector(*own)), path_services=(service,))
        assert (result("M-1", made).outcome, result("M-2", made).outcome) == (identity, dimension)


def test_a_collection_of_another_embedder_is_found(tmp_path: Path) -> None:
    other = collection("passages__bge_m3_1024", 1024, embedder="bge_m3_1024", active=False)
    found = result("M-1", world(tmp_path, FakeProcess(embedder=OneVector(1.0, 0.0), known=[other])))
    assert found.outcome == "failed" and "passages__bge_m3_1024" in found.evidence
    here = collection("passages__m", 1024)
    assert result("M-2", world(tmp_path, FakeProcess(embedder=OneVector(1.0, 0.0), known=[here]))).outcome == "failed"


# ---------------------------------------------------------------------------------------------------------- path, languages

ANSWER = {
    "outcome": "answered",
    "total_seconds": 1.5,
    "ttft_seconds": 0.4,
    "cold": False,
    "passages": [{"kept": True}, {"kept": False}],
    "stages": [{"stage": "embed", "seconds": 0.01, "spans": 1, "where": "http", "device": "cuda", "model": "m", "cold": False, "degraded": None}],
}  # fmt: skip


def test_the_full_query_is_asked_again_when_it_was_cold(tmp_path: Path) -> None:
    process = FakeProcess(answers=[{**ANSWER, "cold": True, "total_seconds": 30.0}, ANSWER])
    found = result("Q-1", world(tmp_path, process))
    assert found.outcome == "passed" and len(process.asked) == 2
    assert found.measures["total_seconds"] == 1.5 and found.measures["cold_total_seconds"] == 30.0
    assert found.table[1] == ("embed", "0.0100", "http", "cuda", "m", "no")


def test_queries_that_degrade_find_nothing_or_fail(tmp_path: Path) -> None:
    (stage,) = ANSWER["stages"]  # type: ignore[misc]
    degraded = {**ANSWER, "stages": [{**stage, "degraded": "the reranker is away"}]}  # type: ignore[dict-item]
    assert result("Q-1", world(tmp_path, FakeProcess(answers=[degraded]))).evidence.endswith("the reranker is away")
    assert result("Q-1", world(tmp_path, FakeProcess(answers=[{**ANSWER, "outcome": "no_documents"}]))).outcome == "warning"
    error = {"stage": "search", "kind": "timeout", "message": "too late", "next_step": "Wait."}
    found = result("Q-1", world(tmp_path, FakeProcess(answers=[{"outcome": "failed", "error": error}])))
    assert found.outcome == "failed" and found.cause == "Stage search: timeout." and found.cure == "Wait."
    refused = RagError("a token is needed", kind="authentication", next_step="Set RAGDECK_TOKEN.")
    assert result("Q-1", world(tmp_path, FakeProcess(answers=[refused]))).cure == "Set RAGDECK_TOKEN."


def test_the_first_token_is_held_against_its_target(tmp_path: Path) -> None:
    models = (LocalModel("llm", "org/chat"),)
    assert result("Q-2", world(tmp_path, FakeProcess(answers=[ANSWER]), local_models=models)).outcome == "passed"
    slow = world(tmp_path, FakeProcess(answers=[ANSWER]), local_models=models, targets=Targets(first_token_seconds=0.1))
    assert result("Q-2", slow).outcome == "warning"
    assert result("Q-2", world(tmp_path)).outcome == "not_applicable"


def test_an_embedder_that_knows_no_hebrew_is_found(tmp_path: Path) -> None:
    found = result("L-1", world(tmp_path, FakeProcess(embedder=OneVector(1.0, 0.0))))
    assert found.outcome == "failed" and "same vector" in found.evidence and "bge-m3" in found.cure


class Hears:
    """A fake transcriber and page reader that always says the same."""

    identity, max_pages, parallel = "fake", 1, 1

    def __init__(self, text: str) -> None:
        self.text = text

    def transcribe(self, data: bytes, name: str, check: Any) -> Any:
        check()
        assert data[:4] == b"RIFF"
        return self

    def read(self, image: bytes, check: Any) -> Any:
        assert image[:2] == b"\xff\xd8", "readers take JPEG"
        return self


@pytest.mark.parametrize(("text", "outcome"), [("שלום זוהי בדיקת תמלול", "passed"), ("שלום", "warning"), ("hello", "failed")])
def test_hebrew_audio_is_judged_by_the_words_heard(tmp_path: Path, text: str, outcome: str) -> None:
    assert result("L-2", world(tmp_path, transcriber=Hears(text))).outcome == outcome
    assert "WHISPER_BASE_URL" in result("L-2", world(tmp_path)).reason


def test_a_scanned_page_is_judged_by_the_words_read(tmp_path: Path) -> None:
    assert (
        result("L-3", world(tmp_path, page_reader=Hears("Invoice 4071 Delivery 12 pumps חשבון מספר סך הכל לתשלום"))).outcome
        == "passed"
    )
    assert result("L-3", world(tmp_path, page_reader=Hears(""))).outcome == "failed"
    away = Service("ocr", "ocr", "http://127.0.0.1:9", timeout_seconds=2.0)
    assert "nothing listens" in result("L-3", world(tmp_path, watched=(away,))).evidence


@pytest.mark.parametrize(
    ("weaker", "findings", "outcome"),
    [(False, [], "passed"), (True, [], "warning"), (False, [{"code": "hub_call", "what": "asked the hub"}], "failed")],
)
def test_the_last_offline_check_counts(tmp_path: Path, weaker: bool, findings: list[dict[str, str]], outcome: str) -> None:
    kept = world(tmp_path).subject.data_dir
    assert result("O-2", world(tmp_path)).outcome == "not_applicable"
    proof.save(kept, {"findings": findings, "run": {"weaker": weaker}}, clock=lambda: 1_790_000_000.0)
    found = result("O-2", world(tmp_path))
    assert found.outcome == outcome and "2026-09-21" in found.evidence
    (kept / proof.NAME).write_text("{")
    assert result("O-2", world(tmp_path)).outcome == "not_applicable"


def test_offline_variables_and_public_addresses(tmp_path: Path) -> None:
    inside = {
        "MILVUS_URI": "http://10.0.0.3:19530",
        "VLLM_BASE_URL": "http://vllm:8001",
        "OCR": "http://ocr.rag.svc.cluster.local",
    }
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), True)
    assert result("O-1", world(tmp_path, offline=offline, addresses=inside)).outcome == "passed"
    unset = result("O-1", world(tmp_path, offline={**offline, "TRANSFORMERS_OFFLINE": False}, addresses=inside))
    assert unset.outcome == "warning" and "TRANSFORMERS_OFFLINE=1" in unset.cure
    public = {"VLLM_BASE_URL": "https://llm.provider.com/v1"}
    assert "VLLM_BASE_URL" in result("O-1", world(tmp_path, offline=offline, addresses=public)).evidence


# ------------------------------------------------------------------------------------------------------ runner and reports


def check(code: str, *items: Item, raises: Exception | None = None) -> Check:
    def run(_: Any) -> Verdict:
        if raises:
            raise raises
        return Verdict(items, "" if items else "nothing is there")

    return Check(code, f"Group {EVIL}", f"Title {code}", "Proves something.", run)


def made_report(tmp_path: Path) -> Report:
    checks = (
        check("A-1", passed("one", "fine")),
        check("A-2", passed("one", "fine"), warning("two", "slow | \x1b[31m", "a cause", "a cure")),
        check("A-3", failed("three", EVIL, "cause " + EVIL, "cure")),
        check("A-4"),
        check("A-5", raises=ValueError("secret in a message")),
        check("A-6", skipped("six", "away")),
    )
    steps = runner.run(world(tmp_path), checks)
    events: list[Any] = []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as end:
            assert len(events) == 12
            return end.value  # type: ignore[no-any-return]


def test_a_check_that_breaks_costs_no_other(tmp_path: Path) -> None:
    made = made_report(tmp_path)
    assert [each.outcome for each in made.results] == [
        "passed",
        "warning",
        "failed",
        "not_applicable",
        "failed",
        "not_applicable",
    ]
    assert "ValueError" in made.results[4].evidence and "secret" not in made.results[4].evidence
    assert Report.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_a_run_that_is_stopped_keeps_what_ran(tmp_path: Path) -> None:
    seen: list[str] = []
    steps = runner.run(world(tmp_path), [check("A-1"), check("A-2")], lambda: bool(seen))
    seen += [next(steps)["code"], next(steps)["type"]]
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert [each.code for each in end.value.value.results] == ["A-1"]


def test_reports_say_all_and_let_nothing_through(tmp_path: Path) -> None:
    made = made_report(tmp_path)
    page, text = report.html(made), report.markdown(made)
    assert "<img" not in page and "&lt;img" in page and "http" not in page
    assert "<img" not in text.replace("\\<img", "") and "Cause: cause" in text and "slow \\|" in text
    suite = xml.fromstring(report.junit(made).encode()).find("testsuite")
    assert suite is not None and (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("6", "2", "2")
    failure = suite.find("testcase[@name='A-3 Title A-3']/failure")
    assert failure is not None and "cure: cure" in (failure.text or "") and EVIL in (failure.text or "")
    told = suite.find("testcase[@name='A-2 Title A-2']/system-out")
    assert told is not None and "warning: two" in (told.text or "")


def test_the_last_result_of_each_check_is_kept(tmp_path: Path) -> None:
    assert kept.load(tmp_path) is None
    first, second = (result(code, world(tmp_path)) for code in CODES[:2])
    kept.save(tmp_path, Report(NOW, 1.0, "0.1.0", (first, second)))
    newer = replace(first, at_unix=NOW + 60)
    whole = kept.save(tmp_path, Report(NOW + 60, 1.0, "0.1.0", (newer,)))
    assert whole.results == (newer, second) and kept.load(tmp_path) == whole
    assert [each.name for each in tmp_path.iterdir()] == ["readiness.json"], "no half-written file is left"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 99}', '{"format": 1, "report": {"results": [{"outcome": "x"}]}}'])
def test_a_kept_file_that_cannot_be_read_is_said_and_written_anew(tmp_path: Path, text: str) -> None:
    kept.path_in(tmp_path).write_text(text)
    with pytest.raises(RagError, match=r"readiness\.json cannot be read"):
        kept.load(tmp_path)
    kept.save(tmp_path, Report(NOW, 1.0, "0.1.0", ()))
    assert kept.load(tmp_path) is not None


def test_every_reported_issue_has_its_check() -> None:
    assert {f"R0-{number}" for number in range(1, 8)} | {"R4-1", "R4-2", "R4-3"} <= set(CODES) and len(set(CODES)) == len(CHECKS)
    assert [each.code for each in chosen(["r0-3", "E-1"])] == ["E-1", "R0-3"]
    with pytest.raises(RagError, match="no check X-9"):
        chosen(["X-9"])
    assert is_loopback("localhost") and is_loopback("[::1]") and not is_loopback("0.0.0.0")
    assert access.stranger(Service("r", "redis", "redis://u:pw@h:1/0"), "wrong").url == "redis://:wrong@h:1/0"


# --------------------------------------------------------------------------------------------------------------- criteria


def load_result(*steps: tuple[int, int, int, float]) -> dict[str, Any]:
    """(users, answered, failed, p95)."""
    listed = [{"users": users, "answered": answered, "errors": {"timeout": bad} if bad else {}, "unfinished": 0, "total": {"p95": p95}} for users, answered, bad, p95 in steps]  # fmt: skip
    return {"steps": listed, "knee": {"text": "no knee up to 4 users"}}


@pytest.mark.parametrize(
    ("result_", "days", "outcome"),
    [
        (load_result((1, 9, 0, 1.0), (4, 40, 0, 2.0)), 1.0, "passed"),
        (load_result((1, 9, 0, 1.0), (4, 40, 9, 2.0)), 1.0, "failed"),
        (load_result((1, 9, 0, 1.0), (4, 40, 0, 2.0), (8, 40, 9, 22.0)), 1.0, "passed"),
        (load_result((2, 9, 3, 1.0), (4, 40, 0, 2.0)), 1.0, "failed"),
        (load_result((1, 9, 0, 1.0), (4, 40, 0, 22.0)), 1.0, "failed"),
        (load_result((1, 9, 0, 1.0), (2, 40, 0, 2.0)), 1.0, "warning"),
        (load_result((1, 9, 0, 1.0), (4, 40, 0, 2.0)), 90.0, "warning"),
    ],
)
def test_stability_comes_from_the_latest_load_test(result_: dict[str, Any], days: float, outcome: str) -> None:
    load_test = criteria.Load("exp", NOW - days * 86_400, result_)
    found = criteria.criteria(criteria.Measured(load=load_test), Targets(), NOW)[4]
    assert found.outcome == outcome and found.load_id == "exp" and found.at_unix == load_test.at_unix


def test_nothing_is_assumed() -> None:
    found = criteria.criteria(criteria.Measured(), Targets(), NOW)
    assert [each.outcome for each in found] == ["not_applicable"] * 5 and all(each.next_step for each in found)
    assert all(each.at_unix is None for each in found)


def test_six_services_are_told_role_by_role() -> None:
    kinds = {"embedder": "openai-embeddings", "ocr": "ocr", "llm": "openai-chat", "whisper": "whisper"}
    watched = tuple(criteria.Watched(name, kind, "ok", NOW - 5) for name, kind in kinds.items())  # type: ignore[arg-type]
    found = criteria.criteria(criteria.Measured(services=watched), Targets(), NOW)[0]
    assert found.outcome == "passed" and len(found.evidence) == 6
    less = criteria.criteria(criteria.Measured(services=watched[:3]), Targets(), NOW)[0]
    assert less.outcome == "warning" and "Whisper" in less.evidence[-1]
    down = (*watched[:3], criteria.Watched("whisper", "whisper", "failed", NOW, "refused"))
    assert criteria.criteria(criteria.Measured(services=down), Targets(), NOW)[0].outcome == "failed"


@pytest.mark.parametrize(("p95", "count", "outcome"), [(2.0, 100, "passed"), (12.0, 100, "failed"), (12.0, 3, "not_applicable")])
def test_response_times_are_measured(p95: float, count: int, outcome: str) -> None:
    times = criteria.Times(p95, count, NOW)
    assert criteria.criteria(criteria.Measured(times=times), Targets(), NOW)[3].outcome == outcome


# ----------------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def settings_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [row.variable for row in reference() if row.variable] + ["MILVUS_HOST", "OPENAI_API_KEY"]:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "empty.toml").write_text("")
    monkeypatch.setenv("RAGDECK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("RAGDECK_CONFIG", str(tmp_path / "empty.toml"))
    return tmp_path


def test_the_command_validates_and_reports(settings_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(settings_folder / f"r{end}") for end in report.FORMATS]
    wanted = ["--only", "D-3", "D-4", "Q-1", "R0-2", *(word for file in files for word in ("--report", file))]
    code = deploy_command.main(["validate", *wanted, "--json"])
    found = json.loads(capsys.readouterr().out)
    by_code = {each["code"]: each["outcome"] for each in found["results"]}
    assert code == 1 and by_code == {"D-3": "passed", "D-4": "failed", "Q-1": "warning", "R0-2": "passed"}
    assert all(Path(file).stat().st_size for file in files)
    assert kept.load(settings_folder / "data") == Report.from_json(found)


def test_the_command_says_wrong_usage(settings_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy_command.main(["validate", "--only", "X-1"]) == 2
    assert deploy_command.main(["validate", "--report", "x.pdf", "--only", "D-3"]) == 2
    assert deploy_command.main(["validate", "--only", "D-3"]) == 0
    assert "1 passed" in capsys.readouterr().out
    (settings_folder / "empty.toml").write_text("nonsense = 1\n")
    assert deploy_command.main(["validate", "--only", "D-3"]) == 2


def test_the_way_back_and_its_undoing(settings_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    back = ["rollback", "reranker"]
    assert deploy_command.main([*back, "--dry-run"]) == 0 and load().reranker.enabled
    assert deploy_command.main([*back, "--undo"]) == 2, "nothing to undo"
    assert deploy_command.main(back) == 0 and not load().reranker.enabled
    assert deploy_command.main([*back, "--url", "http://127.0.0.1:8002"]) == 0
    assert load().reranker.enabled and load().reranker.api_url == "http://127.0.0.1:8002"
    said = capsys.readouterr().out
    assert "reranker.enabled is now false (before: true)" in said and "--undo" in said
    assert deploy_command.main([*back, "--undo"]) == 0
    assert load().reranker.enabled and load().reranker.api_url is None
    assert not (settings_folder / "data" / "rollback-reranker.json").exists()


def test_a_way_back_that_a_stronger_source_bars_changes_nothing(
    settings_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RERANKER_ENABLED", "true")
    assert deploy_command.main(["rollback", "reranker"]) == 2
    assert "RERANKER_ENABLED" in capsys.readouterr().err and not (settings_folder / "data" / "edited.toml").exists()
    assert not (settings_folder / "data" / "rollback-reranker.json").exists()
