"""Query: everything about one stored query, by `?id=`."""

from __future__ import annotations

import json

import streamlit as st

from rag.errors import RagError
from ui import answer_view, ask_form, cards, figures, forget_view, mark_view, query_list
from ui.cached import now, the_runtime, zone
from ui.format import code_html, escape, parse_time, seconds, shortened, time_html
from ui.links import page

runtime = the_runtime()
query_id = st.query_params.get("id", "")
try:
    found = answer_view.load(query_id) if query_id else None
except RagError as error:
    st.title("Query")
    st.html(cards.note("critical", f"<strong>{escape(error.message)}</strong>", code_html(error.next_step)))
    st.stop()

if found is None:
    st.title("Query")
    said = f"There is no query with the id {query_id}." if query_id else "No query is chosen: the address has no ?id=."
    st.html(cards.empty(said, "It may have been deleted, or belong to another data folder. Choose one from the list."))
    st.page_link(page("queries"), label="All queries")
    st.stop()

known, findings = found
answer, spans = known.answer, known.spans
st.set_page_config(page_title=f"{shortened(answer.question or query_id, 60)} · RAG Deck")
st.html(f'<h1 class="rd-plain rd-question" dir="auto">{escape(answer.question or "Question not kept")}</h1>')
when = time_html(parse_time(answer.started_at), now(), zone())
fingerprint = " · ".join(f"{key} {value}" for key, value in answer.fingerprint.items() if isinstance(value, str))
asked_by = "" if answer.origin == "ask" else f"asked {query_list.asked_by(answer.origin)}"
told = (when, escape(asked_by), escape(ask_form.summary(answer.options)), escape(fingerprint))
line = " · ".join(text for text in told if text)
st.html(f'<div class="rd rd-soft">{line}</div>')
mark_view.show(answer, "-query")
answer_view.render(known, findings, key="-query")

with st.expander(f"Spans ({len(spans)})"):
    if spans:
        zero = min(span.start_unix_ns for span in spans)
        rows = [
            [
                escape(span.name),
                escape(span.stage or "–"),
                seconds((span.start_unix_ns - zero) / 1e9),
                seconds(span.seconds),
                escape(span.status.lower() if span.status != "UNSET" else ""),
                f'<span id="span-{escape(span.span_id)}" class="rd-soft rd-mono">{escape(span.span_id)}</span>',
            ]
            for span in sorted(spans, key=lambda span: span.start_unix_ns)
        ]
        st.html(figures.table(["Span", "Stage", "Starts after", "Took", "Status", "Id"], rows, numeric=(2, 3), wrap=(0,)))
    else:
        st.html(cards.empty("No spans were stored with this query."))
raw = st.expander("Raw JSON", on_change="rerun", key="raw")
if raw.open:
    raw.code(json.dumps(answer.to_json(), ensure_ascii=False, indent=2), language=None, height=480)

with st.container(horizontal=True, vertical_alignment="center"):
    if st.button("Ask again", help="Opens Ask with this question and these options.", disabled=not answer.question):
        wanted = ask_form.to_url(answer.options, runtime.default_options())
        st.switch_page(page("ask"), query_params={**wanted, "q": answer.question})
    st.page_link(
        page("experiments"),
        label="Replay with a change",
        query_params={"kind": "replay", "replay": answer.id},
        disabled=not answer.question,
        help="This query again with one thing changed, in turn with itself unchanged, several times.",
    )
    st.page_link(page("compare"), label="Compare with another", query_params={"a": answer.id})
    forget_view.one(answer.id)
    st.page_link(page("queries"), label="All queries")
