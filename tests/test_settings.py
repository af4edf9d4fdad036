"""settings.py: who wins, what is refused and how it is said, that secrets stay secret, and what the pages may save."""

from __future__ import annotations

import copy
import errno
import json
import logging
import os
import pickle
import re
import runpy
import subprocess
import sys
import tempfile
import threading
import tomllib
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

import settings as settings_module
from access.redaction import secret_values
from settings import MERGED, SECRETS, Settings, SettingsError, load, reference, revealed, save_edited

REPO = Path(settings_module.__file__).parent
SECRET_VALUES = {
    "server.token": ("RAGDECK_TOKEN", "hunter2-server"),
    "access.oidc.client_secret": ("RAGDECK_OIDC_CLIENT_SECRET", "hunter2-oidc-client"),
    "access.proxy.secret": ("RAGDECK_PROXY_SECRET", "hunter2-proxy-secret"),
    "milvus.token": ("MILVUS_TOKEN", "root:hunter2-milvus"),
    "gpu_server.token": ("GPU_SERVER_TOKEN", "hunter2-gpu"),
    "embeddings.api_key": ("EMBEDDING_API_KEY", "sk-hunter2-embeddings"),
    "ocr.api_key": ("OCR_API_KEY", "sk-hunter2-ocr"),
    "speech.api_key": ("WHISPER_API_KEY", "sk-hunter2-speech"),
    "reranker.api_key": ("RERANKER_API_KEY", "sk-hunter2-reranker"),
    "llm.api_key": ("VLLM_API_KEY", "sk-hunter2-llm"),
    "redis.url": ("REDIS_URL", "redis://:hunter2-redis@10.0.0.7:6379/0"),
}
URLS = {
    "access.oidc.metadata_url": "RAGDECK_OIDC_METADATA_URL",
    "access.oidc.redirect_uri": "RAGDECK_OIDC_REDIRECT_URI",
    "milvus.uri": "MILVUS_URI",
    "gpu_server.url": "GPU_SERVER_URL",
    "embeddings.base_url": "EMBEDDING_BASE_URL",
    "ocr.base_url": "OCR_BASE_URL",
    "speech.base_url": "WHISPER_BASE_URL",
    "reranker.api_url": "RERANKER_API_URL",
    "llm.base_url": "VLLM_BASE_URL",
    "traces.otlp_endpoint": "OTEL_EXPORTER_OTLP_ENDPOINT",
}


def write(root: Path, **files: str) -> Path:
    """Files in `root`: toml=dashboard.toml, env=.env, edited=data/edited.toml."""
    places = {"toml": root / "dashboard.toml", "env": root / ".env", "edited": root / "data" / "edited.toml"}
    for name, text in files.items():
        places[name].parent.mkdir(parents=True, exist_ok=True)
        places[name].write_text(text, encoding="utf-8")
    return root


def value(settings: Settings, key: str) -> Any:
    found: Any = settings
    for part in key.split("."):
        found = getattr(found, part)
    return found


def refused(root: Path, **environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(environ, root)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------- where values come from


def test_a_bare_folder_gives_the_defaults_and_is_left_alone(tmp_path: Path) -> None:
    settings = load({}, tmp_path)
    assert settings.data_dir == tmp_path / "data"
    assert settings.config_file is None
    assert settings.origins == {}
    assert settings.milvus.embedded
    assert (settings.server.port, settings.api.port) == (8502, 8080)
    assert (settings.reranker.top_k, settings.reranker.return_k) == (40, 8)
    assert list(tmp_path.iterdir()) == []


def test_environment_over_dotenv_over_file_over_edited_over_default(tmp_path: Path) -> None:
    write(tmp_path, edited="[reranker]\ntop_k = 31\n")
    assert (load({}, tmp_path).reranker.top_k, load({}, tmp_path).origins["reranker.top_k"]) == (31, "edited.toml")
    write(tmp_path, toml="\n[reranker]\ntop_k = 32\n")
    assert (load({}, tmp_path).reranker.top_k, load({}, tmp_path).origins["reranker.top_k"]) == (32, "dashboard.toml:3")
    write(tmp_path, env="RERANKER_TOP_K=33\n")
    assert (load({}, tmp_path).reranker.top_k, load({}, tmp_path).origins["reranker.top_k"]) == (33, ".env")
    settings = load({"RERANKER_TOP_K": "34"}, tmp_path)
    assert (settings.reranker.top_k, settings.origins["reranker.top_k"]) == (34, "environment RERANKER_TOP_K")


def test_data_directory_and_configuration_file_can_be_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('[llm]\nmodel = "m"\n')
    settings = load({"RAGDECK_CONFIG": "other.toml", "RAGDECK_DATA": "kept/here"}, tmp_path)
    assert settings.config_file == tmp_path / "other.toml"
    assert settings.data_dir == tmp_path / "kept" / "here"
    assert settings.origins["llm.model"] == "other.toml:2"


def test_the_real_environment_and_the_repository_are_what_load_reads_by_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAGDECK_CONFIG", str(write(tmp_path, toml="[api]\nport = 8081\n") / "dashboard.toml"))
    monkeypatch.setenv("RAGDECK_DATA", str(tmp_path / "d"))
    assert load().api.port == 8081
    assert load({"RAGDECK_CONFIG": str(tmp_path / "dashboard.toml")}).data_dir == REPO / "data"


@pytest.mark.parametrize("blank", ["", "  "])
def test_an_empty_variable_is_unset(tmp_path: Path, blank: str) -> None:
    write(tmp_path, toml='[gpu_server]\nurl = "http://gpu:8000"\n')
    assert load({"GPU_SERVER_URL": blank, "RERANKER_TOP_K": blank}, tmp_path).gpu_server.url == "http://gpu:8000"


def test_an_empty_text_in_the_file_switches_an_edited_setting_off(tmp_path: Path) -> None:
    write(tmp_path, toml='[gpu_server]\nurl = ""\n', edited='[gpu_server]\nurl = "http://gpu:8000"\n')
    assert load({}, tmp_path).gpu_server.url is None


@pytest.mark.parametrize(
    ("text", "expected"), [("1", True), ("ON", True), ("yes", True), ("0", False), ("False", False), ("no", False)]
)
def test_switches_in_the_environment(tmp_path: Path, text: str, expected: bool) -> None:
    assert load({"RERANKER_ENABLED": text, "HF_HUB_OFFLINE": text}, tmp_path).reranker.enabled is expected


def test_every_variable_reaches_its_key(tmp_path: Path) -> None:
    examples = {"RERANKER_TOP_K": "50", "RERANKER_RETURN_K": "9", "DEVICE": "cuda:1", "RAGDECK_ALLOWED_HOSTS": "a.example, b.example",
                "RAGDECK_ALLOWED_ORIGINS": "https://a.example"}  # fmt: skip
    examples |= {variable: text for variable, text in SECRET_VALUES.values()}
    examples |= dict.fromkeys(URLS.values(), "http://10.0.0.5:1234")
    for row in reference()[2:]:
        if row.variable:
            text = examples.get(row.variable, "0" if isinstance(row.default, bool) else "name")
            settings = load({row.variable: text}, tmp_path)
            assert settings.origins == {row.key: f"environment {row.variable}"}
            assert value(settings, row.key) != row.default or text == "0", row
    assert load(examples, tmp_path).server.allowed_hosts == ("a.example", "b.example")


def test_dotenv_forms(tmp_path: Path) -> None:
    write(
        tmp_path,
        env="\ufeff# a comment\r\nexport VLLM_MODEL='Qwen/Qwen3-8B-AWQ' # why\r\n\r\nMILVUS_TOKEN=\"a$b${c}\"\r\nOTHER\r\n",
    )
    settings = load({}, tmp_path)
    assert settings.llm.model == "Qwen/Qwen3-8B-AWQ"
    assert settings.milvus.token == SecretStr("a$b${c}")


# ---------------------------------------------------------------------------------------------------------------- Milvus


@pytest.mark.parametrize(
    ("environ", "uri"),
    [
        ({"MILVUS_HOST": "10.0.0.5"}, "http://10.0.0.5:19530"),
        ({"MILVUS_HOST": "milvus_db", "MILVUS_PORT": "19531"}, "http://milvus_db:19531"),
        ({"MILVUS_HOST": "localhost"}, "http://127.0.0.1:19530"),
        ({"MILVUS_HOST": "fd00::5"}, "http://[fd00::5]:19530"),
        ({"MILVUS_HOST": "milvus", "MILVUS_PORT": "tcp://10.96.0.5:19532"}, "http://milvus:19532"),
        ({"MILVUS_PORT": "tcp://10.96.0.5:19530"}, None),
        ({"MILVUS_URI": "http://LocalHost:19530"}, "http://127.0.0.1:19530"),
        ({"MILVUS_URI": "https://u:p@localhost:443/db/"}, "https://u:p@127.0.0.1:443/db"),
        ({"MILVUS_URI": "http://localhost.example:19530"}, "http://localhost.example:19530"),
        ({"MILVUS_URI": "http://a:1", "MILVUS_HOST": "b", "MILVUS_PORT": "2"}, "http://a:1"),
    ],
)
def test_milvus_address(tmp_path: Path, environ: dict[str, str], uri: str | None) -> None:
    settings = load(environ, tmp_path)
    assert settings.milvus.uri == uri
    assert settings.milvus.embedded is (uri is None)


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"MILVUS_PORT": "19530"}, "MILVUS_HOST beside it"),
        ({"MILVUS_HOST": "http://a"}, "a host name or address"),
        ({"MILVUS_HOST": "a", "MILVUS_PORT": "milvus"}, "a port from 1 to 65535"),
        ({"MILVUS_URI": "./milvus.db"}, "leave it unset for the embedded store"),
    ],
)
def test_milvus_addresses_refused(tmp_path: Path, environ: dict[str, str], said: str) -> None:
    assert said in refused(tmp_path, **environ)


def test_mapping_of_an_existing_collection(tmp_path: Path) -> None:
    write(
        tmp_path,
        toml='[milvus.mapping]\ncollection = "theirs"\ntext_field = "body"\nsparse_field = "sv"\nsparse_metric = "BM25"\n',
    )
    mapping = load({}, tmp_path).milvus.mapping
    assert mapping is not None
    assert (mapping.dense_field, mapping.sparse_field, mapping.dense_metric, mapping.sparse_metric) == (
        None,
        "sv",
        "COSINE",
        "BM25",
    )
    write(tmp_path, toml='[milvus]\nmapping = { collection = "theirs", dense_metric = "HAMMING" }\n')
    said = refused(tmp_path)
    assert re.search(r"dashboard.toml, line 2: milvus.mapping.text_field: found nothing, expected a value", said)
    assert re.search(r"line 2: milvus.mapping.dense_metric: found 'HAMMING', expected 'COSINE', 'IP' or 'L2'", said)
    write(tmp_path, toml='[milvus.mapping]\ncollection = "theirs"\ntext_field = "body"\n')
    assert "dense_field, sparse_field or both" in refused(tmp_path)


# --------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("server.port", "0"), ("server.port", "65536"), ("server.port", "true"), ("server.port", "8502.5"), ("server.host", '"http://a"'),
        ("server.allowed_hosts", '["*"]'), ("server.allowed_origins", '["https://a/path"]'), ("server.token", "12"),
        ("server.token", '"tökén"'), ("milvus.timeout_seconds", "0"), ("milvus.timeout_seconds", "inf"), ("milvus.timeout_seconds", "nan"),
        ("milvus.collection", '"my passages"'), ("models.device", '"gpu"'), ("models.precision", '"fp8"'), ("models.embedder", '""'),
        ("gpu_server.url", '"gpu:8000"'), ("gpu_server.url", '"http://"'), ("gpu_server.url", '"http://a:99999"'),
        ("gpu_server.url", '"http://a b"'), ("gpu_server.url", '"ftp://a"'), ("gpu_server.retries", "-1"), ("reranker.top_k", "0"),
        ("llm.temperature", "2.1"), ("llm.max_tokens", "0"), ("llm.answer_prompt", '"{question}"'), ("llm.hyde_prompt", '"{question!r}"'),
        ("llm.answer_prompt", '"{question} {passages} {x}"'), ("llm.hyde_prompt", '"{question} {"'), ("llm.default_hyde", '"maybe"'),
        ("llm.hyde_prompt", '"{question.__class__}"'), ("ingest.chunk_tokens", "2024-01-01"), ("ingest.overlap_tokens", "220"),
        ("traces.keep_days", "0"), ("redis.url", '"http://a"'), ("query.max_running", "0"), ("reranker.enabled", '"perhaps"'),
        ("query.deadline_seconds", "[1]"), ("llm.model", "{ a = 1 }"),
    ],
)  # fmt: skip
def test_values_out_of_bounds_name_file_line_and_key(tmp_path: Path, key: str, bad: str) -> None:
    table, _, name = key.rpartition(".")
    write(tmp_path, toml=f"# first line\n[{table}]\n{name} = {bad}\n")
    with pytest.raises(SettingsError) as caught:
        load({}, tmp_path)
    (problem,) = caught.value.problems
    assert (problem.place, problem.line, problem.key) == (str(tmp_path / "dashboard.toml"), 3, key)
    assert problem.expected


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    write(tmp_path, toml="[server]\nprot = 1\nport = 0\n", env="RERANKER_TOP_K=few\n", edited="[query]\nmax_running = 0\n")
    said = refused(tmp_path, DEVICE="tpu", RAGDECK_TOKN="hunter2")
    assert said.startswith("6 problems in the settings:")
    assert f"{tmp_path}/dashboard.toml, line 2: server.prot: found an unknown key" in said
    assert "did you mean server.port?" in said
    assert f"{tmp_path}/dashboard.toml, line 3: server.port: found 0, expected greater than or equal to 1" in said
    assert f"{tmp_path}/.env, line 1: reranker.top_k: found 'few'" in said
    assert "environment variable DEVICE: models.device: found 'tpu', expected auto, cpu, cuda or cuda:N" in said
    assert "environment variable RAGDECK_TOKN: found an unknown variable" in said
    assert "did you mean RAGDECK_TOKEN?" in said
    assert "edited.toml, line 2: query.max_running" in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("top_k = 5", "did you mean reranker.top_k?"),
        ("[rerank]\nx = 1", "did you mean reranker?"),
        ('MILVUS_URI = "http://a"', "did you mean milvus.uri?"),
        ("[milvus.maping]\nx = 1", "did you mean milvus.mapping?"),
        ('redis = "redis://:hunter2@h"', "expected a table [redis]"),
        ('data_dir = "/tmp"', "data_dir: found an unknown key"),
        ('[origins]\n"a" = "b"', "origins: found an unknown key"),
        ("[[server]]\nport = 1", "expected a table [server]"),
    ],
)
def test_unknown_keys_get_the_nearest_known_one(tmp_path: Path, toml: str, said: str) -> None:
    message = refused(write(tmp_path, toml=toml))
    assert said in message
    assert "hunter2" not in message


def test_rules_between_keys_name_both(tmp_path: Path) -> None:
    said = refused(tmp_path, RERANKER_TOP_K="5")
    assert "reranker.return_k: found 8, expected at most reranker.top_k, which is 5" in said
    assert "reranker.top_k by environment RERANKER_TOP_K" in said


def test_foreign_variables_and_kubernetes_service_links_are_ignored(tmp_path: Path) -> None:
    links = {"RAGDECK_SERVICE_HOST": "10.0.0.1", "RAGDECK_PORT": "tcp://10.0.0.1:8502", "RAGDECK_PORT_8502_TCP_ADDR": "10.0.0.1",
             "RAGDECK_API_SERVICE_PORT_HTTP": "8080", "RAGDECK_API_PORT": "tcp://10.0.0.1:8080"}  # fmt: skip
    assert load(links | {"RERANKER_TOPK": "1", "PATH": "/bin", "MILVUS": "x"}, tmp_path).origins == {}
    assert "RAGDECK_PORT" in refused(tmp_path, RAGDECK_PORT="8502")


BROKEN = {
    "syntax": (b"[server]\nport = = 1\n", "line 2: found Invalid value (at line 2, column 8), expected valid TOML"),
    "half written": (b'[llm]\nanswer_prompt = """Answer', "line 2: found"),
    "duplicate": (b"[server]\nport = 1\nport = 2\n", "line 3"),
    "not UTF-8": (b"[llm]\nmodel = '\xe9'\n", "found byte 0xe9 in line 2, which is not UTF-8"),
    "zeros after a power cut": (b"\0" * 512, "found zero bytes"),
    "UTF-16": ("[server]\nport = 1\n".encode("utf-16"), "found zero bytes"),
    "huge": (b"# x\n" * 100_000, "at most 200000 bytes"),
    "too deep": (b"x = " + b"[" * 50_000, "too deep"),
    "integer of 5000 digits": (b"[server]\nport = " + b"1" * 5000, "too long"),
}


@pytest.mark.parametrize("name", ["dashboard.toml", "data/edited.toml"])
@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_name_themselves(tmp_path: Path, name: str, case: str) -> None:
    content, said = BROKEN[case]
    write(tmp_path, edited="")
    (tmp_path / name).write_bytes(content)
    message = refused(tmp_path)
    assert str(tmp_path / name) in message
    assert said in message
    assert ("deleting it restores the settings of dashboard.toml" in message) is (name == "data/edited.toml")


@pytest.mark.parametrize("name", [".env", "dashboard.toml", "data/edited.toml"])
def test_what_is_no_regular_file_is_refused_and_never_waited_for(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.mkdir(parents=True)
    assert f"{path}: found a directory" in refused(tmp_path)
    path.rmdir()
    os.mkfifo(path)
    assert f"{path}: found no regular file" in refused(tmp_path)
    path.unlink()
    path.symlink_to(tmp_path / "gone")
    assert f"{path}: found no such file" in refused(tmp_path)


def test_named_files_must_exist_and_data_must_be_a_directory(tmp_path: Path) -> None:
    assert f"{tmp_path}/gone.toml: found no such file" in refused(tmp_path, RAGDECK_CONFIG="gone.toml")
    (tmp_path / "data").write_text("")
    assert f"{tmp_path}/data: data_dir: found a file, expected a directory" in refused(tmp_path)


def test_unreadable_file() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        write(folder, toml="")
        (folder / "dashboard.toml").chmod(0)
        with as_nobody():
            said = refused(folder)
    assert "an unreadable file (Permission denied)" in said


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything: give that up for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_broken_dotenv_line_is_named_and_not_quoted(tmp_path: Path) -> None:
    write(tmp_path, env="# x\n\nMILVUS_TOKEN='hunter2\n")
    said = refused(tmp_path)
    assert f"{tmp_path}/.env, line 3: found a line that cannot be read, expected NAME=value" in said
    assert "hunter2" not in said


def test_lines_are_right_after_long_texts_arrays_and_inline_tables(tmp_path: Path) -> None:
    write(tmp_path, toml='[llm]\nhyde_prompt = """\nport = 1\n[server]\n{question}"""\n[server]\nallowed_hosts = [\n  "a",\n  "b = 1",\n]\n'
          "port = 0 # here\n[ 'api' ]\nport = 0\n")  # fmt: skip
    with pytest.raises(SettingsError) as caught:
        load({}, tmp_path)
    assert {p.key: p.line for p in caught.value.problems} == {"server.allowed_hosts": 7, "server.port": 11, "api.port": 13}


# ---------------------------------------------------------------------------------------------------------------- secrets


def _secret_fields(model: Any, above: str = "") -> Iterator[str]:
    for name in type(model).model_fields:
        item = getattr(model, name)
        if isinstance(item, SecretStr):
            yield above + name
        elif hasattr(type(item), "model_fields"):
            yield from _secret_fields(item, f"{above}{name}.")


@pytest.fixture
def with_secrets(tmp_path: Path) -> Settings:
    environ = {variable: text for variable, text in SECRET_VALUES.values()}
    environ |= dict.fromkeys(URLS.values(), "http://user:hunter2-url@10.0.0.5:1234/x?key=hunter2-query")
    return load(environ, tmp_path)


def test_the_list_of_secrets_is_complete(with_secrets: Settings) -> None:
    assert set(_secret_fields(with_secrets)) == SECRETS - {"embeddings.headers", "alerts.notify"} == set(SECRET_VALUES)
    suspects = {row.key for row in reference() if re.search(r"(^|_|\.)(token|key|password|secret)$", row.key)}
    assert suspects <= SECRETS
    for key, (_, text) in SECRET_VALUES.items():
        assert value(with_secrets, key).get_secret_value() == text


def test_secrets_show_nowhere(with_secrets: Settings, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("test").warning("settings %s %r", with_secrets, with_secrets)
    sections = [getattr(with_secrets, name) for name in Settings.model_fields]
    texts = [repr(with_secrets), str(with_secrets), f"{with_secrets}", json.dumps(with_secrets.masked()), caplog.text]
    texts += [text for section in sections for text in (repr(section), str(section))]
    assert not [text for text in texts if "hunter2" in text]
    assert with_secrets.masked()["milvus"]["uri"] == "http://***@10.0.0.5:1234/x?***"
    assert with_secrets.masked()["redis"]["url"] == "***"


@pytest.mark.parametrize("key", sorted(SECRET_VALUES))
@pytest.mark.parametrize("source", ["environment", "env", "toml", "edited"])
def test_a_refused_secret_is_not_quoted(tmp_path: Path, key: str, source: str) -> None:
    bad, table, name = "hunter2-ü\u2028 ://@", *key.rpartition(".")[::2]
    write(tmp_path, toml="[server]\nport = 0\n")  # so that there is an error even where the secret is acceptable
    if source in ("toml", "edited"):
        write(tmp_path, **{source: f'[server]\nport = 0\n[{table}x]\n{name} = "{bad}"\n[{table}.y]\n{name} = "{bad}"\n'})
    elif source == "env":
        write(tmp_path, env=f'{SECRET_VALUES[key][0]}="{bad}"\n')
    with pytest.raises(SettingsError) as caught:
        load({SECRET_VALUES[key][0]: bad} if source == "environment" else {}, tmp_path)
    everything = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(caught.value.problems)
    assert "hunter2" not in everything
    assert caught.value.__context__ is None


@pytest.mark.parametrize("bad", ["ftp://u:hunter2@h", "u:hunter2@h:80", "http://u:hunter2@h:port", "http://u:hun/ter2@h@:x", "http://u:hunter2@ h",
                                 "sk-hunter2hunter2hunter2hunter2"])  # fmt: skip
@pytest.mark.parametrize("variable", URLS.values())
def test_refused_urls_are_quoted_without_userinfo(tmp_path: Path, variable: str, bad: str) -> None:
    said = refused(tmp_path, **{variable: bad})
    assert "hun" not in said
    assert "ter2" not in said


HEADERS = '[embeddings]\nheaders = { X-Team = "hunter2-header", Api-Key = "k" }\n'


def test_headers_are_a_table_of_secrets(tmp_path: Path) -> None:
    settings = load({}, write(tmp_path, toml=HEADERS))
    assert {name: text.get_secret_value() for name, text in settings.embeddings.headers.items()} == {
        "X-Team": "hunter2-header",
        "Api-Key": "k",
    }
    assert settings.masked()["embeddings"]["headers"] == {"X-Team": "***", "Api-Key": "***"}
    assert "hunter2" not in repr(settings) + repr(settings.embeddings)
    written = load(
        {}, write(tmp_path, toml=HEADERS.replace("headers = {", "[embeddings.headers]\n").replace(", ", "\n").replace(" }", ""))
    )
    assert written.embeddings == settings.embeddings


@pytest.mark.parametrize("bad", ['{ X-Team = "hünter2" }', '{ "X Team" = "hunter2" }', '{ X-Team = { a = "hunter2" } }', '"hunter2"', '{ X-Team = 2 }'])  # fmt: skip
def test_a_refused_header_is_named_and_not_quoted(tmp_path: Path, bad: str) -> None:
    said = refused(write(tmp_path, toml=f"[embeddings]\nheaders = {bad}\n"))
    assert "dashboard.toml, line 2: embeddings.headers" in said
    assert "unter2" not in said
    assert "embeddings.headers" in refused(write(tmp_path, toml="", edited=HEADERS))


VLLM_ENTRY = '[[services]]\nname = "vllm"\nkind = "openai-chat"\nurl = "http://h:1"\napi_key_env = "GPU_BOX_KEY"\n'
KEY_VALUE = "sk-hunter2-services"


@pytest.mark.parametrize("table", ["services", "prometheus"])
@pytest.mark.parametrize("source", ["environment", ".env"])
def test_the_key_of_an_entry_comes_from_the_variable_it_names(
    tmp_path: Path, table: str, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    toml = VLLM_ENTRY.replace("services", table)
    root = write(tmp_path, toml=toml, env=f"GPU_BOX_KEY={KEY_VALUE}\n" if source == ".env" else "")
    environ = {"GPU_BOX_KEY": f" {KEY_VALUE}\n", "OTHER": "x"} if source == "environment" else {}
    found = load(environ, root)
    (entry,) = getattr(found, table)
    assert revealed(entry)["api_key"] == KEY_VALUE and entry["api_key_env"] == "GPU_BOX_KEY"
    shown = [repr(found), str(found), json.dumps(found.masked()), found.model_dump_json()]
    assert all(KEY_VALUE not in text for text in shown) and "GPU_BOX_KEY" in shown[2], "its name is no secret"
    assert KEY_VALUE in secret_values(found), "masked in logs"
    saved = save_edited(found, {"llm.temperature": 0.5})
    assert revealed(getattr(saved, table)[0])["api_key"] == KEY_VALUE, "remembered for the next reading"
    assert KEY_VALUE not in (root / "data" / "edited.toml").read_text()
    remembered = found._remembered
    assert remembered is not None and "OTHER" not in remembered[0]


def test_a_variable_of_our_own_prefix_is_known_where_an_entry_names_it(tmp_path: Path) -> None:
    root = write(tmp_path, toml=VLLM_ENTRY.replace("GPU_BOX_KEY", "RAGDECK_GPU_BOX_KEY"))
    assert revealed(load({"RAGDECK_GPU_BOX_KEY": KEY_VALUE}, root).services[0])["api_key"] == KEY_VALUE
    with pytest.raises(SettingsError, match="RAGDECK_GPU_BOX_KY"):
        load({"RAGDECK_GPU_BOX_KEY": KEY_VALUE, "RAGDECK_GPU_BOX_KY": "x"}, root)


@pytest.mark.parametrize(
    ("line", "environ", "said"),
    [
        ('api_key_env = "GPU_BOX_KEY"', {}, "found GPU_BOX_KEY of 'vllm', which is not set"),
        ('api_key_env = "GPU_BOX_KEY"', {"GPU_BOX_KEY": "  "}, "which is not set"),
        ('api_key_env = "sk-hunter2 pasted"', {}, "found no name of a variable of 'vllm'"),
        ("api_key_env = 3", {}, "found no name of a variable"),
        ('api_key_env = "A"\napi_key = "sk-hunter2"', {"A": "x"}, "found api_key as well of 'vllm', expected one of the two"),
    ],
)
@pytest.mark.parametrize("table", ["services", "prometheus"])
def test_a_key_that_cannot_be_looked_up_names_key_and_line(
    tmp_path: Path, table: str, line: str, environ: dict[str, str], said: str
) -> None:
    before = f'[[{table}]]\nname = "first"\nurl = "http://h"\n\n'
    toml = f'{before}[[{table}]]\nname = "vllm"\nurl = "http://h:1"\n# a comment\n{line}\n\n{before.replace("first", "last")}'
    with pytest.raises(SettingsError) as caught:
        load(environ, write(tmp_path, toml=toml))
    (problem,) = caught.value.problems
    assert (problem.key, problem.line) == (f"{table}[2].api_key_env", 9)
    assert said in str(problem) and "hunter2" not in str(problem)


def test_a_page_cannot_send_a_variable_to_an_address_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="services: found a secret"):
        load({"GPU_BOX_KEY": KEY_VALUE}, write(tmp_path, edited=VLLM_ENTRY))
    bare = load({"GPU_BOX_KEY": KEY_VALUE}, write(tmp_path, edited=""))
    entry = {"name": "x", "kind": "http", "url": "http://evil", "api_key_env": "GPU_BOX_KEY"}
    with pytest.raises(SettingsError, match="a secret"):
        save_edited(bare, {"services": [entry]})


def test_prompts_keep_their_blanks(tmp_path: Path) -> None:
    settings = load({}, write(tmp_path, toml='[embeddings]\nquery_prompt = "query: "\npassage_prompt = " "\n'))
    assert (settings.embeddings.query_prompt, settings.embeddings.passage_prompt) == ("query: ", " ")


def test_made_by_hand_the_errors_hide_values_too(tmp_path: Path) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(data_dir=tmp_path, redis={"url": "hunter2"})  # type: ignore[arg-type]
    assert "hunter2" not in str(caught.value)


def test_openai_key_only_goes_to_a_configured_endpoint(tmp_path: Path) -> None:
    key = {"OPENAI_API_KEY": "sk-1"}
    assert load(key, tmp_path).llm.api_key is None
    settings = load(key | {"VLLM_BASE_URL": "http://llm:8001/v1/"}, tmp_path)
    assert (settings.llm.base_url, settings.llm.api_key) == ("http://llm:8001/v1", SecretStr("sk-1"))
    assert settings.origins["llm.api_key"] == "environment OPENAI_API_KEY"
    both = key | {"VLLM_BASE_URL": "http://llm:8001", "VLLM_API_KEY": "sk-2"}
    assert load(both, tmp_path).llm.api_key == SecretStr("sk-2")


# ----------------------------------------------------------------------------------------------------------------- saving


def test_saved_changes_come_back_and_merge_with_earlier_ones(tmp_path: Path) -> None:
    settings = save_edited(load({}, tmp_path), {"reranker.top_k": 60, "server.allowed_hosts": ("A.example",)})
    settings = save_edited(settings, {"reranker": {"return_k": "12"}, "llm.model": "ü\n\"'\\\t{}"})
    assert (settings.reranker.top_k, settings.reranker.return_k) == (40, 12), "a table replaces what the table held"
    assert settings.server.allowed_hosts == ("a.example",)
    assert settings.llm.model == "ü\n\"'\\\t{}"
    assert settings == load({}, tmp_path)
    assert settings.origins["llm.model"] == "edited.toml"
    assert save_edited(settings, {"llm.model": None}).origins.get("llm.model") is None
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["edited.toml"]


def test_mapping_is_saved_and_removed_as_a_whole(tmp_path: Path) -> None:
    mapping = {"collection": "theirs", "text_field": "body", "dense_field": "v", "title_field": None}
    settings = save_edited(load({}, tmp_path), {"milvus.mapping": mapping})
    assert settings.milvus.mapping is not None
    settings = save_edited(settings, {"milvus.mapping": {"collection": "b", "text_field": "t", "sparse_field": "s"}})
    assert settings.milvus.mapping is not None
    assert settings.milvus.mapping.dense_field is None
    assert save_edited(settings, {"milvus.mapping": None}).milvus.mapping is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"server.token": "hunter2"}, "secrets only in the environment"),
        ({"redis": {"url": "redis://:hunter2@h"}}, "secrets only in the environment"),
        ({"reranker.topk": 5}, "did you mean reranker.top_k?"),
        ({"reranker.top_k": "hunter"}, "change: reranker.top_k: found 'hunter'"),
        ({"reranker.top_k": 5}, "at most reranker.top_k, which is 5"),
        ({"reranker": 5}, "expected a table [reranker]"),
        ({"data_dir": "/tmp"}, "unknown key"),
        ({"models.device": "cpu"}, "environment DEVICE wins"),
        ({"llm.model": "x"}, ".env wins"),
        ({"milvus.uri": "http://b"}, "environment MILVUS_HOST wins"),
        ({"query.max_running": 3}, "dashboard.toml:2 wins"),
        ({"query": {"max_running": 3}}, "dashboard.toml:2 wins"),
        ({"query": None}, "dashboard.toml:2 wins"),
        ({"llm.answer_prompt": "\ud800 {question} {passages}"}, "llm.answer_prompt"),
        ({"llm.hyde_model": object()}, "llm.hyde_model: found a object"),
    ],
)
def test_refused_changes_write_nothing(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    write(tmp_path, toml="[query]\nmax_running = 2\n", env="VLLM_MODEL=m\n", edited="[api]\nport = 8081\n")
    settings = load({"DEVICE": "cuda", "MILVUS_HOST": "a"}, tmp_path)
    with pytest.raises(SettingsError) as caught:
        save_edited(settings, changes | {"api.port": 9000})
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert (tmp_path / "data" / "edited.toml").read_text() == "[api]\nport = 8081\n"


def test_saving_keeps_what_a_stronger_source_hides_for_now(tmp_path: Path) -> None:
    write(tmp_path, edited='[llm]\nmodel = "mine"\n')
    save_edited(load({"VLLM_MODEL": "theirs"}, tmp_path), {"api.port": 8081})
    assert load({}, tmp_path).llm.model == "mine"


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    settings = save_edited(load({}, tmp_path), {"api.port": 8081})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, fails, full)
        with pytest.raises(SettingsError, match="No space left on device"):
            save_edited(settings, {"api.port": 8082})
    assert load({}, tmp_path) == settings
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["edited.toml"]


def test_changes_saved_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    settings = load({}, tmp_path)
    changes: list[dict[str, Any]] = [
        {"api.port": 9000},
        {"llm.model": "m"},
        {"query.max_running": 3},
        {"traces.keep_days": 7},
        {"ingest.chunk_tokens": 99},
    ]
    threads = [threading.Thread(target=save_edited, args=(settings, change)) for change in changes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(load({}, tmp_path).origins) == {key for change in changes for key in change}


def test_settings_made_by_hand_are_not_saved_anywhere(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="made by load"):
        save_edited(Settings(data_dir=tmp_path), {"api.port": 1})


# ------------------------------------------------------------------------------------------------ the object and its docs


def test_frozen_copyable_and_strict(with_secrets: Settings) -> None:
    with pytest.raises(ValidationError):
        with_secrets.reranker.top_k = 3
    assert pickle.loads(pickle.dumps(with_secrets)) == copy.deepcopy(with_secrets) == with_secrets
    with pytest.raises(ValidationError):
        Settings(data_dir=Path("relative"))


def test_fingerprint_follows_answers_only(tmp_path: Path) -> None:
    base = load({}, tmp_path)
    assert re.fullmatch(r"[0-9a-f]{12}", base.fingerprint())
    same = {"RAGDECK_TOKEN": "t", "REDIS_URL": "redis://h", "RAGDECK_DATA": "d", "RAGDECK_ALLOWED_HOSTS": "h"}
    write(tmp_path, toml="[server]\nport = 1\n[api]\nport = 2\n[query]\nmax_running = 2\n")
    assert load(same, tmp_path).fingerprint() == base.fingerprint()
    changes = [
        {"RERANKER_TOP_K": "41"},
        {"VLLM_MODEL": "m"},
        {"EMBEDDING_MODEL": "e"},
        {"MILVUS_HOST": "h"},
        {"RERANKER_ENABLED": "0"},
    ]
    assert len({load(change, tmp_path).fingerprint() for change in changes} | {base.fingerprint()}) == 6
    secret, other = ({"MILVUS_URI": f"http://u:{password}@h"} for password in "ab")
    assert load(secret, tmp_path).fingerprint() == load(other, tmp_path).fingerprint()


def test_prompts_can_be_filled(tmp_path: Path) -> None:
    llm = load({}, tmp_path).llm
    assert llm.answer_prompt.format(question="Q{passages}", passages="[1] P").count("[1] P") == 1
    assert "Q" in llm.hyde_prompt.format(question="Q")


def test_importing_reads_nothing_and_needs_nothing_of_ours(tmp_path: Path) -> None:
    code = (
        "import sys, settings; ours = {'rag', 'gpu_server', 'collectors', 'ui', 'runtime', 'torch', 'streamlit'}; "
        "assert not ours & set(sys.modules); print('ok')"
    )
    environ = {"PYTHONPATH": str(REPO), "RAGDECK_NONSENSE": "1", "RAGDECK_CONFIG": "/gone"}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("ok\n", "")


@pytest.fixture(scope="module")
def generated() -> dict[str, Any]:
    return dict(runpy.run_path(str(REPO / "scripts" / "settings_reference.py"))["FILES"])


@pytest.mark.parametrize("name", ["docs/settings.md", "dashboard.example.toml", ".env.example"])
def test_documents_are_what_the_code_says(name: str, generated: dict[str, Any]) -> None:
    assert (REPO / name).read_text(encoding="utf-8") == generated[name](), "run python scripts/settings_reference.py"


def test_every_setting_has_a_meaning() -> None:
    assert all(row.meaning.endswith(".") for row in reference())
    assert {row.key for row in reference()} >= SECRETS


def test_examples_load_as_they_are_and_uncommented(tmp_path: Path) -> None:
    toml = (REPO / "dashboard.example.toml").read_text(encoding="utf-8")
    env = (REPO / ".env.example").read_text(encoding="utf-8")
    defaults = load({}, tmp_path).masked()
    write(tmp_path, toml=toml, env=env)
    assert load({}, tmp_path).masked() | {"config_file": None, "origins": {}} == defaults
    before_mapping, rest = toml.split("# [milvus.mapping]")
    toml = (before_mapping + rest[rest.index("\n[") :]).partition("# Changes of alert rules")[0]
    toml = re.sub(r"^# (?=[a-z_]+ = )", "", toml, flags=re.MULTILINE)
    assert set(tomllib.loads(toml)) == set(defaults) - {"data_dir", "config_file", "origins", *MERGED}
    env = re.sub(r"^# (?=[A-Z_]+=)(?!RAGDECK_CONFIG|MILVUS_PORT)", "", env, flags=re.MULTILINE)
    write(tmp_path, toml=toml, env=env)
    assert load({}, tmp_path).masked() | {"config_file": None, "origins": {}} == defaults
