"""Loaded cross-encoders: the BGE rerankers through FlagEmbedding, any other through transformers; tokenise, one pass, head.

Scores are raw logits. BERT, RoBERTa and XLM-R run packed with their head in fp32; any other sequence classifier with one
label runs its own forward on padded batches. Knows nothing of queues, sigmoids or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpu_server import folders
from gpu_server.devices import Precision, import_torch, pick_device, pick_precision
from gpu_server.encoder import make_encoder, supports
from gpu_server.errors import ModelError
from gpu_server.folders import ModelFolder
from gpu_server.heads import linear, pool
from gpu_server.interfaces import Encoded, ModelInfo, RerankModel
from gpu_server.padded_encoder import BATCH_TOKENS, length_batches
from gpu_server.tokens import Tokens, limit, load_tokenizer
from gpu_server.weights import complete, loading, nothing_missing, quiet


def load(name: str, device: str = "auto", precision: str = "auto") -> RerankModel:
    """The cross-encoder of this hub name or folder. Raises ModelError."""
    folder = folders.reranker(name)
    with loading(folder):
        return CrossEncoder(folder, device, precision)


class Scorer(Protocol):
    """A cross-encoder's transformer and head; one caller at a time."""

    @property
    def memory_bytes(self) -> int: ...

    def __call__(self, batch: Sequence[Encoded]) -> Any:
        """Raw scores, a float32 tensor [n]."""
        ...


class CrossEncoder:
    """A query and a text read together, one raw score out (Nogueira & Cho 2019)."""

    def __init__(self, folder: ModelFolder, device: str = "auto", precision: str = "auto") -> None:
        quiet()
        self._torch = import_torch()
        where = pick_device(device)
        runs_in = pick_precision(where, precision)
        tokenizer = load_tokenizer(folder.path)
        model = load_flag(folder) if folder.config.get("model_type") == "xlm-roberta" else load_classifier(folder)
        body = getattr(model, model.base_model_prefix)
        self._tokens = Tokens(tokenizer, limit(tokenizer, body))
        head = head_of(model) if supports(body) else None
        self._scorer: Scorer = PackedScorer(body, head, where, runs_in) if head else PaddedScorer(model, where, runs_in)
        self._info = ModelInfo(
            name=folder.name,
            kind="reranker",
            identity=folders.identity(folder),
            device=where,
            precision=runs_in,
            max_tokens=self._tokens.max_tokens,
            memory_bytes=self._scorer.memory_bytes,
        )

    @property
    def info(self) -> ModelInfo:
        return self._info

    def encode(self, query: str, texts: Sequence[str]) -> list[Encoded]:
        """The query with each text; the text is cut first, the query only beyond 3/4 of the limit."""
        return self._tokens.encode_pairs(query, texts)

    def forward(self, batch: Sequence[Encoded]) -> NDArray[np.float32]:
        with self._torch.inference_mode():
            scores: NDArray[np.float32] = self._scorer(batch).cpu().numpy()
        return scores


class PackedScorer:
    """tanh(dense) and the classifier on each pair's first token: RoBERTa's head, and BERT's pooler with its classifier."""

    def __init__(self, body: Any, head: tuple[Any, Any], device: str, precision: Precision) -> None:
        self._torch = import_torch()
        self._dense, self._out = linear(head[0], device), linear(head[1], device)
        self._encoder = make_encoder(body, device, precision)
        self.memory_bytes = self._encoder.memory_bytes + sum(part.nbytes for part in (*self._dense, *self._out))

    def __call__(self, batch: Sequence[Encoded]) -> Any:
        apply = self._torch.nn.functional.linear
        first = pool(self._encoder.hidden(batch), "cls")
        return apply(self._torch.tanh(apply(first, *self._dense)), *self._out)[:, 0]


class PaddedScorer:
    """Any sequence classifier run as it is. int8 is refused: its linear layers are not ours to replace."""

    def __init__(self, model: Any, device: str, precision: Precision) -> None:
        self._torch = torch = import_torch()
        if precision == "int8":
            raise ModelError(f"int8 is made for the BERT family; this is a {type(model).__name__}", next_step="Use bf16 or fp32.")
        self._device = device
        self._low = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self._pad = model.config.pad_token_id or 0
        self._model = model.requires_grad_(False).to(device)
        self.memory_bytes = sum(weight.nbytes for weight in self._model.parameters())

    def __call__(self, batch: Sequence[Encoded]) -> Any:
        torch = self._torch
        scores = torch.empty(len(batch), dtype=torch.float32, device=self._device)
        with torch.autocast(self._device.split(":")[0], self._low, enabled=self._low is not None):
            for group in length_batches([len(item.ids) for item in batch], BATCH_TOKENS):
                inputs = self._padded([batch[index] for index in group])
                scores[group] = self._model(**inputs).logits[:, 0].float()
        return scores

    def _padded(self, group: Sequence[Encoded]) -> dict[str, Any]:
        torch = self._torch
        width = max(len(item.ids) for item in group)
        rows = {
            "input_ids": [[*item.ids, *[self._pad] * (width - len(item.ids))] for item in group],
            "attention_mask": [[1] * len(item.ids) + [0] * (width - len(item.ids)) for item in group],
        }
        if group[0].type_ids is not None:
            rows["token_type_ids"] = [[*(item.type_ids or ()), *[0] * (width - len(item.ids))] for item in group]
        return {name: torch.tensor(row, device=self._device) for name, row in rows.items()}


def head_of(model: Any) -> tuple[Any, Any] | None:
    """The two linear layers behind the first token, None where the model has another head."""
    classifier: Any = getattr(model, "classifier", None)
    if hasattr(classifier, "dense") and hasattr(classifier, "out_proj"):
        return classifier.dense, classifier.out_proj
    pooler: Any = getattr(getattr(model, model.base_model_prefix), "pooler", None)
    if hasattr(pooler, "dense") and hasattr(classifier, "weight"):
        return pooler.dense, classifier
    return None


def load_flag(folder: ModelFolder) -> Any:
    """XLM-R with one label, loaded by FlagEmbedding, in fp32 on the CPU. Raises ModelError."""
    from FlagEmbedding import FlagReranker

    wrapper: Any = FlagReranker(str(folder.path), use_fp16=False, devices="cpu")
    model = wrapper.model.float().eval()
    wrapper.model = None  # its destructor would move the model back to the CPU
    complete(folder, model)
    return model


def load_classifier(folder: ModelFolder) -> Any:
    """A sequence classifier in fp32 on the CPU. Raises ModelError."""
    from transformers import AutoModelForSequenceClassification

    model, report = AutoModelForSequenceClassification.from_pretrained(
        str(folder.path), local_files_only=True, dtype=import_torch().float32, output_loading_info=True
    )
    nothing_missing(folder, report["missing_keys"])
    return model.eval()
