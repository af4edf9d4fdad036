"""Compare: two queries or two sets, `?a=` against `?b=` (`latency.comparing.selection` says what may stand there)."""

from __future__ import annotations

import json
from urllib.parse import quote

import streamlit as st

from latency.comparing.compare import Comparison, compare
from latency.comparing.selection import KEYS, Loaded, load, parse, set_text
from latency.reports.reports import Report, comparison_report
from rag.errors import RagError
from rag.trace_rows import QueryFilter, QueryRow
from rag.types import Answer
from ui import cards, compare_view
from ui.cached import now, the_runtime, zone
from ui.format import code_html, escape, plain_markdown, plural
from ui.links import page

runtime = the_runtime()
SIDES = ("a", "b")
MOST_LISTED = 100


def show_problem(problem: RagError) -> None:
    st.html(cards.note("critical", f"<strong>{escape(problem.message)}</strong>", code_html(problem.next_step)))


def put(side: str, text: str) -> None:
    st.query_params[side] = text


def swap() -> None:
    a, b = (st.query_params.get(side, "") for side in SIDES)
    st.query_params.from_dict({side: text for side, text in (("a", b), ("b", a)) if text})
    for side in SIDES:
        forget(side)


def forget(side: str) -> None:
    """The widgets of a side show what is in the address again."""
    for name in ("text", "pick"):
        st.session_state.pop(f"{name}-{side}", None)


def typed(side: str) -> None:
    text = str(st.session_state[f"text-{side}"]).strip()
    if text:
        put(side, text)
    else:
        st.query_params.pop(side, None)


def chosen(side: str) -> None:
    row = st.session_state[f"pick-{side}"]
    if row is not None:
        put(side, row.id)
        forget(side)


def picker(side: str, rows: list[QueryRow]) -> None:
    """One side: a query from the list, or ids, a set or an experiment's side as text."""
    st.html(f'<p class="rd rd-title">{side.upper()}</p>')
    st.selectbox(
        "A stored query",
        rows,
        index=None,
        format_func=lambda row: compare_view.option_text(row, zone()),
        key=f"pick-{side}",
        on_change=chosen,
        args=(side,),
        placeholder="Choose a query",
    )
    st.text_input(
        "Or ids, a set, an experiment's side",
        value=st.query_params.get(side, ""),
        key=f"text-{side}",
        placeholder="set:model=…;since=2026-11-21",
        on_change=typed,
        args=(side,),
        help="Ids with commas; `experiment:ID:A`; or `set:key=value;key=value` with the keys "
        + ", ".join(f"{key} ({what})" for key, what in KEYS.items()),
    )

    with st.popover("Build a set"):
        values = {key: st.text_input(key, key=f"set-{side}-{key}", help=what, placeholder=what) for key, what in KEYS.items()}
        st.button("Use this set", key=f"use-{side}", on_click=use_set, args=(side, set_text(values)))


def use_set(side: str, text: str) -> None:
    put(side, text)
    forget(side)


def pickers() -> None:
    text = st.text_input("Find stored queries", key="find", placeholder="Words in the question, or an id", width=420)
    rows = runtime.traces.search(QueryFilter(text=(text or "").strip() or None), limit=MOST_LISTED)
    for column, side in zip(st.columns(2, gap="medium"), SIDES, strict=True):
        with column:
            picker(side, rows)


def suggestion() -> None:
    """With one side chosen: the last other query, of the same question where there is one. Else the last two queries."""
    known = next((side for side in SIDES if side in st.query_params), None)
    answer = runtime.traces.get(st.query_params[known]) if known else None
    if known and answer is not None:
        alike = runtime.traces.search(QueryFilter(text=answer.question.strip() or None), limit=MOST_LISTED)
        others = [row for row in alike if row.question == answer.question] + runtime.traces.search(limit=2)
        rows = [row for row in others if row.id != answer.id][:1]
        sides = {known: answer.id, SIDES[1 - SIDES.index(known)]: rows[0].id} if rows else {}
        label = f"Compare with {compare_view.option_text(rows[0], zone())}" if rows else ""
    else:
        rows = runtime.traces.search(limit=2)
        sides = {"a": rows[1].id, "b": rows[0].id} if len(rows) == 2 else {}
        label = "Compare the last two queries"
    if sides:
        st.button(plain_markdown(label), key="suggestion", on_click=st.query_params.from_dict, args=(sides,))
    else:
        st.html(cards.empty("There is nothing to compare yet.", "Ask at least two questions, or the same one twice."))
        st.page_link(page("ask"), label="Ask a question")


def loaded(side: str) -> Loaded | None:
    """What stands in the address; None, with the reason on screen, where that is nothing."""
    try:
        return load(
            parse(st.query_params[side]),
            runtime.traces,
            getattr(runtime, "readings", None),
            getattr(runtime, "experiments", None),
        )
    except RagError as problem:
        with st.container(key=f"problem-{side}"):
            st.html(f'<p class="rd rd-title">Side {side.upper()} cannot be shown</p>')
            show_problem(problem)
        return None


def head(found: Comparison, sides: tuple[Loaded, Loaded], typical: tuple[Answer, Answer]) -> None:
    st.html(compare_view.summary_note(found))
    columns = st.columns(2, gap="medium")
    for column, name, side, one, answer in zip(columns, "AB", (found.a, found.b), sides, typical, strict=True):
        with column, st.container(border=True):
            st.html(compare_view.side_html(name, side, one.label, answer, now(), zone()))
            if one.missing:
                st.html(cards.note("warn", f"Not stored any more: {plural(one.missing, 'query', 'queries')} of this side."))
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Swap A and B", on_click=swap, type="tertiary")
        if found.caution:
            wanted = quote(typical[0].id, safe="")
            st.html(
                f'<div class="rd"><a href="/experiments?replay={wanted}">Replay A with one thing changed</a></div>',
                width="content",
            )
        downloads(found, typical, (sides[0].label, sides[1].label))


def downloads(found: Comparison, typical: tuple[Answer, Answer], names: tuple[str, str]) -> None:
    def report() -> Report:
        return comparison_report(found, typical, names=names, content=bool(st.session_state.get("content", True)))

    files = (
        ("HTML", "html", "text/html", lambda: report().html().encode()),
        ("Markdown", "md", "text/markdown", lambda: report().markdown().encode()),
        ("CSV", "csv", "text/csv", lambda: compare_view.comparison_csv(found)),
        ("JSON", "json", "application/json", lambda: json.dumps(found.to_json(), ensure_ascii=False, indent=2).encode()),
    )
    name = f"compare-{found.a.typical_id[:12]}-{found.b.typical_id[:12]}"
    for label, ending, mime, make in files:
        st.download_button(label, make, f"{name}.{ending}", mime, key=f"download-{ending}", on_click="ignore", type="tertiary")
    st.checkbox(
        "with content", value=True, key="content", help="Questions and names of documents in the HTML and Markdown report."
    )


def body(found: Comparison, typical: tuple[Answer, Answer]) -> None:
    with st.container(border=True, gap="small"):
        st.html('<p class="rd rd-title">Stage by stage, the largest difference first</p>')
        st.html(compare_view.stages_html(found))
        st.html(compare_view.how_html(found))
    with st.container(border=True, gap="small"):
        title = "Both on one time axis" if found.single else "A typical query of each side on one time axis"
        st.html(f'<p class="rd rd-title">{title}</p>')
        st.html(compare_view.waterfalls_html(*typical))
    left, right = st.columns(2, gap="medium")
    with left:
        what_else(found)
    with right:
        results(found)


def what_else(found: Comparison) -> None:
    with st.container(border=True, gap="small"):
        st.html('<p class="rd rd-title">What else differed</p>')
        st.html(compare_view.others_html(found.others))
        notable = [state for state in found.machines if state.notable]
        if notable:
            st.html(compare_view.machines_html(notable))
        if found.machines:
            with st.expander(f"Machines meanwhile ({len(found.machines)} metrics)"):
                st.html(compare_view.machines_html(found.machines))
        else:
            st.html(cards.empty("No readings of machines were kept with these queries."))


def results(found: Comparison) -> None:
    with st.container(border=True, gap="small"):
        st.html('<p class="rd rd-title">Passages and answers</p>')
        st.html(compare_view.agreement_html(found.agreement))
        if found.agreement is not None and found.agreement.ranks:
            first, rest = compare_view.notable_first(found.agreement.ranks)
            st.html(compare_view.ranks_html(first))
            if rest:
                with st.expander(f"{plural(len(rest), 'more candidate')} that neither kept"):
                    st.html(compare_view.ranks_html(rest))
    if found.measures:
        with st.container(border=True, gap="small"):
            st.html('<p class="rd rd-title">Tokens, first token, work</p>')
            st.html(compare_view.measures_html(found))


def show(found: Comparison, sides: tuple[Loaded, Loaded]) -> None:
    answers = {case.answer.id: case.answer for side in sides for case in side.cases}
    typical = (answers[found.a.typical_id], answers[found.b.typical_id])
    head(found, sides, typical)
    body(found, typical)


st.title("Compare")
st.html(compare_view.STYLE)
try:
    both = all(side in st.query_params for side in SIDES)
    if not both:
        pickers()
        suggestion()
        st.stop()
    with st.expander("Choose other sides"):
        pickers()
    with st.spinner("Comparing…"):
        first, second = loaded("a"), loaded("b")
        found = compare(first.cases, second.cases) if first is not None and second is not None else None
    if first is not None and second is not None and found is not None:
        show(found, (first, second))
    else:
        st.page_link(page("queries"), label="All queries")
except RagError as problem:
    show_problem(problem)
