"""Files that are cut, locked, disguised or hostile: each is refused by name with its reason, and costs little memory.

`data/encrypted.xlsx` is a workbook that was really encrypted with a password (ECMA-376 agile encryption).
"""

from __future__ import annotations

import os
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from fpdf import FPDF
from numpy.typing import NDArray

from gpu_server.model_pool import ModelPool
from gpu_server.starter import StarterEmbedder
from library import Writer
from rag.errors import RagError
from rag.ingest import ingest
from rag.loaders import LoadError, load, packages
from rag.store import Store
from rag.types import PassageRow
from tests.rag.document_makers import make_docx, make_epub, make_pptx, make_xlsx, png, rewrite, zeros, zipped

DATA = Path(__file__).parent / "data"
LIMIT = 5_000_000
ENTITIES = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
BOMB = f'<!DOCTYPE x [<!ENTITY a0 "ha">{ENTITIES}]>'.encode()
OUTSIDE = b'<!DOCTYPE x [<!ENTITY a9 SYSTEM "file:///etc/hostname">]>'


def refusal(path: Path, limit: int = LIMIT) -> RagError:
    with pytest.raises(LoadError) as caught:
        load(path, limit)
    assert caught.value.message.startswith(path.name)
    assert caught.value.next_step
    return caught.value


def make_pdf(path: Path, text: str, password: str | None = None) -> Path:
    pdf = FPDF()
    pdf.set_font("helvetica", size=12)
    if password is not None:
        pdf.set_encryption(owner_password="owner", user_password=password)
    pdf.add_page()
    pdf.multi_cell(0, text=text)
    pdf.output(str(path))
    return path


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def declare(path: Path, entry: str, doctype: bytes, use: tuple[bytes, bytes] = (b"", b"")) -> Path:
    """Put a document type into one entry's prolog, and a use of its entity into the text."""

    def change(name: str, content: bytes) -> bytes:
        if name != entry:
            return content
        head, _, rest = content.partition(b"?>")
        return head + b"?>" + doctype + rest.replace(*use, 1)

    return rewrite(path, change)


# 1) cut, locked, disguised


@pytest.mark.parametrize("share", [0.03, 0.5, 0.97])
@pytest.mark.parametrize("suffix", [".docx", ".pptx", ".xlsx", ".epub"])
def test_containers_cut_anywhere(tmp_path: Path, suffix: str, share: float) -> None:
    assert "ZIP container is cut off or damaged" in refusal(cut(good(tmp_path / f"a{suffix}", 1), share)).message


def test_a_container_with_a_damaged_middle(tmp_path: Path) -> None:
    path = make_docx(tmp_path / "a.docx", "some words " * 2000)
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("word/document.xml").header_offset + 60
    data = bytearray(path.read_bytes())
    data[at : at + 40] = bytes(40)
    path.write_bytes(data)
    assert refusal(path).message == "a.docx: is a broken Word document: its ZIP container is cut off or damaged"


def test_passwords(tmp_path: Path) -> None:
    for name in ("locked.xlsx", "locked.docx", "locked.pptx"):
        shutil.copy(DATA / "encrypted.xlsx", tmp_path / name)
        assert refusal(tmp_path / name).message == f"{name}: is encrypted with a password"
    assert "encrypted" in refusal(make_pdf(tmp_path / "locked.pdf", "secret", "user")).message
    path = make_docx(tmp_path / "zip.docx", "words")
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02", data.find(b"word/document.xml", len(data) // 2) - 46)
    data[at + 8] |= 1  # the flag of a ZIP entry that needs a password
    path.write_bytes(data)
    assert "encrypted with a password" in refusal(path).message
    lock = '<encryption><EncryptionMethod Algorithm="http://www.w3.org/2001/04/xmlenc#aes128-cbc"/></encryption>'
    book = make_epub(tmp_path / "book.epub", {"a.xhtml": "<p>x</p>"}, **{"META-INF__encryption.xml": lock})
    assert "copy protection" in refusal(book).message


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("a.docx", b"", "is empty"),
        ("a.docx", b"just some words", "is no Word document"),
        ("a.xlsx", b"a,b\n1,2\n", "is no Excel workbook"),
        ("a.docx", b"%PDF-1.7 and so on", "holds a PDF, not a Word document"),
        ("a.xlsx", b"<!DOCTYPE html><html><table>", "holds an HTML page, not an Excel workbook"),
        ("a.docx", b"{\\rtf1 text}", "holds an RTF document, not a Word document"),
        ("a.pptx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "holds an Office document of before 2007"),
        ("a.csv", png(), "holds a PNG image, not a text file"),
        ("a.json", zipped({"a.txt": b"text"}), "holds a ZIP archive, not a text file"),
        ("a.docx", zipped({"a.txt": b"text"}), "holds a ZIP archive, not a Word document"),
        ("a.docx", zipped({"mimetype": b"application/vnd.oasis.opendocument.text"}), "holds an OpenDocument file"),
        ("a.pdf", png(), "holds a PNG image, not a PDF"),
        ("a.epub", zipped({"META-INF/container.xml": b"<container/>"}), "does not say where"),
        ("a.epub", zipped({"mimetype": b"application/epub+zip"}), "has no 'META-INF/container.xml'"),
    ],
)
def test_a_suffix_that_is_not_the_contents(tmp_path: Path, name: str, content: bytes, cause: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert cause in refusal(tmp_path / name).message


def test_office_files_under_each_others_names(tmp_path: Path) -> None:
    make_pptx(tmp_path / "deck.pptx", ("One", "two")).rename(tmp_path / "deck.docx")
    assert refusal(tmp_path / "deck.docx").message == "deck.docx: holds a PowerPoint presentation, not a Word document"
    make_docx(tmp_path / "a.docx", "words").rename(tmp_path / "a.md")
    assert "holds a Word document, not a text file" in refusal(tmp_path / "a.md").message


def test_nothing_but_images_and_empty_cells(tmp_path: Path) -> None:
    assert "holds no words" in refusal(make_docx(tmp_path / "a.docx")).message
    assert "holds no words" in refusal(make_xlsx(tmp_path / "a.xlsx", {"A": []})).message
    assert "holds no words" in refusal(make_pptx(tmp_path / "a.pptx")).message


# 2) hostile


@pytest.mark.parametrize("doctype", [BOMB, OUTSIDE])
@pytest.mark.parametrize(
    ("suffix", "entry", "use"),
    [
        (".docx", "word/document.xml", b"<w:t>"),
        (".pptx", "ppt/slides/slide1.xml", b"<a:t>"),
        (".xlsx", "xl/sharedStrings.xml", b"<t>"),
        (".xlsx", "xl/workbook.xml", b""),
        (".docx", "[Content_Types].xml", b""),
    ],
)
def test_entities_are_refused_before_anything_is_parsed(
    tmp_path: Path, suffix: str, entry: str, use: bytes, doctype: bytes
) -> None:
    path = declare(good(tmp_path / f"a{suffix}", 1), entry, doctype, (use, use + b"&a9;"))
    assert f"declares a document type in '{entry}'" in refusal(path).message


def test_entities_in_a_book(tmp_path: Path) -> None:
    path = declare(make_epub(tmp_path / "a.epub", {"a.xhtml": "<p>x</p>"}), "OEBPS/book.opf", BOMB, (b"A book", b"&a9;"))
    assert "EntitiesForbidden" in refusal(path).message
    page = make_epub(tmp_path / "b.epub", {"a.xhtml": "<p>before &a9; after</p>"})
    declare(page, "OEBPS/a.xhtml", OUTSIDE)
    text = load(page, LIMIT).sections[0].text
    assert "before &a9 after" in text  # unresolved, and nothing of the file it points to
    assert Path("/etc/hostname").read_text().strip() not in text


def test_a_doctype_in_another_encoding_is_seen(tmp_path: Path) -> None:
    path = good(tmp_path / "a.docx", 1)

    def change(name: str, content: bytes) -> bytes:
        if name != "word/styles.xml":
            return content
        text = content.decode().partition("?>")[2]
        return ('<?xml version="1.0" encoding="UTF-16"?><!--' + "x" * 100_000 + "-->" + BOMB.decode() + text).encode("utf-16")

    assert "declares a document type in 'word/styles.xml'" in refusal(rewrite(path, change)).message


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_zip_bombs_are_refused_without_being_expanded(tmp_path: Path) -> None:
    path = zeros(make_docx(tmp_path / "bomb.docx", "words"), 200_000_000)
    assert path.stat().st_size < 400_000
    message = ""

    def work() -> None:
        nonlocal message
        message = refusal(path).message

    assert peak_bytes(work) < 30_000_000
    assert "is or looks like a ZIP bomb" in message
    assert "200," in message


def test_bounds_on_the_whole_on_trees_and_on_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_docx(tmp_path / "a.docx", "words")
    with zipfile.ZipFile(path) as archive:
        sizes = [entry.file_size for entry in archive.infolist()]
        trees = sum(entry.file_size for entry in archive.infolist() if entry.filename.endswith((".xml", ".rels")))
    monkeypatch.setattr(packages, "MAX_EXPANDED_BYTES", sum(sizes) - 1)
    assert "ZIP bomb" in refusal(path).message
    monkeypatch.setattr(packages, "MAX_EXPANDED_BYTES", sum(sizes))
    monkeypatch.setattr(packages, "MAX_TREE_BYTES", trees - 1)
    assert f"{trees:,} bytes of XML" in refusal(path).message
    monkeypatch.setattr(packages, "MAX_TREE_BYTES", trees)
    assert load(path, LIMIT).sections
    monkeypatch.setattr(packages, "MAX_ENTRIES", len(sizes) - 1)
    assert f"holds {len(sizes)} entries" in refusal(path).message


def test_a_text_of_300_mb_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "big.txt"
    path.touch()
    os.truncate(path, 300_000_000)
    assert peak_bytes(lambda: refusal(path, 50_000_000)) < 1_000_000
    assert "300,000,000 bytes; the limit is 50,000,000" in refusal(path, 50_000_000).message


def test_a_workbook_with_too_many_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag.loaders.sheets.MAX_CELLS", 99)
    assert load(make_xlsx(tmp_path / "a.xlsx", {"A": [["a", 1, 2]] * 33}), LIMIT).sections
    assert (
        "holds more than 99 cells"
        in refusal(make_xlsx(tmp_path / "b.xlsx", {"A": [["a", 1, 2]] * 17, "B": [["a", 1, 2]] * 17})).message
    )


# 3) sixty files


def good(path: Path, number: int) -> Path:
    """A small document of the path's kind."""
    words, hebrew = f"Fact number {number} is about reranking.", f"עובדה מספר {number} עוסקת בדירוג."
    suffix = path.suffix
    if suffix == ".docx":
        return make_docx(path, words, hebrew)
    if suffix == ".pptx":
        return make_pptx(path, (words, hebrew))
    if suffix == ".xlsx":
        return make_xlsx(path, {"Facts": [["Fact", "עברית"], [words, hebrew]]})
    if suffix == ".epub":
        return make_epub(path, {"a.xhtml": f"<h1>Facts</h1><p>{words}</p><p dir='rtl'>{hebrew}</p>"})
    if suffix == ".pdf":
        return make_pdf(path, words)
    texts = {
        ".csv": f"Fact;Hebrew\n{words};{hebrew}\n",
        ".json": f'[{{"fact": "{words}", "hebrew": "{hebrew}"}}]',
        ".jsonl": f'{{"fact": "{words}", "hebrew": "{hebrew}"}}\n',
        ".html": f"<title>Facts</title><p>{words}</p><p dir='rtl'>{hebrew}</p>",
        ".md": f"# Facts\n{words}\n\n{hebrew}\n",
    }
    path.write_text(texts[suffix])
    return path


def spoil(root: Path) -> dict[str, str]:
    """Ten broken files; their names and a part of the reason that each must be given."""
    cut(good(root / "cut.docx", 1), 0.6)
    shutil.copy(DATA / "encrypted.xlsx", root / "locked.xlsx")
    make_pdf(root / "locked.pdf", "secret", "user")
    (root / "zero.pptx").touch()
    good(root / "real.pdf", 1).rename(root / "pdf-inside.docx")
    zeros(make_xlsx(root / "bomb.xlsx", {"A": [["a", 1]]}), 60_000_000, "xl/media/bomb.bin")
    (root / "big.csv").touch()
    os.truncate(root / "big.csv", 300_000_000)
    declare(good(root / "entities.docx", 1), "word/document.xml", BOMB, (b"<w:t>", b"<w:t>&a9;"))
    (root / "half.json").write_text('[{"fact": "cut o')
    (root / "photo.csv").write_bytes(png())
    return {
        "cut.docx": "cut off or damaged",
        "locked.xlsx": "encrypted with a password",
        "locked.pdf": "encrypted with a password",
        "zero.pptx": "is empty",
        "pdf-inside.docx": "holds a PDF, not a Word document",
        "bomb.xlsx": "ZIP bomb",
        "big.csv": "too large",
        "entities.docx": "declares a document type",
        "half.json": "is broken JSON",
        "photo.csv": "holds a PNG image",
    }


class Watched(Writer):
    """The real writer; keeps the rows that went through it."""

    def __init__(self, store: Store, collection: str) -> None:
        super().__init__(store, collection)
        self.rows: list[PassageRow] = []

    def write_document(
        self,
        rows: Sequence[PassageRow],
        vectors: NDArray[np.float32],
        sparse: Sequence[Mapping[int, float]] | None,
        ingested_at: str,
    ) -> None:
        super().write_document(rows, vectors, sparse, ingested_at)
        self.rows += rows


def test_sixty_files_ten_of_them_broken(tmp_path: Path) -> None:
    root = tmp_path / "docs"
    root.mkdir()
    suffixes = (".docx", ".pptx", ".xlsx", ".epub", ".pdf", ".csv", ".json", ".jsonl", ".html", ".md")
    for number in range(50):
        good(root / f"good-{number:02}{suffixes[number % len(suffixes)]}", number)
    reasons = spoil(root)
    embedder = ModelPool().add_embedder("starter", StarterEmbedder)
    store = Store(uri=None, data_dir=tmp_path / "store", collection="passages")
    try:
        writer = Watched(store, store.use(embedder.info))
        events = list(ingest([root], writer, embedder, chunk_tokens=220, overlap_tokens=32, max_file_bytes=50_000_000))
        stored = writer.documents()
    finally:
        store.close()
    last = events[-1]
    assert (last["outcome"], last["files"], last["added"], last["failed"], last["not_done"]) == ("finished", 60, 50, 10, 0)
    assert len(stored) == 50
    failed = {
        event["source"]: event["error"] for event in events if event["type"] == "file_finished" and event["outcome"] == "failed"
    }
    assert set(failed) == {f"docs/{name}" for name in reasons}
    for name, reason in reasons.items():
        error = failed[f"docs/{name}"]
        assert error["message"].startswith(f"{name}: ")
        assert reason in error["message"]
        assert error["kind"] == "bad_input"
        assert error["next_step"]
    assert {row.location for row in writer.rows} == {
        None,
        "slide 1",
        "sheet Facts, row 2",
        "row 2",
        "Facts",
        "item 1",
        "line 1",
        "p. 1",
    }
    for number in range(50):
        texts = [row.text for row in writer.rows if Path(row.source).stem == f"good-{number:02}"]
        assert any(f"Fact number {number} is about reranking." in text for text in texts)
