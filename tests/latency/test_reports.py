"""Reports: what is in them, that nothing in them runs, links or leaks, and that they stay small. HTML read back by a parser."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from bs4 import BeautifulSoup

from latency.comparing.compare import compare
from latency.reports import blocks as report_blocks
from latency.reports.blocks import Bars, Piece, Quote, Report, Table, Text, clean, fenced, plain_markdown
from latency.reports.reports import comparison_report, experiment_report, query_report
from latency.types import Evidence, Finding
from rag.types import Interval, Problem, Split
from tests.latency.comparison_cases import gpu, noisy, passages, query
from ui.style import STAGE_COLOURS

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
EVIL_MARKDOWN = "[x](http://evil.example) ![i](https://evil.example/p.png) | <b> `c` www.evil.example **b**\n# h\n- l\n```\n$x$"
SECRET = "sk-abcdefghijklmnop1234567890"
FINDING = Finding(
    "hyde_cost", "HyDE costs 3.00 s (31 %)", "hyde", 3.0, 2.9, "its own time", "measured",
    (Evidence("It took 3.00 s.", 3.0, "s", "span 1"),), "Set hyde to auto.", 0.31,
)  # fmt: skip


def soup(report: Report) -> BeautifulSoup:
    return BeautifulSoup(report.html(), "html.parser")


def outside(html: str) -> list[str]:
    """Every element and attribute that could load or run something."""
    page = BeautifulSoup(html, "html.parser")
    tags = [tag.name for tag in page.select("script, link, iframe, object, embed, img, video, audio, form, a, base, image, use")]
    attributes = [
        name for tag in page.find_all(True) for name in tag.attrs
        if name.startswith("on") or name in ("src", "href", "srcset", "action", "background", "xlink:href", "style")
    ]  # fmt: skip
    styles = " ".join(style.text for style in page.select("style"))
    return tags + attributes + re.findall(r"url\(|@import|expression\(|https?:", styles)


# what is in them


def test_a_query_report_has_everything() -> None:
    case = query(0, cold=["rerank"], readings=gpu(0.9, 1980.0, "sw_power_cap", ["ollama"]))
    report = query_report(case, [FINDING])
    text = soup(report).get_text(" ")
    for part in (
        "Why is it slow?", "answered", "9.53 s", "hyde", "3.00 s", "31 %", "HyDE costs 3.00 s", "Set hyde to auto", "It took 3.00 s.",
        "gpu.0.utilization_ratio", "90 %", "sw_power_cap", "ollama on GPU 0", "Because of HyDE [1].", "Title a", "fused rank", "candidates",
        "abc123", "46.0 tokens/s", "cold", "expected saving 2.90 s",
    ):  # fmt: skip
        assert part in text, part
    markdown = report.markdown()
    for part in (
        "# Why is it slow?",
        "| hyde | 3.00 s | 31 % |",
        r"### 1\. HyDE costs 3.00 s (31 %)",
        "```text\nBecause of HyDE [1].\n```",
    ):
        assert part in markdown, part
    assert "Nothing stands out." in query_report(case, ()).markdown()
    assert "Findings" not in query_report(case).markdown()


def test_a_failed_query_says_where_and_what_to_do() -> None:
    problem = Problem("search", "connection", "refused", "db:19530", "Start Milvus.")
    case = query(0, outcome="failed", error=problem, passages=(), answer="", citations=())
    text = query_report(case).markdown()
    assert "> Failed in search (connection): refused" in text and "Next: Start Milvus." in text
    assert "There is no answer" in text and "nothing was found" in text


def test_a_comparison_report_has_sides_stages_and_causes() -> None:
    a, b = query(0, readings=gpu(0.9, 1980.0)), query(1, {"hyde": 0}, readings=gpu(0.2, 1980.0), passages=passages("bagcde"))
    found = compare([a], [b])
    report = comparison_report(found, (a.answer, b.answer), names=("yesterday", "today"))
    text = soup(report).get_text(" ")
    for part in (
        found.summary,
        "One run each",
        "yesterday",
        "today",
        "−3.00 s",
        "options",
        "gpu.0.utilization_ratio",
        "differs",
        "Rank-biased",
    ):
        assert part in text, part
    assert "| hyde | 3.00 s | – | −3.00 s | 100 % |" in report.markdown()
    assert report.markdown().count("hyde     |") == 2  # a waterfall of characters for each side


def test_a_comparison_of_sets_has_intervals_and_counts() -> None:
    found = compare(noisy(0, 12), noisy(1, 12, rerank=2.0))
    text = comparison_report(found).markdown()
    interval = found.total.verdict.interval
    assert interval is not None and "12 pairs" in text and "slower" in text and "| 12, 12 |" in text
    assert re.search(r"\+\d\.\d\d s to \+\d\.\d\d s", text)


def test_an_experiment_of_any_shape_becomes_tables() -> None:
    result = {
        "verdict": "passed",
        "seconds": 12.5,
        "rows": [{"users": 1, "p95_seconds": 1.5, "stage": {"hyde": 0.2}}, {"users": 16, "p95_seconds": None, "note": "a | b"}],
        "knee": {"users": 8, "why": {"stage": "generate", "queue_ratio": 0.7}},
        "ids": ["x1", "x2"],
        "nothing": [],
    }
    report = experiment_report(experiment(result=result))
    text = report.markdown()
    for part in ("# Load at night", "| verdict | passed |", "| users | p95 seconds | stage.hyde | note |", "| 1 | 1.50 s | 0.2 | – |",
                 "#### why", "| queue ratio | 70 % |", "| ids | x1, x2 |", "| memory bytes | 16.0 GiB |", "2026-11-21 05:00:00 UTC"):  # fmt: skip
        assert part in text, part
    running = experiment_report(experiment(result=None, error="It broke.", state="failed", seconds=None)).markdown()
    assert "> It broke." in running and "Nothing was recorded." in running


def experiment(**changes: object) -> SimpleNamespace:
    values = {
        "id": "e1", "kind": "load", "name": "Load at night", "started_at_unix": 1795237200.0, "seconds": 61.0, "state": "finished",
        "parameters": {"users": [1, 2, 4], "api": "http://127.0.0.1:8502"}, "result": {}, "environment": {"memory_bytes": 2**34}, "error": None,
    }  # fmt: skip
    return SimpleNamespace(**{**values, **changes})


# nothing runs, loads or means what it should not


def hostile() -> Report:
    bad = [passage._replace(title=EVIL, source=EVIL, location=EVIL) for passage in passages("abc")]
    case = query(
        0, question=EVIL, answer=EVIL + "</pre><script>", passages=tuple(bad), device=EVIL, readings=gpu(0.5, 900.0, EVIL, [EVIL]),
        fingerprint={EVIL: EVIL}, timeline=(Interval(EVIL, 0.0, 1.0, EVIL, Split(compute=1.0)),),
    )  # fmt: skip
    finding = replace(FINDING, title=EVIL, change=EVIL, derivation=EVIL, evidence=(Evidence(EVIL, source=EVIL),))
    return query_report(case, [finding])


@pytest.mark.parametrize("kind", ["query", "comparison", "experiment"])
def test_nothing_in_the_html_loads_or_runs(kind: str) -> None:
    a, b = query(0, question=EVIL), query(1, device=EVIL, question=EVIL, fingerprint={"settings": EVIL})
    reports = {
        "query": hostile(),
        "comparison": comparison_report(compare([a], [b]), (a.answer, b.answer), names=(EVIL, EVIL)),
        "experiment": experiment_report(experiment(name=EVIL, result={EVIL: [{EVIL: EVIL}], "x": {EVIL: EVIL}}, error=EVIL)),
    }
    html = reports[kind].html()
    assert outside(html) == []
    assert "default-src 'none'" in html and "prefers-color-scheme:dark" in html and "@media print" in html
    assert "&lt;script&gt;" in html


def test_the_html_is_well_formed() -> None:
    """Every element is closed in order; `meta` and `rect` are the ones that need no end."""
    open_tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag != "meta":
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            assert tag == "rect"

    Reader().feed(hostile().html())
    assert open_tags == []


def test_hostile_names_mean_nothing_in_markdown() -> None:
    text = plain_markdown(EVIL_MARKDOWN)
    assert "\n" not in text and not re.search(r"(?<!\\)[\[\]|`*$]", text)
    assert "<" not in text and "http://" not in text and "https://" not in text and "www." not in text
    for start in ("# x", "- x", "+ x", "1. x", "= x", "> x", "12) x"):
        assert not re.match(r"(#|-|\+|=|>|\d+[.)])\s", plain_markdown(start)), start
    assert plain_markdown("took 1.5 s (31 %) - fine") == "took 1.5 s (31 %) - fine"  # and what is harmless stays readable


def test_a_text_cannot_close_its_block_of_code() -> None:
    block = fenced("a\n```\n````\n# not a heading")
    assert block.startswith("`````text\n") and block.endswith("\n`````")
    report = Report("t", (Quote("```\n<script>\n```"), Table(("a|b",), (("x|y",),)))).markdown()
    assert "````text\n```\n<script>\n```\n````" in report and "| a\\|b |" in report and "| x\\|y |" in report


def test_controls_and_overrides_of_direction_are_taken_out() -> None:
    assert clean("a\x00b\x1b[31m\u202egpj.exe\u2066\r\nשלום\tx\ud800") == "ab[31mgpj.exe\nשלום\tx?"
    hebrew = Report("למה?", (Text("שלום"),))
    assert "שלום" in hebrew.html() and 'dir="auto"' in hebrew.html() and "# למה?" in hebrew.markdown()


# nothing leaks


SECRETS = (
    f"key {SECRET}", "Authorization: Bearer abc.def-ghi123", "postgres://user:hunter2@db:5432/x", "?api_key=hunter22&x=1", "token=abcd1234",
    "hf_AbCdEfGhIjKlMnOpQrStUv",
)  # fmt: skip


@pytest.mark.parametrize("text", SECRETS)
def test_what_looks_like_a_credential_is_masked_everywhere(text: str) -> None:
    report = Report("t", (Text(text), Quote(text), Table(("h",), ((text,),)), Bars((("x", (), text),), 1.0, "1 s")))
    for written in (report.html(), report.markdown()):
        for secret in (SECRET, "abc.def-ghi123", "hunter2", "abcd1234", "AbCdEfGh"):
            assert secret not in written
        assert "•••" in written


def test_secret_keys_of_experiments_are_masked_and_counts_of_tokens_are_not() -> None:
    parameters = {"api_key": "plain-secret", "token": "plain-secret", "max_tokens": 512, "nested": {"password": "plain-secret"},
                  "rows": [{"Authorization": "plain-secret", "tokens": 7}], "headers": [["x-token", "v"]]}  # fmt: skip
    report = experiment_report(experiment(parameters=parameters))
    assert "plain-secret" not in report.html() + report.markdown()
    assert "| max tokens | 512 |" in report.markdown() and "•••" in report.markdown()


def test_without_content_no_word_of_users_or_documents_is_left() -> None:
    words = ("Why is it slow", "Because of HyDE", "Title a", "a.md", "text of", "said by the server", "skip-me")
    bad = Problem("generate", "internal", "said by the server", None, "Look at the log.")
    a, b = query(0, error=bad, outcome="failed"), query(1, question="Why is it slow today?")
    with_content = query_report(a, [FINDING]).markdown()
    assert all(word in with_content for word in ("Why is it slow", "Because of HyDE", "Title a"))
    reports = (
        query_report(a, [FINDING], content=False),
        comparison_report(compare([a], [b]), (a.answer, b.answer), content=False),
        experiment_report(experiment(parameters={"questions": ["skip-me"]}, result={"rows": [{"question": "skip-me", "n": 1}]}, error="skip-me"), content=False),
    )  # fmt: skip
    for report in reports:
        for written in (report.html(), report.markdown()):
            assert not [word for word in words if word in written]
            assert "were left out of this report" in written


# and they stay small


def test_reports_are_bounded() -> None:
    long = "x" * 5_000_000
    names = [f"{n}" for n in range(500)]
    many = tuple(passages("ab")[0]._replace(id=name, title=long[:5000]) for name in names)
    report = query_report(query(0, question=long, answer=long, passages=many), [FINDING])
    for written in (report.html(), report.markdown()):
        assert len(written) < 300_000 and "more characters were left out" in written
    wide = Report("t", tuple(Text("y" * 20_000) for _ in range(200)))
    assert len(wide.html()) < 1_600_000 and "too long to send" in wide.html()
    rows = Report("t", (Table(("n",), tuple((str(n),) for n in range(5000))),))
    assert "4,600 more rows were left out" in rows.html() and "4,600 more rows were left out" in rows.markdown()


def test_bars_stay_on_their_axis_and_have_the_stages_colours() -> None:
    report = query_report(query(0))
    bars = [(float(rect["x"]), float(rect["width"])) for rect in soup(report).select(".bar rect")]
    assert len(bars) == 5 and all(x + width <= 1001.5 for x, width in bars)
    assert bars[0] == pytest.approx((0.0, 3.0 / 9.53 * 1000), abs=0.1)
    empty = Report("t", (Bars((("x", (Piece("x", 0.0, 0.0, "load", ""),), "–"),), 0.0, "0 ms"),))
    assert "nan" not in empty.html() and "x |░" in empty.markdown()
    assert report_blocks.STAGE_COLOURS == STAGE_COLOURS
