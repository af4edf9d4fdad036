from __future__ import annotations

from dataclasses import replace

from bs4 import BeautifulSoup
from streamlit.testing.v1 import AppTest

from latency.types import Evidence, Finding
from ui import findings_view

EVIL = '<img src=x onerror="alert(1)"><script>x</script>'
QUERY = "0" * 31 + "7"
LOADED = Finding(
    code="model_loaded",
    title="The reranker was loaded inside this query: 1.84 s (62 %)",
    stage="rerank",
    cost_seconds=1.84,
    saving_seconds=1.84,
    derivation="All of the load: 1.84 s.",
    confidence="measured",
    evidence=(Evidence("The model pool says so.", 1.84, "s", "00000000000000ab", 0.5, 2.34), Evidence("And again.")),
    change="Keep models.preload = true.",
    share=0.62,
    key="reranker",
    query_ids=(QUERY, "b" * 32, "c" * 32, "d" * 32, "e" * 32),
)


def text(html: str) -> str:
    soup = BeautifulSoup(html, "html.parser")
    assert soup.img is None and soup.script is None
    return soup.get_text(" ", strip=True)


def test_a_finding_says_what_it_saves_how_sure_it_is_why_and_what_to_do() -> None:
    html = findings_view.card(LOADED, 1)
    said = text(html)
    assert said.startswith("1. The reranker was loaded inside this query: 1.84 s (62 %)")
    assert "saves about 1.84 s (62 %)" in said and "measured" in said and "What to change: Keep models.preload = true." in said
    assert "How the saving follows: All of the load: 1.84 s." in said and "at 0.50–2.34 s" in said
    links = [link["href"] for link in BeautifulSoup(html, "html.parser").find_all("a")]
    assert links == [f"/query?id={QUERY}#span-00000000000000ab"]


def test_a_set_links_to_its_slowest_queries() -> None:
    html = findings_view.body(LOADED, many=True)
    links = [link["href"] for link in BeautifulSoup(html, "html.parser").find_all("a")]
    assert links[1:] == [f"/query?id={each}" for each in LOADED.query_ids[:3]] and "and 2 others" in text(html)


def test_a_saving_that_nobody_knows_is_said_so() -> None:
    assert "what can be saved is not known" in findings_view.saving_text(replace(LOADED, saving_seconds=None, share=None))


def test_whatever_a_server_said_is_escaped() -> None:
    evil = replace(LOADED, title=EVIL, derivation=EVIL, change=EVIL, key=EVIL, evidence=(Evidence(EVIL, source=EVIL, start=1.0),))
    assert EVIL in text(findings_view.card(evil, 1, many=True))
    written = findings_view.findings_text([evil])
    assert "\\<img" in written and "<img" not in written.replace("\\<", "")


def test_nothing_stands_out_is_an_answer() -> None:
    said = text(findings_view.nothing(1.5))
    assert "Nothing stands out in the 1.50 s of this query." in said and "queues" in said and "100 ms" in said
    assert "these queries" in findings_view.nothing(9.0, many=True)
    assert findings_view.findings_text([]).startswith("Nothing stands out.")


def test_markdown_is_a_numbered_list() -> None:
    written = findings_view.findings_text([LOADED, replace(LOADED, saving_seconds=None)])
    assert written.startswith("1. **The reranker was loaded inside this query") and "\n2. **" in written
    assert "   - The model pool says so. (at 0.50–2.34 s)" in written and "What to change: Keep models.preload" in written


def page() -> None:
    from tests.ui.test_findings_view import EVIL, LOADED
    from ui import findings_view

    second = LOADED.__class__(
        **{**{name: getattr(LOADED, name) for name in LOADED.__dataclass_fields__}, "title": f"Two\n# {EVIL}"}
    )
    findings_view.render((LOADED, second), 3.0)
    findings_view.render((), 3.0, many=True)


def test_the_first_is_open_and_the_others_wait() -> None:
    at = AppTest.from_function(page, default_timeout=60).run()
    assert not at.exception
    assert len(at.expander) == 1 and "\n" not in at.expander[0].label and "\\<img" in at.expander[0].label
