"""A machine added, changed or removed on screen: what leads to it, the connection test step by step, and then its place.

Only what was added on a page can be changed on one; `restart` cannot be set here at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from collectors.connection_test import STEPS, StepResult, Told
from collectors.errors import Step
from collectors.inventory import BadInventory, from_settings
from collectors.machine_remote import try_machine
from rag.errors import RagError
from settings import SettingsError
from ui import cards, machines_view
from ui.cached import the_runtime
from ui.format import code_html, escape, plain_markdown, seconds
from ui.links import page

TEST_SECONDS = 15.0
WHAT_HAPPENS = (
    "RAG Deck logs in over SSH with a key and reads; it installs nothing there and leaves nothing running. "
    "A key that needs a passphrase belongs into the agent or into the settings, not here."
)
UNTOUCHED = "Nothing is done on the machine."
POLICIES = {"strict": "refuse, say its fingerprint", "accept-new": "accept it the first time"}
# What the form asks for; an entry keeps whatever else somebody wrote into edited.toml.
FIELDS = ("name", "address", "user", "key", "jump", "units", "host_key_policy")
LOCAL_STEPS: tuple[Step, ...] = ("shell", "command")

Entry = Mapping[str, Any]


def form(entry: Entry | None = None) -> None:
    """The form, for a new machine or to change `entry`; below it the last test, and the button that saves what was tested."""
    prefix = "machine" if entry is None else "changed"
    with st.form(prefix, border=False):
        filled = _fields(prefix, entry or {})
        sent = st.form_submit_button("Test the connection", type="primary")
    if sent:
        st.session_state[f"{prefix}-tried"] = filled, tried(filled)
    if f"{prefix}-tried" in st.session_state:
        _outcome(prefix, *st.session_state[f"{prefix}-tried"])


def _fields(prefix: str, entry: Entry) -> dict[str, Any]:
    """What was filled in, as the settings hold it. The name of a machine that is there stays: its history and alerts go by it."""
    text = _Texts(prefix, entry)
    with st.container(horizontal=True, gap="small"):
        text.ask("name", "Name", 170, "What it is called here, in history and alerts.", disabled=bool(entry))
        text.ask("address", "Address", 230, "A host, an alias of ~/.ssh/config, or user@host:port.")
        text.ask("user", "User", 130, "Empty: as ~/.ssh/config says, else who runs RAG Deck.")
        text.ask("key", "Private key", 230, "A file on this server. Empty: the agent, ~/.ssh/config.")
    with st.container(horizontal=True, gap="small"):
        text.ask("jump", "Jump host", 170, "user@host:port, several with commas between them.")
        text.ask("units", "Units", 230, "systemd units to list besides those that failed, with commas between them.")
        policy = st.selectbox(
            "Unknown host key",
            tuple(POLICIES),
            index=list(POLICIES).index(entry.get("host_key_policy", "strict")),
            key=f"{prefix}-policy",
            width=230,
            format_func=lambda name: POLICIES[name],
            help="A key that has changed is refused in either case.",
        )
    return {name: value for name, value in entry.items() if name not in FIELDS} | text.given() | {"host_key_policy": policy}


class _Texts:
    """Text fields of one form, and what was typed into them."""

    def __init__(self, prefix: str, entry: Entry) -> None:
        self._prefix, self._entry = prefix, entry
        self._typed: dict[str, str] = {}

    def ask(self, name: str, label: str, width: int, meaning: str, *, disabled: bool = False) -> None:
        value = self._entry.get(name, "")
        shown = value if isinstance(value, str) else ", ".join(value)
        typed = st.text_input(label, shown, key=f"{self._prefix}-{name}", width=width, help=meaning, disabled=disabled)
        self._typed[name] = typed.strip()

    def given(self) -> dict[str, Any]:
        found: dict[str, Any] = {name: text for name, text in self._typed.items() if text}
        if "units" in found:
            found["units"] = [each.strip() for each in found["units"].split(",") if each.strip()]
        return found


def tried(entry: Entry) -> tuple[StepResult, ...] | str:
    """The steps of the test, or what is wrong with the fields."""
    try:
        machine = next(each for each in from_settings([entry], []).machines if each.name == entry.get("name"))
    except (BadInventory, StopIteration) as problem:
        return str(problem).partition(": ")[2] or "name is missing"
    if machine.is_local:
        return "address is missing"
    return tested(lambda told: try_machine(machine, TEST_SECONDS, told))


def tested(test: Callable[[Told], tuple[StepResult, ...]], order: Sequence[Step] = STEPS) -> tuple[StepResult, ...]:
    """Run a connection test with each step shown as soon as it is over; at its end the place is empty again."""
    over: list[StepResult] = []
    with st.spinner("Testing the connection …", show_time=True):
        place = st.empty()

        def told(step: StepResult) -> None:
            over.append(step)
            place.html(machines_view.steps_so_far(over, order))

        place.html(machines_view.steps_so_far(over, order))
        found = test(told)
        place.empty()
    return found


def _outcome(prefix: str, entry: Entry, found: tuple[StepResult, ...] | str) -> None:
    if isinstance(found, str):
        st.html(cards.note("critical", f"<strong>This cannot be a machine:</strong> {escape(found)}."))
        return
    well = machines_view.passed(found)
    total = seconds(sum(step.seconds or 0.0 for step in found))
    word = f"{entry['name']} can be read, tested in {total}" if well else f"{entry['name']} cannot be read yet"
    st.html(f'<p class="rd rd-title">{escape(word)}</p>{machines_view.steps(found)}')
    verb = "Add" if prefix == "machine" else "Save"
    label = f"{verb} {plain_markdown(entry['name'])}{'' if well else ' all the same'}"
    if st.button(label, key=f"{prefix}-add", type="primary" if well else "secondary"):
        _save(prefix, entry)


def _save(prefix: str, entry: Entry) -> None:
    if _kept("It was not saved", lambda: the_runtime().add_machine(entry)):
        del st.session_state[f"{prefix}-tried"]
        st.switch_page(page("machine"), query_params={"name": entry["name"]})


def removal(name: str) -> None:
    """The button that removes a machine, behind a second one."""
    with st.popover(f"Remove {plain_markdown(name)}", key="remove"):
        st.html(f'<div class="rd rd-plain">{escape(name)} is watched no more, and its alerts end. {UNTOUCHED}</div>')
        forget = st.checkbox("Delete its history too", key="remove-history", help="Otherwise it is kept for up to 90 days.")
        if st.button("Remove it", key="remove-now", type="primary") and _kept(
            "It was not removed", lambda: the_runtime().remove_machine(name, forget=forget)
        ):
            st.toast(f"{plain_markdown(name)} was removed.")
            st.switch_page(page("machines"), query_params={})


def _kept(failure: str, change: Callable[[], None]) -> bool:
    """Make a change of the settings; False, with what is wrong said, when it could not be."""
    try:
        change()
    except SettingsError as error:
        st.html(cards.note("critical", f"<strong>{failure}.</strong>", *(escape(str(each)) for each in error.problems)))
    except RagError as error:
        st.html(cards.note("critical", f"<strong>{failure}: {escape(error.message)}</strong>", code_html(error.next_step)))
    except ValueError as error:
        st.html(cards.note("critical", f"<strong>{failure}:</strong> {escape(error)}"))
    else:
        return True
    return False
