"""Addresses that are given on pages, carried in bundles or written to edited.toml: none that must not be, and no password in one."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from pydantic import SecretStr

from access.operations import OPERATIONS
from access.redaction import RedactingFormatter, Redactor, secret_values
from deploy.offline.sources import without_secrets, without_user
from rag.errors import RagError
from settings import SECRETS, SettingsError, load, save_edited
from tests.security.canaries import Search, canary

SECRET = canary("services.url")
SEARCH = Search(["services.url"])
METADATA = (
    "169.254.169.254",
    "2852039166",
    "0xa9fea9fe",
    "[fd00:ec2::254]",
    "metadata.google.internal",
    "[::ffff:169.254.169.254]",
)
SHAPES = (
    "http://user:{}@host/page",
    "http://user:pa/{}@host/page",
    "http://host/page?api_key={}",
    "http://host/#{}",
    "host:19530?token={}",
    "user:{}@10.0.0.5:19530",
)


@pytest.mark.parametrize("host", METADATA)
@pytest.mark.parametrize("form", ["{}", "{}:22", "root@{}:22"])
@pytest.mark.parametrize("key", ["address", "jump"])
def test_no_machine_is_added_at_a_metadata_service(host: str, form: str, key: str) -> None:
    entry = {"name": "x", "address": "10.0.0.5", key: form.format(host)}
    with pytest.raises(RagError):
        OPERATIONS["add_machine"].check(entry)


def test_a_machine_behind_another_is_added() -> None:
    OPERATIONS["add_machine"].check({"name": "x", "address": "root@10.0.0.5:22", "jump": "a@10.0.0.6, 10.0.0.7:2222"})


@pytest.mark.parametrize("shape", SHAPES)
def test_a_bundle_carries_no_secret_of_an_address(shape: str) -> None:
    clean, left_out = without_secrets({"services": [{"name": "a", "url": shape.format(SECRET)}]}, SECRETS, frozenset())
    assert SEARCH.found(str(clean).encode()) == set() and left_out
    assert "host" in str(clean) or "10.0.0.5" in str(clean)


@pytest.mark.parametrize("text", ["a model: with words", "BAAI/bge-m3", "http://127.0.0.1:8000/v1", "C:\\x", "ops@example.org"])
def test_other_texts_are_carried_as_they_are(text: str) -> None:
    assert without_user(text) == text


@pytest.mark.parametrize(
    "changes",
    [
        {"reranker.api_url": f"http://user:{SECRET}@host:1"},
        {"services": [{"name": "a", "kind": "http", "url": f"http://user:{SECRET}@host/"}]},
        {"services": [{"name": "a", "kind": "milvus", "url": f"user:{SECRET}@10.0.0.5:19530"}]},
    ],
    ids=["setting", "entry", "without scheme"],
)
def test_edited_settings_take_no_password_in_an_address(tmp_path: Path, changes: dict[str, object]) -> None:
    settings = load({"RAGDECK_DATA": str(tmp_path / "data")}, root=tmp_path)
    with pytest.raises(SettingsError) as refused:
        save_edited(settings, changes)
    assert SEARCH.found(str(refused.value).encode()) == set()
    assert not (tmp_path / "data" / "edited.toml").exists()


def test_edited_settings_take_a_machine_behind_another(tmp_path: Path) -> None:
    settings = load({"RAGDECK_DATA": str(tmp_path / "data")}, root=tmp_path)
    save_edited(settings, {"machines": [{"name": "a", "address": "root@10.0.0.5:22", "jump": "a@10.0.0.6:22,b@10.0.0.7"}]})


def test_a_key_in_the_path_of_a_secret_address_is_masked_however_it_is_written() -> None:
    redact = Redactor(secret_values(SecretStr(f"slack://user@{SECRET}/B0123456789/channel")))
    record = logging.LogRecord("apprise", logging.DEBUG, "", 0, "POST https://hooks.example/%s", (SECRET,), None)
    assert SEARCH.found(RedactingFormatter(logging.Formatter(), redact).format(record).encode()) == set()
