"""Every function of `ui` that makes HTML of what was read, answered or measured: no text inside becomes markup.

The functions are found by their types, and what they are given is built from its types with a hostile text wherever a text can
stand; so a new one is tried without an edit here. What is given to them as a plain text may be HTML already, and is harmless here.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import importlib
import inspect
import itertools
import types
import typing
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, tzinfo
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tests.security.payloads import MARK, PAYLOAD
from tests.security.world import ROOT
from ui.format import escape

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PLAIN = "plain words"
HOSTILE = f"\"'><img src=x data-planted=1>{PAYLOAD}"  # what is shortened holds a whole element too
WORDS = ("x", "liveness")  # plain texts that are given; some functions know only their own
DEEPEST = 12
# What these take is HTML already, or a name out of a list of ours; whoever calls them escapes.
TAKE_HTML = {
    "figures.table": "cells are HTML",
    "machine_view._line": "values are HTML",
    "cards._stage_part": "stages are ours",
    "cards.outcome_line": "stages are ours",
    "compare_view.others_html": "what is compared is ours",
    "latency_view._stage_row": "stages are ours",
    "latency_view.outlier_table": "stages are ours",
    "latency_view.stage_table": "stages are ours",
    "readings_figures._split_row": "stages are ours",
    "readings_figures.timeline": "stages are ours",
}
# Passages, questions, processes, services, files, machines, findings: some that must be among those that are tried.
TRIED = {
    "cards.passage_cards",
    "cards.problem_note",
    "query_list.rows_html",
    "machine_view.processes",
    "machine_view.faults",
    "gpu_view.processes",
    "services_view.header",
    "services_view.probe",
    "overview_view.services",
    "overview_view.needs",
    "ingest_view._file_row",
    "ingest_view.history",
    "inspect_figures.stored_passages",
    "readiness_view.checks",
    "alerts_view.past",
    "access_view.tokens",
    "findings_view.card",
    "cache_figures.entries_table",
    "experiments_view.list_table",
}


class NoSample(Exception):
    """No value of this type is made here."""


class Sampler:
    """Values of types, with `text` wherever a text can be; of the words that may stand somewhere, the one at `pick`. Raises
    NoSample."""

    def __init__(self, text: str, pick: int) -> None:
        self._pick = pick
        self._simple = {str: text, object: text, Any: text, int: 1, float: 0.5, bool: True, type(None): None}
        self._simple |= {bytes: b"x", datetime: NOW, tzinfo: UTC, Path: Path("/x/a.md")}

    def of(self, kind: Any, depth: int = 0) -> Any:
        if depth > DEEPEST:
            raise NoSample(kind)
        if kind in self._simple:
            return self._simple[kind]
        if inspect.isclass(kind) and issubclass(kind, enum.Enum):
            return next(iter(kind))
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if inner:
            return self._generic(kind, origin, inner, depth + 1)
        if inspect.isclass(kind) and (dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")):
            return self._object(kind, {}, depth + 1)
        raise NoSample(kind)

    def _generic(self, kind: Any, origin: Any, inner: tuple[Any, ...], depth: int) -> Any:
        if origin in (typing.Union, types.UnionType):
            return self.of(next(each for each in inner if each is not type(None)), depth)
        if origin is typing.Literal:
            return inner[self._pick]
        if origin is typing.Annotated:
            return self.of(inner[0], depth)
        if origin in (dict, collections.abc.Mapping):
            return {self.of(inner[0], depth): self.of(inner[1], depth)}
        if origin is tuple:
            return tuple(self.of(each, depth) for each in inner if each is not Ellipsis)
        if origin in (list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection):
            return [self.of(inner[0], depth)]
        if origin in (set, frozenset, collections.abc.Set):
            return {self.of(inner[0], depth)}
        if dataclasses.is_dataclass(origin):
            return self._object(origin, dict(zip(origin.__parameters__, inner, strict=True)), depth)
        raise NoSample(kind)

    def _object(self, kind: type, variables: dict[Any, Any], depth: int) -> Any:
        hints = typing.get_type_hints(kind)
        names = kind._fields if hasattr(kind, "_fields") else [field.name for field in dataclasses.fields(kind) if field.init]
        values = {}
        for name in names:
            hint = variables.get(hints[name], hints[name])
            values[name] = self.of(next((variables[each] for each in typing.get_args(hint) if each in variables), hint), depth)
        try:
            return kind(**values)
        except (TypeError, ValueError) as problem:
            raise NoSample(kind) from problem


class Elements(HTMLParser):
    """What a browser would make of it: elements that only PAYLOAD can have made, and the text that is left, hovers included."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.planted: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        targets = [value or "" for name, value in attrs if name in ("href", "src", "action")]
        if (
            tag in ("script", "iframe", "img", "link", "meta")
            or any(name.startswith("on") or name == "data-planted" for name, _ in attrs)
            or any(target.strip().lower().startswith("javascript:") for target in targets)
        ):
            self.planted.append(self.get_starttag_text() or tag)
        self.text += "".join(value or "" for _, value in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def functions() -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    """(module and name, function, types of its arguments) of those of `ui` that give a text or several."""
    for path in sorted((ROOT / "ui").glob("*.py")):
        if path.stem in ("frame", "__init__"):  # the frame is the app: importing it runs it
            continue
        module = importlib.import_module(f"ui.{path.stem}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ != module.__name__:
                continue
            try:
                hints = typing.get_type_hints(function)
            except (NameError, TypeError):  # a type that is imported for the type checker only
                continue
            if hints.pop("return", None) in (str, list[str]) and hints:
                yield f"{path.stem}.{name}", function, hints


def made(function: Callable[..., Any], hints: dict[str, Any], text: str, pick: int) -> str | None:
    """What it gives for this text; None where it cannot be given one: a type that is not made here, a key that it does not know."""
    sampler = Sampler(text, pick)
    for word in WORDS:
        try:
            values = {name: word if hint in (str, str | None) else sampler.of(hint) for name, hint in hints.items()}
            if text not in str(values) and repr(text)[1:-1] not in str(values):
                return None
            given = function(**values)
        except (NoSample, LookupError, TypeError, ValueError, AttributeError, StopIteration, AssertionError):
            continue
        return given if isinstance(given, str) else "".join(str(part) for part in given)
    return None


def test_no_text_in_what_is_shown_becomes_markup() -> None:
    wrong: dict[str, str] = {}
    shown: set[str] = set()
    for (name, function, hints), pick in itertools.product(functions(), (0, -1)):
        plain, hostile = made(function, hints, PLAIN, pick), made(function, hints, HOSTILE, pick)
        if plain is None or hostile is None or "<" not in plain:  # the last: a text that its caller escapes
            continue
        found = Elements(hostile)
        if found.planted and name not in TAKE_HTML:
            wrong[name] = found.planted[0]
        if MARK in found.text:
            shown.add(name)
    assert wrong == {}
    assert shown >= TRIED, TRIED - shown
    assert len(shown) > 100


def test_the_look_at_markup_finds_it() -> None:
    assert len(Elements(PAYLOAD).planted) >= 4
    assert Elements(f'<p title="{escape(PAYLOAD)}">{escape(PAYLOAD)}</p>').planted == []
    assert Elements(f"<p title='{PAYLOAD}'>x</p>").planted, "out of an attribute too"
