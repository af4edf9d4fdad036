"""Models that a plan brings along: a config.json as far as memory goes, small enough for a link. Knows no files and no requests.

A config may come from anybody. Its weights are never seen: parameters are counted from the shapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from deploy.planner.catalogue import KINDS, Model, described, models
from deploy.planner.shapes import from_config
from deploy.planner.tensors import parameters
from rag.errors import RagError

LARGEST_KEPT_CHARS: Final = 20_000
LONGEST_NAME: Final = 500
STEP = "Give the config.json that the model's publisher ships, whole."
# The fields that `shapes` and the dtype are read from; of quantisation only method, bits and group.
FIELDS: Final = frozenset({
    "model_type", "architectures", "torch_dtype", "dtype", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "v_head_dim", "intermediate_size", "vocab_size", "max_position_embeddings",
    "sliding_window", "use_sliding_window", "sliding_window_pattern", "max_window_layers", "layer_types",
    "tie_word_embeddings", "attention_bias", "num_local_experts", "num_experts", "n_routed_experts", "num_experts_per_tok",
    "experts_per_token", "moe_intermediate_size", "n_shared_experts", "shared_expert_intermediate_size",
    "first_k_dense_replace", "q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "num_labels",
    "type_vocab_size", "d_model", "decoder_layers", "decoder_attention_heads", "decoder_ffn_dim", "encoder_layers",
    "max_target_positions", "max_source_positions", "num_mel_bins",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Brought:
    """A model under the name that its server loads (hub name or folder). `config` is JSON of the fields kept; `kind` is empty
    where the config decides."""

    name: str
    config: str
    kind: str = ""

    def model(self) -> Model:
        """Raises RagError (`bad_input`) for a config that cannot be used."""
        found = described(self.name, json.loads(self.config), "the config.json that the plan brings")
        count = f"{parameters(found.shape):,} parameters, counted from the shapes in its config.json; no weights were seen."
        note = f"{count} {SEEN}" if found.shape.sees else count
        return Model(found.name, self.kind or found.kind, found.shape, found.precision, found.source, note=note)


SEEN = "Its vision tower is not among them: leave room for it."


def brought(name: str, config: Mapping[str, Any], kind: str = "") -> Brought:
    """A model to bring along. Raises RagError (`bad_input`) for a name or config that cannot be, naming the field."""
    if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        raise _bad("the model has no name", "Write the hub name or folder that the server is to load.")
    if name.strip() in models():
        raise _bad(f"{name.strip()[:80]} is in the table already", "Choose it there, or give this one another name.")
    if kind and kind not in KINDS:
        raise _bad(f"the kind of model {kind[:40]!r} is not known", f"It is one of {', '.join(KINDS)}.")
    found = Brought(name.strip(), json.dumps(kept(config), sort_keys=True), kind)
    if len(found.config) > LARGEST_KEPT_CHARS:
        raise _bad("the model's config is too large", STEP)
    found.model()
    return found


def kept(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config decides memory. Raises RagError for a quantisation that is not known."""
    found = {name: value for name, value in config.items() if name in FIELDS and value is not None}
    inner = config.get("text_config")
    if isinstance(inner, Mapping):
        found["text_config"] = {name: value for name, value in inner.items() if name in FIELDS and value is not None}
    labels = config.get("id2label")
    if isinstance(labels, Mapping):
        found["num_labels"] = len(labels)
    quantised = from_config(config).quantised
    if quantised is not None:
        method = {"quant_method": quantised.method, "bits": quantised.bits, "group_size": quantised.group or None}
        found["quantization_config"] = {name: value for name, value in method.items() if value is not None}
    return found


def from_files(name: str, files: Sequence[tuple[str, bytes]], kind: str = "") -> Brought:
    """A model from its config.json and, where they lie beside it, a quantisation config (taken in) and a generation config (which
    changes no memory). Raises RagError (`bad_input`) that names the file and what is missing."""
    read = [(file, _json(file, data)) for file, data in files]
    configs = [(file, found) for file, found in read if "model_type" in found]
    if len(configs) != 1:
        several = "several files are a config.json: " + ", ".join(file[:80] for file, _ in configs)
        raise _bad(several if configs else "no file is a model's config.json: model_type is missing", STEP)
    config = dict(configs[0][1])
    for file, found in read:
        if found is configs[0][1]:
            continue
        if _is_quantisation(found):
            config.setdefault("quantization_config", _quantisation(found))
        elif not _is_generation(found):
            raise _bad(f"{file[:80]} is neither a config, a quantisation config nor a generation config", "Leave it out.")
    return brought(name, config, kind)


def _is_quantisation(found: Mapping[str, Any]) -> bool:
    return any(each in found for each in ("quant_method", "w_bit", "bits", "quantization", "config_groups"))


def _is_generation(found: Mapping[str, Any]) -> bool:
    return any(each in found for each in ("eos_token_id", "bos_token_id", "max_new_tokens", "temperature", "max_length"))


def _quantisation(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The older files of AutoAWQ (`w_bit`, `q_group_size`) and AutoGPTQ (no method) in the words of config.json."""
    if "w_bit" in found:
        return {"quant_method": "awq", "bits": found["w_bit"], "group_size": found.get("q_group_size")}
    return found if "quant_method" in found or "bits" not in found else {**found, "quant_method": "gptq"}


def _json(file: str, data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as problem:
        raise _bad(f"{file[:80]} is no JSON: {str(problem)[:200]}", STEP) from problem
    if not isinstance(found, dict):
        raise _bad(f"{file[:80]} holds no JSON object", STEP)
    return found


def _bad(what: str, next_step: str) -> RagError:
    return RagError(what, kind="bad_input", next_step=next_step)
