"""Real files, odd ones included: what a folder gives, what a file says, and why a file is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fpdf import FPDF

from rag.errors import RagError
from rag.loaders import LoadedDocument, LoadError, find, load
from rag.outlines import html_outline, markdown_outline

DATA = Path(__file__).parents[1] / "data" / "documents"
LIMIT = 5_000_000


def loaded(path: Path, content: bytes | str) -> LoadedDocument:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load(path, LIMIT)


def refusal(path: Path, limit: int = LIMIT) -> RagError:
    with pytest.raises(LoadError) as caught:
        load(path, limit)
    assert caught.value.kind == "bad_input"
    assert caught.value.message.startswith(path.name)
    assert caught.value.next_step
    return caught.value


def make_pdf(path: Path, *pages: str, title: str | None = None, password: str | None = None) -> Path:
    pdf = FPDF()
    pdf.set_font("helvetica", size=12)
    if title:
        pdf.set_title(title)
    if password is not None:
        pdf.set_encryption(owner_password="owner", user_password=password)
    for text in pages:
        pdf.add_page()
        if text:
            pdf.multi_cell(0, text=text)
        else:
            pdf.rect(10, 10, 50, 50)
    pdf.output(str(path))
    return path


# 1) find


def test_a_folder_gives_its_supported_files_sorted(tmp_path: Path) -> None:
    root = tmp_path / "docs"
    for name in (
        "b.md",
        "a.TXT",
        "sub/c.html",
        "sub.d/d.pdf",
        ".hidden.md",
        ".git/x.md",
        "~$c.docx",
        "photo.png",
        "other.png",
        "Makefile",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    found = find([root])
    assert [file.source for file in found.files] == ["docs/a.TXT", "docs/b.md", "docs/sub.d/d.pdf", "docs/sub/c.html"]
    assert found.refused == ()
    assert {item.reason: (item.count, item.example) for item in found.skipped} == {
        "pictures need text recognition, and ocr.base_url is not set": (2, "docs/other.png"),
        "files without a suffix are not supported": (1, "docs/Makefile"),
    }


def test_links_neither_loop_nor_double(tmp_path: Path) -> None:
    root, outside = tmp_path / "docs", tmp_path / "outside"
    for folder in (root / "sub", outside):
        folder.mkdir(parents=True)
    (root / "sub" / "z.md").write_text("z")
    (outside / "o.md").write_text("o")
    (root / "sub" / "loop").symlink_to(root, target_is_directory=True)
    (root / "self").symlink_to(root / "self")
    (root / "a.md").symlink_to(root / "sub" / "z.md")
    (root / "elsewhere").symlink_to(outside, target_is_directory=True)
    (root / "gone.md").symlink_to(tmp_path / "gone.md")
    found = find([root, root / "sub" / "z.md"])
    assert [file.source for file in found.files] == ["docs/elsewhere/o.md", "docs/sub/z.md"]
    assert ("a link that leads nowhere", 1) in [(item.reason, item.count) for item in found.skipped]


def test_paths_that_were_asked_for_and_are_not_there_are_errors(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"x")
    (tmp_path / "note.md").write_text("x")
    found = find([tmp_path / "nothing", tmp_path / "photo.png", tmp_path / "note.md"])
    assert [file.source for file in found.files] == ["note.md"]
    assert [problem.message for problem in found.refused] == [
        f"{tmp_path}/nothing: does not exist",
        "photo.png: pictures need text recognition, and ocr.base_url is not set",
    ]
    assert all(problem.next_step for problem in found.refused)


def test_a_folder_named_like_a_file_is_walked_and_an_empty_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "docs" / "x.md").mkdir(parents=True)
    (tmp_path / "docs" / "x.md" / "real.md").write_text("x")
    (tmp_path / "empty").mkdir()
    found = find([tmp_path / "docs", tmp_path / "empty"])
    assert [file.source for file in found.files] == ["docs/x.md/real.md"]
    assert [item.reason for item in found.skipped] == ["an empty folder"]
    assert "not a regular file" in refusal(tmp_path / "docs" / "x.md").message


def test_pipes_and_odd_names(tmp_path: Path) -> None:
    root = tmp_path / "docs"
    root.mkdir()
    os.mkfifo(root / "pipe.txt")
    odd = Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.md"))
    odd.write_text("A name that is not UTF-8 is shown in a way that can be stored.")
    found = find([root])
    assert [item.reason for item in found.skipped] == ["not a regular file"]
    assert [file.source for file in found.files] == ["docs/caf?.md"]
    assert load(found.files[0].path, LIMIT).title == "caf?"
    assert "not a regular file" in refusal(root / "pipe.txt").message


# 2) text


def test_encodings(tmp_path: Path) -> None:
    text = "Größe, naïve café, שלום"
    for name, content in (("a", text.encode()), ("b", text.encode("utf-8-sig")), ("c", text.encode("utf-16"))):
        document = loaded(tmp_path / f"{name}.txt", content)
        assert (document.sections[0].text, document.notes, document.title) == (text, (), name)
    latin = load(DATA / "latin1.txt", LIMIT)
    assert "Größe" in latin.sections[0].text
    assert latin.language == "de"
    assert "Windows-1252" in latin.notes[0]
    assert "Latin-1" in loaded(tmp_path / "d.txt", "caf\xe9 \x81 word".encode("latin-1")).notes[0]


def test_a_damaged_byte_does_not_turn_utf8_into_another_encoding(tmp_path: Path) -> None:
    document = loaded(tmp_path / "a.txt", "מודל הדירוג מסדר את הקטעים ".encode() + b"\xff" + " מחדש לפי התאמה".encode())
    assert "מחדש לפי התאמה" in document.sections[0].text
    assert document.notes == ("1 bytes were no UTF-8 and were replaced",)
    assert document.language == "he"


def test_newlines_and_characters_that_break_words(tmp_path: Path) -> None:
    document = loaded(tmp_path / "a.txt", "one\r\ntwo\rla\u00adtency\fpage\x1b[0m")
    assert document.sections[0].text == "one\ntwo\nlatency\npage[0m"
    assert document.language is None
    assert loaded(tmp_path / "b.txt", "x y z q " * 500).language is None


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("nul.txt", b"text\0with NUL", "not a text file"),
        ("image.txt", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "not a text file"),
        ("dense.md", bytes(range(1, 256)) * 9, "not a text file"),
        ("utf32.txt", "text".encode("utf-32"), "not a text file"),
        ("really.txt", b"%PDF-1.7 and so on", "not a text file"),
        ("empty.md", b"", "is empty"),
        ("blank.txt", b" \n\t\n", "holds no words"),
        ("rule.md", b"---\n***\n", "holds no words"),
        ("scripted.html", b"<html><script>render()</script></html>", "holds no words"),
        ("table.ods", b"a,b", ".ods files are not supported"),
        ("empty.pdf", b"%PDF", "is a broken PDF"),
    ],
)
def test_refused_with_the_cause(tmp_path: Path, name: str, content: bytes, cause: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert cause in refusal(tmp_path / name).message


def test_too_large_names_the_limit_and_the_setting(tmp_path: Path) -> None:
    (tmp_path / "big.txt").write_text("word " * 1000)
    problem = refusal(tmp_path / "big.txt", limit=4999)
    assert "5,000 bytes" in problem.message
    assert "4,999" in problem.message
    assert "ingest.max_file_bytes" in problem.next_step
    assert load(tmp_path / "big.txt", 5000).sections
    assert "does not exist" in refusal(tmp_path / "gone.txt").message


# 3) markdown


def test_hebrew_markdown() -> None:
    document = load(DATA / "hebrew.md", LIMIT)
    assert document.title == "מדריך לאחזור מסמכים"
    assert document.language == "he"
    assert [section.location for section in document.sections] == [None, "זמני תגובה", "זמני תגובה › שרת גרפי"]
    assert document.sections[0].text.startswith("מערכת אחזור")
    assert {section.kind for section in document.sections} == {"markdown"}


def test_markdown_headings_and_what_only_looks_like_one() -> None:
    document = load(DATA / "weird.md", LIMIT)
    assert document.title == "The *guide*"
    by_location = {section.location: section.text for section in document.sections}
    assert list(by_location) == [None, "Setext heading", "Links to the docs", "Empty at the end"]
    assert document.sections[0].text.startswith("Intro")
    assert "# not a heading" in document.sections[1].text
    assert "A rule above, no heading." in by_location["Setext heading"]
    assert "#hashtag is no heading" in by_location["Links to the docs"]
    assert by_location["Empty at the end"] == "Empty at the end"  # its words are nowhere else


@pytest.mark.parametrize(
    ("text", "title", "sections"),
    [
        ("---\ntitle: 'From front'\n---\nBody", "From front", [((), "Body")]),
        ("---\nnot yaml here\n---\nBody", None, [((), "---"), (("not yaml here",), "Body")]),
        ("---\ntitle: open\nBody", None, [((), "---\ntitle: open\nBody")]),
        ("## Only two\ntext", None, [(("Only two",), "text")]),
        ("# A\n## B\ntext", "A", [(("A", "B"), "text")]),
        ("# A\n# B\n### C\n## D\nd", "A", [(("A",), "A"), (("B", "C"), "C"), (("B", "D"), "d")]),
        ("- item\n---\ntext", None, [((), "- item\n---\ntext")]),
        ("```\ncode\n```\n---\ntext", None, [((), "```\ncode\n```\n---\ntext")]),
        ("Title\n===\ntext", "Title", [(("Title",), "text")]),
        ("#\ntext", None, [((), "#\ntext")]),
        ("# C# ##\ntext", "C#", [(("C#",), "text")]),
        ("# " + "long " * 100 + "\ntext", None, [((), "# " + "long " * 100 + "\ntext")]),
    ],
)
def test_markdown_outlines(text: str, title: str | None, sections: list[tuple[tuple[str, ...], str]]) -> None:
    outline = markdown_outline(text)
    assert (outline.title, list(outline.sections)) == (title, sections)


# 4) HTML


def test_html_keeps_the_main_text() -> None:
    document = load(DATA / "page.html", LIMIT)
    assert document.title == "Reranker guide | Example site"
    assert [section.location for section in document.sections] == ["Reranker guide", "Reranker guide › Batch size"]
    first, second = (section.text for section in document.sections)
    assert first == "A reranker reads the question and a passage together & gives one score."
    assert second.split("\n")[:2] == ["Larger batches", "raise throughput."]
    assert "eight\nsixteen" in second
    assert "batch | seconds\n8 | 0.11" in second
    assert "line one\n    line two" in second
    everything = first + second
    for unwanted in ("tracking", "color", "Navigation", "banner", "Imprint", "comment", "Turn scripts on"):
        assert unwanted not in everything


def test_html_in_a_declared_encoding() -> None:
    document = load(DATA / "hebrew-1255.html", LIMIT)
    assert (document.title, document.sections[0].text) == ("שלום", "מודל הדירוג מסדר את הקטעים מחדש")
    assert document.notes == ()


def test_html_that_is_broken_or_deep() -> None:
    assert html_outline("<title></title><h1>Name</h1><p>one<p>two<div>three").title == "Name"
    assert html_outline("<head><p>text in an open head").sections == (((), "text in an open head"),)
    deep = html_outline("<div>" * 5000 + "core" + "</div>" * 10)
    assert deep.sections == (((), "core"),)
    assert html_outline("just text, 1 < 2").sections == (((), "just text, 1 < 2"),)


# 5) PDF


def test_pdf_page_by_page(tmp_path: Path) -> None:
    path = make_pdf(
        tmp_path / "two.pdf", "The first page is about latency.", "The second page is about throughput.", title="Report"
    )
    document = load(path, LIMIT)
    assert (document.title, document.language) == ("Report", "en")
    assert [(section.location, section.text, section.kind) for section in document.sections] == [
        ("p. 1", "The first page is about latency.", "pdf"),
        ("p. 2", "The second page is about throughput.", "pdf"),
    ]


def test_pdf_with_a_page_of_images(tmp_path: Path) -> None:
    document = load(make_pdf(tmp_path / "mixed.pdf", "", "Only the second page has a text.", title="draft.docx"), LIMIT)
    assert [section.location for section in document.sections] == ["p. 2"]
    assert document.title == "mixed"
    assert document.notes == ("1 of 2 pages have no text (images need text recognition: ocr.base_url)",)


def test_pdfs_that_are_refused(tmp_path: Path) -> None:
    assert "encrypted" in refusal(make_pdf(tmp_path / "locked.pdf", "secret", password="user")).message
    assert load(make_pdf(tmp_path / "guarded.pdf", "open to readers", password=""), LIMIT).sections[0].text == "open to readers"
    images = refusal(make_pdf(tmp_path / "scan.pdf", "", ""))
    assert "no text on its 2 pages" in images.message
    assert "ocrmypdf" in images.next_step
    assert "broken PDF" in refusal(DATA / "broken.pdf").message
    whole = make_pdf(tmp_path / "whole.pdf", "some words").read_bytes()
    (tmp_path / "cut.pdf").write_bytes(whole[: len(whole) // 3])
    assert refusal(tmp_path / "cut.pdf").message
