"""The world of hostile texts and planted secrets: one for all tests of this folder, because it takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.conftest import browser as browser
from tests.security.canaries import canary
from tests.security.world import STATUSES, World, eventually, started


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with started(tmp_path_factory.mktemp("world")) as running:
        yield running


@pytest.fixture(scope="package")
def used(world: World) -> World:
    """After everything that could make it tell: questions, refusals of every kind, failed documents, alerts, spans sent."""
    for status in STATUSES:
        answer = world.ask_refused(status)
        assert answer["outcome"] == "failed"
    world.call("POST", "/api/v1/ask", json={"query": "x", "wrong": canary("unused")[:5]})
    world.call("POST", "/api/v1/ask", content=b"{", headers={"content-type": "application/json"})
    world.call("GET", "/api/v1/queries", token="wrong")
    for place, what in {
        "/otlp": "spans are to be sent",
        "/locked/ocr": "a scan is to be read",
        "/locked/speech": "a recording is to be read",
        "/locked/" + canary("alerts.notify"): "an alert is to be sent",
    }.items():
        eventually(lambda place=place: world.remote.asked(place), lambda what=what: what)
    return world
