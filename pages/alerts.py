"""Alerts: what is wrong now, what was, the rules that say so, and who is told. `?id=` shows one alert with its numbers."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from collectors.alerts import Alert
from rag.errors import RagError
from rag.types import Problem
from settings import SettingsError
from ui import alerts_view, cards, charts
from ui.cached import kept_points, now, the_runtime, zone
from ui.charts import Chart
from ui.format import code_html, escape, plural
from ui.gauges import card_title
from ui.links import page
from ui.trend import Line

REFRESH_SECONDS = 2.0
MOST_ACTIVE = 40
MOST_PAST = 200
AROUND_SECONDS = 1800.0

runtime = the_runtime()


def acknowledge(*numbers: int) -> None:
    try:
        for number in numbers:
            runtime.alerts.acknowledge(number)
    except (sqlite3.Error, RagError) as problem:
        st.toast(f"It could not be kept: {problem}")


def active() -> None:
    alerts, snapshot = runtime.alerts.active(), runtime.sweep.snapshot()
    with st.container(border=True, gap="small"):
        st.html(card_title(alerts_view.title(alerts)))
        if not alerts:
            st.html(cards.empty("Nothing needs you.", "The rules below are applied every two seconds to everything watched."))
        for alert in alerts[:MOST_ACTIVE]:
            told, button = st.columns([10, 2], vertical_alignment="top")
            told.html(alerts_view.line(alert, snapshot, now(), zone()))
            if alert.acknowledged_at is None:
                button.button("Acknowledge", key=f"seen-{alert.id}", on_click=acknowledge, args=(alert.id,), width="stretch")
        if len(alerts) > MOST_ACTIVE:
            st.html(f'<div class="rd rd-soft">and {plural(len(alerts) - MOST_ACTIVE, "more", "more")}</div>')
        new = [alert.id for alert in alerts if alert.acknowledged_at is None]
        if len(new) > 1:
            st.button(f"Acknowledge all {len(new)}", key="seen-all", on_click=acknowledge, args=tuple(new), type="tertiary")
    if runtime.alerts.problem:
        st.html(cards.note("critical", f"<strong>Alerts cannot be kept:</strong> {escape(runtime.alerts.problem)}"))


def one(alert: Alert) -> None:
    """An alert with its metric, from before it was raised until it ended."""
    end = alert.resolved_at or now().timestamp()
    before = max(AROUND_SECONDS, (end - alert.raised_at) / 4)
    window = (alert.raised_at - before) // 60 * 60, (end + before / 4) // 60 * 60 + 60
    with st.container(border=True, gap="small"):
        state = "ended" if alert.resolved_at else "active"
        st.html(card_title(f"{alert.title} on {alert.source}: {state}"))
        st.html(alerts_view.line(alert, runtime.sweep.snapshot(), now(), zone()))
        points = kept_points(alert.source, alert.metric, *window)
        if points:
            chart = Chart(alert.metric, alert.metric, alerts_view.trend_unit(alert))
            charts.draw(chart, [Line(charts.label(alert.metric), points)], window, key="alert-trend")


def past() -> None:
    alerts = runtime.alerts.past(MOST_PAST)
    with st.container(border=True, gap="small"):
        st.html(card_title(f"Ended: the last {len(alerts)}" if len(alerts) == MOST_PAST else f"Ended: {len(alerts)}"))
        if not alerts:
            st.html(cards.empty("No alert has ended yet.", "Alerts that are over are kept here for 90 days."))
            return
        st.html(alerts_view.past(alerts, runtime.sweep.snapshot(), now(), zone()))
        st.download_button(
            "Download CSV",
            lambda: alerts_view.csv([*runtime.alerts.active(), *runtime.alerts.past(100_000)]),
            "alerts.csv",
            "text/csv",
            on_click="ignore",
            type="tertiary",
            help="Active and ended, with all fields.",
        )


def rules() -> None:
    known = runtime.alerts.rules
    off = sum(not rule.enabled for rule in known)
    version = st.session_state.setdefault("rules-version", 0)
    with st.container(border=True, gap="small"):
        st.html(card_title(f"{plural(len(known), 'rule')}" + (f", {off} of them off" if off else "")))
        edited = st.data_editor(
            pd.DataFrame(alerts_view.rule_rows(known)),
            hide_index=True,
            key=f"rules-{version}",
            disabled=["id", "rule", "unit", "means"],
            column_order=["enabled", "rule", "unit", *alerts_view.THRESHOLDS, *alerts_view.DURATIONS, "means"],
            column_config=columns(),
            placeholder="",
            height=min(640, 35 * (len(known) + 1) + 3),
            alt="Alert rules",
        )
        changes = alerts_view.changes(known, edited.to_dict("records"))
        defaults = alerts_view.back_to_defaults(known)
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            if st.button("Save", key="rules-save", type="primary", disabled=not changes):
                change(changes)
            if st.button("Back to the defaults", key="rules-defaults", type="tertiary", disabled=not defaults):
                change(defaults)
            st.html(f'<div class="rd rd-soft">{SAVED}</div>', width="content")


SAVED = "Kept in data/edited.toml and in force with the next reading. An empty threshold switches that level off."


def columns() -> dict[str, Any]:
    number = st.column_config.NumberColumn
    return {
        "enabled": st.column_config.CheckboxColumn("On", width=50),
        "rule": st.column_config.TextColumn("Rule", width=220),
        "unit": st.column_config.TextColumn("Unit", width=60),
        "warn": number("Warns at", width=95),
        "warn_clear": number("… until", width=80, help="The warning ends when the value is back past this."),
        "critical": number("Critical at", width=95),
        "critical_clear": number("… until", width=80, help="It is critical until the value is back past this."),
        "window_seconds": number("Mean over, s", width=120, min_value=0, help="0: the last value counts."),
        "for_seconds": number("For, s", width=70, min_value=0, help="How long it must last before it is raised."),
        "means": st.column_config.TextColumn("Looks at", width=250),
    }


def change(changes: Mapping[str, Mapping[str, Any]]) -> None:
    try:
        runtime.change_alert_rules({key: dict(values) for key, values in changes.items()})
    except SettingsError as error:
        st.html(cards.note("critical", "<strong>Nothing was saved.</strong>", *(escape(str(each)) for each in error.problems)))
    except RagError as error:
        told = f"<strong>Nothing was saved: {escape(error.message)}</strong>"
        st.html(cards.note("critical", told, code_html(error.next_step)))
    except ValueError as error:
        st.html(cards.note("critical", f"<strong>Nothing was saved:</strong> {escape(error)}"))
    else:
        st.session_state["rules-version"] += 1
        st.toast(f"Saved: {plural(len(changes), 'rule')}.")
        st.rerun()


def notifications() -> None:
    health = runtime.notifier.health()
    with st.container(border=True, gap="small"):
        count = len(health.services)
        st.html(card_title(f"Alerts are sent to {plural(count, 'service')}" if count else "Nobody is told"))
        if not count:
            st.html(
                cards.empty(
                    "Alerts are shown here only.",
                    "Set alerts.notify in dashboard.toml, or RAGDECK_NOTIFY: mail, Slack, Telegram, webhooks and more.",
                )
            )
            return
        st.html(alerts_view.notify_line(health))
        if st.button("Send a test message", key="notify-test"):
            try:
                with st.spinner("Sending …", show_time=True):
                    st.html(alerts_view.notify_results(runtime.notifier.test()))
            except RagError as error:
                st.html(cards.problem_note(Problem(None, error.kind, error.message, error.address, error.next_step), "Sending"))


def asked_for(text: str) -> Alert | None:
    everything = [*runtime.alerts.active(), *runtime.alerts.past(100_000)]
    return next((alert for alert in everything if str(alert.id) == text), None)


st.title("Alerts")
try:
    if "id" in st.query_params:
        found = asked_for(st.query_params["id"])
        if found is None:
            st.html(cards.empty("There is no alert with this id.", "Ended alerts are kept for 90 days."))
        else:
            one(found)
        if st.button("All alerts", type="tertiary"):
            st.switch_page(page("alerts"), query_params={})
    st.fragment(active, run_every=REFRESH_SECONDS)()
    if "id" not in st.query_params:
        past()
except sqlite3.Error as problem:
    st.html(cards.note("critical", f"<strong>The alerts cannot be read:</strong> {escape(problem)}"))
if "id" not in st.query_params:
    rules()
    notifications()
