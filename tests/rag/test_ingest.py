"""The ingestion job on real files, with a store and an embedder whose arithmetic is known: faults, cancel, batches, progress."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fpdf import FPDF
from numpy.typing import NDArray

from gpu_server.interfaces import Embeddings, ModelInfo, TextKind, Timing
from rag import ingest_reading
from rag.errors import RagError
from rag.ingest import BATCH, IN_FLIGHT, LARGEST_BATCH, ingest
from rag.ingest_reading import Buffer, Document, Part
from rag.loaders import Found, SourceFile, find
from rag.types import Event, PassageRow, Problem, StoredDocument

DATA = Path(__file__).parents[1] / "data" / "documents"
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


class FakeEmbedder:
    """Vector = (characters, words); a token is a word; a text with the word `poison` fails."""

    def __init__(self, sparse: bool = False) -> None:
        self.batches: list[int] = []
        self.error: Exception | None = None
        self.info = ModelInfo("fake", "embedder", "fake-2", "cpu", "fp32", dimension=2)
        self._sparse = sparse

    def embed(
        self, texts: Sequence[str], kind: TextKind = "passage", *, priority: int = 0, deadline: float | None = None
    ) -> Embeddings:
        assert kind == "passage"
        self.batches.append(len(texts))
        if self.error is not None:
            raise self.error
        if any("poison" in text for text in texts):
            raise RuntimeError("poison cannot be embedded")
        dense = np.array([[len(text), self.count_tokens(text)] for text in texts], dtype=np.float32)
        sparse = tuple({len(text): 1.0} for text in texts) if self._sparse else None
        return Embeddings(dense, sparse, Timing(), tokens=sum(map(self.count_tokens, texts)), truncated=len(texts))

    def count_tokens(self, text: str) -> int:
        return len(text.split())


@dataclass
class FakeStore:
    """In memory; `fail_writes` raises that error for a source whose name contains the key."""

    rows: dict[str, PassageRow] = field(default_factory=dict)
    vectors: dict[str, list[float]] = field(default_factory=dict)
    sparse: dict[str, Mapping[int, float]] = field(default_factory=dict)
    markers: dict[str, StoredDocument] = field(default_factory=dict)
    fail_writes: dict[str, Exception] = field(default_factory=dict)
    away: Exception | None = None
    flushed_at: list[int] = field(default_factory=list)

    def documents(self) -> Mapping[str, StoredDocument]:
        if self.away:
            raise self.away
        return dict(self.markers)

    def write_document(
        self,
        rows: Sequence[PassageRow],
        vectors: NDArray[np.float32],
        sparse: Sequence[Mapping[int, float]] | None,
        ingested_at: str,
    ) -> None:
        for key, problem in self.fail_writes.items():
            if key in rows[0].source:
                raise problem
        assert vectors.shape == (len(rows), 2)
        assert vectors.dtype == np.float32
        for index, row in enumerate(rows):
            self.rows[row.id] = row
            self.vectors[row.id] = vectors[index].tolist()
            if sparse is not None:
                self.sparse[row.id] = sparse[index]
        head = rows[0]
        for old in [row for row in self.rows.values() if row.document_id == head.document_id]:
            if old.content_hash != head.content_hash:
                del self.rows[old.id]
        self.markers[head.document_id] = StoredDocument(
            head.document_id, head.content_hash, head.source, head.title, head.language, len(rows), ingested_at
        )

    def remove_document(self, document_id: str) -> int:
        gone = [row.id for row in self.rows.values() if row.document_id == document_id]
        for row_id in gone:
            del self.rows[row_id]
        self.markers.pop(document_id, None)
        return len(gone)

    def flush(self) -> None:
        if self.away:
            raise self.away
        self.flushed_at.append(len(self.rows))


class Clock:
    """Each look at it is `step` seconds later."""

    def __init__(self, step: float) -> None:
        self.seconds = 0.0
        self.step = step

    def __call__(self) -> float:
        self.seconds += self.step
        return self.seconds


def run(paths: Found | Sequence[Path], store: FakeStore, embedder: FakeEmbedder | None = None, **options: Any) -> list[Event]:
    settings: dict[str, Any] = {"chunk_tokens": 40, "overlap_tokens": 0, "max_file_bytes": 10_000_000, "clock": Clock(0.01)}
    events = list(ingest(paths, store, embedder or FakeEmbedder(), now=lambda: NOON, **{**settings, **options}))
    assert [event["type"] for event in events[:1]] == ["ingest_started"]
    assert [event["type"] for event in events].count("ingest_finished") == 1
    assert events[-1]["type"] == "ingest_finished"
    counts = sum(events[-1][key] for key in ("added", "replaced", "unchanged", "duplicate", "failed", "not_done"))
    assert counts == events[-1]["files"] == events[0]["files"]
    return events


def outcomes(events: Sequence[Event]) -> dict[str, str]:
    return {event["source"]: event["outcome"] for event in events if event["type"] == "file_finished"}


def words(count: int, first: int = 0) -> str:
    return " ".join(f"w{number}" for number in range(first, first + count))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "docs"
    root.mkdir()
    return root


def test_real_files_of_every_kind(folder: Path) -> None:
    pdf = FPDF()
    pdf.set_font("helvetica", size=12)
    for text in ("The first page is about latency.", "The second page is about throughput."):
        pdf.add_page()
        pdf.multi_cell(0, text=text)
    pdf.output(str(folder / "report.pdf"))
    for name in ("hebrew.md", "page.html", "latin1.txt", "broken.pdf"):
        (folder / name).write_bytes((DATA / name).read_bytes())
    (folder / "binary.txt").write_bytes(b"\0\1\2")
    (folder / "empty.md").write_bytes(b"")
    (folder / "photo.bin").write_bytes(b"x")
    store = FakeStore()
    events = run([folder, folder / "nothing.md"], store, FakeEmbedder(sparse=True))
    assert outcomes(events) == {
        str(folder / "nothing.md"): "failed",
        "docs/binary.txt": "failed",
        "docs/broken.pdf": "failed",
        "docs/empty.md": "failed",
        "docs/hebrew.md": "added",
        "docs/latin1.txt": "added",
        "docs/page.html": "added",
        "docs/report.pdf": "added",
    }
    errors = {event["source"]: event["error"] for event in events if event["type"] == "file_finished" and event["error"]}
    assert all(error["kind"] == "bad_input" and error["next_step"] for error in errors.values())
    assert "not a text file" in errors["docs/binary.txt"]["message"]
    notes = [event["notes"] for event in events if event.get("source") == "docs/latin1.txt"]
    assert "Windows-1252" in notes[0][0]
    last = events[-1]
    assert (last["outcome"], last["added"], last["failed"], last["skipped"]) == ("finished", 4, 4, 1)
    assert last["skipped_reasons"] == [{"reason": ".bin files are not supported", "count": 1, "example": "docs/photo.bin"}]
    assert last["passages"] == last["truncated"] == len(store.rows)
    assert last["tokens"] == sum(len(row.indexed_text.split()) for row in store.rows.values())
    for row_id, row in store.rows.items():
        assert store.vectors[row_id] == [len(row.indexed_text), len(row.indexed_text.split())]
        assert store.sparse[row_id] == {len(row.indexed_text): 1.0}
    assert {row.location for row in store.rows.values() if row.source == "docs/report.pdf"} == {"p. 1", "p. 2"}
    assert {document.ingested_at for document in store.markers.values()} == {"2026-11-21T12:00:00.000Z"}
    assert store.flushed_at == [len(store.rows)]


def test_again_changed_and_with_other_settings(folder: Path) -> None:
    (folder / "a.txt").write_text(words(100))
    (folder / "b.txt").write_text(words(30))
    store, embedder = FakeStore(), FakeEmbedder()
    assert run([folder], store, embedder)[-1]["added"] == 2
    before, calls = dict(store.rows), len(embedder.batches)
    again = run([folder], store, embedder)
    assert outcomes(again) == {"docs/a.txt": "unchanged", "docs/b.txt": "unchanged"}
    assert [event["passages"] for event in again if event["type"] == "file_finished"] == [3, 1]
    assert (len(embedder.batches), store.rows) == (calls, before)
    (folder / "a.txt").write_text(words(50, first=500))
    assert outcomes(run([folder], store, embedder)) == {"docs/a.txt": "replaced", "docs/b.txt": "unchanged"}
    assert "w99" not in " ".join(row.text for row in store.rows.values())
    assert len(store.rows) == 3
    assert set(outcomes(run([folder], store, embedder, chunk_tokens=20)).values()) == {"replaced"}
    assert set(outcomes(run([folder], store, embedder, chunk_tokens=20, id_prefix="other:")).values()) == {"duplicate"}


def test_small_documents_share_batches(folder: Path) -> None:
    for number in range(150):
        (folder / f"{number:03}.txt").write_text(f"document number {number}")
    embedder, store = FakeEmbedder(), FakeStore()
    events = run([folder], store, embedder, clock=Clock(0.0))
    assert embedder.batches[0] == BATCH  # no time passes: nothing is measured
    assert sum(embedder.batches) == 150
    assert len(embedder.batches) <= 3
    assert events[-1]["added"] == len(store.markers) == 150


def test_a_4_mb_text_is_embedded_in_batches_with_progress(folder: Path) -> None:
    (folder / "big.txt").write_text("\n\n".join(words(50, first=start) for start in range(0, 600_000, 50)))
    assert (folder / "big.txt").stat().st_size > 4_000_000
    (folder / "small.txt").write_text("a small one")
    embedder, store = FakeEmbedder(), FakeStore()
    events = run([folder], store, embedder, chunk_tokens=400, clock=Clock(0.1))
    assert BATCH < max(embedder.batches) <= LARGEST_BATCH
    assert events[-1]["passages"] == len(store.rows) > 1000
    progress = [event for event in events if event["type"] == "progress"]
    assert len(progress) > 3
    for one, other in pairwise(progress):
        assert one["bytes_done"] <= other["bytes_done"] <= other["bytes"]
    halfway = progress[len(progress) // 2]
    assert halfway["files_done"] == 0
    assert halfway["seconds_left"] == pytest.approx(
        halfway["seconds"] * (halfway["bytes"] - halfway["bytes_done"]) / halfway["bytes_done"], rel=0.01
    )
    assert (progress[-1]["seconds_left"], progress[-1]["files_done"], progress[-1]["bytes_done"]) == (0, 2, progress[-1]["bytes"])


def test_flush_every_2000_passages(folder: Path) -> None:
    for number in range(5):
        (folder / f"{number}.txt").write_text(words(8_000, first=number))
    store = FakeStore()
    run([folder], store, chunk_tokens=10)
    assert store.flushed_at == [2400, 4000]


def test_progress_comes_at_most_four_times_a_second(folder: Path) -> None:
    for number in range(300):
        (folder / f"{number:03}.txt").write_text(words(3, first=number))
    progress = [event for event in run([folder], FakeStore(), clock=Clock(0.001)) if event["type"] == "progress"]
    gaps = [other["seconds"] - one["seconds"] for one, other in pairwise(progress[:-1])]
    assert gaps
    assert min(gaps) >= 0.24  # the clock of the event is read after that of the check


def test_one_document_that_cannot_be_embedded_does_not_take_others_along(folder: Path) -> None:
    (folder / "a.txt").write_text("good text")
    (folder / "b.txt").write_text("poison text")
    (folder / "c.txt").write_text(words(5000) + " poison")
    (folder / "d.txt").write_text("another good text")
    store = FakeStore()
    events = run([folder], store)
    assert outcomes(events) == {"docs/a.txt": "added", "docs/b.txt": "failed", "docs/c.txt": "failed", "docs/d.txt": "added"}
    assert {row.source for row in store.rows.values()} == {"docs/a.txt", "docs/d.txt"}
    errors = [event["error"] for event in events if event["type"] == "file_finished" and event["error"]]
    assert [error["message"] for error in errors] == ["poison cannot be embedded"] * 2
    assert events[-1]["outcome"] == "finished"


def test_one_document_that_cannot_be_written(folder: Path) -> None:
    for name in ("a", "b", "c"):
        (folder / f"{name}.txt").write_text(f"text of {name}")
    store = FakeStore(fail_writes={"b.txt": RagError("the row is too long", kind="bad_input")})
    assert outcomes(run([folder], store)) == {"docs/a.txt": "added", "docs/b.txt": "failed", "docs/c.txt": "added"}


@pytest.mark.parametrize("kind", ["connection", "held"])
def test_a_store_that_goes_away_ends_the_run(folder: Path, kind: Any) -> None:
    for name in ("a", "b", "c"):
        (folder / f"{name}.txt").write_text(words(BATCH * 40, first=ord(name)))
    gone = RagError("the store does not answer", kind=kind, address="http://milvus:19530", next_step="Start it.")
    store = FakeStore(fail_writes={"b.txt": gone})
    events = run([folder], store)
    assert outcomes(events) == {"docs/a.txt": "added"}
    assert store.flushed_at == [len(store.rows)]
    last = events[-1]
    assert (last["outcome"], last["added"], last["failed"], last["not_done"]) == ("failed", 1, 0, 2)
    assert last["error"] == asdict(Problem(None, kind, gone.message, gone.address, gone.next_step))


def test_a_store_that_is_away_from_the_start_and_an_embedder_that_is(folder: Path) -> None:
    (folder / "a.txt").write_text("text")
    away = RagError("nobody answers", kind="connection")
    last = run([folder], FakeStore(away=away))[-1]
    assert (last["outcome"], last["not_done"], last["error"]["message"]) == ("failed", 1, "nobody answers")
    embedder = FakeEmbedder()
    embedder.error = ConnectionRefusedError("connection refused")
    last = run([folder], FakeStore(), embedder)[-1]
    assert (last["outcome"], last["not_done"], last["error"]["kind"]) == ("failed", 1, "connection")


def test_cancel_keeps_what_is_written(folder: Path) -> None:
    for number in range(10):
        (folder / f"{number}.txt").write_text(words(BATCH * 40, first=number))
    store = FakeStore()
    events = run([folder], store, cancelled=lambda: len(store.markers) == 3)
    assert (events[-1]["outcome"], events[-1]["added"], events[-1]["not_done"]) == ("cancelled", 3, 7)
    assert len(outcomes(events)) == 3
    assert store.flushed_at == [len(store.rows)]
    assert run([folder], store)[-1]["unchanged"] == 3


def test_closing_the_iterator_flushes(folder: Path) -> None:
    for number in range(3):
        (folder / f"{number}.txt").write_text(words(BATCH * 40, first=number))
    store = FakeStore()
    events = ingest([folder], store, FakeEmbedder(), chunk_tokens=40, overlap_tokens=0, max_file_bytes=100_000)
    assert next(event for event in events if event["type"] == "file_finished")["outcome"] == "added"
    assert isinstance(events, Generator)
    events.close()
    assert store.flushed_at == [len(store.rows)]


def test_vectors_that_cannot_be_right_fail_the_document(folder: Path) -> None:
    class NaNEmbedder(FakeEmbedder):
        def embed(
            self, texts: Sequence[str], kind: TextKind = "passage", *, priority: int = 0, deadline: float | None = None
        ) -> Embeddings:
            return Embeddings(np.full((len(texts), 2), np.nan, dtype=np.float32), None, Timing(), tokens=1)

    (folder / "a.txt").write_text("text")
    events = run([folder], FakeStore(), NaNEmbedder())
    assert outcomes(events) == {"docs/a.txt": "failed"}
    assert re.search("not finite", events[1]["error"]["message"])


def test_nothing_to_do_and_settings_that_contradict(tmp_path: Path) -> None:
    events = run(find([]), FakeStore())
    assert (events[-1]["outcome"], events[-1]["files"], events[-1]["passages"]) == ("finished", 0, 0)
    assert events[-2]["seconds_left"] == 0
    with pytest.raises(ValueError, match="less than chunk_tokens"):
        ingest([], FakeStore(), FakeEmbedder(), chunk_tokens=10, overlap_tokens=10, max_file_bytes=1)


# beside each other


class SlowEmbedder(FakeEmbedder):
    """Says nothing until it may; counts how many requests are with it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = threading.Event()
        self.asked = threading.Event()
        self.at_once: list[int] = []
        self._now = 0
        self._lock = threading.Lock()

    def embed(
        self, texts: Sequence[str], kind: TextKind = "passage", *, priority: int = 0, deadline: float | None = None
    ) -> Embeddings:
        with self._lock:
            self._now += 1
            self.at_once.append(self._now)
        self.asked.set()
        assert self.may_answer.wait(30)
        with self._lock:
            self._now -= 1
        return super().embed(texts, kind)


def test_cancel_does_not_wait_for_the_embedder(folder: Path) -> None:
    (folder / "a.txt").write_text(words(5000))
    embedder, store = SlowEmbedder(), FakeStore()
    try:
        events = run([folder], store, embedder, cancelled=embedder.asked.is_set, clock=time.monotonic)
    finally:
        embedder.may_answer.set()
    assert (events[-1]["outcome"], events[-1]["not_done"]) == ("cancelled", 1)
    assert store.rows == {}


def test_two_requests_are_with_the_embedder_at_once_and_no_more(folder: Path) -> None:
    (folder / "a.txt").write_text(words(BATCH * 40 * 6))
    embedder = SlowEmbedder()

    def free_later() -> None:
        while len(embedder.at_once) < IN_FLIGHT:
            time.sleep(0.01)
        embedder.may_answer.set()

    helper = threading.Thread(target=free_later, daemon=True)
    helper.start()
    assert run([folder], FakeStore(), embedder, clock=time.monotonic)[-1]["added"] == 1
    assert max(embedder.at_once) == IN_FLIGHT


def test_a_buffer_is_bounded_in_rows_and_in_characters() -> None:
    def part(text: str, rows: int) -> Part:
        document = Document(SourceFile(Path("a.txt"), "a.txt"), "d", 1)
        return Part(document, [PassageRow("i", "d", "h", 0, text, "t", "s")] * rows)

    for limits, large in (((10, 10**9), part("x", 8)), ((10**9, 100), part("x" * 30, 3))):
        buffer = Buffer(*limits)
        assert buffer.put(large)
        waiting = threading.Thread(target=buffer.put, args=(large,), daemon=True)
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        assert buffer.get(1) is large
        waiting.join(60)
        assert not waiting.is_alive()
        buffer.close()
        assert not buffer.put(large)


def test_progress_says_how_near_to_the_limit_it_is_and_which_part_limits(folder: Path) -> None:
    class Computing(FakeEmbedder):
        def embed(
            self, texts: Sequence[str], kind: TextKind = "passage", *, priority: int = 0, deadline: float | None = None
        ) -> Embeddings:
            time.sleep(0.4)  # beside which the reading of four small files is nothing, on a loaded machine too
            return replace(super().embed(texts, kind), timing=Timing(compute=0.4))

    for number in range(4):
        (folder / f"{number}.txt").write_text(words(BATCH * 40, first=number))
    last = run([folder], FakeStore(), Computing(), clock=time.monotonic)[-1]
    assert last["limited_by"] == "embedding"
    assert last["limit_share"] == pytest.approx(last["tokens_per_second"] / last["limit_tokens_per_second"])
    assert 0 < last["limit_share"] <= 1
    assert last["embedding_seconds"] >= 0.4
    assert last["tokens_per_second"] == pytest.approx(last["tokens"] / last["seconds"], rel=0.01)


def test_an_embedder_that_was_never_asked_has_no_limit(folder: Path) -> None:
    last = run([folder], FakeStore())[-1]
    assert (last["limit_share"], last["limit_tokens_per_second"]) == (None, None)


# duplicates


def test_the_same_text_under_another_path_is_stored_once(folder: Path) -> None:
    (folder / "a.txt").write_text("The valve opens.\n\nAt 4.2 bar.")
    (folder / "b.txt").write_text("The valve  opens. At\n4.2 bar.\n")
    (folder / "c.txt").write_text("The valve opens. At 4.3 bar.")
    store = FakeStore()
    events = run([folder], store)
    assert outcomes(events) == {"docs/a.txt": "added", "docs/b.txt": "duplicate", "docs/c.txt": "added"}
    told = next(event for event in events if event.get("outcome") == "duplicate")
    assert told["notes"] == ["same text as docs/a.txt: stored once"]
    assert told["duplicate_of"] == next(row.document_id for row in store.rows.values() if row.source == "docs/a.txt")
    assert {row.source for row in store.rows.values()} == {"docs/a.txt", "docs/c.txt"}
    again = run([folder], store)
    assert outcomes(again) == {"docs/a.txt": "unchanged", "docs/b.txt": "duplicate", "docs/c.txt": "unchanged"}


def test_a_copy_byte_by_byte_is_not_even_parsed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a.txt").write_text("text")
    (folder / "b.txt").write_text("text")
    parsed: list[str] = []
    real = ingest_reading.parse

    def parse(data: bytes, path: Path, readers: Any) -> Any:
        parsed.append(path.name)
        return real(data, path, readers)

    monkeypatch.setattr(ingest_reading, "parse", parse)
    assert run([folder], FakeStore())[-1]["duplicate"] == 1
    assert parsed == ["a.txt"]


def test_a_duplicate_of_a_file_that_fails_goes_in_itself(folder: Path) -> None:
    (folder / "a.txt").write_text("good text")
    (folder / "b.txt").write_text("good  text")
    store = FakeStore(fail_writes={"a.txt": RagError("the row is too long", kind="bad_input")})
    assert outcomes(run([folder], store)) == {"docs/a.txt": "failed", "docs/b.txt": "added"}


def test_a_file_that_becomes_a_duplicate_leaves_and_comes_back_with_another_text(folder: Path) -> None:
    (folder / "a.txt").write_text("first text")
    (folder / "b.txt").write_text("second text")
    store = FakeStore()
    run([folder], store)
    (folder / "b.txt").write_text("first text")
    assert outcomes(run([folder], store)) == {"docs/a.txt": "unchanged", "docs/b.txt": "duplicate"}
    assert {row.source for row in store.rows.values()} == {"docs/a.txt"}
    (folder / "b.txt").write_text("third text")
    assert outcomes(run([folder], store)) == {"docs/a.txt": "unchanged", "docs/b.txt": "added"}


def test_two_files_that_change_their_texts_with_each_other_lose_none(folder: Path) -> None:
    (folder / "a.txt").write_text("first text")
    (folder / "b.txt").write_text("second text")
    store = FakeStore()
    run([folder], store)
    (folder / "a.txt").write_text("second text")
    (folder / "b.txt").write_text("first text")
    assert outcomes(run([folder], store)) == {"docs/a.txt": "replaced", "docs/b.txt": "replaced"}
    assert {row.source: row.text for row in store.rows.values()} == {"docs/a.txt": "second text", "docs/b.txt": "first text"}


def test_what_an_older_version_stored_is_unchanged_and_no_original(folder: Path) -> None:
    """Its content hash has 16 digits: those of the bytes."""
    (folder / "a.txt").write_text("the text")
    store = FakeStore()
    run([folder], store)
    key, stored = next(iter(store.markers.items()))
    store.markers[key] = replace(stored, content_hash=stored.content_hash[:16])
    (folder / "b.txt").write_text("the text")
    assert outcomes(run([folder], store)) == {"docs/a.txt": "unchanged", "docs/b.txt": "added"}
