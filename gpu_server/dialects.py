"""Errors and numbers in the shape of the dialect spoken: native and TEI, OpenAI, Cohere.

Foreign and own exceptions become a status and a body here and nowhere else. Knows nothing of models or of connections.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gpu_server.batch_queue import ShuttingDown
from gpu_server.errors import (
    AuthenticationFailed,
    BadInput,
    EngineError,
    ForwardFailed,
    ModelError,
    Overloaded,
    TimedOut,
    TooLarge,
)
from gpu_server.interfaces import Timing
from gpu_server.schemas import EmptyInput

Dialect = Literal["native", "openai", "cohere"]
TeiErrorType = Literal["Validation", "Overloaded", "Backend", "Unhealthy", "Tokenizer", "Empty"]

JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
RETRY_SECONDS = 1.0  # a place in a full queue is free again after a batch or two


class NotServed(ModelError):
    """The model asked for, or a model of this kind, is not the one that is served here."""


class Unready(EngineError):
    """The models are not proven yet, or the server is on its way out."""

    kind = "overloaded"


class WrongMediaType(BadInput):
    """The body is said to be something else than JSON."""


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a client is told: the status, a sentence, and how each dialect classes it."""

    status: int
    message: str
    tei_type: TeiErrorType
    openai_type: str
    code: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def dialect_of(path: str) -> Dialect:
    if not path.startswith(("/v1/", "/v2/")):
        return "native"
    return "cohere" if path.endswith("/rerank") else "openai"


def refusal(problem: BaseException, dialect: Dialect) -> Refusal:
    """The first class of the table that `problem` belongs to; what is in no class is our fault and stays in our log."""
    message = _sentence(problem)
    if isinstance(problem, HTTPException):
        code = "not_found" if problem.status_code == 404 else "not_allowed"
        headers = dict(problem.headers or {})
        return Refusal(problem.status_code, problem.detail, "Validation", "invalid_request_error", code, headers=headers)
    for kind, status, tei_type, openai_type, code in _TABLE:
        if isinstance(problem, kind):
            if status == 422 and dialect != "native":
                status = 400
            param = getattr(problem, "field", None)
            return Refusal(status, message, tei_type, openai_type, code, param, _headers(problem, status))
    return Refusal(500, "the server failed at this request; its log says why", "Backend", "server_error", "internal_error")


_TABLE: tuple[tuple[type[BaseException], int, TeiErrorType, str, str], ...] = (
    (EmptyInput, 400, "Empty", "invalid_request_error", "empty_input"),
    (WrongMediaType, 415, "Validation", "invalid_request_error", "unsupported_media_type"),
    (TooLarge, 413, "Validation", "invalid_request_error", "too_large"),
    (BadInput, 422, "Validation", "invalid_request_error", "invalid_value"),
    (AuthenticationFailed, 401, "Validation", "authentication_error", "invalid_api_key"),
    (NotServed, 404, "Validation", "invalid_request_error", "model_not_found"),
    (ShuttingDown, 503, "Unhealthy", "server_error", "not_ready"),
    (Overloaded, 429, "Overloaded", "rate_limit_error", "overloaded"),
    (Unready, 503, "Unhealthy", "server_error", "not_ready"),
    (ForwardFailed, 424, "Backend", "server_error", "backend_failed"),
    (ModelError, 503, "Unhealthy", "server_error", "model_failed"),
    (TimedOut, 504, "Backend", "server_error", "timeout"),
    (TimeoutError, 504, "Backend", "server_error", "timeout"),
    (ClientGone, 499, "Backend", "server_error", "client_gone"),
)


def _sentence(problem: BaseException) -> str:
    if isinstance(problem, EngineError):
        return f"{problem.message}. {problem.next_step}" if problem.next_step else problem.message
    return str(problem) or "the time limit passed before the models answered"


def _headers(problem: BaseException, status: int) -> dict[str, str]:
    if status == 401:
        return {"www-authenticate": "Bearer"}
    if status in (429, 503):
        seconds = getattr(problem, "retry_after", None) or RETRY_SECONDS
        return {"retry-after": str(max(1, math.ceil(seconds)))}
    return {}


def error_body(told: Refusal, dialect: Dialect) -> dict[str, Any]:
    if dialect == "openai":
        return {"error": {"message": told.message, "type": told.openai_type, "param": told.param, "code": told.code}}
    if dialect == "cohere":
        return {"message": told.message}
    return {"error": told.message, "error_type": told.tei_type}


def error_response(told: Refusal, dialect: Dialect) -> Response:
    return json_response(error_body(told, dialect), status=told.status, headers=told.headers)


def json_response(data: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(dumps(data), status, headers, media_type="application/json")


def dumps(data: Any) -> bytes:
    """JSON; numpy arrays go in as they are, integer keys become strings."""
    return orjson.dumps(data, option=JSON_OPTIONS)


def sigmoid(raw: NDArray[np.float32]) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)) in float64: in float32 every score above 17 would be 1, and the raw one lost."""
    return 1.0 / (1.0 + np.exp(-np.clip(raw.astype(np.float64), -700.0, 700.0)))


def base64_floats(row: NDArray[np.float32]) -> str:
    """Raw little-endian float32, as the `openai` package asks for it unless told otherwise."""
    return base64.b64encode(row.astype("<f4").tobytes()).decode("ascii")


def shortened(dense: NDArray[np.float32], dimensions: int) -> NDArray[np.float32]:
    """The first `dimensions` numbers of each row, normalised again (Kusupati et al. 2022, Matryoshka)."""
    cut = dense[:, :dimensions]
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    return np.asarray(cut / np.maximum(norms, 1e-12), dtype=np.float32)


def time_headers(timing: Timing, total_seconds: float) -> dict[str, str]:
    """Milliseconds with three decimals, so that a client can tell the network's part; `x-cold` is the pool's word."""
    parts = {
        "x-total-time": total_seconds,
        "x-load-time": timing.load,
        "x-queue-time": timing.queue,
        "x-tokenization-time": timing.tokenize,
        "x-inference-time": timing.compute,
    }
    return {**{name: f"{seconds * 1000:.3f}" for name, seconds in parts.items()}, "x-cold": "1" if timing.cold else "0"}
