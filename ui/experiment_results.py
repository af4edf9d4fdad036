"""A stored experiment on the page: its tables, charts and costs, and two of one kind side by side. Draws; decides nothing."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from latency.comparing.compare import compare
from latency.experiments.experiments import Experiment
from latency.experiments.replay import cases
from latency.hardware import prices
from latency.hardware.types import COMPONENTS, Component, HardwareResult
from latency.load.load import LoadResult
from rag.errors import RagError
from rag.types import Problem
from ui import cards, experiments_view, hardware_view, load_view
from ui.cached import now, the_runtime, zone
from ui.experiment_live import is_dark
from ui.format import escape, plural
from ui.gauges import card_title


def _problem(error: RagError, what: str) -> None:
    st.html(cards.problem_note(Problem(None, error.kind, error.message, error.address, error.next_step), what))


def content(found: Experiment) -> None:
    if found.result is None:
        step = "Its error is above; start it again." if found.error else "It ended before it had measured anything."
        st.html(cards.empty("It has no result.", step))
        return
    {"load": _load, "hardware": _hardware, "replay": _replay, "components": _components}[found.kind](found)


def _load(found: Experiment) -> None:
    result = LoadResult.from_json(found.result or {})
    st.html(f'<div class="rd rd-soft">{escape(load_view.plan_line(result.plan))}</div>')
    if result.stopped:
        st.html(cards.note("unknown", escape(f"It ended early: {result.stopped}.")))
    with st.container(border=True, gap="small"):
        st.html(load_view.knee_card(result.knee))
    left, right = st.columns(2, gap="small")
    with left, st.container(border=True, gap="small"):
        st.html(card_title("Latency and throughput by users"))
        st.echarts_chart(load_view.curve(result.steps, result.knee, is_dark()), height=260, key="curve", alt="Latency by users")
    with right, st.container(border=True, gap="small"):
        st.html(card_title("Where the mean time goes, by users"))
        stacked = load_view.composition(result.steps, is_dark())
        if stacked is None:
            st.html(cards.empty("The answers say nothing of their stages.", "RAG Deck's own API tells them."))
        else:
            st.echarts_chart(stacked, height=260, key="composition", alt="Mean latency by stage and users")
    with st.container(border=True, gap="small"):
        st.html(card_title("Steps"))
        st.html(load_view.steps_table(result.steps))
        st.html(f'<div class="rd rd-soft rd-small">{escape(load_view.warmup_line(result.warmup))}</div>')
        failed, stages = load_view.errors_table(result.steps), load_view.stages_table(result.steps)
        if failed:
            st.html(failed)
        if stages:
            with st.expander("Percentiles by stage"):
                st.html(stages)


def _hardware(found: Experiment) -> None:
    result = HardwareResult.from_json(found.result or {})
    st.html(f'<div class="rd rd-soft">{escape(result.texts)}</div>')
    if result.stopped:
        st.html(cards.note("unknown", escape(f"It ended early: {result.stopped}.")))
    for component in reversed(COMPONENTS):
        if any(row.cells for row in result.of(component)):
            _matrix(result, component)
    nowhere = [row for each in COMPONENTS if not any(row.cells for row in result.of(each)) for row in result.of(each)]
    left_out = hardware_view.skipped_list(nowhere)
    if left_out:
        with st.container(border=True, gap="small"):
            st.html(left_out)
    _costs(result)


def _matrix(result: HardwareResult, component: Component) -> None:
    with st.container(border=True, gap="small"):
        st.html(hardware_view.latency_table(result, component))
        sizes = sorted({cell.size for row in result.of(component) for cell in row.cells})
        size = st.segmented_control(
            "Throughput of", sizes, default=20 if 20 in sizes else sizes[0], required=True, key=f"size-{component}"
        )
        st.html(hardware_view.throughput_table(result, component, size or sizes[0]))
        if component == "rerank":
            st.html(hardware_view.reported_note())


def _costs(result: HardwareResult) -> None:
    with st.container(border=True, gap="small"):
        st.html(card_title("Does a GPU pay?"))
        try:
            needs = _needed(result)
            advice = prices.advise(result, needs)
        except RagError as error:
            _problem(error, "The costs")
            return
        st.html(hardware_view.advice_card(advice))
        if advice.costs:
            st.html(hardware_view.costs_table(advice.costs))
        with st.expander("Price presets, with their date"):
            st.html(hardware_view.prices_table(prices.PRESETS))


def _needed(result: HardwareResult) -> prices.Needs:
    """What is wanted and what machines cost, from widgets that the URL keeps. Raises RagError."""
    usual = prices.Needs()
    sizes = sorted({cell.size for row in result.of("rerank") for cell in row.cells}) or [usual.candidates]
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
    names = {each.name: each for each in prices.PRESETS}
    name = row.selectbox("GPU machine", tuple(names), key="gpu", bind="query-params", width=170)
    gpu = names[name or usual.gpu.name]
    eur = row.number_input("EUR a month", 0.0, value=float(gpu.eur_month), step=5.0, key=f"eur-{gpu.name}", width=120)
    cpu = row.number_input(
        "CPU machine, EUR",
        0.0,
        value=usual.cpu_eur_month,
        step=5.0,
        key="cpu_eur",
        bind="query-params",
        width=140,
        help="Your own figure: the report gives none, and 20 is only a guess.",
    )
    traffic = row.number_input("Traffic, EUR", 0.0, value=usual.traffic_eur_month, step=0.5, key="traffic", width=110)
    queries = row.number_input(
        "Queries a month", 1, value=int(usual.queries_month), step=10_000, key="queries", bind="query-params", width=140
    )
    users = row.number_input("Active users", 0, value=usual.active_users, key="active", bind="query-params", width=110)
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
    size = row.selectbox("Candidates", sizes, index=sizes.index(20) if 20 in sizes else 0, key="wanted-candidates", width=110)
    target = row.number_input("Target p95, ms", 1.0, value=500.0, step=50.0, key="target", bind="query-params", width=130)
    peak = row.number_input("Busiest hour, × mean", 1.0, value=usual.peak_factor, step=0.5, key="peak", width=150)
    use = row.number_input("Used at most, %", 1, 100, round(usual.use_ratio * 100), key="use", width=130)
    precision = row.toggle("Precision matters", key="precision", bind="query-params")
    price = gpu if eur == gpu.eur_month else prices.prices({gpu.name: eur})[list(names).index(gpu.name)]
    return replace(
        usual,
        gpu=price,
        queries_month=float(queries),
        active_users=int(users),
        candidates=int(size or sizes[0]),
        target_seconds=target / 1000,
        precision_matters=bool(precision),
        traffic_eur_month=traffic,
        cpu_eur_month=cpu,
        peak_factor=peak,
        use_ratio=use / 100,
    )


def _replay(found: Experiment) -> None:
    result = found.result or {}
    with st.container(border=True, gap="small"):
        st.html(card_title("Sides"))
        st.html(experiments_view.replay_table(result))
        sides = [side.get("query_ids") or [] for side in result.get("sides") or ()]
        if len(sides) > 1 and all(sides[:2]):
            try:
                told = compare(*(cases(the_runtime(), ids) for ids in sides[:2]))
                st.html(cards.note("ok", escape(told.summary), escape(told.caution)))
            except RagError as error:
                _problem(error, "Comparing")
            st.html(f'<a class="rd" href="{experiments_view.compare_url(found.id)}">Compare side A and side B</a>')
    for text in result.get("notes") or ():
        st.html(f'<div class="rd rd-soft">{escape(text)}</div>')
    with st.expander(f"All {plural(len(result.get('runs') or ()), 'run')}"):
        st.html(experiments_view.runs_table(result) or cards.empty("No run ended."))


def _components(found: Experiment) -> None:
    result = found.result or {}
    with st.container(border=True, gap="small"):
        st.html(card_title(str(result.get("summary") or "Component tests")))
        st.html(experiments_view.components_table(result.get("rows") or ()))


def beside(first: Experiment, second: Experiment) -> None:
    """Two of one kind: the same numbers side by side, then each by itself."""
    names = f"A: {first.name} · B: {second.name}"
    with st.container(border=True, gap="small"):
        st.html(f'<p class="rd rd-title" dir="auto">{escape(names)}</p>')
        if first.result is None or second.result is None:
            st.html(cards.empty("One of them has no result.", "Choose another one."))
        elif first.kind != second.kind:
            st.html(cards.empty("They are of different kinds.", "Choose one of the same kind."))
        elif first.kind == "load":
            st.html(load_view.side_by_side(*(LoadResult.from_json(each.result or {}) for each in (first, second))))
        elif first.kind == "hardware":
            pair = [HardwareResult.from_json(each.result or {}) for each in (first, second)]
            tables = [hardware_view.side_by_side(pair[0], pair[1], each) for each in reversed(COMPONENTS)]
            st.html("".join(tables) or cards.empty("No cell was measured in both."))
        elif first.kind == "components":
            st.html(experiments_view.components_beside(first.result, second.result))
        st.html(experiments_view.environment_table(first.environment, second.environment))
    left, right = st.columns(2, gap="small")
    for column, each in ((left, first), (right, second)):
        with column:
            st.html(f'<a class="rd" href="{experiments_view.url(each.id)}">{escape(each.name)}</a>')
            _summary(each)


def _summary(each: Experiment) -> None:
    """One of two, short."""
    if each.result is None:
        st.html(experiments_view.head(each, now(), zone()))
    elif each.kind == "load":
        result = LoadResult.from_json(each.result)
        st.echarts_chart(
            load_view.curve(result.steps, result.knee, is_dark()), height=230, key=f"c-{each.id}", alt="Latency by users"
        )
        st.html(load_view.steps_table(result.steps))
    elif each.kind == "hardware":
        st.html(hardware_view.latency_table(HardwareResult.from_json(each.result), "rerank"))
    elif each.kind == "replay":
        st.html(experiments_view.replay_table(each.result))
    else:
        st.html(experiments_view.components_table(each.result.get("rows") or ()))
