"""Numbers as people read them, and the rank of a percentile: one way for commands, reports and pages. Pure; knows no HTML.

Three significant digits, the unit beside the number, below one second in ms. Unknown is an en dash, never 0.
"""

from __future__ import annotations

import math

UNKNOWN = "–"


def rank(percent: int, n: int) -> int:
    """Index into `n` ascending values of that percentile, by nearest rank: ceil(percent / 100 * n) - 1."""
    return max(0, -(-percent * n // 100) - 1)


def significant(value: float, digits: int = 3) -> str:
    """`value` with that many significant digits and no exponent: 9.76, 12.1, 0.0321, 1,230."""
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    if rounded and math.floor(math.log10(abs(rounded))) > math.floor(math.log10(abs(value))):
        decimals -= 1  # 9.996 became 10.0
    return f"{rounded:,.{max(0, decimals)}f}"


def seconds(value: float | None) -> str:
    """A duration: `0.42 ms`, `193 ms`, `9.76 s`, `2 min 05 s`, `1 h 03 min`."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0 ms"
    if abs(value) < 0.9995:
        return f"{significant(value * 1000)} ms" if abs(value) >= 5e-6 else "< 0.01 ms"
    if abs(value) < 119.95:
        return f"{significant(value)} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"
