"""Sign-in by OpenID Connect: the secrets file that Streamlit's sign-in reads, and the cookie that it leaves.

Streamlit runs the flow (state, nonce, PKCE, the token's signature) and signs the cookie with our secret; here it is read again
at every request, because Streamlit itself shows its pages to everybody. Knows neither Streamlit nor the settings' file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import tomli_w
from itsdangerous import BadData, URLSafeTimedSerializer

from access.scopes import Identity, Scope, granted

COOKIE = "_streamlit_user"
MAX_CHUNKS = 20
SECRET_CHARS = 43
_CHUNKS = re.compile(r"chunks-(\d{1,3})")


class SignIn(NamedTuple):
    """`mark` tells this sign-in from all others. It is made of what was signed and not of the cookie, which can be written in
    more than one way."""

    who: Identity
    mark: bytes


UNSTATED = (
    "Your e-mail address gives you no role here, because your provider does not say that it has verified it. Whoever runs this"
    " RAG Deck can name your group or your account ({sub}) in [access], or set access.oidc.trust_email = true where the provider"
    " lets nobody choose an address."
)
UNVERIFIED = (
    "Your e-mail address gives you no role here, because your provider says that it is not verified. Verify it there and sign in"
    " again, or ask whoever runs this RAG Deck to name your group or your account ({sub}) in [access]."
)


@dataclass(frozen=True)
class OidcSessions:
    """`cookie_secret` signs the cookies; `redirect_uri` is our own address; a sign-in counts for `session_seconds`.
    `trust_email`: an address counts although the provider does not state whether it was verified."""

    cookie_secret: str
    redirect_uri: str
    groups_claim: str
    session_seconds: float
    allowed: dict[Scope, tuple[str, ...]]
    trust_email: bool = False

    def __repr__(self) -> str:
        return f"OidcSessions({self.redirect_uri!r})"

    def identify(self, cookies: Mapping[str, str]) -> Identity | None:
        """Who signed in; None without a cookie, for one that is forged, cut, too old, or of another origin."""
        found = self.read(cookies)
        return found.who if found is not None else None

    def read(self, cookies: Mapping[str, str]) -> SignIn | None:
        """The same, with the mark of this sign-in."""
        text, signed_at_unix = self._text(cookies)
        claims = _object(text)
        if claims is None or claims.get("is_logged_in") is not True or claims.get("origin") != self._origin():
            return None
        doubt = self._doubt(claims)
        user = tuple(str(claims[key]) for key in ("email", "sub") if claims.get(key) and not (key == "email" and doubt))
        if not user:
            return None
        groups = _texts(claims.get(self.groups_claim))
        hint = doubt.format(sub=user[0][:200]) if claims.get("email") else ""
        who = Identity(user[0][:200], "oidc", granted(user, groups, self.allowed), groups=groups, hint=hint)
        return SignIn(who, hashlib.sha256(f"{signed_at_unix}\n{text}".encode()).digest())

    def _doubt(self, claims: Mapping[str, Any]) -> str:
        """Why the address counts for nothing; "" where it counts. With providers that have many tenants an attacker may have put
        any address at all into an account of theirs. It is told whether or not the address has a role, and so does not say."""
        stated = claims.get("email_verified")
        if stated is True or stated == "true":  # some providers write it as text
            return ""
        if stated is None:
            return "" if self.trust_email else UNSTATED
        return UNVERIFIED

    def _origin(self) -> str:
        parts = urlsplit(self.redirect_uri)
        return f"{parts.scheme}://{parts.netloc}"

    def _text(self, cookies: Mapping[str, str]) -> tuple[str | None, float]:
        """(the claims as they were signed, when)."""
        text, signed_at_unix = self._signed(cookies, COOKIE)
        chunks = _CHUNKS.match(text or "")
        if text is not None and chunks is not None:
            count = int(chunks[1])
            parts = [self._signed(cookies, f"{COOKIE}_{n + 1}")[0] for n in range(count)] if count <= MAX_CHUNKS else [None]
            text = None if None in parts else "".join(part or "" for part in parts)
        return text, signed_at_unix

    def _signed(self, cookies: Mapping[str, str], name: str) -> tuple[str | None, float]:
        if name not in cookies:
            return None, 0.0
        serializer = URLSafeTimedSerializer(self.cookie_secret, salt=name)
        try:
            value, at = serializer.loads(cookies[name], max_age=int(self.session_seconds), return_timestamp=True)
        except (BadData, ValueError, RecursionError):
            return None, 0.0
        return (value if isinstance(value, str) else None), at.timestamp()


def _object(text: str | None) -> dict[str, Any] | None:
    try:
        claims = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
    return claims if isinstance(claims, dict) else None


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(str(item) for item in value[:200] if isinstance(item, str)) if isinstance(value, list) else ()


def write_secrets(folder: Path, *, metadata_url: str, client_id: str, client_secret: str, redirect_uri: str) -> tuple[Path, str]:
    """(the file that Streamlit reads, the secret of its cookies), in `folder`, for its owner only.

    The cookies' secret is made once and kept, so that a restart signs nobody out; of processes and threads that begin at the same
    moment one makes it and the others read it. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / "secrets.toml"
    with _alone(folder):
        secret = _kept_secret(folder / "cookie.secret")
        auth = {
            "redirect_uri": redirect_uri,
            "cookie_secret": secret,
            "client_id": client_id,
            "client_secret": client_secret,
            "server_metadata_url": metadata_url,
        }
        _write(path, tomli_w.dumps({"auth": auth}))
    return path, secret


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else who asks for it writes there meanwhile, in this process or another. The lock ends with its holder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _kept_secret(path: Path) -> str:
    secret = path.read_text().strip() if path.exists() else ""
    if len(secret) < SECRET_CHARS:  # there is none, or a disk that was full has cut it
        secret = secrets.token_urlsafe(32)
        _write(path, secret)
    return secret


def _write(path: Path, text: str) -> None:
    """In one step, for its owner only: no moment in which it is half there, or others may read it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    beside.replace(path)
