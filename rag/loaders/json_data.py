"""JSON and JSON Lines to lines of text: arrays of objects as rows, everything else as `path: value`. Knows no schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rag.loaders.document import SEPARATOR, LoadError, Parsed, Section, collect
from rag.loaders.rows import Line, numbered, sections
from rag.loaders.text import decode

MAX_JSON_BYTES = 50_000_000  # it is held as objects, at five times its size, and twenty at worst
MAX_DEPTH = 200


def read_json(name: str, data: bytes) -> Parsed:
    if len(data) > MAX_JSON_BYTES:
        raise LoadError(
            name, f"too large for JSON ({len(data):,} bytes; the limit is {MAX_JSON_BYTES:,})", "Save it as JSON Lines."
        )
    text, notes = decode(name, data)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as problem:
        if problem.msg == "Extra data":  # several values: JSON Lines under the name of JSON
            return read_json_lines(name, data)
        raise LoadError(name, f"is broken JSON ({problem})", "Repair it; it may be cut off.") from problem
    except RecursionError as problem:
        raise LoadError(name, "is JSON that is nested too deep", "Flatten it.") from problem
    title = value.get("title") if isinstance(value, Mapping) else None
    return Parsed(title if isinstance(title, str) else None, collect(name, _sections(value, ())), notes)


def read_json_lines(name: str, data: bytes) -> Parsed:
    """One value a line; lines that are broken are left out and told, unless they are most."""
    text, notes = decode(name, data)
    broken: list[int] = []
    good = 0

    def lines() -> Iterator[Line]:
        nonlocal good
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                broken.append(number)
                continue
            good += 1
            yield number, row(value)

    found = collect(name, sections(lines(), lambda first, last: numbered("line", first, last)))
    if len(broken) > good:
        raise LoadError(name, f"is no JSON Lines: line {broken[0]} is broken, and {len(broken) - 1} more", "Repair it.")
    if broken:
        notes += (f"lines that are no JSON were left out: {', '.join(map(str, broken[:20]))}{'…' if len(broken) > 20 else ''}",)
    return Parsed(None, found, notes)


def row(value: Any) -> str:
    """One object on one line, nested names as paths: `name: Ada; address.city: Haifa; tags[0]: new`."""
    return "; ".join(f"{path}: {leaf}" if path else leaf for path, leaf in _leaves(value, "", 0))


def _leaves(value: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(value, list) and all(isinstance(inner, str | int | float) for inner in value):
        yield from [(path, ", ".join(map(_scalar, value)))] if value else []
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{index}]", depth + 1)
    elif value is not None and (text := _scalar(value)):
        yield path, text


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return " ".join(str(value).split())


def _sections(value: Any, path: tuple[str, ...]) -> Iterator[Section]:
    """Rows for each array of objects, `path: value` lines for what lies between them; the location is the path."""
    where = SEPARATOR.join(path)
    if len(path) > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, list):
        lines = ((number, row(item)) for number, item in enumerate(value, start=1))
        yield from sections(lines, lambda first, last: ", ".join(filter(None, (where, numbered("item", first, last)))))
    elif isinstance(value, Mapping):
        held: list[str] = []
        for key, inner in value.items():
            if _is_large(inner):
                yield from _lines(held, where)
                held = []
                yield from _sections(inner, (*path, str(key)))
            else:
                held += [f"{place}: {leaf}" for place, leaf in _leaves(inner, ".".join((*path, str(key))), 0)]
        yield from _lines(held, where)
    else:
        yield Section(_scalar(value), where or None, "rows")


def _is_large(value: Any) -> bool:
    """Whether a value gets sections of its own: it is or holds an object."""
    return isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value))


def _lines(lines: list[str], where: str) -> Iterator[Section]:
    yield from (Section(item.text, where or None, "rows") for item in sections(enumerate(lines), lambda first, last: ""))
