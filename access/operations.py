"""What pages may do, by whom: one table of the runtime's methods, and a view of the runtime that keeps to it.

A page reaches everything through the runtime that it is given. What it is given checks the viewer's scope at each call of the
table, and writes what is changed into the audit log: no page can forget to. Knows no Streamlit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from access import addresses, audit, uploads
from access.scopes import Identity, Scope
from collectors.audit import AuditLog
from rag.errors import RagError


class Operation(NamedTuple):
    """`what` is how the audit log calls it; None: it changes nothing that outlasts it, and is not written. `target` says what it
    is done to, from the call's arguments; never a secret, and never a setting's value. `scope` may depend on them too."""

    scope: Scope | Callable[..., Scope]
    what: str | None
    target: Callable[..., str] = lambda *given, **named: _first(given)
    check: Callable[..., None] = lambda *given, **named: None
    """Raises RagError bad_input for what is done by nobody."""


def _first(given: tuple[object, ...]) -> str:
    return str(given[0])[:200] if given else ""


def _keys(changes: Mapping[str, Any], *_: object, **__: object) -> str:
    return ", ".join(sorted(changes))


def _name(entry: Mapping[str, Any], *_: object, **__: object) -> str:
    return str(entry.get("name", ""))


def _job_scope(kind: str, *_: object, **__: object) -> Scope:
    return "operate" if kind in ("store", "calibration", "experiment") else "ask"


def _none(*_: object, **__: object) -> str:
    return ""


def _paths(paths: Any, *_: object, label: str | None = None, **__: object) -> str:
    return label or f"{len(paths)} paths"


def _address(entry: Mapping[str, Any], *_: object, **__: object) -> None:
    addresses.check_host(str(entry.get("address", "")).rpartition("@")[2], lambda name: ())  # names are the operator's own


def _content(name: str, data: bytes, *_: object, **__: object) -> None:
    uploads.check([(name, data)], uploads.Bounds(1, len(data), len(data)))  # sizes are bounded where they come in


OPERATIONS: Mapping[str, Operation] = {
    "submit_query": Operation("ask", None),
    "test_model": Operation("ask", None),
    "reload_model": Operation("operate", "reload a model"),
    "change": Operation("operate", "change settings", _keys),
    "add_machine": Operation("operate", "add or change a machine", _name, _address),
    "remove_machine": Operation("operate", "remove a machine"),
    "change_alert_rules": Operation("operate", "change alert rules", _keys),
    "save_upload": Operation("operate", "keep an uploaded file", check=_content),
    "submit_ingest": Operation("operate", "ingest documents", _paths),
    "remove_document": Operation("operate", "remove a document"),
    "jobs.submit": Operation(_job_scope, "start a job", lambda kind, title, *_, **__: f"{kind}: {title}"[:200]),
    "library.remove": Operation("operate", "remove a document"),
    "library.reset": Operation("operate", "empty a collection", lambda collection=None: collection or "the one in use"),
    "library.save_upload": Operation("operate", "keep an uploaded file", check=_content),
    "library.submit": Operation("operate", "ingest documents", _paths),
    "library.ingestions.pause": Operation("operate", "pause an ingestion"),
    "library.ingestions.cancel": Operation("operate", "cancel an ingestion"),
    "library.ingestions.resume": Operation("operate", "resume an ingestion"),
    "library.ingestions.retry": Operation("operate", "retry an ingestion"),
    "store.drop": Operation("operate", "drop a collection"),
    "store.flush": Operation("operate", None),
    "store.remove_document": Operation("operate", "remove a document", lambda collection, document, *_: str(document)[:200]),
    "cache.delete": Operation("operate", "delete a cached answer"),
    "cache.purge": Operation("operate", "delete all cached answers", _none),
    "cache.edit": Operation("operate", "edit a cached answer"),
    "cache.mark_good": Operation("operate", "mark a cached answer"),
    "cache.report_false_hit": Operation("ask", "report a false hit", lambda asked, key, *_, **__: str(key)[:200]),
    "experiments.rename": Operation("operate", "rename an experiment"),
    "experiments.delete": Operation("operate", "delete an experiment"),
    "alerts.acknowledge": Operation("operate", "acknowledge an alert"),
    "notifier.test": Operation("operate", "send a test message", _none),
    "sweep.test": Operation("operate", None),
    "sweep.retry": Operation("operate", None),
    "sweep.probe": Operation("ask", None),
    # Writes its own two lines, because it also runs without a page: here only who it is comes in
    "deployment.restart": Operation("operate", None),
    "evaluations.sets.create": Operation("ask", None),
    "evaluations.sets.edit": Operation("ask", None),
    "evaluations.sets.rename": Operation("ask", None),
    "evaluations.sets.delete": Operation("operate", "delete a question set"),
    "evaluations.runs.delete": Operation("operate", "delete an evaluation run"),
    "evaluations.marks.say": Operation("ask", None),
    "evaluations.marks.grade": Operation("ask", None),
    "evaluations.marks.remove": Operation("ask", None),
}
_INNER = frozenset(path.rpartition(".")[0] for path in OPERATIONS if "." in path)
_WITHIN = frozenset(part for path in _INNER for part in (path, *(path[:n] for n, sign in enumerate(path) if sign == ".")))


class Viewer(NamedTuple):
    """Who looks at a page. `identify` is asked at each operation: a token that was revoked meanwhile counts for nothing."""

    identify: Callable[[], Identity]
    address: str | None
    log: AuditLog


def require(viewer: Viewer, scope: Scope, what: str = "", target: str = "") -> Identity:
    """Who it is. Raises RagError authentication where they lack the scope; that they tried is in the audit log."""
    who = viewer.identify()
    if who.may(scope):
        return who
    with contextlib.suppress(OSError):  # it is refused in any case
        audit.refused(viewer.log, who, viewer.address, what or f"something that needs {scope!r}", f"lacks {scope!r}", target)
    step = "Ask whoever runs this RAG Deck for it: [access] in its settings says who has which scope."
    raise RagError(f"{who.name} may not do this: it needs the scope {scope!r}", kind="authentication", next_step=step)


class Guarded:
    """An object as a viewer may use it: what the table names is checked and written down, all else is as it is."""

    __slots__ = ("_inside", "_path", "_viewer")

    def __init__(self, inside: Any, viewer: Viewer, path: str = "") -> None:
        object.__setattr__(self, "_inside", inside)
        object.__setattr__(self, "_viewer", viewer)
        object.__setattr__(self, "_path", path)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inside, name)
        path = f"{self._path}.{name}" if self._path else name
        if path in OPERATIONS:
            return _checked(value, OPERATIONS[path], path, self._viewer)
        return Guarded(value, self._viewer, path) if path in _WITHIN and value is not None else value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._inside, name, value)

    def __eq__(self, other: object) -> bool:
        return bool(self._inside == (other._inside if isinstance(other, Guarded) else other))

    def __hash__(self) -> int:
        return hash(self._inside)

    def __repr__(self) -> str:
        return f"Guarded({self._inside!r})"


def unwrapped(thing: Any) -> Any:
    return thing._inside if isinstance(thing, Guarded) else thing


def _checked(call: Callable[..., Any], operation: Operation, path: str, viewer: Viewer) -> Callable[..., Any]:
    def checked(*given: Any, **named: Any) -> Any:
        scope = operation.scope if isinstance(operation.scope, str) else operation.scope(*given, **named)
        target = operation.target(*given, **named) if operation.what else ""
        who = require(viewer, scope, operation.what or path, target)
        if path == "deployment.restart" and who.how != "open":
            named["who"] = f"{who.name} from {viewer.address or 'an unknown address'}"
        if operation.what is None or scope != "operate":
            return call(*given, **named)
        with audit.recorded(viewer.log, who, viewer.address, operation.what, target):
            operation.check(*given, **named)
            return call(*given, **named)

    return checked
