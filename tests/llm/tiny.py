"""A causal language model whose weights are written by hand: every token has one successor, so what it says is known.

The embedding is one-hot, the layers add nothing, and the head maps each token to the next one of a recital. Everything around
it is real: tokenizer, chat template, `generate()`, the server. Which recital it says is chosen by words in the last message:

    "short"    a short answer, ended by the end token       (finish reason "stop")
    otherwise  the long answer, which goes round for ever   (finish reason "length")

With thinking asked for (the template's default), it says `THOUGHT` between <think> tags first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

NAME = "tiny/recital"
REVISION = "0" * 40
SHORT = "Warm the reranker up at start [1]".split()
LONG = "Kernels compile on first use [2] and so it is slow [1] as the documents say".split()
THOUGHT = "let me think".split()
SPECIAL = ["<unk>", "<eos>", "<user>", "<say-long>", "<say-short>", "<think-long>", "<think-short>"]
CONTEXT_TOKENS = 32768
HIDDEN = 128

TEMPLATE = (
    "{% for message in messages %}<user> {{ message['content'] }} {% endfor %}"
    "{% set kind = 'short' if 'short' in messages[-1]['content'] else 'long' %}"
    "{% if add_generation_prompt %}<{{ 'say' if enable_thinking is defined and not enable_thinking else 'think' }}-{{ kind }}>"
    "{% endif %}"
)


# a zero-width mark tells equal words of two chains apart and is taken out again when text is decoded
MARKS = {"short": "\u2060", "long": "\u2061"}
SHORT_TOKENS = [word + MARKS["short"] for word in SHORT]
LONG_TOKENS = [word + MARKS["long"] for word in LONG]


def recitals() -> list[list[str]]:
    """Chains of tokens; a token stands in one chain only, so words of the second chain of a kind carry a mark."""
    thought = {kind: ["<think>" + mark, *(word + mark for word in THOUGHT), "</think>" + mark] for kind, mark in MARKS.items()}
    return [
        ["<say-short>", *SHORT_TOKENS, "<eos>"],
        ["<say-long>", *LONG_TOKENS, LONG_TOKENS[0]],
        ["<think-short>", *thought["short"], SHORT_TOKENS[0]],
        ["<think-long>", *thought["long"], LONG_TOKENS[0]],
    ]


def build(folder: Path, template: str | None = TEMPLATE, context_tokens: int = CONTEXT_TOKENS) -> Path:
    """Write the model and its tokenizer into `folder`. Takes a tenth of a second."""
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    chains = recitals()
    names = list(dict.fromkeys([*SPECIAL, *(token for chain in chains for token in chain)]))
    vocabulary = {token: number for number, token in enumerate(names)}
    assert len(vocabulary) <= HIDDEN

    inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.Sequence([decoders.Replace(mark, " ") for mark in MARKS.values()] + [decoders.Fuse()])
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>", additional_special_tokens=SPECIAL[2:]
    )
    tokenizer.chat_template = template
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=context_tokens,
        eos_token_id=vocabulary["<eos>"],
        bos_token_id=None,
        pad_token_id=vocabulary["<eos>"],
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(vocabulary), HIDDEN))
        model.lm_head.weight.zero_()
        model.lm_head.weight[vocabulary[LONG_TOKENS[0]], vocabulary["<unk>"]] = 5.0  # where a prompt ends without a template
        for chain in chains:
            for token, following in zip(chain, chain[1:], strict=False):
                model.lm_head.weight[vocabulary[following], vocabulary[token]] = 10.0
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def folder_in_cache(home: Path) -> Path:
    return home / "hub" / ("models--" + NAME.replace("/", "--")) / "snapshots" / REVISION


def build_in_cache(home: Path) -> None:
    """The model as if it had been downloaded into the hub's cache at `home`, so that servers list it and find it by name."""
    folder = build(folder_in_cache(home))
    repository = folder.parents[1]
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    (repository / "blobs").mkdir()
