"""Where the pages are, for links between them."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

PAGES = Path(__file__).resolve().parent.parent / "pages"


def page(name: str) -> str:
    """The file of a page, as `st.Page`, `st.page_link` and `st.switch_page` take it."""
    return str(PAGES / f"{name}.py")


def query_link(query_id: str, label: str) -> None:
    """A link to a query's own page, within the session."""
    st.page_link(page("query"), label=label, query_params={"id": query_id})
