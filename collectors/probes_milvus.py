"""Milvus over gRPC, without its client: version, health, the list of collections. Knows nothing of what is in them.

Three calls with empty messages need no generated code, and the client package belongs to the store of the query path.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from collectors.attempt import Attempt, Finding
from collectors.connect_timing import Steps, remaining
from collectors.services import Service, ServiceError

ANSWER_BYTES = 1024 * 1024
SERVICE = "/milvus.proto.milvus.MilvusService/"

Fields = list[tuple[int, int | bytes]]


def milvus_is_healthy(attempt: Attempt) -> Finding:
    """`GetVersion` and `CheckHealth` over gRPC."""
    with _milvus(attempt) as call:
        return _milvus_health(call, attempt.service)


def milvus_works(attempt: Attempt) -> Finding:
    """The same, and its collections are listed: what needs its metadata store."""
    with _milvus(attempt) as call:
        health = _milvus_health(call, attempt.service)
        found = call("ShowCollections")
        _milvus_status(found, attempt.service)
    names = [value for number, value in found if number == 2 and isinstance(value, bytes)]
    if health.state != "ok":
        return health
    return replace(health, message=f"healthy, {len(names)} collections", measures={"collections": float(len(names))})


def _milvus_health(call: Callable[[str], Fields], service: Service) -> Finding:
    answer = call("GetVersion")
    _milvus_status(answer, service)
    version = next(
        (value.decode("utf-8", "replace") for number, value in answer if number == 2 and isinstance(value, bytes)), None
    )
    if version is None:
        raise ServiceError("bad_answer", "it answers gRPC, but not as Milvus does")
    try:
        answer = call("CheckHealth")
    except ServiceError as problem:
        if problem.failure != "not_found":
            raise
        return Finding("answers", version=version, notes=("it has no health check",))
    _milvus_status(answer, service)
    if any(number == 2 and value == 1 for number, value in answer):
        return Finding("healthy", version=version)
    reasons = "; ".join(value.decode("utf-8", "replace") for number, value in answer if number == 3 and isinstance(value, bytes))
    step = "Read the log of the component that is named, and look at etcd and the object store that Milvus rests on."
    return Finding(f"not healthy: {reasons or 'no reason given'}", "degraded", "server_error", step, version=version)


def _milvus_status(answer: Fields, service: Service) -> None:
    """Field 1 of every answer is a Status: error_code 1, reason 2, code 3 (milvus-proto, common.proto)."""
    status = next((value for number, value in answer if number == 1 and isinstance(value, bytes)), b"")
    fields = dict(protobuf_fields(status))
    if fields.get(1) or fields.get(3):
        reason = fields.get(2, b"")
        said = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else ""
        if "auth" in said.lower():
            raise service.refused(f"Milvus: {said}")
        raise ServiceError("server_error", f"it answered with an error: {said}")


@contextmanager
def _milvus(attempt: Attempt) -> Iterator[Callable[[str], Fields]]:
    """A gRPC channel; what it yields calls a method with an empty message and gives the fields of the answer."""
    import grpc  # type: ignore[import-untyped]  # it has no types

    secure = attempt.service.parts.scheme == "https"
    attempt.touch(tls=secure)  # says what is wrong with name, port and certificate better than gRPC does
    host, port = attempt.service.endpoint
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    options = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", ANSWER_BYTES),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if secure and not attempt.service.verify:
        raise ServiceError("bad_input", "gRPC cannot leave a certificate unchecked", "Name its authority as ca_file instead.")
    ca = attempt.service.ca_file.read_bytes() if attempt.service.ca_file else None
    credentials = grpc.ssl_channel_credentials(ca)
    channel = grpc.secure_channel(target, credentials, options) if secure else grpc.insecure_channel(target, options)
    metadata = _milvus_metadata(attempt.service)

    def call(method: str) -> Fields:
        try:
            answer: bytes = channel.unary_unary(SERVICE + method)(b"", timeout=remaining(attempt.deadline), metadata=metadata)
            return protobuf_fields(answer)
        except grpc.RpcError as problem:
            raise _of_grpc(problem, attempt.service) from None
        except TimeoutError:
            raise ServiceError("timeout", "Milvus did not answer in time") from None
        except ValueError:
            raise ServiceError("bad_answer", "it answers gRPC, but not as Milvus does") from None

    with channel, attempt.timed(Steps()):
        yield call


def _milvus_metadata(service: Service) -> tuple[tuple[str, str], ...]:
    """Milvus wants `user:password`, or an API key, in base64. A key beside a user in the url is that user's password."""
    user, password = service.credentials
    token = f"{user}:{service.api_key or password or ''}" if user else service.api_key
    return (("authorization", base64.b64encode(token.encode()).decode()),) if token else ()


def _of_grpc(problem: Any, service: Service) -> ServiceError:
    code, details = problem.code().name, problem.details() or ""
    if code == "DEADLINE_EXCEEDED":
        return ServiceError("timeout", "it takes connections, but Milvus did not answer in time")
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return service.refused(f"Milvus: {details}", may_not=code == "PERMISSION_DENIED")
    if code == "UNIMPLEMENTED":
        return ServiceError("not_found", "it answers gRPC, but not as Milvus does")
    if code == "RESOURCE_EXHAUSTED":
        return ServiceError("overloaded", f"Milvus is overloaded: {details}")
    if code == "UNAVAILABLE":
        return ServiceError("bad_answer", f"it takes connections, but does not speak Milvus' gRPC: {details}")
    return ServiceError("server_error", f"Milvus answered {code}: {details}")


def protobuf_fields(data: bytes) -> Fields:
    """(field number, value) of a message in Protocol Buffers' wire format: varints as int, the rest as bytes.

    Raises ValueError.
    """
    fields: Fields = []
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, place = _varint(data, place)
            fields.append((number, value))
            continue
        length = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            length, place = _varint(data, place)
        if length is None or place + length > len(data):
            raise ValueError("no Protocol Buffers message")
        fields.append((number, data[place : place + length]))
        place += length
    return fields


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("no Protocol Buffers message")
