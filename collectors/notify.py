"""Tells people about alerts, through the library apprise (mail, Slack, Telegram, PagerDuty, webhooks … by URL).

Sending happens on a thread of its own: a mail server that hangs must not hold up a sweep. What waits is sent as one message.
URLs hold secrets: they appear in no message; a service is named by its scheme and host.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from collectors.alerts import Event

log = logging.getLogger(__name__)

MAX_WAITING = 1_000
_WORDS = {"raised": "raised", "worse": "got worse", "better": "got better", "resolved": "resolved"}


class BadUrl(ValueError):
    """apprise does not know this kind of URL, or a part of it is missing. The message does not hold the URL."""


@dataclass(frozen=True, slots=True)
class NotifyHealth:
    """`services` are named without their secrets; `dropped` events were too many to wait; `problem` is of the last sending."""

    services: tuple[str, ...]
    sent: int = 0
    failed: int = 0
    dropped: int = 0
    problem: str | None = None


class Notifier:
    """Sends events to services by URL. Thread-safe; with no URLs it does nothing."""

    def __init__(self, urls: Sequence[str], link: str | None = None) -> None:
        """`link` is the dashboard's own address, put under each message. Raises BadUrl."""
        self._link = link
        self._waiting: deque[Event] = deque()
        self._changed = threading.Condition()
        self._busy = self._stopped = False
        self._services = [_service(number, url) for number, url in enumerate(urls, 1)]
        self._health = NotifyHealth(tuple(name for name, _ in self._services))
        if self._services:
            threading.Thread(target=self._run, name="notify", daemon=True).start()

    def send(self, events: Iterable[Event]) -> None:
        """Queue events and return at once. Events that got better are not news."""
        with self._changed:
            for event in events:
                if not self._services or event.change == "better":
                    continue
                if len(self._waiting) >= MAX_WAITING:
                    self._health = replace(self._health, dropped=self._health.dropped + 1)
                else:
                    self._waiting.append(event)
            self._changed.notify_all()

    def test(self) -> dict[str, bool]:
        """Send a test message now; whether each service took it."""
        body = "This is a test message of RAG Deck. Alerts will come this way."
        return {name: _notify(service, "RAG Deck: test", body, "info") for name, service in self._services}

    def settled(self, timeout: float) -> bool:
        """Wait until everything queued was tried; False when `timeout` seconds passed first."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, timeout)

    def health(self) -> NotifyHealth:
        with self._changed:
            return self._health

    def stop(self, timeout: float = 5.0) -> None:
        """Give what waits `timeout` seconds to be sent, then end."""
        self.settled(timeout)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopped)
                if self._stopped:
                    return
                events = list(self._waiting)
                self._waiting.clear()
                self._busy = True
            title, body, kind = message(events, self._link)
            results = {name: _notify(service, title, body, kind) for name, service in self._services}
            with self._changed:
                self._busy = False
                self._book(results)
                self._changed.notify_all()

    def _book(self, results: dict[str, bool]) -> None:
        refused = sorted(name for name, taken in results.items() if not taken)
        problem = f"not taken by {', '.join(refused)}: check its address and key, and send a test" if refused else None
        health = self._health
        self._health = replace(
            health, sent=health.sent + len(results) - len(refused), failed=health.failed + len(refused), problem=problem
        )
        if problem:
            log.warning("alerts were %s", problem)


def message(events: Sequence[Event], link: str | None = None) -> tuple[str, str, str]:
    """(title, body, apprise's kind of notification) for events that are told together."""
    lines = []
    for event in events:
        alert = event.alert
        detail = f" {alert.detail}" if alert.detail else ""
        word = _WORDS[event.change] + (f", {alert.ended}" if event.change == "resolved" and alert.ended else "")
        lines.append(f"{alert.level.upper()} {alert.title} on {alert.source}: {word} ({alert.metric}).{detail}")
        if event.change != "resolved":
            lines.append(f"  Next: {alert.next_step}")
    open_events = [event for event in events if event.change != "resolved"]
    kind = "success"
    if open_events:
        kind = "failure" if any(event.alert.level == "critical" for event in open_events) else "warning"
    head = events[0].alert
    title = f"RAG Deck: {head.title} on {head.source} {_WORDS[events[0].change]}"
    if len(events) > 1:
        title = f"RAG Deck: {len(open_events)} alerts raised, {len(events) - len(open_events)} resolved"
    return title, "\n".join([*lines, *([link] if link else [])]), kind


def _service(number: int, url: str) -> tuple[str, Any]:
    """(name without secrets, apprise's service)."""
    import apprise

    service = apprise.Apprise.instantiate(url, suppress_exceptions=True)
    scheme = urlsplit(url).scheme or "without a scheme"
    if service is None:
        raise BadUrl(f"notification URL {number} ({scheme}) is none that apprise knows, or a part of it is missing")
    host = getattr(service, "host", None)
    return f"{number} {scheme}{f' at {host}' if host and not _secret_host(scheme) else ''}", service


def _secret_host(scheme: str) -> bool:
    """Where apprise keeps a token in the place of the host: everything but mail and webhooks of one's own."""
    return scheme not in ("json", "jsons", "xml", "xmls", "form", "forms", "mailto", "mailtos", "ntfy", "ntfys")


def _notify(service: Any, title: str, body: str, kind: str) -> bool:
    try:
        return bool(service.notify(body=body, title=title, notify_type=kind))
    except Exception as problem:  # a plugin's own defect must not end the thread; its text could hold the URL
        log.warning("a notification failed with %s", type(problem).__name__)
        return False
