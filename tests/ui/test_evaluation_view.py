"""What the page Evaluation says of runs, as HTML and chart options."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from rag.evaluation.summary import compare
from rag.evaluation.types import METRICS, Measured, Run, SetInfo, Setting
from ui import evaluation_compare, evaluation_trend, evaluation_view

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EVIL = "<script>x</script>"


def a_run(number: int = 1, mean: float = 0.5, **values: Any) -> Run:
    cell = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 60}
    stages = {stage: dict.fromkeys(METRICS, cell) for stage in ("dense", "sparse", "fused", "rerank")}
    summary = {
        "questions": 60,
        "of": 60,
        "stages": stages,
        "seconds": {"embed": {"mean": 0.02, "p50": 0.019, "n": 60}},
        "not_found": 0,
        "missing_judgements": 0,
        "missing_questions": 0,
        "degraded": 0,
        "degraded_reasons": [],
    }
    basic = Run(f"r{number}", "s", 1, EVIL, 1000.0 * number, Setting(), state="finished", seconds=2.0, summary=summary)
    return replace(basic, environment={"embedder": "starter", "content": "aa"}, **values)


def result(question: str, value: float) -> Measured:
    return Measured(question, {"fused": dict.fromkeys(METRICS, value)}, {}, {"fused": 1}, (), 0)


def test_numbers_have_three_places_and_their_interval_and_count() -> None:
    shown = evaluation_view.runs_table([a_run(mean=0.6394)], "ndcg@10", NOW, UTC, named=True)
    assert "0.639" in shown and "95 % interval 0.539 to 0.739, n 60" in shown
    assert "&lt;script&gt;" in shown and "<script>" not in shown
    assert "0.539 – 0.739" in evaluation_view.stages_table(a_run(mean=0.6394))


def test_what_is_unknown_says_why() -> None:
    without = a_run(summary=None, state="interrupted", error="The process ended.", seconds=None)
    shown = evaluation_view.runs_table([without], "ndcg@10", NOW, UTC)
    assert "The process ended." in shown and "–" in shown
    assert "it has not been run yet" in evaluation_view.sets_table([SetInfo("s", 1, EVIL, 1.0, EVIL, 3)], {}, NOW, UTC)
    assert "Nothing was measured" in evaluation_view.stages_table(without)


def test_notes_tell_what_the_numbers_leave_out() -> None:
    run = a_run()
    assert evaluation_view.notes(run) == ""
    told = {
        **(run.summary or {}),
        "of": 70,
        "missing_questions": 2,
        "missing_judgements": 3,
        "degraded": 1,
        "degraded_reasons": [EVIL],
    }
    shown = evaluation_view.notes(replace(run, summary=told))
    assert "60 of 70 questions" in shown and "3 documents" in shown and "&lt;script&gt;" in shown


def test_two_environments_show_only_what_differs() -> None:
    other = a_run(2)
    other = replace(other, environment={**other.environment, "content": "bb"})
    shown = evaluation_view.environment_table(a_run(), other)
    assert "Content of the collection" in shown and "starter" not in shown
    assert "were the same" in evaluation_view.environment_table(a_run(), a_run(2))


def test_a_verdict_is_only_given_where_chance_is_unlikely() -> None:
    base = [result(f"q{number}", 0.5) for number in range(20)]
    better = [result(f"q{number}", 0.6 + number / 100) for number in range(20)]
    assert "B is better by 0.195" in evaluation_compare.verdict(compare(base, better, "ndcg@10"))
    assert "B is worse by 0.195" in evaluation_compare.verdict(compare(better, base, "ndcg@10"))
    assert "no difference can be told" in evaluation_compare.verdict(compare(base, base, "ndcg@10"))
    assert "too few to tell" in evaluation_compare.verdict(compare(base[:3], better[:3], "ndcg@10"))
    assert "share no question" in evaluation_compare.verdict(compare(base, [result("other", 1.0)], "ndcg@10"))


def test_questions_that_changed_link_to_inspect_and_ask() -> None:
    found = compare([result(f"{EVIL}&?", 1.0)], [result(f"{EVIL}&?", 0.25)], "ndcg@10")
    shown = evaluation_compare.pairs_table(found.worse, "ndcg@10")
    assert "-0.750" in shown and "<script>" not in shown
    assert (
        'href="/knowledge?view=inspect&amp;question=%3Cscript%3Ex%3C%2Fscript%3E%26%3F"' in shown
        and 'href="/?q=%3Cscript' in shown
    )


def test_the_trend_marks_what_changed_between_runs() -> None:
    first, second, third = a_run(1, 0.5), a_run(2, 0.6), a_run(3, 0.7, setting=Setting(candidates=20))
    second = replace(second, environment={**second.environment, "content": "bb"})
    third = replace(third, environment=second.environment)
    found = evaluation_trend.changes([third, first, second])
    assert [change.at_unix for change in found] == [2000.0, 3000.0]
    assert found[0].words == ("content of the collection aa → bb",)
    assert found[1].words == ("40 candidates · keep 8 · rerank · HyDE off → 20 candidates · keep 8 · rerank · HyDE off",)
    options = evaluation_trend.options([third, first, second], "ndcg@10", dark=False)
    assert [series["name"] for series in options["series"]] == ["dense", "sparse", "fused", "rerank"]
    assert options["series"][-1]["data"] == [[1000000.0, 0.5], [2000000.0, 0.6], [3000000.0, 0.7]]
    assert [mark["xAxis"] for mark in options["series"][-1]["markLine"]["data"]] == [2000000.0, 3000000.0]
    assert (options["yAxis"]["min"], options["yAxis"]["max"]) == (0.4, 0.8)
    assert "<strong>1</strong>" in evaluation_trend.change_list(found, UTC) and evaluation_trend.change_list((), UTC) == ""
