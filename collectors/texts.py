"""What machines print, taken with care: numbers or None, texts cut short. Nothing here raises, whatever the text."""

from __future__ import annotations

import math
import re

MAX_TEXT = 300
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_NUMBER = re.compile(r"[-+]?[0-9]{1,20}(\.[0-9]{1,20})?([eE][-+]?[0-9]{1,2})?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def integer(text: str) -> int | None:
    """A decimal number, or None."""
    text = text.strip()
    return int(text) if _INTEGER.fullmatch(text) else None


def count(text: str) -> int | None:
    """A decimal number that is not negative, or None."""
    value = integer(text)
    return value if value is not None and value >= 0 else None


def number(text: str) -> float | None:
    """A finite number with a decimal point, or None."""
    text = text.strip()
    value = float(text) if _NUMBER.fullmatch(text) else None
    return value if value is not None and math.isfinite(value) else None


def lines(text: str) -> list[str]:
    """The lines of a text, split at line feeds alone: names can hold what `str.splitlines` takes for a line's end."""
    return text.replace("\r\n", "\n").split("\n")


def cut(text: str, length: int = MAX_TEXT) -> str:
    """The text on one line, without control characters, at most `length` characters."""
    text = _CONTROL.sub(" ", text[: 4 * length]).strip()
    return text if len(text) <= length else text[: length - 1] + "…"


def ratio(part: float | None, whole: float | None) -> float | None:
    """part / whole, or None where one is unknown or the whole is not positive."""
    return None if part is None or whole is None or whole <= 0 else part / whole
