"""Each cause by itself on synthetic cases: found first with its saving, and a near miss that is not it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from latency.findings import CODES, find
from latency.types import LOCAL, Baseline, Case, Fact, Finding, Usual
from latency.types import Use as U
from rag.types import Answer, HydeEffect, Options, Stage
from tests.latency import cases as c
from tests.latency.cases import during, readings_of, within

NOTHING = Baseline()
USUAL = c.usual()
HYDE_USUAL = replace(c.usual(found=c.with_hyde(1.2)), hyde_both=40, hyde_changed=2)


def cut(found: tuple[c.Part, ...], stage: str, **changes: object) -> tuple[c.Part, ...]:
    return c.replace_part(found, stage, **changes)


def case(
    stage: str | None = None, *, readings: Callable[[Answer], object] = c.calm, found: object = None, **changes: object
) -> Case:
    """The healthy query with one part changed."""
    parts = found or c.parts()
    if stage is not None:
        parts = cut(parts, stage, **changes)  # type: ignore[arg-type]
    return c.make(parts, readings=readings)  # type: ignore[arg-type]


def on_machine(stage: str, values: dict[str, tuple[float, float]], reason: str = "", uses: tuple[U, ...] = (), **more: object):  # type: ignore[no-untyped-def]
    """Readings that show (inside, outside) values while a stage runs, and a throttle reason."""

    def readings(answer: Answer):  # type: ignore[no-untyped-def]
        window = during(answer, stage)
        series = {name: within(window, *pair) for name, pair in values.items()}
        facts = [Fact(LOCAL, "gpu.0.throttle_reasons", reason, *window)] if reason else []
        return readings_of(answer, series, facts=facts, uses=uses, **more)

    return readings


HOT = on_machine(
    "rerank",
    {"gpu.0.sm_clock_mhz": (680.0, 2040.0), "gpu.0.temperature_celsius": (92.0, 60.0), "gpu.0.utilization_ratio": (0.97, 0.1)},
    "sw_thermal_slowdown",
)
CAPPED = on_machine(
    "rerank", {"gpu.0.sm_clock_mhz": (900.0, 2040.0), "gpu.0.power_watts": (72.0, 30.0)}, "sw_power_cap, gpu_idle"
)
TRAINING = U(LOCAL, 4711, "train.py", "docker 3f2a", gpu=0, memory_bytes=6 * c.GIB)
SHARED = on_machine("rerank", {"gpu.0.utilization_ratio": (0.99, 0.99)}, uses=(TRAINING,))
LOW = on_machine("rerank", {"gpu.0.sm_clock_mhz": (345.0, 345.0), "gpu.0.utilization_ratio": (0.9, 0.1)})
FULL = on_machine("rerank", {"gpu.0.memory_used_ratio": (0.99, 0.99)})
HOG = on_machine(
    "rerank", {"cpu.busy_ratio": (0.98, 0.98)}, uses=(U(LOCAL, 99, "ffmpeg", "unit nightly.service", cpu_ratio=7.0),)
)
OURS = on_machine("rerank", {"cpu.busy_ratio": (0.98, 0.98), "process.cpu_ratio": (7.0, 7.0)})
DISK = on_machine("search", {"disk.nvme0n1.busy_ratio": (0.98, 0.97), "pressure.io.some_10s_ratio": (0.6, 0.5)})
WAITING = on_machine("generate", {}, engine={"waiting": 4.0, "kv_cache_used_ratio": 0.4})
KV_FULL = on_machine("generate", {}, engine={"waiting": 4.0, "kv_cache_used_ratio": 0.99, "preemptions": 1.0})


def asleep(answer: Answer):  # type: ignore[no-untyped-def]
    off = Fact(LOCAL, "gpu.0.persistence_enabled", "off", -0.25, answer.total_seconds)
    return readings_of(answer, {"gpu.0.utilization_ratio": within(during(answer, "embed"), 0.3, 0.0)}, facts=[off])


CPU = {"device": "cpu", "compute": 1.4}
ON_GPU = {**USUAL.usual}
REMOTE = {"where": "http", "device": None, "network": 0.01}
SILENT = {**REMOTE, "label": "score the candidates (network estimated)"}
REMOTE_KEY = next(key for key in USUAL.usual if key.stage == "rerank")._replace(where="http", device=None)
BUILT_ANEW = replace(USUAL, usual={**USUAL.usual, REMOTE_KEY: Usual(20, 1.9, 1.85, fixed=1.8, per_unit=0.00125, spread=0.02)})
QUICK_REMOTE = replace(USUAL, usual={**USUAL.usual, REMOTE_KEY: Usual(20, 0.2, 0.19, per_unit=0.00475, spread=0.01)})
MANY = tuple(part if part.stage != "rerank" else c.rerank(1.5, 300) for part in cut(c.parts(), "search", facts={"limit": 300}))


def many_candidates() -> Case:
    return c.make(MANY, readings=c.calm, options=Options(hyde="off", candidates=300))


def known_effect(changed: bool) -> Case:
    return c.make(c.with_hyde(1.2), readings=c.calm, hyde_effect=HydeEffect(changed, 0.4 if changed else 1.0))


def cached(hit: bool | None, near_equal: int) -> Case:
    found = c.make((c.Part("cache", 0.002, facts={"near_equal": near_equal}), *c.parts()), readings=c.calm)
    cache = Stage("cache", 0.002, hit=hit, reason="hit" if hit else "no semantic cache is set up")
    stages = tuple(cache if stage.stage == "cache" else stage for stage in found.answer.stages)
    return replace(found, answer=replace(found.answer, stages=stages))


REFUSED = {"attempts": 2, "waited_seconds": 0.9, "errors": ["503: no worker is free"]}
LATE = {"attempts": 2, "waited_seconds": 2.0, "errors": ["TimeoutError: no answer before the time limit"]}

# code -> (the case, what is usual, the saving expected)
FOUND: dict[str, tuple[Case, Baseline, float]] = {
    "model_loaded": (case("rerank", load=1.84, cold=True), USUAL, 1.84),
    "first_run": (case("rerank", compute=0.2 + 1.1, cold=True), USUAL, 1.1),
    "remote_model_per_request": (case("rerank", **{**SILENT, "compute": 1.85}), BUILT_ANEW, 1.75),
    "reranker_on_cpu": (case("rerank", **CPU), USUAL, 1.2),
    "embedder_on_cpu": (case("embed", device="cpu", compute=0.6), USUAL, 0.58),
    "hyde_cost": (c.make(c.with_hyde(1.2), readings=c.calm), HYDE_USUAL, (1.2 + 0.065) * 0.95),
    "network_store": (case(found=(c.embed(), c.search(trip=0.15, trips=4), c.rerank(), c.generate())), USUAL, 0.596),
    "network_model": (case("rerank", **{**REMOTE, "network": 0.45}), USUAL, 0.449),
    "store_unflushed": (case("search", compute=0.03 + 0.7, facts={"unflushed_rows": 4000}), USUAL, 0.7),
    "store_not_loaded": (case("search", load=0.8, facts={"open_seconds": 0.8, "loaded": False}), USUAL, 0.8),
    "too_many_candidates": (many_candidates(), USUAL, 1.28),
    "prompt_too_long": (case(found=(*c.parts()[:3], c.generate(ttft=1.05, prompt=10_500))), USUAL, 0.9),
    "decode_slow": (case(found=(*c.parts()[:3], c.generate(rate=40.0))), USUAL, 99 / 40 - 0.99),
    "answer_long": (case(found=(*c.parts()[:3], c.generate(tokens=300))), USUAL, 2.0),
    "ttft_slow": (case(found=(*c.parts()[:3], c.generate(ttft=0.95))), USUAL, 0.8),
    "llm_queue": (
        case(found=(*c.parts()[:3], c.generate(ttft=0.75, facts={"server_queue_seconds": 0.6})), readings=WAITING),
        USUAL,
        0.6,
    ),
    "kv_cache_full": (
        case(found=(*c.parts()[:3], c.generate(ttft=0.75, facts={"server_queue_seconds": 0.6})), readings=KV_FULL),
        USUAL,
        0.6,
    ),
    "gpu_shared": (case("rerank", compute=0.8, readings=SHARED), USUAL, 0.6),
    "gpu_throttled": (case("rerank", compute=0.8, readings=HOT), USUAL, 0.6),
    "gpu_clocks_low": (case("rerank", compute=0.8, readings=LOW), USUAL, 0.6),
    "gpu_persistence_off": (case("embed", compute=1.2, readings=asleep), USUAL, 1.18),
    "vram_full": (case("rerank", compute=0.8, readings=FULL), USUAL, 0.6),
    "cpu_saturated": (case("rerank", compute=0.8, readings=HOG), USUAL, 0.6),
    "cpu_ours": (case("rerank", compute=0.8, readings=OURS), USUAL, 0.6),
    "disk_saturated": (case("search", compute=0.6, readings=DISK), USUAL, 0.57),
    "cache_misses": (cached(False, 3), USUAL, 1.33),
    "retries": (case("generate", other=0.9, facts=REFUSED), USUAL, 0.9),
    "padding_waste": (case("rerank", facts={"padded_tokens": 24_000}), USUAL, 0.15),
    "client_queue": (case("rerank", queue=0.8), USUAL, 0.8),
    "server_queue": (case("rerank", **{**REMOTE, "queue": 0.8}), USUAL, 0.8),
}

# code -> cases that look like it and are not
MISSED: dict[str, list[tuple[Case, Baseline]]] = {
    "model_loaded": [(case("rerank", load=0.03, cold=True), USUAL), (case("search", load=0.9), USUAL)],
    "first_run": [
        (case("rerank", compute=0.23, cold=True), USUAL),
        (case("rerank", compute=1.3), USUAL),
        (case("rerank", compute=1.3, cold=True), NOTHING),
    ],
    "remote_model_per_request": [
        (case("rerank", **{**REMOTE, "compute": 1.85}), BUILT_ANEW),  # its server says that it computed
        (case("rerank", **{**SILENT, "compute": 0.2}), QUICK_REMOTE),
        (case("rerank", **{**SILENT, "compute": 0.3}), QUICK_REMOTE),
    ],
    "reranker_on_cpu": [
        (case("rerank", **CPU, readings=lambda answer: replace(c.calm(answer), series=(), facts=())), USUAL),
        (case("rerank", device="cpu", compute=0.05), NOTHING),
    ],
    "embedder_on_cpu": [(case("embed", device="cpu", compute=0.03), USUAL)],
    "hyde_cost": [
        (c.make(c.with_hyde(1.2), readings=c.calm), replace(HYDE_USUAL, hyde_both=9, hyde_changed=0)),
        (c.make(c.with_hyde(1.2), readings=c.calm), replace(HYDE_USUAL, hyde_changed=30)),
    ],
    "network_store": [
        (case(found=(c.embed(), c.search(trip=0.02, trips=2), c.rerank(), c.generate())), USUAL),
        (case("search", compute=0.7), USUAL),
    ],
    "network_model": [(case("rerank", **{**REMOTE, "network": 0.05}), USUAL)],
    "store_unflushed": [
        (case("search", facts={"unflushed_rows": 4000}), USUAL),
        (case("search", compute=0.7, facts={"unflushed_rows": 3}), USUAL),
    ],
    "store_not_loaded": [(case("search", load=0.02, facts={"open_seconds": 0.02}), USUAL)],
    "too_many_candidates": [(many_candidates(), replace(USUAL, rerank_moved=250.0)), (case(), USUAL)],
    "prompt_too_long": [
        (case(found=(*c.parts()[:3], c.generate(ttft=0.15, prompt=10_500))), USUAL),
        (case(found=(*c.parts()[:3], c.generate(ttft=1.05))), USUAL),
    ],
    "decode_slow": [
        (case(found=(*c.parts()[:3], c.generate(rate=85.0))), USUAL),
        (case(found=(*c.parts()[:3], c.generate(tokens=300))), USUAL),
    ],
    "answer_long": [
        (case(found=(*c.parts()[:3], c.generate(tokens=115))), USUAL),
        (case(found=(*c.parts()[:3], c.generate(rate=40.0))), USUAL),
    ],
    "ttft_slow": [
        (case(found=(*c.parts()[:3], c.generate(ttft=0.25))), USUAL),
        (case(found=(*c.parts()[:3], c.generate(ttft=0.95))), NOTHING),
    ],
    "llm_queue": [(case(readings=WAITING), USUAL)],
    "kv_cache_full": [(case(readings=KV_FULL), USUAL)],
    "gpu_shared": [
        (case(readings=SHARED), USUAL),
        (
            case("rerank", compute=0.8, readings=on_machine("rerank", {"gpu.0.utilization_ratio": (0.1, 0.1)}, uses=(TRAINING,))),
            USUAL,
        ),
    ],
    "gpu_throttled": [(case(readings=HOT), USUAL), (case("generate", queue=0.9, readings=HOT), USUAL)],
    "gpu_clocks_low": [(case(readings=LOW), USUAL), (case("rerank", compute=0.8, readings=HOT), USUAL)],
    "gpu_persistence_off": [(case(readings=asleep), USUAL), (case("rerank", compute=1.2, readings=asleep), USUAL)],
    "vram_full": [(case(readings=FULL), USUAL)],
    "cpu_saturated": [
        (case(readings=HOG), USUAL),
        (case("rerank", compute=0.8, readings=OURS), USUAL),
        (case("rerank", compute=0.8), USUAL),
    ],
    "cpu_ours": [(case(readings=OURS), USUAL), (case("rerank", compute=0.8, readings=HOG), USUAL)],
    "disk_saturated": [(case(readings=DISK), USUAL), (case("generate", compute=2.5, readings=DISK), USUAL)],
    "cache_misses": [(cached(True, 3), USUAL), (cached(False, 0), USUAL)],
    "retries": [
        (case("generate", other=0.9), USUAL),
        (case("generate", facts={"attempts": 2, "waited_seconds": 0.03, "errors": ["reset"]}), USUAL),
    ],
    "padding_waste": [(case("rerank", facts={"truncated": 12}), USUAL), (case("rerank", facts={"padded_tokens": 900}), USUAL)],
    "client_queue": [(case("rerank", queue=0.04), USUAL)],
    "server_queue": [(case("rerank", **{**REMOTE, "queue": 0.04}), USUAL)],
}


def told(found: tuple[Finding, ...]) -> str:
    return "\n".join(f"{each.code} {each.saving_seconds} {each.title} | {each.derivation}" for each in found) or "nothing"


def test_every_code_has_a_case_and_a_near_miss() -> None:
    assert set(FOUND) == set(CODES) == set(MISSED)


@pytest.mark.parametrize("code", FOUND)
def test_a_cause_is_found_first_with_what_its_removal_saves(code: str) -> None:
    query, usual, saving = FOUND[code]
    found = find(query, usual)
    assert found and found[0].code == code, told(found)
    first = found[0]
    assert first.saving_seconds == pytest.approx(saving, rel=0.12, abs=0.04), told(found)
    assert first.share == pytest.approx(first.saving_seconds / query.answer.total_seconds)
    assert first.evidence and first.change and first.derivation and first.query_ids == (query.answer.id,)
    assert first.title[0].isupper() and "{" not in first.title + first.derivation
    assert all(item.text.endswith((".", "…")) or "said:" in item.text for item in first.evidence)
    json.dumps(first.to_json())


@pytest.mark.parametrize(("code", "number"), [(code, number) for code, found in MISSED.items() for number in range(len(found))])
def test_what_only_looks_like_it_is_not_found(code: str, number: int) -> None:
    query, usual = MISSED[code][number]
    found = find(query, usual)
    assert code not in {each.code for each in found}, told(found)


def test_nothing_is_changed_and_the_answer_is_always_the_same() -> None:
    query, usual, _ = FOUND["gpu_throttled"]
    assert query.readings is not None
    before = json.dumps([query.answer.to_json(), query.readings.to_json()]), repr(usual)
    assert find(query, usual) == find(query, usual)
    assert before == (json.dumps([query.answer.to_json(), query.readings.to_json()]), repr(usual))


PAIRS = [
    (
        "model_loaded",
        "network_store",
        (c.embed(), c.search(trip=0.3, trips=2), replace(c.rerank(), load=1.0, cold=True), c.generate()),
    ),
    ("retries", "client_queue", cut(cut(c.parts(), "generate", other=1.0, facts=REFUSED), "rerank", queue=0.7)),
    (
        "decode_slow",
        "store_unflushed",
        (c.embed(), c.search(0.6, facts={"unflushed_rows": 4000}), c.rerank(), c.generate(rate=50.0)),
    ),
    (
        "prompt_too_long",
        "network_model",
        (c.embed(), c.search(), replace(c.rerank(), where="http", device=None, network=0.6), c.generate(0.95, prompt=9500)),
    ),
    ("ttft_slow", "store_not_loaded", (c.embed(), replace(c.search(), load=0.7), c.rerank(), c.generate(0.8))),
    ("decode_slow", "answer_long", (*c.parts()[:3], c.generate(tokens=250, rate=45.0))),
    ("llm_queue", "decode_slow", (*c.parts()[:3], c.generate(0.65, rate=50.0, facts={"server_queue_seconds": 0.5}))),
]


@pytest.mark.parametrize(("one", "two", "found"), PAIRS)
def test_two_causes_at_once_are_both_among_the_first_three(one: str, two: str, found: tuple[c.Part, ...]) -> None:
    codes = [each.code for each in find(c.make(found, readings=c.calm), USUAL)][:3]
    assert {one, two} <= set(codes), codes


@pytest.mark.parametrize(
    ("readings", "codes"),
    [
        (HOT, {"gpu_throttled", "client_queue"}),
        (SHARED, {"gpu_shared", "client_queue"}),
        (HOG, {"cpu_saturated", "client_queue"}),
    ],
)
def test_a_machine_and_a_direct_cause_are_told_apart(readings: Callable[[Answer], object], codes: set[str]) -> None:
    found = find(case("rerank", compute=0.8, queue=0.5, readings=readings), USUAL)
    assert {each.code for each in found[:3]} == codes, told(found)
    assert sum(each.saving_seconds or 0 for each in found) == pytest.approx(1.1, abs=0.08)


def test_two_machine_causes_share_what_is_beyond_the_usual() -> None:
    both = on_machine(
        "rerank",
        {"gpu.0.sm_clock_mhz": (1020.0, 2040.0), "gpu.0.utilization_ratio": (0.99, 0.99)},
        "hw_thermal_slowdown",
        uses=(TRAINING,),
    )
    found = find(case("rerank", compute=1.2, readings=both), USUAL)
    assert {each.code for each in found} == {"gpu_throttled", "gpu_shared"}, told(found)
    assert sum(each.saving_seconds or 0 for each in found) == pytest.approx(1.0, abs=0.05)


def test_a_machine_that_slows_several_stages_is_one_finding_with_their_sum() -> None:
    slow = cut(cut(c.parts(), "rerank", compute=0.8), "embed", compute=0.5)

    def busy(answer: Answer):  # type: ignore[no-untyped-def]
        return readings_of(answer, {"cpu.busy_ratio": 0.97}, uses=(U(LOCAL, 9, "stress", cpu_ratio=7.2),))

    found = find(c.make(slow, readings=busy), USUAL)
    assert [each.code for each in found] == ["cpu_saturated"], told(found)
    assert found[0].saving_seconds == pytest.approx(0.6 + 0.48, abs=0.06) and "stress (pid 9)" in str(found[0].evidence)


def test_without_a_baseline_only_what_was_measured_or_has_a_formula_is_told() -> None:
    for code in ("model_loaded", "network_store", "client_queue", "retries", "store_not_loaded", "llm_queue"):
        assert find(FOUND[code][0], NOTHING)[0].code == code
    for code in ("decode_slow", "gpu_shared", "cpu_saturated", "vram_full", "first_run", "disk_saturated"):
        assert code not in {each.code for each in find(FOUND[code][0], NOTHING)}
    throttled = find(FOUND["gpu_throttled"][0], NOTHING)
    assert throttled[0].code == "gpu_throttled" and throttled[0].confidence == "suspected"
    assert throttled[0].saving_seconds == pytest.approx(0.8 * (1 - 680 / 2040), abs=0.02)
    on_cpu = find(FOUND["reranker_on_cpu"][0], NOTHING)[0]
    assert on_cpu.confidence == "suspected" and "report" in on_cpu.derivation
    assert on_cpu.saving_seconds == pytest.approx(1.4 * (1 - 1 / 6.3), abs=0.02)


def test_a_timeout_hidden_in_a_retry_is_named() -> None:
    found = find(case("generate", other=2.0, facts=LATE), USUAL)[0]
    assert found.code == "retries" and "time limit" in str(found.evidence) and "in time" in found.change


def test_the_server_spans_of_vllm_tell_its_queue() -> None:
    query = case(found=(*c.parts()[:3], c.generate(ttft=0.75)))
    ours = next(span for span in query.spans if span.stage == "generate")
    said = {"gen_ai.latency.time_in_queue": 0.6, "gen_ai.latency.time_in_model_prefill": 0.14}
    span = replace(ours, span_id="f" * 16, parent_id=ours.span_id, attributes=said)
    found = find(replace(query, spans=(*query.spans, span)), USUAL)
    assert found[0].code == "llm_queue" and found[0].saving_seconds == pytest.approx(0.6) and found[0].confidence == "measured"


def test_a_queue_that_only_the_engines_metrics_show_is_derived() -> None:
    found = find(case(found=(*c.parts()[:3], c.generate(ttft=0.95)), readings=WAITING), USUAL)
    assert found[0].code == "llm_queue" and found[0].confidence == "derived"
    assert found[0].saving_seconds == pytest.approx(0.8, rel=0.1) and any(
        "4 requests waiting" in item.text for item in found[0].evidence
    )


def test_hyde_tells_what_it_did_in_this_query() -> None:
    found = find(known_effect(False), HYDE_USUAL)[0]
    assert found.code == "hyde_cost" and "2 of the 40 queries" in str(found.evidence) and "did not change" in str(found.evidence)


def test_causes_measured_come_before_those_suspected_of_the_same_size() -> None:
    slow = cut(cut(c.parts(), "generate", other=0.9, facts=REFUSED), "rerank", **{**SILENT, "compute": 1.0})
    found = find(c.make(slow, readings=c.calm), QUICK_REMOTE)
    assert [each.code for each in found[:2]] == ["retries", "remote_model_per_request"], told(found)


def test_odd_facts_of_other_programs_are_ignored() -> None:
    odd = {
        "attempts": "many",
        "waited_seconds": -3,
        "candidates": None,
        "tokens": True,
        "errors": 5,
        "open_seconds": float("nan"),
    }
    parts = tuple(replace(part, facts={**part.facts, **odd}) for part in c.parts())
    query = c.make(parts, readings=c.calm)
    assert find(query, USUAL) == find(query, NOTHING) == ()
    assert find(Case(replace(query.answer, total_seconds=0.0, stages=(), timeline=())), USUAL) == ()
