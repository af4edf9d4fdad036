"""Keeps secrets out of the log: the values of the settings, and what looks like a credential whoever wrote it.

A last net, not the rule: nothing of ours logs a secret on purpose. What others raise may carry one (a URL with a password in it).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

MASK = "***"
LEAST_CHARS = 6  # a shorter value would mask half the log and protect nothing
KEY_CHARS = 16  # a part of a secret address that is so long is a key: notifications carry theirs in paths
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?i)\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{6,}"), r"\1\2" + MASK),
    (re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]{1,20}://)[^/\s@'\"<>]{1,512}@"), r"\1" + MASK + "@"),
    (re.compile(r"\b(rd[ks]_[0-9a-f]{12}_)[A-Za-z0-9_-]{20,}"), r"\1" + MASK),
    (re.compile(r"\b(sk|pk|hf|ghp|xoxb)([-_])[A-Za-z0-9_-]{12,}"), r"\1\2" + MASK),
    (
        re.compile(
            r"(?i)(['\"]?\b(?:api[-_]?key|access[-_]?token|client[-_]?secret|password|passwd|passphrase|authorization)['\"]?\s*[=:]\s*['\"]?)"
            r"(?!\*\*\*|None\b|null\b|(?:bearer|basic)\s)[^\s'\",;&}]{4,}"
        ),
        r"\1" + MASK,
    ),
)


class Redactor:
    """Masks the given values, as they are and as a URL has them, and the patterns."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        forms = {form for value in values if len(value) >= LEAST_CHARS for form in (value, quote(value, safe=""), quote(value))}
        self._values = re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))) if forms else None

    def __call__(self, text: str) -> str:
        if self._values is not None:
            text = self._values.sub(MASK, text)
        for pattern, masked in _PATTERNS:
            text = pattern.sub(masked, text)
        return text


class RedactingFormatter(logging.Formatter):
    """Another formatter's text with secrets masked: after formatting, so that arguments and tracebacks are covered too."""

    def __init__(self, inner: logging.Formatter, redact: Redactor) -> None:
        super().__init__()
        self.inner, self.redact = inner, redact

    def format(self, record: logging.LogRecord) -> str:
        return self.redact(self.inner.format(record))


def install(redact: Redactor, handlers: Iterable[logging.Handler] | None = None) -> None:
    """Put it before everything the handlers write (default: those of every logger there is). Again: with the new values."""
    for handler in _handlers() if handlers is None else handlers:
        inner = handler.formatter or logging.Formatter()
        if isinstance(inner, RedactingFormatter):
            inner = inner.inner
        handler.setFormatter(RedactingFormatter(inner, redact))


def _handlers() -> list[logging.Handler]:
    loggers = [
        logging.getLogger(),
        *(item for item in logging.Logger.manager.loggerDict.values() if isinstance(item, logging.Logger)),
    ]
    found = {id(handler): handler for logger in loggers for handler in logger.handlers}
    if logging.lastResort is not None:
        found[id(logging.lastResort)] = logging.lastResort
    return list(found.values())


def secret_values(value: Any) -> list[str]:
    """Every secret in settings, whatever it stands in: anything that hides its value behind `get_secret_value`. A secret that
    is a URL is a secret by its userinfo too."""
    reveal = getattr(value, "get_secret_value", None)
    if reveal is not None:
        text = str(reveal())
        inner = re.findall(r"://([^/\s]*)@", text)
        rest = re.split(r"[/?&=#@:]", text.partition("://")[2]) if "://" in text else []
        keys = [part for part in rest if len(part) >= KEY_CHARS and "." not in part]
        return [text, *keys, *(part for login in inner for part in login.split(":") if part)]
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in secret_values(item)]
    if isinstance(value, (tuple, list)):
        return [text for item in value for text in secret_values(item)]
    fields = getattr(type(value), "model_fields", None)
    return [text for name in fields for text in secret_values(getattr(value, name))] if fields else []
