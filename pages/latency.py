"""Latency: which stage takes how long, since when, with which option; what is slow; what a change would bring. All in the URL."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import streamlit as st

from latency.percentiles.options import OPTIONS
from latency.percentiles.percentiles import COLUMNS, DONE, EVERY, TOTAL, USUAL, Selection
from latency.percentiles.summary import Focus, Pick, View, Whole
from latency.percentiles.what_if import Scenario
from rag.errors import RagError
from ui import cards, exports, findings_view, latency_cached, latency_charts, latency_view, query_list
from ui.cached import now, the_runtime, zone
from ui.format import code_html, escape, plural
from ui.gauges import card_title
from ui.links import page

runtime = the_runtime()
RANGES = {"1 h": 3600, "24 h": 86_400, "7 d": 7 * 86_400, "30 d": 30 * 86_400, "all": 0}
OUTCOMES = (DONE, "answered", "no_documents", "failed", "cancelled", EVERY)
HEATS = ("all", "warm", "cold")
EVERY_VALUE = "every value"


# 1) what is looked at


def filters(revision: int) -> View:
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
    span = row.segmented_control("Asked within", tuple(RANGES), default="24 h", required=True, key="range", bind="query-params")
    column = row.selectbox("Look at", COLUMNS, key="stage", bind="query-params", width=120, format_func=latency_view.column_words)
    heat = row.segmented_control(
        "Models were",
        HEATS,
        default="all",
        required=True,
        key="heat",
        bind="query-params",
        help="Cold: a model was loaded or ran for the first time, in that stage; of the total, in any stage.",
    )
    outcome = row.selectbox(
        "Outcome", OUTCOMES, key="outcome", bind="query-params", width=140, format_func=latency_view.outcome_words
    )
    length = RANGES[span or "24 h"]
    # whole minutes: the same numbers serve every rerun of a minute
    end = now().timestamp() // 60 * 60 + 60
    since = end - length if length else float("-inf")
    origins = latency_cached.origins(revision, since)
    origin = row.selectbox(
        "Origin", (EVERY, *origins), key="origin", bind="query-params", width=160, format_func=latency_view.origin_words
    )
    measured = row.toggle(
        "Measured runs too", key="measured", bind="query-params", help="Replays, load tests and component tests."
    )
    option, value = compared_by(row, revision, since)
    return View(
        Selection(
            since=since,
            origin=USUAL if origin in (None, EVERY) and not measured else origin or EVERY,
            outcome=outcome or DONE,
            option=option if value is not None else None,
            value=value,
        ),
        column or TOTAL,
        heat or "all",
        option,
        float(length) if length else None,
        latency_view.seconds_from(end, zone()),
    )


def compared_by(row: Any, revision: int, since: float) -> tuple[str, str | None]:
    """The option that queries are compared by, and the one value of it that is looked at, if any."""
    option = row.selectbox(
        "Compare by",
        tuple(OPTIONS),
        key="by",
        bind="query-params",
        width=180,
        format_func=lambda name: OPTIONS[name].title,
        on_change=partial(st.session_state.pop, "only", None),
    )
    option = option or next(iter(OPTIONS))
    values = (EVERY_VALUE, *latency_cached.values(revision, since, option))
    value = row.selectbox("Only", values, key="only", bind="query-params", width=180)
    return option, None if value in (None, EVERY_VALUE) else value


def the_pick() -> Pick | None:
    """What was chosen in a chart, from the URL."""
    kind, _, rest = str(st.query_params.get("pick", "")).partition(":")
    least, _, most = rest.partition(":")
    try:
        return Pick(kind, float(least), float(most)) if kind in ("time", "seconds") else None
    except ValueError:
        return None


def picked(key: str, kind: str, edges: Sequence[tuple[float, float]]) -> None:
    """A bar was clicked: its queries are listed. A second click on it lists all again."""
    chosen = [index for group in st.session_state[key].selection.selected for index in group["data_indices"]]
    if chosen and chosen[0] < len(edges):
        least, most = edges[chosen[0]]
        st.query_params["pick"] = f"{kind}:{least!r}:{most!r}"
    else:
        st.query_params.pop("pick", None)


# 2) what is shown


def numbers(name: str, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """The figures of a card, to copy or download."""
    text = exports.to_csv(heads, rows)
    with st.popover("Numbers", type="tertiary"):
        st.code(text.decode("utf-8-sig"), language=None, height=280)
        st.download_button("Download CSV", text, f"latency-{name}.csv", "text/csv", on_click="ignore", key=f"csv-{name}")


def card_head(title: str, name: str, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        st.html(card_title(title), width="stretch")
        numbers(name, heads, rows)


def findings() -> None:
    found = latency_cached.last_hour(int(now().timestamp() // 60))
    with st.container(border=True, gap="small"):
        rows = latency_view.finding_rows(found.findings)
        card_head(latency_view.findings_title(found), "findings", latency_view.FINDING_CSV, rows)
        if found.queries:
            findings_view.render(found.findings, found.seconds, many=True)


def stages(found: Whole, view: View) -> None:
    with st.container(border=True, gap="small"):
        card_head("Where the time goes", "stages", latency_view.STAGE_CSV, latency_view.stage_rows(found.lines))
        st.html(latency_view.stage_table(found.lines, view.heat, found.ids))
        st.html(f'<div class="rd rd-soft rd-small">{latency_view.DEFINITION}</div>')


def trend(found: Focus, view: View) -> None:
    with st.container(border=True, gap="small"):
        name = latency_view.title(view.column)
        card_head(f"{name} over time", "trend", latency_charts.TREND_CSV, latency_charts.trend_rows(found.trend))
        edges = [(bucket.start, bucket.start + found.trend.step) for bucket in found.trend.buckets]
        if not edges:
            st.html(cards.empty(f"{name} did not run in this time."))
            return
        start, end = latency_view.window(view, found.trend, now().timestamp())
        st.echarts_chart(
            latency_charts.trend_options(found.trend, view.column, start, end, is_dark()),
            height=230,
            key="trend",
            on_select=partial(picked, "trend", "time", edges),
            alt=f"{name}: p50 and p95 over time, with the number of queries",
        )
        changed = latency_view.change_list(found.trend.changes, zone())
        if changed:
            st.html(changed)


def distribution(found: Focus, every: Whole, view: View) -> None:
    told = next(line for line in every.lines if line.stage == view.column).of(view.heat)
    with st.container(border=True, gap="small"):
        name = latency_view.title(view.column)
        rows = [list(each) for each in found.bins]
        card_head(f"{name}: how long", "distribution", latency_charts.DISTRIBUTION_CSV, rows)
        if told is None:
            st.html(cards.empty(f"{name} did not run in this time."))
            return
        st.echarts_chart(
            latency_charts.distribution_options(found.bins, view.column, told, is_dark()),
            height=230,
            key="distribution",
            on_select=partial(picked, "distribution", "seconds", [(each.least, each.most) for each in found.bins]),
            alt=f"{name}: how many queries took how long; cold ones are hatched",
        )


def is_dark() -> bool:
    return st.context.theme.type == "dark"


def listed(revision: int, view: View) -> None:
    pick = the_pick()
    count, rows = latency_cached.longest(revision, view, pick)
    with st.container(border=True, gap="small"):
        with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
            st.html(card_title(latency_view.list_title(count, len(rows), view, pick, zone())), width="stretch")
            if pick is not None and st.button("Show all", type="tertiary", key="unpick"):
                st.query_params.pop("pick", None)
                st.rerun()
            st.download_button(
                "Download CSV",
                lambda: exports.queries_csv(latency_cached.all_listed(revision, view, pick)),
                "latency-queries.csv",
                "text/csv",
                on_click="ignore",
                type="tertiary",
                key="csv-queries",
                help="Every query of this list, longest first, with all columns.",
            )
        if rows:
            st.html(query_list.rows_html(rows, now(), zone()))
        else:
            st.html(cards.empty("No query is in this list.", "Choose another bar, or show all."))


def outliers(found: Whole) -> None:
    with st.container(border=True, gap="small"):
        rows = [[each.column, key, spent] for each in found.outliers for key, spent in each.longest]
        card_head("Beyond p99", "outliers", latency_view.OUTLIER_CSV, rows)
        if found.outliers:
            st.html(latency_view.outlier_table(found.outliers))
        else:
            st.html(cards.empty("Nothing is beyond its p99.", "With fewer than 100 queries p99 is the longest of them."))


def comparison(found: Focus, view: View) -> None:
    with st.container(border=True, gap="small"):
        rows = latency_view.group_rows(found.groups, view.option, view.column)
        title = f"{latency_view.title(view.column)} by {OPTIONS[view.option].title}"
        card_head(title, "groups", latency_view.GROUP_CSV, rows)
        url = {key: str(value) for key, value in st.query_params.items() if key != "pick"}
        st.html(latency_view.group_table(found.groups, view.option, view.column, found.ids, url))
        st.html(f'<div class="rd rd-soft rd-small">{latency_view.NOT_CONTROLLED}</div>')


# 3) what if


def scenario() -> Scenario:
    """The sliders; each leaves things as they were until it is moved."""
    left, middle, right = st.columns(3, gap="medium")
    skip = left.slider("HyDE is skipped for, % of its queries", 0, 100, 0, 5, key="skip", bind="query-params")
    near = left.toggle("Milvus stands next to the app", key="near", bind="query-params", help="No network in the search.")
    hits = middle.number_input(
        "Cache answers, % of queries", 0, 100, None, 5, key="hits", bind="query-params", placeholder="as now"
    )
    cost = middle.number_input("A cached answer takes, ms", 0, 60_000, 50, 10, key="hit-ms", bind="query-params")
    rerank = right.number_input(
        "Reranking takes, ms", 0, 600_000, None, 50, key="rerank-ms", bind="query-params", placeholder="as now"
    )
    rate = right.number_input(
        "Answers are written at, tokens/s", 1, 100_000, None, 5, key="rate", bind="query-params", placeholder="as now"
    )
    return Scenario(
        hyde_skip_ratio=skip / 100,
        hit_ratio=None if hits is None else hits / 100,
        hit_seconds=cost / 1000,
        rerank_seconds=None if rerank is None else rerank / 1000,
        near_store=near,
        tokens_per_second=rate,
    )


def what_if(revision: int, view: View) -> None:
    try:
        found = latency_cached.predicted(revision, view.selection, scenario())
    except RagError as error:  # a fragment runs alone, past the page's own handler
        problem(error)
        return
    if found is None:
        return
    st.html(latency_view.prediction_table(found))
    st.html(latency_view.assumptions(found))
    numbers("what-if", latency_view.PREDICTION_CSV, latency_view.prediction_rows(found))


# 4) the page


def problem(error: RagError) -> None:
    st.html(cards.note("critical", f"<strong>{escape(error.message)}</strong>", code_html(error.next_step)))


def nothing(found: Whole, counts: str) -> None:
    """Why there is nothing, and what to do."""
    if not runtime.traces.count():
        st.html(cards.empty("Nothing has been asked yet.", "Ask a question: its times, stage by stage, are counted here."))
        st.page_link(page("ask"), label="Ask a question")
        return
    title = "No query matches." if found.counts.within else "No query began in this time."
    st.html(cards.empty(title, f"{counts}.", "Look further back, or clear the filters above."))
    with st.container(horizontal=True, gap="small"):
        st.page_link(page("latency"), label="All queries ever", query_params={"range": "all"})
        st.page_link(page("queries"), label="The list of queries")


def show(revision: int, view: View) -> None:
    found = latency_cached.whole(revision, view.selection, view.heat)
    told = latency_view.sentence(found.lines, view.column, view.heat)
    counts = latency_view.counted(found.counts, view.selection, st.session_state.get("range") or "24 h")
    if not found.counts.n:
        nothing(found, counts)
        return
    st.html(f'<p class="rd rd-question">{escape(told)}.</p><div class="rd rd-soft">{escape(counts)}.</div>')
    first = st.container()  # filled last: looking for causes takes longest, once a minute
    stages(found, view)
    column = latency_cached.focus(revision, view)
    left, right = st.columns([3, 2], gap="small")
    with left:
        trend(column, view)
    with right:
        distribution(column, found, view)
    listed(revision, view)
    left, right = st.columns([3, 2], gap="small")
    with left:
        comparison(column, view)
    with right:
        outliers(found)
    with st.container(border=True, gap="small"):
        st.html(card_title(f"What if: estimated from these {plural(found.counts.n, 'query', 'queries')}"))
        st.fragment(what_if)(revision, view)
    with first:
        findings()


st.title("Latency")
try:
    now_revision = runtime.traces.revision
    looked_at = filters(now_revision)
    show(now_revision, looked_at)
except RagError as error:
    problem(error)
