"""Addresses of other hosts that a page would load: in HTML, styles, scripts and what is sent over the page's WebSocket.

A link that somebody may click loads nothing and is no finding; nor is an address in a script that is only data. Pure text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import NamedTuple

# Printable ASCII without quotes, brackets and backslash: what a URL ends at in a page, and in the bytes of a message.
REMOTE = r"(?:https?:|wss?:)?//(?![/'\"\s>])[\w.-]+\.[a-zA-Z]{2,}[!#-&(*-;=?-\[\]-~]*"
IN_STYLE = re.compile(rf"(?:url\(\s*|image-set\(\s*|@import\s+(?:url\(\s*)?)['\"]?({REMOTE})", re.I)
IN_SCRIPT = re.compile(
    r"(?:\bimport\(|\bimport\s*|\bfrom\s*|importScripts\(|new (?:Shared)?Worker\(|new EventSource\(|new WebSocket\(|\bfetch\("
    rf"|sendBeacon\(|\.open\(\s*['\"](?:GET|POST|PUT|HEAD)['\"]\s*,|\.src\s*=\s*)\s*[`'\"]({REMOTE})"
)
TAG = re.compile(
    r"<(?:script|link|img|iframe|frame|source|track|video|audio|embed|object|input|base|style|image|use)\b[^<>]{0,2000}>", re.I
)
FONT = re.compile(r"\.(woff2?|ttf|otf|eot)\b|fonts?[./]", re.I)
LOADING = {
    "script": ("src",), "img": ("src", "srcset"), "iframe": ("src",), "source": ("src", "srcset"), "video": ("src", "poster"),
    "audio": ("src",), "embed": ("src",), "object": ("data",), "image": ("href", "xlink:href"), "use": ("href", "xlink:href"),
    "frame": ("src",), "track": ("src",), "input": ("src",), "base": ("href",),
}  # fmt: skip
LOADING_LINKS = frozenset({"stylesheet", "preload", "modulepreload", "prefetch", "preconnect", "dns-prefetch", "icon",
                           "shortcut", "manifest", "apple-touch-icon"})  # fmt: skip


class Remote(NamedTuple):
    """An address that is loaded, and whether it is a font's."""

    url: str
    is_font: bool


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self.local: list[str] = []
        self.policy: str | None = None
        self._in: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._in = tag if tag in ("script", "style") else None
        for name in LOADING.get(tag, ()):
            self._take(given.get(name, ""))
        if tag == "link" and LOADING_LINKS & set(given.get("rel", "").lower().split()):
            self._take(given.get("href", ""))
        self.found += IN_STYLE.findall(given.get("style", ""))
        if tag == "meta" and given.get("http-equiv", "").lower() == "content-security-policy":
            self.policy = given.get("content")

    def handle_endtag(self, tag: str) -> None:
        self._in = None

    def handle_data(self, data: str) -> None:
        if self._in:
            self.found += (IN_STYLE if self._in == "style" else IN_SCRIPT).findall(data)

    def _take(self, address: str) -> None:
        for each in re.split(r",\s+|\s+\d+(?:\.\d+)?[wx]\b,?", address):
            if re.fullmatch(REMOTE, each.strip()):
                self.found.append(each.strip())
            elif each.strip() and not re.match(r"[a-z]+:", each.strip()):
                self.local.append(each.strip())


def in_html(text: str) -> tuple[list[Remote], list[str]]:
    """(what it loads from other hosts, the addresses on its own host that it loads)."""
    reader = _Reader()
    reader.feed(text)
    return _remotes(reader.found), list(dict.fromkeys(reader.local))


def in_style(text: str) -> list[Remote]:
    return _remotes(IN_STYLE.findall(text))


def in_script(text: str) -> list[Remote]:
    """Only what is loaded by a literal address (modules, workers, `fetch`, `.src =`); one that is put together may be unused."""
    return _remotes([url for url in IN_SCRIPT.findall(text) if "${" not in url])


def in_message(raw: bytes) -> list[Remote]:
    """In a message to the page, of whatever encoding: tags, styles, and font addresses of the theme."""
    text = raw.decode("utf-8", errors="replace")
    found = [url for tag in TAG.findall(text) for url in (each.url for each in in_html(tag)[0])]
    found += IN_STYLE.findall(text)
    found += [url for url in re.findall(REMOTE, text) if re.search(r"\.(woff2?|ttf|otf|eot)\b", url)]
    return _remotes(found)


def _remotes(urls: list[str]) -> list[Remote]:
    return [Remote(url, bool(FONT.search(url))) for url in dict.fromkeys(urls)]


def policy_hosts(policy: str) -> list[str]:
    """Sources of a content-security-policy that are other hosts, or everything."""
    words = [word for directive in policy.split(";") for word in directive.split()[1:]]
    return [word for word in words if word in ("*", "http:", "https:") or re.match(r"(https?:)?//|[\w*-]+\.[\w.*-]+", word)]


def in_python(text: str) -> Iterator[tuple[int, Remote]]:
    """(line, address) of tags and styles written in a program's source that would load from another host."""
    for number, line in enumerate(text.splitlines(), 1):
        if "//" in line and not line.lstrip().startswith("#"):
            for each in in_message(line.replace('\\"', '"').encode()):
                yield number, each
