"""What is acceptable, when evidence no longer counts, and commands as code in reports."""

from __future__ import annotations

from deploy.validation import criteria, path, report
from deploy.validation.subject import Targets
from deploy.validation.types import Item, Report, Result


def test_commands_are_code_in_markdown_and_html_and_nothing_else_has_a_meaning() -> None:
    item = Item("x", "failed", "`a|b` and *x* <b>", "It is `full`.", "Run `docker image prune`; then `see <this>`.")
    found = Result("E-2", "G", "T", "P", "failed", (item,), "", (("a", "b"), ("`c|d`", "e")), {}, 0.1, 0.0)
    made = Report(0.0, 1.0, "v", (found,))
    text = report.markdown(made)
    assert "| x: `a\\|b` and \\*x\\* \\<b\\> |" in text and "| `c\\|d` | e |" in text
    assert "Cure: Run `docker image prune`; then `see <this>`." in text and "FAILED: x: `a|b` and" in text
    page = report.html(made)
    assert "<code>docker image prune</code>" in page and "<code>see &lt;this&gt;</code>" in page and "`" not in page
    assert report.commands(item.cause, item.cure, item.cure) == ("docker image prune", "see <this>")


def test_a_query_slower_than_acceptable_fails_with_the_stage_that_took_it() -> None:
    stages = [{"stage": "search", "seconds": 0.5, "spans": 1}, {"stage": "generate", "seconds": 4.0, "spans": 1}]
    answer = {"outcome": "answered", "total_seconds": 4.6, "stages": stages, "passages": []}
    item = path._outcome(answer, "here", 5.0)
    assert item.outcome == "passed"
    slow = path._outcome(answer, "here", 4.5)
    assert slow.outcome == "failed" and "4.5 s at most (readiness.answer_seconds" in slow.cause and "generate, 4 s" in slow.cause


def test_what_was_met_long_ago_is_met_in_part() -> None:
    steps = [{"users": 4, "answered": 40, "errors": {}, "unfinished": 0, "total": {"p95": 1.0}}]
    measured = criteria.Measured(load=criteria.Load("a", 0.0, {"steps": steps}), times=criteria.Times(1.0, 40, 0.0))
    day = criteria.SECONDS_PER_DAY
    for targets, days, outcome in (
        (Targets(), 29.0, "passed"),
        (Targets(), 31.0, "warning"),
        (Targets(evidence_days=40.0), 31.0, "passed"),
    ):
        found = {each.key: each for each in criteria.criteria(measured, targets, days * day)}
        assert found["load"].outcome == found["times"].outcome == outcome
    late = {each.key: each for each in criteria.criteria(measured, Targets(), 31 * day)}
    assert "31 days ago" in late["load"].next_step and "31 days ago" in late["times"].next_step
    assert "load test" in late["load"].next_step and "Run the checks again" in late["times"].next_step
    strict = {each.key: each for each in criteria.criteria(measured, Targets(users=8, total_seconds=0.5), day)}
    assert strict["times"].outcome == "failed" and strict["load"].outcome == "warning" and "8 users" in strict["load"].title
