"""The authenticator and the limits that the settings ask for, and whether a server may listen beyond this machine with them."""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path

from access import redaction
from access.authenticator import Authenticator, Vouched
from access.limits import Limits
from access.oidc import OidcSessions, write_secrets
from access.policy import is_loopback
from access.proxy import TrustedProxy
from access.scopes import Scope
from access.tokens import TokenStore
from access.uploads import Bounds
from rag.errors import RagError
from settings import Settings

log = logging.getLogger(__name__)
# Of the process: its requests come to one authenticator, its pages ask another
_VOUCHED: Vouched = OrderedDict()

CLOSED = """\
refused to listen on {host}: whoever reaches this port could read every question and change everything. Either
  1. let people sign in with OpenID Connect: [access.oidc] metadata_url, client_id, client_secret, redirect_uri, or
  2. put a reverse proxy in front that signs them in: [access.proxy] header and secret.
For programs alone, or a few people who share it, a token is enough: RAGDECK_TOKEN, or `python -m access token create`.
On this machine alone nothing of this is needed: server.host (api.host) = "127.0.0.1"."""


NO_PAGES = """\
refused to serve on {host}: OpenID Connect is the only way in that is configured, and it signs in people with a browser, on pages
that this server does not have. Everybody would be refused. What works here:
  1. API tokens: `python -m access token create NAME --scope ask`, or RAGDECK_TOKEN, or
  2. a reverse proxy that says who it is: [access.proxy] header and secret."""


def token_store(settings: Settings) -> TokenStore:
    return TokenStore(settings.data_dir / "access.db")


def allowed(settings: Settings) -> dict[Scope, tuple[str, ...]]:
    """Who has which scope."""
    access = settings.access
    return {"read": access.read, "ask": access.ask, "operate": access.operate}


def limits(settings: Settings) -> Limits:
    access, file_bytes = settings.access, settings.ingest.max_file_bytes
    return Limits(
        requests_per_minute=access.requests_per_minute,
        requests_at_once=access.requests_at_once,
        body_seconds=access.body_seconds,
        upload_bytes=file_bytes + (1 << 20),
    )


def upload_bounds(settings: Settings) -> Bounds:
    return Bounds(settings.access.upload_files, settings.ingest.max_file_bytes, settings.access.upload_bytes)


def why_closed(settings: Settings, host: str, *, sign_in: bool = True) -> str | None:
    """Why a server must not listen there with these settings, and what to do; None where it may. `sign_in`: it shows pages, on
    which people can sign in with OpenID Connect. Raises RagError."""
    if settings.server.token or has_proxy(settings) or (sign_in and has_oidc(settings)):
        return None
    only_oidc = has_oidc(settings)
    if (is_loopback(host) and not only_oidc) or token_store(settings).any_active():
        return None
    if only_oidc:
        return "\n".join([NO_PAGES.format(host=host), *incomplete(settings)])
    return "\n".join([CLOSED.format(host=host), *incomplete(settings)])


def has_oidc(settings: Settings) -> bool:
    oidc = settings.access.oidc
    return all((oidc.metadata_url, oidc.client_id, oidc.client_secret, oidc.redirect_uri))


def has_proxy(settings: Settings) -> bool:
    return all((settings.access.proxy.header, settings.access.proxy.secret))


def incomplete(settings: Settings) -> list[str]:
    """Ways in that are half configured, and so are none."""
    oidc, proxy = settings.access.oidc, settings.access.proxy
    wanted = {
        "access.oidc": {name: getattr(oidc, name) for name in ("metadata_url", "client_id", "client_secret", "redirect_uri")},
        "access.proxy": {"header": proxy.header, "secret": proxy.secret},
    }
    return [
        f"[{table}] is not in force: {', '.join(name for name, value in values.items() if not value)} not set."
        for table, values in wanted.items()
        if any(values.values()) and not all(values.values())
    ]


def authenticator(settings: Settings, host: str, *, sign_in: bool = True) -> Authenticator:
    """The ways in. `sign_in`: this server shows pages, so OpenID Connect is a way into it. Raises OSError where the files that
    the sign-in needs cannot be written."""
    token = settings.server.token
    proxy, oidc = _proxy(settings), _oidc(settings) if sign_in else None
    return Authenticator(
        required=bool(token or proxy or has_oidc(settings))
        or not is_loopback(host),  # who signs in on pages is not let in beside them
        server_token=token.get_secret_value() if token else None,
        tokens=token_store(settings),
        proxy=proxy,
        oidc=oidc,
        vouched=_VOUCHED,
    )


def _proxy(settings: Settings) -> TrustedProxy | None:
    proxy = settings.access.proxy
    if proxy.header is None or proxy.secret is None:
        return None
    return TrustedProxy(
        proxy.header, proxy.secret_header, proxy.secret.get_secret_value(), proxy.groups_header, allowed(settings)
    )


def oidc_folder(settings: Settings) -> Path:
    return settings.data_dir / "access"


def _oidc(settings: Settings) -> OidcSessions | None:
    oidc = settings.access.oidc
    if not (oidc.metadata_url and oidc.client_id and oidc.client_secret and oidc.redirect_uri):
        return None
    _, secret = write_secrets(
        oidc_folder(settings),
        metadata_url=oidc.metadata_url,
        client_id=oidc.client_id,
        client_secret=oidc.client_secret.get_secret_value(),
        redirect_uri=oidc.redirect_uri,
    )
    seconds = oidc.session_hours * 3600
    return OidcSessions(secret, oidc.redirect_uri, oidc.groups_claim, seconds, allowed(settings), oidc.trust_email)


def redact_logs(settings: Settings) -> None:
    """Mask the secrets of the settings in everything that is logged from now on."""
    redaction.install(redaction.Redactor(redaction.secret_values(settings)))


def checked_start(settings: Settings, host: str, *, sign_in: bool = True) -> None:
    """Raises RagError bad_input where the server must not be started there; see `why_closed`."""
    why = why_closed(settings, host, sign_in=sign_in)
    if why is not None:
        raise RagError(why, kind="bad_input", next_step="docs/settings.md has [access]; SECURITY.md says what it defends.")
    for line in incomplete(settings):
        log.warning("%s", line)
