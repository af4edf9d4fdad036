"""Readings in a real SQLite file: kept, replaced, found again; locked, full, damaged and forbidden files cost no query."""

from __future__ import annotations

import math
import random
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from latency.readings.store import ReadingStore, pack, unpack
from latency.types import LOCAL, Fact, QueryReadings, Series, Use
from tests.collectors.sshd import eventually


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "readings.db"


@pytest.fixture
def store(path: Path) -> Iterator[ReadingStore]:
    store = ReadingStore(path)
    yield store
    store.close()


def readings(query_id: str = "q1", started: float = 1000.0, value: float = 0.5) -> QueryReadings:
    times = (-0.05, 0.0, 0.051, 2.5)
    return QueryReadings(
        query_id,
        started,
        2.4,
        (Series(LOCAL, "cpu.busy_ratio", times, (value, None, 1, 0)), Series("llm", "engine.waiting", (0.25,), (3.0,))),
        (Fact(LOCAL, "gpu.0.throttle_reasons", "sw_power_cap", 0.1, 0.9),),
        (Use(LOCAL, 7, "python", "docker 3f2a", 0, 5, 1.5, True), Use("gpu-vm", 8, "שלום")),
        ("The machine gpu-vm could not be read: refused.",),
    )


def typical() -> QueryReadings:
    """Ten seconds on a machine with a GPU, an engine and two disks, as noisy as such readings are."""
    chance = random.Random(7)
    fast = tuple(index * 0.05 + chance.uniform(0, 0.002) for index in range(-20, 215))
    host = tuple(index * 0.1 + chance.uniform(0, 0.002) for index in range(-10, 108))
    slow = tuple(index * 0.5 for index in range(-2, 22))

    def noisy(times: tuple[float, ...], level: float, digits: int) -> tuple[float, ...]:
        return tuple(round(level * chance.uniform(0.8, 1.2), digits) for _ in times)

    def stepped(times: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(chance.choice((0.0, 0.97, 0.98, 1.0)) if index % 4 else 0.97 for index, _ in enumerate(times))

    series = [
        Series(LOCAL, "gpu.0.utilization_ratio", fast, stepped(fast)),
        Series(LOCAL, "gpu.0.slowed", fast, (0,) * len(fast)),
    ]
    series.append(Series(LOCAL, "gpu.0.memory_used_bytes", fast, (21_474_836_480,) * len(fast)))
    series += [Series(LOCAL, f"gpu.0.{name}", fast, noisy(fast, 250, 1)) for name in ("power_watts", "sm_clock_mhz")]
    series += [Series(LOCAL, f"cpu.{name}", host, noisy(host, 0.4, 4)) for name in ("busy_ratio", "iowait_ratio")]
    series += [Series(LOCAL, "process.cpu_ratio", host, noisy(host, 1.2, 4))]
    series += [Series(LOCAL, f"disk.{disk}.busy_ratio", host, noisy(host, 0.1, 4)) for disk in ("sda", "sdb")]
    series += [Series(LOCAL, f"slow.{index}", slow, noisy(slow, 40, 1)) for index in range(10)]
    series += [Series("vllm", f"engine.{name}", slow, (1.0,) * len(slow)) for name in ("running", "waiting")]
    return QueryReadings("typical", 1.7e9, 10.7, tuple(series))


def test_what_was_saved_is_found_before_and_after_it_is_written(store: ReadingStore) -> None:
    store.save(readings())
    assert store.get("q1") == readings()
    assert store.flush() and store.health().backlog == 0
    assert store.get("q1") == readings()
    assert store.get("q2") is None
    assert store.health().ok


def test_a_later_version_replaces_the_first(store: ReadingStore, path: Path) -> None:
    store.save(readings(value=0.1))
    assert store.flush()
    store.save(readings(value=0.2))
    assert store.flush()
    assert store.get("q1") == readings(value=0.2)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM readings").fetchone() == (1,)


def test_many_at_once(store: ReadingStore) -> None:
    for number in range(700):
        store.save(readings(f"q{number}"))
        if number % 100 == 0:
            assert store.flush()
    store.save(readings("waiting"))
    wanted = [f"q{number}" for number in range(0, 700, 7)] + ["waiting", "unknown", "q0"]
    found = store.get_many(wanted)
    assert set(found) == set(wanted) - {"unknown"} and found["q14"].query_id == "q14"
    assert store.get_many([]) == {}


def test_it_is_there_after_a_restart(path: Path) -> None:
    first = ReadingStore(path)
    first.save(readings())
    assert first.close()
    second = ReadingStore(path)
    assert second.get("q1") == readings()
    assert second.close()
    second.save(readings("late"))
    assert second.get("late") is None and second.health().dropped == 1


def test_old_ones_are_deleted(store: ReadingStore) -> None:
    assert store.delete_before(10.0) == 0  # there is no file yet
    for number in range(1200):
        store.save(readings(f"q{number}", started=float(number)))
        if number % 200 == 199:
            assert store.flush()
    assert store.delete_before(1100.0) == 1100
    assert store.get("q1099") is None and store.get("q1100") is not None
    assert store.delete_before(1100.0) == 0


def test_what_is_deleted_stays_away_though_its_last_samples_come_later(store: ReadingStore, path: Path) -> None:
    assert store.delete(["nobody"]) == 0 and not path.exists()
    for name in ("q1", "q2"):
        store.save(readings(name, value=0.123456789))
    assert store.delete(["q1", "nobody"]) == 1
    store.save(readings("q1"))
    assert store.flush() and store.get("q1") is None and store.get("q2") is not None
    wanted = [f"n{number}" for number in range(1200)]
    for name in wanted[::3]:
        store.save(readings(name))
    assert store.delete(wanted) == 400 - store.health().dropped


def test_of_many_that_are_deleted_at_once_the_newest_are_remembered(store: ReadingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latency.readings.store.MOST_DELETED", 3)
    store.delete([f"q{number}" for number in range(9, 0, -1)])  # newest first, as they are listed
    for number in range(1, 10):
        store.save(readings(f"q{number}"))
    assert store.flush() and set(store.get_many([f"q{number}" for number in range(1, 10)])) == {f"q{n}" for n in range(1, 7)}


def test_typical_readings_are_small() -> None:
    body = pack(typical())
    assert len(body) < 10 * 1024, len(body)
    found = unpack(body)
    assert [each.metric for each in found.series] == [each.metric for each in typical().series]
    for kept, given in zip(found.series, typical().series, strict=True):
        assert kept.values == given.values
        assert all(math.isclose(one, other, abs_tol=0.0006) for one, other in zip(kept.times, given.times, strict=True))


def test_a_locked_file_is_waited_for(store: ReadingStore, path: Path) -> None:
    store.save(readings("before"))
    assert store.flush()
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        store.save(readings("meanwhile"))
        assert store.get("meanwhile") is not None
        assert eventually(lambda: not store.health().ok)
        assert "locked" in str(store.health().error) and store.health().backlog == 1
        assert not store.flush(0.05)
        other.execute("ROLLBACK")
    assert store.flush(15.0)
    assert store.health().ok and store.get("meanwhile") is not None


def test_a_full_disk_costs_nothing_but_the_oldest(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sqlite3.connect
    limited = threading.Event()
    limited.set()

    def connect(*arguments: object, **named: object) -> sqlite3.Connection:
        db = real(*arguments, **named)  # type: ignore[call-overload]
        if limited.is_set():
            db.execute("PRAGMA max_page_count = 3")  # what a full disk looks like to SQLite
        return db

    monkeypatch.setattr(sqlite3, "connect", connect)
    store = ReadingStore(path, capacity=5)
    for number in range(40):
        store.save(readings(f"q{number}"))
    assert eventually(lambda: "full" in str(store.health().error))
    assert store.health().backlog == 5 and store.health().dropped >= 30
    assert store.get("q39") is not None
    limited.clear()
    assert store.flush(15.0) and store.health().ok
    assert store.get("q39") is not None
    assert store.close()


@pytest.mark.parametrize("garbage", [b"this is no database" * 500, b"SQLite format 3\x00" + bytes(2000)])
def test_a_damaged_file_is_set_aside(path: Path, garbage: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(garbage)
    store = ReadingStore(path)
    assert store.get("q0") is None  # reading it raises nothing
    store.save(readings())
    assert store.flush(15.0)
    assert store.get("q1") == readings() and store.health().ok
    (aside,) = path.parent.glob("readings.db.damaged-*")
    assert aside.read_bytes() == garbage
    assert store.close()


def test_a_file_that_is_damaged_later_is_set_aside_too(path: Path) -> None:
    store = ReadingStore(path)
    store.save(readings())
    assert store.flush() and store.close()
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 40_000)
    store = ReadingStore(path)
    store.save(readings("after"))
    assert store.flush(15.0)
    assert store.get("after") is not None
    assert store.close()


def test_a_body_that_cannot_be_read_hides_no_other(store: ReadingStore, path: Path) -> None:
    store.save(readings("good"))
    store.save(readings("bad"))
    assert store.flush()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE readings SET body = ? WHERE query_id = 'bad'", (b"nonsense",))
    assert set(store.get_many(["good", "bad"])) == {"good"}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = ReadingStore(tmp_path / "file" / "readings.db")
    store.save(readings())
    assert eventually(lambda: not store.health().ok)
    assert store.get("q1") == readings() and store.delete_before(1e12) == 0
    assert not store.close(0.2)


def test_what_is_no_json_holds_up_no_other(store: ReadingStore) -> None:
    store.save(QueryReadings("odd", 1.0, 1.0, notes=(b"bytes",)))  # type: ignore[arg-type]
    store.save(readings())
    assert store.flush(10.0)
    assert store.get("q1") is not None and store.get("odd") is None
    assert store.health().dropped == 1


def test_a_file_that_was_moved_away_is_made_anew(store: ReadingStore, path: Path) -> None:
    store.save(readings("old"))
    assert store.flush()
    for part in path.parent.iterdir():
        part.unlink()
    store.save(readings("new"))
    assert store.flush() and path.exists()
    assert store.get("new") is not None and store.get("old") is None


def test_many_threads(store: ReadingStore) -> None:
    def save(number: int) -> None:
        for each in range(20):
            store.save(readings(f"q{number}-{each}"))
            assert store.get(f"q{number}-{each}") is not None

    threads = [threading.Thread(target=save, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.flush()
    assert len(store.get_many(f"q{number}-{each}" for number in range(4) for each in range(20))) == 80
