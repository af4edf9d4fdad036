"""What is asked of the planner: GPUs, a buffer, services; read from TOML, JSON or a URL's text, and written back.

Everything may come from a stranger's link: each field is checked, and a problem names it. Knows the catalogue's names only as
texts.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

import tomli_w

from deploy.planner.brought import Brought, brought
from deploy.planner.cache import BYTES
from deploy.planner.catalogue import Gpu, gpu, gpu_from
from deploy.planner.memory import TOKEN_BUDGET
from deploy.planner.precisions import PRECISIONS
from rag.errors import RagError

Engine = Literal["vllm", "gpu_server", "other"]
ENGINES: Final[tuple[Engine, ...]] = get_args(Engine)
MOST_GPUS = 64
MOST_SERVICES = 32


@dataclass(frozen=True, slots=True)
class Service:
    """A model to be served.

    `context` tokens a sequence, `sequences` of them at once (texts of a batch, for encoders). `split` is tensor parallelism.
    `gpus` pins it to indices, empty lets the planner choose. `reserve_gb` is what it gets of each GPU, in the GPU's nominal GB;
    `stated_share` the --gpu-memory-utilization somebody wrote down; with neither it gets what it needs, and with `fill` all that
    is left. Services with the same `process` share a CUDA context. `match` is a text in the name of its process where it runs.
    """

    name: str
    model: str
    engine: Engine = "vllm"
    precision: str = ""
    context: int = 4096
    sequences: int = 4
    cache: str = "auto"
    split: int = 1
    gpus: tuple[int, ...] = ()
    reserve_gb: float | None = None
    stated_share: float | None = None
    fill: bool = False
    batched: int = 2048
    eager: bool = False
    process: str = ""
    port: int | None = None
    match: str = ""
    weights: str = ""

    @property
    def runs_in(self) -> str:
        return self.process or self.name


@dataclass(frozen=True, slots=True)
class Request:
    """GPUs of one machine, the buffer kept on each (nominal GB), services, and models that are in no table. With
    `buffer_holds_contexts` CUDA contexts may come out of the buffer, as in plans that know only shares."""

    name: str
    gpu: Gpu
    count: int = 1
    buffer_gb: float = 1.0
    buffer_holds_contexts: bool = False
    services: tuple[Service, ...] = ()
    notes: tuple[str, ...] = field(default=())
    models: tuple[Brought, ...] = ()


def default_batched(engine: object) -> int:
    """Tokens in one step, where nobody says: our GPU server's budget, or vLLM's with chunked prefill."""
    return TOKEN_BUDGET if engine == "gpu_server" else 2048


def bad(what: str, next_step: str = "") -> RagError:
    return RagError(f"the plan cannot be used: {what}", kind="bad_input", next_step=next_step)


# 1) reading


def from_toml(text: str) -> Request:
    """Raises RagError (`bad_input`) for what is no plan."""
    try:
        return from_dict(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as problem:
        raise bad(f"it is no TOML ({str(problem)[:200]})") from problem


def from_json(text: str) -> Request:
    """Raises RagError (`bad_input`) for what is no plan."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise bad(f"it is no JSON ({str(problem)[:200]})") from problem
    if not isinstance(found, dict):
        raise bad("it is no JSON object")
    return from_dict(found)


def from_dict(data: Mapping[str, Any]) -> Request:
    """A request from plain data; unknown fields are refused. Raises RagError (`bad_input`)."""
    _known(data, {"name", "gpu", "count", "buffer_gb", "buffer_holds_contexts", "services", "notes", "models"}, "plan")
    services = data.get("services", [])
    if not isinstance(services, list) or not 1 <= len(services) <= MOST_SERVICES:
        raise bad(f"services is not a list of 1 to {MOST_SERVICES}", "Add a [[services]] with name and model.")
    request = Request(
        _text(data, "name", "plan", default="plan"),
        _gpu(data.get("gpu")),
        _whole(data, "count", 1, MOST_GPUS, "plan", default=1),
        _real(data, "buffer_gb", 0, 10_000, "plan", default=1.0) or 0.0,
        _truth(data, "buffer_holds_contexts", "plan"),
        tuple(_service(each) for each in services),
        tuple(str(each)[:1000] for each in data.get("notes", ()) if isinstance(each, str)),
        _models(data.get("models", [])),
    )
    consistent(request)
    return request


def _gpu(value: object) -> Gpu:
    if isinstance(value, str):
        return gpu(value)
    if not isinstance(value, Mapping):
        raise bad(
            "gpu is neither a name nor a table", 'Write gpu = "A100 40GB", or a table with name, nominal_gb and usable_mib.'
        )
    _known(value, {"name", "nominal_gb", "usable_mib", "bandwidth_gb_s", "tensor_tflops", "bf16"}, "gpu")
    checked = {
        "name": _text(value, "name", "gpu"),
        "nominal_gb": _real(value, "nominal_gb", 1, 10_000, "gpu"),
        "usable_mib": _whole(value, "usable_mib", 512, 10_000_000, "gpu"),
        "bandwidth_gb_s": _real(value, "bandwidth_gb_s", 1, 1e6, "gpu", default=None, optional=True),
        "tensor_tflops": _real(value, "tensor_tflops", 0.1, 1e6, "gpu", default=None, optional=True),
        "bf16": value.get("bf16", True) is True,
    }
    if checked["nominal_gb"] is None:
        raise bad("gpu has no nominal_gb")
    return gpu_from(checked)


def _service(data: object) -> Service:
    if not isinstance(data, Mapping):
        raise bad("a service is no table")
    where = f"service {str(data.get('name', '?'))[:40]}"
    _known(data, {each.name for each in dataclasses.fields(Service)}, where)
    return Service(
        _text(data, "name", where),
        _text(data, "model", where, most=500),
        _choice(data, "engine", ENGINES, where, "vllm"),  # type: ignore[arg-type]
        _choice(data, "precision", ("", *PRECISIONS), where, ""),
        _whole(data, "context", 1, 10_000_000, where, default=4096),
        _whole(data, "sequences", 1, 4096, where, default=4),
        _choice(data, "cache", tuple(BYTES), where, "auto"),
        _whole(data, "split", 1, MOST_GPUS, where, default=1),
        _indices(data.get("gpus", []), where),
        _real(data, "reserve_gb", 0.1, 10_000, where, default=None, optional=True),
        _real(data, "stated_share", 0.01, 1, where, default=None, optional=True),
        _truth(data, "fill", where),
        _whole(data, "batched", 1, 1_000_000, where, default=default_batched(data.get("engine"))),
        _truth(data, "eager", where),
        _text(data, "process", where, default=""),
        _whole(data, "port", 1, 65_535, where) if data.get("port") is not None else None,
        _text(data, "match", where, default=""),
        _text(data, "weights", where, default="", most=500),
    )


def _models(data: object) -> tuple[Brought, ...]:
    if not isinstance(data, list) or len(data) > MOST_SERVICES or not all(isinstance(each, Mapping) for each in data):
        raise bad(f"models is not a list of at most {MOST_SERVICES} tables")
    for each in data:
        _known(each, {"name", "kind", "config"}, "a model")
        if not isinstance(each.get("config"), Mapping):
            raise bad("a model has no config", "It is the model's config.json, as a table.")
    found = tuple(brought(_text(each, "name", "a model", most=500), each["config"], str(each.get("kind", ""))) for each in data)
    if len({each.name for each in found}) < len(found):
        raise bad("two models have the same name")
    return found


def consistent(request: Request) -> None:
    """Raises RagError for services that cannot be side by side."""
    names = [each.name for each in request.services]
    if len(set(names)) < len(names):
        raise bad("two services have the same name")
    for each in request.services:
        if each.gpus and (len(each.gpus) != each.split or max(each.gpus) >= request.count):
            many = f"{each.split} of the {request.count} GPUs"
            raise bad(f"service {each.name} names GPUs {list(each.gpus)}, but takes {many}, counted from 0")
    for each in request.services:
        others = [other for other in request.services if other is not each and other.runs_in == each.runs_in]
        if any(each.engine == "vllm" or other.engine != each.engine for other in others):
            step = "Each vLLM is a process of its own, and a process has one kind of server."
            raise bad(f"service {each.name} shares the process {each.runs_in} with {others[0].name}", step)


def _known(data: Mapping[str, Any], names: set[str], where: str) -> None:
    unknown = sorted(str(key)[:40] for key in data if key not in names)
    if unknown:
        raise bad(f"{where} has unknown fields: {', '.join(unknown[:5])}", f"Known are {', '.join(sorted(names))}.")


def _text(data: Mapping[str, Any], name: str, where: str, default: str | None = None, most: int = 100) -> str:
    value = data.get(name, default)
    if not isinstance(value, str) or len(value) > most or (default is None and not value.strip()) or not value.isprintable():
        raise bad(f"{where}: {name} is not a text of at most {most} characters")
    return value.strip()


def _choice(data: Mapping[str, Any], name: str, choices: tuple[str, ...], where: str, default: str) -> str:
    value = data.get(name, default)
    if value not in choices:
        raise bad(f"{where}: {name} is {str(value)[:40]!r}", "It is one of " + ", ".join(filter(None, choices)) + ".")
    return str(value)


def _whole(data: Mapping[str, Any], name: str, low: int, high: int, where: str, default: int | None = None) -> int:
    value = data.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise bad(f"{where}: {name} is {str(value)[:40]}", f"It is a whole number, {low} to {high}.")
    return value


def _real(
    data: Mapping[str, Any],
    name: str,
    low: float,
    high: float,
    where: str,
    default: float | None = None,
    optional: bool = False,
) -> float | None:
    value = data.get(name, default)
    if value is None and (optional or default is not None):
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise bad(f"{where}: {name} is {str(value)[:40]}", f"It is a number, {low:g} to {high:g}.")
    return float(value)


def _truth(data: Mapping[str, Any], name: str, where: str) -> bool:
    value = data.get(name, False)
    if not isinstance(value, bool):
        raise bad(f"{where}: {name} is neither true nor false")
    return value


def _indices(value: object, where: str) -> tuple[int, ...]:
    good = isinstance(value, list | tuple) and all(type(each) is int and 0 <= each < MOST_GPUS for each in value)
    if not good or len(set(value)) < len(value):  # type: ignore[arg-type,call-overload]
        raise bad(f"{where}: gpus is not a list of different indices")
    return tuple(value)  # type: ignore[arg-type]


# 2) writing


def to_dict(request: Request) -> dict[str, Any]:
    """Plain data that `from_dict` reads back; what is as it would be anyway is left out."""
    found: dict[str, Any] = {"name": request.name, "gpu": _gpu_value(request.gpu), "count": request.count}
    found |= {"buffer_gb": request.buffer_gb, "buffer_holds_contexts": request.buffer_holds_contexts}
    if request.notes:
        found["notes"] = list(request.notes)
    if request.models:
        found["models"] = [_model_dict(each) for each in request.models]
    return found | {"services": [_service_dict(each) for each in request.services]}


def _gpu_value(found: Gpu) -> str | dict[str, Any]:
    if found.source != "given in the plan":
        return found.name
    speeds = {
        "bandwidth_gb_s": None if found.bandwidth_bytes_per_second is None else found.bandwidth_bytes_per_second / 1e9,
        "tensor_tflops": None if found.tensor_flops is None else found.tensor_flops / 1e12,
    }
    known = {key: value for key, value in speeds.items() if value is not None}
    size = {"name": found.name, "nominal_gb": found.nominal_gb, "usable_mib": found.usable_bytes // 2**20, "bf16": found.bf16}
    return size | known


def _service_dict(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in dataclasses.fields(Service):
        value = getattr(service, each.name)
        if each.name in ("name", "model") or (value is not None and value != each.default) or each.name == "batched":
            found[each.name] = list(value) if isinstance(value, tuple) else value
    return found


def _model_dict(model: Brought) -> dict[str, Any]:
    kind = {"kind": model.kind} if model.kind else {}
    return {"name": model.name, **kind, "config": json.loads(model.config)}


def to_toml(request: Request) -> str:
    return tomli_w.dumps(to_dict(request))


def to_json(request: Request) -> str:
    return json.dumps(to_dict(request), ensure_ascii=False)
