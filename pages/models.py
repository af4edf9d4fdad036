"""Models: what is loaded, how long loading and first runs took, who answers, and the settings in force with their origin."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

import runtime as runtime_module
import settings as settings_module
from ui import cards, figures, settings_form
from ui.cached import the_runtime
from ui.format import count, escape, seconds, value_html

runtime = the_runtime()
status = runtime.status()


def models_card() -> None:
    now = runtime.status()
    rows = [
        [
            escape(model.kind),
            f'<span class="rd-plain">{escape(model.name)}</span>',
            cards.model_state(model.state),
            escape(" · ".join(text for text in (model.device, model.precision) if text) or "–"),
            value_html(seconds(model.load_seconds), "not loaded yet"),
            value_html(seconds(model.first_run_seconds), "has not run yet"),
            count(model.runs),
            f'<span class="rd-soft">{escape(model.error or model.note or "")}</span>',
        ]
        for model in now.models
    ]
    heads = ["Kind", "Model", "State", "Device", "Load", "First run", "Runs", "Note"]
    with st.container(border=True, gap="small"):
        st.html(f'<p class="rd rd-title">{escape(title(now))}</p>')
        st.html(figures.table(heads, rows, numeric=(4, 5, 6), wrap=(1, 7)))
        st.html(f'<div class="rd rd-soft">{escape(now.llm)}</div>')


def title(now: Any) -> str:
    states = [model.state for model in now.models]
    if "failed" in states:
        return "A model could not be loaded"
    if all(state == "warm" for state in states):
        return "Every model is warm: no query waits for loading"
    return "Models are warming up" if now.warming else "Models load with the first query that needs them"


def settings_table() -> pd.DataFrame:
    masked = runtime.settings.masked()
    origins = runtime.settings.origins
    rows = []
    for row in settings_module.reference():
        value = at(masked, row.key)
        origin = origins.get(row.key) or unwritten(row.key, value)
        rows.append((row.key, "" if value is None else str(value), origin, row.variable or "", row.meaning))
    return pd.DataFrame(rows, columns=["Setting", "Value", "From", "Variable", "Meaning"])


def unwritten(key: str, value: Any) -> str:
    """Where a value comes from that no source lists: the two that only the environment can set, or the default."""
    usual = {"data_dir": str(runtime_module.ROOT / "data"), "config_file": None}
    return f"environment or .env ({key})" if key in usual and value != usual[key] else "default"


def at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


st.title("Models")
if status.store is not None:
    st.html(cards.problem_note(status.store, "Opening the passage store"))
for notice in status.notices:
    st.html(cards.note("warn", escape(notice)))
st.fragment(models_card, run_every=1.0 if status.warming else None)()
settings_form.form(runtime)
table = settings_table()
changed = table[table["From"] != "default"]
with st.container(border=True, gap="small"):
    st.html(f'<p class="rd rd-title">Settings in force: {len(changed)} changed, {len(table) - len(changed)} by default</p>')
    only = st.toggle("Changed only", key="changed", bind="query-params")
    st.dataframe(
        changed if only else table,
        hide_index=True,
        height=480,
        column_config={"Value": st.column_config.TextColumn(width=260), "Meaning": st.column_config.TextColumn(width="large")},
        alt="Settings",
    )
    st.html(
        '<div class="rd rd-soft">Environment over .env over dashboard.toml over data/edited.toml over defaults. '
        "Secrets are shown as ***.</div>"
    )
