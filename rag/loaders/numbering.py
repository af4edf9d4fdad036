"""The numbers that Word computes for list items and headings ("Article 5", "2.1", "ב."): they are in no paragraph's text.

ECMA-376 part 1, 17.9. Knows nothing of indents, pictures as bullets, or formats beyond the common ones.
"""

from __future__ import annotations

import re
from typing import Any

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_Signs = tuple[tuple[int, str], ...]
_ROMAN: _Signs = ((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"), (10, "x"))
_ROMAN += ((9, "ix"), (5, "v"), (4, "iv"), (1, "i"))
_HEBREW: _Signs = tuple(zip((400, 300, 200, 100, 90, 80, 70, 60, 50, 40, 30, 20), "תשרקצפעסנמלכ", strict=True))
_HEBREW += ((16, "טז"), (15, "טו"), (10, "י"), *zip(range(9, 0, -1), "טחזוהדגבא", strict=True))
_LONGEST = 3999


class Numbering:
    """Labels of paragraphs, to be asked in document order. `root`: the numbering part's element, None where there is none."""

    def __init__(self, root: Any | None) -> None:
        found: Any = () if root is None else root
        self._abstract = {item.get(f"{_W}abstractNumId"): item for item in found if item.tag == f"{_W}abstractNum"}
        self._lists = {item.get(f"{_W}numId"): item for item in found if item.tag == f"{_W}num"}
        self._counts: dict[str, dict[int, int]] = {}
        self._restarted: set[tuple[str, int]] = set()

    def label(self, list_id: str | None, level: int, style: str | None = None) -> str:
        """The next label of this list, "" for none; a bullet is "-". `style` finds the level that a heading style has."""
        instance = self._lists.get(list_id) if list_id is not None else None
        abstract_id = _value(instance, "abstractNumId") if instance is not None else None
        if list_id is None or abstract_id is None or abstract_id not in self._abstract:
            return ""
        levels = {_number(item.get(f"{_W}ilvl")): item for item in self._abstract[abstract_id].findall(f"{_W}lvl")}
        level = next((at for at, item in levels.items() if style is not None and _value(item, "pStyle") == style), level)
        if level not in levels:
            return ""
        self._advance(list_id, abstract_id, level, levels, instance)
        shape = _value(levels[level], "lvlText") or ""
        if _value(levels[level], "numFmt") == "bullet":
            return "-"
        counts = self._counts[abstract_id]

        def written(match: re.Match[str]) -> str:
            at = int(match[1]) - 1
            return _written(counts.get(at, 1), _value(levels[at], "numFmt") if at in levels else None)

        return re.sub(r"%([1-9])", written, shape).strip()

    def _advance(self, list_id: str, abstract_id: str, level: int, levels: dict[int, Any], instance: Any) -> None:
        counts = self._counts.setdefault(abstract_id, {})
        for deeper in [at for at in counts if at > level]:
            del counts[deeper]
        start = _number(_value(levels[level], "start"), 1)
        for override in instance.findall(f"{_W}lvlOverride"):
            restart = _value(override, "startOverride")
            if _number(override.get(f"{_W}ilvl")) == level and restart is not None and (list_id, level) not in self._restarted:
                self._restarted.add((list_id, level))
                start = _number(restart, 1)
                counts.pop(level, None)
        counts[level] = counts[level] + 1 if level in counts else start


def _value(element: Any, tag: str) -> str | None:
    child = element.find(f"{_W}{tag}")
    return child.get(f"{_W}val") if child is not None else None


def _number(text: str | None, otherwise: int = 0) -> int:
    return int(text) if text is not None and text.isdecimal() else otherwise


def _written(count: int, form: str | None) -> str:
    if not 0 < count <= _LONGEST:
        return str(count)
    if form in ("upperLetter", "lowerLetter"):  # a … z, aa, bb
        letter = chr(ord("a") + (count - 1) % 26) * ((count - 1) // 26 + 1)
        return letter.upper() if form == "upperLetter" else letter
    if form in ("upperRoman", "lowerRoman"):
        roman = _by_value(count, _ROMAN)
        return roman.upper() if form == "upperRoman" else roman
    if form in ("hebrew1", "hebrew2"):
        return _by_value(count, _HEBREW)
    return "" if form == "none" else f"{count:02}" if form == "decimalZero" else str(count)


def _by_value(count: int, signs: _Signs) -> str:
    """Signs of falling value, as Roman and Hebrew numerals are written."""
    text = ""
    for value, sign in signs:
        if value in (15, 16) and count != value:  # טו and טז stand only for what is left after the hundreds and tens
            continue
        times, count = divmod(count, value)
        text += sign * times
    return text
