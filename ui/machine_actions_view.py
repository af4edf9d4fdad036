"""What may be restarted on a machine, what came of it, and the lines of the audit log, as HTML. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, tzinfo

from collectors.audit import Action
from collectors.restart import CONTAINER, Restarted
from collectors.restart_powers import Obstacle
from ui import cards, figures
from ui.format import code_html, escape, parse_time, seconds, time_html, unknown_html

_OUTCOMES: Mapping[str, tuple[str, str]] = {
    "done": ("ok", "done"),
    "failed": ("critical", "failed"),
    "refused": ("warn", "refused"),
    "asked": ("unknown", "not ended"),
}


def question(name: str, machine: str) -> str:
    """What happens when it is confirmed."""
    what = f"container {name.removeprefix(CONTAINER)}" if name.startswith(CONTAINER) else f"unit {name}"
    return (
        f'<div class="rd rd-plain">The {escape(what)} on <strong>{escape(machine)}</strong> is stopped and started. '
        "What it is doing now is lost, and a model server loads its model again. A line is written to the audit log.</div>"
    )


def hindrances(obstacles: Sequence[Obstacle]) -> list[str]:
    """What keeps restarts from working here, once each: before anybody clicks."""
    found: dict[tuple[str, str, bool], list[str]] = {}
    for each in obstacles:
        found.setdefault((each.text, each.next_step, each.certain), []).append(each.name)
    notes = []
    for (text, step, certain), names in found.items():
        what = f"{', '.join(names)}: {'cannot be restarted from here' if certain else 'a restart may be refused'}."
        lines = f"<strong>{escape(what)}</strong> {escape(text)}", f"<strong>Next:</strong> {escape(step)}"
        notes.append(cards.note("warn" if certain else "unknown", *lines))
    return notes


def outcome(done: Restarted, machine: str) -> str:
    """How a restart ended, with what the machine said."""
    if done.ok:
        return cards.note(
            "ok", f"<strong>{escape(done.name)} on {escape(machine)} was restarted</strong> in {seconds(done.seconds)}."
        )
    return cards.note(
        "critical",
        f"<strong>{escape(done.name)} on {escape(machine)} was not restarted:</strong> {escape(done.text)}",
        f"<strong>Next:</strong> {code_html(done.next_step)}" if done.next_step else "",
    )


def audit(actions: Sequence[Action], now: datetime, zone: tzinfo) -> str:
    """The actions, the newest first."""
    if not actions:
        return '<div class="rd rd-soft">Nothing was restarted here yet.</div>'
    rows = [
        [
            time_html(parse_time(action.at), now, zone),
            escape(action.who) if action.who else unknown_html("the browser's address was not told"),
            f'<span class="rd-plain">{escape(action.what)}</span>',
            _outcome(action),
        ]
        for action in actions
    ]
    return figures.table(["When", "Asked for by", "What", "Outcome"], rows, wrap=(2, 3))


def _outcome(action: Action) -> str:
    severity, word = _OUTCOMES.get(action.outcome, ("unknown", action.outcome))
    hover = "it still runs, or RAG Deck ended before it did" if action.outcome == "asked" else ""
    said = f'<div class="rd-plain rd-small" dir="auto">{escape(action.text)}</div>' if action.text else ""
    return cards.state_mark(severity, word, hover) + said
