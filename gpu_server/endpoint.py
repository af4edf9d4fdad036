"""Where a model server is and how it is spoken to. Knows nothing of connections; no secret of it is in any text it makes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

from gpu_server.redaction import masked, secrets_of, shown_address

_LAST = re.compile(r"/(embed|embeddings|rerank|health|status|info|models)$")
_VERSION = re.compile(r"/v\d\w*(/.*)?$")


@dataclass(frozen=True, slots=True)
class SettingNames:
    """What somebody changes when a call fails, as the messages name it."""

    url: str = "base_url"
    key: str = "api_key"
    model: str = "model"
    timeout: str = "timeout"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's address with or without path, `/v1` and the endpoint's own name; times in seconds.

    `retries` are further attempts after a failed one; the n-th waits 0.25 x `backoff_factor` ** n (n from 0).
    """

    base_url: str = field(repr=False)
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = 60.0
    retries: int = 3
    backoff_factor: float = 2.0
    names: SettingNames = field(default_factory=SettingNames)

    @property
    def shown(self) -> str:
        """The address without user, password and query."""
        return shown_address(self._base)

    @property
    def _base(self) -> str:
        parts = urlsplit(self.base_url.strip())
        path = _LAST.sub("", parts.path.rstrip("/")).rstrip("/")
        return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))

    @property
    def has_version(self) -> bool:
        """Whether the address names a version, such as `/v1` or `/v1beta/openai`."""
        return bool(_VERSION.search(urlsplit(self._base).path))

    def bare(self, path: str) -> str:
        """`path` beneath the address without its version: native endpoints."""
        parts = urlsplit(self._base)
        return urlunsplit(parts._replace(path=_VERSION.sub("", parts.path) + path))

    def versioned(self, path: str) -> str:
        """`path` beneath the address's version, `/v1` where it names none: OpenAI-compatible endpoints."""
        parts = urlsplit(self._base)
        return urlunsplit(parts._replace(path=parts.path + ("" if self.has_version else "/v1") + path))

    def redacted(self, text: str) -> str:
        """`text` without the key, the password and the headers' values: servers quote what they refuse."""
        return masked(text, secrets_of(self.base_url.strip(), (self.api_key, *self.headers.values())))
