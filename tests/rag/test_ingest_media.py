"""Scans in an ingestion: what could not be read is tried again, and a cancelled ingestion lets go of the page it waits for."""

from __future__ import annotations

import threading
from pathlib import Path

from rag.loaders.media import MediaReaders
from rag.media import page_reader
from tests.media.servers import completion, error, vision
from tests.rag.test_ingest import FakeStore, run
from tests.rag.test_ocr import TEXTS, make_scan


def test_a_scan_with_a_page_that_failed_is_read_again_the_next_time(tmp_path: Path) -> None:
    path, store, broken = make_scan(tmp_path / "a.pdf", [1, 2]), FakeStore(), [True]
    eyes = vision(lambda seen: error(500, "CUDA error") if seen.squares == 2 and broken else completion(TEXTS[seen.squares]))
    with eyes.running():
        readers = MediaReaders(ocr=page_reader(eyes.address, model="eyes", retries=0))
        first = run([path], store, readers=readers)[-1]
        assert first["added"] == 1 and {row.location for row in store.rows.values()} == {"p. 1"}
        broken.clear()
        second = run([path], store, readers=readers)[-1]
        assert second["replaced"] == 1 and {row.location for row in store.rows.values()} == {"p. 1", "p. 2"}
        asked = len(eyes.requests)
        third = run([path], store, readers=readers)[-1]
        assert third["unchanged"] == 1 and len(eyes.requests) == asked


def test_a_cancelled_ingestion_sends_no_further_page(tmp_path: Path) -> None:
    path, store, cancelled = make_scan(tmp_path / "a.pdf", [1, 2, 3]), FakeStore(), threading.Event()

    def told(seen):
        cancelled.set()
        return completion(TEXTS[seen.squares])

    eyes = vision(told)
    with eyes.running():
        readers = MediaReaders(ocr=page_reader(eyes.address, model="eyes", parallel=1))
        last = run([path], store, readers=readers, cancelled=cancelled.is_set)[-1]
    assert last["outcome"] == "cancelled"
    assert store.rows == {} and len(eyes.requests) < 3
