"""The reports' five allocations; never more than there is; monotone; cures that cure; speed bounds; offers; flags."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from deploy.planner import catalogue, cures, flags, fleet, limits, presets, request
from deploy.planner.figures import GIB
from deploy.planner.memory import CONTEXT_BYTES
from deploy.planner.placement import Plan, plan
from deploy.planner.request import Request, Service
from rag.errors import RagError

PRICES = {"A100 80GB": 900.0, "H100 80GB": 2000.0, "L4": 300.0}
LLAMA, QWEN, AWQ = "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-8B", "Qwen/Qwen3-8B-AWQ"


def one(gpu: str = "L4", count: int = 1, buffer_gb: float = 1.0, **service: object) -> Request:
    asked = Service("llm", str(service.pop("model", LLAMA)), **service)  # type: ignore[arg-type]
    return Request("test", catalogue.gpu(gpu), count, buffer_gb, services=(asked,))


def held(found: Plan, index: int) -> int:
    """Bytes given out on a GPU, contexts included, counted anew from the services."""
    here = [each for each in found.services if index in each.gpus]
    return sum(each.reserved_bytes for each in here) + len({each.service.runs_in for each in here}) * CONTEXT_BYTES


# the reports


def test_l4_vllm_at_half_beside_both_bge_models() -> None:
    found = plan(presets.preset("l4"))
    assert found.fits and found.service("vllm").share == 0.5
    assert found.service("vllm").max_sequences == 2  # of 16,000 tokens
    command = flags.command(found, found.service("vllm"))
    assert command is not None
    for words in ("Qwen/Qwen3-8B-AWQ", "--gpu-memory-utilization 0.50", "--max-model-len 16000", "CUDA_VISIBLE_DEVICES=0"):
        assert words in command
    pool = flags.command(found, found.service("embedder"))
    assert pool == flags.command(found, found.service("reranker"))
    assert pool is not None and "--embedder BAAI/bge-m3 --reranker BAAI/bge-reranker-v2-m3" in pool
    assert found.gpus[0].contexts_bytes == 2 * CONTEXT_BYTES  # both BGE models live in one process


def test_a100_80_vllm_at_070_beside_both_bge_models() -> None:
    found = plan(presets.preset("a100-80"))
    vllm = found.service("vllm")
    assert found.fits and vllm.share == 0.70
    assert vllm.reserved_bytes == pytest.approx(58e9, rel=0.05)  # measured there: 58 GB
    both = sum(found.service(name).need.weights.value_bytes for name in ("embedder", "reranker"))
    assert both == pytest.approx(2.2e9, rel=0.05)  # measured there: 2.2 GB
    assert found.gpus[0].free_bytes + found.gpus[0].buffer_bytes == pytest.approx(21e9, rel=0.05)  # measured there: 21 GB


def test_t4_the_reranker_alone_takes_two_to_three_gb() -> None:
    found = plan(presets.preset("t4"))
    assert found.fits and found.service("reranker").share is None
    assert 2e9 <= held(found, 0) <= 3e9


def test_a100_40_the_amounts_keep_the_buffer_and_the_stated_shares_do_not() -> None:
    found = plan(presets.preset("a100-40"))
    assert found.fits
    assert [found.service(name).share for name in ("ocr", "whisper", "embedding", "llm")] == [0.30, 0.15, 0.15, 0.32]
    assert sum(each.share or 0 for each in found.services) * 40 <= 40 - 3
    said = " ".join(found.notes)
    assert "add up to 0.95 and leave 2 GB, less than the buffer of 3 GB" in said and "for llm" in said
    assert "--runner pooling" in (flags.command(found, found.service("embedding")) or "")
    assert "which is 14 GB of 40" in " ".join(found.service("llm").notes)


def test_a100_40_with_the_stated_shares_alone_breaks_the_buffer() -> None:
    asked = presets.preset("a100-40")
    stated = replace(asked, services=tuple(replace(each, reserve_gb=None) for each in asked.services))
    found = plan(stated)
    assert [each.service.name for each in found.services if not each.fits] != []


def test_h100x8_gives_four_two_one_and_one() -> None:
    found = plan(presets.preset("h100x8"))
    assert found.fits
    assert {each.service.name: each.gpus for each in found.services} == {
        "llm": (0, 1, 2, 3), "ocr": (4, 5), "embedding": (6,), "whisper": (7,),
    }  # fmt: skip
    assert found.service("llm").need.weights.value_bytes == pytest.approx(141.1e9 / 4, rel=0.01)
    command = flags.command(found, found.service("llm"))
    assert command is not None and "--tensor-parallel-size 4" in command and command.startswith("CUDA_VISIBLE_DEVICES=0,1,2,3 ")
    assert (found.service("llm").max_sequences or 0) >= 15  # 10 to 15 users


# properties

names = st.sampled_from([LLAMA, QWEN, AWQ, "google/gemma-2-9b-it", "deepseek-ai/DeepSeek-V2-Lite-Chat", "openai/gpt-oss-20b",
                         "Qwen/Qwen3-30B-A3B", "BAAI/bge-m3", "openai/whisper-large-v3"])  # fmt: skip
services = st.builds(
    Service,
    name=st.text("abcdef", min_size=1, max_size=4),
    model=names,
    engine=st.sampled_from(["vllm", "gpu_server", "other"]),
    precision=st.sampled_from(["", "bf16", "fp8", "awq"]),
    context=st.integers(1, 40_000),
    sequences=st.integers(1, 64),
    cache=st.sampled_from(["auto", "fp8"]),
    split=st.sampled_from([1, 1, 2, 4]),
    reserve_gb=st.none() | st.floats(0.1, 90),
    stated_share=st.none() | st.floats(0.05, 1),
    fill=st.booleans(),
    process=st.sampled_from(["", "", "shared"]),
).map(lambda each: _that_can_be(each))


def _that_can_be(service: Service) -> Service:
    """Each vLLM is a process of its own; our GPU server keeps a model on one GPU, in 16 bits."""
    if service.engine == "vllm":
        return replace(service, process="")
    own = service.engine == "gpu_server"
    return replace(service, split=1, precision="bf16", process=service.process and "pool") if own else service


def planned(asked: Request) -> Plan:
    """The plan, but for widths that cannot be cut into so many parts: these have tests of their own."""
    try:
        return plan(asked)
    except RagError as refused:
        assert "cannot be divided" in refused.message
        reject()


requests = st.builds(
    Request,
    name=st.just("any"),
    gpu=st.sampled_from(list(catalogue.gpus().values())),
    count=st.integers(1, 4),
    buffer_gb=st.floats(0, 8),
    buffer_holds_contexts=st.booleans(),
    services=st.lists(services, min_size=1, max_size=5, unique_by=lambda each: each.name).map(tuple),
)


@settings(max_examples=150, deadline=None)
@given(requests)
def test_never_gives_out_more_than_there_is(asked: Request) -> None:
    found = planned(asked)
    buffer = int(asked.gpu.usable_bytes * asked.buffer_gb / asked.gpu.nominal_gb)
    for use in found.gpus:
        taken = held(found, use.index)
        assert taken <= asked.gpu.usable_bytes
        assert use.free_bytes >= 0 and use.buffer_bytes >= 0
        assert taken + use.buffer_bytes + use.free_bytes == asked.gpu.usable_bytes
        if use.services and not asked.buffer_holds_contexts:
            assert taken + buffer <= asked.gpu.usable_bytes
    for each in found.services:
        if each.fits:
            assert len(each.gpus) == each.service.split and each.need.inside_bytes <= each.reserved_bytes
            assert sum(size for _, size in each.parts()) <= each.reserved_bytes
        else:
            assert each.problem and (each.short_bytes > 0 or each.service.split > asked.count)
        assert each.reserved_bytes >= 0 and (each.reserved_bytes == 0 or each.gpus)
        if each.share is not None and each.fits:
            assert math.ceil(each.share * asked.gpu.usable_bytes) >= each.need.inside_bytes


@settings(max_examples=80, deadline=None)
@given(names, st.integers(1, 60_000), st.integers(1, 60_000), st.integers(1, 300), st.integers(1, 300))
def test_needs_grow_with_context_and_sequences(name: str, context: int, more: int, sequences: int, others: int) -> None:
    def needed(context: int, sequences: int) -> int:
        return plan(one("H200", model=name, context=context, sequences=sequences)).services[0].need.inside_bytes

    assert needed(context, sequences) <= needed(context + more, sequences)
    assert needed(context, sequences) <= needed(context, sequences + others)


@pytest.mark.parametrize("family", [["Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B", QWEN, "Qwen/Qwen3-14B", "Qwen/Qwen3-32B"],
                                    ["meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-3B-Instruct", LLAMA,
                                     "meta-llama/Llama-3.3-70B-Instruct"]])  # fmt: skip
@pytest.mark.parametrize("precision", ["bf16", "fp8", "awq"])
def test_needs_grow_with_the_model(family: list[str], precision: str) -> None:
    needed = [plan(one("H200", model=name, precision=precision)).services[0].need.inside_bytes for name in family]
    assert needed == sorted(needed) and len(set(needed)) == len(needed)


@settings(max_examples=40, deadline=None)
@given(names, st.integers(16, 30_000), st.integers(1, 40))
def test_what_is_said_to_be_carried_fits_and_one_more_does_not(name: str, context: int, sequences: int) -> None:
    placed = plan(one("H200", model=name, context=context, sequences=sequences, fill=True)).services[0]
    if placed.model.shape.kind != "decoder" or not placed.fits:
        return
    longest = limits.longest_context(placed)
    assert longest is not None and placed.max_sequences is not None
    assert limits.concurrency(placed, longest) is None or (limits.concurrency(placed, longest) or 0) >= sequences
    if longest + 16 <= placed.model.shape.max_context:
        assert (limits.concurrency(placed, longest + 16) or 0) < sequences
    assert placed.max_sequences >= sequences


# cures


def test_the_smallest_change_comes_first_and_each_one_cures() -> None:
    found = plan(one("L4", context=32_768, sequences=8))
    tried = cures.cures(found, "llm")
    assert "tokens of context instead of 32,768" in tried[0].text
    assert len(tried) >= 3
    for each in tried:
        assert plan(each.request).fits, each.text
    context = tried[0].request.services[0].context
    assert not plan(one("L4", context=context + 16, sequences=8)).fits  # no longer context would do


def test_quantising_more_gpus_or_a_larger_gpu_cure_what_less_context_cannot() -> None:
    found = plan(one("L4", 2, model="mistralai/Mistral-Small-24B-Instruct-2501", context=2048, sequences=1))
    texts = [each.text for each in cures.cures(found, "llm")]
    assert any("AWQ" in text for text in texts) and any("A100" in text or "L40S" in text for text in texts)
    assert not any("context" in text for text in texts)


def test_two_changes_are_tried_where_one_is_not_enough() -> None:
    found = plan(one("H200", model="meta-llama/Llama-3.3-70B-Instruct", context=131_072, sequences=60))
    tried = cures.cures(found, "llm")
    assert tried and all(" and " in each.text for each in tried)
    assert all(plan(each.request).fits for each in tried)


def test_two_settings_come_before_new_hardware() -> None:
    found = plan(one("L4", model="Qwen/Qwen2.5-14B-Instruct", context=32_768, sequences=4))
    texts = [each.text for each in cures.cures(found, "llm")]
    assert " and " in texts[0] and "GPUs instead of" in texts[-1]


def test_an_amount_that_is_too_small_is_named_and_cured() -> None:
    found = plan(one("A100 40GB", reserve_gb=12))
    problem = found.services[0].problem
    assert "are missing" in problem
    assert any("instead of what is stated" in each.text for each in cures.cures(found, "llm"))


def test_a_service_that_fits_needs_no_cure() -> None:
    assert cures.cures(plan(one("A100 80GB")), "llm") == ()


# tensor parallelism, placement


@pytest.mark.parametrize(("model", "split", "good"), [(LLAMA, 2, True), (LLAMA, 8, True), (LLAMA, 3, False), ("Qwen/Qwen2.5-7B-Instruct", 8, False),
                                                      ("microsoft/phi-4", 4, False), ("microsoft/phi-4", 10, True)])  # fmt: skip
def test_heads_must_be_divisible(model: str, split: int, good: bool) -> None:
    asked = one("H100 80GB", 16, model=model, split=split)
    if good:
        assert plan(asked).fits
        return
    with pytest.raises(RagError, match="cannot be divided") as caught:
        plan(asked)
    assert "Take 1, 2" in caught.value.next_step


@pytest.mark.parametrize(
    ("model", "precision", "split", "why"),
    [("Qwen/Qwen3-30B-A3B", "awq", 8, "a width of 768 in groups of 128"), ("Qwen/Qwen3-30B-A3B", "bf16", 8, ""),
     ("openai/gpt-oss-20b", "awq", 2, "a width of 2,880 in groups of 128"), (AWQ, "", 8, ""),
     ("deepseek-ai/DeepSeek-V3", "", 8, ""), ("Qwen/Qwen2.5-32B-Instruct", "gptq", 8, "")],
)  # fmt: skip
def test_widths_and_groups_must_be_divisible(model: str, precision: str, split: int, why: str) -> None:
    """vLLM refuses to load a matrix whose part on a GPU does not hold whole groups."""
    asked = one("H200", 8, model=model, precision=precision, split=split, context=2048, sequences=1)
    if not why:
        assert plan(asked).services[0].need.inside_bytes > 0
        return
    with pytest.raises(RagError, match=why):
        plan(asked)


def test_a_process_of_our_gpu_server_is_on_one_gpu_and_in_one_width() -> None:
    both = (Service("a", "BAAI/bge-m3", "gpu_server", context=512, sequences=8, process="pool", gpus=(1,)),
            Service("b", "BAAI/bge-reranker-v2-m3", "gpu_server", "fp32", context=512, sequences=8, process="pool"))  # fmt: skip
    found = plan(Request("x", catalogue.gpu("L4"), 2, services=both))
    assert found.service("a").gpus == found.service("b").gpus == (1,)
    assert found.service("a").precision == "fp32" and found.service("a").need.weights.value_bytes == 4 * 567_754_752
    apart = (both[0], replace(both[1], gpus=(0,)))
    assert "is on GPU" in " ".join(each.problem for each in plan(Request("x", catalogue.gpu("L4"), 2, services=apart)).services)
    for change, words in (({"split": 2}, "one GPU"), ({"precision": "awq"}, "no awq weights")):
        with pytest.raises(RagError, match=words):
            plan(Request("x", catalogue.gpu("L4"), 2, services=(replace(both[1], **change),)))


def test_two_vllms_are_two_processes() -> None:
    both = tuple(Service(name, "Qwen/Qwen2-0.5B-Instruct", process="one") for name in ("a", "b"))
    with pytest.raises(RagError, match="shares the process one"):
        plan(Request("x", catalogue.gpu("L4"), services=both))


def test_a_reserve_below_a_cuda_context_takes_nothing_from_the_others() -> None:
    little = Service("little", "BAAI/bge-m3", "gpu_server", context=16, sequences=1, reserve_gb=0.1)
    rest = Service("rest", "Qwen/Qwen3-4B", context=2048, sequences=1, fill=True)
    found = plan(Request("x", catalogue.gpu("L4"), buffer_gb=0.0, services=(little, rest)))
    assert not found.service("little").fits and held(found, 0) <= found.request.gpu.usable_bytes


def test_more_gpus_than_there_are_is_said() -> None:
    assert "takes 4 GPUs and there are 2" in plan(one("L4", 2, split=4)).services[0].problem


def test_small_services_share_a_gpu_and_leave_others_whole() -> None:
    both = tuple(Service(name, "BAAI/bge-m3", "gpu_server", context=512, sequences=8) for name in ("a", "b"))
    found = plan(Request("small", catalogue.gpu("L4"), 3, services=both))
    assert found.service("a").gpus == found.service("b").gpus
    assert sum(not use.services for use in found.gpus) == 2


def test_a_turing_card_gets_fp16_where_bf16_is_published() -> None:
    assert plan(one("T4", model="Qwen/Qwen2.5-1.5B-Instruct", context=2048)).services[0].precision == "fp16"


# speed and cost


def test_decoding_is_bound_by_reading_the_weights_once_a_step() -> None:
    found = plan(one("H100 80GB", context=16, sequences=1))
    alone = limits.bounds(found.services[0], found.request.gpu).decode_alone
    embedding = 128_256 * 4096 * 2
    assert alone == pytest.approx(3350e9 / (16_060_522_496 - embedding + 16 * 131_072))


def test_a_mixture_of_experts_reads_what_is_chosen() -> None:
    placed = plan(one("A100 80GB", model="Qwen/Qwen3-30B-A3B")).services[0]
    alone, many = limits.read_bytes(placed, 1), limits.read_bytes(placed, 10_000)
    assert alone == pytest.approx(2 * 3.03e9, rel=0.02)  # 3.3 billion active, less the embedding of 0.31
    assert many == pytest.approx(placed.need.weights.value_bytes - 151_936 * 2048 * 2, rel=1e-6)


def test_offers_are_ordered_by_cost_and_say_why_not() -> None:
    service = Service("llm", LLAMA)
    demand = fleet.Demand(requests_per_second=2, prompt_tokens=2000, answer_tokens=200)
    found = fleet.offers(service, demand, {name: fleet.GpuPrice(eur, "2026-03", "a test") for name, eur in PRICES.items()})
    by_name = {each.gpu.name: each for each in found}
    assert "tokens a second" in by_name["T4"].why_not or by_name["T4"].split > 1
    priced = [each.eur_month for each in found if not each.why_not and each.eur_month is not None]
    assert priced == sorted(priced) and len(priced) == 3
    assert by_name["H200"].eur_month is None and not by_name["H200"].why_not
    for each in found:
        if not each.why_not:
            assert each.copies * (each.requests_per_second or 0) >= demand.requests_per_second
            assert (each.stream or 0) >= demand.least_tokens_per_second


def test_a_larger_load_never_takes_fewer_gpus() -> None:
    taken = []
    for rate in (0.1, 1.0, 10.0, 100.0):
        offers = fleet.offers(Service("llm", AWQ), fleet.Demand(requests_per_second=rate), {})
        taken.append({each.gpu.name: each.copies * each.split for each in offers if not each.why_not})
    for less, more in zip(taken, taken[1:], strict=False):
        assert all(more[name] >= less[name] for name in less)


def test_prices_of_the_report_are_examples_and_others_are_unknown() -> None:
    assert {name: price.eur_month for name, price in fleet.example_prices().items()} == {"T4": 40.0, "V100 16GB": 80.0}


def test_an_embedder_is_no_language_model_to_offer_gpus_for() -> None:
    with pytest.raises(RagError):
        fleet.offers(Service("e", "BAAI/bge-m3", "gpu_server"), fleet.Demand(), {})


# flags


def test_flags_hold_the_plan_and_the_share_holds_the_need() -> None:
    found = plan(one("A100 80GB", context=10_000, sequences=7, cache="fp8", precision="fp8"))
    placed = found.services[0]
    words = shlex.split(flags.command(found, placed) or "")
    values = dict(zip(words, words[1:], strict=False))
    assert values["--max-model-len"] == "10000" and values["--max-num-seqs"] == "7" and values["--kv-cache-dtype"] == "fp8"
    assert values["--quantization"] == "fp8"
    assert float(values["--gpu-memory-utilization"]) * found.request.gpu.usable_bytes >= placed.need.inside_bytes


def test_an_encoder_s_texts_fit_into_one_step() -> None:
    """vLLM cuts no text of an encoder into chunks: with fewer batched tokens than --max-model-len it does not start."""
    for model in ("BAAI/bge-m3", "Qwen/Qwen3-Embedding-0.6B"):
        found = plan(one("L4", model=model, context=8192, sequences=4))
        words = shlex.split(flags.command(found, found.services[0]) or "")
        values = dict(zip(words, words[1:], strict=False))
        assert values["--max-model-len"] == "8192" and int(values["--max-num-batched-tokens"]) >= 8192
        short = plan(one("L4", model=model, context=512, sequences=4)).services[0].need
        assert found.services[0].need.activation.value_bytes > short.activation.value_bytes


def test_fp8_weights_are_made_only_of_16_bit_ones_and_what_that_takes_is_said() -> None:
    made = plan(one("L40S", model="Qwen/Qwen2.5-32B-Instruct", precision="fp8", context=2048, sequences=1))
    assert "--quantization fp8" in (flags.command(made, made.services[0]) or "")
    assert "hold 61 GiB of bf16 first" in " ".join(made.services[0].notes)
    named = plan(one("L40S", model="Qwen/Qwen2.5-32B-Instruct", precision="fp8", context=2048, sequences=1, weights="x/y-FP8"))
    assert "--quantization" not in (flags.command(named, named.services[0]) or "") and named.services[0].notes == ()


def test_several_vllms_on_a_gpu_are_started_one_after_another() -> None:
    assert "start ocr, then whisper, then embedding, then llm" in " ".join(plan(presets.preset("a100-40")).notes)
    assert not any("start " in each for each in plan(presets.preset("l4")).notes)


def test_quantised_weights_that_nobody_named_are_not_passed_off_as_the_model_s_own() -> None:
    found = plan(one("L4", precision="awq"))
    assert f"<AWQ weights of {LLAMA}>" in shlex.split(flags.command(found, found.services[0]) or "")
    named = plan(one("L4", precision="awq", weights="somebody/Llama-AWQ"))
    assert "serve somebody/Llama-AWQ" in (flags.command(named, named.services[0]) or "")


def test_compose_names_devices_and_kubernetes_counts_them() -> None:
    found = plan(presets.preset("h100x8"))
    llm = found.service("llm")
    device = flags.compose_service(found, llm)["deploy"]["resources"]["reservations"]["devices"][0]
    assert device["device_ids"] == ["0", "1", "2", "3"] and flags.compose_service(found, llm)["ipc"] == "host"
    assert flags.kubernetes_container(found, llm)["resources"]["limits"] == {"nvidia.com/gpu": 4}
    assert not flags.shares_gpu(found, llm)
    small = plan(presets.preset("l4"))
    assert flags.shares_gpu(small, small.service("vllm"))


def test_a_share_that_fills_is_rounded_down_and_leaves_the_buffer() -> None:
    found = plan(one("H100 80GB", buffer_gb=5, fill=True))
    share = found.services[0].share
    assert share is not None and round(share * 100) == pytest.approx(share * 100)
    left = found.request.gpu.usable_bytes * (1 - share) - CONTEXT_BYTES
    assert 5 / 80 * found.request.gpu.usable_bytes <= left < 5 / 80 * found.request.gpu.usable_bytes + 0.01 * 80 * GIB


# requests


@settings(max_examples=60, deadline=None)
@given(requests)
def test_a_request_survives_toml_and_json(asked: Request) -> None:
    assert request.from_toml(request.to_toml(asked)) == asked
    assert request.from_json(request.to_json(asked)) == asked


def test_a_gpu_of_one_s_own_is_described_and_survives() -> None:
    text = 'gpu = { name = "RTX 5090", nominal_gb = 32, usable_mib = 32000, bandwidth_gb_s = 1792 }\n'
    asked = request.from_toml(text + '[[services]]\nname = "a"\nmodel = "Qwen/Qwen3-8B"\n')
    assert asked.gpu.name == "RTX 5090" and request.from_json(request.to_json(asked)) == asked
    placed = plan(asked).services[0]
    assert limits.bounds(placed, asked.gpu).prefill is None and limits.bounds(placed, asked.gpu).decode is not None


@pytest.mark.parametrize(
    "change",
    [{"gpu": "Voodoo"}, {"count": 0}, {"count": True}, {"services": []}, {"services": "x"}, {"extra": 1}, {"buffer_gb": -1},
     {"buffer_gb": float("nan")}, {"gpu": {"name": "x"}}, {"gpu": None}, {"name": "a\nb"}],
)  # fmt: skip
def test_a_plan_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    good = request.to_dict(presets.preset("t4"))
    with pytest.raises(RagError) as caught:
        request.from_dict({**good, **change})
    assert caught.value.kind == "bad_input"


@pytest.mark.parametrize(
    "change",
    [{"context": 0}, {"context": 1.5}, {"sequences": -1}, {"precision": "fp3"}, {"cache": "q"}, {"engine": "x"}, {"split": 0},
     {"gpus": [9]}, {"gpus": [0, 0]}, {"gpus": "0"}, {"reserve_gb": "12"}, {"stated_share": 1.2}, {"port": 0}, {"what": 1},
     {"name": ""}, {"model": "x" * 501}, {"fill": "yes"}],
)  # fmt: skip
def test_a_service_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    good = request.to_dict(presets.preset("t4"))
    with pytest.raises(RagError):
        request.from_dict({**good, "services": [{**good["services"][0], **change}]})
