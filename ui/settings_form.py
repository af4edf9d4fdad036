"""The settings that can be changed on screen: a form of what differs, saved to data/edited.toml, in force with the next query."""

from __future__ import annotations

from typing import Any

import streamlit as st

from rag.errors import RagError
from runtime import CHANGEABLE, Runtime
from settings import SettingsError, reference
from ui import cards
from ui.format import code_html, escape

_CHOICES = {"llm.default_hyde": ("off", "on", "auto")}


def form(runtime: Runtime) -> None:
    """Show the form; on saving, write what was changed and run again."""
    rows = [row for row in reference() if row.key in CHANGEABLE]
    with st.expander("Change what the next query does"), st.form("settings", border=False):
        with st.container(horizontal=True, gap="small"):
            given = {row.key: _field(runtime, row.key, row.meaning) for row in rows if not row.key.endswith("_prompt")}
        given |= {row.key: _field(runtime, row.key, row.meaning) for row in rows if row.key.endswith("_prompt")}
        saved = st.form_submit_button("Save", type="primary")
        st.html('<div class="rd rd-soft">An emptied field goes back to its default. Kept in data/edited.toml.</div>')
    if saved:
        _save(runtime, {key: value for key, value in given.items() if value != current(runtime, key)})


def current(runtime: Runtime, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(runtime.settings, section), name)


def decided_elsewhere(runtime: Runtime, key: str) -> str | None:
    """The stronger source that decides this key, or None when the page may."""
    origin = runtime.settings.origins.get(key)
    return None if origin is None or origin == "edited.toml" else origin


def _field(runtime: Runtime, key: str, meaning: str) -> Any:
    value, winner = current(runtime, key), decided_elsewhere(runtime, key)
    options: dict[str, Any] = {"key": f"setting-{key}", "disabled": winner is not None}
    options["help"] = f"{meaning} Decided by {winner}." if winner else meaning
    options["width"] = "stretch" if key.endswith("_prompt") else 230
    if key in _CHOICES:
        return st.selectbox(key, _CHOICES[key], index=_CHOICES[key].index(value), **options)
    if isinstance(value, bool | int | float):
        return st.number_input(key, value=value, **options)
    if key.endswith("_prompt"):
        return st.text_area(key, value=value, height=140, **options) or None
    return st.text_input(key, value=value or "", **options).strip() or None


def _save(runtime: Runtime, changes: dict[str, Any]) -> None:
    if not changes:
        st.toast("Nothing was changed.")
        return
    try:
        runtime.change(changes)
    except SettingsError as error:
        st.html(
            cards.note("critical", "<strong>Nothing was saved.</strong>", *(escape(str(problem)) for problem in error.problems))
        )
    except RagError as error:
        st.html(cards.note("critical", f"<strong>{escape(error.message)}</strong>", code_html(error.next_step)))
    else:
        st.toast(f"Saved: {', '.join(sorted(changes))}. In force with the next query.")
        st.rerun()
