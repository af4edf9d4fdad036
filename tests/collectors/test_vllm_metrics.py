"""Pages of /metrics as readings: names old and new, rates and quantiles between two scrapes, and pages that are broken."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from collectors.readings import metrics
from collectors.vllm_metrics import Engine, EngineSample, engine, parse, quantile, sample_of
from collectors.vllm_metrics import Histogram as Buckets

DATA = Path(__file__).parent / "data/vllm"


def page(name: str) -> str:
    return (DATA / f"{name}.txt").read_text()


def test_one_scrape_gives_what_is_now_and_no_rates():
    reading = engine(parse(page("v1_first")))
    assert (reading.models, reading.running, reading.waiting) == ("Qwen/Qwen3-8B-AWQ", 3.0, 0.0)
    assert reading.kv_cache_used_ratio == 0.125 and reading.swapped is None
    assert reading.seconds is None and reading.generation_tokens_per_second is None and reading.ttft_p95_seconds is None
    assert "engine.ttft_p95_seconds" not in metrics(reading) and metrics(reading)["engine.running"] == 3.0


def test_two_scrapes_of_v1():
    """Between the pages everything grew by two tenths: 20 requests, 24,000 prompt tokens, … in ten seconds."""
    reading = engine(parse(page("v1_second")), parse(page("v1_first")), 10.0)
    assert (reading.running, reading.waiting, reading.kv_cache_used_ratio) == (5.0, 2.0, 0.5)
    assert reading.prompt_tokens_per_second == 2400.0 and reading.generation_tokens_per_second == 600.0
    assert reading.requests_per_second == 2.0 and reading.preemptions == 3.0
    assert reading.prefix_cache_hit_ratio == 0.25
    # 20 first tokens: 4 up to 0.1 s, 8 up to 0.25 s, 4 up to 0.5 s, 4 from 0.75 to 1 s
    assert reading.ttft_p50_seconds == pytest.approx(0.1 + 0.15 * 6 / 8)
    assert reading.ttft_p95_seconds == pytest.approx(0.75 + 0.25 * 3 / 4)
    # 700 tokens: 200 up to 10 ms, 400 up to 25 ms, 100 up to 50 ms
    assert reading.per_token_p50_seconds == pytest.approx(0.01 + 0.015 * 150 / 400)
    assert reading.per_token_p99_seconds == pytest.approx(0.025 + 0.025 * 93 / 100)
    assert reading.queue_p50_seconds == pytest.approx(0.3 * 10 / 18)
    assert reading.request_p95_seconds == pytest.approx(2.5 + 2.5 * 3 / 4)
    assert reading.restarted is False


def test_two_scrapes_of_v0():
    reading = engine(parse(page("v0_second")), parse(page("v0_first")), 5.0)
    assert (reading.running, reading.waiting, reading.swapped, reading.kv_cache_used_ratio) == (2.0, 4.0, 1.0, 0.75)
    assert reading.prefix_cache_hit_ratio == 0.4, "v0 tells it itself"
    assert reading.prompt_tokens_per_second == 200.0
    assert reading.per_token_p50_seconds == pytest.approx(0.05)
    assert reading.requests_per_second is None, "not on the page: unknown, not 0"


def test_a_hit_rate_that_v0_does_not_know():
    text = page("v0_first").replace(
        'gpu_prefix_cache_hit_rate{model_name="Qwen/Qwen3-8B-AWQ"} 0.4', "gpu_prefix_cache_hit_rate -1.0"
    )
    assert engine(parse(text)).prefix_cache_hit_ratio is None


def test_two_engines_behind_one_server():
    reading = engine(parse(page("v1_two_engines")))
    assert (reading.running, reading.waiting) == (5.0, 4.0), "added up"
    assert reading.kv_cache_used_ratio == 0.9, "the fuller one"


def test_the_new_name_wins_over_the_old_one():
    text = 'vllm:gpu_cache_usage_perc{engine="0"} 0.7\nvllm:kv_cache_usage_perc{engine="0"} 0.1\n'
    assert engine(parse(text)).kv_cache_used_ratio == 0.1


def test_nothing_happened_in_between():
    same = parse(page("v1_first"))
    reading = engine(same, same, 2.0)
    assert reading.generation_tokens_per_second == 0.0, "known to be none"
    assert reading.ttft_p95_seconds is None and reading.prefix_cache_hit_ratio is None, "nothing was observed"


def test_a_server_that_was_started_anew():
    before, after = parse(page("v1_second")), parse(page("v1_first"))
    reading = engine(after, before, 10.0)
    assert reading.restarted is True
    assert reading.generation_tokens_per_second == 3000.0, "all since the restart, and nothing below zero"
    assert reading.ttft_p50_seconds is not None


@pytest.mark.parametrize("seconds", [0.0, -1.0, None])
def test_without_a_span_there_are_no_rates(seconds):
    first = parse(page("v1_first"))
    assert engine(first, first, seconds).seconds is None


def test_quantiles_of_a_real_histogram():
    """Against what the library itself writes: 100 observations, evenly up to one second."""
    registry = CollectorRegistry()
    histogram = Histogram("vllm:time_to_first_token_seconds", "TTFT", buckets=[0.1 * n for n in range(1, 11)], registry=registry)
    for n in range(1, 101):
        histogram.observe(n / 100 - 0.005)
    reading = engine(parse(generate_latest(registry).decode()), EngineSample(), 1.0)
    assert reading.ttft_p50_seconds == pytest.approx(0.5, abs=0.01)
    assert reading.ttft_p95_seconds == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(
    "buckets, share, expected",
    [
        ((), 0.5, None),
        (((1.0, 0.0), (float("inf"), 0.0)), 0.5, None),
        (((1.0, 0.0), (2.0, 0.0), (float("inf"), 3.0)), 0.5, 2.0),
        (((1.0, 4.0), (float("inf"), 4.0)), 0.5, 0.5),
        (((float("inf"), 4.0),), 0.5, 0.0),
    ],
)
def test_quantiles_at_the_edges(buckets, share, expected):
    assert quantile(Buckets(buckets), share) == expected


def test_a_broken_line_costs_only_itself():
    text = page("v1_first").replace("vllm:num_requests_waiting{", "vllm:num_requests_waiting{{{ \x00", 2)
    reading = engine(parse(text))
    assert reading.running == 3.0 and reading.waiting is None


def test_a_page_of_something_else():
    assert not parse("# HELP go_goroutines\ngo_goroutines 7\n").known
    assert not parse("").known and not parse("<html>vllm:</html>").known


def test_values_that_are_no_numbers_are_unknown():
    assert engine(parse("vllm:num_requests_running NaN\nvllm:num_requests_waiting +Inf\n")).running is None


LINES = st.one_of(
    st.text(max_size=60).map(lambda text: "vllm:" + text),
    st.builds(
        '{}{{le="{}",model_name="{}"}} {}'.format,
        st.sampled_from(["vllm:time_to_first_token_seconds_bucket", "te_request_duration_bucket", "vllm:prompt_tokens_total"]),
        st.one_of(st.floats(), st.text(max_size=5)),
        st.text(max_size=5),
        st.one_of(st.floats(), st.text(max_size=5)),
    ),
)


@given(st.lists(LINES, max_size=12), st.lists(LINES, max_size=12))
def test_any_page_is_read(first, second):
    reading = engine(parse("\n".join(second)), parse("\n".join(first)), 2.0)
    assert isinstance(reading, Engine)
    assert all(value == value for value in metrics(reading).values()), "never NaN"


def test_samples_can_come_from_elsewhere():
    rows = [
        ("vllm:num_requests_running", {"engine": "0", "model_name": "a"}, 1.0),
        ("vllm:num_requests_running", {"model_name": "b"}, 2.0),
    ]
    assert sample_of(rows).models == ("a", "b") and sample_of(rows).gauges == {"running": 3.0}
