"""What the page Models says of models, from their status alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_server.interfaces import ModelInfo
from gpu_server.probes import Probe
from models import ModelStatus
from rag.errors import RagError
from ui import models_view
from ui.format import bytes_text

WARM = ModelStatus("embedder", "bge-m3", "warm", "cpu", "bf16", 12.41, 1.39, 7, memory_bytes=1_149_239_296, queue_texts=3)
FAR = ModelStatus("reranker", "bge-reranker", "remote", "cuda:0", "bf16", where="http", address="http://10.0.0.5:8000/x")


@pytest.mark.parametrize(
    ("models", "warming", "title"),
    [
        ([WARM], False, "Every model is warm: no query waits for loading"),
        ([WARM, FAR], False, "Every model is warm: no query waits for loading"),
        ([FAR], False, "Every model is served over HTTP"),
        ([WARM, ModelStatus("reranker", "x", "waiting")], True, "Models are warming up"),
        ([ModelStatus("reranker", "x", "waiting")], False, "Models load with the first query that needs them"),
        ([WARM, ModelStatus("reranker", "x", "failed", where="http")], False, "The reranker does not answer"),
        ([ModelStatus("embedder", "x", "failed")], False, "The embedder could not be loaded"),
    ],
)
def test_the_title_says_whether_a_query_would_wait(models: list[ModelStatus], warming: bool, title: str) -> None:
    assert models_view.title(models, warming) == title


def test_a_row_says_where_on_what_and_how_large() -> None:
    html = models_view.table([WARM, FAR])
    for text in ("bge-m3", "in-process", "cpu · bf16", "1.07 GiB", "12.4 s", "1.39 s", "HTTP 10.0.0.5:8000", "cuda:0 · bf16"):
        assert text in html, text
    assert 'title="http://10.0.0.5:8000/x"' in html and "the server does not tell" in html


def test_what_servers_say_of_themselves_is_escaped() -> None:
    html = models_view.table(
        [ModelStatus("embedder", "<b>x</b>", "failed", error="<script>", where="http", address="http://h/<i>")]
    )
    assert "<b>x" not in html and "<script>" not in html and "<i>" not in html


def test_what_a_test_found() -> None:
    info = ModelInfo("bge-m3", "embedder", "id", "cpu", "bf16", where="http", address="http://h:1", dimension=1024)
    html = models_view.tested("embedder", Probe(0.012, 0.0013, info))
    assert "bge-m3 at http://h:1 embedded one text in" in html and "of it network, 1,024 dimensions" in html
    problem = RagError("refused", kind="connection", address="http://h:1", next_step="Start it.")
    html = models_view.tested("embedder", problem)
    assert "The test of the embedder failed" in html and "Start it." in html and "http://h:1" in html


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (512, "512 B"), (999, "999 B"), (91.2 * 1024**2, "91.2 MiB"), (1024**4, "1.00 TiB"), (None, "–")],
)
def test_bytes(value: float | None, text: str) -> None:
    assert bytes_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "unset"), ([], "none"), (["*"], "*"), (["a", "b"], "a, b"), (True, "true"), (0, "0"), ("", ""), ("***", "***")],
)
def test_a_setting_reads_as_people_write_it(value: object, text: str) -> None:
    assert models_view.setting_text(value) == text


def test_the_file_beside_the_program_is_not_said_to_come_from_the_environment() -> None:
    root = Path("/opt/ragdeck")
    assert models_view.unwritten("config_file", "/opt/ragdeck/dashboard.toml", root) == "default"
    assert models_view.unwritten("config_file", "/etc/deck.toml", root) == "environment or .env"
    assert models_view.unwritten("data_dir", "/opt/ragdeck/data", root) == "default"
    assert models_view.unwritten("data_dir", "/srv", root) == "environment or .env"
    assert models_view.unwritten("server.port", 8502, root) == "default"
