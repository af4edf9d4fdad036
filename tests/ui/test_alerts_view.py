from __future__ import annotations

import csv
import io
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from bs4 import BeautifulSoup

from collectors.alerts import Alert
from collectors.notify import NotifyHealth
from collectors.rules import CHANGEABLE, DEFAULTS, rules
from collectors.views import Snapshot
from tests.ui.deployment_fakes import EVIL, machines, services
from ui import alerts_view

NOW = datetime(2026, 11, 21, 5, 0, tzinfo=UTC)
SNAPSHOT = Snapshot(0.0, machines(0.0), services(0.0))
HOT = Alert(
    7,
    "gpu-hot",
    "GPU hot",
    "h100-1",
    "gpu.3.temperature_celsius",
    "warn",
    88.0,
    91.0,
    NOW.timestamp() - 600,
    EVIL,
    "Cool it.",
    "celsius",
)


def text(html: str) -> str:
    soup = BeautifulSoup(html, "html.parser")
    assert soup.img is None and soup.script is None
    return soup.get_text(" ", strip=True)


def test_an_alert_says_where_since_when_how_bad_and_what_to_look_at() -> None:
    html = alerts_view.line(HOT, SNAPSHOT, NOW, UTC)
    assert text(html) == f"GPU hot h100-1 · gpu 3 · 88.0 °C, worst 91.0 °C · raised 10 min ago {EVIL} Next: Cool it."
    links = [link["href"] for link in BeautifulSoup(html, "html.parser").find_all("a")]
    assert links == ["/alerts?id=7", "/machine?name=h100-1"]
    seen = alerts_view.line(replace(HOT, acknowledged_at=NOW.timestamp() - 60), SNAPSHOT, NOW, UTC)
    assert "acknowledged 60 s ago" in text(seen) and "rd-seen" in seen


def test_a_source_that_is_watched_no_more_is_no_link() -> None:
    html = alerts_view.line(replace(HOT, source=EVIL), SNAPSHOT, NOW, UTC)
    assert len(BeautifulSoup(html, "html.parser").find_all("a")) == 1 and EVIL in text(html)
    assert alerts_view.source_url("vllm", SNAPSHOT) == "/services?name=vllm" and alerts_view.source_url("gone", SNAPSHOT) is None


@pytest.mark.parametrize(
    ("value", "unit", "metric", "shown"),
    [
        (0.97, "ratio", "", "97 %"),
        (2**32, "bytes", "", "4.00 GiB"),
        (0.84, "seconds", "", "840 ms"),
        (1.0, "state", "", ""),
        (2.0, "count", "load.per_core_15m", "2.00"),
        (6.2, "count", "service.certificate_days", "6 days"),
    ],
)
def test_values_in_the_unit_of_their_rule(value: float, unit: str, metric: str, shown: str) -> None:
    assert alerts_view.value_text(value, unit, metric) == shown


@pytest.mark.parametrize(
    ("metric", "subject"),
    [
        ("gpu.3.slowed", "gpu 3"),
        ("filesystem./data.v1.used_ratio", "/data.v1"),
        ("unit.a.service.failed", "a.service"),
        ("cpu.busy_ratio", ""),
    ],
)
def test_the_part_an_alert_is_about(metric: str, subject: str) -> None:
    assert alerts_view.subject(metric) == subject


def test_titles() -> None:
    assert alerts_view.title([]) == "No alert is active"
    bad, seen = replace(HOT, level="critical"), replace(HOT, acknowledged_at=1.0)
    assert alerts_view.title([bad, HOT, HOT, seen]) == "1 critical alert and 2 warnings, 1 acknowledged"
    assert alerts_view.title([HOT]) == "1 warning" and alerts_view.title([seen]) == "Nothing new, 1 acknowledged"


def test_ended_alerts_with_how_long_they_lasted() -> None:
    ended = replace(HOT, resolved_at=HOT.raised_at + 3 * 86_400, detail="", ended="no longer measured")
    assert text(alerts_view.past([ended], SNAPSHOT, NOW, UTC)).endswith(
        "GPU hot gpu 3 h100-1 91.0 °C 10 min ago 3 days no longer measured no"
    )


def test_the_csv_has_times_in_utc_and_no_formulas() -> None:
    row = next(csv.DictReader(io.StringIO(alerts_view.csv([replace(HOT, source="=cmd()")]).decode("utf-8-sig"))))
    assert row["source"] == "'=cmd()" and row["raised_at"] == "2026-11-21T04:50:00+00:00" and row["resolved_at"] == ""


def test_rules_that_are_not_edited_change_nothing() -> None:
    for known in (DEFAULTS, rules({"cpu-busy": {"warn": 0.8765432, "for_seconds": 1.5}, "gpu-hot": {"enabled": False}})):
        assert alerts_view.changes(known, alerts_view.rule_rows(known)) == {}


def test_edited_rules_come_back_in_their_own_units() -> None:
    rows = {row["id"]: row for row in alerts_view.rule_rows(DEFAULTS)}
    assert (rows["cpu-busy"]["warn"], rows["cpu-busy"]["unit"], rows["filesystem-room"]["warn"]) == (85, "%", 5)
    rows["cpu-busy"] |= {"warn": 80.0, "critical": float("nan"), "critical_clear": None, "window_seconds": None}
    rows["filesystem-room"] |= {"warn": 10, "warn_clear": 12}
    rows["gpu-hot"]["enabled"] = False
    found = alerts_view.changes(DEFAULTS, rows.values())
    assert found == {
        "cpu-busy": {"warn": 0.8, "critical": None, "critical_clear": None, "window_seconds": 0.0},
        "filesystem-room": {"warn": 10 * 2**30, "warn_clear": 12 * 2**30},
        "gpu-hot": {"enabled": False},
    }
    changed = {rule.id: rule for rule in rules(found)}
    assert changed["cpu-busy"].critical is None and changed["gpu-hot"].enabled is False


def test_the_way_back_to_the_defaults() -> None:
    assert alerts_view.back_to_defaults(DEFAULTS) == {}
    edited = rules({"gpu-hot": {"warn": 70.0, "warn_clear": 60.0}, "cpu-busy": {"enabled": False}})
    back = alerts_view.back_to_defaults(edited)
    assert back == {"gpu-hot": {"warn": 85, "warn_clear": 80}, "cpu-busy": {"enabled": True}}
    assert rules(back) == DEFAULTS and all(key in CHANGEABLE for values in back.values() for key in values)


def test_who_is_told_and_what_went_wrong() -> None:
    health = NotifyHealth(("1 mailto at example.org",), sent=3, failed=1, problem=f"refused {EVIL}")
    shown = text(alerts_view.notify_line(health))
    assert "1 mailto at example.org" in shown and "3 sent · 1 failed since the start" in shown and "refused" in shown
    assert "dropped" in alerts_view.notify_line(NotifyHealth(("a",), dropped=2))
    results = text(alerts_view.notify_results({"1 json at a": True, "2 slack": False}))
    assert results.startswith("1 json at a: taken 2 slack: refused Next: check its address")
    assert "Next" not in alerts_view.notify_results({"1 json at a": True})
