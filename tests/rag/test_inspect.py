"""Looking into collections with real parts: Milvus Lite, starter models; what each stage found is compared with a real query."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gpu_server.errors import ConnectionFailed
from gpu_server.interfaces import Delta, Embedder, ModelInfo, Scores, Timing
from gpu_server.model_pool import ModelPool
from gpu_server.starter import StarterEmbedder, StarterReranker
from rag.errors import RagError
from rag.inspect import duplicates, neighbours, stages, terms
from rag.inspect.reading import Reader, base_name, overlap_chars
from rag.query import Clients, Prompts, answer
from rag.routes import FieldMapping
from rag.store import Store
from rag.trace import Tracing
from rag.types import Options, PassageRow

TEXTS = {
    "rerank": "The first rerank after a restart is slow because kernels are compiled on first use. Warm it up at start.",
    "rerank-copy": "The first rerank after a restart is slow because kernels are compiled on first use. Warm it up at start!",
    "tunnel": "Searching Milvus through an SSH tunnel adds a round trip of one to two seconds to every query.",
    "memory": "An idle GPU full of weights is the normal case. Utilisation of memory is bandwidth and not occupancy.",
    "article": "Article 72 limits maintenance windows to four hours on Tuesdays.",
    "kitchen": "Bread rises when yeast turns sugar into gas; knead it for ten minutes and let it rest.",
    "hebrew": "המודל נטען פעם אחת בלבד. הזיכרון של המאיץ נשאר תפוס.",
}
QUESTION = "Why is the first rerank after a restart slow?"
LONG = 130
DEFAULTS = Options()


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    pool = ModelPool()
    embedder = pool.add_embedder("starter", StarterEmbedder)
    reranker = pool.add_reranker("starter", StarterReranker, uses_route_scores=True)
    store = Store(uri=None, data_dir=tmp_path_factory.mktemp("inspect"), collection="passages")
    fill(store, embedder)
    yield Clients(embedder, reranker, None, store, Tracing(), Prompts("{passages}{question}", "Write about: {question}"))
    store.close()


def fill(store: Store, embedder: Embedder) -> None:
    name = store.use(embedder.info)
    for key, text in TEXTS.items():
        write(
            store, name, embedder, [PassageRow(key, key, "v", 0, text, f"About {key.split('-')[0]}", f"{key}.md", "Intro", "en")]
        )
    rows = [PassageRow(f"long-{n}", "long", "v", n, f"Step {n} of the handbook.", "Handbook", "long.md") for n in range(LONG)]
    write(store, name, embedder, rows)
    store.flush(name)


def write(store: Store, name: str, embedder: Embedder, rows: list[PassageRow]) -> None:
    store.write_document(name, rows, embedder.embed([row.indexed_text for row in rows]).dense, None, "2026-01-01T00:00:00Z")


@pytest.fixture
def reader(clients: Clients) -> Reader:
    return Reader(clients.store, clients.store.collection_name(clients.embedder.info))


def looked(question: str, clients: Clients, options: Options = DEFAULTS) -> stages.StageRun:
    steps = stages.run(question, options, clients)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            assert isinstance(end.value, stages.StageRun)
            return end.value


def asked(question: str, clients: Clients, options: Options = DEFAULTS):
    steps = answer(question, replace(options, caches="bypass"), clients)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value.answer


# ------------------------------------------------------------------------------------------------------------- reading


def test_a_documents_passages_come_in_order_and_in_pages(reader: Reader) -> None:
    document = reader.document("long")
    assert document is not None and document.passages == LONG
    page = reader.passages(document, 50, 50)
    assert [passage.position for passage in page] == list(range(50, 100))
    assert page[0].text == "Step 50 of the handbook." and page[0].indexed == "Handbook\nStep 50 of the handbook."
    assert reader.passages(document, 500, 50) == ()
    assert [passage.position for passage in reader.every_passage(document)] == list(range(LONG))


def test_passages_of_an_older_content_are_left_out(clients: Clients, reader: Reader) -> None:
    row = PassageRow("stale-0", "article", "older", 1, "An older text.", "About article", "article.md")
    clients.store.write_rows(reader.name, [row], clients.embedder.embed(["x"]).dense, None)
    try:
        document = reader.document("article")
        assert document is not None and [item.id for item in reader.passages(document, 0, 50)] == ["article"]
    finally:
        clients.store.client.delete(reader.name, filter='id == "stale-0"')


def test_what_is_not_there_is_said(clients: Clients, reader: Reader) -> None:
    assert reader.document("nobody") is None
    assert reader.by_ids(["nobody", "tunnel"]).keys() == {"tunnel"}
    assert reader.vector("nobody") is None
    with pytest.raises(RagError) as error:
        Reader(clients.store, "no_such_collection")
    assert error.value.kind == "not_found" and error.value.next_step


def test_a_released_collection_is_loaded_again(clients: Clients, reader: Reader) -> None:
    clients.store.client.release_collection(reader.name)
    assert reader.by_ids(["tunnel"])["tunnel"].text == TEXTS["tunnel"]


def test_a_documents_name_cannot_change_the_filter(reader: Reader) -> None:
    assert reader.document('" or position == 0 or document_id == "') is None
    assert reader.by_ids(['"] or id in ["tunnel']) == {}


def test_the_name_tells_which_embedder_filled_the_collection(clients: Clients, reader: Reader) -> None:
    info = clients.embedder.info
    assert reader.filled_by(info)
    assert not reader.filled_by(replace(info, identity="another-384-mean-00"))
    assert base_name(reader.name) == "passages"


@pytest.mark.parametrize(
    ("before", "text", "shared"),
    [
        ("One two three. Four five six.", "Four five six. Seven.", len("Four five six.")),
        ("One two three. Four five six.", "Seven eight nine.", 0),
        ("ends with a", "a begins", 0),
        ("repeat repeat repeat repeat", "repeat repeat repeat and on", len("repeat repeat repeat")),
        ("", "A text with nothing before it", 0),
    ],
)
def test_the_overlap_of_neighbours_is_what_both_have(before: str, text: str, shared: int) -> None:
    assert overlap_chars(before, text) == shared


# ---------------------------------------------------------------------------------------------------------- neighbours


def test_neighbours_of_a_text_have_both_scores_and_duplicates_are_marked(clients: Clients, reader: Reader) -> None:
    indexed = PassageRow("", "", "", 0, TEXTS["rerank"], "About rerank", "", "Intro").indexed_text
    found = neighbours.of_text(reader, clients.embedder, indexed)
    by_id = {item.passage.id: item for item in found.items}
    assert found.items[0].passage.id == "rerank"
    assert by_id["rerank"].near_duplicate and by_id["rerank-copy"].near_duplicate
    assert by_id["rerank"].passage.scores["dense"] == pytest.approx(1.0, abs=1e-3)
    assert by_id["kitchen"].near_duplicate is False
    assert (found.no_dense, found.no_sparse) == (None, None)


def test_a_stored_passage_is_no_neighbour_of_itself_and_needs_no_embedder(reader: Reader) -> None:
    passage, found = neighbours.of_passage(reader, FailingEmbedder(), "rerank", limit=3)
    assert passage.text == TEXTS["rerank"]
    ids = [item.passage.id for item in found.items]
    assert "rerank" not in ids and ids[0] == "rerank-copy"
    assert found.items[0].passage.ranks["dense"] == 1 and found.items[0].passage.ranks["sparse"] == 1
    assert sorted(rank for item in found.items if (rank := item.passage.ranks["dense"])) == [1, 2, 3]


class FailingEmbedder:
    """Named a fake: an embedder whose server is gone."""

    def __init__(self, identity: str = "gone") -> None:
        self.info = ModelInfo("gone", "embedder", identity, "cpu", "fp32", dimension=384)

    def embed(self, texts, kind="passage", **_):
        raise ConnectionFailed("refused", address="http://127.0.0.1:9")

    def count_tokens(self, text: str) -> int:
        raise ConnectionFailed("refused", address="http://127.0.0.1:9")


def test_without_an_embedder_words_still_find(clients: Clients, reader: Reader) -> None:
    gone = FailingEmbedder(clients.embedder.info.identity)
    found = neighbours.of_text(reader, gone, "yeast sugar")
    assert [item.passage.id for item in found.items] == ["kitchen"]
    assert found.no_dense == "the embedder failed: refused" and found.no_sparse is None
    assert found.items[0].near_duplicate is None


def test_a_collection_of_another_embedder_is_searched_by_words_alone(clients: Clients, reader: Reader) -> None:
    found = neighbours.of_text(reader, FailingEmbedder("another"), "yeast sugar")
    assert found.no_dense and "another embedder filled this collection" in found.no_dense
    assert [item.passage.ranks["dense"] for item in found.items] == [None]


def test_an_empty_text_and_a_lost_passage_are_refused(clients: Clients, reader: Reader) -> None:
    with pytest.raises(RagError, match="the text is empty"):
        neighbours.of_text(reader, clients.embedder, "  ")
    with pytest.raises(RagError) as error:
        neighbours.of_passage(reader, clients.embedder, "nobody")
    assert error.value.kind == "not_found"


def test_a_collection_of_somebody_else_is_read_through_its_mapping(clients: Clients, tmp_path: Path) -> None:
    """An integer key, other field names, no BM25."""
    from pymilvus import DataType

    mapping = FieldMapping("foreign", "body", dense_field="vec", source_field="file")
    store = Store(uri=None, data_dir=tmp_path, collection="passages", mapping=mapping)
    store.open()
    try:
        schema = store.client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("pk", DataType.INT64, is_primary=True)
        for field in ("body", "file"):
            schema.add_field(field, DataType.VARCHAR, max_length=2000)
        schema.add_field("vec", DataType.FLOAT_VECTOR, dim=384)
        index = store.client.prepare_index_params()
        index.add_index("vec", index_type="FLAT", metric_type="COSINE")
        store.client.create_collection("foreign", schema=schema, index_params=index)
        vectors = clients.embedder.embed(list(TEXTS.values())).dense
        rows = [{"pk": n, "body": text, "file": f"{key}.pdf"} for n, (key, text) in enumerate(TEXTS.items())]
        store.client.insert("foreign", [{**row, "vec": vectors[n].tolist()} for n, row in enumerate(rows)])
        reader = Reader(store, "foreign")
        assert reader.filled_by(clients.embedder.info) and reader.document("rerank") is None
        found = neighbours.of_text(reader, clients.embedder, TEXTS["tunnel"])
        assert (found.items[0].passage.source, found.items[0].near_duplicate) == ("tunnel.pdf", True)
        assert found.no_sparse == "the collection has no sparse vectors"
        passage, near = neighbours.of_passage(reader, clients.embedder, "0", limit=2)
        assert passage.text == TEXTS["rerank"] and near.items[0].passage.id == "1"
        assert scanned(reader, 0.95).groups[0].ids == ("0", "1")
        run = looked(QUESTION, replace(clients, store=store))
        assert stages.expect(run, "rerank.pdf", store).fate == "kept"
        with pytest.raises(RagError, match=r"only the collection of milvus\.mapping"):
            Reader(store, "other")
    finally:
        store.close()


# ---------------------------------------------------------------------------------------------------------- duplicates


def scanned(reader: Reader, threshold: float, **more) -> duplicates.Duplicates:
    steps = duplicates.scan(reader, threshold, **more)
    while True:
        try:
            event = next(steps)
            assert event["type"] == "progress" and 0 <= event["done"] <= event["total"]
        except StopIteration as end:
            return end.value


def test_the_scan_finds_the_copy_and_says_what_it_compared(reader: Reader) -> None:
    found = scanned(reader, 0.95)
    pair = next(group for group in found.groups if "rerank" in group.ids)
    assert set(pair.ids) == {"rerank", "rerank-copy"} and min(pair.nearest) >= 0.95
    assert found.compared == found.total == len(TEXTS) + LONG
    assert found.spare == sum(len(group.ids) - 1 for group in found.groups)


def test_the_scan_is_bounded_and_can_be_stopped(reader: Reader) -> None:
    assert scanned(reader, 0.95, most=5).compared == 5
    stopped = scanned(reader, 0.95, cancelled=lambda: True)
    assert stopped.compared <= stopped.total
    with pytest.raises(RagError, match="cosine"):
        scanned(reader, 1.5)


def brute_force(vectors: np.ndarray, threshold: float) -> set[frozenset[int]]:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    groups = [{n} for n in range(len(vectors))]
    for one in range(len(vectors)):
        for other in range(one + 1, len(vectors)):
            if float(unit[one] @ unit[other]) >= threshold - 1e-6:
                ours = next(group for group in groups if one in group)
                theirs = next(group for group in groups if other in group)
                if ours is not theirs:
                    ours |= theirs
                    groups.remove(theirs)
    return {frozenset(group) for group in groups if len(group) > 1}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("block_rows", [1, 7, 64])
def test_groups_are_the_connected_ones_whatever_the_blocks(seed: int, block_rows: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(60, 3)).astype(np.float32)
    links = duplicates.Links(vectors, 0.97)
    assert list(links.compare(block_rows))[-1] == 60
    found = {frozenset(rows) for rows, _ in links.groups()}
    assert found == brute_force(vectors, 0.97) and found


def test_equal_vectors_are_one_group_and_zeros_are_like_nothing() -> None:
    vectors = np.vstack([np.tile([3.0, 4.0], (900, 1)), np.zeros((5, 2))]).astype(np.float32)
    links = duplicates.Links(vectors, 1.0)
    list(links.compare())
    ((rows, nearest),) = links.groups()
    assert rows == list(range(900)) and set(nearest) == {1.0}


# -------------------------------------------------------------------------------------------------------------- stages


def test_the_run_is_what_a_query_does(clients: Clients) -> None:
    options = Options(candidates=6, keep=3)
    run, real = looked(QUESTION, clients, options), asked(QUESTION, clients, options)
    assert run.passages[: len(real.passages)] == real.passages
    assert run.reranked and [run.fate(item) for item in run.passages[:4]] == ["kept", "kept", "kept", "cut by rerank"]
    assert run.hyde_text is None and dict(run.notes)["hyde"]


def test_what_the_fusion_cut_off_is_still_shown(clients: Clients) -> None:
    options = Options(candidates=3, keep=1)
    run = looked("slow rerank of the handbook step 7", clients, options)
    real = asked("slow rerank of the handbook step 7", clients, options)
    beyond = [item for item in run.passages if run.fate(item) == "cut by fusion"]
    assert len(run.passages) > len(real.passages) == 3 and beyond
    assert [item.ranks["fused"] for item in beyond] == list(range(4, 4 + len(beyond)))
    assert all(item.ranks["rerank"] is None for item in beyond)


def test_lost_passages_are_told_by_route(clients: Clients) -> None:
    run = looked(QUESTION, clients, Options(candidates=10, keep=1))
    lost = run.lost_from("dense", 5)
    assert len(lost) == 4 and all(not item.kept and item.ranks["dense"] <= 5 for item in lost)


def test_an_expected_document_is_followed_to_where_it_drops_out(clients: Clients) -> None:
    store = clients.store
    kept = stages.expect(looked(QUESTION, clients, Options(keep=2)), "rerank", store)
    assert kept.fate == "kept" and not kept.next_step
    reranked = stages.expect(looked(QUESTION, clients, Options(keep=1)), "memory", store)
    assert reranked.fate == "cut by rerank" and "came out at" in reranked.reason
    fused = looked("Step 3 of the handbook, in the kitchen with bread", clients, Options(candidates=2, keep=1))
    cut = {stages.document_key(item) for item in fused.passages if fused.fate(item) == "cut by fusion"}
    assert cut, "two routes that disagree find more than two passages"
    for key in cut - {stages.document_key(item) for item in fused.passages if fused.fate(item) != "cut by fusion"}:
        assert stages.expect(fused, key, store).fate == "cut by fusion"
    missed = stages.expect(looked(QUESTION, clients, Options(candidates=2, keep=1)), "kitchen", store)
    assert missed.fate == "not found" and missed.deep is not None and missed.deep["dense"]
    assert missed.deep["dense"] > 2 and f"dense {missed.deep['dense']}" in missed.reason
    absent = stages.expect(looked(QUESTION, clients, Options(candidates=2, keep=1)), "nobody", store)
    assert absent.fate == "not found" and "Nor is it within" in absent.reason


def test_without_a_reranker_the_fused_order_stands_and_the_notes_say_so(clients: Clients) -> None:
    run = looked(QUESTION, clients, Options(rerank=False, keep=2))
    assert not run.reranked and dict(run.notes)["rerank"] == "switched off"
    assert [item.ranks["fused"] for item in run.passages if item.kept] == [1, 2]
    assert "of the fused order" in stages.expect(run, "memory", clients.store).reason


class FailingReranker:
    """Named a fake: a reranker whose server is gone."""

    info = replace(StarterReranker().info, name="failing fake", address="http://127.0.0.1:9")
    uses_route_scores = False

    def score(self, query, candidates, *, deadline=None, caches="use") -> Scores:
        raise ConnectionError("refused")


def test_a_reranker_that_fails_is_noted(clients: Clients) -> None:
    run = looked(QUESTION, replace(clients, reranker=FailingReranker()))
    assert not run.reranked and "fused order stands" in dict(run.notes)["rerank"]


def test_an_embedder_that_fails_ends_the_run_with_its_stage(clients: Clients) -> None:
    with pytest.raises(RagError, match=r"^embed: refused") as error:
        looked(QUESTION, replace(clients, embedder=FailingEmbedder()))
    assert error.value.kind == "connection"


def test_an_empty_collection_finds_nothing_and_does_not_fail(clients: Clients, tmp_path: Path) -> None:
    store = Store(uri=None, data_dir=tmp_path, collection="passages")
    try:
        run = looked(QUESTION, replace(clients, store=store))
        assert run.passages == ()
        assert scanned(Reader(store, store.use(clients.embedder.info)), 0.95).compared == 0
    finally:
        store.close()


class WritingChat:
    """Named a fake: a language model that always writes the same hypothesis, and is not asked for more."""

    info = ModelInfo("writing fake", "llm", "writing", "cpu", "fp32")

    def __init__(self) -> None:
        self.requests = 0

    def stream(self, request):
        self.requests += 1
        yield Delta("Yeast turns sugar into gas.", timing=Timing())


def test_with_hyde_the_hypothesis_is_searched_and_no_answer_is_written(clients: Clients) -> None:
    chat = WritingChat()
    plain = looked("What makes it rise?", clients)
    hyde = looked("What makes it rise?", replace(clients, chat=chat), Options(hyde="on"))
    assert chat.requests == 1 and hyde.hyde_text == "Yeast turns sugar into gas."
    assert plain.hyde_text is None
    before, after = (next(item.scores["dense"] for item in run.passages if item.id == "kitchen") for run in (plain, hyde))
    assert after > before


def test_another_collection_of_the_embedder_is_followed_too(clients: Clients, reader: Reader) -> None:
    name = clients.store.use(clients.embedder.info, "others")
    write(clients.store, name, clients.embedder, [PassageRow("x", "x", "v", 0, "Rerank in another place.", "X", "x.md")])
    try:
        options = stages.options_for(Reader(clients.store, name), Options(), reader.name)
        assert [item.id for item in looked(QUESTION, clients, options).passages] == ["x"]
    finally:
        clients.store.drop(name)


def test_a_collection_is_named_to_the_path_by_its_base(reader: Reader) -> None:
    assert stages.options_for(reader, Options(), reader.name).collection is None
    assert stages.options_for(reader, Options(), "another").collection == "passages"


# --------------------------------------------------------------------------------------------------------------- words


def test_words_that_every_text_has_are_left_out() -> None:
    assert terms.question_words("What does Art. 72 say about the maintenance?")[-1] == "maintenance"
    assert {"72", "maintenance"} <= set(terms.question_words("What does Art. 72 say about the maintenance?"))
    assert "the" not in terms.question_words("What does Art. 72 say about the maintenance?")
    assert terms.question_words("What is it?") == ("what", "is", "it")
    assert terms.question_words("") == ()


def test_pieces_join_to_the_text_and_words_are_whole() -> None:
    text = "Rerank reranks; RERANK!\n  indent <b>kept</b>"
    found = list(terms.pieces(text, ["rerank", "kept"]))
    assert "".join(piece.text for piece in found) == text
    assert [piece.text for piece in found if piece.word] == ["Rerank", "RERANK", "kept"]
    assert terms.matched(["rerank", "heading", "no"], text, "A heading", None) == ("rerank", "heading")


def test_an_excerpt_holds_the_words_and_is_bounded() -> None:
    text = "filler " * 200 + "the needle in the hay " + "filler " * 200
    found = terms.excerpt(text, ["needle", "hay"], 200)
    assert "needle in the hay" in found and len(found) <= 204
    assert found.startswith("… ") and found.endswith(" …")
    assert terms.excerpt("short", ["x"]) == "short"
    assert len(terms.excerpt("ש" * 5000, ["x"], 200)) <= 204
