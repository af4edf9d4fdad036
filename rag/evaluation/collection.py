"""What an evaluation asks of the live collection: its documents, a digest of its content, where passages are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Protocol

from rag.evaluation.items import Names
from rag.evaluation.readers import joined
from rag.evaluation.types import Question
from rag.types import StoredDocument


class Documents(Protocol):
    """The part of `rag.store.Store` that is read here."""

    def documents(self, name: str) -> Mapping[str, StoredDocument]: ...

    def passages(self, name: str, document_id: str) -> list[dict[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Content:
    """`documents` by id, None where the collection cannot be listed (filled by somebody else). `digest` is equal for equal
    content, whenever and wherever it was read in."""

    documents: Mapping[str, StoredDocument] | None

    @property
    def names(self) -> Names:
        return Names(None if self.documents is None else (each.source for each in self.documents.values()))

    @property
    def digest(self) -> str | None:
        if self.documents is None:
            return None
        lines = sorted(f"{each.source}\0{each.content_hash}" for each in self.documents.values())
        return blake2b("\n".join(lines).encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()

    @property
    def passages(self) -> int | None:
        return None if self.documents is None else sum(each.passages for each in self.documents.values())


def content(store: Documents, name: str, *, read_only: bool) -> Content:
    """What the collection holds now. Raises RagError."""
    return Content(None if read_only else store.documents(name))


def unknown_sources(questions: Iterable[Question], names: Names) -> tuple[str, ...]:
    """Relevant documents that the collection does not hold under any name, once each; empty where it cannot be listed."""
    relevant = (judged for each in questions for judged in each.judgements if judged.grade > 0)
    return tuple(dict.fromkeys(judged.source for judged in relevant if names.place(judged)[0] is None))


def passage_ids(questions: Iterable[Question], names: Names) -> frozenset[str]:
    """Judged names that look like passage ids and are no document's."""
    judged = {judged.source for each in questions for judged in each.judgements if judged.location is None}
    return frozenset(
        name for name in judged if len(name) == 32 and set(name) <= _HEX and not (names.known and name in names.known)
    )


_HEX = frozenset("0123456789abcdef")


def find_passages(
    store: Documents, name: str, documents: Collection[str], wanted: Collection[str]
) -> dict[str, tuple[str, str | None]]:
    """Source and location of passages by id: those of `wanted` that the collection has. Looks through the documents until all
    are found, a few milliseconds each. Raises RagError."""
    found: dict[str, tuple[str, str | None]] = {}
    left = set(wanted)
    known = store.documents(name)
    for document_id in documents:
        if not left:
            break
        for row in store.passages(name, document_id):
            if row["id"] in left:
                left.discard(row["id"])
                found[row["id"]] = known[document_id].source, row["location"] or None
    return found


def with_places(questions: Sequence[Question], places: Mapping[str, tuple[str, str | None]]) -> tuple[Question, ...]:
    """The questions with passage ids replaced by document and place, which outlive the cutting of the document."""

    def placed(question: Question) -> Question:
        judged = (
            replace(each, source=places[each.source][0], location=places[each.source][1]) if each.source in places else each
            for each in question.judgements
        )
        return replace(question, judgements=joined(tuple(judged)))

    return tuple(placed(each) for each in questions)
