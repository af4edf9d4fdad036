"""Notifications through apprise to a real HTTP server on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from collectors.alerts import Alert, Event
from collectors.notify import MAX_WAITING, BadUrl, Notifier, message

PATIENCE = 60.0


class Receiver(ThreadingHTTPServer):
    """Keeps what it is sent; answers `status`, and waits for `gate` first."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict[str, Any]] = []
        self.status = 200
        self.gate = threading.Event()
        self.gate.set()

    @property
    def url(self) -> str:
        return f"json://user:secret-word@127.0.0.1:{self.server_address[1]}/hook?cto={PATIENCE}&rto={PATIENCE}"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.gate.wait(PATIENCE)
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.gate.set()
    server.shutdown()
    server.server_close()


def event(change: Any = "raised", level: Any = "critical", title: str = "Reranker down") -> Event:
    alert = Alert(1, "r", title, "gpu-box", "service.failed", level, 1.0, 1.0, 0.0, "refused", "Start it.", "state")
    return Event(change, alert)


def test_an_event_is_sent_with_what_to_do(receiver: Receiver) -> None:
    notifier = Notifier([receiver.url], "http://127.0.0.1:8502/alerts")
    notifier.send([event()])
    assert notifier.settled(PATIENCE)
    sent = receiver.bodies[0]
    assert sent["title"] == "RAG Deck: Reranker down on gpu-box raised" and sent["type"] == "failure"
    assert "refused" in sent["message"] and "Next: Start it." in sent["message"] and "8502/alerts" in sent["message"]
    assert notifier.health().sent == 1 and notifier.health().problem is None
    notifier.stop()


def test_a_server_that_hangs_holds_nobody_up_and_what_waited_is_one_message(receiver: Receiver) -> None:
    receiver.gate.clear()
    notifier = Notifier([receiver.url])
    notifier.send([event()])
    while not receiver.bodies:
        threading.Event().wait(0.01)
    for _ in range(3):
        notifier.send([event(), event("resolved", "warn")])
    receiver.gate.set()
    assert notifier.settled(PATIENCE)
    assert [body["title"] for body in receiver.bodies[1:]] == ["RAG Deck: 3 alerts raised, 3 resolved"]
    notifier.stop()


def test_a_refusal_is_said_without_the_secret(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    receiver.status = 500
    notifier = Notifier([receiver.url])
    notifier.send([event()])
    assert notifier.settled(PATIENCE)
    health = notifier.health()
    assert health.failed == 1 and "not taken by 1 json at 127.0.0.1" in str(health.problem)
    assert "secret-word" not in str(health) and "secret-word" not in caplog.text
    assert notifier.test() == {"1 json at 127.0.0.1": False}
    receiver.status = 200
    assert notifier.test() == {"1 json at 127.0.0.1": True}
    notifier.stop()


def test_better_is_no_news_and_the_queue_is_bounded(receiver: Receiver) -> None:
    receiver.gate.clear()
    notifier = Notifier([receiver.url])
    notifier.send([event("better", "warn")])
    assert notifier.settled(PATIENCE) and receiver.bodies == []
    notifier.send([event()])
    while not receiver.bodies:
        threading.Event().wait(0.01)
    notifier.send([event()] * (MAX_WAITING + 5))
    assert notifier.health().dropped == 5
    receiver.gate.set()
    assert notifier.settled(PATIENCE)
    notifier.stop()


@pytest.mark.parametrize("url", ["nonsense://secret-word", "slack://secret-word", "secret-word"])
def test_a_url_that_cannot_be_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(BadUrl) as problem:
        Notifier([url])
    assert "secret-word" not in str(problem.value) and "notification URL 1" in str(problem.value)


def test_without_urls_nothing_happens() -> None:
    notifier = Notifier([])
    notifier.send([event()])
    assert notifier.settled(0.1) and notifier.health().services == ()
    notifier.stop()


def test_the_message_of_several_and_of_good_news() -> None:
    assert message([event("resolved", "warn")])[2] == "success"
    assert message([event("raised", "warn")])[2] == "warning"
    assert message([event("resolved"), event("raised", "warn")])[0] == "RAG Deck: 1 alerts raised, 1 resolved"
