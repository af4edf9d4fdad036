"""The store over gRPC: a Milvus server (Milvus Lite's own, in a process of its own) at a URI, and what happens when it goes away."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gpu_server.interfaces import ModelInfo
from rag.errors import RagError
from rag.routes import fuse
from rag.store import Store
from rag.types import PassageRow
from tests.ports import reserved_port

MODEL = ModelInfo("tiny", "embedder", "tiny-4", "cpu", "fp32", dimension=4)


@pytest.fixture
def server(tmp_path: Path):
    with reserved_port() as port:
        yield from _serving(tmp_path, port)


def _serving(tmp_path: Path, port: int):
    command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(tmp_path / "server"), "--host", "127.0.0.1"]
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 90
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.1)
    yield f"http://127.0.0.1:{port}", process
    process.kill()
    process.wait(20)


def fill(store: Store) -> str:
    name = store.use(MODEL)
    rows = [PassageRow(f"p{n}", "d", "v", n, f"passage {n} about pumps", "Pumps", "pumps.md") for n in range(6)]
    store.write_document(name, rows, np.eye(6, 4, dtype=np.float32) + 0.01, None, "2026-01-01T00:00:00Z")
    store.flush(name)
    return name


def test_two_clients_share_a_server_and_the_round_trip_is_measured(server, tmp_path: Path):
    uri, _ = server
    one, two = (Store(uri=uri, data_dir=tmp_path / key, collection="passages", timeout=10.0) for key in "ab")
    try:
        name = fill(one)
        assert two.use(MODEL) == name
        found = two.search(name, np.array([1, 0, 0, 0], dtype=np.float32), "pumps", 4, complete=True)
        best = fuse(found, 4)
        assert found.dense[0].id == "p0"
        assert all(passage.scores["dense"] is not None and passage.scores["sparse"] is not None for passage in best)
        assert two.documents(name)["d"].passages == 6
        assert 0 < two.round_trip_seconds < 10
        assert not two.embedded
    finally:
        one.close()
        two.close()


def test_a_server_that_dies_gives_a_connection_error_and_the_store_works_when_it_is_back(server, tmp_path: Path):
    uri, process = server
    store = Store(uri=uri, data_dir=tmp_path, collection="passages", timeout=10.0)
    try:
        name = fill(store)
        store.timeout = 2.0
        process.kill()
        process.wait(20)
        started = time.monotonic()
        with pytest.raises(RagError) as caught:
            store.search(name, np.array([1, 0, 0, 0], dtype=np.float32), "pumps", 4)
        assert caught.value.kind in ("connection", "timeout")
        assert caught.value.address == uri
        assert time.monotonic() - started < 60, "without a stated timeout it would retry for minutes"
        port = uri.rsplit(":", 1)[1]
        command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(tmp_path / "server"), "--host", "127.0.0.1"]
        again = subprocess.Popen([*command, "--port", port], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            store.timeout = 10.0
            end = time.monotonic() + 90
            while True:
                try:
                    store.use(MODEL)  # as every query does; a restarted server has to load the collection again
                    found = store.search(name, np.array([1, 0, 0, 0], dtype=np.float32), "pumps", 4)
                    break
                except RagError:
                    assert time.monotonic() < end
                    time.sleep(0.2)
            assert found.dense[0].id == "p0"
        finally:
            again.kill()
            again.wait(20)
    finally:
        store.close()


def test_another_process_sees_that_a_collection_was_put_into_use_and_writes_there(server, tmp_path: Path):
    uri, _ = server
    one, two = (Store(uri=uri, data_dir=tmp_path / key, collection="passages", timeout=10.0) for key in "ab")
    try:
        name = fill(one)
        assert two.use(MODEL) == name
        one.create(f"{name}__g2", MODEL)
        one.switch(name, f"{name}__g2")
        assert two.search(name, np.array([1, 0, 0, 0], dtype=np.float32), "pumps", 4).dense, "the one before still answers"
        two._look_at_round_trip()  # what a search starts in the background when the last look is ten seconds old
        assert two.use(MODEL) == f"{name}__g2"
        fill(two)
        assert two.count(f"{name}__g2") == 6
    finally:
        one.close()
        two.close()
