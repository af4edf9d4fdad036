"""The commands of store care on a real data folder; embedding by the starter."""

from __future__ import annotations

import argparse
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_server.interfaces import ModelInfo
from rag import cli_store
from rag.cli_run import run
from rag.errors import RagError
from rag.store import Store
from rag.types import PassageRow
from settings import reference


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder that the settings name, with a document that another embedder put in."""
    for name in [row.variable for row in reference() if row.variable] + ["MILVUS_HOST", "OPENAI_API_KEY"]:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "empty.toml").write_text("")
    monkeypatch.setenv("RAGDECK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("RAGDECK_CONFIG", str(tmp_path / "empty.toml"))
    store = Store(uri=None, data_dir=tmp_path / "data", collection="passages")
    name = store.use(ModelInfo("other", "embedder", "other-4", "cpu", "fp32", dimension=4))
    rows = [PassageRow(f"p{n}", "d", "v", n, f"The pump is slow {n}", "Pumps", "a.md") for n in range(4)]
    store.write_document(name, rows, np.eye(4, dtype=np.float32), None, "2026-01-01T00:00:00Z")
    store.close()
    with closing(sqlite3.connect(tmp_path / "data" / "traces.db")) as db:
        db.execute("CREATE TABLE queries (id)")
    return tmp_path


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true")
    common.add_argument("--verbose", action="store_true")
    commands = parser.add_subparsers(required=True)
    for name in ("move", "backup", "restore", "reembed"):
        getattr(cli_store, f"add_{name}")(commands.add_parser(name, parents=[common]))
    return run(parser.parse_args(words))


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_backup_reembed_and_restore_one_after_the_other(at: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    assert call("backup", str(at / "b.zip"), "--json") == 0
    saved = said(capsys)
    ((name, rows),) = saved["collections"].items()
    assert rows == 4 and saved["files"] == ["traces.db"]

    assert call("reembed", "--json") == 0, "the only collection is what the texts are taken from"
    found = said(capsys)
    assert found["source"] == name and found["collection"].endswith("__g2") and found["embedded"] == rows

    assert call("restore", str(at / "b.zip")) == 2
    assert "Add --force" in capsys.readouterr().err

    monkeypatch.setenv("RAGDECK_DATA", str(at / "elsewhere"))
    assert call("restore", str(at / "b.zip"), "--json") == 0
    assert said(capsys)["collections"] == {name: rows}
    assert call("backup", str(at / "c.zip"), "--without", "databases", "--without", "settings", "--json") == 0
    assert said(capsys) | {"path": "", "size_bytes": 0} == {"path": "", "size_bytes": 0, "collections": {name: rows}, "files": []}


def test_a_restored_backup_of_no_collections_and_a_missing_file(at: Path, capsys: pytest.CaptureFixture[str]):
    assert call("backup", str(at / "b.zip"), "--without", "collections") == 0
    assert "collections: none" in capsys.readouterr().out
    assert call("restore", str(at / "nowhere.zip")) == 1
    assert "there is no" in capsys.readouterr().err


@pytest.mark.parametrize(
    "uri", ["", "data/other.db", "host:19530", "ftp://host:1", "http://", "http://[::1", "http://u:secret@h:1"]
)
def test_what_is_no_server_is_refused_and_a_password_not_repeated(uri: str):
    with pytest.raises(RagError) as caught:
        cli_store._server(uri, None)
    assert caught.value.kind == "bad_input" and caught.value.next_step
    assert "secret" not in caught.value.message


def test_the_token_comes_from_the_environment_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAR_TOKEN", "root:x")
    assert cli_store._token("FAR_TOKEN") == "root:x" and cli_store._token(None) is None
    monkeypatch.delenv("FAR_TOKEN")
    with pytest.raises(RagError, match="FAR_TOKEN is not set"):
        cli_store._token("FAR_TOKEN")


def test_the_place_it_is_at_already_is_no_target():
    with pytest.raises(RagError, match="already"):
        cli_store._server("http://h:19530/", "http://h:19530")
    assert cli_store._server("http://h:19530", "http://g:19530") == "http://h:19530"
