"""A model's dimensions, read from its `config.json`. Knows nothing of bytes, precisions or GPUs.

The fields are those of the model classes of the transformers library. A config may come from anybody: every number is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from rag.errors import RagError

Kind = Literal["decoder", "encoder", "speech"]
MOST = 10_000_000

DECODERS = {
    "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "phi3",
    "deepseek_v2", "deepseek_v3", "gpt_oss",
}  # fmt: skip
ENCODERS = {"xlm-roberta", "roberta", "bert"}
# A model that also sees: what its language part is like. The vision tower is not counted from its config.
SEEING = {"gemma3": "gemma3_text", "qwen2_vl": "qwen2", "qwen2_5_vl": "qwen2", "dots_ocr": "qwen2", "mistral3": "mistral"}


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts. `dense_layers` are those before the first of them; `shared` is the width of what every token passes,
    0 for none; `shared_gate` a gate on it."""

    count: int
    per_token: int
    intermediate: int
    shared: int = 0
    shared_gate: bool = False
    dense_layers: int = 0
    biased: bool = False
    balance_bias: bool = False


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention: one compressed vector a token instead of keys and values a head. `query_rank` 0: the queries
    are not compressed."""

    query_rank: int
    key_value_rank: int
    rope: int
    nope: int


@dataclass(frozen=True, slots=True)
class Vision:
    """A vision tower as stated, not counted: `parameters`, and what its largest image takes (`patches`)."""

    parameters: int
    source: str
    hidden: int = 0
    intermediate: int = 0
    patches: int = 0


@dataclass(frozen=True, slots=True)
class Quantised:
    """What the config says of its weights: `awq`, `gptq`, `fp8`, `mxfp4`; the group a scale is for."""

    method: str
    bits: int
    group: int


@dataclass(frozen=True, slots=True)
class Shape:
    """Dimensions of a model. `windows` is a sliding window a layer, None for a layer that sees all. `encoder_layers` and
    `frames` are of speech models; `extra_vectors` and `classes` of encoders with a head."""

    model_type: str
    kind: Kind
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    intermediate: int
    vocab: int
    max_context: int
    windows: tuple[int | None, ...]
    tied: bool = False
    headless: bool = False
    query_bias: bool = False
    output_bias: bool = False
    head_norms: bool = False
    norms: int = 2
    sinks: bool = False
    positions: int = 0
    token_types: int = 0
    classes: int = 0
    encoder_layers: int = 0
    frames: int = 0
    mels: int = 0
    experts: Experts | None = None
    latent: Latent | None = None
    vision: Vision | None = None
    quantised: Quantised | None = None
    sees: bool = False

    @property
    def has_cache(self) -> bool:
        return self.kind != "encoder"


def from_config(config: Mapping[str, Any], vision: Vision | None = None) -> Shape:
    """The shape a config describes. Raises RagError (`bad_input`) for an architecture that is not known and for numbers that
    cannot be."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise _bad("it has no model_type")
    if model_type == "whisper":
        return _speech(config)
    if model_type in ENCODERS:
        return _encoder(config, model_type)
    sees = model_type in SEEING
    text = _text_part(config, model_type) if sees else config
    text_type = SEEING[model_type] if sees else model_type
    if text_type not in DECODERS:
        raise _bad(
            f"the architecture {model_type[:60]!r} is not known",
            "Known are " + ", ".join(sorted({*DECODERS, *ENCODERS, *SEEING, "whisper"})) + ".",
        )
    return replace(_decoder(text, text_type, config), model_type=model_type, sees=sees, vision=vision)


def _text_part(config: Mapping[str, Any], model_type: str) -> Mapping[str, Any]:
    inner = config.get("text_config")
    if not isinstance(inner, Mapping):
        return config
    outer = {key: config[key] for key in ("quantization_config", "tie_word_embeddings") if key in config}
    return {**_DEFAULTS.get(model_type, {}), **outer, **inner}


# Released configs of Gemma 3 leave out what equals the class's defaults.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "gemma3": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
    }
}


def _bad(what: str, next_step: str = "Give the config.json that the model's publisher ships.") -> RagError:
    return RagError(f"the model's config cannot be used: {what}", kind="bad_input", next_step=next_step)


def _number(config: Mapping[str, Any], *names: str, default: int | None = None, least: int = 1) -> int:
    """The first of the names that is there. Raises RagError where it is missing without a default, or cannot be."""
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST:
            raise _bad(f"{name} is {str(value)[:40]!r}")
        return value
    if default is None:
        raise _bad(f"it has no {names[0]}")
    return default


def _flag(config: Mapping[str, Any], name: str, default: bool) -> bool:
    value = config.get(name, default)
    return default if value is None else bool(value)


def _decoder(config: Mapping[str, Any], kind: str, whole: Mapping[str, Any]) -> Shape:
    hidden = _number(config, "hidden_size")
    layers = _number(config, "num_hidden_layers")
    heads = _number(config, "num_attention_heads")
    kv_heads = _number(config, "num_key_value_heads", default=heads)
    if layers > 1000 or heads % kv_heads:
        raise _bad(f"{layers} layers, {heads} heads and {kv_heads} key-value heads do not go together")
    latent = _latent(config) if kind.startswith("deepseek") else None
    head_dim = latent.nope + latent.rope if latent else _number(config, "head_dim", default=max(1, hidden // heads))
    return Shape(
        kind,
        "decoder",
        hidden,
        layers,
        heads,
        kv_heads,
        head_dim,
        _number(config, "v_head_dim", default=head_dim) if latent else head_dim,
        _number(config, "intermediate_size"),
        _number(config, "vocab_size"),
        _number(config, "max_position_embeddings", default=4096),
        _windows(config, kind, layers),
        tied=_flag(config, "tie_word_embeddings", kind.startswith("gemma")),
        headless=not any("CausalLM" in each or "Generation" in each for each in _architectures(whole)),
        query_bias=_flag(config, "attention_bias", kind in ("qwen2", "qwen2_moe", "gpt_oss")),
        output_bias=kind == "gpt_oss" or (kind == "llama" and _flag(config, "attention_bias", False)),
        head_norms=kind in ("qwen3", "qwen3_moe", "gemma3_text"),
        norms=4 if kind.startswith("gemma") else 2,
        sinks=kind == "gpt_oss",
        experts=_experts(config, kind),
        latent=latent,
        quantised=_quantised(whole),
    )


def _architectures(config: Mapping[str, Any]) -> tuple[str, ...]:
    found = config.get("architectures")
    return tuple(str(each) for each in found) if isinstance(found, list) and found else ("AnyForCausalLM",)


def _latent(config: Mapping[str, Any]) -> Latent:
    return Latent(
        _number(config, "q_lora_rank", default=0, least=0),
        _number(config, "kv_lora_rank"),
        _number(config, "qk_rope_head_dim"),
        _number(config, "qk_nope_head_dim"),
    )


def _experts(config: Mapping[str, Any], kind: str) -> Experts | None:
    if kind not in ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss"):
        return None
    count = _number(config, "num_local_experts", "num_experts", "n_routed_experts")
    per_token = _number(config, "num_experts_per_tok", "experts_per_token")
    width = _number(config, "moe_intermediate_size", "intermediate_size")
    deepseek = kind.startswith("deepseek")
    shared = _number(config, "n_shared_experts", default=0, least=0) * width if deepseek else 0
    if kind == "qwen2_moe":
        shared = _number(config, "shared_expert_intermediate_size", default=0, least=0)
    if count > 10_000 or per_token > count:
        raise _bad(f"{per_token} of {count} experts a token")
    return Experts(
        count,
        per_token,
        width,
        shared,
        shared_gate=kind == "qwen2_moe",
        dense_layers=_number(config, "first_k_dense_replace", default=0, least=0) if deepseek else 0,
        biased=kind == "gpt_oss",
        balance_bias=kind == "deepseek_v3",
    )


def _windows(config: Mapping[str, Any], kind: str, layers: int) -> tuple[int | None, ...]:
    """The sliding window of each layer. Which layers have one is the config's `layer_types`, else the model class's rule."""
    raw = config.get("sliding_window")
    used = _flag(config, "use_sliding_window", not kind.startswith("qwen"))
    if not raw or not used:
        return (None,) * layers
    window = _number(config, "sliding_window")
    types = config.get("layer_types")
    if isinstance(types, list) and len(types) == layers:
        return tuple(window if each == "sliding_attention" else None for each in types)
    if kind == "gemma3_text":
        every = _number(config, "sliding_window_pattern", default=6)
        return tuple(None if (layer + 1) % every == 0 else window for layer in range(layers))
    if kind in ("gemma2", "gpt_oss"):
        return tuple(None if layer % 2 else window for layer in range(layers))
    if kind.startswith("qwen"):
        first = _number(config, "max_window_layers", default=0, least=0)
        return tuple(window if layer >= first else None for layer in range(layers))
    return (window,) * layers


def _quantised(config: Mapping[str, Any]) -> Quantised | None:
    found = config.get("quantization_config")
    if not isinstance(found, Mapping):
        return None
    method = str(found.get("quant_method", "")).lower()
    if method == "compressed-tensors":
        found = _compressed(found)
        method = str(found["quant_method"])
    if method not in ("awq", "gptq", "int4", "int8", "fp8", "mxfp4"):
        step = "Known are awq, gptq, fp8, mxfp4, and compressed-tensors of 4 and 8 bits."
        raise _bad(f"the quantisation {method[:40]!r} is not known", step)
    bits = _number(found, "bits", default={"fp8": 8, "int8": 8}.get(method, 4))
    if method in ("awq", "gptq") and bits not in (4, 8):
        raise _bad(f"{bits} bits of {method}", "4 and 8 bits are known.")
    group = found.get("group_size")
    return Quantised(method, bits, 0 if group in (None, -1) else _number(found, "group_size"))


def _compressed(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A `compressed-tensors` config in the words of the others: the weights of its first group stand for all."""
    groups = config.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    if not isinstance(weights, Mapping):
        raise _bad("its quantization_config has no config_groups with weights")
    bits = _number(weights, "num_bits")
    name = {("float", 8): "fp8", ("int", 8): "int8", ("int", 4): "int4"}.get((str(weights.get("type", "int")), bits))
    if name is None:
        raise _bad(
            f"weights of {bits} bits ({str(weights.get('type'))[:20]}) are not known", "4 and 8 bits are, and 8-bit floats."
        )
    return {"quant_method": name, "bits": bits, "group_size": weights.get("group_size") if name == "int4" else None}


def _encoder(config: Mapping[str, Any], model_type: str) -> Shape:
    hidden = _number(config, "hidden_size")
    layers = _number(config, "num_hidden_layers")
    heads = _number(config, "num_attention_heads")
    positions = _number(config, "max_position_embeddings")
    labels = config.get("id2label")
    classes = len(labels) if isinstance(labels, Mapping) else _number(config, "num_labels", default=2)
    classifies = any("SequenceClassification" in each for each in _architectures(config))
    return Shape(
        model_type,
        "encoder",
        hidden,
        layers,
        heads,
        heads,
        max(1, hidden // heads),
        max(1, hidden // heads),
        _number(config, "intermediate_size"),
        _number(config, "vocab_size"),
        positions - 2 if model_type.endswith("roberta") else positions,
        (None,) * layers,
        tied=True,
        headless=True,
        positions=positions,
        token_types=_number(config, "type_vocab_size", default=2),
        classes=classes if classifies else 0,
    )


def _speech(config: Mapping[str, Any]) -> Shape:
    hidden = _number(config, "d_model")
    layers = _number(config, "decoder_layers")
    heads = _number(config, "decoder_attention_heads")
    positions = _number(config, "max_target_positions")
    return Shape(
        "whisper",
        "speech",
        hidden,
        layers,
        heads,
        heads,
        max(1, hidden // heads),
        max(1, hidden // heads),
        _number(config, "decoder_ffn_dim"),
        _number(config, "vocab_size"),
        positions,
        (None,) * layers,
        tied=True,
        positions=positions,
        encoder_layers=_number(config, "encoder_layers"),
        frames=_number(config, "max_source_positions"),
        mels=_number(config, "num_mel_bins"),
    )
