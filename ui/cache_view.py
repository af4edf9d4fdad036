"""The cache on screen: its entries, one of them with what can be done to it, and the note on an answer that came from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import streamlit as st

from rag.cache.answers import Order
from rag.cache.tally import Look, look_of
from rag.cache.types import CacheAway, CachedAnswer
from rag.errors import RagError
from rag.semantic_cache import SemanticCache
from rag.types import Answer, Problem
from ui import cache_figures, cards
from ui.cached import now, the_runtime, zone
from ui.format import answer_markdown, escape, plural, query_url

SORTS: dict[str, Order] = {"last used": "used", "newest": "created", "most hits": "hits"}
PAGE_SIZE = 50
HITS_SHOWN = 10
_SAID = "cache-said"
T = TypeVar("T")


# 1) saying what was done, and what could not be


def attempt(action: Callable[[], T], what: str) -> T | None:
    """What the action returns; None, with a note on the page, where a store is away or refuses."""
    try:
        return action()
    except CacheAway as away:
        st.html(cards.note("critical", f"<strong>{escape(what)} failed.</strong>", escape(away), _AWAY_STEP))
    except RagError as error:
        problem = Problem(None, error.kind, error.message, error.address, error.next_step)
        st.html(cards.problem_note(problem, what))
    return None


_AWAY_STEP = "Queries go on without it, and it is tried again every few seconds. Start it, or correct REDIS_URL."


def say(severity: str, text: str) -> None:
    """Shown by the next run, which this starts."""
    st.session_state[_SAID] = (severity, text)
    st.rerun()


def _act(action: Callable[[], str], what: str) -> None:
    """For callbacks, which draw nothing: what the action says, or why it failed, is shown by the run that follows."""
    try:
        st.session_state[_SAID] = ("ok", action())
    except (CacheAway, RagError) as problem:
        st.session_state[_SAID] = ("critical", f"{what} failed: {problem}")


def said() -> None:
    if _SAID in st.session_state:
        severity, text = st.session_state.pop(_SAID)
        st.html(cards.note(severity, escape(text)))


# 2) the note on an answer


def hit_note(answer: Answer, key: str = "") -> None:
    """Below an answer that came from the cache: why, and a button for the reader who finds it wrong. Nothing for any other."""
    look = look_of(answer)
    if look is None or not look.hit:
        return
    kept = f'<a href="{cache_figures.entry_url(look.entry_id)}">the kept answer</a>' if look.entry_id else ""
    query = f'<a href="{query_url(look.kept_query_id)}">the query that made it</a>' if look.kept_query_id else ""
    links = " · ".join(part for part in (kept, query) if part)
    st.html(cards.note("unknown", f"<strong>From the cache:</strong> {escape(look.reason)}", links))
    cache = the_runtime().cache
    if cache is None or look.entry_id is None or not look.question.strip():
        return
    if st.session_state.get(f"reported-{answer.id}"):
        st.html(cards.note("ok", "Reported: the answer is no longer kept, and the pair counts in the next calibration."))
    elif st.button("Wrong answer for this question", key=f"wrong{key}", type="tertiary", help=_WRONG_HELP):
        gone = attempt(lambda: report(cache, look.question, look.entry_id or ""), "Reporting")
        if gone:
            st.session_state[f"reported-{answer.id}"] = True
            st.rerun()
        elif gone is False:
            st.html(cards.note("unknown", "That answer is no longer kept: it expired, was deleted or was reported before."))


_WRONG_HELP = "The kept answer is deleted, and both questions are kept as a pair that must not share an answer."


def report(cache: SemanticCache, asked: str, entry_id: str) -> bool:
    return cache.report_false_hit(asked.strip(), entry_id)


# 3) the list


def _first_page() -> None:
    st.session_state["cache-page"] = 1


def _turn(by: int) -> None:
    st.session_state["cache-page"] = max(1, st.session_state.get("cache-page", 1) + by)


def entries(cache: SemanticCache) -> None:
    """Search, sort, a page of entries, purge."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        text = st.text_input("Question contains", key="find", bind="query-params", width=240, on_change=_first_page)
        order = st.selectbox("Sort", tuple(SORTS), key="sort", bind="query-params", width=140, on_change=_first_page)
        if st.button("Purge", help="Delete every kept answer; you are asked again."):
            _confirm_purge(cache)
    number = max(1, int(st.session_state.get("cache-page", 1)))
    first = (number - 1) * PAGE_SIZE
    wanted = (text or "").strip()
    found = attempt(lambda: cache.entries(PAGE_SIZE + 1, first, SORTS.get(order or "", "used"), wanted), "Reading the entries")
    if found is None:
        return
    if not found:
        _none(wanted, number)
        return
    _pager(number, first, len(found))
    st.html(cache_figures.entries_table(found[:PAGE_SIZE], now(), zone()))


def _none(wanted: str, number: int) -> None:
    if wanted or number > 1:
        st.html(cards.empty("No kept question matches.", "Clear the search above."))
        if number > 1:
            st.button("First page", on_click=_first_page, type="tertiary")
        return
    st.html(
        cards.empty(
            "No answer is kept yet.",
            "Ask a question: a whole answer is kept for the next who asks the same. Failed, cut and empty answers are not.",
        )
    )


def _pager(number: int, first: int, found: int) -> None:
    more = found > PAGE_SIZE
    if number == 1 and not more:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.html(f'<div class="rd rd-soft">{first + 1:,}–{first + min(found, PAGE_SIZE):,}</div>', width="content")
        st.button("Previous", on_click=_turn, args=(-1,), disabled=number <= 1, type="tertiary")
        st.button("Next", on_click=_turn, args=(1,), disabled=not more, type="tertiary")


@st.dialog("Delete every kept answer?")
def _confirm_purge(cache: SemanticCache) -> None:
    size = cache.status().answers.entries
    what = plural(size, "answer") if size is not None else "All answers"
    st.markdown(f"{what} will be deleted, those marked good too. Thresholds and judged pairs stay. This cannot be undone.")

    def purge() -> None:
        _first_page()
        _act(lambda: f"{plural(cache.purge(), 'answer')} deleted. Thresholds and judged pairs stayed.", "Purging")

    if st.button("Delete all", type="primary", key="really-purge", on_click=purge):
        st.rerun()  # closes the dialog


# 4) one entry


def entry(cache: SemanticCache, entry_id: str, hits: tuple[Look, ...]) -> None:
    """One kept answer; `hits` are the recent hits of all entries."""
    st.html('<div class="rd"><a href="/cache">All kept answers</a></div>')
    try:
        found = cache.entry(entry_id)
    except CacheAway as away:
        st.html(cards.note("critical", "<strong>The kept answer cannot be read.</strong>", escape(away), _AWAY_STEP))
        return
    if found is None:
        st.html(cards.empty("This answer is no longer kept.", "It expired, was deleted, or made room. Choose one from the list."))
        return
    st.html(f'<h2 class="rd-plain rd-question" dir="auto">{escape(found.question)}</h2>')
    left, right = st.columns([10, 9], gap="medium")
    with left:
        _answer(found)
        _actions(cache, found)
        _wrong(cache, found, [look for look in hits if look.entry_id == found.id][:HITS_SHOWN])
    with right:
        known = attempt(lambda: bool(the_runtime().traces.get(found.query_id)), "Looking for its query")
        with st.container(border=True, gap="small"):
            st.html(cache_figures.facts(found, bool(known), _documents(found), now(), zone()))
        kept = [passage for passage in found.passages if passage.kept]
        with st.container(border=True, gap="small"):
            st.html(f'<p class="rd rd-title">{plural(len(kept), "passage")} behind it</p>')
            st.html(cards.passage_cards(kept, {citation.number for citation in found.citations}))


def _documents(found: CachedAnswer) -> str:
    """Whether the collection still holds what the answer was made from; another version is never looked up."""
    if "content_version" not in found.key:
        return "unknown: kept by an older version"
    try:
        current = the_runtime().store.versions.current(found.collection)
    except RagError as error:
        return f"unknown: {error.message}"
    if current is None:
        return "being written to: nothing is looked up meanwhile"
    same = current == found.key["content_version"]
    return "unchanged since" if same else "changed since: this answer is given no more"


def _answer(found: CachedAnswer) -> None:
    with st.container(border=True, key="answer-kept", gap="small"):
        st.markdown(answer_markdown(found.answer, {citation.number for citation in found.citations}))
        lines = [
            f'<a href="#passage-{item.number}">[{item.number}]</a> <span dir="auto">{escape(item.title)}</span>'
            f' <span class="rd-soft">{escape(" · ".join(text for text in (item.source, item.location) if text))}</span>'
            for item in sorted(found.citations, key=lambda citation: citation.number)
        ]
        marks = cache_figures.marks(found)
        if lines or marks:
            st.html(f'<div class="rd">{"<br>".join([*lines, marks] if marks else lines)}</div>')


def _actions(cache: SemanticCache, found: CachedAnswer) -> None:
    with st.container(horizontal=True, gap="small"):
        if st.button("Not good" if found.good else "Mark good", key="good", help="Good answers go into the export."):
            changed = attempt(lambda: cache.mark_good(found.id, not found.good), "Marking")
            if changed is not None:
                say("ok", "Marked good: it goes into the export." if changed.good else "No longer marked good.")
        if st.button("Delete", key="delete", help="You are asked again."):
            _confirm_delete(cache, found)
    with st.expander("Edit the answer"), st.form(f"edit-{found.id}", border=False):
        text = st.text_area("Answer", found.answer, height=240, key=f"text-{found.id}", help="Numbers in brackets cite passages.")
        if st.form_submit_button("Save") and text != found.answer:
            changed = attempt(lambda: cache.edit(found.id, text or ""), "Saving")
            if changed is not None:
                say("ok", f"Saved: {plural(len(changed.citations), 'citation')} read anew.")


@st.dialog("Delete this answer?")
def _confirm_delete(cache: SemanticCache, found: CachedAnswer) -> None:
    st.html(f'<div class="rd rd-plain" dir="auto">{escape(found.question)}</div>')
    st.markdown("The next who asks this gets a new answer. This cannot be undone.")

    def delete() -> None:
        _act(lambda: "The answer is deleted." if cache.delete(found.id) else "The answer was gone already.", "Deleting")
        if st.session_state[_SAID][0] == "ok":
            st.query_params.pop("entry", None)

    if st.button("Delete it", type="primary", key="really-delete", on_click=delete):
        st.rerun()


def _wrong(cache: SemanticCache, found: CachedAnswer, hits: list[Look]) -> None:
    with st.container(border=True, gap="small"):
        st.html('<p class="rd rd-title">Given to another question, wrongly?</p>')
        st.html(
            '<div class="rd rd-soft">A report deletes this answer and keeps both questions as a pair that must never share one; '
            "the next calibration counts it.</div>"
        )
        for look in hits:
            line, button = st.columns([3, 2], vertical_alignment="center")
            line.html(cache_figures.hit_line(look, now(), zone()))
            if button.button("Wrong answer for this question", key=f"wrong-{look.query_id}"):
                _report(cache, look.question, found)
        if not hits:
            st.html('<div class="rd rd-soft">No stored query of the time above got this answer.</div>')
        with st.form("report", border=False):
            asked = st.text_input("Question that got it", "", key="report-asked", placeholder="The question that was asked")
            if st.form_submit_button("Report as wrong"):
                _report(cache, asked or "", found)


def _report(cache: SemanticCache, asked: str, found: CachedAnswer) -> None:
    if not asked.strip():
        st.html(cards.note("warn", "Write the question that got this answer wrongly."))
        return
    gone = attempt(lambda: report(cache, asked, found.id), "Reporting")
    if gone is not None:
        st.query_params.pop("entry", None)
        say("ok", "Reported: the answer is deleted." if gone else "The answer was gone already; nothing was kept.")
