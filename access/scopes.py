"""What may be done, by whom, and which scope each route needs: one table. Knows neither tokens nor settings."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Literal, NamedTuple, get_args

Scope = Literal["read", "ask", "operate"]
How = Literal["open", "server token", "api token", "oidc", "proxy"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
ALL: frozenset[Scope] = frozenset(SCOPES)
MEANING: dict[Scope, str] = {
    "read": "see pages, stored queries, readings and metrics",
    "ask": "send questions, and spans of other programs",
    "operate": "change things: documents, settings, machines, caches, tokens, stored queries",
}
GROUP = "group:"
KEY = "ragdeck.identity"  # of the ASGI scope, where the guard leaves who it is


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is at the other end. Scopes do not include each other: a token that only asks cannot list what others asked."""

    name: str
    how: How
    scopes: frozenset[Scope]
    token_id: str | None = None
    groups: tuple[str, ...] = ()
    hint: str = field(default="", compare=False)
    """Why they may have fewer scopes than they expect, and what to do; a sentence or two for them to read."""

    @property
    def key(self) -> str:
        """Tells one from another: names alone do not, since whoever makes a token chooses its name."""
        return f"{self.how}:{self.token_id or self.name}"

    def may(self, scope: Scope | None) -> bool:
        return scope is None or scope in self.scopes


OPEN = Identity("local user", "open", ALL)


class Rule(NamedTuple):
    """`scope` None: open to everybody who reaches the port."""

    method: str
    path: str
    scope: Scope | None


# Receiving spans is `ask`: like a question it adds one stored query, and it changes and shows nothing.
# A file goes into the server's memory before a page looks at it: `operate`, as everything that pages do with files.
RULES: tuple[Rule, ...] = (
    Rule("GET", "/api/health", None),
    Rule("GET", "/_stcore/health", None),
    Rule("GET", "/signin", None),
    Rule("POST", "/signin", None),
    Rule("GET", "/signin/oidc", None),
    Rule("GET", "/signout", None),
    Rule("GET", "/auth/login", None),
    Rule("GET", "/auth/logout", None),
    Rule("GET", "/oauth2callback", None),
    Rule("POST", "/api/v1/ask", "ask"),
    Rule("POST", "/v1/traces", "ask"),
    Rule("GET", "/api/v1/queries", "read"),
    Rule("GET", "/api/v1/queries/{id}", "read"),
    Rule("DELETE", "/api/v1/queries", "operate"),
    Rule("DELETE", "/api/v1/queries/{id}", "operate"),
    Rule("GET", "/api/v1/audit", "operate"),
    Rule("GET", "/api/v1/whoami", "read"),
    Rule("GET", "/api/v1/openapi.json", "read"),
    Rule("GET", "/ask", "read"),
    Rule("GET", "/metrics", "read"),
    Rule("PUT", "/_stcore/upload_file/{rest}", "operate"),
    Rule("DELETE", "/_stcore/upload_file/{rest}", "operate"),
)


@lru_cache(maxsize=1024)
def needed(method: str, path: str) -> Scope | None:
    """The scope of a request. What no rule names: `read` to look (WebSockets of the pages too), `operate` for anything else."""
    method = "GET" if method in ("HEAD", "OPTIONS", "WEBSOCKET") else method
    for rule in RULES:
        if rule.method == method and _pattern(rule.path).fullmatch(path):
            return rule.scope
    return "read" if method == "GET" else "operate"


@cache
def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", lambda found: ".+" if found[1] == "rest" else "[^/]+", re.escape(path)))


def checked(names: object) -> frozenset[Scope]:
    """The scopes of these names. Raises ValueError for none, and for one that is not known."""
    found = [str(name).strip().lower() for name in names] if isinstance(names, (list, tuple, set, frozenset)) else []
    unknown = [name for name in found if name not in SCOPES]
    if unknown or not found:
        raise ValueError(f"{unknown[0]!r} is no scope" if unknown else "no scope is named; choose of read, ask, operate")
    return frozenset(scope for scope in SCOPES if scope in found)


def granted(user: tuple[str, ...], groups: tuple[str, ...], allowed: dict[Scope, tuple[str, ...]]) -> frozenset[Scope]:
    """The scopes of somebody with these names and groups. `*` allows a scope to everybody who is signed in, `group:NAME` to a
    group, any other entry to a user: two kinds of entry, so that nobody becomes a group by calling himself like one."""
    mine = {name.casefold() for name in user if not name.casefold().startswith(GROUP)} | {
        f"{GROUP}{name.casefold()}" for name in groups
    }
    return frozenset(scope for scope, names in allowed.items() if "*" in names or any(name.casefold() in mine for name in names))
