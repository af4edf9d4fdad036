"""Services: whether each works, how long it takes and where, what its server tells; `?name=` shows one, with its trend."""

from __future__ import annotations

import sqlite3
import time

import streamlit as st

from collectors.history import Point
from collectors.services import ProbeKind
from collectors.views import ServiceView, Snapshot
from ui import alerts_view, cards, charts, history_csv, services_view, trend
from ui.cached import kept_points, now, the_runtime, zone
from ui.format import escape, plain_markdown, plural, time_html
from ui.gauges import age, card_title, said
from ui.links import page

REFRESH_SECONDS = 2.0

runtime = the_runtime()
name = st.query_params.get("name", "")


def was_up(service: str, seconds: float) -> tuple[Point, ...]:
    """Whether it was up in the last seconds; nothing when the history cannot be read."""
    try:
        return kept_points(service, "service.up", *trend.Range(seconds, 60.0).window(time.time()))
    except sqlite3.Error:
        return ()


def spark(view: ServiceView) -> str:
    return charts.spark(view.name, services_view.latency_metric(view), "latency", "seconds", None)


def live_list() -> None:
    snapshot = runtime.sweep.snapshot()
    views = sorted(snapshot.services, key=services_view.SORTS.get(sort, services_view.SORTS["as in the settings"]))
    with st.container(border=True, gap="small"):
        st.html(card_title(services_view.title(views)))
        st.html(services_view.table(views, zone(), spark, lambda view: services_view.uptime(was_up(view.name, 86_400.0))))


def live_one() -> None:
    snapshot = runtime.sweep.snapshot()
    view = snapshot.service(name)
    if view is None:
        st.rerun()
    uptimes = services_view.uptimes(lambda seconds: was_up(name, seconds), time.time())
    alerts = [alert for alert in runtime.alerts.active() if alert.source == name]
    told = [alerts_view.line(alert, snapshot, now(), zone()) for alert in alerts]
    st.html(f'<div class="rd-stack">{"".join([services_view.header(view, uptimes, zone()), *told])}</div>')
    left, right = st.columns(2, gap="small")
    with left, st.container(border=True, gap="small"):
        st.html(services_view.probe(view.liveness.value, "liveness", "not probed yet"))
    with right, st.container(border=True, gap="small"):
        reason = "only on demand: press Probe now" if view.functional.absent else "it waits for the service to answer first"
        st.html(services_view.probe(view.functional.value, "functional", reason))
    engine_card(view)


def engine_card(view: ServiceView) -> None:
    part = view.engine
    if part is None or part.absent:
        return
    with st.container(border=True, gap="small"):
        st.html(card_title("What the server tells of itself", age(part, zone())))
        if part.problem is not None:
            st.html(cards.note("warn", f"Its /metrics cannot be read: {escape(said(part.problem))}"))
        if part.value is not None:
            st.html(services_view.engine(part.value))
        elif part.problem is None:
            st.html('<div class="rd rd-soft">Not read yet.</div>')


def probe(service: str, kind: ProbeKind) -> None:
    with st.spinner(f"Probing {plain_markdown(service)} …", show_time=True):
        try:
            result = runtime.sweep.probe(service, kind)
        except KeyError:
            st.html(cards.note("warn", "This service is watched no more."))
            return
    st.session_state["probed"] = result, now()


def probe_buttons(snapshot: Snapshot) -> None:
    """A real small request to each, now; what came of it stays until the next one."""
    with st.container(horizontal=True, gap="small"):
        for view in snapshot.services:
            if st.button(f"Probe {plain_markdown(view.name)} now", key=f"probe-{view.name}", help=HELP):
                probe(view.name, "functional")
    show_probed()


def show_probed() -> None:
    if "probed" in st.session_state:
        result, at = st.session_state["probed"]
        with st.container(border=True, gap="small"):
            st.html(card_title(f"Probe of {result.service}", time_html(at, now(), zone())))
            st.html(services_view.probe(result, result.probe, ""))


HELP = "A real small request: a sentence embedded, a pair scored, a token generated, a spoken sample transcribed."


def one(view: ServiceView) -> None:
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.html(f'<h1 class="rd-plain rd-question">{escape(view.name)}</h1>')
        if st.button("Probe now", key="probe", type="primary", help=HELP):
            probe(view.name, "functional")
    if "probed" in st.session_state and st.session_state["probed"][0].service == view.name:
        show_probed()
    st.fragment(live_one, run_every=REFRESH_SECONDS)()
    with st.container(border=True, gap="small"):
        with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
            st.html(card_title("Until now"), width="content")
            span = charts.RANGES[charts.range_of()]
        st.fragment(lambda: charts.grid(name, charts.SERVICE, span), run_every=span.refresh)()
        history_csv.button(name, charts.SERVICE, span)
    if st.button("All services", type="tertiary"):
        st.switch_page(page("services"), query_params={})


snapshot = runtime.sweep.snapshot()
chosen = snapshot.service(name) if name else None
if chosen is not None:
    one(chosen)
    st.stop()
st.title("Services")
if name:
    st.html(cards.empty(f"There is no service called {name}.", "It may have been renamed or removed. These are watched:"))
if not snapshot.services:
    st.html(
        cards.empty(
            "No service is watched yet.",
            "Name them in dashboard.toml, a [[services]] each: name, kind (gpu_server, openai-chat, rerank, milvus …) and url.",
            'One that takes a key gets api_key_env = "NAME": the environment variable that holds it, also in .env.',
            "Each is then asked every 10 s whether it answers, and every minute whether it works.",
        )
    )
    st.stop()
with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
    sort = st.selectbox("Sort", tuple(services_view.SORTS), key="sort", bind="query-params", width=190)
    st.download_button(
        "Download CSV",
        lambda: services_view.csv(runtime.sweep.snapshot().services),
        "services.csv",
        "text/csv",
        on_click="ignore",
        type="tertiary",
        help=f"{plural(len(snapshot.services), 'service')} as they are now.",
    )
st.fragment(live_list, run_every=REFRESH_SECONDS)()
probe_buttons(snapshot)
