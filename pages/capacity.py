"""Capacity: will these models fit on these GPUs, with which flags, for what load and cost, and is what runs as planned."""

from __future__ import annotations

import json
from pathlib import Path

import streamlit as st

from collectors.views import MachineView
from deploy.planner import catalogue, cures, flags, fleet, reality, report, request
from deploy.planner.placement import Placed, Plan, plan
from rag.errors import RagError
from ui import capacity_bring, capacity_form, capacity_view, cards, viewer
from ui.cached import now, the_runtime, zone
from ui.format import code_html, escape, plain_markdown
from ui.gauges import age, card_title, link, machine_url
from ui.links import page

REFRESH_SECONDS = 10.0

runtime = the_runtime()
folders = [Path(each) for each in runtime.settings.capacity.model_folders]


def problem(error: RagError) -> None:
    st.html(cards.note("critical", f"<strong>{escape(error.message)}.</strong>", code_html(error.next_step)))


def service_card(found: Plan, placed: Placed) -> None:
    service = placed.service
    with st.container(border=True, gap="small"):
        st.html(card_title(f"{service.name}: {service.model}"))
        if notes := capacity_view.service_notes(placed):
            st.html(notes)
        if not placed.fits:
            cure_list(found, placed)
        command = flags.command(found, placed)
        if command and placed.fits:
            st.code(command, language="bash", wrap_lines=True)
        if carried := capacity_view.carried(found, placed):
            with st.expander("How much it carries", key=f"carried-{service.name}"):
                st.html(carried)
        with st.expander("Formulas and sources", key=f"formulas-{service.name}"):
            st.html(capacity_view.formulas(placed))
        if placed.gpus and placed.fits:
            with st.expander("Compose and Kubernetes", key=f"files-{service.name}"):
                snippets(found, placed)


def snippets(found: Plan, placed: Placed) -> None:
    left, right = st.columns(2)
    left.code(json.dumps({placed.service.runs_in: flags.compose_service(found, placed)}, indent=2), language="json")
    right.code(json.dumps(flags.kubernetes_container(found, placed), indent=2), language="json")
    if flags.shares_gpu(found, placed):
        st.html(
            cards.note(
                "warn", "Kubernetes gives whole GPUs: services that share one need time slicing or MPS in the device plugin."
            )
        )


def cure_list(found: Plan, placed: Placed) -> None:
    tried = cures.cures(found, placed.service.name)
    if not tried:
        st.html(cards.empty("No single change or pair of changes makes it fit.", "Take another model or more GPUs."))
        return
    st.html('<div class="rd">What would make it fit, the smallest change first:</div>')
    for number, cure in enumerate(tried):
        if st.button(plain_markdown(cure.text), key=f"cure-{placed.service.name}-{number}"):
            capacity_form.show(cure.request)
            st.rerun()


def load_card(found: Plan) -> None:
    """Which GPU carries a load for what cost."""
    suited = [each.service.name for each in found.services if each.model.kind == "llm" and each.service.engine == "vllm"]
    if not suited:
        return
    with st.container(border=True, gap="small"):
        st.html(card_title("Which GPU carries this load"))
        with st.form("load", border=False):
            name = st.selectbox("Service", suited, key="load-service")
            demand = demand_fields()
            with st.expander("Prices, EUR a month for one GPU", key="prices"):
                st.html(PRICES_HELP)
                prices = price_fields()
            asked = st.form_submit_button("Compare GPUs", key="compare")
        if asked:
            st.session_state["offers"] = name, demand, prices
        if "offers" in st.session_state:
            show_offers(found, *st.session_state["offers"])


def demand_fields() -> tuple[float, int, int, float, float]:
    first, second, third, fourth, fifth = st.columns(5, vertical_alignment="bottom")
    usual = fleet.Demand()
    return (
        first.number_input("Questions a second", 0.001, 10_000.0, usual.requests_per_second, 0.1, key="load-rate"),
        int(second.number_input("Tokens of a prompt", 1, 1_000_000, usual.prompt_tokens, 500, key="load-prompt")),
        int(third.number_input("Tokens of an answer", 1, 100_000, usual.answer_tokens, 50, key="load-answer")),
        fourth.number_input("Least tokens/s a reader", 0.0, 1000.0, usual.least_tokens_per_second, 5.0, key="load-stream"),
        fifth.number_input("Share of the bounds reached", 0.01, 1.0, usual.reached, 0.05, key="load-reached"),
    )


PRICES_HELP = (
    '<div class="rd rd-soft rd-small">Set for good in the settings, with date and source: '
    "<code>[capacity.gpu_prices.L4]</code> with <code>eur_month</code>, <code>date</code>, <code>source</code>. "
    "Without, the two prices of the report of 2025-01; what is changed here counts for this comparison.</div>"
)


def price_fields() -> dict[str, fleet.GpuPrice]:
    asked = runtime.settings.capacity.gpu_prices
    known = fleet.known_prices(asked)
    if strange := sorted(set(asked) - set(catalogue.gpus())):
        said = f"capacity.gpu_prices names {', '.join(strange)[:200]}: no GPU here is called so."
        st.html(cards.note("warn", escape(said)))
    found = {}
    columns = st.columns(4)
    for number, name in enumerate(catalogue.gpus()):
        usual = known.get(name)
        told = f"{usual.date}, {usual.source}" if usual else "No price is known: enter one."
        euros = columns[number % 4].number_input(
            name,
            0.0,
            1e6,
            usual.eur_month if usual else None,
            10.0,
            key=f"price-{name}",
            placeholder="–",
            help=plain_markdown(told),
        )
        if euros is not None:
            same = usual is not None and usual.eur_month == euros
            found[name] = usual if usual and same else fleet.GpuPrice(euros, f"{now():%Y-%m}", "entered here")
    return found


def show_offers(found: Plan, name: str, demand: tuple[float, int, int, float, float], prices: dict[str, fleet.GpuPrice]) -> None:
    placed = next((each for each in found.services if each.service.name == name), None)
    if placed is None:
        return
    try:
        offers = fleet.offers(placed.service, fleet.Demand(*demand), prices, found.request.buffer_gb, placed.model)
    except RagError as error:
        problem(error)
        return
    st.html(capacity_view.offers_table(offers))
    st.html(
        '<div class="rd rd-soft rd-small">Data-sheet bounds times the share reached: an estimate, nothing was measured.</div>'
    )


def measured(found: Plan) -> None:
    """The plan beside what a watched machine's GPUs hold."""
    machines = [each for each in runtime.sweep.snapshot().machines if each.gpus and each.gpus.value and each.gpus.value.gpus]
    with st.container(border=True, gap="small"):
        if not machines:
            st.html(card_title("Plan and reality"))
            st.html(
                cards.empty("No watched machine has GPUs.", "Add one on the page Machines to see its memory beside the plan.")
            )
            st.page_link(page("machines"), label="Machines")
            return
        names = [each.name for each in machines]
        name = st.selectbox("Compare with", names, key="measured-machine") if len(names) > 1 else names[0]
        beside(found, machines[names.index(name)])


def beside(found: Plan, machine: MachineView) -> None:
    assert machine.gpus is not None and machine.gpus.value is not None
    read = machine.gpus.value
    rows = reality.compare(found, read, machine.containers.value if machine.containers else None)
    title = capacity_view.measured_title(rows) if rows else "Plan and reality"
    st.html(card_title(title, age(machine.gpus, zone())))
    st.html(f'<div class="rd rd-small">{link(machine_url(machine.name), machine.name)}</div>')
    kind = reality.gpu_type(read)
    if kind is None or kind.name != found.request.gpu.name:
        said = kind.name if kind else read.gpus[0].name if read.gpus else None
        st.html(
            cards.note("warn", escape(f"This machine has {said or 'unknown GPUs'}; the plan is for {found.request.gpu.name}."))
        )
    if rows is None:
        st.html(cards.empty("The processes on its GPUs could not be read.", "The page of the machine says why."))
        return
    st.html(capacity_view.measured_table(rows))


def downloads(found: Plan) -> None:
    with st.container(horizontal=True, gap="small"):
        st.download_button("Plan as TOML", request.to_toml(found.request), "plan.toml", "application/toml", key="toml")
        text = json.dumps(report.to_json(found), ensure_ascii=False, indent=2)
        st.download_button("Result as JSON", text, "plan.json", "application/json", key="json")


def planned() -> Plan | None:
    """What the URL asks for, placed; None where that cannot be, which is said."""
    chosen = capacity_form.choose_preset(None if "plan" in st.query_params else st.query_params.get("preset", "l4"))
    if chosen:
        st.query_params.from_dict({"preset": chosen})
        st.rerun()
    try:
        asked = capacity_form.from_url()
        models = capacity_form.known_models(asked, folders)
        changed(asked)
        bring(asked)
        return plan(asked, models)
    except RagError as error:
        problem(error)
        return None


def changed(asked: request.Request) -> None:
    """The form; what is sent goes into the URL when it can be planned, and is said when it cannot."""
    try:
        with st.container(border=True, gap="small"):
            sent = capacity_form.form(asked, [str(each) for each in catalogue.folders_in(folders)])
        if sent is not None and sent != asked:
            take(sent)
    except RagError as error:
        problem(error)


def take(sent: request.Request) -> None:
    """Into the URL, once it can be planned. Raises RagError."""
    plan(sent, capacity_form.known_models(sent, folders))
    capacity_form.show(sent)
    st.rerun()


def bring(asked: request.Request) -> None:
    """A model that is in no table, by its config.json: it goes into the plan, and so into its link and its file."""
    with st.expander("A model that is not in the table: bring its config.json", key="bring"):
        try:
            sent = capacity_bring.bring(asked, viewer.may(runtime, "operate"))
            if sent is not None:
                take(sent)
        except RagError as error:
            problem(error)


st.title("Capacity")
found = planned()
if found is not None:
    st.html(capacity_view.notes(found))
    with st.container(border=True, gap="small"):
        st.html(capacity_view.bars(found))
    with st.container(border=True, gap="small"):
        st.html(card_title("What each service takes"))
        st.html(capacity_view.service_table(found))
        downloads(found)
    for each in found.services:
        service_card(found, each)
    load_card(found)
    st.fragment(measured, run_every=REFRESH_SECONDS)(found)
