"""`make story`: R1's forty seconds in small. The same questions through the real path, four times: models built anew for every
request, then from the pool, then without HyDE, then with caches. Tables and findings come from the runs themselves.

Embedder and reranker are real architectures (XLM-RoBERTa, 12 layers) with random weights, because none are downloaded; the
language model is a fake that writes words at a given pace. Scores and answers mean nothing here; the times are measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from gpu_server import makers
from gpu_server.model_pool import ModelPool
from latency.findings import find_many
from latency.lab import Variant
from latency.types import Case, Finding
from rag.types import STAGES, Answer, Options
from runtime import Runtime
from scripts import make_random_models
from settings import load
from tests.faults.servers import MODEL, FakeVllm, Pace

SIZE = make_random_models.Size(layers=12, hidden=384, heads=12, intermediate=1536, vocabulary=60_000, tokens=1024, spread=0.05)
QUESTIONS = (
    "Why was the first answer after a restart so slow?",
    "Which ports does the GPU server listen on?",
    "How do I see that a GPU is throttled by heat?",
)
PACE = Pace(prefill=0.05, prefill_per_token=0.00005, per_token=0.012, tokens=60)
WAIT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Step:
    """One way of running the same questions, and what it took."""

    title: str
    answers: tuple[Answer, ...]
    findings: tuple[Finding, ...]

    @property
    def median_seconds(self) -> float:
        return median(answer.total_seconds for answer in self.answers)

    def stages(self) -> dict[str, float]:
        """Median seconds by stage, over the questions that ran it."""
        found = {
            name: [each.seconds for answer in self.answers for each in answer.stages if each.stage == name] for name in STAGES
        }
        return {name: median(seconds) for name, seconds in found.items() if seconds and max(seconds) > 0}

    def to_json(self) -> dict[str, Any]:
        findings = [finding.to_json() for finding in self.findings]
        return {"step": self.title, "median_seconds": self.median_seconds, "stages": self.stages(), "findings": findings}


def tell(rounds: int = 1) -> Iterator[Step]:
    """The four steps, each when it has run. `rounds`: how often each question is asked in a step."""
    with tempfile.TemporaryDirectory() as folder, FakeVllm(PACE) as llm, _running(Path(folder), llm.address) as runtime:
        models = runtime.settings.models
        yield _step(runtime, "models built anew for every request", Options(hyde="on", caches="bypass"), rounds, anew=models)
        yield _step(runtime, "models kept in the pool", Options(hyde="on", caches="bypass"), rounds)
        yield _step(runtime, "HyDE off", Options(hyde="off", caches="bypass"), rounds)
        _asked(runtime, Options(hyde="off", caches="use"), 1)  # what fills the caches
        yield _step(runtime, "caches on, the questions asked before", Options(hyde="off", caches="use"), rounds)


@contextmanager
def _running(folder: Path, llm: str) -> Iterator[Runtime]:
    embedder = make_random_models.bge_m3(folder / "embedder", SIZE)
    reranker = make_random_models.bge_reranker(folder / "reranker", SIZE)
    environment = {
        "RAGDECK_DATA": str(folder / "data"),
        "EMBEDDING_MODEL": str(embedder),
        "RERANKER_MODEL": str(reranker),
        "VLLM_BASE_URL": llm,
        "VLLM_MODEL": MODEL,
    }
    runtime = Runtime(load(environment, folder))
    try:
        runtime.start()
        if not runtime.wait_warm(WAIT_SECONDS):
            raise TimeoutError("the models did not load")
        samples = runtime.status().sample_job
        if samples is None or not samples.wait(WAIT_SECONDS):
            raise TimeoutError("the sample corpus was not read")
        yield runtime
    finally:
        runtime.stop()


def _step(runtime: Runtime, title: str, options: Options, rounds: int, anew: Any = None) -> Step:
    answers = _asked(runtime, options, rounds, anew)
    runtime.traces.flush()
    cases = [Case(answer, tuple(runtime.traces.spans(answer.id)), runtime.readings.get(answer.id)) for answer in answers]
    return Step(title, answers, find_many(cases, runtime.baseline(before=None)))


def _asked(runtime: Runtime, options: Options, rounds: int, anew: Any = None) -> tuple[Answer, ...]:
    answers = []
    for question in QUESTIONS * rounds:
        pool = ModelPool()
        variant = _fresh(runtime, pool, anew) if anew is not None else None
        job = runtime.submit_query(question, options, variant=variant)
        if not job.wait(WAIT_SECONDS) or job.result is None:
            raise RuntimeError(f"the question was not answered: {job.error}")
        answers.append(job.result)
        pool.stop()
    return tuple(answers)


def _fresh(runtime: Runtime, pool: ModelPool, models: Any) -> Variant:
    """What R1's service did: the models are constructed by the request that needs them."""
    embedder = pool.add_embedder(models.embedder, makers.embedders(models.embedder, models.device, models.precision))
    reranker = pool.add_reranker(models.reranker, makers.rerankers(models.reranker, models.device, models.precision))
    return Variant({}, replace(runtime.clients(), embedder=embedder, reranker=reranker))


def table(steps: Sequence[Step]) -> str:
    """The steps beside each other: seconds by stage, and the whole against the first."""
    names = [name for name in STAGES if any(name in step.stages() for step in steps)]
    lines = [f"{'':40}" + "".join(f"{name:>10}" for name in [*names, "total"]) + "   of the first"]
    for step in steps:
        seconds = [step.stages().get(name) for name in names]
        cells = "".join(f"{'–' if value is None else f'{value:.2f} s':>10}" for value in [*seconds, step.median_seconds])
        lines.append(f"{step.title:40}{cells}   {step.median_seconds / steps[0].median_seconds:>5.0%}")
    return "\n".join(lines)


def told(step: Step) -> str:
    """The step's findings in words."""
    head = f"\n{step.title}: {step.median_seconds:.2f} s a question"
    if not step.findings:
        return f"{head}\n  nothing stands out"
    lines = [f"  {number}. {finding.title}\n     → {finding.change}" for number, finding in enumerate(step.findings, 1)]
    return "\n".join([head, *lines])


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make story", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="how often each question is asked in a step")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    steps = []
    for step in tell(given.rounds):
        steps.append(step)
        if not given.json:
            print(told(step), flush=True)
    print(json.dumps([step.to_json() for step in steps], indent=2) if given.json else f"\n{table(steps)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
