"""Comparisons of made-up queries whose differences are known, of their results, and which queries a side is."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from latency.comparing import selection
from latency.comparing.agreement import agreement, kendall_tau, overlap, rank_biased_overlap
from latency.comparing.compare import BETWEEN, compare
from rag.errors import RagError
from rag.trace_rows import QueryFilter
from rag.trace_store import TraceStore
from rag.types import Problem, Split
from tests.latency.comparison_cases import gpu, noisy, passages, query


def by_name(found):
    return {row.name: row for row in found.stages}


# one query against one


def test_a_stage_that_one_side_skipped_is_named_with_its_share() -> None:
    found = compare([query(0)], [query(1, {"hyde": 0})])
    assert found.summary == "B was 3.00 s faster (31 %): 3.00 s of it in hyde, which A ran and B skipped."
    first = found.stages[0]
    assert (first.name, first.a_seconds, first.b_seconds, first.a_ran, first.b_ran) == ("hyde", 3.0, None, 1, 0)
    assert first.share == pytest.approx(1.0) and first.difference_seconds == pytest.approx(-3.0)
    assert found.single and found.total.verdict.word == "too few" and "proves nothing" in found.caution


def test_contributions_add_up_to_the_total_and_are_sorted() -> None:
    found = compare([query(0)], [query(1, {"hyde": 1.0, "rerank": 2.2, "generate": 6.5}, total_seconds=11.0)])
    assert [row.name for row in found.stages][:4] == ["hyde", "rerank", BETWEEN, "generate"]
    assert sum(row.contribution_seconds for row in found.stages) == pytest.approx(found.total.contribution_seconds)
    assert sum(row.share or 0 for row in found.stages) == pytest.approx(1.0)


def test_the_parts_of_the_biggest_differences_are_compared() -> None:
    far = query(1, {"search": 1.8}, splits={"search": Split(compute=0.2, network=1.5, other=0.1)})
    found = compare([query(0)], [far])
    parts = {row.name: row for row in by_name(found)["search"].parts}
    assert parts["network"].contribution_seconds == pytest.approx(1.5)
    assert parts["network"].a_seconds is None and parts["network"].b_seconds == pytest.approx(1.5)
    assert "in-process in A, http in B" in found.summary
    assert by_name(found)["embed"].parts == ()


def test_a_cold_stage_is_told() -> None:
    cold = query(0, {"rerank": 7.2}, cold=["rerank"], splits={"rerank": Split(load=7.0, compute=0.2)})
    found = compare([cold], [query(1)])
    assert "of it in rerank, which was cold in A" in found.summary
    assert ("cold", "rerank cold", "yes", "no") in {each[:4] for each in found.others}


def test_changes_that_cancel_out_are_not_hidden() -> None:
    found = compare([query(0)], [query(1, {"hyde": 1.0, "rerank": 2.2})])
    assert found.summary.startswith("A and B took the same time") and "although" in found.summary
    assert "hyde took 2.00 s less" in found.summary and "rerank took 2.00 s more" in found.summary


def test_opposite_changes_are_told_beside_the_difference() -> None:
    found = compare([query(0)], [query(1, {"hyde": 0, "generate": 7.5})])
    assert found.summary.startswith("B was 1.50 s faster (16 %): hyde took 3.00 s less")
    assert "generate took 1.50 s more" in found.summary


def test_a_query_against_itself_has_no_difference() -> None:
    one = query(0)
    found = compare([one], [one])
    assert found.total.difference_seconds == 0 and found.others == () and found.total.share is None
    assert "same time" in found.summary and found.agreement is not None and found.agreement.same_answers == 1


def test_empty_sides_are_refused() -> None:
    with pytest.raises(RagError) as refused:
        compare([], [query(0)])
    assert refused.value.kind == "bad_input" and "side A" in refused.value.message


# sets


def test_a_replay_in_turn_is_compared_in_pairs_and_the_change_found() -> None:
    found = compare(noisy(0, 30), noisy(1, 30, rerank=2.2))
    assert found.pairs == 30 and found.caution == ""
    assert found.total.verdict.word == "slower" and by_name(found)["rerank"].verdict.word == "slower"
    assert found.stages[0].name == "rerank" and found.total.verdict.interval is not None
    assert found.total.verdict.interval.low > 0 and "30 pairs" in found.summary
    for name in ("embed", "search", "generate"):
        assert by_name(found)[name].verdict.word == "no difference"
    assert sum(row.contribution_seconds for row in found.stages) == pytest.approx(found.total.contribution_seconds)


def test_the_same_twice_is_no_difference_and_shares_nothing() -> None:
    found = compare(noisy(0, 30), noisy(1, 30))
    assert found.total.verdict.word == "no difference" and found.summary.startswith("No difference: medians")
    assert all(row.share is None for row in found.stages)


def test_sets_of_other_questions_are_compared_as_sets_with_a_caution() -> None:
    b = [replace(case, answer=replace(case.answer, question=f"other {n}")) for n, case in enumerate(noisy(1, 20, hyde=0))]
    found = compare(noisy(0, 30), b)
    assert found.pairs is None and "different sets" in found.caution and found.agreement is None
    assert found.total.verdict.word == "faster" and (found.a.n, found.b.n) == (30, 20)
    assert "n 30 and 20" in found.summary and "skipped" in found.summary


def test_few_queries_get_no_verdict() -> None:
    found = compare(noisy(0, 4), noisy(1, 4, hyde=0))
    assert found.total.verdict.word == "too few" and found.total.verdict.interval is None
    assert "too few queries to be sure" in found.summary and "fewer than 8" in found.caution


def test_each_side_slower_than_the_other_is_mirrored() -> None:
    a, b = noisy(0, 12), noisy(1, 12, generate=8.0)
    one, other = compare(a, b), compare(b, a)
    assert one.total.difference_seconds == -other.total.difference_seconds
    assert (one.total.verdict.word, other.total.verdict.word) == ("slower", "faster")


def test_failed_queries_are_left_out_and_counted() -> None:
    failed = query(99, {"generate": 60.0}, outcome="failed", error=Problem("generate", "timeout", "too long"))
    found = compare([*noisy(0, 10), failed], noisy(1, 10))
    assert (found.a.n, found.a.left_out) == (10, 1) and found.pairs == 10
    alone = compare([failed], [query(1)])
    assert alone.a.n == 1 and ("outcome", "outcome", "failed", "answered") in {each[:4] for each in alone.others}


def test_an_outlier_does_not_decide_what_contributed() -> None:
    b = noisy(1, 30, rerank=1.2)
    b[4] = query(9, {"generate": 400.0})
    found = compare(noisy(0, 30), b)
    assert found.stages[0].name == "rerank"


def test_p95_needs_its_number_of_queries() -> None:
    assert compare(noisy(0, 60), noisy(1, 60)).p95 is None
    found = compare(noisy(0, 110), noisy(1, 110, generate=9.0))
    assert found.p95 is not None and found.p95.low > 0


# what else differed


def test_options_versions_and_devices_that_differ_are_listed() -> None:
    b = query(1, device="cpu", fingerprint={"version": "0.2.0", "settings": "def", "models": {"embed": "x"}})
    b = replace(b, answer=replace(b.answer, options=replace(b.answer.options, candidates=100)))
    told = {(each.kind, each.name): (each.a, each.b) for each in compare([query(0)], [b]).others}
    assert told["options", "candidates"] == ("40", "100")
    assert told["versions", "version"] == ("0.1.0", "0.2.0") and told["settings", "settings"] == ("abc123", "def")
    assert told["device", "rerank device"] == ("cuda:0", "cpu")
    assert ("query", "question") not in told


def test_in_sets_values_are_counted_and_rare_ones_left_out() -> None:
    b = [*(query(100 + n, device="cpu") for n in range(10)), *noisy(201, 10)]
    told = {each.name: each for each in compare(noisy(0, 20), b).others}
    assert told["rerank device"].a == "cuda:0" and told["rerank device"].b in ("cpu 10, cuda:0 10", "cuda:0 10, cpu 10")
    assert told["rerank device"].share == pytest.approx(0.5)
    one_in_twenty = [*noisy(1, 19), query(500, device="cpu")]
    assert not any(each.kind == "device" for each in compare(noisy(0, 20), one_in_twenty).others)


def test_the_machines_state_is_compared_over_the_query() -> None:
    a = query(0, readings=gpu(0.9, 1980.0))
    b = query(1, readings=gpu(0.4, 1200.0, "sw_thermal_slowdown", ["ollama"]))
    found = compare([a], [b])
    states = {each.metric: each for each in found.machines}
    assert states["gpu.0.utilization_ratio"].notable and states["gpu.0.sm_clock_mhz"].notable
    assert not states["cpu.busy_ratio"].notable and states["cpu.busy_ratio"].a == pytest.approx(0.2033, abs=1e-3)
    told = {each.name: (each.a, each.b) for each in found.others if each.kind == "machine"}
    assert told["local gpu.0.throttle_reasons"] == ("none", "sw_thermal_slowdown")
    assert told["other processes"] == ("none", "ollama on GPU 0")


def test_readings_of_one_side_only_are_no_difference() -> None:
    found = compare([query(0, readings=gpu(0.9, 1980.0))], [query(1)])
    assert not any(each.kind == "machine" for each in found.others)
    assert all(not each.notable and each.b is None for each in found.machines)


def test_tokens_and_work_are_measured() -> None:
    found = {each.name: each for each in compare([query(0)], [query(1, ttft_seconds=None)]).measures}
    assert found["answer tokens"].a == 250 and found["answer tokens"].difference == 0
    assert found["first token after the request to the model"].n_b == 0
    assert found["first token after the request to the model"].difference is None


def test_a_comparison_is_plain_json() -> None:
    found = compare(noisy(0, 10), [query(1 + 2 * n, readings=gpu(0.5, 900.0)) for n in range(10)])
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["stages"][0]["verdict"]["word"] and data["a"]["n"] == 10 and data["pairs"] == 10
    assert {"total", "stages", "measures", "others", "machines", "agreement", "p95", "summary"} <= set(data)


# results


def test_rank_biased_overlap_by_hand() -> None:
    assert rank_biased_overlap("abc", "abc") == pytest.approx(1.0)
    assert rank_biased_overlap("abc", "xyz") == 0.0
    assert rank_biased_overlap("", "abc") is None
    # even lists, equation 30: X_k/k p^k + (1-p)/p sum X_d/d p^d
    p = 0.9
    by_hand = 2 / 2 * p**2 + (1 - p) / p * (0 * p + 1 * p**2)
    assert rank_biased_overlap("ab", "ba", p) == pytest.approx(by_hand)
    assert rank_biased_overlap("ab", "bacd") == rank_biased_overlap("bacd", "ab")
    # uneven: a list and its beginning agree as far as both go, and are taken to agree beyond
    assert rank_biased_overlap("abcd", "ab") == pytest.approx(1.0)
    assert rank_biased_overlap("abcd", "abdc", p) > rank_biased_overlap("abcd", "bacd", p)  # type: ignore[operator]


def test_kendall_and_jaccard_by_hand() -> None:
    assert kendall_tau("abcd", "abcd") == 1 and kendall_tau("abcd", "dcba") == -1
    assert kendall_tau("abc", "acb") == pytest.approx(1 / 3)
    assert kendall_tau("abx", "bya") == -1 and kendall_tau("ab", "xy") is None
    assert overlap("abc", "bcd") == 0.5 and overlap("", "") is None


def test_agreement_of_a_pair_and_of_nothing() -> None:
    a, b = query(0), query(1, passages=passages("bagcde"), answer="Another answer.")
    found = agreement([(a, b)])
    assert found is not None and found.overlap == pytest.approx(2 / 4) and found.same_kept == 0
    assert (found.same_answers, found.answers_compared) == (0, 1)
    ranks = {each.passage_id: each for each in found.ranks}
    assert (ranks["a"].a, ranks["a"].b, ranks["a"].b_kept) == (1, 2, True)
    assert (ranks["g"].a, ranks["g"].b) == (None, 3) and (ranks["f"].a, ranks["f"].b) == (6, None)
    assert found.ranks[0].passage_id in "ab" and math.isfinite(found.rbo or math.nan)
    assert agreement([(query(0, passages=()), query(1))]) is None


# which queries a side is


@pytest.mark.parametrize(("text", "ids"), [("abc", ("abc",)), (" a , b ,a,", ("a", "b"))])
def test_ids_are_read(text: str, ids: tuple[str, ...]) -> None:
    assert selection.parse(text).ids == ids


def test_sets_are_read_and_written() -> None:
    text = selection.set_text({"model": "Qwen/Qwen3 8B;x", "since": "2026-11-21T05:00", "cold": "no", "origin": "", "limit": 50})
    assert " " not in text and "&" not in text
    found = selection.parse(text)
    assert found.where == QueryFilter(model="Qwen/Qwen3 8B;x", since=1795237200.0, cold=False, measured=False)
    assert found.limit == 50
    assert selection.parse("set:origin=measure").where == QueryFilter(origin="measure")
    assert selection.parse("experiment:x1:b").experiment == ("x1", 1)
    assert selection.parse("set:experiment:x1:A").experiment == ("x1", 0)
    assert selection.parse("set:").where == QueryFilter(measured=False)


@pytest.mark.parametrize(
    "text", ["", ",", "set:colour=red", "set:since=soon", "set:cold=perhaps", "set:limit=0", "set:model", "experiment:x", "experiment::A",
             "set:model=a;model=b", "set:slower=x", "set:outcome=odd", ",".join(map(str, range(2000)))]
)  # fmt: skip
def test_what_is_no_side_is_refused_with_a_next_step(text: str) -> None:
    with pytest.raises(RagError) as refused:
        selection.parse(text)
    assert refused.value.kind == "bad_input" and refused.value.next_step


@pytest.fixture
def store(tmp_path):
    traces = TraceStore(tmp_path / "traces.db")
    for n in range(12):
        settings = "abc123" if n % 2 else "def456"
        traces.save(query(n, origin="measure" if n >= 10 else "ask", fingerprint={"settings": settings}).answer)
    assert traces.flush()
    yield traces
    traces.close()


def load(text: str, store: TraceStore, experiments=None):
    return selection.load(selection.parse(text), store, None, experiments)


def test_sides_are_loaded_from_the_store(store) -> None:
    assert len(load("set:", store).cases) == 10  # what replays asked is left out
    assert len(load("set:origin=measure", store).cases) == 2
    assert {case.answer.fingerprint["settings"] for case in load("set:settings=abc", store).cases} == {"abc123"}
    assert len(load("set:settings=abc;limit=3", store).cases) == 3
    found = load(f"{0:032x},nope", store)
    assert (len(found.cases), found.missing) == (1, 1)
    for nothing in ("nope", "set:model=other"):
        with pytest.raises(RagError) as missing:
            load(nothing, store)
        assert missing.value.kind == "not_found" and missing.value.next_step


def test_a_side_of_an_experiment_is_loaded(store) -> None:
    sides = [{"label": "as stored", "query_ids": [f"{0:032x}", f"{2:032x}"]}, {"label": "hyde off", "query_ids": []}]
    known = {"r1": SimpleNamespace(name="Replay", result={"sides": sides}), "c1": SimpleNamespace(name="Parts", result=None)}
    found = load("experiment:r1:A", store, known)
    assert len(found.cases) == 2 and found.label == "Replay: as stored"
    for text in ("experiment:r1:B", "experiment:r1:C", "experiment:c1:A", "experiment:none:A"):
        with pytest.raises(RagError) as missing:
            load(text, store, known)
        assert missing.value.kind == "not_found"
