"""CSV, JSON and JSON Lines: encodings, delimiters, rows with their columns' names, paths, and what is broken in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rag.errors import RagError
from rag.loaders import LoadedDocument, load
from rag.loaders.delimited import find_delimiter
from rag.loaders.document import MAX_TEXT_CHARS, Section, collect
from rag.loaders.rows import named_lines

LIMIT = 50_000_000
HEBREW = "שם,מחיר,הערה\nברגים,12,מתאים לעץ בלבד\nמסמרים,7,עשויים פלדה\n"


def loaded(path: Path, content: bytes | str) -> LoadedDocument:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load(path, LIMIT)


def places(document: LoadedDocument) -> list[tuple[str | None, str]]:
    return [(section.location, section.text) for section in document.sections]


# 1) CSV


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_every_row_has_its_columns_names(tmp_path: Path, delimiter: str) -> None:
    rows = [
        ["Product", "Price", "Note"],
        ["Screws", "1.200,50", f'"for wood{delimiter} ""hard"""'],
        ["Nails", "7", '"two\nlines"'],
        ["", "", ""],
        ["Glue", "3", ""],
    ]
    if delimiter == ",":
        rows[1][1] = "1200.50"
    price = rows[1][1]
    document = loaded(tmp_path / "a.csv", "\r\n".join(delimiter.join(row) for row in rows))
    wood = " ".join(f'for wood{delimiter} "hard"'.split())
    assert places(document) == [
        (
            "rows 2–5",
            f"Product: Screws; Price: {price}; Note: {wood}\nProduct: Nails; Price: 7; Note: two lines\nProduct: Glue; Price: 3",
        )
    ]
    assert document.notes == ()


@pytest.mark.parametrize(
    ("text", "encoding", "noted"),
    [
        (HEBREW, "utf-8", None),
        (HEBREW, "utf-8-sig", None),
        (HEBREW, "utf-16", None),
        (HEBREW, "cp1255", "Windows-1255 (Hebrew)"),
        ("name,note\nscrews,ברגים\n", "cp1255", "Windows-1255 (Hebrew)"),
        ("Prénom;Ville\nHélène;Besançon\n", "cp1252", "Windows-1252 (Western Europe)"),
        ("Descrição;Preço\nparafusos de aço não inoxidável;12", "cp1252", "Windows-1252 (Western Europe)"),
        ("Имя,Цена\nГвозди,12\nШурупы по дереву,7", "cp1251", "Windows-1251 (Cyrillic)"),
    ],
)
def test_the_encoding_is_found(tmp_path: Path, text: str, encoding: str, noted: str | None) -> None:
    document = loaded(tmp_path / "a.csv", text.encode(encoding))
    separator = ";" if ";" in text else ","
    names, first = (line.split(separator) for line in text.split("\n")[:2])
    expected = "; ".join(f"{name}: {value}" for name, value in zip(names, first, strict=True))
    assert document.sections[0].text.split("\n")[0] == expected
    assert (noted in document.notes[0]) if noted else document.notes == ()


def test_a_long_table_has_places_of_few_rows(tmp_path: Path) -> None:
    document = loaded(tmp_path / "long.csv", "Name,Value\n" + "".join(f"row number {n},{n}\n" for n in range(2, 3001)))
    assert len(document.sections) > 50
    assert document.sections[0].location == "rows 2–28"
    last = document.sections[-1]
    assert str(last.location).endswith("–3000")
    assert last.text.endswith("Name: row number 3000; Value: 3000")
    one = loaded(tmp_path / "one.csv", "Name,Text\na," + "long " * 500 + "\nb,short\n")
    assert [section.location for section in one.sections] == ["row 2", "row 3"]


def test_delimiters_that_are_hard_to_tell() -> None:
    assert find_delimiter("a;b\n1,5;2,5\n3,5;4,5\n") == ";"
    assert find_delimiter("name\tnote\nx\tone, two, three\ny\tfour\n") == "\t"
    assert find_delimiter("just a text\nwithout any\n") == ","
    assert find_delimiter("") == ","


def test_excels_own_word_for_the_delimiter(tmp_path: Path) -> None:
    assert places(loaded(tmp_path / "a.csv", "sep=|\nName|Age\nAda, née Byron|36\n")) == [
        ("row 3", "Name: Ada, née Byron; Age: 36")
    ]


def test_tables_without_a_header_and_lists() -> None:
    def lines(*rows: list[str]) -> list[str]:
        return [text for _, text in named_lines(enumerate(rows, start=1))]

    assert lines(["Ada", "36"], ["Bob", "41"]) == ["Ada | 36", "Bob | 41"]
    assert lines(["Apples"], ["Pears"]) == ["Apples", "Pears"]
    assert lines(["Name", "Age"]) == ["Name | Age"]
    assert lines(["Region", "2024", "2025"], ["North", "1", "2"]) == ["Region: North; 2024: 1; 2025: 2"]
    people = [["Name", "Role"], ["Ada", "engineer"], ["", ""], ["Bob", "plumber"], ["Eve", "cook"]]
    assert lines(*people) == ["Name: Ada; Role: engineer", "Name: Bob; Role: plumber", "Name: Eve; Role: cook"]
    assert lines(["Name", "Role"], ["Ada", "engineer", "extra"]) == ["Name: Ada; Role: engineer; extra"]
    assert lines(["The staff"], [], ["Name", "Role"], ["Ada", "engineer"]) == ["The staff", "Name: Ada; Role: engineer"]
    assert lines() == []


def test_an_open_quote_is_told(tmp_path: Path) -> None:
    with pytest.raises(RagError, match=r"is broken after row 2 .*a quote may be open"):
        loaded(tmp_path / "open.csv", 'Name,Note\na,b\nc,"never closed ' + "x" * 200_000)


def test_the_text_made_of_a_file_is_bounded() -> None:
    piece = Section("x" * (MAX_TEXT_CHARS // 4), None, "rows")
    with pytest.raises(RagError, match=r"big\.csv: holds more than 50,000,000 characters"):
        collect("big.csv", (piece for _ in range(5)))


# 2) JSON


def test_arrays_of_objects_are_rows(tmp_path: Path) -> None:
    people = [{"name": "דנה", "address": {"city": "חיפה"}, "tags": ["new", "vip"], "none": None}, {"name": "Bob", "ok": True}]
    document = loaded(tmp_path / "a.json", json.dumps(people, ensure_ascii=False))
    assert places(document) == [("items 1–2", "name: דנה; address.city: חיפה; tags: new, vip\nname: Bob; ok: true")]


def test_objects_are_paths(tmp_path: Path) -> None:
    value = {
        "title": "Server settings",
        "server": {"ports": [80, 443], "hosts": [{"name": "a", "gpus": 2}, {"name": "b", "gpus": 8}], "owner": "Ops"},
        "empty": {},
        "note": "Change\nwith care.",
    }
    document = loaded(tmp_path / "a.json", json.dumps(value))
    assert document.title == "Server settings"
    assert places(document) == [
        (None, "title: Server settings"),
        ("server", "server.ports: 80, 443"),
        ("server › hosts, items 1–2", "name: a; gpus: 2\nname: b; gpus: 8"),
        ("server", "server.owner: Ops"),
        (None, "note: Change with care."),
    ]


def test_json_lines_under_both_names(tmp_path: Path) -> None:
    text = '{"q": "first"}\n\n{"q": "second"}\n{"q": broken}\n{"q": "cut o'
    assert places(loaded(tmp_path / "a.jsonl", '{"q": "first"}\n\n{"q": "second"}\n')) == [("lines 1–3", "q: first\nq: second")]
    document = loaded(tmp_path / "b.json", text)
    assert places(document) == [("lines 1–3", "q: first\nq: second")]
    assert document.notes == ("lines that are no JSON were left out: 4, 5",)


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("cut.json", '{"a": [1, 2', "is broken JSON"),
        ("deep.json", "[" * 100_000, "nested too deep"),
        ("tower.json", '{"a":' * 500 + "1" + "}" * 500, "nested deeper"),
        ("not.jsonl", "one\ntwo\n{}\n", "is no JSON Lines: line 1"),
        ("nothing.json", "{}", "holds no words"),
        ("binary.json", b"{\0\1", "not a text file"),
    ],
)
def test_broken_json_is_named(tmp_path: Path, name: str, content: str | bytes, cause: str) -> None:
    with pytest.raises(RagError, match=cause) as caught:
        loaded(tmp_path / name, content)
    assert caught.value.message.startswith(name)
    assert caught.value.next_step
