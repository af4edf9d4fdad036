"""Other models for a while: what can be chosen, what cannot, and that nothing stays behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import runtime
from rag.errors import RagError
from rag.types import Options
from settings import load
from tests.gpu_server.serving import process
from tests.test_remote_models import QUESTION, fill


@pytest.fixture(scope="module")
def far() -> Iterator[str]:
    with process() as served:
        yield served.address


@pytest.fixture(scope="module")
def rt(tmp_path_factory: pytest.TempPathFactory, far: str) -> Iterator[runtime.Runtime]:
    """A dashboard whose reranker is behind HTTP and whose embedder is here."""
    folder = tmp_path_factory.mktemp("variants")
    (folder / "dashboard.toml").write_text("[ingest]\nsample_corpus = false\n", encoding="utf-8")
    running = runtime.Runtime(load({"RAGDECK_DATA": str(folder / "data"), "RERANKER_API_URL": far}, folder))
    fill(running, folder / "documents")
    yield running
    running.stop()


def test_another_place_and_precision_for_the_length_of_a_block(rt: runtime.Runtime) -> None:
    with rt.variant({"reranker": "in-process", "embedder.precision": "fp32", "llm.max_tokens": 7}) as variant:
        job = rt.submit_query(QUESTION, Options(caches="bypass"), origin="measure", variant=variant)
        assert job.wait(60) and job.result is not None
        answer = job.result
        assert variant.clients.prompts.max_tokens == 7
    places = {stage.stage: stage.where for stage in answer.stages}
    assert (places["rerank"], places["embed"]) == ("in-process", "in-process")
    assert answer.origin == "measure" and not answer.cold  # the variant's models were warm before the first query
    usual = rt.submit_query(QUESTION)
    assert usual.wait(60) and usual.result is not None
    assert {stage.stage: stage.where for stage in usual.result.stages}["rerank"] == "http"
    assert usual.result.origin == "ask"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gpu_server.url": "http://elsewhere"}, "gpu_server.url cannot be changed"),
        ({"embedder": "http"}, "no server that has the embedder"),
        ({"embedder": "moon"}, "embedder is 'moon'"),
        ({"reranker": "http", "reranker.device": "cpu"}, "of its server"),
        ({"embedder.device": "tpu"}, "embedder.device is 'tpu'"),
        ({"embedder.precision": "fp4"}, "embedder.precision is 'fp4'"),
        ({"llm.model": "x"}, "no language model's address"),
    ],
)
def test_what_cannot_be_had_is_refused_in_words(rt: runtime.Runtime, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RagError) as refused, rt.variant(changes):
        pass
    assert said in refused.value.message and refused.value.kind == "bad_input" and refused.value.next_step
