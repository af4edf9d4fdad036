"""Any Hugging Face encoder behind the interface of `encoder.py`: its own forward over padded batches of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpu_server.devices import Precision, import_torch, pick_precision
from gpu_server.errors import ModelError
from gpu_server.interfaces import Encoded
from gpu_server.packing import Hidden, Limits, check, offsets

BATCH_TOKENS = 8192
NO_LIMIT = 1 << 31


class PaddedEncoder:
    """A Hugging Face model run as it is, bf16 and fp16 under autocast. Raises ModelError for int8: no layers to replace."""

    def __init__(self, model: Any, device: str, precision: str) -> None:
        self._torch = import_torch()
        self.device = device
        self.precision: Precision = pick_precision(device, precision)
        if self.precision == "int8":
            raise ModelError(f"int8 is for the BERT family; this is a {type(model).__name__}", next_step="use bf16 or fp32")
        config = model.config
        self.hidden_size = int(config.hidden_size)
        types = int(getattr(config, "type_vocab_size", None) or 1)
        self._pad = int(config.pad_token_id or 0)
        self._limits = Limits(int(config.vocab_size), most_tokens(model), types)
        self._model = model.eval().requires_grad_(False).to(device)
        self.memory_bytes = sum(int(weight.nbytes) for weight in self._model.parameters())

    def hidden(self, batch: Sequence[Encoded]) -> Hidden:
        """The last hidden state of every token. Raises TooLarge and BadInput for what the model's tables do not hold."""
        torch = self._torch
        check(batch, self._limits)
        starts = offsets(batch)
        low = torch.float16 if self.precision == "fp16" else torch.bfloat16
        autocast = torch.autocast(self.device.split(":")[0], low, enabled=self.precision != "fp32")
        with torch.inference_mode(), autocast:
            states = torch.empty((starts[-1], self.hidden_size), dtype=torch.float32, device=self.device)
            for members in length_batches([len(item.ids) for item in batch], BATCH_TOKENS):
                last = self._forward([batch[index] for index in members])
                for row, index in enumerate(members):
                    states[starts[index] : starts[index + 1]] = last[row, : len(batch[index].ids)]
        return Hidden(states, starts)

    def _forward(self, batch: Sequence[Encoded]) -> Any:
        """[texts, longest text, hidden size]."""
        torch = self._torch
        width = max(len(item.ids) for item in batch)
        inputs = {"input_ids": torch.full((len(batch), width), self._pad)}
        inputs["attention_mask"] = torch.zeros_like(inputs["input_ids"])
        if any(item.type_ids is not None and any(item.type_ids) for item in batch):
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        for row, item in enumerate(batch):
            inputs["input_ids"][row, : len(item.ids)] = torch.tensor(item.ids)
            inputs["attention_mask"][row, : len(item.ids)] = 1
            if "token_type_ids" in inputs and item.type_ids is not None:
                inputs["token_type_ids"][row, : len(item.ids)] = torch.tensor(item.type_ids)
        return self._model(**{name: rows.to(self.device) for name, rows in inputs.items()}).last_hidden_state


def most_tokens(model: Any) -> int:
    """How long a text may be. Positions start behind the padding id's where their table has one (RoBERTa, MPNet)."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    positions = int(getattr(model.config, "max_position_embeddings", None) or NO_LIMIT)
    return positions if padding is None else positions - int(padding) - 1


def length_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indexes of the texts that have tokens, grouped by length so that each padded batch stays within `budget` tokens."""
    batches: list[list[int]] = []
    current: list[int] = []
    for index in sorted(filter(lengths.__getitem__, range(len(lengths))), key=lengths.__getitem__):
        if current and lengths[index] * (len(current) + 1) > budget:
            batches.append(current)
            current = []
        current.append(index)
    return [*batches, current] if current else batches
