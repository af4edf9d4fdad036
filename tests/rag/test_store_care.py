"""Care of the store on a real Milvus Lite: schema versions, switching collections, re-embedding, sizes."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_server.interfaces import Embeddings, ModelInfo, Timing
from rag.errors import Cancelled, RagError
from rag.store import Store
from rag.store_care import layout, live, sizes, versions
from rag.store_care.reembed import FROM, reembed, sources, unfinished
from rag.store_care.rows import Pace, Source
from rag.types import PassageRow


class FakeEmbedder:
    """A fake: vectors from a hash of the text and a seed, so that another seed is another model."""

    def __init__(self, seed: str, dimension: int = 8, learned_sparse: bool = False) -> None:
        self.info = ModelInfo(
            seed, "embedder", f"{seed}-{dimension}", "cpu", "fp32", dimension=dimension, learned_sparse=learned_sparse
        )
        self.seen: list[str] = []
        self.after: Any = lambda: None

    def embed(self, texts: Sequence[str], kind: str = "passage", **_: Any) -> Embeddings:
        self.seen += texts
        dense = np.stack([self.vector(text) for text in texts])
        sparse = tuple({len(text): 1.0} for text in texts) if self.info.learned_sparse else None
        self.after()
        return Embeddings(dense, sparse, Timing(), len(texts))

    def vector(self, text: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(f"{self.info.name}{text}".encode()).digest()[:8], "big")
        made = np.random.default_rng(seed).standard_normal(self.info.dimension).astype(np.float32)
        return made / np.linalg.norm(made)


def put(store: Store, name: str, embedder: FakeEmbedder, document: str, passages: int = 3, text: str = "pumps") -> None:
    rows = [
        PassageRow(f"{document}-{n}", document, "v1", n, f"{text} {document} {n} עברית", "Title", f"{document}.md", "Part", "en")
        for n in range(passages)
    ]
    store.write_document(name, rows, embedder.embed([row.indexed_text for row in rows]).dense, None, "2026-01-01T00:00:00Z")


def drain(work: Any) -> Any:
    events = []
    while True:
        try:
            events.append(next(work))
        except StopIteration as end:
            return end.value, events


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(uri=None, data_dir=tmp_path, collection="passages")
    yield opened
    opened.close()


@pytest.fixture
def old(store: Store) -> tuple[FakeEmbedder, str]:
    embedder = FakeEmbedder("old")
    name = store.use(embedder.info)
    for number in range(50):
        put(store, name, embedder, f"d{number}")
    store.flush(name)
    embedder.seen.clear()
    return embedder, name


# 1) versions


def test_a_new_collection_carries_the_current_version_and_one_without_is_version_one(store: Store):
    name = store.use(FakeEmbedder("a").info)
    assert versions.of(store.describe(name)) == versions.CURRENT
    layout.create(store.client, "plain", layout.passages(FakeEmbedder("a").info), embedded=True, properties={}, timeout=10)
    assert versions.of(store.describe("plain")) == 1


def test_a_newer_version_is_refused_in_clear_words_when_it_is_opened(tmp_path: Path, store: Store):
    name = store.use(FakeEmbedder("a").info)
    store.client.alter_collection_properties(name, properties={versions.PROPERTY: "99"})
    store.close()
    again = Store(uri=None, data_dir=tmp_path, collection="passages")
    try:
        with pytest.raises(RagError, match="version 99") as caught:
            again.use(FakeEmbedder("a").info)
        assert caught.value.kind == "bad_input" and "Update" in caught.value.next_step
    finally:
        again.close()


def test_an_older_version_is_migrated_step_by_step_or_the_cure_is_named(store: Store):
    name, done = store.use(FakeEmbedder("a").info), []
    steps = {1: lambda client, name, timeout: done.append(1), 2: lambda client, name, timeout: done.append(2)}
    versions.check(store.client, name, 10.0, current=3, migrations=steps)
    assert done == [1, 2] and versions.of(store.describe(name)) == 3
    with pytest.raises(RagError, match="cannot be changed in place") as caught:
        versions.check(store.client, name, 10.0, current=4, migrations={})
    assert f"reembed --from {name}" in caught.value.next_step


def test_a_version_that_is_no_number_is_an_error_not_a_guess(store: Store):
    with pytest.raises(RagError, match="no number"):
        versions.of({"collection_name": "x", "properties": {versions.PROPERTY: "two"}})


# 2) switching


def test_after_a_switch_searches_and_late_writers_reach_the_new_collection(store: Store, old):
    embedder, name = old
    store.create(f"{name}__g2", embedder.info)
    store.switch(name, f"{name}__g2")
    assert store.use(embedder.info) == f"{name}__g2"
    put(store, name, embedder, "late")  # a writer that still holds the name before
    store.flush(name)
    assert store.documents(f"{name}__g2").keys() == {"late"}
    assert store.remove_document(name, "late") == 1 * 3
    assert store.count(f"{name}__g2") == 0 and store.count(name) == 150


def test_the_switch_outlives_the_process(tmp_path: Path, store: Store, old):
    embedder, name = old
    store.create(f"{name}__g2", embedder.info)
    store.switch(name, f"{name}__g2")
    store.close()
    again = Store(uri=None, data_dir=tmp_path, collection="passages")
    try:
        assert again.use(embedder.info) == f"{name}__g2"
        assert {info.embedder for info in again.collections(None)} == {"old_8"}
    finally:
        again.close()


def test_dropping_the_collection_in_use_leaves_no_old_passages_behind(store: Store, old):
    embedder, name = old
    store.create(f"{name}__g2", embedder.info)
    store.switch(name, f"{name}__g2")
    store.drop(f"{name}__g2")
    assert store.use(embedder.info) == name and store.count(name) == 0


def test_generations_are_counted_past_those_that_are_there():
    assert live.next_generation("p__x", ["p__x"]) == "p__x__g2"
    assert live.next_generation("p__x", ["p__x", "p__x__g2", "p__x__g7", "p__y__g9"]) == "p__x__g8"


# 3) re-embedding


def test_another_embedder_gets_every_passage_from_the_stored_texts(store: Store, old):
    _, name = old
    new = FakeEmbedder("new", dimension=12)
    mine = store.use(new.info)
    assert sources(store, new) == [name]
    done, events = drain(reembed(store, new, name))
    assert (done.rows, done.embedded, done.copied) == (150, 150, 0)
    assert store.use(new.info) == done.collection != mine
    assert store.documents(done.collection).keys() == store.documents(name).keys()
    passage = store.passages(done.collection, "d7")[0]
    assert passage["text"] == "pumps d7 0 עברית"
    found = store.search(done.collection, new.vector("Title\nPart\npumps d7 0 עברית"), "d7", 5)
    assert found.dense[0].id == "d7-0" and found.sparse, "both routes work"
    last = [event for event in events if event["doing"] == "embedding"][-1]
    assert last["done"] == last["total"] and last["rows_per_second"] > 0
    assert store.count(name) == 150, "the old one is kept"
    assert unfinished(store) == {}


def test_the_same_embedder_fills_a_new_generation_and_learned_weights_go_with_it(store: Store):
    embedder = FakeEmbedder("s", learned_sparse=True)
    name = store.use(embedder.info)
    row = PassageRow("a", "d", "v", 0, "one", "T", "s.md")
    store.write_document(name, [row], embedder.embed(["x"]).dense, [{3: 1.0}], "t")
    done, _ = drain(reembed(store, embedder, name, drop_old=True))
    assert done.dropped and done.collection == f"{name}__g2" == store.use(embedder.info)
    found = store.search(done.collection, None, "", 5, sparse={len(row.indexed_text): 2.0})
    assert found.sparse[0].id == "a"
    assert [info.name for info in store.collections(None)] == [done.collection]


def test_what_comes_and_goes_meanwhile_is_caught_up_and_queries_go_on(store: Store, old):
    embedder, name = old
    new, seen = FakeEmbedder("old"), []

    def meanwhile() -> None:
        if not seen:
            put(store, name, embedder, "added")
            store.remove_document(name, "d3")
        seen.append(store.use(embedder.info))
        assert store.search(name, embedder.vector("x"), "pumps", 3).dense

    new.after = meanwhile
    done, _ = drain(reembed(store, new, name))
    assert set(seen) == {name}, "the old one stays in use until the end"
    documents = store.documents(done.collection)
    assert "added" in documents and "d3" not in documents and done.rows == 150


def test_no_search_and_no_write_is_lost_while_the_collection_changes(store: Store, old):
    embedder, name = old
    stop, problems, written = threading.Event(), [], []

    def ask() -> None:
        while not stop.is_set():
            try:
                used = store.use(embedder.info)
                if not store.search(used, embedder.vector("Title\nPart\npumps d9 1 עברית"), "d9", 3).dense:
                    problems.append("nothing found")
            except RagError as problem:
                problems.append(problem.message)

    def write() -> None:
        while not stop.wait(0.05):
            put(store, name, embedder, f"w{len(written)}")
            written.append(f"w{len(written)}")

    threads = [threading.Thread(target=work) for work in (ask, write)]
    for thread in threads:
        thread.start()
    try:
        done, _ = drain(reembed(store, FakeEmbedder("old"), name))
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert problems == []
    assert set(written) <= set(store.documents(done.collection)), "what was written before and after the switch is there"


def test_a_run_that_broke_off_goes_on_where_it_stopped(tmp_path: Path, store: Store, old):
    _, name = old
    new = FakeEmbedder("new")
    calls = iter([False, False, True, True])
    with pytest.raises(Cancelled):
        drain(reembed(store, new, name, cancelled=lambda: next(calls)))
    assert list(unfinished(store).values()) == [name]
    begun = len(new.seen)
    assert begun == 128
    store.close()
    again = Store(uri=None, data_dir=tmp_path, collection="passages")
    try:
        done, _ = drain(reembed(again, new, name))
        assert done.embedded == 150 - begun and again.count(done.collection) == 150
        assert len([info for info in again.collections(None) if "new" in info.name]) == 1
    finally:
        again.close()


def test_documents_that_the_new_embedder_has_already_are_kept_with_their_vectors(store: Store, old):
    _, name = old
    new = FakeEmbedder("new")
    mine = store.use(new.info)
    put(store, mine, new, "mine", text="turbines")
    put(store, mine, new, "d1", text="turbines")
    new.seen.clear()
    done, _ = drain(reembed(store, new, name))
    assert done.copied == 6 and done.embedded == 147
    assert store.passages(done.collection, "d1")[0]["text"].startswith("turbines")


def test_an_embedder_that_gives_other_vectors_the_second_time_is_not_switched_to(store: Store, old):
    _, name = old
    new, turn = FakeEmbedder("new"), itertools.count()
    new.vector = lambda text: np.eye(8, dtype=np.float32)[next(turn) % 8]
    before = store.use(new.info)
    with pytest.raises(RagError, match="cosine"):
        drain(reembed(store, new, name))
    assert store.use(new.info) == before


def test_a_foreign_collection_is_refused_with_what_to_do(store: Store):
    shape = layout.Layout(
        (
            {"name": "pk", "type": 5, "params": {}, "is_primary": True},
            {"name": "v", "type": 101, "params": {"dim": 4}, "is_primary": False},
        ),
        (),
        ({"field": "v", "index_type": "FLAT", "metric_type": "L2", "params": {}},),
    )
    store.open()
    layout.create(store.client, "foreign", shape, embedded=True, properties={}, timeout=10)
    with pytest.raises(RagError, match="not one of ours") as caught:
        drain(reembed(store, FakeEmbedder("a"), "foreign"))
    assert "mapping" in caught.value.next_step
    with pytest.raises(RagError, match="no collection"):
        drain(reembed(store, FakeEmbedder("a"), "nowhere"))


# 4) sizes


def test_sizes_and_states_are_told_and_unknown_has_a_reason(store: Store, old):
    embedder, name = old
    put(store, name, embedder, "more")
    found = {item.name: item for item in sizes.look(store, name)}[name]
    assert (found.rows, found.dimension, found.unflushed_rows) == (153, 8, 3)
    assert found.size_bytes > 1000 and found.last_write_unix > 1.7e9
    assert found.load_state == "loaded" and found.index == "FLAT, finished" and found.active and found.schema_version == 1
    store.client.release_collection(name)
    assert sizes.look(store, name)[0].load_state == "not loaded"


def test_a_collection_being_filled_and_one_replaced_are_told_apart(store: Store, old):
    embedder, name = old
    store.create(f"{name}__g2", embedder.info, **{FROM: name})
    assert {item.name: item.filling_from for item in sizes.look(store, name)} == {name: None, f"{name}__g2": name}
    done, _ = drain(reembed(store, embedder, name))
    found = {item.name: item for item in sizes.look(store, done.collection)}
    assert found[name].replaced_by == done.collection == f"{name}__g2" and found[done.collection].active
    assert found[done.collection].filling_from is None


@pytest.mark.parametrize(
    ("rows", "searches", "severity"),
    [
        (19_999, [], None),
        (20_000, [], "warn"),
        (100_000, [], "critical"),
        (1_000, [0.3] * 20, "warn"),
        (1_000, [0.9] * 20, "critical"),
        (1_000, [0.9] * 19, None),
        (1_000, [0.01] * 50 + [5.0] * 10, None),
    ],
)
def test_milvus_lite_is_outgrown_by_rows_or_by_measured_searches(rows, searches, severity):
    item = sizes.CollectionCare("p__x", rows, None, 8, "loaded", 1.0, None, 0, None, 1, True, False, None, None, True, {})
    found = sizes.outgrown([item], embedded=True, searches=searches)
    assert (found.severity if found else None) == severity
    assert sizes.outgrown([item], embedded=False, searches=searches) is None


def test_progress_has_no_rate_before_the_first_row():
    clock = iter([0.0, 1.0, 2.0])
    pace = Pace("x", 10, lambda: next(clock))
    assert pace.event()["seconds_left"] is None
    assert pace.event(5) == {
        "type": "store_progress", "doing": "x", "done": 5, "total": 10, "rows_per_second": 2.5, "seconds_left": 2.0,
    }  # fmt: skip


def test_a_released_collection_is_read_all_the_same(store: Store, old):
    _, name = old
    store.client.release_collection(name)
    assert len(Source.open(store, name).keys()) == 150
