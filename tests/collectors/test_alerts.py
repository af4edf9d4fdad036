"""Alerts: raised past a threshold for its time, left only past the clearing one, acknowledged, resolved, kept over restarts."""

from __future__ import annotations

from pathlib import Path

import pytest

from collectors.alerts import Alerts, Event, Gone, Observation, Window
from collectors.rules import DEFAULTS, Rule, rules

HOT = Rule("hot", "GPU hot", "gpu.*.temperature_celsius", "celsius", "Cool it.", warn=85, warn_clear=80, critical=95)
SLOW = Rule("slow", "Slow", "service.seconds", "seconds", "Look.", warn=0.5, for_seconds=60, kinds=("rerank",))
BUSY = Rule("busy", "Busy", "cpu.busy_ratio", "ratio", "Look.", warn=0.85, warn_clear=0.75, window_seconds=600)
ROOM = Rule("room", "Room", "filesystem.*.room_bytes", "bytes", "Free.", warn=5.0, warn_clear=6.0, above=False)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def engine(tmp_path: Path, clock: Clock, *some: Rule) -> Alerts:
    return Alerts(tmp_path / "alerts.db", some, clock)


def seen(
    at: float, metric: str = "gpu.0.temperature_celsius", source: str = "box", kind: str = "machine", **more: float
) -> Observation:
    return Observation(source, kind, at, {metric: more["value"]}, {metric: "the machine's words"})


def words(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.change, event.alert.level) for event in events]


def test_raised_worse_better_and_resolved_with_hysteresis(tmp_path: Path, clock: Clock) -> None:
    alerts = engine(tmp_path, clock, HOT)
    told = [words(alerts.evaluate([seen(1000 + step, value=value)])) for step, value in enumerate((84, 85, 81, 96, 94, 80, 79))]
    assert told == [
        [],
        [("raised", "warn")],
        [],  # 81 is below 85, and not below 80
        [("worse", "critical")],
        [("better", "warn")],  # critical has no clearing threshold of its own: 95 is both
        [("resolved", "warn")],
        [],
    ]
    past = alerts.past()[0]
    assert (past.raised_at, past.resolved_at, past.worst, past.value) == (1001, 1005, 96, 80)
    assert (past.detail, past.next_step, past.source) == ("the machine's words", "Cool it.", "box") and alerts.active() == []


def test_a_duration_must_pass_without_a_break(tmp_path: Path, clock: Clock) -> None:
    alerts = engine(tmp_path, clock, SLOW)

    def look(at: float, value: float) -> list[tuple[str, str]]:
        return words(alerts.evaluate([seen(at, "service.seconds", kind="rerank", value=value)]))

    assert [look(0, 0.9), look(50, 0.9), look(55, 0.1), look(60, 0.9), look(119, 0.9)] == [[]] * 5
    assert look(120, 0.9) == [("raised", "warn")]
    assert look(121, 0.1) == [("resolved", "warn")]  # good news does not wait


def test_rules_of_a_kind_leave_other_sources_alone(tmp_path: Path, clock: Clock) -> None:
    alerts = engine(tmp_path, clock, SLOW)
    for at in (0, 100):
        assert alerts.evaluate([seen(at, "service.seconds", kind="milvus", value=9.0)]) == []


def test_a_mean_over_a_window_wants_half_of_it_and_spikes_do_not_raise(tmp_path: Path, clock: Clock) -> None:
    alerts = engine(tmp_path, clock, BUSY)
    values = [(at, 1.0) for at in range(0, 299, 2)]
    assert not any(alerts.evaluate([seen(at, "cpu.busy_ratio", value=value)]) for at, value in values)
    assert words(alerts.evaluate([seen(300, "cpu.busy_ratio", value=1.0)])) == [("raised", "warn")]
    assert alerts.evaluate([seen(302, "cpu.busy_ratio", value=0.0)]) == []


def test_window_is_the_mean_of_what_is_in_it() -> None:
    window = Window(10)
    assert [window.add(at, at) for at in (0.0, 4.0)] == [None, None]
    assert window.add(5.0, 5.0) == 3.0
    assert window.add(12.0, 12.0) == 7.0  # 0 has left
    assert window.add(30.0, 1.0) is None  # nothing for longer than the window: it starts anew


def test_low_values_can_be_the_bad_ones(tmp_path: Path, clock: Clock) -> None:
    alerts = engine(tmp_path, clock, ROOM)
    told = [
        words(alerts.evaluate([seen(at, "filesystem./data.room_bytes", value=v)])) for at, v in enumerate((7.0, 4.0, 5.5, 6.0))
    ]
    assert told == [[], [("raised", "warn")], [], [("resolved", "warn")]]
    assert alerts.past()[0].worst == 4.0


def test_each_metric_and_source_has_its_own_alert(tmp_path: Path, clock: Clock) -> None:
    alerts = engine(tmp_path, clock, HOT)
    both = {"gpu.0.temperature_celsius": 99.0, "gpu.1.temperature_celsius": 90.0}
    alerts.evaluate([Observation("a", "machine", 1.0, both), Observation("b", "machine", 2.0, both)])
    assert [(alert.level, alert.source, alert.metric[4]) for alert in alerts.active()] == [
        ("critical", "b", "0"),
        ("critical", "a", "0"),
        ("warn", "b", "1"),
        ("warn", "a", "1"),
    ]


def test_what_is_missing_changes_nothing(tmp_path: Path, clock: Clock) -> None:
    alerts = engine(tmp_path, clock, HOT)
    alerts.evaluate([seen(1, value=90)])
    assert alerts.evaluate([Observation("box", "machine", 2.0, {})]) == [] and len(alerts.active()) == 1


def test_a_source_that_is_watched_no_more_and_a_rule_that_is_off_end_their_alerts(tmp_path: Path, clock: Clock) -> None:
    alerts = engine(tmp_path, clock, HOT)
    alerts.evaluate([seen(1, source="a", value=90), seen(1, source="b", value=90)])
    assert [event.alert.source for event in alerts.evaluate([], watched=["b"])] == ["a"]
    alerts.use(())
    assert [(event.change, event.alert.source) for event in alerts.evaluate([])] == [("resolved", "b")]


def test_what_is_gone_ends_with_the_reason_and_is_news_again_when_it_comes_back(tmp_path: Path, clock: Clock) -> None:
    alerts = engine(tmp_path, clock, HOT)
    alerts.evaluate([seen(1, value=90), seen(1, metric="gpu.1.temperature_celsius", value=91)])
    clock.now = 7.0
    (ended,) = alerts.evaluate([], gone=[Gone("box", "gpu.1.temperature_celsius", "no longer measured"), Gone("box", "x", "?")])
    assert (ended.change, ended.alert.value, ended.alert.resolved_at) == ("resolved", 91, 7.0)
    assert [(alert.metric, alert.ended) for alert in alerts.past()] == [("gpu.1.temperature_celsius", "no longer measured")]
    assert [alert.metric for alert in alerts.active()] == ["gpu.0.temperature_celsius"]
    assert words(alerts.evaluate([seen(8, metric="gpu.1.temperature_celsius", value=91)])) == [("raised", "warn")]
    alerts.evaluate([], watched=[])
    assert {alert.ended for alert in alerts.past()} == {"no longer measured", "watched no more"}
    assert words(alerts.evaluate([seen(9, value=90)])) == [("raised", "warn")]
    alerts.evaluate([seen(10, value=20)])
    assert alerts.past()[0].ended == "back to normal"


def test_a_file_of_an_older_version_is_read_and_kept(tmp_path: Path, clock: Clock) -> None:
    alerts = engine(tmp_path, clock, HOT)
    alerts.evaluate([seen(1, value=90), seen(1, source="b", value=90)])
    alerts.evaluate([seen(2, source="b", value=20)])
    alerts._connection.execute("ALTER TABLE alerts DROP COLUMN ended")
    alerts._connection.close()
    again = engine(tmp_path, clock, HOT)
    assert [alert.source for alert in again.active()] == ["box"] and [alert.ended for alert in again.past()] == [None]
    assert words(again.evaluate([seen(3, value=20)])) == [("resolved", "warn")]
    assert again.past()[0].ended == "back to normal"


def test_acknowledged_stays_so_over_a_restart_until_it_gets_worse(tmp_path: Path, clock: Clock) -> None:
    alerts = engine(tmp_path, clock, HOT)
    alerts.evaluate([seen(1, value=90)])
    number = alerts.active()[0].id
    clock.now = 1234.0
    assert alerts.acknowledge(number) is not None and alerts.acknowledge(999) is None
    alerts.close()
    again = engine(tmp_path, clock, HOT)
    assert [(alert.id, alert.acknowledged_at) for alert in again.active()] == [(number, 1234.0)]
    assert again.evaluate([seen(2, value=91)]) == []  # still the same alert, not a new one
    assert words(again.evaluate([seen(3, value=99)])) == [("worse", "critical")]
    assert again.active()[0].acknowledged_at is None
    assert words(again.evaluate([seen(4, value=20)])) == [("resolved", "critical")]
    assert [alert.id for alert in again.past()] == [number]


def test_old_alerts_are_pruned(tmp_path: Path, clock: Clock) -> None:
    alerts = engine(tmp_path, clock, HOT)
    alerts.evaluate([seen(1, value=90)])
    alerts.evaluate([seen(2, value=20)])
    clock.now = 91 * 86_400.0
    alerts.prune()
    assert alerts.past() == []


def test_a_file_that_cannot_be_written_is_said_and_stops_nothing(tmp_path: Path, clock: Clock) -> None:
    alerts = engine(tmp_path, clock, HOT)
    alerts._connection.execute("PRAGMA query_only = 1")
    assert words(alerts.evaluate([seen(1, value=90)])) == [("raised", "warn")]
    assert "readonly" in str(alerts.problem) and len(alerts.active()) == 1
    alerts._connection.execute("PRAGMA query_only = 0")
    assert words(alerts.evaluate([seen(2, value=20)])) == [("resolved", "warn")] and alerts.problem is None


# --- the rules themselves


def test_default_rules_are_complete_and_sound() -> None:
    assert len({rule.id for rule in DEFAULTS}) == len(DEFAULTS)
    for rule in rules({}):
        assert rule.title and rule.next_step.endswith((".", "?")) and (rule.warn, rule.critical) != (None, None), rule.id
        for level in ("warn", "critical"):
            threshold = rule.threshold(level)  # type: ignore[arg-type]
            if threshold is not None:
                assert rule.level(threshold) != "ok", rule.id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cpu-bussy": {}}, "no rule 'cpu-bussy'"),
        ({"cpu-busy": {"title": "x"}}, "has no 'title' to change"),
        ({"cpu-busy": {"warn": "high"}}, "warn of rule cpu-busy is 'high', not a number"),
        ({"cpu-busy": {"warn": True}}, "not a number"),
        ({"cpu-busy": {"warn_clear": 0.9}}, "warn_clear of rule cpu-busy is 0.9, above warn"),
        ({"filesystem-room": {"warn_clear": 1.0}}, "below warn"),
    ],
)
def test_changes_that_cannot_be_are_refused_by_name(changes: dict[str, dict[str, object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rules(changes)


def test_changes_of_rules() -> None:
    changed = {rule.id: rule for rule in rules({"cpu-busy": {"warn": 0.9, "window_seconds": 60}, "gpu-hot": {"enabled": False}})}
    assert (changed["cpu-busy"].warn, changed["cpu-busy"].window_seconds, changed["cpu-busy"].critical) == (0.9, 60, 0.95)
    assert not changed["gpu-hot"].matches("machine", "gpu.0.temperature_celsius")
    assert changed["filesystem-used"].matches("machine", "filesystem./data.x.used_ratio")
