"""R0's seven incidents and R4's three issues, each provoked for real and found with cause and cure; and their absence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from collectors import nvidia_smi
from collectors.readings import Gpus
from collectors.services import Service
from deploy.validation import gpus
from deploy.validation.machines import EngineShare, MachineFacts, parse_engines
from deploy.validation.subject import LocalModel
from gpu_server.client import RemoteEmbedder
from gpu_server.endpoint import Endpoint
from gpu_server.interfaces import Embeddings, ModelInfo, Timing
from tests.collectors.service_fakes import fake_service
from tests.deploy.validation_cases import ROOT, FakeProcess, result, world
from tests.gpu_server.serving import Served, process

CAPTURES = ROOT / "tests" / "collectors" / "data" / "nvidia_smi"
HEALTH = {"status": "healthy", "device": "cuda", "model": "BAAI/bge-m3"}


@pytest.fixture(scope="module")
def gpu_server() -> Iterator[Served]:
    """A real GPU server with the starter models."""
    with process() as served:
        yield served


def of(address: str, kind: Any = "gpu_server", **values: Any) -> Service:
    return Service("gpu server", kind, address, timeout_seconds=30.0, **values)


# ----------------------------------------------------------------------------------------------------------------- R0-1

BLOCKED = """
import importlib.abc, json, sys
from pathlib import Path

class Without(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Without())
from deploy.validation.subject import LocalModel
from tests.deploy.validation_cases import result, world
root = Path(sys.argv[1])
found = result("R0-1", world(root, local_models=(LocalModel("embedder", "BAAI/bge-m3"), LocalModel("reranker", "starter"))))
print(json.dumps(found.to_json()))
"""


def test_r0_1_flagembedding_that_cannot_be_imported_is_found(tmp_path: Path) -> None:
    script = f"BLOCKED = ('FlagEmbedding', 'torch')\n{BLOCKED}"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=100)
    found = json.loads(done.stdout)
    assert found["outcome"] == "failed" and "torch, FlagEmbedding" in found["evidence"], done.stderr
    assert "no torch and no FlagEmbedding" in found["cause"] and "GPU_SERVER_URL" in found["cure"]
    assert found["items"][1]["outcome"] == "passed", "the starter's blend needs no package"


def test_r0_1_a_remote_path_that_imports_torch_is_found(tmp_path: Path) -> None:
    for package in ("gpu_server", "rag"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "gpu_server" / "client.py").write_text("")
    (tmp_path / "models.py").write_text("")
    (tmp_path / "rag" / "store.py").write_text("")
    (tmp_path / "rag" / "query.py").write_text("import torch\n")
    found = result("R0-1", world(tmp_path))
    assert found.outcome == "failed" and "torch" in found.evidence and "behind HTTP" in found.cause


def test_r0_1_our_own_path_needs_no_torch_where_models_are_remote() -> None:
    assert result("R0-1", world(ROOT)).outcome == "passed"


# ----------------------------------------------------------------------------------------------------------------- R0-2


class OldEmbedder:
    """As R0 had it: another method than the one that is called."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info

    def encode_hybrid_single(self, text: str) -> dict[str, Any]:
        return {"dense": [1.0], "sparse": {}}

    def count_tokens(self, text: str) -> int:
        return 1


class NoDeadline(OldEmbedder):
    """The method is there, and takes less than callers give."""

    def embed(self, texts: Sequence[str], kind: str = "passage", *, vectors: Any = None, priority: int = 0) -> Embeddings:
        return Embeddings(np.ones((len(texts), 1), np.float32), None, Timing(), 1)


class DenseAlone(OldEmbedder):
    def embed(
        self,
        texts: Sequence[str],
        kind: str = "passage",
        *,
        vectors: Any = None,
        priority: int = 0,
        deadline: float | None = None,
        caches: str = "use",
    ) -> Embeddings:
        return Embeddings(np.ones((len(texts), 1), np.float32), None, Timing(), 1)


INFO = ModelInfo("BAAI/bge-m3", "embedder", "bge-m3-1", "cuda", "bf16", "http", dimension=1, learned_sparse=True)


@pytest.mark.parametrize(
    ("embedder", "said"),
    [
        (OldEmbedder(INFO), "no method embed()"),
        (NoDeadline(INFO), "takes no deadline, caches"),
        (DenseAlone(INFO), "dense alone"),
    ],
)
def test_r0_2_a_remote_embedder_without_the_interface_is_found(tmp_path: Path, embedder: Any, said: str) -> None:
    found = result("R0-2", world(tmp_path, FakeProcess(embedder=embedder)))
    assert found.outcome == "failed" and said in found.evidence and found.cause and found.cure


def test_r0_2_to_4_the_real_server_and_client_pass(tmp_path: Path, gpu_server: Served) -> None:
    client = RemoteEmbedder(Endpoint(gpu_server.address), dialect="native")
    made = world(tmp_path, FakeProcess(embedder=client), path_services=(of(gpu_server.address),))
    assert [result(code, made).outcome for code in ("R0-2", "R0-3", "R0-4")] == ["passed"] * 3
    client.server.close()


# ----------------------------------------------------------------------------------------------------------------- R0-3


def test_r0_3_results_under_other_keys_are_found(tmp_path: Path) -> None:
    answers = {"GET /health": HEALTH, "POST /embed": {"dense": [[0.6, 0.8]], "sparse": [{"1": 0.5}]}}
    with fake_service(answers) as fake:
        found = result("R0-3", world(tmp_path, path_services=(of(fake.address),)))
    assert found.outcome == "failed" and "dense, sparse" in found.evidence and "dense_embeddings" in found.evidence
    assert "KeyError 'dense'" in found.cause and "dense_embeddings" in found.cure


# ----------------------------------------------------------------------------------------------------------------- R0-4


def rerank(takes: type) -> Any:
    """A rerank handler that takes documents of one type alone."""

    async def handle(request: Request) -> Response:
        documents = json.loads(await request.body())["documents"]
        if not all(isinstance(each, takes) for each in documents):
            return JSONResponse({"detail": "documents: Input should be a valid string or object"}, 422)
        return JSONResponse({"rankings": [1, 0], "scores": [0.9, 0.1]})

    return handle


async def scores_the_form(request: Request) -> Response:
    """Scores what a document looks like as text: braces included."""
    lengths = [len(str(each)) for each in json.loads(await request.body())["documents"]]
    return JSONResponse({"rankings": [0, 1], "scores": [length / 1000 for length in lengths]})


@pytest.mark.parametrize(
    ("kind", "handler", "outcome", "said"),
    [
        ("gpu_server", rerank(dict), "failed", "refuses texts"),
        ("gpu_server", rerank(str), "warning", "refuses objects with content"),
        ("rerank", rerank(dict), "warning", "refuses texts"),
        ("rerank", scores_the_form, "failed", "for objects"),
    ],
)
def test_r0_4_a_reranker_of_one_shape_is_found(tmp_path: Path, kind: str, handler: Any, outcome: str, said: str) -> None:
    with fake_service({"GET /health": HEALTH, "POST /rerank": handler}) as fake:
        found = result("R0-4", world(tmp_path, path_services=(of(fake.address, kind),)))
    assert found.outcome == outcome and said in found.evidence and found.cure


# ----------------------------------------------------------------------------------------------------------------- R0-5


def test_r0_5_an_address_fixed_in_the_program_is_found(tmp_path: Path) -> None:
    (tmp_path / "rag").mkdir()
    (tmp_path / "rag" / "chat.py").write_text(
        '"""Asks http://localhost:8000 by default."""\n\nBASE = "http://localhost:8000/v1"\n'
    )
    found = result("R0-5", world(tmp_path))
    assert found.outcome == "failed" and found.evidence == "rag/chat.py:3: http://localhost:8000", "docstrings do not count"
    assert "VLLM_BASE_URL" in found.cure


def test_r0_5_a_gpu_server_in_vllms_place_and_another_address_in_use_are_found(tmp_path: Path) -> None:
    with fake_service({"GET /health": HEALTH, "GET /v1/models": {"data": [{"id": "m"}]}}) as fake:
        service = Service("llm", "openai-chat", f"{fake.address}/v1")
        used = FakeProcess(chat_address="http://localhost:8000/v1")
        found = result("R0-5", world(tmp_path, used, path_services=(service,), llm_url=f"{fake.address}/v1"))
    assert found.outcome == "failed"
    assert any("localhost:8000, the settings say" in item.evidence for item in found.items)
    assert any("a GPU server answers" in item.evidence and "8001" in item.cause for item in found.items)


def test_r0_5_loopback_beside_a_gpu_server_elsewhere_is_found(tmp_path: Path) -> None:
    made = world(tmp_path, FakeProcess(chat_address="http://127.0.0.1:8000"), llm_url="http://127.0.0.1:8000", gpu_server_url="http://10.0.0.7:8000")  # fmt: skip
    found = result("R0-5", made)
    assert found.outcome == "failed" and "http://10.0.0.7:8001" in found.cure


# ----------------------------------------------------------------------------------------------------------- R0-6, R0-7


def test_r0_6_localhost_beside_127_0_0_1_is_found(tmp_path: Path) -> None:
    twice = {"MILVUS_URI": "http://127.0.0.1:19530", "service store (milvus)": "localhost:19530", "GPU_SERVER_URL": "http://127.0.0.1:8000"}  # fmt: skip
    found = result("R0-6", world(tmp_path, addresses=twice))
    assert found.outcome == "failed" and "localhost in service store (milvus)" in found.evidence
    assert "Alias of 'default'" in found.cause and "127.0.0.1" in found.cure
    once = {**twice, "service store (milvus)": "127.0.0.1:19530"}
    assert result("R0-6", world(tmp_path, addresses=once)).outcome == "passed"
    other = {"VLLM_BASE_URL": "http://127.0.0.1:8001", "service llm (openai-chat)": "http://[::1]:8001/v1"}
    assert result("R0-6", world(tmp_path, addresses=other)).outcome == "warning", "two pools, but no alias error"


def test_r0_7_a_source_file_broken_in_place_is_found(tmp_path: Path) -> None:
    (tmp_path / "rag").mkdir()
    shutil.copy(ROOT / "rag" / "errors.py", tmp_path / "rag" / "errors.py")
    assert result("R0-7", world(tmp_path)).outcome == "passed"
    text = (tmp_path / "rag" / "errors.py").read_text()
    (tmp_path / "rag" / "errors.py").write_text(text.replace("def __init__(self,", "def __init__(self", 1))
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "broken.py").write_text("def (:\n")
    (tmp_path / "rag" / "nulls.py").write_bytes(b"x = 1\0\n")
    found = result("R0-7", world(tmp_path))
    assert found.outcome == "failed" and "rag/errors.py:21" in found.evidence and "SyntaxError" in found.evidence
    assert [item.subject.partition(":")[0] for item in found.items] == ["rag/errors.py", "rag/nulls.py"], (
        "tests are not the program"
    )
    assert "edit in place" in found.cause and not list(tmp_path.rglob("*.pyc"))


# ----------------------------------------------------------------------------------------------------------------- R4-1


def vllm(model: str, version: str) -> dict[str, Any]:
    """A server that tells a model and a version as vLLM does."""
    return {
        "GET /v1/models": {"object": "list", "data": [{"id": model, "object": "model"}]},
        "POST /v1/chat/completions": {"model": model, "choices": [{"message": {"role": "assistant", "content": "x"}}]},
        "GET /version": {"version": version},
    }


def gpu_folder(folder: Path, kind: str) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "architectures": ["GptOssForCausalLM"]}))
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "version", "capture", "outcome"),
    [
        ("gpt_oss", "0.9.2", "h100x8.csv", "failed"),
        ("gpt_oss", "0.10.0", "h100x8.csv", "failed"),
        ("gpt_oss", "0.10.1+gptoss", "a100.csv", "failed"),
        ("gpt_oss", "0.10.1.1", "a100.csv", "warning"),
        ("gpt_oss", "0.10.1.1", "h100x8.csv", "passed"),
        ("gpt_oss", "0.11.0", "a100.csv", "passed"),
        ("qwen3", "0.9.2", "a100.csv", "passed"),
    ],
)
def test_r4_1_a_model_whose_attention_this_vllm_lacks_is_found(
    tmp_path: Path, kind: str, version: str, capture: str, outcome: str
) -> None:
    model = gpu_folder(tmp_path / "served", kind)
    facts = MachineFacts("gpu-box", False, gpus=gpus_of(capture))
    with fake_service(vllm(model, version)) as fake:
        found = result("R4-1", world(tmp_path, path_services=(of(fake.address, "openai-chat"),), facts=[facts]))
    assert found.outcome == outcome, found.evidence
    if outcome in ("failed", "warning"):
        assert version in found.evidence and "--enforce-eager" in found.cure and "FlashAttention 3" in found.cause


def test_r4_1_says_what_it_does_not_know(tmp_path: Path) -> None:
    away = Service("llm", "openai-chat", "http://127.0.0.1:9/v1", timeout_seconds=2.0)
    assert result("R4-1", world(tmp_path, path_services=(away,))).outcome == "not_applicable"
    by_name = replace(away, model="openai/gpt-oss-20b")
    assert "tells no version" in result("R4-1", world(tmp_path, path_services=(by_name,))).evidence


# ----------------------------------------------------------------------------------------------------------------- R4-2


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(hub: Path, name: str, files: dict[str, Any]) -> None:
    snapshot = hub / f"models--{name.replace('/', '--')}" / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    for file, content in files.items():
        (snapshot / file).write_text(json.dumps(content))


CONFIG = {"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"], "hidden_size": 8, "vocab_size": 10}


def test_r4_2_a_model_that_is_not_in_the_cache_is_found_before_the_move(tmp_path: Path, hub: Path) -> None:
    models = (LocalModel("embedder", "BAAI/bge-m3"),)
    found = result("R4-2", world(tmp_path, local_models=models))
    assert found.outcome == "warning" and "try to download" in found.cause and "hf download BAAI/bge-m3" in found.cure
    offline = result("R4-2", world(tmp_path, local_models=models, offline={"HF_HUB_OFFLINE": True}))
    assert offline.outcome == "failed"


def test_r4_2_a_cache_with_a_missing_shard_is_found(tmp_path: Path, hub: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    cached(hub, "org/chat", {"config.json": CONFIG, "model.safetensors.index.json": index})
    cached(hub, "BAAI/bge-m3", {"config.json": CONFIG, "model.safetensors.index.json": index})
    models = (LocalModel("llm", "org/chat"), LocalModel("embedder", "BAAI/bge-m3"))
    shards, heads = result("R4-2", world(tmp_path, local_models=models)).items
    assert shards.outcome == "failed" and "incomplete" in shards.evidence and "model-00001-of-00002.safetensors" in shards.cause
    assert heads.outcome == "failed" and "sparse_linear.pt" in heads.cause


def test_r4_2_the_starter_is_complete(tmp_path: Path, hub: Path) -> None:
    models = (LocalModel("embedder", "starter"), LocalModel("reranker", "starter"))
    assert result("R4-2", world(tmp_path, local_models=models)).outcome == "passed"


# ----------------------------------------------------------------------------------------------------------------- R4-3


def gpus_of(capture: str, processes: str = "") -> Gpus:
    head, _, text = (CAPTURES / capture).read_text().partition("\n")
    read = nvidia_smi.parse(text, head.removeprefix("# ").split(","))
    known = nvidia_smi.parse_processes((CAPTURES / processes).read_text()) if processes else None
    return nvidia_smi.gpus_with(read, known, None, None)


PROCESSES = """\
   4120 /usr/bin/python3 /usr/local/bin/vllm serve Qwen/Qwen3-8B-AWQ --port 8001 --gpu-memory-utilization 0.5
   4388 python3 -m vllm.entrypoints.openai.api_server --model deepseek-ocr --port 8002
   4400 VLLM::EngineCore
   5001 grep vllm
"""


def test_r4_3_shares_that_are_more_than_the_gpu_are_found(tmp_path: Path) -> None:
    engines = parse_engines(PROCESSES)
    assert [(each.pid, each.model, each.share_ratio, each.default) for each in engines] == [
        (4120, "Qwen/Qwen3-8B-AWQ", 0.5, False),
        (4388, "deepseek-ocr", 0.9, True),
    ]
    facts = MachineFacts("l4-vm", False, gpus=gpus_of("l4.csv"), engines=engines)
    found = result("R4-3", world(tmp_path, facts=[facts]))
    assert found.outcome == "failed" and "0.5 + 0.9 (default) = 1.40" in found.evidence and "deploy plan" in found.cure
    alone = replace(facts, engines=(EngineShare(1, "m", 0.5, False),))
    assert result("R4-3", world(tmp_path, facts=[alone])).outcome == "passed"


def test_r4_3_a_full_gpu_that_services_share_is_found_with_who_holds_what() -> None:
    read = gpus_of("h100x8.csv", "compute_apps.txt")
    assert read.gpus and read.processes and read.gpus[7].memory_total_bytes
    full = replace(read.gpus[7], memory_used_bytes=read.gpus[7].memory_total_bytes - 10**9)
    holders = [each for each in read.processes if each.gpu_uuid == full.uuid]
    shared = gpus.judge_gpu("h100", full, holders)
    assert shared.outcome == "failed" and "python 2.2 GiB" in shared.evidence and "4 processes share" in shared.cause
    assert gpus.judge_gpu("h100", full, holders[:1]).outcome == "warning"
    assert gpus.judge_gpu("h100", read.gpus[7], holders).outcome == "passed"
    unknown = replace(full, memory_total_bytes=None)
    assert gpus.judge_gpu("h100", unknown, holders).outcome == "not_applicable"
