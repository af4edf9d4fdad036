"""Who looks at this page, and the runtime as they may use it: every page gets it by `ui.cached.the_runtime`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict, TypeVar, cast
from urllib.parse import urlencode, urlsplit

import streamlit as st
from starlette.datastructures import Headers

import runtime
from access import wiring
from access.authenticator import Authenticator
from access.operations import Guarded, Viewer, may_cancel, unwrapped
from access.scopes import Identity, Scope
from jobs import Job

NOBODY = Identity("nobody", "open", frozenset())

T = TypeVar("T")


def guarded(running: runtime.Runtime) -> runtime.Runtime:
    """The runtime with every operation checked against this viewer's scopes, and written into the audit log."""
    return cast(runtime.Runtime, Guarded(running, of(running)))


def inside(running: runtime.Runtime) -> runtime.Runtime:
    """The runtime itself, for what compares runtimes."""
    return cast(runtime.Runtime, unwrapped(running))


def restricted(inside: T, name: str, running: runtime.Runtime) -> T:
    """Another object that `access.operations` has a table of (`evaluations`), as this viewer may use it."""
    return cast(T, Guarded(inside, of(running), name))


def of(running: runtime.Runtime) -> Viewer:
    """This page's viewer: by the headers of its WebSocket, which the guard has let in."""
    headers, ways = _headers(), _ways(running)
    address = st.context.ip_address
    known = address if isinstance(address, str) else None
    return Viewer(lambda: ways.again(headers) or NOBODY, known, inside(running).deployment.audit)


def who(running: runtime.Runtime) -> Identity:
    return of(running).identify()


def may(running: runtime.Runtime, scope: Scope) -> bool:
    return who(running).may(scope)


def here() -> str:
    """The path and query of the page that the browser shows, on this server; "/" where it does not say."""
    parts = urlsplit(st.context.url or "")
    query = urlencode([(name, value) for name in st.query_params for value in st.query_params.get_all(name)])
    return (parts.path or "/") + (f"?{query}" if query else "")


class Stop(TypedDict):
    """What a button that ends a job is made with."""

    on_click: Callable[[], None]
    disabled: bool
    help: str | None


def stop(job: Job[Any], help: str | None = None) -> Stop:
    """Disabled where the job is being ended already, and for whoever may not end it."""
    mine = may_cancel(job)
    return Stop(
        on_click=job.cancel,
        disabled=job.cancelled.is_set() or not mine,
        help=help if mine else "For who started it, and for operators.",
    )


def _headers() -> Headers:
    pairs = [(name, value) for name in st.context.headers for value in st.context.headers.get_all(name)]
    return Headers(raw=[(name.lower().encode("latin-1"), value.encode("latin-1", "replace")) for name, value in pairs])


@st.cache_resource(max_entries=2, show_spinner=False)
def _of_settings(key: tuple[int, str, str], _running: runtime.Runtime) -> Authenticator:
    return wiring.authenticator(_running.settings, key[2])


def _ways(running: runtime.Runtime) -> Authenticator:
    running = inside(running)
    host = str(st.get_option("server.address") or "0.0.0.0")
    return _of_settings((id(running), str(running.settings.data_dir), host), running)
