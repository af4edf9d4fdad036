"""The forms of the page Experiments: what to ask, how hard, with which change. Each gives a `Wanted` when its button was pressed.

Widgets and their texts alone; what is wrong in them is said by the functions of `latency`, as RagError.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple, cast

import pandas as pd
import streamlit as st

from access import addresses
from jobs import Work
from latency.components import components, targets
from latency.experiments import replay
from latency.experiments.experiments import Kind
from latency.hardware import hardware
from latency.hardware.types import COMPONENTS, PRECISIONS, Component, HardwarePlan
from latency.load import load
from latency.load.load import LoadPlan
from latency.load.plan import MAX_REQUESTS_PER_STEP, MAX_SECONDS_PER_STEP, MAX_WARMUP, bad_input
from rag.errors import RagError
from rag.trace_rows import QueryFilter
from runtime import Runtime
from ui import cards
from ui.ask_form import EXAMPLES
from ui.format import escape, plural, seconds

UNCHANGED = "as it is"
SWITCH = ("on", "off")
CLIENTS = (1, 2, 4, 8, 16, 32)
CANDIDATES = (10, 20, 50, 100)


class Wanted(NamedTuple):
    """An experiment to start."""

    kind: Kind
    name: str
    parameters: Mapping[str, Any]
    work: Work[Any]


def whole_numbers(text: str, what: str) -> tuple[int, ...]:
    """`1, 2,4` as numbers. Raises RagError."""
    try:
        return tuple(int(part) for part in text.replace(" ", ",").split(",") if part)
    except ValueError:
        raise bad_input(f"{what} are {text!r}", "Write whole numbers with commas between: 1,2,4,8.") from None


def start_row(label: str, name: str, busy: str | None, warning: str) -> str | None:
    """The warning, the name and the button; the name when it was pressed."""
    st.html(cards.note("warn", escape(warning)))
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
    chosen = row.text_input("Name", value="", placeholder=name, key=f"name-{label}", width=320, max_chars=200)
    pressed = row.button(label, type="primary", key=f"start-{label}", disabled=busy is not None, help=busy)
    return (chosen.strip() or name) if pressed else None


# 1) load test


def load_form(runtime: Runtime, busy: str | None, now: datetime) -> Wanted | None:
    with st.container(border=True, gap="small"):
        st.html(
            '<p class="rd rd-title">Load test: more and more users, step by step, until more of them bring no more answers</p>'
        )
        api_url, token = _against()
        questions = _questions(runtime)
        plan = _load_plan(api_url, token)
        where = "this process, with its models and its store" if api_url is None else api_url or "that API"
        most = seconds(load.longest_seconds(plan))
        warning = f"This loads {where} for up to {most}, and disturbs whoever uses it meanwhile."
        name = start_row("Start the load test", f"Load test {now:%Y-%m-%d %H:%M}", busy, warning)
    if name is None:
        return None
    plan = LoadPlan(**{**_values(plan), "questions": questions()})
    wanted = Wanted("load", name, plan.to_json(), load.work(runtime, plan))
    if api_url:
        addresses.check_url(api_url)
    return wanted


def _values(plan: LoadPlan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in plan.__dataclass_fields__}


def _against() -> tuple[str | None, str | None]:
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
    chosen = row.segmented_control(
        "Against", ("this process", "an API"), default="this process", required=True, key="against", bind="query-params"
    )
    if chosen != "an API":
        return None, None
    url = row.text_input(
        "Address",
        key="api",
        width=340,
        placeholder="http://127.0.0.1:8080",
        help='RAG Deck\'s API, or any that takes POST {"query": …}; without a path /api/v1/ask is asked.',
    )
    token = row.text_input("Token", type="password", key="token", width=200, help="Sent as Bearer to this address; not kept.")
    return (url or "").strip() or "", token or None


def _questions(runtime: Runtime) -> Any:
    """A function that gives the questions, or raises RagError; shown are where from and how many."""
    lately = _asked_lately(runtime)
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
    source = row.segmented_control(
        "Questions",
        ("asked lately", "typed", "a file"),
        default="asked lately" if lately else "typed",
        required=True,
        key="questions-from",
    )
    if source == "a file":
        file = st.file_uploader(
            "File",
            key="questions-file",
            max_upload_size=4,
            help='One question a line, or JSONL with {"question": "…"}; 4 MB at most.',
        )
        return lambda: load.read_questions(file.getvalue(), file.name) if file else _none("Choose a file with questions.")
    if source == "typed":
        text = st.text_area("Questions, one a line", value="\n".join(EXAMPLES), key="questions-text", height=130)
        return lambda: load.read_questions((text or "").encode(), "the text")
    st.html(f'<div class="rd rd-soft">{plural(len(lately), "different question")} of the last stored queries.</div>')
    return lambda: lately or _none("Nothing has been asked yet: type questions.")


def _none(step: str) -> tuple[str, ...]:
    raise bad_input("there is no question to ask", step)


def _asked_lately(runtime: Runtime) -> tuple[str, ...]:
    rows = runtime.traces.search(QueryFilter(measured=False), limit=200)
    return tuple(dict.fromkeys(row.question for row in rows if row.question.strip()))


def _load_plan(api_url: str | None, token: str | None) -> LoadPlan:
    """The plan without its questions. Raises RagError."""
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
    users = row.text_input("Users", value="1,2,4,8,16", key="users", bind="query-params", width=150, help="A step each, rising.")
    length = row.number_input(
        "Seconds a step", 1.0, MAX_SECONDS_PER_STEP, 20.0, key="step-seconds", bind="query-params", width=120
    )
    most = row.number_input("Requests a step", 2, MAX_REQUESTS_PER_STEP, 500, key="step-requests", bind="query-params", width=120)
    warm = row.number_input("Warm-up", 0, MAX_WARMUP, 3, key="warmup", width=100, help="Requests before the steps, kept apart.")
    waits = row.segmented_control(
        "Users wait for answers",
        ("yes", "no"),
        default="yes",
        required=True,
        key="wait",
        bind="query-params",
        help="yes: each asks again when answered (closed loop). no: each asks at random moments, answered or not (open loop, "
        "Poisson), and latency counts from the moment at which the question was due.",
    )
    rate = None
    if waits == "no":
        rate = row.number_input("Questions a second, each", 0.001, 100.0, 0.2, 0.1, format="%.3f", key="rate", width=160)
    options = _query_options() if api_url is None else {}
    return LoadPlan(
        whole_numbers(users or "", "users"),
        (),
        length,
        int(most),
        rate,
        int(warm),
        api_url,
        token,
        options,
    )


def _query_options() -> dict[str, Any]:
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
    hyde = row.selectbox("HyDE", (UNCHANGED, "off", "on", "auto"), key="load-hyde", width=120)
    rerank = row.selectbox("Rerank", (UNCHANGED, *SWITCH), key="load-rerank", width=120)
    candidates = row.number_input("Candidates", 1, 1000, None, key="load-candidates", width=120, placeholder=UNCHANGED)
    caches = row.selectbox("Caches", ("bypass", "use", "refresh"), key="load-caches", width=120)
    chosen: dict[str, Any] = {"hyde": hyde, "rerank": rerank, "candidates": candidates, "caches": caches}
    return _changes(chosen)


def _changes(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What was chosen, without what stays as it is."""
    kept = {key: value for key, value in chosen.items() if value not in (None, "", UNCHANGED)}
    return {key: value == "on" if key == "rerank" else value for key, value in kept.items()}


# 2) CPU against GPU


def hardware_form(runtime: Runtime, busy: str | None, now: datetime) -> Wanted | None:
    with st.container(border=True, gap="small"):
        st.html('<p class="rd rd-title">CPU against GPU: embed and rerank by device and precision</p>')
        row = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
        chosen = row.multiselect("Measure", COMPONENTS, list(COMPONENTS), key="hw-components", width=220)
        devices = row.multiselect("Devices", ("cpu", "cuda:0", "cuda:1"), ["cpu", "cuda:0"], key="hw-devices", width=240)
        precisions = row.multiselect("Precisions", PRECISIONS, list(PRECISIONS), key="hw-precisions", width=260)
        http = row.toggle("Servers too", value=True, key="hw-http", help="The embedder and reranker behind HTTP of the settings.")
        row = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
        candidates = row.multiselect("Candidates", CANDIDATES, list(CANDIDATES), key="hw-candidates", width=260)
        clients = row.multiselect("Clients at once", CLIENTS, [1, 4, 16], key="hw-clients", width=260)
        each = row.number_input("Seconds a cell", 0.1, 30.0, 1.0, 0.5, key="hw-cell", width=120)
        limit = row.number_input("Minutes at most", 1, 60, 15, key="hw-minutes", width=120)
        plan = HardwarePlan(
            cast(tuple[Component, ...], tuple(chosen)),
            tuple(devices),
            tuple(precisions),
            bool(http),
            tuple(sorted(candidates)),
            tuple(sorted(clients)),
            each,
            seconds=60.0 * limit,
        )
        most = seconds(hardware.longest_seconds(plan))
        warning = (
            f"This keeps processors and GPUs busy for up to about {most}; each place loads a copy of the model. What cannot be "
            "had is left out and says why."
        )
        name = start_row("Start the comparison", f"CPU against GPU {now:%Y-%m-%d %H:%M}", busy, warning)
    if name is None:
        return None
    return Wanted("hardware", name, plan.to_json(), hardware.work(runtime, plan))


# 3) component tests


def components_form(runtime: Runtime, parts: components.Parts, busy: str | None, now: datetime) -> Wanted | None:
    with st.container(border=True, gap="small"):
        st.html('<p class="rd rd-title">Component tests: each part by itself, against targets</p>')
        row = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
        names = row.multiselect(
            "Targets", list(targets.PRESETS), key="targets", width=320, format_func=lambda name: targets.PRESETS[name].name
        )
        only = row.multiselect("Only", list(components.TESTS), key="only", width=320, placeholder="all of them")
        anew = row.toggle(
            "Load models anew",
            key="reload",
            help="Loads a second copy of each model of this process and times that: memory is needed.",
        )
        wanted = _targets(names)
        warning = (
            "This takes from seconds to a minute. It asks every part a few times; users notice little unless models load anew."
        )
        name = start_row("Test the components", f"Component tests {now:%Y-%m-%d %H:%M}", busy, warning)
    if name is None:
        return None
    work = components.work(runtime, wanted, parts, only=tuple(only), reload=bool(anew))
    told = {code: each._asdict() for code, each in wanted.items()}
    return Wanted("components", name, {"targets": told, "only": list(only), "reload": bool(anew)}, work)


def _targets(names: list[str]) -> dict[str, targets.Target]:
    """The targets of the presets, as edited in the table. Raises RagError."""
    base = targets.preset(*names)
    with st.expander(f"{plural(len(base), 'target')} set: look at them, change them"):
        values = [base[code].seconds if code in base else None for code in targets.CODES]
        frame = pd.DataFrame({"Code": list(targets.CODES), "What": list(targets.CODES.values()), "Seconds": values})
        frame["Seconds"] = frame["Seconds"].astype(float)
        edited = st.data_editor(
            frame, hide_index=True, disabled=["Code", "What"], key=f"target-table-{','.join(names)}", alt="Targets in seconds"
        )
    chosen = {str(code): float(value) for code, value in zip(edited["Code"], edited["Seconds"], strict=True) if pd.notna(value)}
    changed = {code: value for code, value in chosen.items() if code not in base or base[code].seconds != value}
    return {code: base[code] for code in chosen if code in base} | targets.edited(changed)


# 4) replay


def replay_form(runtime: Runtime, busy: str | None, now: datetime) -> Wanted | None:
    with st.container(border=True, gap="small"):
        st.html('<p class="rd rd-title">Replay: stored queries again, as they were and changed, in turns</p>')
        row = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
        text = row.text_input(
            "Stored queries", key="replay", bind="query-params", width=420, help="One or more query ids, commas between."
        )
        times = row.number_input(
            "Times each",
            1,
            200,
            10,
            key="replay-times",
            bind="query-params",
            width=110,
            help="Fewer than 8 runs a side say nothing about the difference.",
        )
        ids = [part for part in (text or "").replace(",", " ").split() if part]
        _stored_lines(runtime, ids)
        st.html('<div class="rd rd-soft">Side A runs as stored, with the models in force. Side B with:</div>')
        change = _change()
        runs = 2 * len(ids) * int(times)
        warning = f"This asks {plural(runs, 'query', 'queries')} one after another: others wait for the models meanwhile."
        name = start_row("Start the replay", f"Replay: {change.label}", busy, warning)
    if name is None:
        return None
    sides = [replay.Change(), change]
    if change == sides[0]:
        raise bad_input("side B is the same as side A", "Change at least one thing.")
    work = replay.work(runtime, ids, sides, int(times))
    parameters = {"query_ids": ids, "sides": [side.to_json() for side in sides], "times": int(times)}
    return Wanted("replay", name, parameters, work)


def _stored_lines(runtime: Runtime, ids: list[str]) -> None:
    lines = []
    for query_id in ids[:10]:
        try:
            found = runtime.traces.get(query_id)
        except RagError as problem:
            lines.append(escape(problem.message))
            continue
        said = f"“{found.question}”, {seconds(found.total_seconds)}" if found else f"{query_id}: there is no such stored query"
        lines.append(escape(said))
    if lines:
        st.html('<div class="rd rd-plain" dir="auto">' + "<br>".join(lines) + "</div>")
    else:
        st.html('<div class="rd rd-soft">Open a stored query and choose Replay there, or paste its id.</div>')


def _change() -> replay.Change:
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
    options = {
        "hyde": row.selectbox("HyDE", (UNCHANGED, "off", "on", "auto"), key="b-hyde", width=115),
        "rerank": row.selectbox("Rerank", (UNCHANGED, *SWITCH), key="b-rerank", width=115),
        "candidates": row.number_input("Candidates", 1, 1000, None, key="b-candidates", width=115, placeholder=UNCHANGED),
        "keep": row.number_input("Kept", 1, 100, None, key="b-keep", width=115, placeholder=UNCHANGED),
        "caches": row.selectbox("Caches", (UNCHANGED, "use", "bypass", "refresh"), key="b-caches", width=115),
    }
    with st.expander("Other models"):
        row = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
        models: dict[str, Any] = {}
        for model in ("embedder", "reranker"):
            models[model] = row.selectbox(model.capitalize(), (UNCHANGED, "in-process", "http"), key=f"b-{model}", width=125)
            for what, values in (("device", ("cpu", "cuda", "cuda:1")), ("precision", PRECISIONS)):
                models[f"{model}.{what}"] = row.selectbox(
                    f"{model.capitalize()}: {what}", (UNCHANGED, *values), key=f"b-{model}-{what}", width=150
                )
        models["llm.model"] = row.text_input("Language model", key="b-llm", width=200, placeholder=UNCHANGED)
        models["llm.max_tokens"] = row.number_input(
            "Answer, tokens at most", 1, 32_000, None, key="b-max-tokens", width=170, placeholder=UNCHANGED
        )
    return replay.Change(_changes(options), _changes(models))
