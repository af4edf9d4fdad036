from __future__ import annotations

import csv
import io
from datetime import UTC

import pytest
from bs4 import BeautifulSoup

from collectors.history import Point
from collectors.services import Latency, ProbeResult
from collectors.vllm_metrics import Engine
from tests.ui.deployment_fakes import EVIL, engine, services
from ui import services_view

VIEWS = {view.name: view for view in services(1000.0)}


def soup(html: str) -> BeautifulSoup:
    found = BeautifulSoup(html, "html.parser")
    assert found.img is None and found.script is None
    return found


def row(name: str) -> list[BeautifulSoup]:
    return soup(services_view.table([VIEWS[name]], UTC, lambda view: "", lambda view: 0.99951)).find_all("td")


def texts(name: str) -> list[str]:
    return [cell.get_text(" ", strip=True) for cell in row(name)]


def test_a_service_that_works() -> None:
    cells = texts("vllm")
    assert cells[0] == "vllm openai-chat · http://10.0.0.4/vllm"
    assert cells[1:4] == ["works", "11.0 ms", "240 ms"] and cells[5:] == ["99.95 %", "0.10.2", "61 days", "3 s ago"]
    bar = row("vllm")[3].find(class_="rd-split")
    assert bar is not None and bar["title"] == "name 0.400 ms\nconnect 12.0 ms\nTLS 21.0 ms\nfirst byte 190 ms\nthe rest 16.6 ms"


def test_a_service_that_fails_says_what_to_check() -> None:
    cells = texts("whisper")
    assert cells[1] == "failed" and "connection refused Next: Check that the service runs" in cells[0]
    mark = row("whisper")[2].abbr
    assert cells[2] == "–" and mark is not None and "connection refused (after 2.10 ms)" in mark["title"]


@pytest.mark.parametrize(
    ("name", "column", "reason"),
    [
        ("web", 3, "probed on demand only"),
        ("ocr", 2, "not probed yet"),
        ("gpu-server", 7, "without TLS"),
        ("rerank", 6, "does not tell"),
    ],
)
def test_every_unknown_says_why(name: str, column: int, reason: str) -> None:
    mark = row(name)[column].abbr
    assert mark is not None and reason in mark["title"]


def test_a_certificate_that_ends_soon_stands_out() -> None:
    assert "--rd-warn" in str(row("web")[7]) and "6 days" in texts("web")[7]
    assert "expired 3 days ago" in services_view.certificate(-3.2, "") and "--rd-critical" in services_view.certificate(1.0, "")


def test_titles() -> None:
    assert services_view.title(list(VIEWS.values())) == "1 of 6 services fails: whisper"
    assert services_view.title([VIEWS["vllm"], VIEWS["rerank"]]) == "2 services; not all right: rerank"
    assert services_view.title([VIEWS["vllm"], VIEWS["ocr"]]) == "1 of 2 services probed so far"
    assert services_view.title([VIEWS["vllm"], VIEWS["web"]]) == "2 services, all of them work"


def test_sorting_the_slowest_and_the_worst_first() -> None:
    assert min(VIEWS.values(), key=services_view.SORTS["slowest first"]).name == "rerank"
    assert min(VIEWS.values(), key=services_view.SORTS["worst state first"]).name == "whisper"


def test_the_split_adds_up_to_the_total_and_needs_parts() -> None:
    latency = Latency(1.0, None, 0.25, None, 0.5)
    assert [(word, seconds) for word, seconds, _ in services_view.split_of(latency)] == [
        ("connect", 0.25),
        ("first byte", 0.5),
        ("the rest", 0.25),
    ]
    assert services_view.split_bar(Latency(1.0)) == "" and services_view.split_line(Latency(1.0)) == ""


def test_uptime_by_samples_is_never_rounded_up() -> None:
    points = [Point(0, 1.0, 1, 1, 999_999), Point(1, 0.0, 0, 0, 1)]
    ratio = services_view.uptime(points)
    assert ratio == pytest.approx(0.999999) and services_view.uptime_text(ratio) == "99.99 %"
    assert (
        services_view.uptime_text(1.0) == "100 %" and services_view.uptime([]) is None and services_view.uptime_text(None) == "–"
    )


def test_uptimes_of_longer_spans_need_a_longer_history() -> None:
    day = 86_400.0

    def since(first: float) -> dict[str, str]:
        found = services_view.uptimes(lambda length: [Point(max(first, 100 * day - length), 1.0, 1, 1, 10)], 100 * day)
        return found

    assert since(100 * day - 60) == {"24 h": "100 %"}
    assert list(since(97 * day)) == ["24 h", "7 d"] and list(since(10 * day)) == ["24 h", "7 d", "30 d"]
    assert services_view.uptimes(lambda length: [], 0.0) == {}


def test_one_probe_whole() -> None:
    shown = soup(services_view.probe(VIEWS["vllm"].functional.value, "functional", "")).get_text(" ", strip=True)
    assert shown.startswith("Does it work? works one token generated in 240 ms TTFT 190 ms") and "connect 12.0 ms" in shown
    evil = ProbeResult(
        "x", "http", "liveness", "failed", "a", Latency(1.0), "refused", EVIL, EVIL, EVIL, (EVIL,), EVIL, notes=(EVIL,)
    )
    assert EVIL in soup(services_view.probe(evil, "liveness", "")).text
    assert "it waits" in services_view.probe(None, "functional", "it waits")


def test_the_header_of_a_service() -> None:
    line = soup(services_view.header(VIEWS["vllm"], {"24 h": "99.95 %", "7 d": "–"}, UTC)).get_text(" ", strip=True)
    assert "up: 24 h 99.95 %" in line and "7 d" not in line and "certificate: 61 days" in line


def test_the_numbers_of_an_engine() -> None:
    shown = soup(services_view.engine(engine())).get_text(" ", strip=True)
    for said in (
        "running 2",
        "waiting 1",
        "KV cache used 31 %",
        "generated 92.4 tok/s",
        "first token (TTFT) 310 ms 620 ms 900 ms",
    ):
        assert said in shown
    assert "failures" not in shown and "prefill" not in shown  # what this server never tells takes no room
    first = services_view.engine(Engine("m", None, running=0))
    assert "rates need two" in first and 'running</span> <span class="rd-nowrap">0' in first
    assert "restarted" in services_view.engine(Engine("m", 10.0, restarted=True))


def test_the_line_of_an_engine() -> None:
    assert services_view.engine_line(VIEWS["vllm"].engine) == "running 2 · waiting 1 · KV cache 31 %"
    assert services_view.engine_line(VIEWS["web"].engine) == ""


def test_the_csv_has_no_formulas() -> None:
    rows = list(csv.DictReader(io.StringIO(services_view.csv(VIEWS.values()).decode("utf-8-sig"))))
    assert (
        [row["service"] for row in rows] == list(VIEWS)
        and rows[5]["liveness_seconds"] == ""
        and rows[1]["functional_seconds"] == "0.24"
    )
