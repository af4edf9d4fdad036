"""Backup, restore and moving: real Milvus Lite, a real Milvus server over gRPC, real SQLite files, and files that are no backup."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_server.interfaces import ModelInfo
from rag.cache.milvus_index import BASE
from rag.errors import Cancelled, RagError
from rag.store import Store
from rag.store_care import archive as archives
from rag.store_care import layout, versions
from rag.store_care.backup import backup
from rag.store_care.data_files import holder
from rag.store_care.move import move
from rag.store_care.reembed import FROM
from rag.store_care.restore import ASIDE, restore
from rag.types import PassageRow
from tests.ports import reserved_port

MODEL = ModelInfo("tiny", "embedder", "tiny-8", "cpu", "fp32", dimension=8)
LEARNED = ModelInfo("bge", "embedder", "bge-8", "cpu", "fp32", dimension=8, learned_sparse=True)


def vectors(count: int, seed: int = 1) -> np.ndarray:
    made = np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def rows(count: int, document: str = "d") -> list[PassageRow]:
    return [
        PassageRow(f"{document}-{n}", document, "v", n, f'pumps "{n}" שלום\n', "T", "p.md", "Part", "he") for n in range(count)
    ]


def fill(store: Store) -> tuple[str, str, str]:
    """Passages searched by BM25, passages with learned weights, cached questions."""
    names = store.use(MODEL), store.use(LEARNED), store.use(MODEL, BASE)
    store.write_document(names[0], rows(300), vectors(300), None, "2026-01-01T00:00:00Z")
    store.write_document(names[1], rows(3), vectors(3), [{7: 0.5}, {2**31: 0.25, 9: 1.0}, {1: 2.0}], "2026-01-02T00:00:00Z")
    store.write_rows(names[2], rows(5, "scope"), vectors(5), None)
    for name in names:
        store.flush(name)
    return names


def drain(work: Any) -> Any:
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "traces.db")) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE queries (id INTEGER PRIMARY KEY, question TEXT)")
        db.executemany("INSERT INTO queries (question) VALUES (?)", [(f"question {n}",) for n in range(500)])
        db.commit()
    (folder / "edited.toml").write_text('[llm]\nmodel = "x"\n')
    (folder / "notes.txt").write_text("not ours")
    (folder / "odd.db").write_text("no database")
    (folder / "uploads").mkdir()
    (folder / "uploads" / "a (1).md").write_text("# A")
    return folder


@pytest.fixture
def store(data: Path) -> Iterator[Store]:
    opened = Store(uri=None, data_dir=data, collection="passages")
    yield opened
    opened.close()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Store]:
    opened = Store(uri=None, data_dir=tmp_path / "fresh", collection="passages")
    yield opened
    opened.close()


@pytest.fixture
def saved(store: Store, data: Path, tmp_path: Path) -> Path:
    fill(store)
    drain(backup(tmp_path / "b.zip", store=store, data_dir=data, parts=["databases", "settings", "uploads"], version="0.1"))
    return tmp_path / "b.zip"


# 1) backup and restore


def test_everything_comes_back_in_a_fresh_place_with_vectors_and_weights(saved: Path, store: Store, fresh: Store, tmp_path: Path):
    target = tmp_path / "fresh"
    done = drain(restore(saved, store=fresh, data_dir=target))
    assert sorted(done.collections.values()) == [3, 5, 300] and done.replaced is None
    assert set(done.files) == {"traces.db", "edited.toml", "uploads/a (1).md"}
    name = fresh.use(MODEL)
    for ours in (name, fresh.use(LEARNED), fresh.use(MODEL, BASE)):
        assert fresh.count(ours) == store.count(ours)
        assert fresh.documents(ours) == store.documents(ours)
    vector = vectors(300)[42]
    one, other = (each.search(name, vector, "pumps 42", 10) for each in (store, fresh))
    assert one.dense[0].id == other.dense[0].id == "d-42"
    assert [hit.score for hit in one.sparse] == pytest.approx([hit.score for hit in other.sparse])
    assert fresh.search(fresh.use(LEARNED), None, "", 3, sparse={2**31: 2.0}).sparse[0].score == pytest.approx(0.5)
    with closing(sqlite3.connect(target / "traces.db")) as db:
        assert db.execute("SELECT count(*) FROM queries").fetchone() == (500,)
    assert (target / "uploads" / "a (1).md").read_text() == "# A"
    assert not [path.name for path in target.iterdir() if path.name.startswith(".")]


def test_the_file_is_for_its_owner_only_and_says_what_is_in_it(saved: Path):
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    with archives.Archive(saved) as opened:
        assert {item["rows"] for item in opened.manifest["collections"]} == {300, 3, 5}
        assert opened.manifest["program"] == "0.1"
        assert sum(1 for _ in opened.verify()) == len(opened.members) > 6


def test_a_database_that_is_written_to_is_copied_as_it_was_at_one_moment(data: Path, tmp_path: Path):
    with closing(sqlite3.connect(data / "traces.db")) as db:
        db.execute("INSERT INTO queries (question) VALUES ('committed, only in the WAL')")
        db.commit()
        db.execute("INSERT INTO queries (question) VALUES ('not committed')")
        done = drain(backup(tmp_path / "b.zip", store=None, data_dir=data))
        db.rollback()
    assert done.collections == {} and done.files == ("traces.db", "edited.toml")
    drain(restore(tmp_path / "b.zip", store=None, data_dir=tmp_path / "new"))
    with closing(sqlite3.connect(tmp_path / "new" / "traces.db")) as copy:
        assert copy.execute("SELECT count(*) FROM queries").fetchone() == (501,)


def test_the_collection_in_use_after_a_reembedding_is_in_use_after_a_restore(
    store: Store, fresh: Store, data: Path, tmp_path: Path
):
    name = store.use(MODEL)
    store.create(f"{name}__g2", MODEL)
    store.write_document(f"{name}__g2", rows(2), vectors(2), None, "t")
    store.switch(name, f"{name}__g2")
    store.create(f"{name}__g3", MODEL, **{FROM: name})
    done = drain(backup(tmp_path / "b.zip", store=store, data_dir=data))
    assert done.collections == {name: 0, f"{name}__g2": 2}, "what is only begun is left out"
    drain(restore(tmp_path / "b.zip", store=fresh, data_dir=tmp_path / "fresh"))
    assert fresh.use(MODEL) == f"{name}__g2" and fresh.count(f"{name}__g2") == 2


def test_nothing_is_replaced_without_being_told_and_then_files_are_kept_aside(saved: Path, store: Store, data: Path):
    name = store.use(MODEL)
    store.write_document(name, rows(1, "later"), vectors(1), None, "t")
    with pytest.raises(RagError, match="something already") as caught:
        drain(restore(saved, store=store, data_dir=data))
    assert name in caught.value.message and "traces.db" in caught.value.message and "--force" in caught.value.next_step
    assert store.count(name) == 301
    (data / "edited.toml").write_text("changed")
    done = drain(restore(saved, store=store, data_dir=data, force=True))
    assert store.count(name) == 300 and store.use(MODEL) == name
    assert (data / "edited.toml").read_text() == '[llm]\nmodel = "x"\n'
    assert (Path(done.replaced) / "edited.toml").read_text() == "changed"


def test_only_what_is_chosen_comes_back(saved: Path, store: Store, fresh: Store, tmp_path: Path):
    name = store.use(LEARNED)
    done = drain(restore(saved, store=fresh, data_dir=tmp_path / "fresh", names=[name], parts=[]))
    assert done.collections == {name: 3} and done.files == ()
    with pytest.raises(RagError, match="holds no collection 'nowhere'"):
        drain(restore(saved, store=fresh, data_dir=tmp_path / "fresh", names=["nowhere"]))


def rewrite(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """The same zip with other members."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as new:
        for name, content in members.items():
            new.writestr(name, content)


def manifest(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes]], None]:
    def apply(members: dict[str, bytes]) -> None:
        known = json.loads(members[archives.MANIFEST])
        change(known)
        members[archives.MANIFEST] = json.dumps(known).encode()

    return apply


def evil(name: str) -> Callable[[dict[str, bytes]], None]:
    def apply(members: dict[str, bytes]) -> None:
        members[name] = b"x"
        manifest(lambda known: known["members"].update({name: {"sha256": "0", "bytes": 1}}))(members)

    return apply


BROKEN: dict[str, tuple[Callable[[dict[str, bytes]], None], str]] = {
    "tampered rows": (lambda m: m.update({"collections/0001/00001.jsonl": b"{}"}), "checksum"),
    "a member gone": (lambda m: m.pop("data/edited.toml") and None, "members"),
    "a member too many": (lambda m: m.update({"data/x.db": b""}), "members"),
    "no manifest": (lambda m: m.pop(archives.MANIFEST) and None, "no manifest"),
    "manifest cut off": (lambda m: m.update({archives.MANIFEST: m[archives.MANIFEST][:99]}), "no manifest"),
    "another program's": (manifest(lambda k: k.update(format="other")), "another program"),
    "a newer version": (manifest(lambda k: k.update(version=2)), "newer version"),
    "a newer schema": (manifest(lambda k: k["collections"][0].update(schema_version=99)), "schema version 99"),
    "up and out": (evil("../../outside"), "path of its own"),
    "from the root": (evil("/etc/outside"), "path of its own"),
    "out of uploads": (evil("data/uploads/../../outside"), "path of its own"),
    "dots alone": (evil("data/.."), "path of its own"),
    "a layout that is none": (manifest(lambda k: k["collections"][0].update(layout={})), "does not describe"),
    "a file that is not in it": (manifest(lambda k: k["files"].append("../x.db")), "does not describe"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_no_whole_backup_changes_nothing(case: str, saved: Path, fresh: Store, tmp_path: Path):
    change, said = BROKEN[case]
    rewrite(saved, change)
    with pytest.raises(RagError, match=said) as caught:
        drain(restore(saved, store=fresh, data_dir=tmp_path / "fresh"))
    assert caught.value.kind == "bad_input" and caught.value.next_step
    fresh.open()
    assert fresh.client.list_collections() == []
    assert not (tmp_path / "outside").exists() and not (tmp_path / "fresh" / "traces.db").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_that_is_cut_off_is_refused(saved: Path, fresh: Store, tmp_path: Path, share: float):
    saved.write_bytes(saved.read_bytes()[: int(saved.stat().st_size * share)])
    with pytest.raises(RagError, match="damaged or no backup") as caught:
        drain(restore(saved, store=fresh, data_dir=tmp_path / "fresh"))
    assert caught.value.kind == "bad_input"


def test_a_flipped_bit_is_found(saved: Path, fresh: Store, tmp_path: Path):
    with zipfile.ZipFile(saved) as opened:
        info = next(info for info in opened.infolist() if info.filename.endswith(".npy"))
    content = bytearray(saved.read_bytes())
    content[info.header_offset + 200] ^= 1
    saved.write_bytes(content)
    with pytest.raises(RagError, match="damaged"):
        drain(restore(saved, store=fresh, data_dir=tmp_path / "fresh"))


def test_rows_that_fit_the_checksum_and_not_the_layout_leave_no_collection_behind(saved: Path, fresh: Store, tmp_path: Path):
    def change(members: dict[str, bytes]) -> None:
        import hashlib

        name = "collections/0001/00001.jsonl"
        members[name] = members[name].replace(b'"position"', b'"elsewhere"')
        record = {"sha256": hashlib.sha256(members[name]).hexdigest(), "bytes": len(members[name])}
        manifest(lambda known: known["members"].update({name: record}))(members)

    rewrite(saved, change)
    with pytest.raises(RagError):
        drain(restore(saved, store=fresh, data_dir=tmp_path / "fresh"))
    assert fresh.client.list_collections() == [] and not (tmp_path / "fresh" / "edited.toml").exists()


def test_a_full_disk_is_said_before_anything_is_written(saved: Path, fresh: Store, tmp_path: Path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(RagError, match="MiB free"):
        drain(restore(saved, store=fresh, data_dir=tmp_path / "fresh"))
    fresh.open()
    assert fresh.client.list_collections() == []


def test_a_backup_that_does_not_fit_on_the_disk_leaves_no_file(store: Store, data: Path, tmp_path: Path):
    import resource

    fill(store)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from rag.store_care.backup import backup; from rag.errors import RagError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try: list(backup(Path(sys.argv[1]), store=None, data_dir=Path(sys.argv[2]), parts=['uploads']))\n"
        "except RagError as error: print(error.kind, error.message)\n"
    )
    (data / "uploads" / "large.bin").write_bytes(os.urandom(200_000))
    command = [sys.executable, "-c", script, str(tmp_path / "b.zip"), str(data)]
    said = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert "could not be written" in said.stdout, said.stderr
    assert list(tmp_path.glob("b.zip*")) == [] and resource.getrlimit(resource.RLIMIT_FSIZE) == (soft, hard)


def test_a_backup_replaces_no_file_and_a_stopped_one_leaves_none(store: Store, data: Path, tmp_path: Path):
    fill(store)
    (tmp_path / "b.zip").write_text("mine")
    with pytest.raises(RagError, match="exists already"):
        drain(backup(tmp_path / "b.zip", store=store, data_dir=data))
    with pytest.raises(Cancelled):
        drain(backup(tmp_path / "c.zip", store=store, data_dir=data, cancelled=lambda: True))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["b.zip"]


def test_files_that_another_process_has_open_are_not_replaced(saved: Path, data: Path):
    script = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('SELECT 1 FROM queries'); print(1, flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(data / "traces.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        process.stdout.readline()
        assert holder([data / "traces.db"]) == process.pid
        with pytest.raises(RagError, match=str(process.pid)) as caught:
            drain(restore(saved, store=None, data_dir=data, force=True))
        assert caught.value.kind == "held"
    finally:
        process.kill()
        process.wait(20)


def test_what_a_broken_off_restore_left_is_cleared_by_the_next(saved: Path, store: Store, fresh: Store, tmp_path: Path):
    name = store.use(MODEL)
    fresh.open()
    layout.create(fresh.client, name + ASIDE, layout.passages(LEARNED), embedded=True, properties={}, timeout=10)
    drain(restore(saved, store=fresh, data_dir=tmp_path / "fresh"))
    assert name + ASIDE not in fresh.client.list_collections()


# 2) moving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with reserved_port() as port:
        yield from _serving(tmp_path, port)


def _serving(tmp_path: Path, port: int) -> Iterator[str]:
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
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait(20)


@pytest.fixture
def far(server: str, tmp_path: Path) -> Iterator[Store]:
    opened = Store(uri=server, data_dir=tmp_path / "far", collection="passages", timeout=20.0)
    yield opened
    opened.close()


def test_everything_moves_to_a_server_and_is_searched_there_alike(store: Store, far: Store):
    names = fill(store)
    store.create(f"{names[0]}__g2", MODEL)
    store.write_document(f"{names[0]}__g2", rows(2, "two"), vectors(2), None, "t")
    store.switch(names[0], f"{names[0]}__g2")
    moved = {item.name: item for item in drain(move(store, far))}
    assert {name: item.rows for name, item in moved.items()} == {
        **dict(zip(names, (300, 3, 5), strict=True)),
        f"{names[0]}__g2": 2,
    }
    assert moved[names[0]].rows_compared == 64 and moved[names[0]].searches_compared == 8
    assert far.documents(names[0]) == store.documents(names[0])
    assert far.use(MODEL) == f"{names[0]}__g2", "what was in use is in use there"
    assert far.search(names[0], vectors(300)[7], "pumps 7", 5).dense[0].id == "d-7"
    assert store.count(names[0]) == 300, "the original is as it was"
    assert versions.of(far.describe(names[0])) == versions.CURRENT


def test_a_move_that_broke_off_carries_only_the_rest(store: Store, far: Store):
    name, *_ = fill(store)
    calls = iter([False, True])
    with pytest.raises(Cancelled):
        drain(move(store, far, [name], cancelled=lambda: next(calls)))
    (done,) = drain(move(store, far, [name]))
    assert done.carried == 300 - 256 and done.rows == 300
    (again,) = drain(move(store, far, [name]))
    assert again.carried == 0


def test_a_target_that_holds_something_else_is_left_alone(store: Store, far: Store):
    name, learned, _ = fill(store)
    far.use(MODEL)
    far.write_document(name, rows(1, "theirs"), vectors(1), None, "t")
    with pytest.raises(RagError, match="holds 1 rows that the original has not"):
        drain(move(store, far, [name]))
    layout.create(far.client, learned, layout.passages(MODEL), embedded=False, properties={}, timeout=20)
    with pytest.raises(RagError, match="other fields"):
        drain(move(store, far, [learned]))
    assert far.count(name) == 1


def test_a_copy_with_another_vector_is_found(store: Store, far: Store):
    name, learned, _ = fill(store)
    far.use(LEARNED)
    far.write_document(learned, rows(3), vectors(3, seed=2), [{7: 0.5}, {2**31: 0.25, 9: 1.0}, {1: 2.0}], "2026-01-02T00:00:00Z")
    with pytest.raises(RagError, match="dense is not the same"):
        drain(move(store, far, [learned]))
    with pytest.raises(RagError, match="no collection 'nowhere' to move"):
        drain(move(store, far, ["nowhere"]))
    assert name
