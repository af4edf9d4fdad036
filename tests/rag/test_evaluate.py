"""Metrics against values worked out by hand, the BEIR reader's errors, and the product's own promise on its own set."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from rag.errors import RagError
from rag.evaluate import mrr_at, ndcg_at, read, recall_at

ROOT = Path(__file__).parents[2]
SET = ROOT / "samples" / "field-guide-eval"


def test_ndcg_by_hand():
    relevant = {"a": 2, "b": 1}
    assert ndcg_at(["a", "b", "x"], relevant) == 1.0
    assert ndcg_at(["x", "a"], relevant) == pytest.approx((2 / math.log2(3)) / (2 + 1 / math.log2(3)))
    assert ndcg_at(["x"] * 10 + ["a"], relevant) == 0.0
    assert ndcg_at([], {}) == 0.0


def test_mrr_and_recall_by_hand():
    relevant = {"a": 2, "b": 1, "c": 0}
    assert mrr_at(["c", "x", "b"], relevant) == pytest.approx(1 / 3)
    assert mrr_at(["x"] * 10 + ["a"], relevant) == 0.0
    assert recall_at(["a", "c"], relevant) == 0.5


def write(folder: Path, **files: str) -> Path:
    (folder / "qrels").mkdir(exist_ok=True)
    defaults = {
        "corpus.jsonl": '{"_id": "d1", "title": "", "text": "one"}\n',
        "queries.jsonl": '{"_id": "q1", "text": "one?"}\n',
        "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t1\n",
    }
    for name, text in {**defaults, **files}.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_reads_beir_with_and_without_header(tmp_path):
    assert read(write(tmp_path)).judgements == {"q1": {"d1": 1}}
    assert read(write(tmp_path, **{"qrels/test.tsv": "q1\td1\t1\n"})).queries == {"q1": "one?"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("corpus.jsonl", "{half", "corpus.jsonl:1"),
        ("corpus.jsonl", "[1]\n", "corpus.jsonl:1"),
        ("queries.jsonl", '{"text": "no id"}\n', "queries.jsonl:1"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1 d1 1\n", "test.tsv:2"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq9\td1\t1\n", "no query"),
    ],
)
def test_broken_sets_name_file_and_line(tmp_path, name, text, said):
    with pytest.raises(RagError, match=said):
        read(write(tmp_path, **{name: text}))


def test_a_missing_file_says_what_belongs_there(tmp_path):
    with pytest.raises(RagError) as caught:
        read(tmp_path)
    assert "BEIR" in caught.value.next_step


def test_the_sets_own_files_agree():
    assert subprocess.run([sys.executable, "scripts/build_eval_corpus.py", "--check"], cwd=ROOT).returncode == 0
    dataset = read(SET)
    assert len(dataset.queries) == 60


def test_on_the_projects_set_the_reranked_order_beats_every_route(tmp_path):
    """The command a user runs, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "rag", "evaluate", str(SET), "--json"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "RAGDECK_DATA": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    scores = {stage: values["ndcg@10"] for stage, values in found["stages"].items()}
    assert scores["rerank"] > max(scores["dense"], scores["sparse"], scores["fused"])
    assert found["queries"] == 60
    assert set(found["seconds"]) == {"embed", "search", "rerank"}
    assert not (tmp_path / "milvus.db").exists(), "it has a temporary store of its own"
