"""A number of bytes with its formula and where the formula comes from. Knows nothing of models."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Figure:
    """`formula` has the numbers filled in; `source` says who states it, or that it is our own bound."""

    value_bytes: int
    formula: str
    source: str

    def to_json(self) -> dict[str, int | str]:
        return {"value_bytes": self.value_bytes, "formula": self.formula, "source": self.source}


NOTHING = Figure(0, "0", "does not apply")


def ceil_div(value: int, by: int) -> int:
    """`value / by`, rounded up."""
    return -(-value // by)


def gib(value_bytes: float) -> str:
    """`5.71 GiB`, for messages."""
    return f"{value_bytes / GIB:.3g} GiB" if value_bytes < 999.5 * GIB else f"{value_bytes / GIB:,.0f} GiB"
