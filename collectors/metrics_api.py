"""The route `/metrics`: all readings for a Prometheus server to scrape. Receives what it shows, knows no runtime."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from collectors.alerts import Alert
from collectors.exposition import exposition
from collectors.views import Snapshot

log = logging.getLogger(__name__)

Watched = Callable[[], tuple[Snapshot, Iterable[Alert]]]


def routes(watched: Watched) -> list[Route]:
    """The route; `watched` gives what is known and the active alerts at each request, so that mounting builds nothing."""

    async def metrics(request: Request) -> Response:
        try:
            page = await run_in_threadpool(lambda: exposition(*watched()))
        except Exception as problem:  # settings that cannot be, and whatever else keeps the runtime from being built
            log.error("the metrics could not be made: %s", problem)
            return PlainTextResponse("RAG Deck cannot tell: its log and its first page say why.\n", 503)
        return Response(page, media_type=CONTENT_TYPE_LATEST)

    return [Route("/metrics", metrics, methods=["GET"])]
