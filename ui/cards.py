"""Pieces of HTML that several pages share: notes, problems, the outcome line, passage cards, model states. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from models import ModelStatus
from rag.types import Answer, Passage, Problem, Stage
from ui.figures import rank_line
from ui.format import UNKNOWN, code_html, escape, number, percent, seconds, shortened, unknown_html
from ui.style import colour

_OUTCOMES = {
    "answered": ("ok", "Answered"),
    "no_documents": ("warn", "No relevant documents"),
    "cancelled": ("unknown", "Cancelled"),
}
_STATES = {
    "warm": ("ok", "warm"),
    "remote": ("ok", "answers"),
    "loading": ("warn", "loading"),
    "waiting": ("unknown", "waiting to load"),
    "failed": ("critical", "failed"),
    "off": ("unknown", "off"),
}


def note(severity: str, *lines: str) -> str:
    """A note with a coloured edge; `lines` are HTML."""
    body = "".join(f'<p class="rd-plain" dir="auto">{line}</p>' for line in lines if line)
    return (
        f'<div class="rd rd-note" style="{colour(severity)}" role="{"alert" if severity == "critical" else "note"}">{body}</div>'
    )


def empty(title: str, *next_steps: str) -> str:
    """What an empty view says: what is missing and what to do next. Plain texts."""
    return note("unknown", f"<strong>{escape(title)}</strong>", *(code_html(step) for step in next_steps))


def problem_note(problem: Problem, what: str | None = None) -> str:
    """What failed, where, and what to do about it. `what` names it where it is not a query, which fails in a stage."""
    where = f" in {escape(problem.stage)}" if problem.stage and what is None else ""
    at = f' at <span class="rd-mono">{escape(problem.address)}</span>' if problem.address else ""
    head = f"<strong>{escape(what or 'The query')} failed{where}</strong>{at} ({escape(problem.kind)})"
    step = f"<strong>Next:</strong> {code_html(problem.next_step)}" if problem.next_step else ""
    return note("critical", head, escape(problem.message), step)


def store_note(problem: Problem, models: Iterable[ModelStatus], doing: str) -> str:
    """Why the passage store cannot be used; it names the embedder where that is what did not answer."""
    place = None if problem.address is None else problem.address.rpartition("://")[2]
    asked = any(model.kind == "embedder" and model.address and model.address.rpartition("://")[2] == place for model in models)
    return problem_note(problem, "Reaching the embedder" if asked else doing)


def degraded_note(stages: Iterable[Stage]) -> str:
    """What worked with less than was asked for; empty when everything worked."""
    lines = [f"<strong>{escape(stage.stage)}</strong>: {escape(stage.degraded)}" for stage in stages if stage.degraded]
    return note("warn", *lines) if lines else ""


def state_mark(severity: str, text: str, title: str = "") -> str:
    """A dot and a word; the dot is hollow where nothing is known, so that colour is not the only sign."""
    hollow = " hollow" if severity == "unknown" else ""
    hover = f' title="{escape(title)}"' if title else ""
    return (
        f'<span class="rd-nowrap" style="{colour(severity)}"{hover}><span class="rd-dotmark{hollow}"></span>{escape(text)}</span>'
    )


def model_state(state: str) -> str:
    severity, word = _STATES.get(state, ("unknown", state))
    return state_mark(severity, word)


# -------------------------------------------------------------------------------------------------------------- outcome


def outcome_words(answer: Answer) -> tuple[str, str]:
    """(severity, words)."""
    if answer.outcome == "failed":
        return "critical", f"Failed in {answer.error.stage}" if answer.error and answer.error.stage else "Failed"
    return _OUTCOMES.get(answer.outcome, ("unknown", answer.outcome))


def outcome_line(answer: Answer) -> str:
    """`9.76 s · Answered · cold: embed · hyde 3.31 s │ embed 20 ms │ … generate 5.90 s (TTFT 410 ms, 46.1 tok/s)`."""
    severity, words = outcome_words(answer)
    cold = [stage.stage for stage in answer.stages if stage.cold]
    parts = "".join(_stage_part(stage, answer) for stage in answer.stages if stage.spans or stage.seconds)
    return (
        f'<div class="rd rd-head"><span class="rd-total">{seconds(answer.total_seconds)}</span>'
        f'<span class="rd-state">{state_mark(severity, words)}</span>'
        f'<span class="rd-soft rd-nowrap">cold: {escape(", ".join(cold) or "none")}</span>{parts}</div>'
    )


def _stage_part(stage: Stage, answer: Answer) -> str:
    details: list[str] = []
    if stage.split.network:
        details.append(f"net {seconds(stage.split.network)}")
    if stage.stage == "generate":
        if answer.ttft_seconds is not None:
            details.append(f"TTFT {seconds(answer.ttft_seconds)}")
        if answer.tokens.per_second is not None:
            details.append(f"{number(answer.tokens.per_second)} tok/s")
    more = f' <span class="rd-soft">({", ".join(details)})</span>' if details else ""
    swatch = f'<span class="rd-swatch" style="{colour(stage.stage)}"></span>'
    return f'<span class="rd-part">{swatch}{stage.stage} {seconds(stage.seconds)}{more}</span>'


def live_line(elapsed: float, doing: str) -> str:
    """The outcome line of a query that is still running."""
    return (
        f'<div class="rd rd-head"><span class="rd-total">{seconds(elapsed)}</span>'
        f'<span class="rd-state">{state_mark("unknown", doing)}</span></div>'
    )


def waterfall_title(answer: Answer) -> str:
    """A sentence: which stage took most of the time."""
    longest = max(answer.stages, key=lambda stage: stage.seconds, default=None)
    if longest is None or not answer.total_seconds or not longest.seconds:
        return "Where the time went"
    cold = ", most of it loading the model" if longest.split.load > longest.seconds / 2 else ""
    name = "HyDE" if longest.stage == "hyde" else longest.stage.capitalize()
    return f"{name} took {percent(longest.seconds / answer.total_seconds)} of the time{cold}"


# ------------------------------------------------------------------------------------------------------------- passages


def passage_cards(passages: Sequence[Passage], cited: Iterable[int] = ()) -> str:
    """Kept passages, numbered as the answer cites them (`passage-1` is what a citation links to)."""
    known = set(cited)
    cards = "".join(_card(passage, position, position in known) for position, passage in enumerate(passages, 1))
    return f'<div class="rd rd-passages">{cards}</div>'


def _card(passage: Passage, position: int, cited: bool) -> str:
    place = " · ".join(text for text in (passage.source, passage.location) if text)
    used = '<span class="rd-soft rd-nowrap">cited</span>' if cited else ""
    text = passage.text or "The text was not kept (traces.capture_content is off)."
    return (
        f'<details class="rd-passage" id="passage-{position}"><summary>'
        f'<div class="rd-phead"><span class="rd-number">{position}</span>'
        f'<span class="rd-ptitle" dir="auto">{escape(passage.title or passage.source)}</span>{used}</div>'
        f'<div class="rd-soft rd-plain" dir="auto">{escape(place)}</div><div class="rd-ranks">{_ranks(passage)}</div>'
        f'<div class="rd-excerpt" dir="auto">{escape(shortened(text, 240))}</div></summary>'
        f'<div class="rd-ptext" dir="auto">{escape(text)}</div></details>'
    )


def _ranks(passage: Passage) -> str:
    line = rank_line(passage)
    if not line:
        return unknown_html("no rank was recorded for this passage")
    return "".join(
        f'<span title="rank (score); {UNKNOWN} means that this route did not find it">{escape(part)}</span>'
        for part in line.split(" · ")
    )


def meter(ratio: float, name: str = "search") -> str:
    """A quiet progress bar in a stage's colour."""
    width = min(100.0, max(0.0, ratio * 100))
    bar = f'<i style="width:{width:.1f}%"></i>'
    return f'<div class="rd rd-meter" role="progressbar" aria-valuenow="{width:.0f}" style="{colour(name)}">{bar}</div>'
