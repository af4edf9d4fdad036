"""Machines: one row each with what matters, live; and how to add one, with a connection test that says what failed."""

from __future__ import annotations

import streamlit as st

from ui import cards, charts, machine_form, machines_view
from ui.cached import the_runtime, zone
from ui.format import escape, plural
from ui.gauges import Tones, card_title

REFRESH_SECONDS = 2.0

runtime = the_runtime()


def live() -> None:
    snapshot = runtime.sweep.snapshot()
    text, sort = str(st.session_state.get("text") or ""), str(st.session_state.get("sort") or "")
    views = machines_view.chosen(snapshot.machines, text, sort)
    with st.container(border=True, gap="small"):
        st.html(card_title(machines_view.title(snapshot.machines)) + machines_view.sources_note(snapshot.sources))
        if views:
            st.html(machines_view.table(views, runtime.alerts.active(), Tones(runtime.alerts.rules), zone(), charts.spark))
        else:
            st.html(cards.empty(f"None of {plural(len(snapshot.machines), 'machine')} matches.", "Clear the filter above."))


st.title("Machines")
with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
    st.text_input("Name or address contains", key="text", bind="query-params", width=220)
    st.selectbox("Sort", tuple(machines_view.SORTS), key="sort", bind="query-params", width=190)
    st.download_button(
        "Download CSV",
        lambda: machines_view.csv(runtime.sweep.snapshot().machines),
        "machines.csv",
        "text/csv",
        on_click="ignore",
        type="tertiary",
    )
st.fragment(live, run_every=REFRESH_SECONDS)()
if all(machine.source == "local" for machine in runtime.sweep.snapshot().machines):
    st.html(
        cards.empty(
            "Only the machine that RAG Deck runs on is watched.",
            "Add the others below, or in dashboard.toml under [[machines]]. All that is needed there is an SSH login.",
        )
    )
with st.expander("Add a machine", key="add-machine"):
    st.html(f'<div class="rd rd-soft">{escape(machine_form.WHAT_HAPPENS)}</div>')
    machine_form.form()
