"""The tester of the page Cache: two questions against each other, and the pairs that people have judged."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from gpu_server.errors import EngineError
from gpu_server.interfaces import Embedder
from rag.cache.calibrate import Pair
from rag.cache.export import pair_lines, to_bytes
from rag.cache.guards import both_read
from rag.semantic_cache import SemanticCache
from rag.types import Problem
from ui import cache_cached, cache_verdicts, cards
from ui.cache_view import attempt, say
from ui.format import plural

EMBED_SECONDS = 60.0


def identity(embedder: Embedder) -> str | None:
    """Whose thresholds count; None, with a note, while the embedder does not say who it is."""
    try:
        return embedder.info.identity
    except EngineError as problem:
        st.html(cards.problem_note(_problem(problem), "The embedder"))
        return None


def _problem(problem: EngineError) -> Problem:
    return Problem(None, problem.kind, problem.message, problem.address, problem.next_step)


def tester(cache: SemanticCache, embedder: Embedder) -> None:
    """Two questions from the address (`?asked=…&cached=…`), the verdict, and whether a person agrees."""
    asked, cached = st.query_params.get("asked", ""), st.query_params.get("cached", "")
    with st.container(border=True, gap="small"):
        st.html('<p class="rd rd-title">Would the answer to the second question be given to the first?</p>')
        # the keys change with the address: a form keeps what was typed in it otherwise
        with st.form("tester", border=False):
            first = st.text_input("Asked", asked, key=f"asked-{asked}")
            second = st.text_input("Cached", cached, key=f"cached-{cached}")
            sent = st.form_submit_button("Compare", type="primary")
        if sent:
            _choose((first or "").strip(), (second or "").strip())
            st.rerun()
        _examples()
    if asked.strip() and cached.strip():
        _verdict(cache, embedder, asked, cached)
    elif asked.strip() or cached.strip():
        st.html(cards.note("warn", "Two questions are needed."))


def _choose(asked: str, cached: str) -> None:
    for name, text in (("asked", asked), ("cached", cached)):
        if text:
            st.query_params[name] = text
        else:
            st.query_params.pop(name, None)


def _examples() -> None:
    pairs = cache_cached.examples()
    if not pairs:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.html('<div class="rd rd-soft">Examples, what differs:</div>', width="content")
        for pair in pairs:
            words = "other wording" if pair.label == "same" else pair.kind
            st.button(
                words,
                key=f"example-{pair.id}",
                on_click=_choose,
                args=(pair.a, pair.b),
                help=f"{pair.a}\n\n{pair.b}",
                type="tertiary",
            )


def _verdict(cache: SemanticCache, embedder: Embedder, asked: str, cached: str) -> None:
    vectors = _vectors(embedder, (asked, cached))
    name = identity(embedder) if vectors is not None else None
    thresholds = cache.thresholds(name) if name else None
    found = cache.test(asked, cached, name or "", None if vectors is None else list(vectors))
    with st.container(border=True, gap="small"):
        st.html(cache_verdicts.verdict(found, thresholds))
        st.html(cache_verdicts.checks(asked, found, thresholds))
        if not cache.limits.semantic:
            st.html(cards.note("unknown", "Only equal questions hit now: cache.semantic is off."))
        _judge(cache, asked, cached)


def _vectors(embedder: Embedder, texts: Sequence[str]) -> NDArray[np.float32] | None:
    """[2, d], or None with a note."""
    try:
        with st.spinner("Embedding both questions …", show_time=True):
            return embedder.embed(list(texts), "query", priority=1, deadline=time.monotonic() + EMBED_SECONDS).dense
    except EngineError as problem:
        st.html(cards.problem_note(_problem(problem), "Embedding"))
    except TimeoutError:
        problem_text = f"The embedder did not answer within {EMBED_SECONDS:g} s."
        st.html(cards.problem_note(Problem(None, "timeout", problem_text, None, "Look at the page Models."), "Embedding"))
    return None


def _judge(cache: SemanticCache, asked: str, cached: str) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.html('<div class="rd rd-soft">What do you say? Kept for the next calibration:</div>', width="content")
        same = st.button("One answer serves both", key="judge-same")
        different = st.button("They must not share one", key="judge-different", help="Never a hit again, from now on.")
    if not (same or different):
        return
    language = both_read(asked, cached)[0].language

    def keep() -> bool:
        cache.book.add_pair(asked, cached, "same" if same else "different", language)
        return True

    if attempt(keep, "Keeping the pair"):
        say("ok", "The pair is kept.")


def pairs_card(cache: SemanticCache) -> None:
    """The pairs that people judged: a list, a file, a way to take one back."""
    pairs = attempt(cache.book.pairs, "Reading the judged pairs")
    if pairs is None:
        return
    with st.container(border=True, gap="small"):
        st.html(f'<p class="rd rd-title">{plural(len(pairs), "judged pair")}</p>')
        if not pairs:
            st.html(cards.empty("Nobody has judged a pair yet.", "Compare two questions above, or report a wrong answer."))
            return
        _pairs_list(cache, pairs)


def _pairs_list(cache: SemanticCache, pairs: Sequence[Pair]) -> None:
    frame = pd.DataFrame([(p.a, p.b, p.label, p.language) for p in pairs], columns=["Asked", "Cached", "Judged", "Language"])
    event = st.dataframe(
        frame,
        hide_index=True,
        height=min(420, 35 * (len(frame) + 1) + 2),
        key="pairs",
        on_select="rerun",
        selection_mode="single-row",
        alt="Judged pairs of questions",
    )
    rows = [row for row in event.selection.rows if row < len(pairs)]
    with st.container(horizontal=True, gap="small"):
        if st.button("Take back", key="unjudge", disabled=not rows, help="Mark a pair in the list first.") and rows:
            pair = pairs[rows[0]]
            if attempt(lambda: cache.book.remove_pair(pair.a, pair.b), "Deleting the pair") is not None:
                say("ok", "The judgement is taken back.")
        if st.button("Open in the tester", key="open-pair", disabled=not rows) and rows:
            _choose(pairs[rows[0]].a, pairs[rows[0]].b)
            st.rerun()
        st.download_button(
            "Download",
            lambda: to_bytes(pair_lines(pairs)),
            "judged-pairs.jsonl",
            "application/jsonl",
            on_click="ignore",
            help="JSON lines, as python -m rag calibrate-cache --pairs takes them.",
        )
