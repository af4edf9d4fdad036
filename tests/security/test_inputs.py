"""A thousand hostile texts, the same ones each time, at every door that takes a text: nothing executed, nothing left its place."""

from __future__ import annotations

import csv
import io
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from collectors.services import Service
from library import Library
from rag.cache.question import analyse
from rag.errors import RagError
from rag.loaders import load
from rag.trace_store import QueryFilter, TraceStore
from tests.security.payloads import FAMILIES, FOREIGN, series
from tests.security.world import World
from ui.exports import to_csv
from ui.format import answer_markdown, csv_cell, escape, plain_markdown

TEXTS = [text for family in FAMILIES for text in series(family, 250)]
STARTS = tuple("=+-@＝＋－＠\t\r\n")


def test_there_are_a_thousand_and_they_differ() -> None:
    assert len(TEXTS) == 1000 and len(set(TEXTS)) > 850


def test_no_cell_of_a_csv_is_a_formula() -> None:
    """Names, texts and headings alike: read back as a spreadsheet does, nothing begins like a formula, and nothing is lost."""
    data = to_csv(TEXTS, [TEXTS, [f"  {text}" for text in TEXTS]]).decode("utf-8-sig", "replace")
    for row, wanted in zip(csv.reader(io.StringIO(data, newline="")), (TEXTS, TEXTS), strict=False):
        for cell, text in zip(row, wanted, strict=True):
            assert not cell.lstrip(" \0\u200b\ufeff").startswith(STARTS), cell[:50]
            kept = text.encode("utf-8", "replace").decode()
            assert cell in (kept, f"'{kept}")
    assert csv_cell(-1.5) == -1.5 and csv_cell("plain - text") == "plain - text"


def test_no_text_makes_markup() -> None:
    for text in TEXTS:
        assert not set(escape(text)) & set("<>\"'")
        assert "<" not in plain_markdown(text).replace("\\<", "")
        shown = answer_markdown(text, {1})
        assert "<" not in shown.replace("&lt;", "") or "`" in shown
        outside = re.sub(r"`[^`]*`", "", shown.replace("\\`", ""))
        assert "](" not in outside.replace("\\](", "").replace("](#passage-", "")


def test_uploads_stay_in_their_folder(tmp_path: Path) -> None:
    library = Library.__new__(Library)
    library.uploads = tmp_path / "data" / "uploads"
    for text in TEXTS:
        path = library.save_upload(text, b"x")
        assert path.parent == library.uploads and path.is_file() and not path.is_symlink()
        assert not path.name.startswith(".")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["uploads"]


def test_a_filter_is_data_to_the_database(tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "traces.db")
    for text in TEXTS[::4]:
        clean = text.replace("\0", "").encode("utf-8", "ignore").decode()[:2000]
        assert store.search(QueryFilter(text=clean, model=clean, origin=clean)) == [] and store.get(clean) is None
    store.close()


def test_texts_of_servers_lose_their_control_characters() -> None:
    service = Service("x", "http", "http://127.0.0.1:1")
    for text in TEXTS:
        said = service.said(text)
        assert said.isprintable() and len(said) <= 2000


def test_the_api_takes_or_refuses_them(world: World) -> None:
    api_stands(world, TEXTS[::8])


def api_stands(world: World, texts: list[str]) -> None:
    """Ids, filters and options: never a 5xx, never a file of the machine, nothing asked of another host."""
    before = len(world.remote.requests)
    for number, text in enumerate(texts):
        clean = text.encode("utf-8", "replace").decode()
        param = ("text", "model", "origin", "outcome", "since", "limit", "offset", "cold")[number % 8]
        answers = [world.call("GET", "/api/v1/queries", params={param: clean[:1500]})]
        if number % 4 == 0:
            answers.append(
                world.call("GET", f"/api/v1/queries/{clean[:300].encode().hex() if not clean.isprintable() else clean[:300]}")
            )
            answers.append(world.call("POST", "/api/v1/ask", json={"query": "x", "collection": clean[:300]}))
        for answer in answers:
            assert answer.status_code < 500, (param, clean[:80], answer.text[:200])
            assert "root:" not in answer.text
    asked = [path for path, _, _ in world.remote.requests[before:]]
    assert not any(FOREIGN in path for path in asked)


@pytest.mark.parametrize("key", ["base_url", "url", "api_url", "embedder", "endpoint", "headers", "reranker", "llm"])
def test_nobody_can_name_a_server_in_a_question(world: World, key: str) -> None:
    """Where requests go is a matter of the settings alone."""
    for target in (
        "http://169.254.169.254/latest/meta-data",
        f"http://127.0.0.1:{world.redis.port}",
        "file:///etc/passwd",
        "gopher://x",
    ):
        answer = world.call("POST", "/api/v1/ask", json={"query": "x", key: target})
        assert answer.status_code == 400 and "root:" not in answer.text


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "gopher://127.0.0.1:70/_x", "ftp://x/y", "//x", "javascript:x", "http://", "http://a b/"]
)
def test_settings_take_no_other_scheme(url: str, tmp_path: Path) -> None:
    from settings import SettingsError, load

    for key in (
        "llm.base_url",
        "embeddings.base_url",
        "reranker.api_url",
        "gpu_server.url",
        "ocr.base_url",
        "traces.otlp_endpoint",
    ):
        table, _, name = key.partition(".")
        (tmp_path / "dashboard.toml").write_text(f'[{table}]\n{name} = "{url}"\n')
        with pytest.raises(SettingsError):
            load({"RAGDECK_CONFIG": str(tmp_path / "dashboard.toml"), "RAGDECK_DATA": str(tmp_path)})


MEMBERS = {"docx": "word/document.xml", "xlsx": "xl/workbook.xml", "pptx": "ppt/presentation.xml", "epub": "OEBPS/a.xhtml"}
TYPES = {"docx": "wordprocessingml.document", "xlsx": "spreadsheetml.sheet", "pptx": "presentationml.presentation"}


def says_its_kind(archive: zipfile.ZipFile, suffix: str) -> None:
    """Without it a container is refused as of another kind, before anything of it is looked at."""
    if suffix == "epub":
        archive.writestr("mimetype", "application/epub+zip")
        return
    kind = f"application/vnd.openxmlformats-officedocument.{TYPES[suffix]}.main+xml"
    archive.writestr("[Content_Types].xml", f'<Types><Override ContentType="{kind}"/></Types>')


def bomb(suffix: str, mebibytes: int = 300) -> bytes:
    """An archive of a few hundred kilobytes whose member is hundreds of megabytes long."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        says_its_kind(archive, suffix)
        with archive.open(MEMBERS[suffix], "w", force_zip64=True) as file:
            for _ in range(mebibytes):
                file.write(b" " * (1 << 20))
    return out.getvalue()


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
ENTITIES = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l0 "ha">{LAUGHS}<!ENTITY f SYSTEM "file:///etc/passwd">]><x>&l9;&f;</x>'


def entities(suffix: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        says_its_kind(archive, suffix)
        for name in ("_rels/.rels", "META-INF/container.xml", MEMBERS[suffix]):
            archive.writestr(name, ENTITIES)
    return out.getvalue()


@pytest.mark.parametrize("suffix", MEMBERS)
@pytest.mark.parametrize("make", [bomb, entities])
def test_bombs_are_refused_by_name(tmp_path: Path, suffix: str, make: Callable[[str], bytes]) -> None:
    path = tmp_path / f"a.{suffix}"  # the name is in the message: it must not hold what is looked for
    path.write_bytes(make(suffix))
    with pytest.raises(RagError) as refused:
        load(path, 50_000_000)
    said = str(refused.value)
    wanted = "ZIP bomb" if make is bomb else "EntitiesForbidden" if suffix == "epub" else "declares a document type"
    assert wanted in said and "root:" not in said and refused.value.next_step


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"a":' * 100_000, "[" * 200_000 + "]" * 200_000], ids=["lists", "objects", "closed"]
)
def test_deeply_nested_json(tmp_path: Path, world: World, text: str) -> None:
    (tmp_path / "deep.json").write_text(text)
    with pytest.raises(RagError):
        load(tmp_path / "deep.json", 50_000_000)
    answer = world.call("POST", "/api/v1/ask", content=text, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    spans = world.call("POST", "/v1/traces", content=text, headers={"content-type": "application/json"})
    assert 400 <= spans.status_code < 500


SLOW = [
    "a" * 20_000,
    " " * 20_000,
    "Art. " * 4_000,
    "1." * 10_000,
    "(" * 20_000,
    "§ 1 " * 5_000,
    "\n" * 20_000,
    "not " * 5_000,
    "a-" * 10_000,
    "`" * 20_000,
]
SLOW += [
    "| " * 10_000,
    "#" * 20_000,
    "[1" * 10_000,
    "http://" * 3_000,
    "http://" + "." * 20_000,
    "=" * 20_000,
    "\u0591" * 20_000,
    "1,2" * 7_000,
    "a." * 10_000,
    "a+" * 10_000,
    "--" * 10_000,
    "how " * 5_000,
    "when, " * 4_000,
    "to " * 7_000,
]


@pytest.mark.parametrize("text", SLOW, ids=range(len(SLOW)))
def test_no_pattern_takes_for_ever(text: str) -> None:
    """Time grows with the text, not with its square: a bound that a loaded machine keeps, and a quadratic pattern does not."""
    begun = time.process_time()
    analyse(text)
    answer_markdown(text, {1})
    plain_markdown(text)
    csv_cell(text)
    assert time.process_time() - begun < 5.0
