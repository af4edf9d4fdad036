"""A machine added on screen: what leads to it, the connection test step by step, and then its place among the machines."""

from __future__ import annotations

from typing import Any

import streamlit as st

from collectors.connection_test import StepResult
from collectors.inventory import BadInventory, from_settings
from collectors.machine_remote import try_machine
from rag.errors import RagError
from settings import SettingsError
from ui import cards, machines_view
from ui.cached import the_runtime
from ui.format import escape, plain_markdown, seconds
from ui.links import page

TEST_SECONDS = 15.0
WHAT_HAPPENS = (
    "RAG Deck logs in over SSH with a key and reads; it installs nothing there and leaves nothing running. "
    "A key that needs a passphrase belongs into the agent or into the settings, not here."
)
_TRIED = "machine-tried"


def form() -> None:
    """The form; below it the last test, and the button that adds what was tested."""
    with st.form("machine", border=False):
        entry = _fields()
        sent = st.form_submit_button("Test the connection", type="primary")
    if sent:
        with st.spinner("Testing the connection …", show_time=True):
            st.session_state[_TRIED] = entry, tried(entry)
    if _TRIED in st.session_state:
        _outcome(*st.session_state[_TRIED])


def _fields() -> dict[str, Any]:
    """What was filled in, as the settings hold it."""
    with st.container(horizontal=True, gap="small"):
        name = st.text_input("Name", key="machine-name", width=170, help="What it is called here, in history and alerts.")
        address = st.text_input(
            "Address", key="machine-address", width=230, help="A host, an alias of ~/.ssh/config, or user@host:port."
        )
        user = st.text_input("User", key="machine-user", width=130, help="Empty: as ~/.ssh/config says, else who runs RAG Deck.")
        key = st.text_input(
            "Private key",
            key="machine-key",
            width=230,
            help="A file on this server. Empty: the agent, ~/.ssh/config.",
        )
    with st.container(horizontal=True, gap="small"):
        jump = st.text_input("Jump host", key="machine-jump", width=170, help="user@host:port, several with commas between them.")
        policy = st.selectbox(
            "Unknown host key",
            ("strict", "accept-new"),
            key="machine-policy",
            width=230,
            format_func=lambda name: {"strict": "refuse, say its fingerprint", "accept-new": "accept it the first time"}[name],
            help="A key that has changed is refused in either case.",
        )
    texts = {"name": name, "address": address, "user": user, "key": key, "jump": jump}
    return {name: text.strip() for name, text in texts.items() if text and text.strip()} | {"host_key_policy": policy}


def tried(entry: dict[str, Any]) -> tuple[StepResult, ...] | str:
    """The steps of the test, or what is wrong with the fields."""
    try:
        machine = next(each for each in from_settings([entry], []).machines if each.name == entry.get("name"))
    except (BadInventory, StopIteration) as problem:
        return str(problem).partition(": ")[2] or "name is missing"
    if machine.is_local:
        return "address is missing"
    return try_machine(machine, TEST_SECONDS)


def _outcome(entry: dict[str, Any], found: tuple[StepResult, ...] | str) -> None:
    if isinstance(found, str):
        st.html(cards.note("critical", f"<strong>This cannot be a machine:</strong> {escape(found)}."))
        return
    well = machines_view.passed(found)
    total = seconds(sum(step.seconds or 0.0 for step in found))
    word = f"{entry['name']} can be read, tested in {total}" if well else f"{entry['name']} cannot be read yet"
    st.html(f'<p class="rd rd-title">{escape(word)}</p>{machines_view.steps(found)}')
    label = f"Add {plain_markdown(entry['name'])}" if well else f"Add {plain_markdown(entry['name'])} all the same"
    if st.button(label, key="machine-add", type="primary" if well else "secondary"):
        _add(entry)


def _add(entry: dict[str, Any]) -> None:
    try:
        the_runtime().add_machine(entry)
    except SettingsError as error:
        st.html(cards.note("critical", "<strong>It was not added.</strong>", *(escape(str(each)) for each in error.problems)))
    except RagError as error:
        st.html(cards.note("critical", f"<strong>It was not added: {escape(error.message)}</strong>", escape(error.next_step)))
    except ValueError as error:
        st.html(cards.note("critical", f"<strong>It was not added:</strong> {escape(error)}"))
    else:
        del st.session_state[_TRIED]
        st.switch_page(page("machine"), query_params={"name": entry["name"]})
