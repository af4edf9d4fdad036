"""Word, PowerPoint, Excel and EPUB files made by their libraries: structure, places, tables, Hebrew, and what is left out."""

from __future__ import annotations

import datetime
import socket
from pathlib import Path
from typing import Any

import docx
import openpyxl
import pytest
import xlsxwriter
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
from pptx import Presentation
from pptx.chart.data import CategoryChartData
from pptx.enum.chart import XL_CHART_TYPE
from pptx.util import Inches

from rag.loaders import LoadedDocument, load
from tests.rag.document_makers import add_table, make_docx, make_epub, make_pptx, make_xlsx, rewrite

LIMIT = 5_000_000


def places(document: LoadedDocument) -> dict[str | None, str]:
    found = {section.location: section.text for section in document.sections}
    assert len(found) == len(document.sections)
    return found


def opened(path: Path) -> LoadedDocument:
    return load(path, LIMIT)


# 1) Word


def test_word_headings_lists_and_tables(tmp_path: Path) -> None:
    document = docx.Document()
    document.add_paragraph("Maintenance handbook", "Title")
    document.add_paragraph("Before any heading.")
    document.add_heading("Windows", 1)
    document.add_paragraph("Four hours on Tuesdays.")
    document.add_heading("Prices", 2)
    table = document.add_table(rows=1, cols=3)
    for row in (("Product", "Price", "Note"), ("Screws", "12", ""), ("Nails", "7", "steel\nonly")):
        cells = table.rows[0].cells if row[0] == "Product" else table.add_row().cells
        for cell, text in zip(cells, row, strict=True):
            cell.text = text
    document.add_paragraph("After the table.")
    document.add_heading("Empty at the end", 1)
    document.save(str(tmp_path / "book.docx"))
    loaded = opened(tmp_path / "book.docx")
    assert (loaded.title, loaded.language) == ("Maintenance handbook", "en")
    assert places(loaded) == {
        None: "Before any heading.",
        "Windows": "Four hours on Tuesdays.",
        "Windows › Prices": "Product: Screws; Price: 12\nProduct: Nails; Price: 7; Note: steel only\n\nAfter the table.",
        "Empty at the end": "Empty at the end",
    }
    assert {section.kind for section in loaded.sections} == {"docx"}
    assert opened(make_docx(tmp_path / "plain.docx", "Some words.", title="From the properties")).title == "From the properties"


def test_word_text_that_python_docx_alone_would_miss(tmp_path: Path) -> None:
    document = docx.Document()
    words = nsdecls("w")

    def add(xml: str) -> None:
        document.element.body.insert(len(document.element.body) - 1, parse_xml(xml))

    def run(text: str) -> str:
        return f"<w:r><w:t>{text}</w:t></w:r>"

    add(f"<w:sdt {words}><w:sdtContent><w:p>{run('in a content control')}</w:p></w:sdtContent></w:sdt>")
    add(
        f'<w:p {words}><w:ins w:id="1" w:author="a">{run("inserted")}</w:ins><w:del w:id="2" w:author="a"><w:r><w:delText>gone</w:delText></w:r></w:del></w:p>'
    )
    add(f'<w:p {words}><w:pPr><w:pStyle w:val="TOC1"/></w:pPr>{run("contents line")}</w:p>')
    add(
        f"<w:p {words}><w:r><w:t>one</w:t><w:tab/><w:t>two</w:t><w:br/><w:t>three</w:t><w:instrText>FIELD</w:instrText></w:r></w:p>"
    )
    toc = f'<w:style {words} w:type="paragraph" w:styleId="TOC1"><w:name w:val="toc 1"/></w:style>'
    document.styles.element.append(parse_xml(toc))
    document.save(str(tmp_path / "odd.docx"))
    text = places(opened(tmp_path / "odd.docx"))[None]
    assert text == "in a content control\n\ninserted\n\none\ttwo\nthree"


def test_word_numbers_that_are_in_no_text(tmp_path: Path) -> None:
    """Articles numbered by a heading style, and a list with Hebrew letters."""
    document = docx.Document()
    words = nsdecls("w")
    numbering = document.part.numbering_part.element
    levels = (
        '<w:lvl w:ilvl="0"><w:start w:val="5"/><w:numFmt w:val="decimal"/><w:pStyle w:val="Heading1"/><w:lvlText w:val="Article %1"/></w:lvl>'
        '<w:lvl w:ilvl="1"><w:start w:val="1"/><w:numFmt w:val="upperRoman"/><w:lvlText w:val="%1.%2"/></w:lvl>'
    )
    hebrew = '<w:lvl w:ilvl="0"><w:start w:val="14"/><w:numFmt w:val="hebrew1"/><w:lvlText w:val="%1."/></w:lvl>'
    for number, content in ((90, levels), (91, hebrew)):
        numbering.insert(0, parse_xml(f'<w:abstractNum {words} w:abstractNumId="{number}">{content}</w:abstractNum>'))
        numbering.append(parse_xml(f'<w:num {words} w:numId="{number}"><w:abstractNumId w:val="{number}"/></w:num>'))
    document.styles["Heading 1"].element.get_or_add_pPr().append(parse_xml(f'<w:numPr {words}><w:numId w:val="90"/></w:numPr>'))

    def item(text: str, list_id: int, level: int = 0) -> None:
        properties = document.add_paragraph(text)._p.get_or_add_pPr()
        properties.append(parse_xml(f'<w:numPr {words}><w:ilvl w:val="{level}"/><w:numId w:val="{list_id}"/></w:numPr>'))

    document.add_heading("Scope", 1)
    item("first clause", 90, 1)
    item("second clause", 90, 1)
    document.add_heading("Terms", 1)
    item("third clause", 90, 1)
    for text in ("סעיף", "עוד סעיף", "סעיף אחרון"):
        item(text, 91)
    document.save(str(tmp_path / "law.docx"))
    assert places(opened(tmp_path / "law.docx")) == {
        "Article 5 Scope": "5.I first clause\n5.II second clause",
        "Article 6 Terms": "6.I third clause\nיד. סעיף\nטו. עוד סעיף\nטז. סעיף אחרון",
    }


def test_word_merged_cells_and_a_table_without_header(tmp_path: Path) -> None:
    document = docx.Document()
    table = document.add_table(rows=3, cols=3)
    for index, text in enumerate(("Region", "Year", "Total", "North", "2024", "17", "", "2025", "19")):
        table.cell(index // 3, index % 3).text = text
    table.cell(1, 0).merge(table.cell(2, 0))
    document.add_paragraph("between")
    plain = document.add_table(rows=2, cols=2)
    for index, text in enumerate(("Name", "Ada", "Role", "Engineer")):
        plain.cell(index // 2, index % 2).text = text
    plain._tbl.tblPr.find(docx.oxml.ns.qn("w:tblLook")).set(docx.oxml.ns.qn("w:firstRow"), "0")
    document.save(str(tmp_path / "t.docx"))
    assert places(opened(tmp_path / "t.docx"))[None] == (
        "Region: North; Year: 2024; Total: 17\nRegion: North; Year: 2025; Total: 19\n\nbetween\n\nName | Ada\nRole | Engineer"
    )


def test_word_in_hebrew(tmp_path: Path) -> None:
    document = docx.Document()
    document.add_heading("זמני תגובה", 1)
    document.add_paragraph("מודל הדירוג מסדר את הקטעים מחדש לפי התאמה לשאלה.")
    table = document.add_table(rows=2, cols=2)
    for index, text in enumerate(("מוצר", "מחיר", "ברגים", "12 ₪")):
        table.cell(index // 2, index % 2).text = text
    document.save(str(tmp_path / "עברית.docx"))
    loaded = opened(tmp_path / "עברית.docx")
    assert (loaded.title, loaded.language) == ("עברית", "he")
    assert places(loaded) == {"זמני תגובה": "מודל הדירוג מסדר את הקטעים מחדש לפי התאמה לשאלה.\n\nמוצר: ברגים; מחיר: 12 ₪"}


def test_macros_are_ignored_and_references_outside_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_docx(tmp_path / "macro.docx", "Only the text counts.")
    relation = b'<Relationship Id="rId99" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/attachedTemplate" Target="http://127.0.0.1:9/t.dotm" TargetMode="External"/></Relationships>'

    def change(name: str, content: bytes) -> bytes:
        content = content.replace(
            b"openxmlformats-officedocument.wordprocessingml.document.main", b"ms-word.document.macroEnabled.main"
        )
        return content.replace(b"</Relationships>", relation) if name == "word/_rels/document.xml.rels" else content

    rewrite(path, change, {"word/vbaProject.bin": b"\xd0\xcf\x11\xe0 Sub AutoOpen()"})

    def refuse(*_: Any) -> None:
        raise AssertionError("a loader opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert places(opened(path)) == {None: "Only the text counts."}


# 2) PowerPoint


def test_slides_with_tables_groups_charts_and_notes(tmp_path: Path) -> None:
    presentation = Presentation()
    presentation.core_properties.title = ""
    first = presentation.slides.add_slide(presentation.slide_layouts[1])
    first.shapes.title.text = "Latency review"
    first.placeholders[1].text = "p95 fell by half"
    first.notes_slide.notes_text_frame.text = "Mention the tunnel."
    presentation.slides.add_slide(presentation.slide_layouts[6])  # nothing on it
    third = presentation.slides.add_slide(presentation.slide_layouts[5])
    third.shapes.title.text = "מחירים"
    add_table(third, [["מוצר", "מחיר"], ["ברגים", "12"]])
    group = third.shapes.add_group_shape()
    group.shapes.add_textbox(Inches(1), Inches(1), Inches(2), Inches(1)).text_frame.text = "בתוך קבוצה"
    chart = CategoryChartData()
    chart.categories = ["North", "South"]
    chart.add_series("2024", (17, 4.5))
    chart.add_series("2025", (19, None))
    third.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, Inches(1), Inches(3), Inches(4), Inches(3), chart)
    presentation.save(str(tmp_path / "deck.pptx"))
    loaded = opened(tmp_path / "deck.pptx")
    assert loaded.title == "Latency review"
    assert places(loaded) == {
        "slide 1": "Latency review\n\np95 fell by half\n\nNotes: Mention the tunnel.",
        "slide 3": "מחירים\n\nמוצר: ברגים; מחיר: 12\n\nבתוך קבוצה\n\nNorth; 2024: 17; 2025: 19\nSouth; 2024: 4.5",
    }
    assert opened(make_pptx(tmp_path / "t.pptx", ("One", "two"), title="The deck")).title == "The deck"


# 3) Excel


def test_sheets_keep_names_rows_and_columns(tmp_path: Path) -> None:
    rows = [["Product", "Price", "Note"], *([f"Part {n}", n, "in stock" if n % 2 else ""] for n in range(2, 81))]
    path = make_xlsx(
        tmp_path / "list.xlsx", {"Prices": rows, "ריק": [], "עובדים": [["שם", "עיר"], ["דנה", "חיפה"], ["יוסי", "אילת"]]}
    )
    loaded = opened(path)
    sections = loaded.sections
    assert sections[0].text.startswith("Product: Part 2; Price: 2\nProduct: Part 3; Price: 3; Note: in stock\n")
    assert (sections[-1].location, sections[-1].text) == ("sheet עובדים, rows 2–3", "שם: דנה; עיר: חיפה\nשם: יוסי; עיר: אילת")
    prices = [section for section in sections if (section.location or "").startswith("sheet Prices")]
    assert len(prices) > 2
    spans = [tuple(map(int, str(section.location).rsplit(" ", 1)[1].split("–"))) for section in prices]
    assert [number for first, last in spans for number in range(first, last + 1)] == list(range(2, 81))
    for section, (first, last) in zip(prices, spans, strict=True):
        assert [text.split(";")[0] for text in section.text.split("\n")] == [f"Product: Part {n}" for n in range(first, last + 1)]


def test_cells_read_as_people_read_them(tmp_path: Path) -> None:
    with xlsxwriter.Workbook(str(tmp_path / "cells.xlsx")) as workbook:
        workbook.set_properties({"title": "Kinds of cells"})
        sheet = workbook.add_worksheet("Kinds")
        sheet.write_row(0, 0, ["Name", "Value"])
        sheet.write(1, 0, "sum")
        sheet.write_formula(1, 1, "=40+2", None, 42)
        sheet.write(2, 0, "day")
        sheet.write_datetime(2, 1, datetime.datetime(2026, 3, 1), workbook.add_format({"num_format": "yyyy-mm-dd"}))
        sheet.write(3, 0, "moment")
        sheet.write_datetime(3, 1, datetime.datetime(2026, 3, 1, 14, 30), workbook.add_format({"num_format": "yyyy-mm-dd hh:mm"}))
        sheet.write(4, 0, "rate")
        sheet.write_number(4, 1, 0.175, workbook.add_format({"num_format": "0.0%"}))
        sheet.write_row(5, 0, ["dust", 0.1 + 0.2])
        sheet.write_row(6, 0, ["yes", True])
    loaded = opened(tmp_path / "cells.xlsx")
    assert loaded.title == "Kinds of cells"
    values = [text.split("Value: ")[1] for text in loaded.sections[0].text.split("\n")]
    assert values == ["42", "2026-03-01", "2026-03-01 14:30:00", "17.5%", "0.3", "TRUE"]


def test_formulas_that_were_never_computed_are_told(tmp_path: Path) -> None:
    workbook = openpyxl.Workbook()
    for row in (["Name", "Value"], ["known", 5], ["sum", "=B2*2"], ["twice", '=B3&"x"']):
        workbook.active.append(row)
    workbook.save(tmp_path / "f.xlsx")
    loaded = opened(tmp_path / "f.xlsx")
    assert loaded.sections[0].text == "Name: known; Value: 5\nName: sum\nName: twice"
    assert loaded.notes == ("2 formulas have no stored value and were left out; save the workbook in its own program",)


def test_titles_gaps_and_a_second_table_in_a_sheet(tmp_path: Path) -> None:
    rows = [
        ["Price list 2026"],
        [],
        ["Product", "Price"],
        ["Screws", 12],
        [],
        ["Nails", 7],
        [],
        ["Region", 2024, 2025],
        ["North", 17, 19],
    ]
    assert places(opened(make_xlsx(tmp_path / "gaps.xlsx", {"A": rows}))) == {
        "sheet A, rows 1–9": "Price list 2026\nProduct: Screws; Price: 12\nProduct: Nails; Price: 7\nRegion: North; 2024: 17; 2025: 19"
    }


def test_a_sheet_that_misstates_its_size_is_read_whole(tmp_path: Path) -> None:
    path = make_xlsx(tmp_path / "size.xlsx", {"A": [["Name", "Value"], ["a", 1], ["b", 2]]})
    rewrite(path, lambda name, content: content.replace(b'ref="A1:B3"', b'ref="A1:A2"'))
    assert places(opened(path)) == {"sheet A, rows 2–3": "Name: a; Value: 1\nName: b; Value: 2"}


def test_a_forged_row_number_and_a_cell_far_to_the_right_end(tmp_path: Path) -> None:
    path = make_xlsx(tmp_path / "far.xlsx", {"A": [["Name", "Value"], ["a", 1]]})
    far = b'<row r="99999999999"><c r="ZZZ99999999999"><v>5</v></c></row></sheetData>'
    rewrite(path, lambda name, content: content.replace(b"</sheetData>", far))
    assert places(opened(path)) == {"sheet A, row 2": "Name: a; Value: 1"}


# 4) EPUB


def test_book_chapters_and_tables(tmp_path: Path) -> None:
    chapters = {
        "nav.xhtml": "<nav><ol><li>Contents</li></ol></nav>",
        "c1.xhtml": "<h1>The tunnel</h1><p>It adds a round trip.</p><h2>Cost</h2><table><tr><th>batch</th><th>seconds</th></tr><tr><td>8</td><td>0.11</td></tr></table>",
        "c%202.xhtml": "<p>A page without a heading.</p>",
        "he.xhtml": '<h1 dir="rtl">פרק שלישי</h1><p dir="rtl">הזיכרון של המאיץ נשאר תפוס.</p>',
    }
    path = make_epub(
        tmp_path / "book.epub", {name.replace("%20", " "): body for name, body in chapters.items()}, title="The book"
    )
    assert places(opened(path)) == {
        "The tunnel": "It adds a round trip.",
        "The tunnel › Cost": "batch: 8 | seconds: 0.11",
        "part 3": "A page without a heading.",
        "פרק שלישי": "הזיכרון של המאיץ נשאר תפוס.",
    }
    assert opened(path).title == "The book"


def test_a_book_with_a_missing_chapter_and_one_with_a_lock(tmp_path: Path) -> None:
    path = make_epub(tmp_path / "hole.epub", {"a.xhtml": "<p>here it is</p>", "b.xhtml": "<p>gone</p>"})
    rewrite(path, lambda name, content: content.replace(b'href="b.xhtml"', b'href="../../c.xhtml"'))
    assert opened(path).notes == ("chapters that are missing from the file: ../c.xhtml",)
    fonts = '<encryption><EncryptionMethod Algorithm="http://www.idpf.org/2008/embedding"/></encryption>'
    assert opened(
        make_epub(tmp_path / "fonts.epub", {"a.xhtml": "<p>open text</p>"}, **{"META-INF__encryption.xml": fonts})
    ).sections
