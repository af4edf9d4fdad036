"""The route `/metrics` of the dashboard and of `rag serve`: all readings, and what the process does itself, for Prometheus.

Receives the runtime, imports it not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from collectors.alerts import Alert
from collectors.exposition import exposition
from collectors.own_metrics import Process
from collectors.views import Snapshot

log = logging.getLogger(__name__)

Watched = Callable[[], tuple[Snapshot, Iterable[Alert]]]


class Runtime(Process, Protocol):
    """The part of the runtime that is scraped; `deployment` is `deployment.Deployment`."""

    @property
    def deployment(self) -> Any: ...


def routes_of(runtime: Callable[[], Runtime]) -> list[Route]:
    """The route of a process; `runtime` is asked at each request."""

    def watched() -> tuple[Snapshot, Iterable[Alert]]:
        deployment = runtime().deployment
        return deployment.sweep.snapshot(), deployment.alerts.active()

    def own() -> bytes:
        running = runtime()
        page: bytes = running.deployment.own.text(running)
        return page

    return routes(watched, own)


def routes(watched: Watched, own: Callable[[], bytes] = bytes) -> list[Route]:
    """The route; `watched` gives what is known and the active alerts at each request, so that mounting builds nothing; `own` a
    page of what the process does itself."""

    async def metrics(request: Request) -> Response:
        try:
            page = await run_in_threadpool(lambda: exposition(*watched()) + own())
        except Exception as problem:  # settings that cannot be, and whatever else keeps the runtime from being built
            log.error("the metrics could not be made: %s", problem)
            return PlainTextResponse("RAG Deck cannot tell: its log and its first page say why.\n", 503)
        return Response(page, media_type=CONTENT_TYPE_LATEST)

    return [Route("/metrics", metrics, methods=["GET"])]
