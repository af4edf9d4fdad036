"""The BERT family's forward pass over texts packed without a common width: BERT, RoBERTa, XLM-RoBERTa.

Devlin et al. 2019, BERT: embeddings, then layers of attention and a GELU network, each with a residual and LayerNorm after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpu_server.devices import Precision, import_torch, pick_precision
from gpu_server.interfaces import Encoded
from gpu_server.linears import compute_type, make_linear
from gpu_server.packing import Chunk, Hidden, Limits, Slots, check, chunked, offsets

POSITIONS_AFTER_PAD = {"bert": False, "roberta": True, "xlm-roberta": True}
CPU_ROWS = 2048  # bounds what activations take; 1024 to 8192 measured alike within the noise of a shared machine
GPU_ROWS = 1 << 30


def supports(model: Any) -> bool:
    """Whether `PackedEncoder` computes what this Hugging Face model does."""
    config = model.config
    return (
        getattr(config, "model_type", None) in POSITIONS_AFTER_PAD
        and getattr(config, "hidden_act", None) == "gelu"
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
        and not getattr(config, "is_decoder", False)
        and not getattr(config, "add_cross_attention", False)
        and hasattr(model, "embeddings")
        and hasattr(getattr(model, "encoder", None), "layer")
    )


class PackedEncoder:
    """The weights of a Hugging Face model laid out for `device` and `precision`.

    The model's embeddings and layers are taken out of it one by one, so that no second copy of all weights ever exists; other
    parts (a pooler, heads) stay. In bf16 and fp16 everything between the embeddings' LayerNorm and the result has that type,
    sums inside LayerNorm and softmax are fp32: cosine to fp32 is over 0.9998 after 24 random layers of
    XLM-R-large's size.
    """

    def __init__(self, model: Any, device: str, precision: str) -> None:
        torch = self._torch = import_torch()
        self.device = device
        self.precision: Precision = pick_precision(device, precision)
        self._dtype = compute_type(self.precision)
        self._max_rows = CPU_ROWS if device == "cpu" else GPU_ROWS
        self.hidden_size = int(model.config.hidden_size)
        self._limits = limits_of(model.config)
        with torch.inference_mode():
            self._embeddings = Embeddings(model.embeddings, device, self.precision)
            model.embeddings = torch.nn.Identity()
            self._layers: list[Layer] = []
            for index, layer in enumerate(model.encoder.layer):
                self._layers.append(Layer(layer, device, self.precision))
                model.encoder.layer[index] = torch.nn.Identity()
        self.memory_bytes = self._embeddings.memory_bytes + sum(layer.memory_bytes for layer in self._layers)

    def hidden(self, batch: Sequence[Encoded]) -> Hidden:
        """The last hidden state of every token. Raises TooLarge and BadInput for what the model's tables do not hold."""
        torch = self._torch
        check(batch, self._limits)
        starts = offsets(batch)
        chunks = chunked(batch, self._limits, self._max_rows)
        with torch.inference_mode():
            groups = [[self._group(slots) for slots in chunk.slots] for chunk in chunks]
            states = [self._embeddings(*self._inputs(chunk)).to(self._dtype) for chunk in chunks]
            for layer in self._layers:
                states = [layer(x, group) for x, group in zip(states, groups, strict=True)]
            result = torch.empty((starts[-1], self.hidden_size), dtype=torch.float32, device=self.device)
            for x, chunk in zip(states, chunks, strict=True):
                tokens, places = self._upload(chunk.tokens, chunk.places)
                result.index_copy_(0, places, x.index_select(0, tokens).float())
        return Hidden(result, starts)

    def _inputs(self, chunk: Chunk) -> Sequence[Any]:
        given = (chunk.ids, chunk.positions) if chunk.types is None else (chunk.ids, chunk.positions, chunk.types)
        return self._upload(*given)

    def _upload(self, *rows: Any) -> Sequence[Any]:
        """numpy rows of one length as tensors on the device; to a GPU in one copy that does not wait."""
        torch = self._torch
        if self.device == "cpu":
            return [torch.from_numpy(row) for row in rows]
        table = torch.stack([torch.from_numpy(row) for row in rows]).pin_memory()
        uploaded: Sequence[Any] = table.to(self.device, non_blocking=True).unbind(0)
        return uploaded

    def _group(self, slots: Slots) -> tuple[int, int, int, Any]:
        """Start, texts, width and what is added to the attention scores: minus infinity for keys that are no tokens."""
        torch = self._torch
        count, width = len(slots.lengths), slots.width
        if min(slots.lengths) == width:
            return slots.start, count, width, None
        lengths = torch.tensor(slots.lengths).view(count, 1, 1, 1)
        mask = torch.zeros((count, 1, 1, width), dtype=self._dtype)
        mask.masked_fill_(torch.arange(width) >= lengths, float("-inf"))
        return slots.start, count, width, mask.to(self.device)


class Embeddings:
    """Word, position and segment embeddings summed, then LayerNorm, in fp32; the word table is in bf16 except for fp32."""

    def __init__(self, module: Any, device: str, precision: Precision) -> None:
        torch = self._torch = import_torch()
        table = {"fp32": torch.float32, "fp16": torch.float16}.get(precision, torch.bfloat16)
        segments = module.token_type_embeddings.weight.detach().to(device)
        self._words = module.word_embeddings.weight.detach().to(device, table, copy=True)
        self._positions = module.position_embeddings.weight.detach().to(device) + segments[0]
        self._segments = segments - segments[0]
        self._norm = Norm(module.LayerNorm, device, torch.float32)
        self.memory_bytes = int(self._words.nbytes + self._positions.nbytes + self._segments.nbytes)

    def __call__(self, ids: Any, positions: Any, types: Any = None) -> Any:
        embedding = self._torch.embedding
        x = embedding(self._positions, positions).add_(embedding(self._words, ids))
        return self._norm(x if types is None else x.add_(embedding(self._segments, types)))


class Norm:
    """LayerNorm over the last dimension."""

    def __init__(self, module: Any, device: str, dtype: Any) -> None:
        self._run = import_torch().layer_norm
        self._weight, self._bias = (part.detach().to(device, dtype, copy=True) for part in (module.weight, module.bias))
        self._shape, self._eps = list(self._weight.shape), module.eps

    def __call__(self, x: Any) -> Any:
        return self._run(x, self._shape, self._weight, self._bias, self._eps)


class Layer:
    """One layer: [rows, hidden] to the same."""

    def __init__(self, module: Any, device: str, precision: Precision) -> None:
        torch = self._torch = import_torch()
        attention, dtype = module.attention.self, compute_type(precision)
        self._heads = int(attention.num_attention_heads)
        parts = (attention.query, attention.key, attention.value)
        weight, bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
        out, up, down = module.attention.output, module.intermediate.dense, module.output
        self._qkv = make_linear(weight, bias, device, precision)
        self._out = make_linear(out.dense.weight, out.dense.bias, device, precision)
        self._up = make_linear(up.weight, up.bias, device, precision, gelu=True)
        self._down = make_linear(down.dense.weight, down.dense.bias, device, precision)
        self._out_norm, self._down_norm = Norm(out.LayerNorm, device, dtype), Norm(down.LayerNorm, device, dtype)
        self.memory_bytes = sum(part.memory_bytes for part in (self._qkv, self._out, self._up, self._down))

    def __call__(self, x: Any, groups: Sequence[tuple[int, int, int, Any]]) -> Any:
        x = self._out_norm(self._out(self._attend(x, groups), residual=x))
        return self._down_norm(self._down(self._up(x), residual=x))

    def _attend(self, x: Any, groups: Sequence[tuple[int, int, int, Any]]) -> Any:
        """Attention of every text to itself; rows after the last slot come as zeros."""
        torch = self._torch
        rows, hidden = x.shape
        qkv = self._qkv(x)
        parts = []
        for start, count, width, mask in groups:
            slots = qkv[start : start + count * width].view(count, width, 3, self._heads, -1)
            query, key, value = slots.permute(2, 0, 3, 1, 4).unbind(0)
            mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)
            parts.append(mixed.transpose(1, 2).reshape(count * width, hidden))
        used = sum(map(len, parts))
        if used < rows:
            parts.append(x.new_zeros((rows - used, hidden)))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def limits_of(config: Any) -> Limits:
    """RoBERTa's positions start after the padding id's, and its table is as much longer."""
    pad = int(config.pad_token_id) if POSITIONS_AFTER_PAD[config.model_type] else None
    first = 0 if pad is None else pad + 1
    return Limits(config.vocab_size, config.max_position_embeddings - first, config.type_vocab_size, first, pad)
