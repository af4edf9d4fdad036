"""Looking up, keeping and curating: what is given again and what never, equal questions at once, and what an outage costs."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from rag.cache.answers import SqliteAnswers
from rag.cache.book import CacheBook
from rag.cache.export import chat_lines, embedder_lines
from rag.cache.index import MemoryIndex
from rag.cache.types import CacheKey, Thresholds
from rag.errors import RagError
from rag.semantic_cache import CacheLimits, SemanticCache, open_cache, why_not
from rag.types import Options, Problem, Stage
from tests.rag.cache_samples import EMBEDDER, KEY, NEW_CONTENT, Clock, answer, vector

QUESTION = "What does Art. 72 say?"
THRESHOLDS = Thresholds(EMBEDDER, 0.8, 0.8)


@pytest.fixture
def make(tmp_path):
    """A function that opens the cache of one folder, as often as it is called."""
    opened = []

    def cache(limits=None, thresholds=THRESHOLDS, **options):
        clock = options.pop("clock", time.time)
        book = CacheBook(tmp_path / "cache-book.db")
        if thresholds is not None:
            book.set_thresholds(thresholds)
        found = SemanticCache(
            SqliteAnswers(tmp_path / "cache.db", clock=clock),
            options.pop("index", MemoryIndex()),
            book,
            limits,
            clock=clock,
            **options,
        )
        assert found.wait_until_ready(20)
        opened.append(found)
        return found

    yield cache
    for found in opened:
        found.close()


# looking up


def test_the_same_text_is_answered_without_a_vector_and_tells_how_old_it_is(make):
    clock = Clock()
    cache = make(clock=clock)
    assert cache.look_up(QUESTION, None, KEY).lead
    assert cache.keep(answer(), vector(), KEY) is None
    clock.now += 7200
    found = cache.look_up("  what does ART. 72 say", None, KEY)
    assert found.exact
    assert found.reason == "the same question, answered 2 h ago"
    assert found.hit.answer == "It limits windows [1]."
    assert found.hit.citations[0].source == "kept.md"
    assert cache.entry(found.hit.id).hits == 1


def test_a_paraphrase_is_answered_by_its_meaning_and_a_near_miss_is_not(make):
    cache = make()
    cache.keep(answer(), vector(), KEY)
    like = cache.look_up("Can you tell me what Article 72 says?", vector(1, 0.1, 0, 0), KEY)
    assert like.hit is not None
    assert like.reason.startswith(f"like '{QUESTION}'")
    assert "cosine 0.99" in like.reason
    near = cache.look_up("What does Art. 75 say?", vector(), KEY)  # R1: alike densely, and another article
    assert near.hit is None
    assert near.candidates[0].dense == pytest.approx(1.0)
    assert "Art 75 is asked, the cached question has Art 72" in near.reason


def test_both_scores_are_kept_and_a_likeness_below_the_threshold_is_refused(make):
    cache = make()
    cache.keep(answer(), vector(), KEY)
    found = cache.look_up("What does Article 72 say?", vector(1, 1, 0, 0), KEY)
    candidate = found.candidates[0]
    assert (round(candidate.dense, 3), candidate.sparse > 0) == (0.707, True)
    assert candidate.refused == "cosine 0.707, at least 0.80 is wanted"


@pytest.mark.parametrize("field", ["collection", "content_version", "embedder", "model", "prompt", "options"])
def test_whatever_changes_an_answer_keeps_answers_apart(make, field):
    cache = make()
    cache.keep(answer(), vector(), KEY)
    other = replace(KEY, **{field: "another"})
    assert cache.look_up(QUESTION, None, other).hit is None
    assert cache.look_up(QUESTION, vector(), other).hit is None
    assert cache.look_up(QUESTION, None, KEY).hit is not None


def test_a_key_does_not_depend_on_the_order_of_its_parts():
    parts = {"collection": "c", "content_version": "1", "embedder": "e", "model": "m"}
    one = CacheKey.of(**parts, prompt={"a": 1, "b": 2}, options={"keep": 8, "rerank": True})
    other = CacheKey.of(**parts, prompt={"b": 2, "a": 1}, options={"rerank": True, "keep": 8})
    assert one.scope == other.scope


def test_without_calibrated_thresholds_only_equal_questions_are_found(make):
    cache = make(thresholds=None)
    cache.keep(answer(), vector(), KEY)
    assert "calibrate-cache" in cache.look_up("What does Article 72 say?", vector(), KEY).reason
    assert cache.look_up(QUESTION, None, KEY).hit is not None


def test_settings_win_over_what_was_calibrated(make):
    strict = make(CacheLimits(dense=0.999))
    strict.keep(answer(), vector(), KEY)
    assert (
        "0.999" in (reason := strict.look_up("What does Article 72 say?", vector(1, 0.2, 0, 0), KEY).reason) or "1.00" in reason
    )
    off = make(CacheLimits(semantic=False))
    assert off.look_up("What does Article 72 say?", vector(), KEY).hit is None
    assert off.look_up(QUESTION, None, KEY).hit is not None


def test_after_a_restart_of_the_process_equal_and_alike_are_found(make, tmp_path):
    first = make()
    first.keep(answer(), vector(), KEY)
    first.close()
    second = make()
    assert second.look_up(QUESTION, None, KEY).hit is not None
    assert second.look_up("What does Article 72 say?", vector(), KEY).hit is not None


def test_a_reranker_is_asked_both_ways_and_the_lower_word_counts(make):
    scores = {("What does Article 72 say?", QUESTION): 3.0, (QUESTION, "What does Article 72 say?"): -1.0}
    thresholds = Thresholds(EMBEDDER, 0.8, 0.8, rerank=0.5)
    cache = make(thresholds=thresholds, both_ways=lambda one, other: scores[one, other])
    cache.keep(answer(), vector(), KEY)
    assert "reranker -1.00, at least 0.50" in cache.look_up("What does Article 72 say?", vector(), KEY).reason
    scores[QUESTION, "What does Article 72 say?"] = 0.6
    assert cache.look_up("What does Article 72 say?", vector(), KEY).hit is not None
    scores.clear()  # the reranker fails
    found = cache.look_up("What does Article 72 say?", vector(), KEY)
    assert found.hit is None
    assert "could not be asked" in found.reason


# keeping


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"outcome": "failed", "error": Problem("generate", "timeout", "late")}, "failed"),
        ({"outcome": "cancelled"}, "cancelled"),
        ({"outcome": "no_documents"}, "no_documents"),
        ({"finish_reason": "length"}, "'length'"),
        ({"finish_reason": None}, "without a reason"),
        ({"finish_reason": "content_filter"}, "content_filter"),
        ({"stages": (Stage("rerank", degraded="the reranker failed"),)}, "rerank was degraded"),
        ({"stages": (Stage("cache", hit=True),)}, "from the cache"),
        ({"answer": "  "}, "no text"),
        ({"passages": ()}, "no passage"),
        ({"options": Options(caches="bypass")}, "bypassed"),
    ],
)
def test_what_is_no_whole_answer_is_not_kept(make, changes, reason):
    cache = make()
    assert reason in cache.keep(answer(**changes), vector(), KEY)
    assert cache.look_up(QUESTION, None, KEY).hit is None
    assert cache.status().answers.entries == 0
    assert sum(cache.status().counted.not_kept.values()) == 1


def test_a_cache_stage_that_could_not_look_is_no_reason_not_to_keep():
    assert why_not(answer(stages=(Stage("cache", hit=False, degraded="Redis is away"),))) is None
    assert why_not(answer(options=Options(caches="refresh"))) is None


def test_kept_passages_and_the_first_spare_ones_are_stored(make):
    cache = make()
    cache.keep(answer(), vector(), KEY)
    found = cache.look_up(QUESTION, None, KEY).hit
    assert [passage.id for passage in found.passages] == ["kept", *(f"spare{n}" for n in range(8))]
    assert found.passages[0].scores == {"dense": 0.9}


# equal questions at once


def test_equal_questions_at_once_compute_once(make):
    cache = make()
    computed = []

    def ask(_):
        found = cache.look_up(QUESTION, None, KEY)
        if found.hit is None:
            assert found.lead
            computed.append(1)
            time.sleep(0.3)
            cache.keep(answer(), vector(), KEY)
            return None
        return found

    with ThreadPoolExecutor(10) as pool:
        found = [item for item in pool.map(ask, range(10)) if item is not None]
    assert len(computed) == 1
    assert len(found) == 9
    assert all(item.hit.answer == "It limits windows [1]." for item in found)


@pytest.mark.parametrize("end", ["failed", "released"])
def test_when_the_first_fails_another_computes(make, end):
    cache = make()
    assert cache.look_up(QUESTION, None, KEY).lead
    with ThreadPoolExecutor(1) as pool:
        waits = threading.Event()
        other = pool.submit(cache.look_up, QUESTION, None, KEY, check=waits.set)
        assert waits.wait(20)
        assert not other.done()
        if end == "failed":
            cache.keep(answer(outcome="failed"), None, KEY)
        else:
            cache.release(QUESTION, KEY)
        found = other.result(20)
    assert found.hit is None
    assert found.lead
    assert found.waited_seconds > 0


def test_who_waits_can_leave(make):
    cache = make()
    cache.look_up(QUESTION, None, KEY)
    asked = threading.Event()

    def check():
        asked.set()
        raise TimeoutError("my own deadline")

    with pytest.raises(TimeoutError, match="my own"):
        cache.look_up(QUESTION, None, KEY, check=check)
    assert asked.is_set()


def test_a_hit_by_meaning_ends_the_lead_too(make):
    cache = make()
    cache.keep(answer(), vector(), KEY)
    asked = "What does Article 72 say?"
    assert cache.look_up(asked, None, KEY).lead
    with ThreadPoolExecutor(1) as pool:
        waits = threading.Event()
        other = pool.submit(cache.look_up, asked, None, KEY, check=waits.set)
        assert waits.wait(20)
        assert cache.look_up(asked, vector(), KEY).hit is not None
        assert other.result(20).hit is not None


def test_those_who_wait_get_the_answer_also_when_it_cannot_be_stored(make, tmp_path):
    cache = make()
    cache.look_up(QUESTION, None, KEY)
    cache.answers.close()
    with ThreadPoolExecutor(1) as pool:
        waits = threading.Event()
        other = pool.submit(cache.look_up, QUESTION, None, KEY, check=waits.set)
        assert waits.wait(20)
        assert "away" in cache.keep(answer(), vector(), KEY)
        assert other.result(20).hit.answer == "It limits windows [1]."


# curating


def test_entries_are_listed_marked_edited_and_deleted(make):
    cache = make()
    cache.keep(answer(), vector(), KEY)
    cache.keep(answer("What does Art. 75 say?", "Quotas [1]."), vector(0, 1, 0, 0), KEY)
    (entry,) = [item for item in cache.entries() if item.question == QUESTION]
    assert (entry.seconds, entry.sources, entry.good) == (9.5, ("kept.md",), False)
    assert cache.mark_good(entry.id).good
    edited = cache.edit(entry.id, "Better, without a citation.")
    assert (edited.answer, edited.citations, edited.edited, edited.good) == ("Better, without a citation.", (), True, True)
    assert cache.look_up(QUESTION, None, KEY).hit.answer == "Better, without a citation."
    with pytest.raises(RagError, match="empty"):
        cache.edit(entry.id, "   ")
    assert cache.delete(entry.id)
    assert not cache.delete(entry.id)
    assert cache.edit(entry.id, "gone") is None
    assert cache.look_up("What does Article 72 say?", vector(), KEY).hit is None
    assert cache.purge() == 1
    assert cache.entries() == []


def test_a_reported_false_hit_goes_its_pair_stays_and_never_hits_again(make):
    cache = make()
    asked = "What does Article 72 say?"
    cache.keep(answer(), vector(), KEY)
    hit = cache.look_up(asked, vector(), KEY).hit
    assert cache.report_false_hit(asked, hit.id)
    assert not cache.report_false_hit(asked, hit.id)
    assert cache.look_up(QUESTION, None, KEY).hit is None
    assert [(pair.a, pair.b, pair.label) for pair in cache.book.pairs()] == [(asked, QUESTION, "different")]
    cache.keep(answer(), vector(), KEY)
    cache.purge()
    cache.keep(answer(), vector(), KEY)
    found = make().look_up(asked, vector(), KEY)
    assert found.hit is None
    assert "somebody reported" in found.reason
    assert cache.status().counted.false_hits_reported == 1


def test_an_equal_question_reported_only_loses_its_entry(make):
    cache = make()
    cache.keep(answer(), vector(), KEY)
    hit = cache.look_up(QUESTION, None, KEY).hit
    assert cache.report_false_hit("what does art. 72 say", hit.id)
    assert cache.book.pairs() == ()


def test_two_questions_are_tested_with_every_guards_word(make):
    cache = make()
    verdict = cache.test("What does Art. 75 say?", QUESTION, EMBEDDER, (vector(), vector()))
    assert verdict.dense == pytest.approx(1.0)
    assert {check.name: check.passed for check in verdict.checks}["article"] is False
    assert "Art 75" in verdict.refused
    assert cache.test("What does Article 72 say?", QUESTION, EMBEDDER, (vector(), vector())).refused is None
    assert "cosine unknown" in cache.test("What does Article 72 say?", QUESTION, EMBEDDER).refused


def test_exports_hold_prompts_positives_and_hard_negatives(make):
    cache = make()
    cache.keep(answer(), vector(), KEY)
    cache.keep(answer("No spare?", passages=(answer().passages[0],), prompt=()), vector(), KEY)
    chat = [json.loads(line) for line in chat_lines(cache.entries(order="created"))]
    by_question = {item["messages"][0]["content"]: item["messages"] for item in chat}
    assert by_question[f"Passages … {QUESTION}"][-1] == {"role": "assistant", "content": "It limits windows [1]."}
    assert by_question["No spare?"][0]["role"] == "user"
    (line,) = [json.loads(line) for line in embedder_lines(cache.entries())]
    assert line["query"] == QUESTION
    assert line["pos"] == ["The text of kept."]
    assert line["neg"][0] == "The text of spare0."
    assert len(line["neg"]) == 8


def test_answers_that_stand_are_carried_over_to_the_new_content(make):
    cache = make()
    cache.keep(answer(), vector(), KEY)
    cache.keep(answer("What does Art. 75 say?"), vector(0, 1, 0, 0), KEY)
    cache.keep(answer("Of another collection?"), vector(0, 0, 1, 0), replace(KEY, collection="other"))
    said = {QUESTION: NEW_CONTENT, "Of another collection?": "leave"}
    assert cache.carry_over(lambda entry, found: said.get(entry.question, "forget") if found.shape == (4,) else "forget") == (
        1,
        1,
    )
    assert cache.look_up("Of another collection?", None, replace(KEY, collection="other")).hit is not None
    assert cache.look_up(QUESTION, None, NEW_CONTENT).hit is not None
    assert cache.look_up("What does Article 72 say?", vector(), NEW_CONTENT).hit is not None
    assert cache.look_up("What does Art. 75 say?", None, NEW_CONTENT).hit is None
    assert cache.look_up(QUESTION, None, KEY).hit is None
    assert cache.status().answers.entries == 2


# outages and status


class AwayIndex:
    """A fake of an index on a server that is away."""

    name = "milvus"

    def _away(self, *_):
        raise RagError("no route to host", kind="connection")

    add = remove = clear = search = count = _away


def test_an_index_that_is_away_costs_alike_questions_alone(make):
    cache = make(index=AwayIndex())
    assert cache.keep(answer(), vector(), KEY) == "kept for equal questions alone, milvus is away: no route to host"
    assert cache.look_up("What does Article 72 say?", vector(), KEY).reason == "milvus is away: no route to host"
    assert cache.look_up(QUESTION, None, KEY).hit is not None
    assert cache.purge() == 1
    assert cache.status().problem == "milvus is away: no route to host"


def test_an_answers_file_that_is_broken_costs_the_hit_alone(tmp_path):
    (tmp_path / "cache.db").write_bytes(b"garbage " * 1000)
    cache = open_cache(tmp_path, None)
    found = cache.look_up(QUESTION, None, KEY)
    assert found.hit is None
    assert found.reason.startswith("the answers' file is away:")
    assert cache.keep(answer(), vector(), KEY) is not None
    assert cache.status().problem is not None
    cache.close()


def test_the_status_counts_questions_hits_refusals_and_seconds_saved(make):
    cache = make()
    cache.look_up(QUESTION, None, KEY)
    cache.keep(answer(), vector(), KEY)
    cache.look_up(QUESTION, None, KEY)
    cache.look_up("What does Art. 75 say?", None, KEY)
    cache.look_up("What does Art. 75 say?", vector(), KEY)
    status = cache.status()
    counted = status.counted
    assert (counted.lookups, counted.exact_hits, counted.alike_hits, counted.kept) == (3, 1, 0, 1)
    assert counted.hit_ratio == pytest.approx(1 / 3)
    assert counted.seconds_saved == pytest.approx(9.5)
    assert counted.refusals == {"article": 1}
    assert (status.answers.entries, status.index, status.index_entries, status.index_ready) == (1, "memory", 1, True)


def test_nothing_is_opened_before_it_is_used(tmp_path):
    cache = open_cache(tmp_path / "data", None)
    assert not (tmp_path / "data").exists()
    cache.close()
