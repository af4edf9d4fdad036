"""Texts to token ids with a model's own tokenizer, cut to its limit and counted, by many threads at once. Knows no torch.

The fast backend is used without its padding and truncation state: setting that state while another thread encodes is what
makes Hugging Face tokenizers fail with "Already borrowed".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gpu_server.errors import ModelError
from gpu_server.interfaces import Encoded

QUERY_SHARE = (3, 4)  # of the limit: what FlagEmbedding leaves a query at most beside a passage
PROBE = "a"


@dataclass(frozen=True, slots=True)
class Frame:
    """The special tokens around a text, or around and between a query and a text; `types` are the segments' ids."""

    before: list[int]
    between: list[int]
    after: list[int]
    types: tuple[int, int, int, int, int]  # of: before, first, between, second, after

    @property
    def size(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


class Tokens:
    """A tokenizer with a limit of `max_tokens`, special tokens included."""

    def __init__(self, tokenizer: Any, max_tokens: int, *, lowercase: bool = False) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()
        self._backend.no_truncation()
        self.max_tokens = max_tokens
        self._lowercase = lowercase
        self._has_types = "token_type_ids" in tokenizer.model_input_names
        self._single = self._single_frame()
        blank = tokenizer.pad_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        self._blank = [blank or 0]  # what an empty text becomes where the model has no special tokens

    def count(self, text: str) -> int:
        """Tokens of `text` without special tokens."""
        return len(self._ids([text])[0])

    def encode(self, texts: Sequence[str], prompt: str = "") -> list[Encoded]:
        """Each text behind `prompt`, cut at the end where it is too long."""
        frame = self._single
        room = self.max_tokens - frame.size
        return [
            Encoded((frame.before + ids[:room] + frame.after) or self._blank, len(ids) > room)
            for ids in self._ids([prompt + text for text in texts])
        ]

    def encode_pairs(self, query: str, texts: Sequence[str]) -> list[Encoded]:
        """`query` with each text. The text is cut first; the query only beyond 3/4 of the limit, as FlagEmbedding does."""
        first, *others = self._ids([query, *texts])
        frame = self._pair
        most = self.max_tokens * QUERY_SHARE[0] // QUERY_SHARE[1]
        head = frame.before + first[:most] + frame.between
        room = max(0, self.max_tokens - len(head) - len(frame.after))
        cut = len(first) > most
        return [
            Encoded(head + ids[:room] + frame.after, cut or len(ids) > room, self._types(frame, len(head), len(ids[:room])))
            for ids in others
        ]

    def _types(self, frame: Frame, head: int, second: int) -> list[int] | None:
        if not self._has_types:
            return None
        of_before, of_first, of_between, of_second, of_after = frame.types
        first = head - len(frame.before) - len(frame.between)
        return (
            [of_before] * len(frame.before)
            + [of_first] * first
            + [of_between] * len(frame.between)
            + [of_second] * second
            + [of_after] * len(frame.after)
        )

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        clean = [_whole(text.lower() if self._lowercase else text) for text in texts]
        return [item.ids for item in self._backend.encode_batch_fast(clean, add_special_tokens=False)]

    def _single_frame(self) -> Frame:
        bare, full = self._ids([PROBE])[0], self._backend.encode(PROBE)
        start = _find(bare, full.ids)
        return Frame(full.ids[:start], [], full.ids[start + len(bare) :], (0, 0, 0, 0, 0))

    @cached_property
    def _pair(self) -> Frame:
        bare, full = self._ids([PROBE])[0], self._backend.encode(PROBE, PROBE)
        ids, types = full.ids, full.type_ids
        first = _find(bare, ids)
        second = len(ids) - len(bare) - _find(bare[::-1], ids[::-1])
        end = first + len(bare)
        places = (0, first, end, second, len(ids) - 1)
        kinds = tuple(types[place] for place in places)
        return Frame(ids[:first], ids[end:second], ids[second + len(bare) :], kinds)


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer as FlagEmbedding and sentence-transformers load it. Raises ModelError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as problem:  # OSError, ValueError, or what the tokenizers' own parser raises
        raise ModelError(
            f"the tokenizer in {folder} cannot be read: {problem}", next_step="Download or copy the model again."
        ) from problem
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(
            f"the tokenizer in {folder} ({type(tokenizer).__name__}) has no fast version",
            next_step="Save it with a tokenizer.json.",
        )
    return tokenizer


def limit(tokenizer: Any, model: Any, configured: int | None = None) -> int:
    """Tokens the model reads at most: what its folder says, and never more than its table of positions holds."""
    positions = getattr(model.config, "max_position_embeddings", None)
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    behind_padding = getattr(table, "padding_idx", None)  # RoBERTa's positions begin behind the padding's
    known = [configured or tokenizer.model_max_length]
    if positions and positions > 0:
        known.append(positions if behind_padding is None else positions - behind_padding - 1)
    return min(int(value) for value in known)


def _find(part: list[int], whole: list[int]) -> int:
    for start in range(len(whole) - len(part) + 1):
        if whole[start : start + len(part)] == part:
            return start
    raise ModelError("the tokenizer changes a text when it adds special tokens", next_step="Name another model.")


def _whole(text: str) -> str:
    """`text` with lone surrogates, which no tokenizer takes, replaced by question marks."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text
