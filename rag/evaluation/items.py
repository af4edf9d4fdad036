"""Passages in a stage's order -> the documents and judged places they stand for, once each. Pure; knows no metric and no store.

A question judges documents, or places in them. A ranking of passages becomes one of such items: the first passage of a document
counts for it, the first passage at a judged place for that place.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from rag.evaluation.types import Item, Judgement
from rag.types import Passage

HEADINGS = " › "  # between the headings of a location
SPAN = " … "  # between the first and the last place of a passage that joins several


def slug(text: str) -> str:
    """Letters and digits in lower case with `-` between runs of them: how locations are compared."""
    return "-".join(re.findall(r"[^\W_]+", text.casefold()))


class Names:
    """Which document of the collection a judged source means.

    A source that the collection has is itself; else it is the only document whose path ends with it, with or without its suffix
    (`policy/access` for `field-guide/policy/access.md`). Without `sources`, of a collection that cannot be listed, every name
    stands.
    """

    def __init__(self, sources: Iterable[str] | None) -> None:
        self.known = None if sources is None else frozenset(sources)
        self._endings: defaultdict[str, set[str]] = defaultdict(set)
        for source in self.known or ():
            for ending in _endings(source):
                self._endings[ending].add(source)

    def of(self, judged: str) -> str | None:
        """The document's source; None where the collection does not have it, or more than one could be meant."""
        if self.known is None or judged in self.known:
            return judged
        meant = self._endings.get(judged.strip("/"), set())
        return next(iter(meant)) if len(meant) == 1 else None

    def place(self, judgement: Judgement) -> tuple[str | None, str | None]:
        """(source in the collection, location). A `#` in a name may belong to the source itself."""
        if judgement.location is not None and self.known and judgement.name in self.known:
            return judgement.name, None
        return self.of(judgement.source), judgement.location


def _endings(source: str) -> list[str]:
    parts = PurePosixPath(source).parts
    tails = ["/".join(parts[index:]) for index in range(len(parts))]
    return [*tails, *(tail.removesuffix(PurePosixPath(source).suffix) for tail in tails)]


class Items:
    """The items of one question: its judged documents and places, and whatever else is found, by document."""

    def __init__(self, judgements: Sequence[Judgement], names: Names) -> None:
        self.grades: dict[str, int] = {}
        self.missing = 0
        self._named: dict[str, tuple[str, str | None]] = {}
        self._places: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        self._documents: set[str] = set()
        for judgement in judgements:
            source, location = names.place(judgement)
            if source is None:
                self.missing += judgement.grade > 0
                source = judgement.source  # stays in the ideal ranking: what is not there was not found
            key = source if location is None else f"{source}#{slug(location)}"
            self._named[key] = source, location
            self.grades[key] = max(judgement.grade, self.grades.get(key, 0))
            if location is None:
                self._documents.add(source)
            else:
                self._places[source].append((key, slug(location)))

    def ranked(self, passages: Iterable[Passage]) -> list[str]:
        """Keys in the order in which the passages bring them first; a document that nobody judged has its source as key."""
        return list(dict.fromkeys(key for passage in passages for key in self.keys(passage)))

    def item(self, key: str) -> Item:
        """What a key stands for."""
        source, location = self._named.get(key, (key, None))
        return Item(source, location, self.grades.get(key))

    def keys(self, passage: Passage) -> list[str]:
        """What a passage stands for: the judged places it holds, and its document where that is judged or no place is held."""
        held = [key for key, location in self._places.get(passage.source, ()) if holds(passage, location)]
        return held if held and passage.source not in self._documents else [*held, passage.source]


def holds(passage: Passage, wanted: str) -> bool:
    """Whether a passage is of the place with that slug: its location, an end of it, a heading in it, or a line of its text
    (a passage that joins short sections names only the first and the last in its location)."""
    location = passage.location or ""
    ends = location.split(SPAN)
    parts = {slug(part) for end in ends for part in (end, *end.split(HEADINGS))} | {slug(location)}
    return wanted in parts or (len(ends) > 1 and wanted in {slug(line) for line in passage.text.splitlines()})
