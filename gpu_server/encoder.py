"""One forward pass of a transformer encoder: token ids in, the last layer's state of every token out, without padding.

`make_encoder` chooses: `PackedEncoder` for the BERT family, `PaddedEncoder` for any other Hugging Face encoder. Knows
nothing of pooling, heads, tokenizers or queues.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from gpu_server.interfaces import Encoded
from gpu_server.packed_encoder import PackedEncoder, supports
from gpu_server.packing import Hidden
from gpu_server.padded_encoder import PaddedEncoder

__all__ = ["Encoder", "Hidden", "PackedEncoder", "PaddedEncoder", "make_encoder", "supports"]


class Encoder(Protocol):
    """A loaded encoder; one caller at a time."""

    @property
    def precision(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def memory_bytes(self) -> int:
        """What the weights take on the device."""
        ...

    def hidden(self, batch: Sequence[Encoded]) -> Hidden:
        """The last hidden state of every token, float32. Raises TooLarge and BadInput for what the model's tables lack."""
        ...


def make_encoder(model: Any, device: str, precision: str) -> Encoder:
    """An encoder from a Hugging Face model in fp32 on the CPU, which is used up. Raises ModelError.

    `device` and `precision` as `devices.pick_device` and `devices.pick_precision` give them.
    """
    kind = PackedEncoder if supports(model) else PaddedEncoder
    return kind(model, device, precision)
