"""Machine: everything about one machine, by `?name=`: live readings, logs and restarts on demand, how it was until now, and where
it is configured."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

import deployment
from collectors.connection_test import STEPS
from collectors.errors import CollectorError
from collectors.restart_powers import Obstacle
from collectors.views import MachineView, Problem
from rag.errors import RagError
from settings import SettingsError
from ui import (
    alerts_view,
    cards,
    charts,
    gpu_view,
    history_csv,
    machine_actions_view,
    machine_form,
    machine_view,
    machines_view,
    services_view,
)
from ui.cached import now, the_runtime, zone
from ui.format import code_html, escape, plain_markdown, plural
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
    told = [alerts_view.line(alert, snapshot, now(), zone()) for alert in machine_view.beside_faults(alerts)]
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
        order = machine_form.LOCAL_STEPS if view.source == "local" else STEPS
        steps = machine_form.tested(lambda told: runtime.sweep.test(name, told=told), order)
        st.html(machines_view.steps(steps))


def actions(allowed: tuple[str, ...], obstacles: Sequence[Obstacle]) -> None:
    """What the settings allow to be restarted, each behind a second button, what is in the way, and the audit log's lines."""
    wanted = None
    turn = st.session_state.setdefault("restart-turn", 0)  # part of the keys: what was confirmed once is closed again
    with st.container(border=True, gap="small"):
        st.html(card_title("Restart"))
        for line in machine_actions_view.hindrances(obstacles):
            st.html(line)
        with st.container(horizontal=True, gap="small"):
            for each in allowed:
                with st.popover(f"Restart {plain_markdown(each)} …", key=f"ask-{turn}-{each}"):
                    st.html(machine_actions_view.question(each, name))
                    if st.button(f"Restart {plain_markdown(each)} now", key=f"restart-{turn}-{each}", type="primary"):
                        wanted = each
        if wanted is not None:
            with st.spinner(f"Restarting {plain_markdown(wanted)}, up to 90 s …", show_time=True):
                st.session_state["restarted"] = name, restarted(wanted)
            st.session_state["restart-turn"] += 1
            st.rerun()
        if "restarted" in st.session_state and st.session_state["restarted"][0] == name:
            st.html(st.session_state["restarted"][1])
        try:
            st.html(machine_actions_view.audit(runtime.deployment.audit.read(name), now(), zone()))
        except OSError as problem:
            st.html(cards.note("critical", f"<strong>The audit log cannot be read:</strong> {escape(problem)}"))


def restarted(what: str) -> str:
    """Restart it, and how that ended."""
    try:
        return machine_actions_view.outcome(runtime.deployment.restart(name, what, who=st.context.ip_address), name)
    except RagError as error:
        return cards.note("critical", f"<strong>{escape(error.message)}.</strong>", code_html(error.next_step))


def configured(view: MachineView) -> None:
    """Changing and removing what was added on a page; where everything else is configured."""
    with st.expander("Where it is configured", key="configured"):
        try:
            entry = next((each for each in deployment.own_machines(runtime.settings) if each["name"] == name), None)
        except SettingsError as error:
            st.html(cards.note("critical", *(escape(str(each)) for each in error.problems)))
            return
        if entry is None:
            st.html(machine_view.configured(view, runtime.settings.config_file))
            return
        st.html('<div class="rd rd-soft">It was added on a page and is kept in data/edited.toml.</div>')
        machine_form.form(entry)
        machine_form.removal(name)


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

st.set_page_config(page_title=f"{name} · RAG Deck")
heading(view)
st.fragment(live, run_every=REFRESH_SECONDS)()
st.fragment(logs)()
if view.restart:
    actions(view.restart, view.restart_obstacles)
with st.container(border=True, gap="small"):
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        st.html(card_title("Until now"), width="content")
        span = charts.range_of()
    st.fragment(trends, run_every=charts.RANGES[span].refresh)()
    history_csv.button(name, charts.MACHINE, charts.RANGES[span])
configured(view)
st.page_link(page("machines"), label="All machines")
