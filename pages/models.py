"""Models: what is loaded, how long loading and first runs took, who answers, and the settings in force with their origin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st

import runtime as runtime_module
import settings as settings_module
from gpu_server.probes import Probe
from rag.errors import RagError
from ui import cards, hyde_view, models_view, settings_form
from ui.cached import the_runtime
from ui.format import escape

TESTS = {
    "embedder": "Embeds one text, past every cache, where the settings say: before anything long is started.",
    "reranker": "Scores one pair, past every cache, where the settings say.",
}
RELOAD = "Finishes what waits, drops the weights, loads them anew and runs them once. Queries wait meanwhile."
RECONNECT = "Finds out anew which model its server has, and tries it: after the server was given another model."

runtime = the_runtime()
status = runtime.status()


def models_card() -> None:
    now = runtime.status(live=True)
    with st.container(border=True, gap="small"):
        st.html(f'<p class="rd rd-title">{escape(models_view.title(now.models, now.warming))}</p>')
        st.html(models_view.table(now.models))
        st.html(f'<div class="rd rd-soft">{escape(now.llm)}</div>')


def actions_card() -> None:
    """Buttons that try a model, and that load one of this process anew; what they found stays until the next one."""
    with st.container(horizontal=True, gap="small"):
        for model in status.models:
            if model.kind == "llm":
                continue
            if st.button(f"Test {model.kind}", help=TESTS[model.kind], key=f"test-{model.kind}"):
                with st.spinner(f"Testing the {model.kind} …", show_time=True):
                    st.session_state["tested"] = model.kind, attempt(lambda kind=model.kind: runtime.test_model(kind))
            verb = "Load" if model.state == "waiting" else "Reload"
            verb, about = ("Reconnect", RECONNECT) if model.where == "http" else (verb, RELOAD)
            if st.button(f"{verb} {model.kind}", help=about, key=f"reload-{model.kind}"):
                with st.spinner(f"{verb}ing the {model.kind} …", show_time=True):
                    st.session_state["tested"] = model.kind, attempt(lambda kind=model.kind: runtime.reload_model(kind))
    if "tested" in st.session_state:
        st.html(models_view.tested(*st.session_state["tested"]))


def attempt(action: Callable[[], Probe]) -> Probe | RagError:
    try:
        return action()
    except RagError as problem:
        return problem


def settings_table() -> pd.DataFrame:
    masked = runtime.settings.masked()
    origins = runtime.settings.origins
    rows = []
    for row in settings_module.reference():
        value = at(masked, row.key)
        origin = origins.get(row.key) or models_view.unwritten(row.key, value, runtime_module.ROOT)
        rows.append((row.key, models_view.setting_text(value), origin, row.variable or "", row.meaning.replace("`", "")))
    return pd.DataFrame(rows, columns=["Setting", "Value", "From", "Variable", "Meaning"])


def at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


st.title("Models")
if status.store is not None:
    st.html(cards.store_note(status.store, status.models, "Opening the passage store"))
for notice in status.notices:
    st.html(cards.note("warn", escape(notice)))
st.fragment(models_card, run_every=2.0)()
actions_card()
settings_form.form(runtime)
hyde_view.show(runtime.hyde_history)
table = settings_table()
changed = table[table["From"] != "default"]
with st.container(border=True, gap="small"):
    st.html(f'<p class="rd rd-title">Settings in force: {len(changed)} changed, {len(table) - len(changed)} by default</p>')
    only = st.toggle("Changed only", key="changed", bind="query-params")
    st.dataframe(
        changed if only else table,
        hide_index=True,
        height=480,
        column_config={
            name: st.column_config.TextColumn(width=width)
            for name, width in {"Setting": 205, "Value": 175, "From": 145, "Variable": 190, "Meaning": 480}.items()
        },
        alt="Settings",
    )
    st.html(
        '<div class="rd rd-soft">Environment over .env over dashboard.toml over data/edited.toml over defaults. '
        "Secrets are shown as ***.</div>"
    )
