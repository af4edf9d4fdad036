"""200 files of all kinds, 20 of them broken: the others are in, each broken one is named with its reason, memory stays bounded.

Runs in a process of its own, whose peak of memory is the system's own figure.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fpdf import FPDF

from tests.rag.document_makers import make_docx, make_epub, make_pptx, make_xlsx, zeros

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"
LIMIT_BYTES = 20_000_000
CHILD = """
import json, resource, sys
from pathlib import Path
from rag.ingest import ingest
from tests.rag.test_ingest import FakeEmbedder, FakeStore

def run(folder, store):
    return list(ingest([Path(folder)], store, FakeEmbedder(), chunk_tokens=120, overlap_tokens=10, max_file_bytes=int(sys.argv[3])))

run(sys.argv[2], FakeStore())  # imports of every format's library count before
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store = FakeStore()
events = run(sys.argv[1], store)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
files = [event for event in events if event["type"] == "file_finished"]
stored = sorted({row.source for row in store.rows.values()})
print(json.dumps({"summary": events[-1], "files": files, "stored": stored, "grown_kib": after - before}))
"""


def make_pdf(path: Path, text: str, password: str | None = None) -> Path:
    pdf = FPDF()
    pdf.set_font("helvetica", size=12)
    if password is not None:
        pdf.set_encryption(owner_password="owner", user_password=password)
    pdf.add_page()
    pdf.multi_cell(0, text=text)
    pdf.output(str(path))
    return path


def good(folder: Path, number: int) -> Path:
    text = f"Pump {number} opens its valve at {number + 100} bar. " * 30
    name = f"{number:03}"
    makers = (
        lambda: write(folder / f"{name}.txt", text),
        lambda: write(folder / f"{name}.md", f"# Pump {number}\n\n{text}"),
        lambda: write(folder / f"{name}.html", f"<h1>Pump {number}</h1><p>{text}</p>"),
        lambda: make_docx(folder / f"{name}.docx", text),
        lambda: make_pdf(folder / f"{name}.pdf", text),
        lambda: make_pptx(folder / f"{name}.pptx", (f"Pump {number}", text)),
        lambda: make_xlsx(folder / f"{name}.xlsx", {"Pumps": [["Pump", "Bar"], [f"pump {number}", f"{number + 100} bar"]]}),
        lambda: make_epub(folder / f"{name}.epub", {"a.xhtml": f"<p>{text}</p>"}),
        lambda: write(folder / f"{name}.csv", f"pump,bar\nnumber {number},{number + 100}\n"),
        lambda: write(folder / f"{name}.json", json.dumps({"pump": number, "text": text})),
    )
    return makers[number % len(makers)]()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def sparse(path: Path, size_bytes: int) -> Path:
    with path.open("wb") as handle:
        handle.truncate(size_bytes)
    return path


def spoil(folder: Path) -> dict[str, str]:
    """Twenty broken files: name to a part of the reason that must be told."""
    cut(make_docx(folder / "cut.docx", "words " * 500))
    cut(make_pptx(folder / "cut.pptx", ("Slide", "words " * 500)))
    cut(make_xlsx(folder / "cut.xlsx", {"S": [[f"cell {n}"] for n in range(500)]}))
    cut(make_epub(folder / "cut.epub", {"a.xhtml": "<p>words</p>" * 200}))
    (folder / "cut.pdf").write_bytes(make_pdf(folder / "cut.pdf", "words " * 300).read_bytes()[:200])
    make_pdf(folder / "locked.pdf", "secret", "user")
    shutil.copy(DATA / "encrypted.xlsx", folder / "locked.xlsx")
    shutil.copy(DATA / "encrypted.xlsx", folder / "locked.docx")
    for name in ("zero.txt", "zero.pdf", "zero.docx"):
        (folder / name).touch()
    shutil.copy(make_docx(folder / "y.docx", "words"), folder / "wrong.pdf")
    (folder / "y.docx").rename(folder / "wrong.xlsx")
    shutil.copy(folder / "locked.pdf", folder / "wrong.epub")
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 10)
    (folder / "blank.md").write_text(" \n\n\t\n")
    (folder / "bad.json").write_text('{"pump": [1, 2')
    zeros(make_docx(folder / "bomb.docx", "a bomb"), 200_000_000, "word/header9.xml")
    with zipfile.ZipFile(folder / "bomb.epub", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/epub+zip")
    zeros(folder / "bomb.epub", 200_000_000, "OEBPS/a.xhtml")
    sparse(folder / "huge.txt", 300_000_000)
    return {
        **dict.fromkeys(("cut.docx", "cut.pptx", "cut.xlsx", "cut.epub"), "cut off or damaged"),
        "cut.pdf": "",
        **dict.fromkeys(("locked.pdf", "locked.xlsx", "locked.docx"), "encrypted"),
        **dict.fromkeys(("zero.txt", "zero.pdf", "zero.docx"), "empty"),
        **dict.fromkeys(("wrong.pdf", "wrong.xlsx", "wrong.epub"), "holds a"),
        "binary.txt": "not a text file",
        "blank.md": "no words",
        "bad.json": "broken JSON",
        **dict.fromkeys(("bomb.docx", "bomb.epub"), ""),
        "huge.txt": "too large",
    }


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, small = tmp_path_factory.mktemp("mixed"), tmp_path_factory.mktemp("small")
    for number in range(10):
        good(small, number)
    for number in range(180):
        good(folder, number)
    broken = spoil(folder)
    assert len(broken) == 20
    assert len(list(folder.iterdir())) == 200
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(small), str(LIMIT_BYTES)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {**json.loads(done.stdout.splitlines()[-1]), "broken": broken}


def test_the_180_are_in_and_nothing_of_the_20(result: dict[str, Any]) -> None:
    summary, broken = result["summary"], result["broken"]
    assert (summary["outcome"], summary["files"], summary["added"], summary["failed"]) == ("finished", 200, 180, 20)
    assert len(result["stored"]) == 180
    assert not {Path(source).name for source in result["stored"]} & set(broken)


def test_the_20_are_named_with_their_reasons(result: dict[str, Any]) -> None:
    told = {Path(event["source"]).name: event["error"] for event in result["files"] if event["outcome"] == "failed"}
    assert set(told) == set(result["broken"])
    for name, reason in result["broken"].items():
        assert reason in told[name]["message"], told[name]
        assert name in told[name]["message"]
        assert told[name]["next_step"]
        assert "Traceback" not in told[name]["message"]


def test_memory_stays_bounded(result: dict[str, Any]) -> None:
    """The bombs hold 200 MB each and the text 300 MB: none of it may ever have been in memory."""
    assert result["grown_kib"] < 150_000
