"""Machine: everything about one machine, by `?name=`: live readings, logs on demand, and how it was until now."""

from __future__ import annotations

import streamlit as st

from collectors.errors import CollectorError
from collectors.views import MachineView, Problem
from ui import alerts_view, cards, charts, gpu_view, machine_view, machines_view, services_view
from ui.cached import now, the_runtime, zone
from ui.format import escape, plain_markdown, plural
from ui.gauges import Tones, age, card_title, link, machine_url
from ui.links import page

REFRESH_SECONDS = 2.0

runtime = the_runtime()
name = st.query_params.get("name", "")


def live() -> None:
    snapshot = runtime.sweep.snapshot()
    view = snapshot.machine(name)
    if view is None:
        st.rerun()
    alerts = [alert for alert in runtime.alerts.active() if alert.source == name]
    told = [alerts_view.line(alert, snapshot, now(), zone()) for alert in alerts]
    head = [machine_view.header(view, alerts, zone()), machine_view.faults(view), *told]
    st.html(f'<div class="rd-stack">{"".join(head)}</div>')
    if all(part.value is None for _, part in view.parts()) and not view.engines:
        st.html(cards.empty("Nothing has been read from it yet.", "What is read shows up here by itself."))
        return
    tones = Tones(runtime.alerts.rules)
    gpu_card(view, tones)
    left, right = st.columns(2, gap="small")
    with left:
        host_cards(view, tones)
    with right:
        disk_cards(view, tones)
    owned_cards(view)


def gpu_card(view: MachineView, tones: Tones) -> None:
    part = view.gpus
    if part is None or part.absent:
        return
    with st.container(border=True, gap="small"):
        st.html(card_title(gpu_view.title(view), age(part, zone())))
        st.html(gpu_view.table(view, tones) + gpu_view.processes(part))
        if part.value is not None and part.value.gpus:
            with st.expander("Everything the driver tells"):
                st.html(gpu_view.details(part.value))


def host_cards(view: MachineView, tones: Tones) -> None:
    host = view.host.value if view.host else None
    with st.container(border=True, gap="small"):
        st.html(card_title(machine_view.cpu_title(host), age(view.host, zone())))
        st.html(machine_view.cpu(view.host, tones))
    with st.container(border=True, gap="small"):
        st.html(card_title(machine_view.memory_title(host)))
        st.html(machine_view.memory(view.host, tones))
    with st.container(border=True, gap="small"):
        st.html(card_title("Network"))
        st.html(machine_view.network(view.host))
    if view.gpus is not None and view.gpus.absent:
        st.html(f'<div class="rd rd-soft">No GPUs: {escape(machine_view.absence(view.gpus))}</div>')


def disk_cards(view: MachineView, tones: Tones) -> None:
    with st.container(border=True, gap="small"):
        st.html(card_title("Disk space", age(view.filesystems, zone())))
        st.html(machine_view.filesystems(view.filesystems, tones))
    with st.container(border=True, gap="small"):
        st.html(card_title("Disk traffic"))
        st.html(machine_view.disks(view.host, tones))
    with st.container(border=True, gap="small"):
        with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
            st.html(card_title("Top processes"), width="content")
            order = st.segmented_control(
                "Order", ("CPU", "memory"), default="CPU", required=True, key="order", label_visibility="collapsed"
            )
        st.html(machine_view.processes(view.host, by_memory=order == "memory"))


def owned_cards(view: MachineView) -> None:
    left, right = st.columns(2, gap="small")
    with left, st.container(border=True, gap="small"):
        st.html(card_title("systemd units", age(view.units, zone())))
        st.html(machine_view.units(view.units))
    with right, st.container(border=True, gap="small"):
        st.html(card_title("Containers", age(view.containers, zone())))
        st.html(machine_view.containers(view.containers))
    for engine in view.engines or ():
        with st.container(border=True, gap="small"):
            st.html(card_title(engine.name or "Model server"))
            st.html(services_view.engine(engine))


def logs() -> None:
    view = runtime.sweep.snapshot().machine(name)
    names = machine_view.log_names(view) if view else []
    if not names:
        return
    with st.container(border=True, gap="small"):
        st.html(card_title("Last log lines"))
        with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
            chosen = st.selectbox("Unit or container", names, key="log", width=260)
            lines = st.number_input("Lines", 10, 1000, 50, 50, key="log-lines", width=110)
            wanted = st.button("Read", key="log-read", help="Asks the machine now; nothing is followed.")
        if wanted and chosen:
            show_log(chosen, int(lines))


def show_log(chosen: str, lines: int) -> None:
    try:
        with st.spinner("Asking the machine …"):
            text = runtime.sweep.logs(name, chosen, lines)
    except CollectorError as error:
        st.html(machines_view.problem_note(Problem.of(error), None))
    except (KeyError, ValueError) as error:
        st.html(cards.note("warn", escape(error)))
    else:
        shown = machine_view.log_text(text) or "The log holds no line."
        height: int | str = 380 if shown.count("\n") > 18 else "content"
        st.code(shown, language=None, height=height, wrap_lines=True)


def heading(view: MachineView) -> None:
    """The name, and at its right what can be tried; the steps of a test below."""
    test = False
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.html(f'<h1 class="rd-plain rd-question">{escape(name)}</h1>')
        if view.source != "prometheus":
            test = st.button("Test the connection", key="test", help="Over a connection of its own, step by step; at most 15 s.")
        if view.problem is not None and st.button("Try again now", key="retry"):
            runtime.sweep.retry(name)
            st.toast(f"{plain_markdown(name)} is tried again.")
    if test:
        with st.spinner("Testing the connection …", show_time=True):
            steps = runtime.sweep.test(name)
        st.html(machines_view.steps(steps))


def trends() -> None:
    charts.grid(name, charts.MACHINE, charts.RANGES[span])


view = runtime.sweep.snapshot().machine(name)
if view is None:
    st.title("Machine")
    said = f"There is no machine called {name}." if name else "No machine is chosen: the address has no ?name=."
    known = runtime.sweep.snapshot().machines
    st.html(cards.empty(said, f"It may have been renamed or removed. {plural(len(known), 'machine')} can be chosen:"))
    st.html('<div class="rd">' + " · ".join(link(machine_url(each.name), each.name) for each in known) + "</div>")
    st.page_link(page("machines"), label="All machines")
    st.stop()

heading(view)
st.fragment(live, run_every=REFRESH_SECONDS)()
st.fragment(logs)()
with st.container(border=True, gap="small"):
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        st.html(card_title("Until now"), width="content")
        span = charts.range_of()
    st.fragment(trends, run_every=charts.RANGES[span].refresh)()
st.page_link(page("machines"), label="All machines")
