"""Stores of cached answers: one contract for SQLite and a real Redis."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import numpy as np
import pytest

from rag.cache.answers import SqliteAnswers, packed, unpacked
from rag.cache.redis_answers import PREFIX, RedisAnswers
from rag.cache.types import CacheAway
from tests.rag.cache_samples import Clock, entry, vector

pytest_plugins = ["tests.redis_server"]

PATIENCE = 10.0  # seconds: a loaded machine is not an outage


@pytest.fixture(params=["sqlite", "redis"])
def make(request, tmp_path):
    """A function that opens the store anew: the same answers, another object."""
    opened = []
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        RedisAnswers(server.url, wait_seconds=PATIENCE).purge()

    def store(**options):
        if request.param == "sqlite":
            found = SqliteAnswers(tmp_path / "cache.db", **options)
        else:
            found = RedisAnswers(server.url, wait_seconds=PATIENCE, **options)
        opened.append(found)
        return found

    yield store
    for store_ in opened:
        store_.close()


def test_what_was_kept_comes_back_whole_also_after_a_restart(make):
    first = make()
    wanted = entry()
    assert first.keep(wanted, vector()) == []
    first.close()
    found = make().get(wanted.id)
    assert found is not None
    assert replace(found, used_at_unix=None) == wanted
    assert found.sources == ("kept.md",)
    assert make().get("0" * 40) is None


def test_the_least_recently_used_goes_first(make):
    clock = Clock()
    store = make(max_entries=2, clock=clock)
    entries = [entry(f"question {n}?") for n in range(3)]
    for item in entries[:2]:
        store.keep(item, vector())
        clock.now += 1
    store.touch(entries[0].id)
    clock.now += 1
    assert store.keep(entries[2], vector()) == [entries[1].id]
    assert store.get(entries[1].id) is None
    assert store.get(entries[0].id) is not None
    assert (store.state.entries, store.state.evictions) == (2, 1)


def test_a_hit_is_counted_and_one_that_is_gone_is_not_made_again(make):
    store = make()
    store.keep(entry(), vector())
    store.touch(entry().id)
    store.touch(entry().id)
    store.touch("0" * 40)
    assert store.get(entry().id).hits == 2
    assert store.state.entries == 1


def test_rewritten_entries_keep_their_hits_and_vector(make):
    store = make()
    store.keep(entry(), vector())
    store.touch(entry().id)
    assert store.rewrite(replace(entry(), answer="Better.", good=True))
    found = store.get(entry().id)
    assert (found.answer, found.good, found.hits) == ("Better.", True, 1)
    assert len(list(store.rows())) == 1
    assert not store.rewrite(entry("never kept?"))


def test_rows_carry_vectors_and_only_what_is_new(make):
    clock = Clock()
    store = make(clock=clock)
    store.keep(entry("one?"), vector(1, 2, 3, 4))
    clock.now += 10
    store.keep(entry("two?"), vector(4, 3, 2, 1))
    store.keep(entry("no vector?"), None)
    rows = {row.question: row for row in store.rows()}
    assert set(rows) == {"one?", "two?"}
    assert np.allclose(rows["one?"].vector, vector(1, 2, 3, 4))
    assert rows["one?"].scope == entry("one?").scope
    assert [row.question for row in store.rows(clock.now)] == ["two?"]


def test_pages_by_use_age_and_hits(make):
    clock = Clock()
    store = make(clock=clock)
    for name in ("a?", "b?", "c?"):
        store.keep(entry(name), vector())
        clock.now += 1
    store.touch(entry("a?").id)
    assert [item.question for item in store.page(order="used")] == ["a?", "c?", "b?"]
    assert [item.question for item in store.page(order="created")] == ["c?", "b?", "a?"]
    assert next(item.question for item in store.page(order="hits")) == "a?"
    assert [item.question for item in store.page(limit=1, offset=1, order="created")] == ["b?"]


def test_deleted_and_purged(make):
    store = make()
    for name in ("a?", "b?", "c?"):
        store.keep(entry(name), vector())
    assert store.delete([entry("a?").id, "0" * 40]) == 1
    assert store.get(entry("a?").id) is None
    assert store.purge() == 2
    assert store.page() == []
    assert store.state.entries == 0


def test_kept_again_it_counts_anew(make):
    store = make()
    store.keep(entry(), vector())
    store.touch(entry().id)
    store.keep(entry(), vector())
    assert store.get(entry().id).hits == 0
    assert store.state.entries == 1


def test_sqlite_answers_live_as_long_as_they_may(tmp_path):
    clock = Clock()
    store = SqliteAnswers(tmp_path / "cache.db", ttl_seconds=60, clock=clock)
    store.keep(entry(), vector())
    clock.now += 59
    assert store.get(entry().id) is not None
    clock.now += 2
    assert store.get(entry().id) is None
    assert list(store.rows()) == []
    assert store.page() == []
    assert store.state.entries == 0
    assert store.keep(entry("new?"), vector()) == [entry().id]
    store.close()


def test_a_value_that_is_not_ours_counts_as_not_found():
    assert unpacked(b"nonsense", 0, None) is None
    assert unpacked(packed(entry())[:40], 0, None) is None
    import json
    import zlib

    for value in ([], {}, {"question": "?"}, {"passages": 3, "citations": 4, "tokens": 5}):
        assert unpacked(zlib.compress(json.dumps(value).encode()), 0, None) is None


def test_a_file_that_is_no_database_is_told_and_nothing_raises_but_cache_away(tmp_path):
    path = tmp_path / "cache.db"
    path.write_bytes(b"this is no database, and long enough to be looked at " * 50)
    store = SqliteAnswers(path)
    with pytest.raises(CacheAway, match=r"cache\.db"):
        store.get("0" * 40)
    assert store.state.entries is None
    assert "cache.db" in store.state.problem
    path.unlink()  # moved away: the next call starts a new one
    assert store.keep(entry(), vector()) == []
    assert store.state.problem is None
    store.close()
    with pytest.raises(CacheAway):
        store.get("0" * 40)


def test_a_locked_file_is_not_waited_for(tmp_path):
    store = SqliteAnswers(tmp_path / "cache.db")
    store.keep(entry(), vector())
    other = sqlite3.connect(tmp_path / "cache.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(CacheAway, match="locked"):
        store.keep(entry("other?"), vector())
    assert store.get(entry().id) is not None
    other.execute("ROLLBACK")
    other.close()
    store.keep(entry("other?"), vector())
    store.close()


def test_redis_answers_carry_their_own_time_to_live(redis_server):
    import redis

    store = RedisAnswers(redis_server.url, ttl_seconds=100, wait_seconds=PATIENCE)
    store.purge()
    store.keep(entry(), vector())
    client = redis.Redis.from_url(redis_server.url)
    assert 0 < client.ttl(f"{PREFIX}a:{entry().id}") <= 100
    client.delete(f"{PREFIX}a:{entry().id}")  # as if it had expired
    store.touch(entry().id)
    assert client.exists(f"{PREFIX}a:{entry().id}") == 0
    assert store.page() == []
    assert store.state.entries == 0  # and its place in the lists went with it
    store.close()
    client.close()


def test_looking_for_what_is_new_does_not_read_every_answer(tmp_path):
    store = SqliteAnswers(tmp_path / "cache.db")
    with store._open() as db:
        asked = "EXPLAIN QUERY PLAN SELECT id, question, vector, created FROM answers WHERE created >= 1 AND expires > 1"
        plan = " ".join(str(row) for row in db.execute(asked).fetchall())
    assert "answers_created" in plan
    store.close()
