"""POST /v1/traces: OTLP/HTTP of other programs. Receives the runtime, imports it not; who may come in is the guard's business."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from latency.otlp import wire
from latency.otlp.receiver import Receiver
from rag.api import STATUS, refused
from rag.errors import RagError

RETRY_SECONDS = 30


class ReceivingRuntime(Protocol):
    """The part of the runtime that takes spans; `receiver` None where the settings say not to."""

    @property
    def receiver(self) -> Receiver | None: ...


def routes(runtime: Callable[[], ReceivingRuntime]) -> list[Route]:
    """The route; `runtime` is asked at each request, so that importing and mounting build nothing."""

    async def traces(request: Request) -> Response:
        try:
            return await _traces(request, runtime)
        except RagError as problem:
            answer = refused(problem)
            if answer.status_code == STATUS["overloaded"]:
                answer.headers["retry-after"] = str(RETRY_SECONDS)  # exporters wait so long and send again
            return answer

    return [Route("/v1/traces", traces, methods=["POST"])]


async def _traces(request: Request, runtime: Callable[[], ReceivingRuntime]) -> Response:
    receiver = (await run_in_threadpool(runtime)).receiver
    if receiver is None:
        raise RagError("spans are not taken here", kind="not_found", next_step="Set traces.receive to true.")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (wire.PROTOBUF, wire.JSON):
        step = f"Send {wire.PROTOBUF} or {wire.JSON} (OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf)."
        return refused(RagError(f"content type {kind or 'none'!r} is not taken", kind="bad_input", next_step=step), 415)
    body = await _body(request)
    if body is None:
        limit = f"at most {wire.MAX_BODY_BYTES:,} bytes are taken"
        return refused(RagError(limit, kind="bad_input", next_step="Lower the exporter's batch size, or switch gzip on."), 413)
    encoding = request.headers.get("content-encoding", "").strip().lower()

    def take() -> tuple[int, int]:
        spans, broken = wire.read(body, kind, encoding)
        return broken, receiver.take(spans)

    broken, over = await run_in_threadpool(take)
    reasons = [f"{broken} without valid ids or times"] * bool(broken) + [f"{over} over the limits of one trace or of all"] * bool(
        over
    )
    return Response(wire.answer(kind, broken + over, "; ".join(reasons)), media_type=kind)


async def _body(request: Request) -> bytes | None:
    """The body, None where it is too long. Raises RagError for a client that went away."""
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > wire.MAX_BODY_BYTES:
                return None
            chunks.append(chunk)
    except ClientDisconnect:
        raise RagError("the client went away", kind="bad_input") from None
    return b"".join(chunks)
