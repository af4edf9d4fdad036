"""Loaded embedders: BGE-M3 through FlagEmbedding, and any sentence-transformers model; tokenise, one pass, heads.

A model is loaded in fp32 on the CPU, its transformer goes to `encoder.make_encoder`, and what stands behind the transformer
(pooling, heads, dense layers) is computed here in fp32 on the packed states. Knows nothing of queues or HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_server import folders
from gpu_server.devices import import_torch, pick_device, pick_precision
from gpu_server.encoder import make_encoder
from gpu_server.folders import ModelFolder
from gpu_server.heads import POOLINGS, DenseLayer, linear, pool, to_host
from gpu_server.interfaces import EmbeddingModel, Encoded, ModelInfo, TextKind, VectorKind, Vectors
from gpu_server.tokens import Tokens, limit, load_tokenizer
from gpu_server.weights import complete, load_body, loading, quiet

# E5's folders do not carry the prompts that their model cards ask for (Wang et al. 2022)
E5 = re.compile(r"e5-(small|base|large)(-v2)?$")
E5_PROMPTS = {"query": "query: ", "passage": "passage: "}


def load(name: str, device: str = "auto", precision: str = "auto") -> EmbeddingModel:
    """The embedder of this hub name or folder. Raises ModelError."""
    folder = folders.embedder(name)
    with loading(folder):
        kind = BgeM3 if folder.kind == "bge-m3" else SentenceTransformer
        return kind(folder, device, precision)


class BgeM3:
    """BAAI/bge-m3 or a folder like it: dense, sparse and late-interaction vectors of one pass (Chen et al. 2024)."""

    def __init__(self, folder: ModelFolder, device: str = "auto", precision: str = "auto") -> None:
        torch = self._torch = import_torch()
        quiet()
        from FlagEmbedding.finetune.embedder.encoder_only.m3 import EncoderOnlyEmbedderM3Runner

        where = pick_device(device)
        tokenizer = load_tokenizer(folder.body)
        parts: Any = EncoderOnlyEmbedderM3Runner.get_model(str(folder.path), torch_dtype=torch.float32)
        body = parts["model"].eval()
        complete(folder, body)
        self._tokens = Tokens(tokenizer, limit(tokenizer, body))
        self._unused = special_ids(tokenizer)
        self._sparse = linear(parts["sparse_linear"], where)
        self._late = linear(parts["colbert_linear"], where)
        self._encoder = make_encoder(body, where, pick_precision(where, precision))
        dimension = self._encoder.hidden_size
        self._info = ModelInfo(
            name=folder.name,
            kind="embedder",
            identity=folders.identity(folder, dimension, "cls"),
            device=where,
            precision=self._encoder.precision,
            dimension=dimension,
            max_tokens=self._tokens.max_tokens,
            learned_sparse=True,
            late_interaction=True,
            memory_bytes=self._encoder.memory_bytes + sum(part.nbytes for part in (*self._sparse, *self._late)),
        )

    @property
    def info(self) -> ModelInfo:
        return self._info

    def encode(self, texts: Sequence[str], kind: TextKind) -> list[Encoded]:
        """Queries and passages alike: BGE-M3 has no prompts."""
        return self._tokens.encode(texts)

    def count_tokens(self, text: str) -> int:
        return self._tokens.count(text)

    def forward(self, batch: Sequence[Encoded], vectors: frozenset[VectorKind]) -> list[Vectors]:
        """Dense of the first token, sparse relu(linear) of each token (the highest of repeats), late of all but the first."""
        torch = self._torch
        hidden = self._encoder.hidden(batch)
        normalize, apply = torch.nn.functional.normalize, torch.nn.functional.linear
        with torch.inference_mode():
            parts = [normalize(pool(hidden, "cls"), dim=-1)]
            if "sparse" in vectors:
                parts.append(torch.relu(apply(hidden.states, *self._sparse)))
            if "late" in vectors:
                parts.append(normalize(apply(hidden.states, *self._late), dim=-1))
            arrays = to_host(parts)
        dense = arrays.pop(0)
        sparse = arrays.pop(0)[:, 0] if "sparse" in vectors else None
        late = arrays.pop(0) if "late" in vectors else None
        return [
            Vectors(
                dense[index].copy(),  # a view would keep the whole batch alive in a cache
                None if sparse is None else self._weights(item.ids, sparse[start:end]),
                None if late is None else late[start + 1 : end].copy(),
            )
            for index, (item, start, end) in enumerate(zip(batch, hidden.starts, hidden.starts[1:], strict=False))
        ]

    def _weights(self, ids: Sequence[int], weights: NDArray[np.float32]) -> dict[int, float]:
        best: dict[int, float] = {}
        for token, weight in zip(ids, weights.tolist(), strict=True):
            if weight > best.get(token, 0.0) and token not in self._unused:
                best[token] = weight
        return best


class SentenceTransformer:
    """A sentence-transformers folder, or a plain encoder with mean pooling; vectors are always L2-normalised."""

    def __init__(
        self, folder: ModelFolder, device: str = "auto", precision: str = "auto", *, max_tokens: int | None = None, note: str = ""
    ) -> None:
        self._torch = import_torch()
        quiet()
        where = pick_device(device)
        self._pooling, layers = behind(folder)
        about = optional_json(folder.path / "config_sentence_transformers.json")
        self._prompts = prompts(folder, about)
        tokenizer, model = load_tokenizer(folder.body), load_body(folder)
        own = optional_json(folder.body / "sentence_bert_config.json")
        most = limit(tokenizer, model, max_tokens or own.get("max_seq_length"))
        self._tokens = Tokens(tokenizer, most, lowercase=bool(own.get("do_lower_case")))
        self._layers = [DenseLayer(folder.path / str(layer["path"]), where) for layer in layers]
        self._encoder = make_encoder(model, where, pick_precision(where, precision))
        dimension = self._layers[-1].width if self._layers else self._encoder.hidden_size
        if not note and about.get("similarity_fn_name") == "dot":
            note = "made for dot products: its vectors are normalised here, which may change the order of results"
        self._info = ModelInfo(
            name=folder.name,
            kind="embedder",
            identity=folders.identity(folder, dimension, self._pooling),
            device=where,
            precision=self._encoder.precision,
            dimension=dimension,
            max_tokens=most,
            note=note or None,
            memory_bytes=self._encoder.memory_bytes + sum(layer.memory_bytes for layer in self._layers),
        )

    @property
    def info(self) -> ModelInfo:
        return self._info

    def encode(self, texts: Sequence[str], kind: TextKind) -> list[Encoded]:
        """Token ids behind the prompt that the folder names for queries or passages."""
        return self._tokens.encode(texts, self._prompts[kind])

    def count_tokens(self, text: str) -> int:
        return self._tokens.count(text)

    def forward(self, batch: Sequence[Encoded], vectors: frozenset[VectorKind]) -> list[Vectors]:
        """Dense only, whatever is asked for."""
        hidden = self._encoder.hidden(batch)
        with self._torch.inference_mode():
            pooled = pool(hidden, self._pooling)
            for layer in self._layers:
                pooled = layer(pooled)
            (dense,) = to_host([self._torch.nn.functional.normalize(pooled, dim=-1)])
        return [Vectors(row.copy()) for row in dense]


# what a folder says of itself


def behind(folder: ModelFolder) -> tuple[str, list[dict[str, Any]]]:
    """Pooling and the dense layers behind it; normalisation is always done. Raises ModelError for other modules."""
    pooling, layers = None, []
    for module in folder.modules:
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind == "Pooling" and pooling is None:
            pooling = pooling_mode(folders.read_config(folder.path / str(module["path"]) / "config.json"), folder)
        elif kind == "Dense" and pooling is not None:
            layers.append(module)
        elif kind != "Normalize":
            folders.refuse(f"{folder.path} has a module {kind}, which is not supported", "Name another model.")
    return pooling or "mean", layers


def pooling_mode(config: dict[str, Any], folder: ModelFolder) -> str:
    """One of POOLINGS, from either spelling of sentence-transformers' Pooling. Raises ModelError."""
    old = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "lasttoken": "lasttoken"}
    named = config.get("pooling_mode") or [mode for key, mode in old.items() if config.get(f"pooling_mode_{key}")]
    modes = [named] if isinstance(named, str) else list(named)
    if len(modes) != 1 or modes[0] not in POOLINGS or not config.get("include_prompt", True):
        folders.refuse(
            f"{folder.path} pools its tokens in a way that is not supported: {config}",
            f"Supported: one of {', '.join(POOLINGS)}.",
        )
    return str(modes[0])


def prompts(folder: ModelFolder, about: dict[str, Any]) -> dict[TextKind, str]:
    """What stands before a query and before a passage; empty where the folder names nothing."""
    named = {key: value for key, value in (about.get("prompts") or {}).items() if value}
    if not named and E5.search(folder.short_name):
        named = E5_PROMPTS
    default = named.get(about.get("default_prompt_name") or "", "")
    passage = next((named[key] for key in ("passage", "document", "corpus") if key in named), default)
    return {"query": named.get("query", default), "passage": passage}


def optional_json(path: Path) -> dict[str, Any]:
    return folders.read_config(path) if path.exists() else {}


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Tokens that carry no words: FlagEmbedding leaves these four out of sparse weights."""
    ids = (tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    return frozenset(token for token in ids if token is not None)
