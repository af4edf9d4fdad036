"""The metrics beside an independent tool (ir_measures over trec_eval), and the statistics beside values worked out by hand."""

from __future__ import annotations

import math
import random
from itertools import product

import ir_measures
import numpy as np
import pytest
from ir_measures import RR, R, nDCG

from rag.evaluation.measure import first_relevant, score
from rag.evaluation.statistics import means, median, paired, randomisation_p


def rankings(seed: int, questions: int = 40) -> list[tuple[list[str], dict[str, int]]]:
    """Rankings of up to 60 documents with graded judgements, some of documents that are not ranked at all."""
    draw = random.Random(seed)
    made = []
    for _ in range(questions):
        documents = [f"d{number}" for number in range(draw.randint(1, 60))]
        draw.shuffle(documents)
        judged = {f"d{draw.randint(0, 80)}": draw.randint(0, 3) for _ in range(draw.randint(1, 12))}
        judged[f"d{draw.randint(0, 80)}"] = draw.randint(1, 3)
        made.append((documents, judged))
    return made


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_metrics_are_those_of_trec_eval(seed: int) -> None:
    cases = rankings(seed)
    qrels = [ir_measures.Qrel(str(n), key, grade) for n, (_, judged) in enumerate(cases) for key, grade in judged.items()]
    run = [
        ir_measures.ScoredDoc(str(n), key, 1000.0 - rank) for n, (order, _) in enumerate(cases) for rank, key in enumerate(order)
    ]
    names = {"ndcg@10": nDCG @ 10, "recall@10": R @ 10, "recall@100": R @ 100, "mrr@10": RR @ 10}
    theirs = {
        (value.query_id, str(value.measure)): value.value for value in ir_measures.iter_calc(list(names.values()), qrels, run)
    }
    for number, (order, judged) in enumerate(cases):
        ours = score(order, judged)
        for name, measure in names.items():
            assert ours[name] == pytest.approx(theirs[str(number), str(measure)], abs=1e-9), (name, number)


def test_the_rank_of_the_first_relevant_item() -> None:
    assert first_relevant(["x", "a", "b"], {"a": 0, "b": 2}) == 3
    assert first_relevant(["x"], {"a": 1}) is None


def test_an_interval_holds_the_mean_and_is_the_same_each_time() -> None:
    values = [0.1, 0.9, 0.4, 0.7, 0.3, 1.0, 0.0, 0.6]
    first, second = means([values, [1.0] * 8])
    assert first.mean == pytest.approx(0.5) and first.n == 8
    assert first.low is not None and first.high is not None and first.low < 0.5 < first.high
    assert second[:3] == (1.0, 1.0, 1.0)
    assert means([values])[0] == means([values])[0]


def test_a_bootstrap_interval_is_about_two_standard_errors_wide() -> None:
    values = np.random.default_rng(5).normal(0.5, 0.1, 400)
    found = means([list(values)])[0]
    assert found.low is not None and found.high is not None
    error = float(values.std(ddof=1)) / math.sqrt(400)
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1.0, abs=0.08)


def test_few_questions_have_a_mean_and_no_interval() -> None:
    assert means([[1.0, 0.0]])[0] == (0.5, None, None, 2)
    told = paired([0.0, 0.0], [1.0, 1.0])
    assert (told.mean, told.low, told.p, told.called) == (1.0, None, None, False)
    assert means([]) == ()


def test_the_randomisation_test_tries_all_signs_of_few_questions() -> None:
    gaps = [0.3, 0.1, -0.2, 0.4, 0.5, 0.05]
    sums = [abs(sum(sign * gap for sign, gap in zip(signs, gaps, strict=True))) for signs in product((1, -1), repeat=6)]
    expected = sum(value >= abs(sum(gaps)) - 1e-12 for value in sums) / 64
    assert randomisation_p(np.asarray(gaps)) == pytest.approx(expected)


def test_equal_runs_do_not_differ_and_clear_ones_do() -> None:
    same = [0.5, 0.2, 0.9, 1.0, 0.0, 0.3] * 5
    assert not paired(same, same).called and paired(same, same).p == 1.0
    better = paired(same, [min(1.0, each + 0.2) for each in same])
    assert better.called and better.mean > 0 and better.low is not None and better.low > 0
    worse = paired([each + 0.2 for each in same], same)
    assert worse.called and worse.mean == pytest.approx(-0.2)


def test_pairs_have_to_be_pairs() -> None:
    with pytest.raises(ValueError, match="pairs"):
        paired([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="pairs"):
        paired([], [])


def test_the_median_is_a_value_that_was_measured() -> None:
    assert median([3.0, 1.0, 2.0, 10.0]) == 2.0
