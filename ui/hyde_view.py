"""What HyDE changed, by kind of question, and what `auto` makes of it: a card. Knows no page and reads nothing itself."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from rag.hyde_history import CASES, ENOUGH_CASES, EXPLORE_ONE_IN, SKIP_BELOW, ClassRow, HydeHistory
from ui import cards, figures
from ui.format import count, escape, plural
from ui.gauges import card_title

HEADS = ("Questions", "Changed", "95 %", "Auto")
WIDE = 2  # classes of so many signals at most are shown at once, narrower ones on demand
MOST_ROWS = 40
FEWEST = 5  # a kind with fewer questions says nothing yet

_ACTIONS = {"skip": "skips", "run": "runs", "learn": "learns"}
_MEANINGS = {
    "skip": "HyDE rarely changes anything for such questions",
    "run": "HyDE changes enough to be worth its time, or too little is known to say that it does not",
    "learn": f"fewer than {ENOUGH_CASES} such questions are known: a wider kind decides",
}


RULE = (
    f"Auto skips HyDE where at least {ENOUGH_CASES} such questions are known and the share whose first five passages HyDE changed"
    f" is, with 95 % confidence, below {100 * SKIP_BELOW:.0f} %. The narrowest kind with enough questions decides; 1 question in"
    f" {EXPLORE_ONE_IN} is tried all the same. Counted are different questions among the last {CASES:,} with a known effect."
    f" Kinds with fewer than {FEWEST} are not shown. A change is not always an improvement."
)


def show(history: HydeHistory) -> None:
    """The card. Reads the stored queries when none have been read yet."""
    history.refresh_once()
    rows = history.table()
    with st.container(border=True, gap="small"):
        st.html(card_title(title(rows)))
        if history.problem:
            st.html(cards.note("warn", f"<strong>The stored queries could not be read.</strong> {escape(history.problem)}"))
        if not rows:
            st.html(
                cards.empty(
                    "It is not known yet what HyDE changes.",
                    "Ask with HyDE on auto and a language model configured; with HyDE on, llm.shadow_ratio above 0 measures it.",
                )
            )
            return
        wide, narrow = [row for row in rows if row.breadth <= WIDE], [row for row in rows if row.breadth > WIDE and _tells(row)]
        st.html(table([row for row in wide if row.breadth == 0 or _tells(row)][:MOST_ROWS]))
        if narrow:
            with st.expander(f"Narrower kinds of questions ({len(narrow):,})", key="hyde-narrow"):
                st.html(table(narrow[:MOST_ROWS]))
                if len(narrow) > MOST_ROWS:
                    st.html(f'<div class="rd rd-soft rd-small">The {MOST_ROWS} with the most questions are shown.</div>')
        st.html(f'<div class="rd rd-soft rd-small">{escape(RULE)}</div>')


def title(rows: Sequence[ClassRow]) -> str:
    """A sentence with the share over all questions."""
    whole = next((row for row in rows if row.breadth == 0), None)
    if whole is None:
        return "What HyDE changes"
    return f"HyDE changed the first passages of {count(whole.changed)} of {plural(whole.cases, 'question')}"


def table(rows: Sequence[ClassRow]) -> str:
    return figures.table(HEADS, [_row(row) for row in rows], numeric=(1, 2), wrap=(0,))


def _tells(row: ClassRow) -> bool:
    return row.cases >= FEWEST


def _row(row: ClassRow) -> list[str]:
    return [
        escape(row.label[:1].upper() + row.label[1:]),
        f"{count(row.changed)} of {count(row.cases)}",
        f"{100 * row.low:.0f}–{100 * row.high:.0f} %",
        f'<span title="{escape(_MEANINGS[row.action])}">{_ACTIONS[row.action]}</span>',
    ]
