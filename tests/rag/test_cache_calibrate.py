"""Thresholds from labelled pairs: families kept whole, bounds kept, intervals right, and what the shipped set shows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta

from gpu_server.starter import StarterEmbedder
from rag import cli_cache
from rag.cache.book import SHIPPED, CacheBook
from rag.cache.calibrate import PAIRS, Pair, Scored, calibrate, held_out, interval, rates, read_pairs, score
from rag.cache.guards import Check, Comparison
from rag.cache.types import Thresholds
from rag.errors import RagError


def scored(family: str, label: str, dense: float, agreement: float = 1.0, refused: bool = False) -> Scored:
    checks = (Check("number", not refused, "3 against 4"),)
    return Scored(Pair(f"{family}-1", family, "en", label, "number", "a?", "b?"), dense, Comparison(checks, agreement))


def side(wanted: bool) -> list[str]:
    """Names of families on one side."""
    return [name for number in range(200) if held_out(name := f"family-{number}") is wanted]


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (0, 206), (1, 206), (3, 50), (50, 50), (117, 181)])
def test_the_interval_is_the_exact_binomial_one(successes, trials):
    low, high = interval(successes, trials)
    assert low == pytest.approx(beta.ppf(0.025, successes, trials - successes + 1) if successes else 0.0, abs=1e-9)
    assert high == pytest.approx(beta.ppf(0.975, successes + 1, trials - successes) if successes < trials else 1.0, abs=1e-9)


def test_the_threshold_keeps_near_misses_out_and_gives_little_recall_away():
    chosen, kept = side(False), side(True)
    pairs = [scored(chosen[n], "same", 0.90) for n in range(60)]
    pairs += [scored(chosen[n], "different", 0.85) for n in range(40)]
    pairs += [scored(chosen[n], "different", 0.99, refused=True) for n in range(10)]
    pairs += [scored(kept[0], "same", 0.95), scored(kept[1], "same", 0.5), scored(kept[2], "different", 0.97)]
    found = calibrate(pairs, "e", false_hits=0.0)
    assert found.thresholds.dense == pytest.approx(0.90)
    assert found.thresholds.agreement == 1.0
    assert (found.chosen_on.recall, found.chosen_on.false_hits) == (1.0, 0)
    assert (found.held_out.hits, found.held_out.same, found.held_out.false_hits) == (1, 2, 1)
    assert any("held-out near misses hit" in remark for remark in found.remarks)
    assert any("may be up to" in remark for remark in found.remarks) or found.chosen_on.false_hits_upper <= 0.0


def test_a_bound_that_nothing_keeps_is_said():
    chosen, kept = side(False), side(True)
    pairs = [scored(chosen[0], "same", 0.6), scored(chosen[1], "different", 0.999), scored(kept[0], "same", 0.9)]
    with pytest.raises(RagError, match="no threshold keeps"):
        calibrate(pairs, "e", false_hits=0.0)
    assert calibrate(pairs, "e", false_hits=0.999 + 1e-3).thresholds.dense <= 0.6


def test_one_label_alone_or_one_side_alone_cannot_be_calibrated():
    with pytest.raises(RagError, match="too few families"):
        calibrate([scored(side(False)[0], "same", 0.9), scored(side(True)[0], "different", 0.9)], "e")
    with pytest.raises(RagError, match="too few families"):
        calibrate([scored(side(False)[0], "same", 0.9), scored(side(False)[1], "different", 0.9)], "e")


def test_rates_of_nothing_are_unknown():
    found = rates([], 0.5, 0.5)
    assert (found.recall, found.false_hit_ratio, found.false_hits_upper, found.precision) == (None, None, None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", ":1: no JSON"),
        ("[]", ":1: expected an object"),
        ('{"a": "x", "b": "y", "label": "maybe"}', ":1: label is 'maybe'"),
        ('{"a": "x", "b": " ", "label": "same"}', ":1: expected an object"),
        ("\n\n", "no pairs"),
    ],
)
def test_a_pair_file_that_is_wrong_is_told_with_its_line(tmp_path, text, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RagError) as found:
        read_pairs(path)
    assert message in found.value.message


def test_a_pair_file_that_is_missing_is_told(tmp_path):
    with pytest.raises(RagError, match="cannot read"):
        read_pairs(tmp_path / "none.jsonl")


def test_the_shipped_pairs_are_sound():
    pairs = read_pairs(PAIRS)
    assert len(pairs) >= 400
    assert len({pair.id for pair in pairs}) == len(pairs)
    assert len({(pair.a, pair.b) for pair in pairs}) == len(pairs)
    assert 0.4 < sum(pair.label == "different" for pair in pairs) / len(pairs) < 0.6
    kinds = {pair.kind for pair in pairs if pair.label == "different"}
    assert {"number", "article", "date", "unit", "negation", "direction", "entity", "version"} <= kinds
    assert any({pair.a, pair.b} == {"What does Art. 72 say?", "What does Art. 75 say?"} for pair in pairs)
    families = {}
    for pair in pairs:  # a question of two families would be on both sides
        for text in (pair.a, pair.b):
            assert families.setdefault(text, pair.family) == pair.family


def test_the_default_setting_on_pairs_that_calibration_did_not_see():
    embedder = StarterEmbedder()
    shipped = Thresholds(**json.loads(SHIPPED.read_text(encoding="utf-8"))[0])
    assert shipped.embedder == embedder.info.identity

    def embed(texts):
        return np.stack([vectors.dense for vectors in embedder.forward(embedder.encode(texts, "query"), frozenset({"dense"}))])

    everything = score(read_pairs(PAIRS), embed)
    unseen = rates([item for item in everything if held_out(item.pair.family)], shipped.dense, shipped.agreement)
    assert unseen.false_hits == 0
    assert unseen.different >= 200
    assert unseen.recall >= 0.60
    again = calibrate(everything, embedder.info.identity)
    assert (again.thresholds.dense, again.thresholds.agreement) == (shipped.dense, shipped.agreement)


def test_the_book_keeps_thresholds_and_pairs_and_prefers_its_own(tmp_path):
    book = CacheBook(tmp_path / "data" / "book.db")
    shipped = json.loads(SHIPPED.read_text(encoding="utf-8"))[0]["embedder"]
    assert book.thresholds("nobody") is None
    assert book.thresholds(shipped).dense > 0
    book.set_thresholds(Thresholds(shipped, 0.99, 0.98))
    book.add_pair("a?", "b?", "different", "en")
    book.add_pair("b?", "a?", "same", "en")  # the later judgement counts
    book.close()
    again = CacheBook(tmp_path / "data" / "book.db")
    assert again.thresholds(shipped).dense == 0.99
    assert [(pair.a, pair.label) for pair in again.pairs()] == [("b?", "same")]
    assert not again.denied("a?", "b?")
    again.add_pair("a?", "b?", "different")
    assert again.denied("B?", "a")
    again.close()


def test_a_book_that_cannot_be_read_leaves_the_shipped_thresholds(tmp_path):
    path = tmp_path / "book.db"
    path.write_bytes(b"garbage " * 1000)
    book = CacheBook(path)
    assert book.thresholds(json.loads(SHIPPED.read_text(encoding="utf-8"))[0]["embedder"]) is not None
    assert not book.denied("a?", "b?")
    with pytest.raises(RagError, match=r"book\.db"):
        book.add_pair("a?", "b?", "different")
    book.close()


def test_the_command_measures_stores_and_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RAGDECK_DATA", str(tmp_path))
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    cli_cache.add_arguments(parser)
    few = [line for line in PAIRS.read_text(encoding="utf-8").splitlines() if json.loads(line)["language"] == "fr"]
    path = tmp_path / "few.jsonl"
    path.write_text("\n".join(few), encoding="utf-8")
    assert cli_cache.run(parser.parse_args(["--pairs", str(path), "--json", "--dry-run"])) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["held_out"]["false_hits"] == 0
    assert not Path(tmp_path / "cache-book.db").exists() or CacheBook(tmp_path / "cache-book.db").thresholds("x") is None
    assert cli_cache.run(parser.parse_args(["--pairs", str(path)])) == 0
    printed = capsys.readouterr().out
    assert "held out" in printed
    assert "thresholds cosine" in printed
    book = CacheBook(tmp_path / "cache-book.db")
    assert book.thresholds(found["thresholds"]["embedder"]).measured["pairs"] == len(few)
    book.close()
    with pytest.raises(SystemExit):
        parser.parse_args(["--false-hits", "2"])
