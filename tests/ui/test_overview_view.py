from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from bs4 import BeautifulSoup

from collectors.alerts import Alert
from collectors.rules import rules
from collectors.views import Snapshot
from rag.trace_rows import QueryRow
from tests.ui.deployment_fakes import EVIL, machines, services
from ui import overview_view
from ui.gauges import Tones

NOW = datetime(2026, 11, 21, 5, 0, tzinfo=UTC)
SNAPSHOT = Snapshot(0.0, machines(0.0), services(0.0))
WELL = Snapshot(0.0, (SNAPSHOT.machines[0],), SNAPSHOT.services[:2])
TONES = Tones(rules({}))
SLOW = Alert(
    2,
    "reranker-slow",
    "Reranker slow",
    "rerank",
    "service.functional_seconds",
    "warn",
    0.84,
    0.9,
    0.0,
    "",
    "Look at its GPU.",
    "seconds",
)
ROW = QueryRow(
    "a" * 32, NOW.timestamp() - 12, EVIL, "answered", 9.8, 0.4, False, None, "m", None, 0.0, 3.3, 0.02, 0.31, 0.19, 5.9
)


def spark(source: str, metric: str, what: str) -> str:
    return ""


def text(html: str) -> str:
    soup = BeautifulSoup(html, "html.parser")
    assert soup.img is None and soup.script is None
    return soup.get_text(" ", strip=True)


def test_what_needs_somebody_is_alerts_and_what_is_down_without_one() -> None:
    found = overview_view.things(SNAPSHOT, [SLOW])
    assert [(thing.severity, thing.title) for thing in found] == [
        ("critical", "vps cannot be read"),
        ("critical", "ocr-gpu: login refused"),
        ("critical", "whisper fails"),
        ("warn", "Reranker slow: 840 ms"),
    ]
    assert found[3].url == "/alerts?id=2" and found[0].url == "/machine?name=vps" and found[2].look.startswith("Check that")


def test_what_has_an_alert_is_not_told_twice_and_what_is_acknowledged_needs_nobody() -> None:
    alert = replace(SLOW, source="whisper", level="critical")
    assert [thing.title for thing in overview_view.things(SNAPSHOT, [alert])].count("whisper fails") == 0
    assert len(overview_view.things(SNAPSHOT, [replace(alert, acknowledged_at=1.0)])) == 2
    assert overview_view.things(WELL, []) == []
    (told,) = overview_view.things(WELL, [replace(SLOW, detail="0.84 s at the last probe")])
    assert told.where == "rerank · 0.84 s at the last probe"
    (told,) = overview_view.things(WELL, [replace(SLOW, metric="fault.docker_down", detail="Docker is down (Start it.)")])
    assert "Start it." in told.where and told.look == ""


def test_the_headline() -> None:
    assert text(overview_view.headline([], WELL)) == "All right"
    assert text(overview_view.headline(overview_view.things(SNAPSHOT, [SLOW]), SNAPSHOT)) == "4 things need you"
    waiting = Snapshot(0.0, (SNAPSHOT.machines[-1],), ())
    assert "not everything is read yet" in text(overview_view.headline([], waiting))
    hour = overview_view.Hour([1.0] * 19 + [9.0], lookups=16, hits=4)
    line = text(overview_view.head([], WELL, ROW, hour))
    assert line == "All right last query 9.80 s last hour p95 1.00 s · n 20 hit rate 25 % · n 16"
    assert text(overview_view.head([], WELL, None, overview_view.Hour())) == "All right"


def test_the_hour_counts_what_the_pages_latency_and_cache_count() -> None:
    ended = replace(ROW, outcome="answered", total_seconds=2.0, cache_hit=True, cache_seconds=0.1)
    failed, past_the_cache = replace(ended, outcome="failed", cache_hit=False), replace(ended, cache_hit=None, cache_seconds=None)
    hour = overview_view.hour_of([ended, failed, past_the_cache])
    assert hour == ([2.0, 2.0], 2, 1)


def test_p95_is_the_nearest_rank() -> None:
    assert overview_view.p95([3.0]) == 3.0 and overview_view.p95([float(n) for n in range(1, 101)]) == 95.0


def test_the_list_of_what_needs_somebody() -> None:
    shown = text(overview_view.needs(overview_view.things(SNAPSHOT, [SLOW]), 2, NOW, UTC))
    assert "Reranker slow: 840 ms rerank" in shown and "Next: Look at its GPU." in shown and "2 alerts acknowledged" in shown
    many = [overview_view.Thing("warn", EVIL, "/x", EVIL, EVIL)] * 11
    assert "and 3 more" in text(overview_view.needs(many, 0, NOW, UTC)) and "Nothing." in text(
        overview_view.needs([], 0, NOW, UTC)
    )


def test_machines_in_a_line_or_two() -> None:
    shown = text(overview_view.machines(SNAPSHOT.machines, (), TONES, spark))
    for said in (
        "l4-vm GPU 0 % VRAM",
        "CPU 88 % RAM 93 % disk 96 %",
        "vps the host key of 10.0.0.9 is not known",
        "new not read yet",
    ):
        assert said in shown


def test_many_machines_show_the_worst_and_how_many_more() -> None:
    well = [replace(SNAPSHOT.machines[0], name=f"m{number}") for number in range(40)]
    html = overview_view.machines([*well, SNAPSHOT.machines[4]], (), TONES, spark)
    assert text(html).startswith("vps") and "and 27 more" in text(html) and html.count('class="rd-who"') == overview_view.MAX_ROWS
    assert "more" not in text(overview_view.services(SNAPSHOT.services))


def test_services_with_what_they_take_or_how_they_are() -> None:
    shown = text(overview_view.services(SNAPSHOT.services))
    for said in ("gpu-server 12.3 ms", "vllm 240 ms running 2 · waiting 1", "whisper failed", "ocr not probed yet"):
        assert said in shown


def test_the_last_queries_with_their_slowest_stage() -> None:
    shown = text(overview_view.queries([ROW], NOW, UTC))
    assert shown == f"{EVIL} 9.80 s generate 5.90 s (60 %) 12 s ago"
    failed = replace(ROW, outcome="failed", content=False)
    assert "question not kept failed" in text(overview_view.queries([failed], NOW, UTC))
    assert overview_view.slowest(ROW) == ("generate", 5.9)
