"""A scanned Hebrew page and a Hebrew recording, end to end: file, server, ingestion into Milvus Lite, question, cited answer.

Store, ingestion, embedder, reranker and query path are real; the vision and the speech server are the fakes of `tests/media`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from gpu_server.model_pool import ModelPool
from gpu_server.starter import StarterEmbedder, StarterReranker
from library import Writer
from rag.ingest import ingest
from rag.loaders.media import page_of, second_of
from rag.media import media_readers, page_reader, transcriber
from rag.query import Clients, Prompts, answer
from rag.store import Store
from rag.trace import Tracing
from rag.types import Answer, Options
from tests.media.samples import SCAN, SCAN_TEXT, VOICE, VOICE_TEXT
from tests.media.servers import completion, segment, speech, verbose, vision

OTHERS = {
    "tunnel.md": "# Tunnels\n\nSearching Milvus through an SSH tunnel adds a round trip of one to two seconds to every query.",
    "cache.md": "# מטמון\n\nתשובות שנשמרו במטמון ניתנות מיד. המטמון נמחק כאשר מסמך חדש נכנס לאוסף.",
}


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    pool = ModelPool()
    embedder = pool.add_embedder("starter", StarterEmbedder)
    reranker = pool.add_reranker("starter", StarterReranker, uses_route_scores=True)
    folder = tmp_path_factory.mktemp("knowledge")
    shutil.copy(SCAN, folder / "scan.pdf")
    shutil.copy(VOICE, folder / "talk.ogg")
    for name, text in OTHERS.items():
        (folder / name).write_text(text)
    eyes = vision(lambda seen: completion(f"```markdown\n{SCAN_TEXT}\n```" if seen.squares == 1 else "[empty page]"))
    times = ((61.0, 68.0), (68.0, 71.5), (71.5, 78.0))  # as in the middle of a longer talk
    ears = speech(lambda _: verbose([segment(n, *times[n], text) for n, text in enumerate(VOICE_TEXT)], "hebrew"))
    store = Store(uri=None, data_dir=tmp_path_factory.mktemp("store"), collection="passages")
    name = store.use(embedder.info)
    with eyes.running(), ears.running():
        readers = media_readers(page_reader(eyes.address, model="eyes"), transcriber(ears.address, language="he"))
        events = list(
            ingest(
                [folder],
                Writer(store, name),
                embedder,
                chunk_tokens=220,
                overlap_tokens=32,
                max_file_bytes=5_000_000,
                readers=readers,
            )
        )
    assert events[-1]["outcome"] == "finished", events[-1]["error"]
    assert (events[-1]["added"], events[-1]["failed"]) == (4, 0)
    yield Clients(embedder, reranker, None, store, Tracing(), Prompts("{passages}{question}", "{question}"), {"version": "test"})
    store.close()


def asked(question: str, clients: Clients) -> Answer:
    steps = answer(question, Options(), clients, None)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Answer = end.value.answer
            return found


def test_a_scanned_hebrew_page_is_cited_by_its_page(clients: Clients) -> None:
    found = asked("כמה שעות נמשך חלון התחזוקה של המאיץ לפי סעיף 72?", clients)
    assert found.outcome == "answered"
    cited = [item for item in found.citations if item.source.endswith("scan.pdf")]
    assert cited
    assert page_of(cited[0].location) == 1
    passage = next(item for item in found.passages if item.id == cited[0].passage_id)
    assert "ארבע שעות" in passage.text
    assert passage.language == "he"


def test_a_hebrew_recording_is_cited_at_its_second(clients: Clients) -> None:
    found = asked("מדוע מחממים את המודל אחרי אתחול?", clients)
    assert found.outcome == "answered"
    cited = [item for item in found.citations if item.source.endswith("talk.ogg")]
    assert cited
    assert cited[0].location == "00:01:01 – 00:01:18"
    assert second_of(cited[0].location) == 61
    passage = next(item for item in found.passages if item.id == cited[0].passage_id)
    assert "מחממים את המודל" in passage.text
