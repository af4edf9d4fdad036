"""The store against a real Milvus Lite: identity in the name, search routes, documents, the lock, and kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpu_server.interfaces import ModelInfo
from rag.errors import HeldError, RagError
from rag.milvus_terms import literal
from rag.routes import FieldMapping, Found, Hit, fuse
from rag.store import Store
from rag.types import PassageRow

ROOT = Path(__file__).parents[2]


def model(identity: str = "tiny-4-mean-00", dimension: int = 4, learned_sparse: bool = False) -> ModelInfo:
    return ModelInfo("tiny", "embedder", identity, "cpu", "fp32", dimension=dimension, learned_sparse=learned_sparse)


def row(position: int, text: str, document: str = "doc", content: str = "v1", title: str = "Title") -> PassageRow:
    return PassageRow(
        f"{document}-{content}-{position}", document, content, position, text, title, f"{document}.md", "Part", "en"
    )


def unit(*values: float) -> np.ndarray:
    vector = np.array(values, dtype=np.float32)
    return vector / np.linalg.norm(vector)


@pytest.fixture
def store(tmp_path: Path):
    opened = Store(uri=None, data_dir=tmp_path, collection="passages")
    yield opened
    opened.close()


@pytest.fixture
def filled(store: Store) -> tuple[Store, str]:
    name = store.use(model())
    rows = [row(0, "the reranker is slow"), row(1, "the embedder is quick"), row(2, "קטע בעברית על זיכרון")]
    store.write_document(
        name, rows, np.stack([unit(1, 0, 0, 0), unit(0, 1, 0, 0), unit(0.9, 0.1, 0, 0)]), None, "2026-01-01T00:00:00Z"
    )
    store.flush(name)
    return store, name


def test_the_embedders_identity_is_in_the_collections_name(store: Store):
    one, two = store.use(model("a-4-mean-11")), store.use(model("b-4-mean-22"))
    assert one != two
    assert "a_4_mean_11" in one
    assert {info.embedder for info in store.collections(one)} == {"a_4_mean_11", "b_4_mean_22"}


def test_both_routes_find_and_scores_are_higher_when_better(filled):
    store, name = filled
    found = store.search(name, unit(1, 0, 0, 0), "slow reranker", 10)
    assert [hit.id for hit in found.dense][:2] == ["doc-v1-0", "doc-v1-2"]
    assert found.dense[0].score == pytest.approx(1.0, abs=1e-4)
    assert [hit.id for hit in found.sparse] == ["doc-v1-0"]
    assert found.sparse[0].score > 0


def test_completion_gives_every_candidate_both_scores(filled):
    store, name = filled
    found = store.search(name, unit(0, 1, 0, 0), "slow reranker", 1, complete=True)
    passages = {passage.id: passage for passage in fuse(found, 10)}
    assert passages["doc-v1-1"].scores["sparse"] == 0.0, "shares no word: BM25 is truly 0"
    assert passages["doc-v1-0"].scores["dense"] == pytest.approx(0.0, abs=1e-4)
    assert passages["doc-v1-0"].ranks["dense"] is None, "a completed score is no rank"


@pytest.mark.parametrize("text", ["", "???", "   ", "\n", "🙂"])
def test_a_question_without_words_is_answered_by_the_dense_route_alone(filled, text):
    store, name = filled
    found = store.search(name, unit(1, 0, 0, 0), text, 5)
    assert found.sparse == ()
    assert len(found.dense) == 3


def test_title_and_heading_are_searched_but_not_part_of_the_text(filled):
    store, name = filled
    found = store.search(name, None, "Title", 5)
    assert len(found.sparse) == 3
    assert "Title" not in found.sparse[0].fields["text"]


def test_hebrew_words_are_found(filled):
    store, name = filled
    assert store.search(name, None, "זיכרון", 5).sparse[0].id == "doc-v1-2"


def test_a_changed_document_replaces_its_passages(filled):
    store, name = filled
    store.write_document(name, [row(0, "all new", content="v2")], unit(0, 0, 1, 0)[None], None, "2026-01-02T00:00:00Z")
    store.flush(name)
    assert store.count(name) == 1
    assert store.documents(name)["doc"].content_hash == "v2"
    assert [passage["text"] for passage in store.passages(name, "doc")] == ["all new"]


def test_the_same_rows_twice_change_nothing(filled):
    store, name = filled
    store.write_document(name, [row(0, "the reranker is slow")], unit(1, 0, 0, 0)[None], None, "2026-01-01T00:00:00Z")
    assert store.count(name) == 3


def test_a_document_is_listed_by_its_marker_and_removed_whole(filled):
    store, name = filled
    document = store.documents(name)["doc"]
    assert (document.passages, document.source, document.language) == (3, "doc.md", "en")
    assert store.remove_document(name, "doc") == 3
    assert store.documents(name) == {}
    assert store.search(name, unit(1, 0, 0, 0), "slow", 5).dense == ()


def test_quotes_and_foreign_letters_in_ids_do_not_break_the_filter(store: Store):
    name = store.use(model())
    odd = "a\"b\\c é ' זה"
    passage = PassageRow("id0", odd, 'v"1', 0, "x", "Title", "odd.md")
    store.write_document(name, [passage], unit(1, 0, 0, 0)[None], None, "t")
    assert store.remove_document(name, odd) == 1
    assert literal("é") == '"é"'


def test_many_rows_survive_batching_and_are_counted(store: Store):
    name = store.use(model())
    rows = [row(position, f"passage number {position}") for position in range(600)]
    store.write_document(name, rows, np.tile(unit(1, 0, 0, 0), (600, 1)), None, "t")
    store.flush(name)
    assert store.count(name) == 600
    assert store.documents(name)["doc"].passages == 600


def test_learned_sparse_vectors_are_stored_and_searched(store: Store):
    name = store.use(model("bge-4", learned_sparse=True))
    rows = [row(0, "one"), row(1, "two")]
    store.write_document(name, rows, np.stack([unit(1, 0, 0, 0), unit(0, 1, 0, 0)]), [{7: 0.5}, {}], "t")
    found = store.search(name, unit(1, 0, 0, 0), "ignored", 5, sparse={7: 2.0})
    assert found.sparse[0].id == "doc-v1-0"
    assert found.sparse[0].score == pytest.approx(1.0, abs=1e-3)


def test_a_vector_of_another_dimension_is_an_error_that_says_so(filled):
    store, name = filled
    with pytest.raises(RagError) as caught:
        store.search(name, np.ones(3, dtype=np.float32), "x", 5)
    assert caught.value.kind == "model"
    assert caught.value.address


def test_an_existing_collection_is_searched_read_only_through_a_mapping(tmp_path: Path, filled):
    store, name = filled
    store.close()
    mapping = FieldMapping(name, text_field="text", dense_field="dense", source_field="source", location_field="location")
    mapped = Store(uri=None, data_dir=tmp_path, collection="other", mapping=mapping)
    try:
        assert mapped.use(model()) == name
        found = mapped.search(name, unit(1, 0, 0, 0), "slow reranker", 5)
        best = fuse(found, 5)[0]
        assert (best.text, best.source, best.location) == ("the reranker is slow", "doc.md", "Part")
        for change in (
            lambda: mapped.write_document(name, [row(0, "x")], unit(1, 0, 0, 0)[None], None, "t"),
            lambda: mapped.drop(name),
            lambda: mapped.remove_document(name, "doc"),
        ):
            with pytest.raises(RagError, match="read-only"):
                change()
    finally:
        mapped.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_field": "txt"}, "txt"),
        ({"collection": "nowhere"}, "does not exist"),
    ],
)
def test_a_wrong_mapping_names_what_is_wrong(tmp_path: Path, filled, change, message):
    store, name = filled
    store.close()
    right = {"collection": name, "text_field": "text", "dense_field": "dense"}
    mapped = Store(uri=None, data_dir=tmp_path, collection="x", mapping=FieldMapping(**{**right, **change}))
    try:
        with pytest.raises(RagError, match=message) as caught:
            mapped.use(model())
        assert caught.value.next_step
    finally:
        mapped.close()


def test_a_mapping_to_vectors_of_another_embedder_is_refused(tmp_path: Path, filled):
    store, name = filled
    store.close()
    mapped = Store(uri=None, data_dir=tmp_path, collection="x", mapping=FieldMapping(name, "text", dense_field="dense"))
    try:
        with pytest.raises(RagError, match="4 dimensions"):
            mapped.use(model(dimension=384))
    finally:
        mapped.close()


def test_a_held_store_says_by_whom_and_how_to_go_on(tmp_path: Path, store: Store):
    store.use(model())
    script = (
        "import sys; from pathlib import Path; from rag.store import Store; from rag.errors import HeldError\n"
        "try: Store(uri=None, data_dir=Path(sys.argv[1]), collection='x').open()\n"
        "except HeldError as e: print(e.pid, e.message, e.next_step)"
    )
    said = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    ).stdout
    assert said.startswith(str(os.getpid()))
    assert "MILVUS_URI" in said


def test_the_lock_goes_with_a_killed_process_and_what_was_written_stays(tmp_path: Path):
    script = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r}); sys.path.insert(0, {str(ROOT / "tests" / "rag")!r})
from pathlib import Path
import numpy as np
from rag.store import Store
from test_store import model, row, unit
store = Store(uri=None, data_dir=Path({str(tmp_path)!r}), collection="passages")
name = store.use(model())
number = 0
while True:
    store.write_document(name, [row(p, f"text {{number}} {{p}}", document=f"d{{number}}") for p in range(3)],
                         np.stack([unit(1, 0, 0, 0)] * 3), None, "t")
    if number % 5 == 4:
        store.flush(name)
    print(number, flush=True)
    number += 1
"""
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    acknowledged = -1
    for line in writer.stdout:
        acknowledged = int(line)
        if acknowledged >= 12:
            break
    writer.send_signal(signal.SIGKILL)
    writer.wait(timeout=20)
    store = Store(uri=None, data_dir=tmp_path, collection="passages")
    try:
        name = store.use(model())
        documents = store.documents(name)
        assert {f"d{number}" for number in range(acknowledged + 1)} <= set(documents)
        assert all(len(store.passages(name, key)) == 3 for key in list(documents)[:3])
    finally:
        store.close()


@pytest.mark.timeout(60)
def test_a_milvus_that_is_away_fails_soon_and_names_its_address(tmp_path: Path):
    store = Store(uri="http://127.0.0.1:9", data_dir=tmp_path, collection="x", timeout=2.0)
    with pytest.raises(RagError) as caught:
        store.use(model())
    assert caught.value.kind in ("connection", "timeout")
    assert caught.value.address == "http://127.0.0.1:9"
    assert "MILVUS_URI" in caught.value.next_step or "timeout_seconds" in caught.value.next_step


def test_fusion_sums_reciprocal_ranks():
    hits = {key: Hit(key, score, {"text": key}) for key, score in (("a", 0.9), ("b", 0.5), ("c", 7.0))}
    found = Found((hits["a"], hits["b"]), (hits["b"], hits["c"]), {"dense": {}, "sparse": {}}, 1)
    fused = fuse(found, 10)
    assert [passage.id for passage in fused] == ["b", "a", "c"]
    assert fused[0].scores["fused"] == pytest.approx(1 / 62 + 1 / 61)
    assert fused[0].ranks == {"dense": 2, "sparse": 1, "fused": 1, "rerank": None}
    assert [passage.id for passage in fuse(found, 1)] == ["b"]


def test_a_cut_search_keeps_the_scores_beyond_the_cut():
    dense = tuple(Hit(key, 1 / rank, {}) for rank, key in enumerate("abc", 1))
    cut = Found(dense, (), {"dense": {}, "sparse": {}}, 1).cut(1)
    assert [hit.id for hit in cut.dense] == ["a"]
    assert cut.completed["dense"] == {"b": 0.5, "c": pytest.approx(1 / 3)}


def test_a_broken_lock_file_still_says_that_the_store_is_held(tmp_path: Path, store: Store):
    store.open()
    (tmp_path / "milvus.lock").write_text("{half")
    with pytest.raises(HeldError) as caught:
        Store(uri=None, data_dir=tmp_path, collection="x").open()
    assert caught.value.pid is None
    json.dumps(caught.value.message)
