"""Reading and writing for settings.py: text files, `.env`, TOML with line numbers, problems worded without secrets.

Does not know which settings exist. Private to settings.py, which stays the only reader of environment and files.
"""

from __future__ import annotations

import difflib
import io
import os
import re
import stat
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import tomli_w
from dotenv.parser import parse_stream

MAX_FILE_BYTES = 200_000
_SHOWN_CHARS = 60
_LONGEST_SHOWN_WORD = 20


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the settings. `found` and `expected` never hold a secret's value; `line` counts from 1."""

    place: str
    key: str | None
    found: str
    expected: str
    line: int | None = None
    hint: str | None = None

    def __str__(self) -> str:
        place = f"{self.place}, line {self.line}" if self.line else self.place
        key = f"{self.key}: " if self.key and not self.place.endswith(self.key) else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{place}: {key}found {self.found}, expected {self.expected}{hint}"


class SettingsError(Exception):
    """The settings cannot be used; `problems` lists everything that is wrong, not only the first thing."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        count = len(self.problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        return f"{count} problem{'' if count == 1 else 's'} in the settings:\n{lines}"


@dataclass(frozen=True)
class Entry:
    """A value and where it was written. The value may be a secret, so it is kept out of repr."""

    value: object = field(repr=False)
    origin: str
    place: str
    line: int | None = None
    hint: str | None = None

    def problem(self, key: str | None, found: str, expected: str, hint: str | None = None) -> Problem:
        hints = "; ".join(text for text in (hint, self.hint) if text)
        return Problem(self.place, key, found, expected, self.line, hints or None)


def masked_text(text: str) -> str:
    """A URL without what may be secret in it: userinfo and query become `***`. Other text comes back as it is."""
    if not re.match(r"^[A-Za-z][\w+.-]*://\S+$", text):
        return text
    # Greedy up to the last "@": a password may itself hold "/" or "@" that nobody escaped.
    text = re.sub(r"^([^:]+://).*@", r"\1***@", text)
    return re.sub(r"[?#].*$", "?***", text)


def shown(value: object) -> str:
    """A value as an error may quote it: URLs masked, long words (a key pasted into the wrong field) only described."""
    if not isinstance(value, (str, bool, int, float)):
        return f"a {type(value).__name__}"
    text = masked_text(value) if isinstance(value, str) else str(value)
    if "@" in text and "***@" not in text:
        text = "***@" + text.rpartition("@")[2]
    if "://" not in text and any(len(word) > _LONGEST_SHOWN_WORD for word in text.split()):
        return f"a text of {len(text)} characters"
    cut = text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"
    return repr(cut) if isinstance(value, str) else cut


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, by the whole name first and by its last part second; None when none is near."""
    names = list(known)
    whole = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    if whole:
        return whole[0]
    last = {candidate.rpartition(".")[2]: candidate for candidate in reversed(names)}
    part = difflib.get_close_matches(name.rpartition(".")[2], last, n=1, cutoff=0.75)
    return last[part[0]] if part else None


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    near = nearest(name, known)
    return f"did you mean {near}?" if near else None


def read_text(path: Path, required: bool, hint: str | None, problems: list[Problem]) -> str | None:
    """The text of a small UTF-8 file, or None where it is absent or unusable; only an absent optional file is no problem."""

    def bad(found: str, expected: str = "a text file in UTF-8") -> str | None:
        problems.append(Problem(str(path), None, found, expected, hint=hint))
        return None

    try:
        if not stat.S_ISREG(path.stat().st_mode):
            # A FIFO or device would block or never end; a missing Docker bind mount appears as a directory.
            return bad("a directory" if path.is_dir() else "no regular file")
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return bad("no such file") if required or path.is_symlink() else None
    except OSError as error:
        return bad(f"an unreadable file ({error.strerror})")
    if len(raw) > MAX_FILE_BYTES:
        return bad("a larger file", f"at most {MAX_FILE_BYTES} bytes")
    if b"\0" in raw:
        return bad("zero bytes: binary, UTF-16 or only half written")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        return bad(f"byte 0x{raw[error.start]:02x} in line {line}, which is not UTF-8")


def read_env_file(path: Path, problems: list[Problem]) -> dict[str, Entry]:
    """Variables of a `.env` file by name. `${NAME}` is left as it is: values may hold dollar signs."""
    text = read_text(path, False, None, problems)
    found: dict[str, Entry] = {}
    for binding in parse_stream(io.StringIO(text or "")):
        # dotenv counts the blank lines and comments before a binding as part of it.
        original = binding.original.string
        line = binding.original.line + original[: len(original) - len(original.lstrip())].count("\n")
        if binding.error:
            problems.append(Problem(str(path), None, "a line that cannot be read", "NAME=value", line))
        elif binding.key is not None:
            found[binding.key] = Entry(binding.value or "", path.name, str(path), line)
    return found


def read_toml(path: Path, required: bool, hint: str | None, problems: list[Problem]) -> tuple[dict[str, object], dict[str, int]]:
    """Data of a TOML file and the line of every dotted key; empty where the file is absent or broken (then a problem)."""
    text = read_text(path, required, hint, problems)
    if text is None:
        return {}, {}
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: syntax, and integers of thousands of digits
        found = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "a value too long or too deep to read"
        at_line = re.search(r"at line (\d+)", found)
        end = text.count("\n") + 1 if "end of document" in found else None
        problems.append(Problem(str(path), None, found, "valid TOML", int(at_line[1]) if at_line else end, hint))
        return {}, {}
    return data, dict(_lines(text))


def _lines(text: str) -> Iterator[tuple[str, int]]:
    """(dotted key, line) for each header and assignment of a valid TOML document; tomllib itself keeps no positions.

    Statement by statement: a statement cut at a line end is never valid alone, so lines are added until it parses. What stands
    in a list of tables is there by its number too: `services[2].url`.
    """
    table: tuple[str, ...] = ()
    counts: dict[tuple[str, ...], int] = {}
    statement, start = "", 1
    for number, line in enumerate(text.split("\n"), 1):
        first = not statement
        start = number if first else start
        statement += line + "\n"
        closing = r"\"\"\"|'''" if re.match(r"[^=]*=\s*(\"\"\"|''')", statement) else r"[\]}]"
        if not first and not re.search(closing, line):
            continue  # cannot be the end of a text, an array or a table; parsing again at each line would be quadratic
        try:
            data = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue
        header = statement.lstrip().startswith("[")
        paths = list(_paths(data, ()))
        if header:
            table = paths[-1]
            if statement.lstrip().startswith("[["):
                counts[table] = counts.get(table, 0) + 1
        for path in paths:
            whole = path if header else table + path
            yield ".".join(whole), start
            if whole[:1] in counts:
                yield ".".join((f"{whole[0]}[{counts[whole[:1]]}]", *whole[1:])), start
        statement = ""


def _paths(data: Mapping[str, object], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for key, value in data.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from _paths(value, (*above, key))


def line_of(key: str, lines: Mapping[str, int]) -> int | None:
    """Line of a dotted key, or of the nearest table or inline table around it."""
    while key and key not in lines:
        key = key.rpartition(".")[0]
    return lines.get(key)


def write_toml(path: Path, data: Mapping[str, object]) -> None:
    """Replace a TOML file so that a reader, or a crash, meets the old file or the new one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(b"# Written by the pages of RAG Deck. Deleting this file restores the settings of dashboard.toml.\n")
            tomli_w.dump(data, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # makes the rename itself survive a power cut
    finally:
        os.close(folder)
