"""Parameter counts, weights and cache bytes against what publishers, papers and servers' logs say, and against transformers' modules."""

from __future__ import annotations

import json
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.planner import cache, catalogue, memory, precisions, shapes, tensors
from deploy.planner.figures import GIB, MIB
from deploy.planner.memory import Load
from rag.errors import RagError

CONFIGS: Mapping[str, dict[str, Any]] = {
    each["name"]: each["config"] for each in tomllib.loads((catalogue.HERE / "models.toml").read_text())["models"]
}
LLAMA_405B = {"model_type": "llama", "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
              "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256}  # fmt: skip
QWEN_72B = {"model_type": "qwen2", "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 152064}  # fmt: skip
QWEN_235B = {"model_type": "qwen3_moe", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 94,
             "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "num_experts": 128,
             "num_experts_per_tok": 8, "moe_intermediate_size": 1536}  # fmt: skip

# (model, precision, bytes, who says so)
WEIGHTS = (
    ("meta-llama/Llama-3.1-8B-Instruct", "bf16", 16_060_522_496, "total_size of its model.safetensors.index.json"),
    ("meta-llama/Llama-3.1-8B-Instruct", "fp8", 9_081_280_648, "bytes of its published FP8 checkpoint, a scale a tensor"),
    ("meta-llama/Llama-3.1-8B-Instruct", "q4_k_m", 4_920_738_944, "size of the GGUF file that ollama serves as llama3.1:8b"),
    ("openai/gpt-oss-20b", "mxfp4", 13_761_264_768, "total_size of its model.safetensors.index.json"),
    ("openai/gpt-oss-120b", "mxfp4", round(60.8 * GIB), "checkpoint size in the gpt-oss model card: 60.8 GiB"),
    ("Qwen/Qwen3-8B-AWQ", "awq", round(5.71 * GIB), "`Model loading took 5.71 GiB` in vLLM's log"),
    ("Qwen/Qwen2.5-32B-Instruct", "bf16", 65_527_752_704, "total_size of its model.safetensors.index.json"),
    ("google/gemma-2-9b-it", "bf16", 18_483_411_968, "bytes of its weights on the hub"),
    ("meta-llama/Llama-2-13b-chat-hf", "fp16", 26_032_558_592, "bytes of Meta's consolidated files"),
    ("Qwen/Qwen3-Embedding-4B", "bf16", 7671 * MIB, "memory_usage_mb of its model card in MTEB"),
    ("BAAI/bge-m3", "fp32", 2167 * MIB, "memory_usage_mb of its model card in MTEB"),
    ("Qwen/Qwen2.5-1.5B-Instruct", "bf16", round(2.89 * GIB), "`model weights take 2.89GiB` in vLLM's log"),
)
# (name, shape, GPUs, bytes a token and GPU, who says so)
CACHES = (
    ("DeepSeek-V3", "deepseek-ai/DeepSeek-V3", 1, 70_272, "Insights into DeepSeek-V3 (2025), table 1: 70.272 KB, latent attention"),
    ("Qwen2.5-72B", QWEN_72B, 1, 327_680, "the same table: 327.680 KB, grouped queries"),
    ("Llama-3.1-405B", LLAMA_405B, 1, 516_096, "the same table: 516.096 KB, grouped queries"),
    ("Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", 1, 4.60 * GIB / (2356 * 16), "vLLM's log: 4.60 GiB are 2,356 blocks of 16"),
    ("Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B-Instruct", 1, 2.36 * GIB / (5519 * 16), "vLLM's log: 2.36 GiB are 5,519 blocks of 16"),
    ("Qwen3-235B on 4", QWEN_235B, 4, 8.11 * GIB / 178_880, "vLLM issue 21348: 8.11 GiB are 178,880 tokens"),
    ("Qwen2-VL-7B", "Qwen/Qwen2-VL-7B-Instruct", 1, 1.75 * GIB / 32_768, "Qwen3-VL issue 55: 1.75 GiB for 32,768 tokens"),
    ("gpt-oss-20b", "openai/gpt-oss-20b", 1, 49_152, "24 layers × 2 × 8 heads × 64 × 2 bytes in its config, while no window is full"),
    ("Llama-2-13B", "meta-llama/Llama-2-13b-chat-hf", 1, 800 * 1024, "vLLM paper (2023), 1: 800 KB for a 13B with 40 × 5,120, all heads"),
    ("Qwen3-8B", "Qwen/Qwen3-8B", 1, 147_456, "36 layers × 2 × 8 heads × 128 × 2 bytes in its config"),
)  # fmt: skip


def shape_of(name: str | dict[str, Any]) -> shapes.Shape:
    return catalogue.model(name).shape if isinstance(name, str) else shapes.from_config(name)


def test_at_least_twenty_five_models_are_known_each_with_its_source() -> None:
    known = catalogue.models()
    assert len(known) >= 25
    assert all(each.source and each.published_parameters for each in known.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_the_count_from_the_config_is_the_published_one(name: str) -> None:
    model = catalogue.model(name)
    stored_twice = model.shape.vocab * model.shape.hidden if name == "Qwen/Qwen3-1.7B" else 0  # the tied head is in the file too
    assert tensors.parameters(model.shape) + stored_twice == model.published_parameters


@pytest.mark.parametrize(("name", "precision", "published", "source"), WEIGHTS)
def test_weights_are_the_published_bytes(name: str, precision: str, published: int, source: str) -> None:
    counted = precisions.weights(catalogue.model(name).shape, precision)
    assert counted.value_bytes == pytest.approx(published, rel=0.02), source
    assert counted.formula and counted.source


@pytest.mark.parametrize(("name", "shape", "split", "published", "source"), CACHES)
def test_a_token_s_cache_is_the_published_size(
    name: str, shape: str | dict[str, Any], split: int, published: float, source: str
) -> None:
    assert cache.token_bytes(shape_of(shape), "auto", split) == pytest.approx(published, rel=0.02), f"{name}: {source}"


# A small model of each family, built by transformers without memory, has as many parameters as counted.
FAMILIES = {
    "llama": {"model_type": "llama", "num_key_value_heads": 2},
    "llama-tied": {"model_type": "llama", "num_key_value_heads": 1, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "num_key_value_heads": 2, "head_dim": 24},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 32},
    "gemma2": {"model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 32},
    "gemma3": {"model_type": "gemma3_text", "num_key_value_heads": 1, "head_dim": 32},
    "phi3": {"model_type": "phi3", "num_key_value_heads": 2, "tie_word_embeddings": False},
    "mixtral": {"model_type": "mixtral", "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"model_type": "qwen3_moe", "num_key_value_heads": 2, "head_dim": 32, "num_experts": 6, "num_experts_per_tok": 2,
                  "moe_intermediate_size": 48},
    "qwen2_moe": {"model_type": "qwen2_moe", "num_key_value_heads": 2, "num_experts": 6, "num_experts_per_tok": 2,
                  "moe_intermediate_size": 48, "shared_expert_intermediate_size": 80},
    "gpt_oss": {"model_type": "gpt_oss", "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v2": {"model_type": "deepseek_v2", "n_routed_experts": 4, "n_shared_experts": 2, "num_experts_per_tok": 2,
                    "moe_intermediate_size": 48, "first_k_dense_replace": 1, "q_lora_rank": None, "kv_lora_rank": 32,
                    "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 24},
    "deepseek_v3": {"model_type": "deepseek_v3", "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2,
                    "topk_group": 1, "moe_intermediate_size": 48, "first_k_dense_replace": 2, "q_lora_rank": 40, "kv_lora_rank": 32,
                    "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 24},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_count_is_that_of_transformers_modules(family: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    size = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 512}
    config = {**size, "max_position_embeddings": 256, "pad_token_id": 0, **FAMILIES[family]}
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        made = CONFIG_MAPPING[config["model_type"]](**{key: value for key, value in config.items() if key != "model_type"})
        model = AutoModelForCausalLM.from_config(made)
    there = sum(each.numel() for each in model.parameters())
    balance = sum(buffer.numel() for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias"))
    assert tensors.parameters(shapes.from_config(config)) == there + balance


@pytest.mark.parametrize("name", ["BAAI/bge-m3", "BAAI/bge-reranker-v2-m3", "openai/whisper-large-v3-turbo"])
def test_encoders_and_speech_have_as_many_parameters_as_in_transformers(name: str) -> None:
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration, XLMRobertaConfig, XLMRobertaForSequenceClassification
    from transformers import XLMRobertaModel as Encoder

    config = {key: value for key, value in CONFIGS[name].items() if key not in ("model_type", "architectures")}
    with torch.device("meta"):
        if "whisper" in name:
            heads = {"encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "pad_token_id": 50256}
            model: Any = WhisperForConditionalGeneration(WhisperConfig(**config, **heads))
        elif "reranker" in name:
            model = XLMRobertaForSequenceClassification(XLMRobertaConfig(**config))
        else:
            model = Encoder(XLMRobertaConfig(**config))
    assert tensors.parameters(catalogue.model(name).shape) == sum(each.numel() for each in model.parameters())


# cache


def test_layers_with_a_window_stop_growing() -> None:
    gemma = catalogue.model("google/gemma-3-1b-it").shape
    assert [window for window in gemma.windows if window] == [512] * 22 and gemma.windows[5] is None

    def size(context: int) -> int:
        return cache.sequence_bytes(gemma, context, batched=256)

    entry = 1 * 256 * 2 * 2
    assert size(512) == (4 + 24) * 512 * entry  # 22 layers with a window fill six groups of four
    assert size(20_000 * 16) - size(10_000 * 16) == 4 * 160_000 * entry  # only the four full layers grow


@pytest.mark.parametrize(
    ("full", "windowed", "held"), [(5, 29, 30), (10, 52, 60), (12, 12, 12), (12, 13, 13), (12, 17, 17), (12, 18, 24)]
)
def test_windows_are_kept_in_groups_of_one_size(full: int, windowed: int, held: int) -> None:
    """As vLLM's kv_cache_utils groups the layers of hybrid models: Gemma 3 4B, 27B, gpt-oss, and with a drafter's layer."""
    shape = replace(catalogue.model("google/gemma-3-1b-it").shape, windows=(None,) * full + (1024,) * windowed)
    groups = cache.held_layers(shape)
    assert groups[1024] == held and groups[None] >= full and groups[None] % groups[1024] in (0, groups[None])


def test_the_config_s_own_bits_and_groups_count() -> None:
    """8-bit GPTQ weights are twice as large as 4-bit ones, and smaller groups have more scales."""
    config = dict(CONFIGS["Qwen/Qwen3-8B-AWQ"])
    linear = 36 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12_288)

    def size(**quantised: Any) -> int:
        shape = shapes.from_config({**config, "quantization_config": quantised})
        return precisions.weights(shape, quantised["quant_method"]).value_bytes

    usual = size(quant_method="awq", bits=4, group_size=128)
    assert usual == precisions.weights(shapes.from_config(config), "awq").value_bytes
    assert size(quant_method="awq", bits=4, group_size=32) - usual == linear * 2.5 * (1 / 32 - 1 / 128)
    eight = size(quant_method="gptq", bits=8, group_size=128) - size(quant_method="gptq", bits=4, group_size=128)
    assert eight == linear * (0.5 + 0.5 / 128)


def test_an_8_bit_cache_takes_half_and_more_gpus_than_heads_hold_copies() -> None:
    qwen = catalogue.model("Qwen/Qwen3-30B-A3B").shape
    assert cache.token_bytes(qwen, "fp8") * 2 == cache.token_bytes(qwen)
    assert cache.token_bytes(qwen, "auto", 4) == cache.token_bytes(qwen, "auto", 8) == cache.token_bytes(qwen) // 4
    latent = catalogue.model("deepseek-ai/DeepSeek-V3").shape
    assert cache.token_bytes(latent, "auto", 8) == cache.token_bytes(latent)


def test_contexts_are_rounded_up_to_blocks_of_16() -> None:
    llama = catalogue.model("meta-llama/Llama-3.1-8B-Instruct").shape
    assert cache.sequence_bytes(llama, 1, 2048) == cache.sequence_bytes(llama, 16, 2048) == 16 * 131_072
    assert cache.sequence_bytes(llama, 17, 2048) == 32 * 131_072


def test_an_encoder_has_no_cache_and_speech_has_its_frames() -> None:
    assert cache.key_values(catalogue.model("BAAI/bge-m3").shape, 512, 32, 16_384).value_bytes == 0
    whisper = catalogue.model("openai/whisper-large-v3").shape
    assert cache.sequence_bytes(whisper, 448, 2048) == 32 * (448 + 1504) * 2 * 1280 * 2


# weights over several GPUs


def test_tensor_parallelism_cuts_matrices_and_copies_what_is_small() -> None:
    llama = catalogue.model("meta-llama/Llama-3.3-70B-Instruct").shape
    whole, quarter = (precisions.weights(llama, "bf16", split).value_bytes for split in (1, 4))
    norms = (2 * 80 + 1) * 8192 * 2
    assert quarter == (whole - norms) // 4 + norms
    sixteenth = precisions.weights(llama, "bf16", 16).value_bytes
    keys = 2 * 80 * 1024 * 8192 * 2
    assert sixteenth == (whole - norms - keys) // 16 + keys // 8 + norms  # eight key-value heads: sixteen GPUs hold each twice


def test_activation_is_what_vllm_reports_within_a_tenth() -> None:
    llama = catalogue.model("meta-llama/Llama-3.1-8B-Instruct").shape
    counted = memory.activation(llama, Load(8192, 256, 8192), 2)
    assert counted.value_bytes == pytest.approx(1.225 * GIB, rel=0.1)  # 1.19 to 1.26 GiB in the logs that its source names


# folders and configs of strangers


def test_a_folder_s_own_files_win_over_the_count(tmp_path: Path) -> None:
    config = {**CONFIGS["Qwen/Qwen3-4B"], "architectures": ["Qwen3ForCausalLM"], "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = catalogue.model(str(tmp_path))
    assert (model.precision, model.kind, model.stored) == ("bf16", "llm", None)
    assert memory.weights_of(model, "bf16", 1).value_bytes == 2 * 4_022_468_096
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 8_000_000_000}}))
    stored = catalogue.model(str(tmp_path))
    assert memory.weights_of(stored, "bf16", 1).value_bytes == 8_000_000_000
    assert memory.weights_of(stored, "bf16", 2).value_bytes == pytest.approx(4_000_000_000, rel=0.001)
    assert memory.weights_of(stored, "fp8", 1).value_bytes < 5_000_000_000  # what is not stored is counted


def test_a_single_weight_file_is_measured_by_its_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["Qwen/Qwen3-8B-AWQ"]))
    (tmp_path / "model.safetensors").write_bytes(b"0" * 4096)
    model = catalogue.model(str(tmp_path))
    assert model.precision == "awq" and model.stored is not None and model.stored.value_bytes == 4096


def test_a_folder_whose_model_sees_says_that_its_tower_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["google/gemma-3-4b-it"]))
    assert "vision tower is not counted" in catalogue.model(str(tmp_path)).note


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"model_type": "mamba"}', '{"model_type": 3}', '{"model_type": "llama", "hidden_size": -1}',
     '{"model_type": "llama", "hidden_size": 1e300}', '{"model_type": "llama", "hidden_size": true}', "[" * 100_000],
)  # fmt: skip
def test_what_is_no_config_is_refused_in_words(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RagError) as caught:
        catalogue.model(str(tmp_path))
    assert caught.value.kind == "bad_input"


@pytest.mark.parametrize(
    "change",
    [{"num_key_value_heads": 3}, {"num_hidden_layers": 10**6}, {"quantization_config": {"quant_method": "magic"}},
     {"quantization_config": {"quant_method": "awq", "bits": 3}}, {"num_attention_heads": "8"}, {"vocab_size": None}],
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RagError):
        shapes.from_config({**CONFIGS["meta-llama/Llama-3.1-8B-Instruct"], **change})


def test_a_name_that_is_not_in_the_table_is_refused_and_paths_only_where_they_are_allowed(tmp_path: Path) -> None:
    with pytest.raises(RagError, match="not in the table"):
        catalogue.model("nobody/nothing")
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["Qwen/Qwen3-4B"]))
    with pytest.raises(RagError, match="not in the table"):
        catalogue.model(str(tmp_path), folders=False)
