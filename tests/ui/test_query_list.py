from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from bs4 import BeautifulSoup

from rag.trace_rows import QueryRow, order_by
from ui import query_list

ROW = QueryRow("a" * 32, 1_795_000_000.0, "why?", "answered", 2.0, 0.4, False, None, "m", None, None, None, 0.5, 0.5, None, 1.0)
NOW = datetime.fromtimestamp(1_795_000_060, UTC)


def test_every_sort_is_one_that_the_store_knows() -> None:
    for field, descending in query_list.SORTS.values():
        assert order_by(field, descending)


@pytest.mark.parametrize(
    ("matching", "total", "page", "text"),
    [
        (10_000, 10_000, 1, "1–100 of 10,000"),
        (250, 10_000, 3, "201–250 of 250 matching, 10,000 in all"),
        (0, 5, 1, "0 of 5"),
    ],
)
def test_the_count_is_the_true_one(matching: int, total: int, page: int, text: str) -> None:
    assert query_list.page_line(matching, total, page, 100) == text


def test_pages() -> None:
    assert [query_list.page_count(n, 100) for n in (0, 1, 100, 101, 10_000)] == [1, 1, 1, 2, 100]


def test_a_row_links_to_its_query_and_is_escaped() -> None:
    evil = replace(ROW, question="<script>x</script> למה", model='"><img src=x>', outcome="failed", error_stage="search")
    page = BeautifulSoup(query_list.rows_html([evil], NOW, UTC), "html.parser")
    assert not page.select("script, img")
    assert page.select_one("a")["href"] == f"/query?id={'a' * 32}"  # type: ignore[index]
    assert "failed in search" in page.text and "60 s ago" in page.text


def test_stage_bar_is_as_long_as_the_share_of_the_slowest() -> None:
    parts = BeautifulSoup(query_list.stage_bar(ROW, 4.0), "html.parser").select("i")
    widths = [float(str(part["style"]).split("width:")[1].rstrip("%")) for part in parts]
    assert widths == [12.5, 12.5, 25.0]
    empty = replace(ROW, total_seconds=0.0, embed_seconds=None, search_seconds=None, generate_seconds=None)
    assert "no stage ran" in query_list.stage_bar(empty, 0.0)


def test_content_that_was_not_kept_says_so() -> None:
    assert "question not kept" in query_list.rows_html([replace(ROW, question="", content=False)], NOW, UTC)


def test_who_asked_is_said_unless_it_was_a_page() -> None:
    assert query_list.asked_by("otlp:shop") == "by the program shop"
    assert query_list.asked_by("measure") == "by a measurement"
    html = query_list.rows_html([replace(ROW, origin="otlp:<b>shop</b>")], NOW, UTC)
    assert "by the program &lt;b&gt;shop&lt;/b&gt;" in html
    assert "by a page" not in query_list.rows_html([ROW], NOW, UTC)
