"""Tokens, lines of the audit log and who is signed in, as HTML. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from urllib.parse import quote

from access.scopes import MEANING, SCOPES, Identity, Scope
from access.signin import SIGN_IN, SIGN_OUT
from access.tokens import Token
from collectors.audit import Action
from ui import cards, figures
from ui.format import escape, parse_time, plural, time_html, unknown_html

HOW = {
    "open": "This RAG Deck asks nobody who they are, because it listens on this machine alone",
    "server token": "By the server's own token, RAGDECK_TOKEN",
    "api token": "By an API token",
    "oidc": "By the account you signed in with",
    "proxy": "By the proxy in front of this server",
}
OUTCOMES = {
    "done": ("ok", "done"),
    "failed": ("critical", "failed"),
    "refused": ("warn", "refused"),
    "asked": ("unknown", "not ended"),
}
STATES = {"active": "ok", "expired": "warn", "revoked": "unknown"}


def me(who: Identity) -> str:
    """Who looks at the page, by what, and what they may do."""
    groups = f" Groups: {escape(', '.join(who.groups))}." if who.groups else ""
    rows = [[scope, cards.state_mark("ok", "yes") if who.may(scope) else cards.state_mark("unknown", "no"), MEANING[scope]]
            for scope in SCOPES]  # fmt: skip
    hint = cards.note("warn", escape(who.hint)) if who.hint else ""
    head = f'<p class="rd rd-title">You are {escape(who.name)}</p>{hint}'
    return (
        head + f'<div class="rd rd-soft">{HOW[who.how]}.{groups}</div>' + figures.table(["Scope", "You", "To"], rows, wrap=(2,))
    )


def ended(who: Identity, here: str) -> str:
    """Instead of a page whose viewer may not read: why, and the way back in. `here` is the page's path."""
    back = f'<a href="{SIGN_IN}?next={quote(here, safe="")}" target="_self">Sign in again</a>'
    again = f'<a href="{escape(here)}" target="_self">Load the page again</a>'
    leave = f'<a href="{SIGN_OUT}" target="_self">Sign out</a>'
    if who.how == "open":
        why = "Your sign-in has ended: you signed out, its time is over, or the token was revoked or has expired."
        return cards.note("critical", "<strong>You are signed out.</strong>", why, f"{back} · {again}")
    why = f"You are {escape(who.name)}, and may not look at this RAG Deck any more."
    step = f"Ask whoever runs it for the scope “read”, or sign in as somebody else. {escape(who.hint)}".rstrip()
    return cards.note("critical", "<strong>Your access has ended.</strong>", why, step, f"{again} · {leave}")


def scopes(allowed: frozenset[Scope]) -> str:
    return ", ".join(scope for scope in SCOPES if scope in allowed)


def tokens(known: Sequence[Token], now: datetime, zone: tzinfo) -> str:
    """The newest first; of a token's secret nothing is known here."""
    rows = [
        [
            f'<span class="rd-plain">{escape(token.name)}</span>',
            f'<span class="rd-mono">{escape(token.prefix)}…</span>',
            scopes(token.scopes),
            cards.state_mark(STATES[token.state(now.timestamp())], token.state(now.timestamp())),
            _time(token.used_at_unix, now, zone, "it was never used"),
            _time(token.expires_at_unix, now, zone, "it does not expire"),
            f"{_time(token.created_at_unix, now, zone, '')} by {escape(token.created_by)}",
        ]
        for token in known
    ]
    return figures.table(["Name", "Begins with", "Scopes", "State", "Last used", "Expires", "Made"], rows, wrap=(0, 6))


def made(secret: str, token: Token) -> str:
    """The one time that a token is shown."""
    return cards.note(
        "ok",
        f"<strong>{escape(token.name)} is made ({scopes(token.scopes)}). Copy it now: it is not shown again.</strong>",
        f'<code class="rd-mono">{escape(secret)}</code>',
        "Send it as <code>Authorization: Bearer …</code>.",
    )


def audit(actions: Sequence[Action], now: datetime, zone: tzinfo) -> str:
    """Lines of the log, the newest first. All of it is text that others typed."""
    rows = [
        [
            time_html(parse_time(action.at), now, zone),
            escape(action.who) if action.who else unknown_html("it was not told"),
            escape(action.address) if action.address else unknown_html("it came from no browser and no API"),
            f'<span class="rd-plain">{escape(action.what)}</span>',
            f'<span class="rd-plain" dir="auto">{escape(action.target or action.machine)}</span>',
            _outcome(action),
        ]
        for action in actions
    ]
    return figures.table(["When", "Who", "From", "What", "To what", "Outcome"], rows, wrap=(1, 3, 4, 5))


def audit_title(shown: int, most: int) -> str:
    return f"Audit log: the last {shown}" if shown == most else f"Audit log: {plural(shown, 'line')}"


def _outcome(action: Action) -> str:
    severity, word = OUTCOMES.get(action.outcome, ("unknown", action.outcome))
    hover = "it still runs, or RAG Deck ended before it did" if action.outcome == "asked" else ""
    said = f'<div class="rd-plain rd-small" dir="auto">{escape(action.text)}</div>' if action.text else ""
    return cards.state_mark(severity, word, hover) + said


def _time(unix: float | None, now: datetime, zone: tzinfo, unknown: str) -> str:
    return unknown_html(unknown) if unix is None else time_html(datetime.fromtimestamp(unix, UTC), now, zone)
