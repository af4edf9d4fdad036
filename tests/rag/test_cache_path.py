"""The semantic cache as a stage of the real path: starter models, Milvus Lite, SQLite and a real Redis."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import redis

from answer_cache import AnswerCache
from gpu_server import makers
from gpu_server.interfaces import Scores, Timing
from gpu_server.model_pool import ModelPool
from gpu_server.starter import StarterEmbedder, StarterReranker
from rag.cache.carry import Carrier
from rag.cache.redis_answers import RedisAnswers
from rag.errors import RagError
from rag.query import Clients, Control, Prompts
from rag.semantic_cache import open_cache
from rag.store import Store
from rag.trace import Tracing
from rag.types import Options, PassageRow
from settings import load
from tests.rag.test_query import DEFAULTS, fill, run, stages

pytest_plugins = ["tests.redis_server"]

QUESTION = "Why is the first rerank after a restart slow?"
SAME = "why is the first  rerank after a restart slow"
ALIKE = "How come the first rerank after a restart is slow?"
OTHER = "Why is the second rerank after a restart slow?"
SKIPPED = ("hyde", "search", "rerank", "generate")


@pytest.fixture
def clients(tmp_path):
    pool = ModelPool()
    embedder = pool.add_embedder("starter", StarterEmbedder)
    reranker = pool.add_reranker("starter", StarterReranker, uses_route_scores=True)
    pool.warm_up()
    store = Store(uri=None, data_dir=tmp_path, collection="passages")
    fill(store, embedder)
    cache = open_cache(tmp_path, None)
    assert cache.wait_until_ready(30)
    yield Clients(embedder, reranker, None, store, Tracing(), Prompts("{passages}{question}", "{question}"), {}, cache=cache)
    cache.close()
    store.close()
    pool.stop()


def with_redis(clients: Clients, url: str, tmp_path) -> Clients:
    with pytest.MonkeyPatch.context() as patch:  # a loaded machine is not an outage
        patch.setattr("rag.semantic_cache.RedisAnswers", partial(RedisAnswers, wait_seconds=10.0))
        cache = open_cache(tmp_path / "redis", url)
    return replace(clients, cache=cache)


def ask(clients: Clients, question: str = QUESTION, options: Options = DEFAULTS):
    return run(question, clients, options)[1].answer


def test_an_equal_question_is_answered_from_the_cache_without_models(clients):
    first = ask(clients)
    events, done = run(SAME, clients)
    found = done.answer
    by_name = stages(found)
    assert stages(first)["cache"].hit is False
    assert by_name["cache"].hit is True and by_name["cache"].reason.startswith("the same question, answered")
    assert (found.outcome, found.answer, found.citations) == ("answered", first.answer, first.citations)
    assert [item.id for item in found.passages if item.kept] == [item.id for item in first.passages if item.kept]
    assert {name: by_name[name].skipped for name in ("embed", *SKIPPED)} == dict.fromkeys(
        ("embed", *SKIPPED), "answered from the cache"
    )
    assert [event["text"] for event in events if event["type"] == "token"] == [first.answer]
    assert found.first_token_seconds is not None and found.ttft_seconds is None
    assert found.id != first.id and found.question == SAME


def test_a_question_in_other_words_is_embedded_once_and_given_the_same_answer(clients):
    first = ask(clients)
    found = ask(clients, ALIKE)
    by_name = stages(found)
    assert by_name["cache"].hit is True, by_name["cache"].reason
    assert QUESTION in by_name["cache"].reason and "cosine" in by_name["cache"].reason
    assert by_name["embed"].spans == 1
    assert by_name["search"].skipped == "answered from the cache"
    assert found.answer == first.answer


def test_a_near_miss_is_answered_anew_with_the_reason_and_its_embedding_is_used(clients):
    ask(clients)
    found = ask(clients, OTHER)
    cache, embed = stages(found)["cache"], stages(found)["embed"]
    assert cache.hit is False and "second" in cache.reason
    assert embed.spans == 1, "the look-up's embedding is the search's"
    assert [interval.label for interval in found.timeline if interval.stage == "cache"] == [
        "look for an equal question",
        "look for a question like it",
    ]
    assert stages(found)["search"].skipped is None


@pytest.mark.parametrize("mode", ["bypass", "refresh"])
def test_a_caller_can_pass_the_cache_by_or_renew_it(clients, mode):
    kept = ask(clients)
    found = ask(clients, options=Options(caches=mode))
    assert stages(found)["cache"].hit is False
    assert stages(found)["generate"].skipped is None
    entry = clients.cache.entries()[0]
    assert entry.query_id == (found.id if mode == "refresh" else kept.id)


def test_other_options_have_answers_of_their_own(clients):
    ask(clients)
    assert stages(ask(clients, options=Options(keep=1)))["cache"].hit is False
    assert stages(ask(clients, options=Options(rerank=False)))["cache"].hit is False
    other = replace(clients, prompts=replace(clients.prompts, answer="Short: {passages}{question}"))
    assert stages(ask(other))["cache"].hit is False
    slower = replace(clients, prompts=replace(clients.prompts, timeout=9.0))
    assert stages(ask(slower))["cache"].hit is True, "a time limit changes no answer"


def add(clients: Clients, key: str, text: str) -> None:
    name = clients.store.use(clients.embedder.info)
    row = PassageRow(key, key, "v", 0, text, f"About {key}", f"{key}.md", None, "en")
    vectors = clients.embedder.embed([row.indexed_text]).dense
    clients.store.write_document(name, [row], vectors, None, "2026-01-02T00:00:00Z")
    clients.store.flush(name)


def test_new_documents_make_old_answers_unreachable(clients):
    ask(clients)
    add(clients, "news", "The first rerank after a restart is fast since kernels are cached on disk.")
    found = ask(clients)
    assert stages(found)["cache"].hit is False
    assert "cached on disk" in found.answer


def test_nothing_is_looked_up_or_kept_while_documents_are_written(clients):
    ask(clients)
    name = clients.store.use(clients.embedder.info)
    clients.store.versions.writing(name, "some document")
    found = ask(clients)
    assert stages(found)["cache"].reason == "documents are being written, so nothing is looked up or kept"
    assert found.outcome == "answered"
    clients.store.versions.settled(name)
    assert stages(ask(clients))["cache"].hit is False
    assert stages(ask(clients))["cache"].hit is True


def test_answers_that_could_not_cite_what_changed_stay(clients):
    carrier, told = Carrier(clients.cache, clients.store, 2), []
    clients.store.versions.on_change = told.append
    hebrew = "מה נשאר תפוס?"
    ask(clients)
    ask(clients, hebrew)
    add(clients, "news", "The first rerank after a restart is fast since kernels are cached on disk.")
    (change,) = told
    assert carrier.carry(change) == (1, 1)
    assert stages(ask(clients, hebrew))["cache"].hit is True
    assert stages(ask(clients))["cache"].hit is False
    carrier.close()


def test_a_failed_query_and_one_without_documents_are_not_kept(clients, tmp_path):
    def broken(*_, **__):
        raise RagError("the store is away", kind="connection")

    search, clients.store.search = clients.store.search, broken
    assert ask(clients).outcome == "failed"
    clients.store.search = search
    assert stages(ask(clients))["cache"].hit is False
    empty = ask(clients, "Is anybody there?", Options(collection=None, candidates=1, keep=1))
    assert empty.outcome in ("answered", "no_documents")
    assert all(entry.answer for entry in clients.cache.entries())


def test_two_equal_questions_at_once_are_computed_once(clients):
    searched, gate = [], threading.Event()
    search = clients.store.search

    def slow(*given, **options):
        searched.append(given)
        assert gate.wait(30)
        return search(*given, **options)

    clients.store.search = slow
    answers: list = []
    asked = threading.Event()
    first = threading.Thread(target=lambda: answers.append(ask(clients)))
    first.start()
    while not searched:
        pass
    clients.cache.look_up = _telling(clients.cache.look_up, asked)
    second = threading.Thread(target=lambda: answers.append(ask(clients)))
    second.start()
    assert asked.wait(30)
    gate.set()
    first.join(30)
    second.join(30)
    assert len(searched) == 1
    assert sorted(stages(found)["cache"].hit for found in answers) == [False, True]
    assert len({found.answer for found in answers}) == 1


def _telling(call, told: threading.Event):
    def tell(*given, **options):
        told.set()
        return call(*given, **options)

    return tell


def test_who_waits_goes_on_when_the_first_fails_and_can_be_cancelled(clients):
    gate, entered = threading.Event(), threading.Event()
    search, calls = clients.store.search, []

    def first_fails(*given, **options):
        calls.append(given)
        if len(calls) == 1:
            entered.set()
            assert gate.wait(30)
            raise RagError("the store is away", kind="connection")
        return search(*given, **options)

    clients.store.search = first_fails
    answers: dict[str, object] = {}
    threads = [threading.Thread(target=lambda: answers.__setitem__("first", ask(clients)))]
    threads[0].start()
    assert entered.wait(30)
    control = Control()
    threads += [
        threading.Thread(target=lambda: answers.__setitem__("second", ask(clients))),
        threading.Thread(target=lambda: answers.__setitem__("given up", run(QUESTION, clients, DEFAULTS, control)[1].answer)),
    ]
    for thread in threads[1:]:
        thread.start()
    control.cancelled.set()
    threads[2].join(30)
    gate.set()
    for thread in threads:
        thread.join(30)
    assert {name: found.outcome for name, found in answers.items()} == {
        "first": "failed",
        "second": "answered",
        "given up": "cancelled",
    }


def test_a_reader_who_leaves_lets_others_go_on(clients):
    from rag.query import answer

    steps = answer(QUESTION, DEFAULTS, clients)
    for event in steps:
        if event == {"type": "stage_started", "stage": "search"}:
            break
    steps.close()
    assert ask(clients).outcome == "answered"


# with a real Redis: restarted, flushed, away, slow


def test_answers_in_redis_survive_this_process_and_a_flush_is_a_miss(clients, redis_server, tmp_path):
    one = with_redis(clients, redis_server.url, tmp_path)
    first = ask(one)
    one.cache.close()
    two = with_redis(clients, redis_server.url, tmp_path)
    assert two.cache.wait_until_ready(30)
    assert stages(ask(two))["cache"].hit is True
    assert ask(two, ALIKE).answer == first.answer
    redis.Redis.from_url(redis_server.url).flushall()
    assert stages(ask(two))["cache"].hit is False
    assert stages(ask(two))["cache"].hit is True
    two.cache.close()


@pytest.mark.parametrize("how", ["killed", "frozen", "wrong password", "full"])
def test_no_query_is_lost_to_a_redis_that_does_not_work(clients, redis_server, tmp_path, how):
    away = with_redis(clients, redis_server.url, tmp_path)
    known = redis.Redis.from_url(redis_server.url)
    known.flushall()
    try:
        ask(away)
        if how == "wrong password":
            known.config_set("requirepass", "other")
            known.execute_command("AUTH", "other")
            redis_server_clients(known)
        if how == "full":
            known.config_set("maxmemory", 1)
            known.config_set("maxmemory-policy", "noeviction")
        if how == "frozen":
            redis_server.freeze()
            away.cache.answers._wait = 0.2
        if how == "killed":
            redis_server.kill()
        for question in (QUESTION, OTHER):
            found = ask(away, question)
            assert found.outcome == "answered"
            assert stages(found)["cache"].reason
            if how in ("killed", "frozen", "wrong password"):
                assert "Redis is away" in stages(found)["cache"].reason
                assert "other" not in str(stages(found)["cache"].reason).replace("another", "")
    finally:
        if how == "frozen":
            redis_server.thaw()
        if how == "killed":
            redis_server.start()
        if how == "wrong password":
            known.config_set("requirepass", "")
        if how == "full":
            known.config_set("maxmemory", 0)
        away.cache.close()


def redis_server_clients(known: redis.Redis) -> None:
    """Close every other connection, so that the next call has to say its password."""
    known.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def test_without_a_cache_the_stage_says_why(clients):
    found = ask(replace(clients, cache=None, cache_off="switched off in the settings (cache.enabled)"))
    assert stages(found)["cache"].reason == "switched off in the settings (cache.enabled)"
    assert stages(found)["cache"].hit is False


class Crossing:
    """A fake cross-encoder: every pair scores what the test says."""

    uses_route_scores = False

    def __init__(self, score: float) -> None:
        self.value, self.asked = score, []

    def score(self, query, candidates, **_):
        self.asked.append((query, candidates[0].text))
        return Scores(np.array([self.value]), Timing(), 1, 0, 0)


@pytest.mark.parametrize(("score", "hit"), [(0.9, True), (0.1, False)])
def test_the_settings_can_have_the_reranker_asked_both_ways(clients, tmp_path, score, hit):
    crossing = Crossing(score)
    settings = load({"RAGDECK_DATA": str(tmp_path / "asked")}, tmp_path)
    settings = settings.model_copy(update={"cache": settings.cache.model_copy(update={"rerank": 0.5})})
    built = AnswerCache(settings, clients.store, SimpleNamespace(reranker=crossing, embedder=clients.embedder))
    built.prepare()
    assert built.cache is not None and built.cache.wait_until_ready(30)
    asked = replace(clients, cache=built.cache)
    ask(asked)
    assert stages(ask(asked, ALIKE))["cache"].hit is hit
    assert set(crossing.asked) >= {(ALIKE, QUESTION)}
    built.close()


def test_a_lead_is_ended_once(clients):
    """Who leads the question next must not lose its lead to a query that ended before."""
    released = []
    release, clients.cache.release = clients.cache.release, lambda *given: released.append(given) or release(*given)
    assert ask(clients).outcome == "answered"
    assert released == []


@pytest.mark.parametrize("name", ["cache.db", "cache-book.db"])
def test_a_broken_file_of_the_cache_loses_no_query(clients, tmp_path, name):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / name).write_bytes(b"this is no database, and longer than its header would be " * 40)
    cache = open_cache(folder, None)
    found = [ask(replace(clients, cache=cache), question) for question in (QUESTION, ALIKE)]
    assert [each.outcome for each in found] == ["answered", "answered"]
    assert all(stages(each)["cache"].reason for each in found)
    cache.close()


def test_the_wait_for_an_embedder_that_is_not_loaded_is_not_the_caches(clients):
    pool = ModelPool()
    loading = threading.Event()

    def slow() -> StarterEmbedder:
        loading.wait(0.3)
        return StarterEmbedder()

    unloaded = pool.add_embedder("starter", slow)
    found = ask(replace(clients, embedder=unloaded))
    embed, cache = stages(found)["embed"], stages(found)["cache"]
    assert found.outcome == "answered" and embed.cold and embed.split.load >= 0.3
    assert cache.split.load == 0 and not cache.cold and cache.hit is False
    assert [part.stage for part in found.timeline][:2] == ["embed", "cache"]
    again = ask(replace(clients, embedder=unloaded))
    assert stages(again)["cache"].hit and stages(again)["embed"].skipped == "answered from the cache"
    pool.stop()


def test_the_next_process_finds_what_this_one_kept(clients):
    """Before its reranker is loaded, and although it never was asked."""

    def process() -> tuple[ModelPool, Clients]:
        pool = ModelPool()
        embedder = pool.add_embedder("starter", StarterEmbedder)
        identity = partial(makers.reranker_identity, "starter")
        reranker = pool.add_reranker("starter", StarterReranker, uses_route_scores=True, identity=identity)
        return pool, replace(clients, embedder=embedder, reranker=reranker)

    for hit in (False, True):
        pool, asked = process()
        assert stages(ask(asked))["cache"].hit is hit
        pool.stop()


def test_an_embedder_that_cannot_be_loaded_is_the_embedders_failure(clients):
    pool = ModelPool()
    missing = pool.add_embedder("missing", lambda: (_ for _ in ()).throw(FileNotFoundError("no such folder")))
    found = ask(replace(clients, embedder=missing))
    assert found.outcome == "failed" and found.error.stage == "embed"
    pool.stop()
