"""The plan's form and its place in the URL. Knows the planner's request; computes nothing.

`?preset=NAME` or `?plan=TEXT`: TEXT is the request as JSON, compressed, in URL-safe base64; a model brought by its config.json is
in it too. Nothing is kept on the server: all that is done here needs no more than the scope `read`, but for sending a file.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import streamlit as st

from deploy.planner import catalogue, presets, request
from deploy.planner.cache import BYTES
from deploy.planner.catalogue import Model
from deploy.planner.precisions import PRECISIONS
from deploy.planner.request import ENGINES, Request, Service
from rag.errors import RagError
from ui.format import plain_markdown

LONGEST_TEXT = 20_000
LARGEST_JSON_BYTES = 200_000
MOST_CONTEXT = 10_000_000
_ENGINE_WORDS = {"vllm": "vLLM", "gpu_server": "our GPU server", "other": "another server"}


def pack(asked: Request) -> str:
    """The text of a request for a URL."""
    packed = zlib.compress(request.to_json(asked).encode(), 9)
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def unpack(text: str) -> Request:
    """Raises RagError (`bad_input`) for what is no such text, or too large when unpacked."""
    broken = RagError("the link's plan cannot be read", kind="bad_input", next_step="Start from an allocation below.")
    if len(text) > LONGEST_TEXT:
        raise broken
    try:
        packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        unpacked = zlib.decompressobj().decompress(packed, LARGEST_JSON_BYTES)
        found = unpacked.decode()
    except (ValueError, binascii.Error, zlib.error, UnicodeError) as problem:
        raise broken from problem
    return request.from_json(found)


def from_url() -> Request:
    """The plan that the URL names; the first preset where it names none. Raises RagError for a broken link."""
    if "plan" in st.query_params:
        return unpack(st.query_params["plan"])
    return presets.preset(st.query_params.get("preset", presets.NAMES[0]))


def show(asked: Request) -> None:
    """Puts a plan into the URL. What a preset says of itself is left out of a plan that is no longer it."""
    name = next((each for each in presets.NAMES if presets.preset(each) == asked), None)
    if name is None and any(presets.preset(each).notes == asked.notes for each in presets.NAMES):
        asked = replace(asked, name="plan", notes=())
    st.query_params.from_dict({"preset": name} if name else {"plan": pack(asked)})


def known_models(asked: Request, folders: Sequence[Path] = ()) -> dict[str, Model]:
    """The models of a plan by name: brought along, of the table, or in one of these folders. Raises RagError for any other: a
    link must not name files of this machine."""
    found = {each.name: each.model() for each in asked.models}
    for each in asked.services:
        if each.model not in found:
            found[each.model] = catalogue.in_roots(each.model, folders) or catalogue.model(each.model, folders=False)
    return found


def choose_preset(chosen: str | None) -> str | None:
    """The name of a preset that was just chosen; None without a change."""
    names = {each: presets.preset(each).name for each in presets.NAMES}
    wanted = st.selectbox(
        "Start from an allocation of the field reports",
        presets.NAMES,
        index=presets.NAMES.index(chosen) if chosen in presets.NAMES else None,
        format_func=lambda each: names[each],
        placeholder="your own plan",
        key=f"preset-{chosen}",
    )
    return wanted if wanted != chosen else None


def form(asked: Request, folders: Sequence[str] = ()) -> Request | None:
    """The fields of a plan; `folders` of this machine can be chosen as models. Returns what was sent; None without. Raises
    RagError for what cannot be."""
    key = hashlib.sha256(request.to_json(asked).encode()).hexdigest()[:8]
    with st.form(f"plan-{key}", border=False):
        changed = _machine(asked, key)
        names = [*(each.name for each in asked.models), *catalogue.models(), *folders]
        services = [_service(each, number, key, names) for number, each in enumerate(asked.services)]
        left, right = st.columns([1, 3], vertical_alignment="center")
        sent = left.form_submit_button("Plan", type="primary", key=f"send-{key}", width="stretch")
        more = right.form_submit_button("Add a service", key=f"add-{key}")
    kept = [each for each in services if each is not None]
    if more:
        kept.append(new_service(kept))
    if not (sent or more):
        return None
    return request.from_dict(request.to_dict(replace(changed, services=tuple(kept))))


def new_service(others: Sequence[Service]) -> Service:
    """Another service, under a name that is not taken."""
    names = {each.name for each in others}
    return Service(next(f"service-{n}" for n in range(len(names) + 1, 99) if f"service-{n}" not in names), "Qwen/Qwen3-4B")


def _machine(asked: Request, key: str) -> Request:
    known = catalogue.gpus()
    names = list(known) if asked.gpu.name in known else [asked.gpu.name, *known]
    kind, many, buffer, holds = st.columns([3, 1, 1, 3], vertical_alignment="bottom")
    name = kind.selectbox("GPU", names, names.index(asked.gpu.name), key=f"gpu-{key}")
    count = many.number_input("How many", 1, request.MOST_GPUS, asked.count, key=f"count-{key}")
    kept = buffer.number_input(
        "Buffer, GB", 0.0, 1000.0, asked.buffer_gb, 0.5, key=f"buffer-{key}", help="Kept free on each GPU."
    )
    contexts = holds.checkbox(
        "The buffer holds CUDA contexts",
        asked.buffer_holds_contexts,
        key=f"contexts-{key}",
        help="As in plans that add up shares only: contexts of processes come out of the buffer.",
    )
    gpu = known.get(name, asked.gpu)
    return replace(asked, gpu=gpu, count=int(count), buffer_gb=float(kept), buffer_holds_contexts=contexts)


def _service(service: Service, number: int, key: str, names: Sequence[str]) -> Service | None:
    """One service's fields; None when it is to be removed."""
    key = f"{number}-{key}"
    with st.expander(label(service), key=f"service-{key}"):
        name, model, engine = st.columns([2, 4, 2])
        names = list(dict.fromkeys((*names, service.model)))
        changed = replace(
            service,
            name=name.text_input("Name", service.name, 60, key=f"name-{key}"),
            model=model.selectbox("Model", names, names.index(service.model), key=f"model-{key}"),
            engine=engine.selectbox(
                "Served by", ENGINES, ENGINES.index(service.engine), format_func=_ENGINE_WORDS.__getitem__, key=f"engine-{key}"
            ),
        )
        if changed.engine != service.engine:
            changed = replace(changed, batched=request.default_batched(changed.engine))
        changed = _given(_size(changed, key), key)
        removed = st.checkbox("Remove this service", key=f"remove-{key}")
    return None if removed else changed


def label(service: Service) -> str:
    """The head of a service's fields; markdown."""
    return f"**{plain_markdown(service.name)}** · {plain_markdown(service.model)}"


def _size(service: Service, key: str) -> Service:
    precision, context, sequences, cache, split = st.columns(5)
    forms = ["", *PRECISIONS]
    return replace(
        service,
        precision=precision.selectbox(
            "Precision",
            forms,
            forms.index(service.precision),
            format_func=lambda each: each or "as published",
            key=f"precision-{key}",
        ),
        context=int(context.number_input("Context, tokens", 1, MOST_CONTEXT, service.context, 1024, key=f"context-{key}")),
        sequences=int(sequences.number_input("Sequences at once", 1, 4096, service.sequences, key=f"sequences-{key}")),
        cache=cache.selectbox("Cache", list(BYTES), list(BYTES).index(service.cache), key=f"cache-{key}"),
        split=int(split.number_input("GPUs it spans", 1, request.MOST_GPUS, service.split, key=f"split-{key}")),
    )


def _given(service: Service, key: str) -> Service:
    """How much of its GPUs it gets, and which they are."""
    reserve, share, pinned, weights, fill = st.columns([2, 2, 2, 4, 3], vertical_alignment="bottom")
    gb = reserve.number_input(
        "Reserved, GB", 0.1, 1000.0, service.reserve_gb, 1.0, key=f"reserve-{key}", placeholder="what it needs"
    )
    stated = share.number_input(
        "Stated share",
        0.01,
        1.0,
        service.stated_share,
        0.05,
        key=f"share-{key}",
        placeholder="–",
        help="--gpu-memory-utilization",
    )
    text = pinned.text_input("GPUs", ", ".join(map(str, service.gpus)), 100, key=f"gpus-{key}", placeholder="any", help="0, 1")
    stored = weights.text_input(
        "Quantised weights",
        service.weights,
        200,
        key=f"weights-{key}",
        placeholder="the model's own",
        help="Name or folder of AWQ, GPTQ, INT8 or FP8 weights, where they are published apart from the model.",
    )
    takes = fill.checkbox("Takes all that is left", service.fill, key=f"fill-{key}")
    return replace(service, reserve_gb=gb, stated_share=stated, gpus=_indices(text), fill=takes, weights=stored)


def _indices(text: str) -> tuple[int, ...]:
    """Raises RagError for what is no list of numbers."""
    try:
        return tuple(int(each) for each in text.replace(",", " ").split())
    except ValueError:
        raise request.bad(f"{text[:40]!r} is no list of GPUs", "Write their numbers: 0, 1.") from None
