"""Operations in the audit log: written before and after, filtered, as CSV. The file itself is `collectors.audit.AuditLog`.

Knows no page and no route. What is written is bounded and has no secrets: names of things, never the contents of settings.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace

from access.refusals import Refusals
from access.scopes import Identity
from collectors.audit import Action, AuditLog
from rag.errors import RagError

MOST = 5000


@dataclass(frozen=True, slots=True)
class Filter:
    """What is looked for; None and "" let everything through. `text` is looked for in who, what, target and outcome's text."""

    text: str = ""
    outcome: str | None = None
    since: str | None = None
    """ISO 8601 in UTC, as the log has it."""

    def takes(self, action: Action) -> bool:
        words = (
            f"{action.who or ''} {action.what} {action.machine} {action.target} {action.text} {action.address or ''}".casefold()
        )
        return (
            self.text.casefold() in words
            and self.outcome in (None, action.outcome)
            and (self.since is None or action.at >= self.since)
        )


@contextmanager
def recorded(log: AuditLog, who: Identity, address: str | None, what: str, target: str = "") -> Iterator[None]:
    """Two lines around what is done. Raises RagError, with nothing done, where the first cannot be written: what nobody could
    account for is not done. An exception is an outcome, and goes on."""
    try:
        asked = log.begin(_whole(who.name), "", _whole(what), address, _whole(target))
    except OSError as problem:
        message = f"nothing was done: {log.path.name} cannot be written ({problem.strerror})"
        raise RagError(message, next_step="Make room on the disk of RAG Deck, and its data folder writable.") from None
    try:
        yield
    except RagError as problem:
        log.end(asked, "refused" if problem.kind in ("bad_input", "authentication", "not_found") else "failed", problem.message)
        raise
    except BaseException as problem:
        log.end(asked, "failed", type(problem).__name__)
        raise
    log.end(asked, "done")


_REFUSALS = Refusals()  # of the process: what its pages write goes into one log


def refused(
    log: AuditLog, who: Identity, address: str | None, what: str, why: str, target: str = "", refusals: Refusals = _REFUSALS
) -> None:
    """Somebody asked for what is not theirs to do; one who asks often is counted instead of written. Raises OSError."""
    refusals.add(log, replace(who, name=_whole(who.name)), address, _whole(what), _whole(why), _whole(target))


def _whole(text: str) -> str:
    """Without halves of characters, which no file takes: a name of a file or an argument may have one."""
    return text.encode("utf-8", "replace").decode()


def found(log: AuditLog, where: Filter, limit: int = 200) -> list[Action]:
    """The newest first. Raises RagError internal."""
    try:
        actions = log.read(limit=MOST)
    except OSError as problem:
        raise RagError(f"the audit log cannot be read ({problem.strerror})", next_step="Make data/audit.log readable.") from None
    return [action for action in actions if where.takes(action)][:limit]


def to_csv(actions: Iterable[Action]) -> bytes:
    """RFC 4180 with a byte order mark. A cell that a spreadsheet would take for a formula begins with an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out)
    heads = [field.name for field in fields(Action)]
    writer.writerow(heads)
    writer.writerows([_cell(getattr(action, head)) for head in heads] for action in actions)
    return out.getvalue().encode("utf-8-sig")


def to_json_lines(actions: Iterable[Action]) -> bytes:
    return b"".join(json.dumps(asdict(action), ensure_ascii=False).encode() + b"\n" for action in actions)


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
