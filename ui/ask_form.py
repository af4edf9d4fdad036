"""The question and its options: a form whose choices live in the URL and, from page to page, in the session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import streamlit as st

from rag.types import Options

EXAMPLES = (
    "Why is only the first query after a start slow?",
    "The search stage takes two seconds, but Milvus logs single milliseconds. Why?",
    "When does HyDE help, and what does it cost?",
    "למה השאילתה הראשונה איטית?",
)
_HYDE_HELP = (
    "HyDE has the language model write a hypothetical answer first and searches with it. It costs one generation "
    "(seconds on a busy model) and helps with short or oddly worded questions. *auto* decides from the question and the first "
    "search; *on* always writes one; *off* never does."
)
_CACHES_HELP = (
    "*use* reads and writes caches, *bypass* ignores them (for measuring), *refresh* ignores what is stored and writes anew."
)


def from_url(given: Mapping[str, str], base: Options) -> Options:
    """The options a URL asks for; what it does not say, or says wrongly, comes from `base`."""
    return Options(
        hyde=_choice(given.get("hyde"), ("off", "on", "auto"), base.hyde),  # type: ignore[arg-type]
        candidates=_whole(given.get("candidates"), 1, 1000, base.candidates),
        keep=_whole(given.get("keep"), 1, 100, base.keep),
        rerank=_choice(given.get("rerank"), ("on", "off"), "on" if base.rerank else "off") == "on",
        caches=_choice(given.get("caches"), ("use", "bypass", "refresh"), base.caches),  # type: ignore[arg-type]
        model=given.get("model") or base.model,
        collection=given.get("collection") or base.collection,
    )


def to_url(options: Options, base: Options) -> dict[str, str]:
    """What has to be in a URL for `from_url` to give the options again: the differences from `base`."""
    found: dict[str, str] = {}
    for field in fields(Options):
        value = getattr(options, field.name)
        if value != getattr(base, field.name) and value is not None:
            found[field.name] = ("on" if value else "off") if isinstance(value, bool) else str(value)
    return found


def _choice(text: str | None, allowed: tuple[str, ...], otherwise: str) -> str:
    return text if text in allowed else otherwise


def _whole(text: str | None, low: int, high: int, otherwise: int) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and low <= int(text[:9]) <= high else otherwise


def summary(options: Options) -> str:
    """One line that says what is chosen."""
    parts = [
        f"HyDE {options.hyde}",
        f"{options.candidates} candidates",
        f"{options.keep} kept",
        "reranked" if options.rerank else "not reranked",
        f"caches: {options.caches}",
    ]
    return " · ".join([*parts, *([options.model] if options.model else [])])


def form(base: Options) -> tuple[str, Options] | None:
    """Draw the form; the question and the options when it was just sent, else None.

    No `max_chars`: Streamlit drops a paste that is longer without a word. What is too long is said when it is sent, and stays.
    """
    _fill_once(base)
    chosen = _chosen(base)
    with st.form("ask", border=True):
        question = st.text_area(
            "Question",
            key="question",
            height=96,
            persist_state="session",
            placeholder="Ask about your documents, in any language",
        )
        with st.expander(f"Options: {summary(chosen)}".replace(":", "\\:", 0), key="options"):
            _options()
        sent = st.form_submit_button("Ask", type="primary", key="send")
    return (question or "", _chosen(base)) if sent else None


def _fill_once(base: Options) -> None:
    """Fill the widgets from the URL when it says something new, else from the settings, before they are drawn."""
    given = {key: value for key, value in st.query_params.items() if key in Options.__dataclass_fields__ or key == "q"}
    if "q" in given:
        st.session_state["question"] = given.pop("q")
        del st.query_params["q"]
    if st.session_state.get("_options_from") == given and "opt_hyde" in st.session_state:
        return
    if not given and "opt_hyde" in st.session_state:
        return
    st.session_state["_options_from"] = given
    options = from_url(given, base)
    values = {"hyde": options.hyde, "candidates": options.candidates, "keep": options.keep, "rerank": options.rerank}
    for name, value in {**values, "caches": options.caches, "model": options.model or ""}.items():
        st.session_state[f"opt_{name}"] = value


def _options() -> None:
    first, second, third = st.columns(3)
    with first:
        st.segmented_control(
            "HyDE", ("off", "on", "auto"), key="opt_hyde", required=True, help=_HYDE_HELP, persist_state="session"
        )
        st.toggle(
            "Rerank",
            key="opt_rerank",
            persist_state="session",
            help="Score the candidates again with the reranker. Off: the fused order of the search stands.",
        )
    with second:
        st.number_input(
            "Candidates",
            1,
            1000,
            step=10,
            key="opt_candidates",
            persist_state="session",
            help="Passages that the search hands to the reranker. More find more and take longer (RERANKER_TOP_K).",
        )
        st.number_input(
            "Passages kept",
            1,
            100,
            step=1,
            key="opt_keep",
            persist_state="session",
            help="Passages that the answer is written from; at most the number of candidates (RERANKER_RETURN_K).",
        )
    with third:
        st.segmented_control(
            "Caches", ("use", "bypass", "refresh"), key="opt_caches", required=True, help=_CACHES_HELP, persist_state="session"
        )
        st.text_input(
            "Model",
            key="opt_model",
            persist_state="session",
            placeholder="as set up",
            help="Another model at the same endpoint for this question's answer. Empty: the one in the settings (VLLM_MODEL).",
        )


def _chosen(base: Options) -> Options:
    state = st.session_state
    return Options(
        hyde=state.get("opt_hyde") or base.hyde,
        candidates=int(state.get("opt_candidates") or base.candidates),
        keep=int(state.get("opt_keep") or base.keep),
        rerank=bool(state.get("opt_rerank", base.rerank)),
        caches=state.get("opt_caches") or base.caches,
        model=(state.get("opt_model") or "").strip() or None,
        collection=base.collection,
    )
