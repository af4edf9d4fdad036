"""What pages may do, by whom: one table of the runtime's methods, and a view of the runtime that keeps to it.

A page reaches everything through the runtime that it is given. What it is given checks the viewer's scope at each call of the
table, and writes what is changed into the audit log: no page can forget to. What no table names is closed. Knows no Streamlit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from contextvars import ContextVar
from dataclasses import fields, is_dataclass, replace
from datetime import date, time, timedelta
from enum import Enum
from pathlib import PurePath
from typing import Any, NamedTuple

from access import addresses, audit, uploads
from access.scopes import Identity, Scope
from collectors.audit import AuditLog
from collectors.errors import CollectorError
from collectors.ssh_config import split_address
from jobs import Job
from rag.errors import RagError

# Jobs that change nothing but what they make: who may ask starts them, and ends what they started. All others are operators'.
ASKING = frozenset({"query", "inspect", "duplicates", "evaluation", "validation"})


class Operation(NamedTuple):
    """`what` is how the audit log calls it; None: it changes nothing that outlasts it, and is not written. `target` says what it
    is done to, from the call's arguments; never a secret, and never a setting's value. `scope` may depend on who it is, on the
    object and on the arguments, in this order."""

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


def _job_scope(who: Identity, jobs: Any, kind: str, *_: object, **__: object) -> Scope:
    return "ask" if kind in ASKING else "operate"


def _use_scope(who: Identity, store: Any, *_: object, create: bool = True, **__: object) -> Scope:
    return "operate" if create else "read"


def _cancel_scope(who: Identity, job: Any) -> Scope:
    return "ask" if job.kind in ASKING and job.started_by == who.key else "operate"


def _job_title(job: Any) -> str:
    return f"{job.kind}: {job.title}"[:200]


def _none(*_: object, **__: object) -> str:
    return ""


def _paths(paths: Any, *_: object, label: str | None = None, **__: object) -> str:
    return label or f"{len(paths)} paths"


def _address(entry: Mapping[str, Any], *_: object, **__: object) -> None:
    hops = [str(entry.get("address") or ""), *str(entry.get("jump") or "").split(",")]
    for hop in hops:
        with contextlib.suppress(CollectorError):  # no address: it is refused where it is read
            addresses.check_host(split_address(hop.strip())[1], lambda name: ())  # names are the operator's own


def _content(name: str, data: bytes, *_: object, **__: object) -> None:
    uploads.check([(name, data)], uploads.Bounds(1, len(data), len(data)))  # sizes are bounded where they come in


OPERATIONS: Mapping[str, Operation] = {
    "submit_query": Operation("ask", None),
    "clients": Operation("ask", None),
    "variant": Operation("ask", None),
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
    "job.cancel": Operation(_cancel_scope, "cancel a job", _job_title),
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
    # What a job of kind `store` does thousands of times: that it was started is in the audit log
    "store.exclusive": Operation("operate", None),
    "store.create": Operation("operate", None),
    "store.use": Operation(_use_scope, None),
    "store.switch": Operation("operate", "put a collection into use"),
    "store.write_document": Operation("operate", None),
    "store.write_rows": Operation("operate", None),
    "store.client.load_collection": Operation("operate", "load a collection"),
    "store.client.release_collection": Operation("operate", "release a collection"),
    "store.client.upsert": Operation("operate", None),
    "store.client.delete": Operation("operate", None),
    "store.client.flush": Operation("operate", None),
    "store.remove_document": Operation("operate", "remove a document", lambda collection, document, *_: str(document)[:200]),
    "cache.delete": Operation("operate", "delete a cached answer"),
    "cache.purge": Operation("operate", "delete all cached answers", _none),
    "cache.edit": Operation("operate", "edit a cached answer"),
    "cache.mark_good": Operation("operate", "mark a cached answer"),
    "cache.book.set_thresholds": Operation("operate", "put limits of the cache into force", _none),
    "cache.book.add_pair": Operation("operate", "judge a pair of questions", _none),
    "cache.book.remove_pair": Operation("operate", "delete a judged pair", _none),
    "cache.report_false_hit": Operation("ask", "report a false hit", lambda asked, key, *_, **__: str(key)[:200]),
    "experiments.rename": Operation("operate", "rename an experiment"),
    "experiments.delete": Operation("operate", "delete an experiment"),
    "alerts.acknowledge": Operation("operate", "acknowledge an alert"),
    "notifier.test": Operation("operate", "send a test message", _none),
    "sweep.test": Operation("operate", None),
    "sweep.retry": Operation("operate", None),
    "sweep.probe": Operation("ask", None),
    "sweep.burst": Operation("operate", None),
    # Writes its own two lines, because it also runs without a page: here only who it is comes in
    "deployment.restart": Operation("operate", None),
    "evaluations.sets.create": Operation("ask", None),
    "evaluations.sets.edit": Operation("ask", None),
    "evaluations.sets.rename": Operation("ask", None),
    "evaluations.sets.delete": Operation("operate", "delete a question set"),
    "evaluations.runs.save": Operation("ask", None),
    "evaluations.runs.beat": Operation("ask", None),
    "evaluations.runs.delete": Operation("operate", "delete an evaluation run"),
    "evaluations.marks.say": Operation("ask", None),
    "evaluations.marks.grade": Operation("ask", None),
    "evaluations.marks.remove": Operation("ask", None),
}


def _paths_of(names: Mapping[str, str]) -> frozenset[str]:
    return frozenset(f"{owner}.{name}" if owner else name for owner, text in names.items() for name in text.split())


# What changes nothing, for whoever may `read`. An object named here is handed out as it is, with all its methods.
READS: frozenset[str] = _paths_of(
    {
        "": "cache_off default_options knowledge settings status stopped url wait_warm baseline chat",
        "job": "deadline done elapsed error events follow id kind result started_at started_by state title wait",
        "job.cancelled": "is_set wait",
        "jobs": "closed get recent",
        "traces": "capture_content count flush get health path revision search spans stage_rows stats",
        "hyde_history": "knows_closeness problem refresh refresh_once table wait",
        "models": "chat embedder reranker status",
        "pool": "status",
        "store": "address both collection_name collections count describe documents embedded is_open logical_name mapped mapping"
        " open passages round_trip_seconds search timeout unflushed",
        "store.versions": "current",
        "store.client": "describe_alias describe_collection describe_index get get_collection_stats get_load_state"
        " get_partition_stats get_server_version has_collection hybrid_search list_aliases list_collections list_indexes"
        " list_partitions query query_iterator search",
        "library": "collection knowledge original problem sample_job samples_wanted uploads watched",
        "library.ingestions": "all files get problem",
        "cache": "entries entry limits status test thresholds wait_until_ready",
        "cache.book": "calibrated_at_unix pairs thresholds",
        "deployment": "problems",
        "deployment.audit": "path read",
        "sweep": "logs snapshot wait_for",
        "history": "health read resolution series",
        "alerts": "active past problem rules",
        "notifier": "health settled",
        "readings": "flush get get_many health path",
        "experiments": "get list path",
        "receiver": "health",
        "investigation": "baseline",
        "evaluations.sets": "get list named versions",
        "evaluations.runs": "get list results",
        "evaluations.marks": "get list",
    }
)


class Viewer(NamedTuple):
    """Who looks at a page. `identify` is asked at each operation: a token that was revoked meanwhile counts for nothing."""

    identify: Callable[[], Identity]
    address: str | None
    log: AuditLog


def require(viewer: Viewer, scope: Scope, what: str = "", target: str = "") -> Identity:
    """Who it is. Raises RagError authentication where they lack the scope; that they tried is in the audit log."""
    who = _who(viewer)
    if who.may(scope):
        return who
    with contextlib.suppress(OSError):  # it is refused in any case
        audit.refused(viewer.log, who, viewer.address, what or f"something that needs {scope!r}", f"lacks {scope!r}", target)
    step = f"Ask whoever runs this RAG Deck for it: [access] in its settings says who has which scope. {who.hint}".rstrip()
    raise RagError(f"{who.name} may not do this: it needs the scope {scope!r}", kind="authentication", next_step=step)


_STARTER: ContextVar[Identity | None] = ContextVar("who started the job that runs on this thread", default=None)


def _who(viewer: Viewer) -> Identity:
    """Who it is now; within a job who started it, as they were then: what may be started may be ended, and a sign-in that expires
    in the night does not break a job in its middle."""
    return _STARTER.get() or viewer.identify()


class Guarded:
    """An object as a viewer may use it. What `OPERATIONS` names is checked and written down, what `READS` names is as it is, and
    whatever neither names needs `operate` and is written down: a method that somebody forgot to list is then closed to all but
    those who may do everything in any case, and leaves a trace. (Refusing it to them too would break a page over a missing line,
    and defend nothing.) Jobs are handed out guarded, wherever they come from; values without methods of ours as they are."""

    __slots__ = ("_inside", "_path", "_viewer")

    def __init__(self, inside: Any, viewer: Viewer, path: str = "") -> None:
        object.__setattr__(self, "_inside", inside)
        object.__setattr__(self, "_viewer", viewer)
        object.__setattr__(self, "_path", path)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """So that `isinstance` sees through it."""
        return type(self._inside)

    def __getattr__(self, name: str) -> Any:
        path = f"{self._path}.{name}" if self._path else name
        if name.startswith("_"):
            raise AttributeError(f"{path} is private")
        value = getattr(self._inside, name)
        if path in OPERATIONS:
            return _checked(value, self._inside, OPERATIONS[path], path, self._viewer)
        if path in READS:
            return _reading(value, self._viewer) if callable(value) else _handed(value, self._viewer)
        if _is_plain(value):
            return value
        if callable(value):
            return _checked(value, self._inside, Operation("operate", f"{path} (in no list)"), path, self._viewer)
        return Guarded(value, self._viewer, path)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name} is not changed through the view of somebody who looks at a page")

    def __eq__(self, other: object) -> bool:
        return bool(self._inside == unwrapped(other))

    def __hash__(self) -> int:
        return hash(self._inside)

    def __repr__(self) -> str:
        return f"Guarded({self._inside!r})"


def unwrapped(thing: Any) -> Any:
    return thing._inside if type(thing) is Guarded else thing


def may_cancel(job: Any) -> bool:
    """Whether this viewer may cancel the job, which comes from a guarded runtime; as `job.cancel` itself decides it."""
    if type(job) is not Guarded:
        return True
    who = _who(job._viewer)
    return bool(who.may(_cancel_scope(who, job._inside)))


_VALUES = (type(None), bool, int, float, complex, str, bytes, PurePath, date, time, timedelta, Enum)


def _is_plain(value: Any) -> bool:
    """Whether nothing can be done with it: a value, or values only. What is frozen may still hold a store."""
    if isinstance(value, _VALUES):
        return True
    if isinstance(value, Mapping):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(_is_plain(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return all(_is_plain(getattr(value, field.name)) for field in fields(value))
    return False


def _handed(value: Any, viewer: Viewer) -> Any:
    """The value with the jobs in it guarded: it, one of its items, or one of its fields."""
    if type(value) is Job:
        return Guarded(value, viewer, "job")
    if type(value) in (list, tuple) and any(type(item) is Job for item in value):
        return type(value)(_handed(item, viewer) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        jobs = {field.name: item for field in fields(value) if type(item := getattr(value, field.name)) is Job}
        return replace(value, **{name: Guarded(job, viewer, "job") for name, job in jobs.items()}) if jobs else value
    return value


def _reading(call: Callable[..., Any], viewer: Viewer) -> Callable[..., Any]:
    return lambda *given, **named: _handed(call(*given, **named), viewer)


def _checked(call: Callable[..., Any], inside: Any, operation: Operation, path: str, viewer: Viewer) -> Callable[..., Any]:
    def checked(*given: Any, **named: Any) -> Any:
        scope = operation.scope
        if not isinstance(scope, str):
            scope = scope(_who(viewer), inside, *given, **named)
        subject = (inside, *given) if path == "job.cancel" else given
        target = operation.target(*subject, **named) if operation.what else ""
        who = require(viewer, scope, operation.what or path, target)
        if path == "deployment.restart" and who.how != "open":
            named["who"] = f"{who.name} from {viewer.address or 'an unknown address'}"
        if path == "jobs.submit":
            given, named = _with_work(given, named, who)
        if operation.what is None or scope != "operate":
            return _started(call(*given, **named), viewer, who)
        with audit.recorded(viewer.log, who, viewer.address, operation.what, target):
            operation.check(*given, **named)
            return _started(call(*given, **named), viewer, who)

    return checked


def _with_work(given: tuple[Any, ...], named: dict[str, Any], who: Identity) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of `jobs.submit` with the work done as `who`."""
    work = given[2] if len(given) > 2 else named["work"]

    def working(job: Job[Any]) -> Generator[Any, None, Any]:
        _STARTER.set(who)  # this thread is the job's own
        return (yield from work(job))

    return ((*given[:2], working, *given[3:]), named) if len(given) > 2 else (given, {**named, "work": working})


def _started(value: Any, viewer: Viewer, who: Identity) -> Any:
    if type(value) is Job and value.started_by is None:
        value.started_by = who.key
    return _handed(value, viewer)
