"""What the door answers: refusals as JSON errors that say what to change. Knows no caller and no route."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response

from access.limits import retry_after

NOT_KEPT = {"cache-control": "no-store"}
# Closed after the answer: otherwise the server would read the rest of the body, to find the next request behind it
CLOSING = {"connection": "close"}


def error(status: int, kind: str, message: str, next_step: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"kind": kind, "message": message, "next_step": next_step}}, status, headers)


def too_large(size: str, most: int) -> Response:
    return error(413, "bad_input", f"the body has {size} bytes; at most {most:,} are taken", "Send less.", CLOSING)


def too_slow(seconds: float) -> Response:
    return error(408, "timeout", f"the body did not come within {seconds:g} s", "Send it faster, or less.", CLOSING)


def busy(message: str, wait_seconds: float) -> Response:
    return error(429, "overloaded", message, "Wait as long as Retry-After says.", {"retry-after": retry_after(wait_seconds)})
