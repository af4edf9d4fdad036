"""What the tests of validation share: worlds made of parts, and a fake process, named as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from collectors.machines import Machine
from deploy.validation import runner
from deploy.validation.checks import chosen
from deploy.validation.machines import MachineFacts
from deploy.validation.subject import Subject
from deploy.validation.types import Result
from deploy.validation.world import World
from gpu_server.interfaces import Embedder, Reranker
from rag.errors import RagError
from rag.store import CollectionInfo

ROOT = Path(__file__).resolve().parents[2]
NOW = 1_760_000_000.0


@dataclass
class FakeProcess:
    """A fake of the process that answers: its parts are what a test gives it."""

    embedder: Embedder | None = None
    reranker: Reranker | None = None
    chat_address: str | None = None
    known: Sequence[CollectionInfo] | RagError = ()
    answers: list[Mapping[str, Any] | RagError] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    where: str = "in a fake"

    def collections(self) -> tuple[CollectionInfo, ...]:
        if isinstance(self.known, RagError):
            raise self.known
        return tuple(self.known)

    def ask(self, question: str) -> Mapping[str, Any]:
        self.asked.append(question)
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        if isinstance(answer, RagError):
            raise answer
        return answer


def collection(name: str = "passages__m", dimension: int = 2, entities: int | None = 5, **values: Any) -> CollectionInfo:
    known = {"embedder": "m", "active": True, "read_only": False, "flushed": True, **values}
    return CollectionInfo(name, entities, dimension=dimension, **known)


def world(
    root: Path,
    process: Any = None,
    *,
    facts: Sequence[MachineFacts] = (),
    installed: Callable[[str], bool] | None = None,
    is_loopback: Callable[[str], bool] | None = None,
    **subject: Any,
) -> World:
    """A world of these parts; `facts` stand for machines that were read."""
    by_name = {each.name: each for each in facts}
    machines = tuple(Machine(each.name, None if each.is_local else f"{each.name}.example") for each in facts)
    what = Subject(root, root / "data", "0.1.0", machines=machines, **subject)
    more: dict[str, Any] = {"now": lambda: NOW, "read_machine": lambda machine: by_name[machine.name], "environment": {}}
    more |= {"installed": installed} if installed else {}
    more |= {"is_loopback": is_loopback} if is_loopback else {}
    return World(what, lambda: process or FakeProcess(), **more)


def result(code: str, made: World) -> Result:
    """The result of one check, with what every result must have."""
    (check,) = chosen([code])
    found = runner.one(made, check)
    for item in found.items:
        assert item.evidence, "nothing is said without evidence"
        assert (item.outcome in ("failed", "warning")) == bool(item.cause), item
    return found
