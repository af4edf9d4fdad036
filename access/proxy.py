"""Sign-in by a reverse proxy: a header with the user's name, believed only beside the secret that the proxy and we share.

A proxy must remove these headers from what clients send. One that forgets is caught by the secret, which clients do not know.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass

from starlette.datastructures import Headers

from access.scopes import Identity, Scope, granted

MAX_NAME_CHARS = 200
MAX_GROUPS = 200


@dataclass(frozen=True)
class TrustedProxy:
    """`header` has the user, `groups_header` their groups (separated by commas), `secret_header` the `secret`."""

    header: str
    secret_header: str
    secret: str
    groups_header: str | None
    allowed: dict[Scope, tuple[str, ...]]

    def __repr__(self) -> str:
        return f"TrustedProxy({self.header!r})"

    def identify(self, headers: Headers) -> Identity | None:
        """Who the proxy says it is; None without the secret, without a name, and where a header comes twice: one of the two
        would be the client's."""
        secret, name = headers.getlist(self.secret_header), headers.getlist(self.header)
        groups = headers.getlist(self.groups_header) if self.groups_header else []
        if len(secret) != 1 or len(name) != 1 or len(groups) > 1:
            return None
        if not hmac.compare_digest(secret[0].encode("latin-1"), self.secret.encode()):
            return None
        user = _text(name[0])[:MAX_NAME_CHARS]
        if not user:
            return None
        found = tuple(part.strip() for part in re.split("[,;]", _text(groups[0])) if part.strip())[:MAX_GROUPS] if groups else ()
        return Identity(user, "proxy", granted((user,), found, self.allowed), groups=found)


def _text(value: str) -> str:
    """Header bytes as UTF-8 where they are, without what does not print."""
    try:
        value = value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        value = value.encode("ascii", "replace").decode()
    return "".join(character for character in value if character.isprintable()).strip()
