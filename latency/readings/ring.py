"""The last so many readings of one pace, in preallocated arrays. Knows neither what is read nor when; not thread-safe."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple

UNKNOWN = math.nan


class Samples(NamedTuple):
    """What was read at `times` (ascending): metric -> one value each, None where it was not known."""

    times: tuple[float, ...]
    values: Mapping[str, tuple[float | None, ...]]


class Ring:
    """Keeps the newest `capacity` readings. A metric that turns up later was unknown before; one that is left out is unknown."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._times = array("d", bytes(8 * capacity))
        self._columns: dict[str, array[float]] = {}
        self._added = 0

    def add(self, at: float, values: Mapping[str, float | None]) -> None:
        place = self._added % self._capacity
        self._times[place] = at
        self._added += 1
        for name, column in self._columns.items():
            value = values.get(name)
            column[place] = UNKNOWN if value is None else value
        for name in values.keys() - self._columns.keys():
            if (value := values[name]) is not None:
                column = self._columns[name] = array("d", [UNKNOWN]) * self._capacity
                column[place] = value

    @property
    def oldest(self) -> float | None:
        """The time of the oldest reading that is kept."""
        if not self._added:
            return None
        return self._times[self._added % self._capacity if self._added > self._capacity else 0]

    def between(self, start: float, end: float, before: int = 0, reach: float = 0.0) -> Samples:
        """The readings of start <= time <= end, and up to `before` of those up to `reach` seconds earlier, the nearest ones."""
        wanted: list[int] = []
        for number in range(self._added - 1, max(0, self._added - self._capacity) - 1, -1):
            place = number % self._capacity
            at = self._times[place]
            if at > end:
                continue
            if at < start:
                if not before or at < start - reach:
                    break
                before -= 1
            wanted.append(place)
        wanted.reverse()
        columns = {name: tuple(_known(column, wanted)) for name, column in self._columns.items()}
        times = tuple(self._times[place] for place in wanted)
        return Samples(times, {name: values for name, values in columns.items() if any(value is not None for value in values)})


def _known(column: array[float], places: Sequence[int]) -> list[float | None]:
    return [None if math.isnan(value := column[place]) else value for place in places]
