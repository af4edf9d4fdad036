"""The one style sheet of our own HTML and the colours of stages and severities. Knows nothing of data.

`light-dark()` follows Streamlit's theme, because Streamlit sets `color-scheme` on the app: a switch of theme needs no rerun.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

# (light, dark). Lightness alternates along the order, so that neighbours differ without hue as well.
STAGE_COLOURS: Mapping[str, tuple[str, str]] = {
    "cache": ("#7d8590", "#a0a7b0"),
    "hyde": ("#9160d8", "#b794f4"),
    "embed": ("#1d5fb4", "#4c93ee"),
    "search": ("#2aa79b", "#4fd1c5"),
    "rerank": ("#c47f00", "#e5a93b"),
    "generate": ("#4a8a22", "#86c75c"),
}
SEVERITY_COLOURS: Mapping[str, tuple[str, str]] = {
    "ok": ("#0b7a53", "#3fbf8f"),
    "warn": ("#b4460c", "#ff9a5c"),
    "critical": ("#c01f3f", "#ff6b81"),
    "unknown": ("#868d96", "#8d949d"),
}


def _variables() -> str:
    colours = {**STAGE_COLOURS, **SEVERITY_COLOURS}
    pairs = (f"--rd-{name}: light-dark({light}, {dark});" for name, (light, dark) in colours.items())
    return ":root { " + " ".join(pairs) + " }"


@cache
def stylesheet() -> str:
    """The `<style>` element for `st.html`, to be sent once a run."""
    rules = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    return f"<style>{_variables()}{rules}</style>"


def colour(name: str) -> str:
    """An inline declaration that gives an element the colour of a stage or severity; unknown names are grey."""
    known = name if name in STAGE_COLOURS or name in SEVERITY_COLOURS else "unknown"
    return f"--c:var(--rd-{known})"
