"""Models: loaded inside a request, run for the first time, built anew on each request, on the processor beside an idle GPU."""

from __future__ import annotations

from collections.abc import Iterator

from latency.findings import advice
from latency.findings.drafts import WHERE, Draft
from latency.findings.ledger import LEAST_SURPRISE_SECONDS, LLM, WORK, Ledger, Piece
from latency.findings.words import component, count, doing, figure, named, seconds, worker
from latency.types import LOCAL, Evidence, Usual
from rag.types import Stage

MODEL_STAGES = ("embed", "rerank", *LLM)
REQUEST_SECONDS = 0.05  # what a warm remote model may take for a request besides its work: a round trip and its framing
CONSTANT_SECONDS = 0.25  # more than a warm model behind HTTP takes for nothing
CONSTANT_SHARE = 0.8  # of a remote stage's usual time, not depending on the work
# "Reranker from CPU to GPU" (requirements.md, R2): 20 candidates 200-500 ms on a CPU, 50-150 ms on a T4; 50 candidates
# 0.8-1.5 s against 100-200 ms. The middles of these ranges:
FEW_CANDIDATES, FEW_RATIO = 20, 3.5
MANY_CANDIDATES, MANY_RATIO = 50, 7.7
_SOURCE = "the report on moving the reranker from a CPU to a T4"


def loaded(ledger: Ledger) -> Iterator[Draft]:
    """Weights were loaded while the query waited; what the run after it took beyond the usual is part of it."""
    for stage in _model_stages(ledger):
        pieces = [piece for piece in ledger.pieces(stage.stage) if piece.left("load") > 0]
        load = sum(piece.take(piece.left("load"), ("load",)) for piece in pieces)
        if load <= 0:
            continue
        first = _beyond_usual(ledger, stage)
        evidence = [_loaded(stage, piece, load) for piece in pieces[:1]]
        derivation = f"All of the load: {seconds(load)}."
        if first > 0:
            evidence.append(_ran_first(ledger, stage, first))
            derivation = f"Load {seconds(load)} + first run beyond the usual {seconds(first)} = {seconds(load + first)}."
        yield Draft(
            "model_loaded",
            component(stage.stage),
            stage.stage,
            f"The {worker(stage.stage)} was loaded inside {WHERE}",
            load + first,
            load + first,
            derivation,
            "measured",
            tuple(evidence),
            advice.SERVER_WARM if stage.where == "http" else advice.WARM,
        )


def _loaded(stage: Stage, piece: Piece, load: float) -> Evidence:
    who = "Its server" if stage.where == "http" else "The model pool"
    text = f"{who} says that the {named(stage)} was loaded for {seconds(load)} while the query waited."
    return Evidence(text, load, "s", piece.span_id or "split.load", piece.start, piece.end)


def first_run(ledger: Ledger) -> Iterator[Draft]:
    """Cold without a load: kernels are chosen and memory is taken in the first run after a load."""
    for stage in _model_stages(ledger):
        if not stage.cold:
            continue
        first = _beyond_usual(ledger, stage)
        usual = ledger.usual(stage.stage)
        if first <= 0 or usual is None:
            continue
        expected = usual.expected(ledger.work_load(stage.stage))
        yield Draft(
            "first_run",
            component(stage.stage),
            stage.stage,
            f"The {worker(stage.stage)} ran for the first time after its load in {WHERE}",
            first,
            first,
            f"{seconds(expected + first)} of computing less the {seconds(expected)} usual when warm ({count(usual.n, 'query')}).",
            "derived",
            (_ran_first(ledger, stage, first),),
            advice.SERVER_WARM if stage.where == "http" else advice.WARM,
        )


def _ran_first(ledger: Ledger, stage: Stage, first: float) -> Evidence:
    usual = ledger.usual(stage.stage)
    beyond = "" if usual is None else f", {seconds(first)} more than the usual {seconds(usual.compute)} of warm queries"
    text = f"It was the first run of the {named(stage)} after its load{beyond}."
    start = min(piece.start for piece in ledger.pieces(stage.stage))
    return Evidence(text, first, "s", "ragdeck.cold", start, start + stage.seconds)


def _beyond_usual(ledger: Ledger, stage: Stage) -> float:
    """Take what a cold stage computed beyond the usual."""
    return sum(ledger.take_excess(stage.stage, pool, found) for pool, found in ledger.excess(stage.stage).items())


def remote_constant(ledger: Ledger) -> Iterator[Draft]:
    """A remote model that takes the same long time whatever the work, and whose server does not say for what."""
    for stage in _silent_servers(ledger):
        usual = ledger.usual(stage.stage)
        if usual is None or not _is_constant(usual):
            continue
        least = usual.per_unit * (ledger.work_load(stage.stage) or 0.0) + REQUEST_SECONDS
        taken = ledger.take(stage.stage, ledger.left(stage.stage, *WORK) - least, *WORK)
        text = (
            f"Over {count(usual.n, 'query')} the {named(stage)} took {seconds(usual.fixed)} whatever the work was, and only "
            f"{seconds(max(0.0, usual.compute - usual.fixed))} that grew with it."
        )
        yield _remote(stage, taken, f"{seconds(least + taken)} less {seconds(least)} for the request and its work.", text, usual)


def remote_slow(ledger: Ledger) -> Iterator[Draft]:
    """A remote model that took much longer than usual, whose server does not say why."""
    for stage in _silent_servers(ledger):
        usual = ledger.usual(stage.stage)
        if usual is None or stage.cold:
            continue
        found = sum(ledger.excess(stage.stage).values())
        if found < LEAST_SURPRISE_SECONDS or found < usual.compute:
            continue
        taken = _beyond_usual(ledger, stage)
        expected = usual.expected(ledger.work_load(stage.stage))
        text = f"The {named(stage)} took {seconds(expected + taken)} where {seconds(expected)} are usual for this work."
        derivation = f"{seconds(expected + taken)} less the usual {seconds(expected)} ({count(usual.n, 'query')})."
        yield _remote(stage, taken, derivation, text, usual)


def _remote(stage: Stage, taken: float, derivation: str, text: str, usual: Usual) -> Draft:
    median = f"(median {seconds(usual.seconds)})"
    silent = f"Its server reports neither loading nor computing, so that only its answers' time is known {median}."
    return Draft(
        "remote_model_per_request",
        component(stage.stage),
        stage.stage,
        f"The remote {worker(stage.stage)} seems to build its model anew in {WHERE}",
        taken,
        taken,
        derivation,
        "suspected",
        (Evidence(text, taken, "s", "baseline"), Evidence(silent, usual.seconds, "s", "baseline")),
        advice.BUILD_ONCE,
    )


def _is_constant(usual: Usual) -> bool:
    whole = max(usual.compute, 1e-9)
    return usual.fixed >= CONSTANT_SECONDS and usual.fixed >= CONSTANT_SHARE * whole and usual.spread <= 0.25 * whole


def _silent_servers(ledger: Ledger) -> Iterator[Stage]:
    """Embedder and reranker behind HTTP whose server tells nothing of its time: the path marks their network as estimated."""
    for stage in _model_stages(ledger):
        labels = [piece.label for piece in ledger.pieces(stage.stage)]
        told = labels and all("estimated" not in label for label in labels) and stage.split.network is not None
        if stage.where == "http" and stage.stage not in LLM and not told:
            yield stage


def on_processor(ledger: Ledger) -> Iterator[Draft]:
    """Embedder or reranker on the CPU of a machine that has a GPU."""
    gpus = () if ledger.readings is None else ledger.readings.gpus(LOCAL)
    for name in ("embed", "rerank"):
        stage = ledger.stages.get(name)
        if not gpus or stage is None or stage.device is None or not stage.device.startswith("cpu"):
            continue
        now = ledger.left(name, *WORK)
        usual = ledger.usual(name)
        if usual is not None:  # what happened once on a busy machine is not what the device costs
            now = min(now, max(1.5 * usual.expected(ledger.work_load(name)), usual.compute))
        target, source = _on_gpu(ledger, stage, now)
        taken = ledger.take(name, now - target, *WORK)
        yield Draft(
            f"{worker(name)}_on_cpu",
            component(name),
            name,
            f"The {worker(name)} ran on the CPU although there is a GPU, in {WHERE}",
            taken,
            taken,
            f"{seconds(now)} of computing on the CPU less {seconds(target)} on a GPU, by {source}.",
            "derived" if source.startswith("the usual") else "suspected",
            tuple(_on_cpu(ledger, stage, now, gpus)),
            advice.GPU_FOR_EMBEDDER if name == "embed" else advice.GPU_FOR_RERANKER,
        )


def _on_gpu(ledger: Ledger, stage: Stage, now: float) -> tuple[float, str]:
    """Seconds to be expected on a GPU, and by what."""
    units = ledger.work_load(stage.stage)
    for key, usual in ledger.baseline.usual.items():
        same = key.stage == stage.stage and key.model == stage.model and key.where == "in-process"
        if same and (key.device or "").startswith("cuda") and usual.n > 0:
            return usual.expected(units), f"the usual time of {count(usual.n, 'query')} with this model on {key.device}"
    candidates = units if stage.stage == "rerank" and units is not None else FEW_CANDIDATES
    part = min(1.0, max(0.0, (candidates - FEW_CANDIDATES) / (MANY_CANDIDATES - FEW_CANDIDATES)))
    ratio = FEW_RATIO + part * (MANY_RATIO - FEW_RATIO)
    return now / ratio, f"a ratio of {figure(ratio)} ({_SOURCE})"


def _on_cpu(ledger: Ledger, stage: Stage, now: float, gpus: tuple[int, ...]) -> Iterator[Evidence]:
    piece = ledger.pieces(stage.stage)[0]
    text = f"The {named(stage)} computed for {seconds(now)} on {stage.device}."
    yield Evidence(text, now, "s", piece.span_id or "device", piece.start, piece.end)
    readings = ledger.readings
    for index in gpus[:2] if readings is not None else ():
        series = readings.get(LOCAL, f"gpu.{index}.utilization_ratio") if readings is not None else None
        mean = None if series is None else series.mean(piece.start, piece.end)
        name = f"gpu.{index}.utilization_ratio"
        used = "is there" if mean is None else f"was used to {mean * 100:.0f} % meanwhile"
        text = f"GPU {index} of this machine {used} ({doing(stage.stage)} did not use it)."
        yield Evidence(text, mean, "ratio", f"{LOCAL}/{name}", piece.start, piece.end)


def _model_stages(ledger: Ledger) -> Iterator[Stage]:
    return (ledger.stages[name] for name in MODEL_STAGES if name in ledger.stages)
