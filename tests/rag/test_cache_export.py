"""Exports, judged pairs, pages of entries, what stored queries say of the cache, and a calibration with its progress."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from gpu_server.interfaces import Embeddings, ModelInfo, Timing
from rag.cache.answers import SqliteAnswers
from rag.cache.book import CacheBook
from rag.cache.calibrate import PAIRS, Pair, read_pairs
from rag.cache.calibration_run import BATCH, calibrating
from rag.cache.counts import Counts
from rag.cache.export import chat_lines, chosen, embedder_lines, pair_lines, preview, to_bytes
from rag.cache.index import MemoryIndex
from rag.cache.redis_answers import RedisAnswers
from rag.cache.tally import Looks, look_of, reason_group, spread, tally
from rag.cache.types import Candidate, Lookup
from rag.semantic_cache import SemanticCache
from rag.trace_store import TraceStore
from rag.types import Interval, Split, Stage
from tests.rag.cache_samples import KEY, NEW_CONTENT, Clock, answer, entry, passage, vector

pytest_plugins = ["tests.redis_server"]


# exports


def test_a_line_of_chat_is_the_prompt_and_the_answer_as_it_stands():
    edited = replace(entry(), answer="Edited.")
    (line,) = chat_lines([edited])
    assert [message["role"] for message in json.loads(line)["messages"]] == ["user", "assistant"]
    assert json.loads(line)["messages"][1]["content"] == "Edited."
    (bare,) = chat_lines([replace(edited, prompt=())])
    assert json.loads(bare)["messages"][0] == {"role": "user", "content": edited.question}


def test_negatives_of_an_embedder_line_were_ranked_and_not_kept_and_are_no_positive_in_disguise():
    twin = passage("spare", kept=False)._replace(text=passage("kept", kept=True).text)
    blank = passage("blank", kept=False)._replace(text=" ")
    uncited = passage("uncited", kept=True)
    same_as_uncited = passage("copy", kept=False)._replace(text=uncited.text)
    found = replace(entry(), passages=(*entry().passages, uncited, twin, blank, same_as_uncited, entry().passages[-1]))
    (line,) = embedder_lines([found])
    data = json.loads(line)
    assert data["pos"] == ["The text of kept."]
    assert data["neg"] == [f"The text of spare{number}." for number in range(8)]


def test_an_entry_without_a_positive_or_a_negative_is_no_embedder_line():
    kept_alone = replace(entry(), passages=entry().passages[:1])
    spare_alone = replace(entry(), passages=entry().passages[1:])
    assert list(embedder_lines([kept_alone, spare_alone])) == []


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\ud800", "\x00", "\r\n", '"', "שלום", "\x1e"])
def test_a_line_stays_one_line_for_every_reader_and_can_be_written(odd):
    found = replace(entry(), answer=f"a{odd}b")
    data = to_bytes(chat_lines([found, found]))
    lines = data.decode().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[0])["messages"][-1]["content"] == f"a{odd}b"


def test_the_preview_counts_what_the_files_will_hold():
    entries = [entry(), replace(entry("Another?"), passages=())]
    found = preview(iter(entries))
    assert (found.entries, found.chat, found.embedder) == (2, 2, 1)
    assert found.first_chat == next(chat_lines(entries))
    assert found.first_embedder == next(embedder_lines(entries))
    assert preview([]) == (0, 0, 0, None, None)


def test_good_answers_are_found_on_every_page_and_each_once(tmp_path):
    answers = SqliteAnswers(tmp_path / "cache.db")
    for number in range(230):
        answers.keep(replace(entry(f"Question {number}?"), good=number % 100 == 0), None)
    questions = [found.question for found in chosen(lambda limit, at: answers.page(limit, at, "created"), good_only=True)]
    assert sorted(questions) == ["Question 0?", "Question 100?", "Question 200?"]
    pages = {0: [entry("a?"), entry("b?")], 2: [entry("b?"), entry("c?")]}  # one was kept meanwhile: the pages overlap
    assert [found.question for found in chosen(lambda _, at: pages.get(at, []), good_only=False)] == ["a?", "b?", "c?"]
    answers.close()


def test_judged_pairs_come_back_from_their_file_and_a_judgement_can_be_taken_back(tmp_path):
    book = CacheBook(tmp_path / "book.db")
    book.add_pair("Is 5 allowed?\u2028", "Is 6 allowed?", "different", "en")
    book.add_pair("=1+1?", "1+1?", "same")
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(to_bytes(pair_lines(book.pairs())))
    assert read_pairs(path) == book.pairs()
    assert book.denied("Is 5 allowed?\u2028", "Is 6 allowed?")
    assert book.remove_pair("Is 5 allowed?\u2028", "Is 6 allowed?")
    assert not book.remove_pair("Is 5 allowed?\u2028", "Is 6 allowed?")
    assert not book.denied("Is 5 allowed?\u2028", "Is 6 allowed?")
    assert [pair.label for pair in book.pairs()] == ["same"]
    book.close()


# entries, by page and by text


@pytest.fixture(params=["sqlite", "redis"])
def store(request, tmp_path):
    clock = Clock()
    if request.param == "sqlite":
        found = SqliteAnswers(tmp_path / "cache.db", ttl_seconds=100.0, clock=clock)
    else:
        server = request.getfixturevalue("redis_server")
        found = RedisAnswers(server.url, ttl_seconds=100.0, clock=clock, wait_seconds=10.0)  # a loaded machine is no outage
        found.purge()
    yield found, clock
    found.close()


def test_entries_are_found_by_what_their_question_holds_in_any_case_and_paged(store):
    answers, clock = store
    for question in ("Où est l'Étang?", "מה אומר סעיף 72?", "100% sure?", "Where?", "étang bleu?"):
        clock.now += 1
        answers.keep(entry(question), None)
    found = answers.page(10, 0, "created", "ÉTANG")
    assert [item.question for item in found] == ["étang bleu?", "Où est l'Étang?"]
    assert [item.question for item in answers.page(1, 1, "created", "étang")] == ["Où est l'Étang?"]
    assert [item.question for item in answers.page(10, 0, "hits", "סעיף")] == ["מה אומר סעיף 72?"]
    assert [item.question for item in answers.page(10, 0, "used", "%")] == ["100% sure?"]
    assert answers.page(10, 0, "used", "_") == []


def test_an_entry_tells_when_it_expires_and_under_which_key_it_is_kept(store):
    answers, clock = store
    kept = entry()
    answers.keep(kept, vector())
    for found in (answers.get(kept.id), answers.page()[0]):
        assert found.expires_at_unix == pytest.approx(clock.now + 100.0, abs=20.0)
        assert found.key["content_version"] == "1"


def test_answers_that_new_documents_made_void_are_counted(tmp_path):
    cache = SemanticCache(SqliteAnswers(tmp_path / "cache.db"), MemoryIndex(), CacheBook(tmp_path / "book.db"))
    for question in ("Stays?", "Goes?"):
        cache.keep(answer(question), vector(), KEY)
    assert cache.carry_over(lambda found, _: NEW_CONTENT if found.question == "Stays?" else "forget") == (1, 1)
    counted = cache.status().counted
    assert (counted.carried_over, counted.invalidated) == (1, 1)
    (left,) = cache.entries()
    assert left.key["content_version"] == "2"
    cache.close()


def test_a_candidate_counts_for_what_refused_it():
    from rag.cache.guards import compare

    counts = Counts()
    found = compare("What does Art. 72 say?", "What does Art. 75 say?")
    by_cosine = Candidate("1", "q", 0.1, None, found.agreement, found.checks, "cosine 0.100, at least 0.64 is wanted")
    by_guard = by_cosine._replace(dense=0.9, refused=found.refused.said)
    counts.looked_up(Lookup(None, "none", (by_cosine, by_guard, by_guard)), first=False)
    assert counts.now().refusals == {"likeness": 1, "article": 2}


# what stored queries say


def asked(number, *, hit=False, spans=2, cache_seconds=0.002, total=5.0, reason="no question like it is cached", **facts):
    """A stored query that asked the cache."""
    known = [Interval("cache", 0.0, cache_seconds / max(1, spans), "look", Split(), facts=facts) for _ in range(spans)]
    return answer(
        f"Question {number}?",
        id=f"{number:032x}",
        started_at=f"2026-03-01T10:{number // 60:02d}:{number % 60:02d}Z",
        stages=(Stage("cache", cache_seconds, spans, hit=hit, reason=reason), Stage("generate", 1.0, 1)),
        timeline=tuple(known),
        total_seconds=total,
    )


@pytest.fixture
def traces(tmp_path):
    found = TraceStore(tmp_path / "traces.db")
    yield found
    found.close()


def test_hit_rate_and_time_saved_come_from_stored_queries(traces):
    stored = [
        asked(1, spans=1, hit=True, total=0.5, entry="e1", kept_seconds=9.5, kept_query="q1"),
        asked(2, spans=2, hit=True, total=1.0, entry="e1", kept_seconds=0.25),
        asked(3, spans=1, hit=True, total=1.0),
        asked(4, cache_seconds=0.004, reason="nearest is 'Is (x)?' (cosine 0.992): article: Art 72 is asked, the cached has 75"),
        asked(5, cache_seconds=0.002),
        asked(6, spans=0, cache_seconds=0.0, reason="bypassed by the caller"),
    ]
    for item in stored:
        traces.save(item)
    assert traces.flush()
    found = tally(traces.search(), Looks(traces.get))
    assert (found.lookups, found.hits, found.hit_ratio, found.equal) == (5, 3, 0.6, 2)
    assert found.saved_seconds == pytest.approx(9.0 - 0.75)  # a hit that took longer than its answer once did counts against it
    assert found.saved_of == 2
    assert (found.added.n, found.added.p50, found.hit_seconds.n) == (2, pytest.approx(0.002), 3)
    assert dict(found.reasons) == {"another article or section": 1, "no question like it is cached": 1}
    assert [look.entry_id for look in found.recent_hits] == [None, "e1", "e1"]
    assert found.recent_hits[-1].kept_query_id == "q1"


def test_what_is_not_known_is_not_zero(traces):
    empty = tally([], Looks(traces.get))
    assert (empty.hit_ratio, empty.saved_seconds, empty.added, empty.since_unix) == (None, None, None, None)
    traces.save(asked(1, hit=True, spans=1))
    traces.flush()
    found = tally(traces.search(), Looks(traces.get))
    assert (found.hits, found.saved_seconds, found.saved_of) == (1, None, 0)
    assert spread([]) is None
    assert spread([0.4, 0.1, 0.3, 0.2]) == (0.2, 0.4, 4)  # times of queries that exist, by nearest rank


def test_only_the_newest_are_read_and_each_once(traces):
    for number in range(1, 9):
        traces.save(asked(number, hit=number % 2 == 0))
    traces.flush()
    read = []
    looks = Looks(lambda query_id: read.append(query_id) or traces.get(query_id))
    found = tally(traces.search(), looks, read_hits=2, read_misses=1)
    assert (found.hits, len(found.recent_hits), found.reasons_of) == (4, 2, 1)
    assert [look.question for look in found.recent_hits] == ["Question 8?", "Question 6?"]
    tally(traces.search(), looks, read_hits=2, read_misses=1)
    assert len(read) == 3


def test_a_cache_that_was_not_asked_is_no_look_up():
    assert look_of(asked(1, spans=0)) is None
    assert look_of(answer(stages=(Stage("generate", 1.0, 1),))) is None


@pytest.mark.parametrize(
    ("reason", "group"),
    [
        (
            "nearest is 'A (cosine 0.100): b?' (cosine -0.016): cosine -0.016, at least 0.64 is wanted",
            "the nearest is not alike enough",
        ),
        ("nearest is 'A?' (found by its words): cosine unknown, at least 0.64 is wanted", "the nearest is not alike enough"),
        ("nearest is 'A?' (cosine 0.9): from 'a' against from 'b'", "who does what to whom, or another order"),
        ("nearest is 'A?' (cosine 0.9): agreement 0.50, at least 0.90 is wanted", "too few words in common with the nearest"),
        ("Redis is away: redis://h:1: ConnectionError: refused", "Redis is away"),
        ("", "no reason was kept"),
    ],
)
def test_reasons_are_grouped_without_what_is_of_one_question(reason, group):
    assert reason_group(reason) == group


def test_every_guard_has_a_group_of_its_own():
    """Each refusal of the shipped near misses is named, and by more than a few groups."""
    from rag.cache.guards import compare

    said = [compare(pair.a, pair.b).refused for pair in read_pairs(PAIRS) if pair.label == "different"]
    groups = {check.name: reason_group(f"nearest is 'x' (cosine 0.9): {check.said}") for check in said if check is not None}
    assert len(groups) >= 10
    order = "who does what to whom, or another order"
    assert {name for name, group in groups.items() if group == order} <= {"role", "order"}
    assert "no reason was kept" not in groups.values()


# a calibration with its progress


class Letters:
    """A fake embedder: counts of letters, normalised, so that questions alike in spelling are alike."""

    info = ModelInfo("letters", "embedder", "letters-26", "cpu", "fp32", dimension=26)

    def __init__(self):
        self.calls = []

    def embed(self, texts, kind="passage", **options):
        self.calls.append((len(texts), kind, options.get("caches")))
        rows = [[text.lower().count(chr(97 + letter)) + 0.01 for letter in range(26)] for text in texts]
        vectors = np.array(rows, dtype=np.float32)
        return Embeddings(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), None, Timing(), 0)


def test_a_calibration_tells_its_progress_and_ends_in_thresholds_and_their_curve():
    embedder = Letters()
    pairs = [pair for pair in read_pairs(PAIRS) if pair.language == "en"][:160]
    steps, events = (
        calibrating((*pairs, Pair("r-1", "r", "en", "different", "reported", "Is A on?", "Is B on?")), embedder, false_hits=0.1),
        [],
    )
    while True:
        try:
            events.append(next(steps))
        except StopIteration as end:
            run = end.value
            break
    texts = events[0]["texts"]
    assert [event["done"] for event in events] == [0, *range(BATCH, texts, BATCH), texts]
    assert {call[1:] for call in embedder.calls} == {("query", "bypass")}
    found = run.calibration
    assert found.thresholds.embedder == "letters-26"
    assert found.thresholds.measured["pairs"] == 161
    at = min(run.curve, key=lambda point: abs(point.dense - found.thresholds.dense))
    assert abs(at.rates.hits - found.held_out.hits) <= 5
    recalls = [point.rates.recall for point in run.curve]
    assert recalls == sorted(recalls, reverse=True)
    assert run.curve[0].rates.recall > run.curve[-1].rates.recall
