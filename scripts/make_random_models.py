"""Models with random weights and real formats, for tests and benchmarks: no download, same code paths, same arithmetic.

    python -m scripts.make_random_models --kind bge-m3 --size real FOLDER

Kinds: `bge-m3` (XLM-R with the sparse and late-interaction heads), `bge-reranker` (XLM-R with one label),
`sentence-transformer` (BERT with a pooling layer), `cross-encoder` (BERT with one label). Tiny ones have 2 layers and a
vocabulary of a few hundred pieces; `real` is BGE-M3's size for the XLM-R kinds (24 layers, 568 M weights) and MiniLM's for
the BERT kinds. The same seed gives the same folder in every process. Knows nothing of the engine.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_server.devices import import_torch

KINDS = ("bge-m3", "bge-reranker", "sentence-transformer", "cross-encoder")
TEXTS = (
    "What happens when the memory of the GPU is full? Requests wait in the queue until a model is free.",
    "The embedder turns every passage into a vector; the reranker scores a query with each candidate.",
    "Latency has many parents: cold models, small batches, long texts, a slow network, a busy disk.",
    "Article 8 allows the transfer of data, article 9 does not allow it without consent of the person.",
    "L'article premier de la loi dispose que les données sont conservées pendant cinq ans au plus.",
    "Où vont les requêtes quand le serveur est arrêté ? Elles attendent, puis elles échouent.",
    "מה קורה כשהזיכרון של המעבד הגרפי מלא? הבקשות ממתינות בתור עד שהמודל פנוי.",
    "הסעיף הראשון בחוק קובע כי המידע נשמר חמש שנים לכל היותר. שלום עולם!",
    "0 1 2 3 4 5 6 7 8 9 a b c d e f g h i j k l m n o p q r s t u v w x y z . , ; : ( ) [ ] - _ / # % & @",
)


@dataclass(frozen=True, slots=True)
class Size:
    """What a model's tables hold; `spread` is the standard deviation of its random weights.

    Small models need a wide spread: with 0.02 at width 64 all texts would come out nearly alike.
    """

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int
    tokens: int
    spread: float = 0.02

    def config(self) -> dict[str, Any]:
        return {
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate,
            "initializer_range": self.spread,
        }


TINY = Size(layers=2, hidden=64, heads=4, intermediate=128, vocabulary=600, tokens=512, spread=0.15)
BGE_M3 = Size(layers=24, hidden=1024, heads=16, intermediate=4096, vocabulary=250_002, tokens=8192)
MINI_LM = Size(layers=6, hidden=384, heads=12, intermediate=1536, vocabulary=30_522, tokens=512, spread=0.05)


def bge_m3(folder: Path, size: Size = TINY, seed: int = 0) -> Path:
    """A folder as BAAI/bge-m3 has it: XLM-R, `sparse_linear.pt`, `colbert_linear.pt`."""
    torch = import_torch()
    from transformers import XLMRobertaModel

    torch.manual_seed(seed)
    tokenizer = _unigram_tokenizer(folder, size)
    XLMRobertaModel(_xlm_config(tokenizer, size), add_pooling_layer=False).save_pretrained(folder)
    for name, width in (("sparse_linear.pt", 1), ("colbert_linear.pt", size.hidden)):
        torch.save(torch.nn.Linear(size.hidden, width).state_dict(), folder / name)
    return folder


def bge_reranker(folder: Path, size: Size = TINY, seed: int = 0) -> Path:
    """A folder as BAAI/bge-reranker-v2-m3 has it: XLM-R with a classifier of one label."""
    torch = import_torch()
    from transformers import XLMRobertaForSequenceClassification

    torch.manual_seed(seed)
    config = _xlm_config(_unigram_tokenizer(folder, size), size)
    config.num_labels = 1
    XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    return folder


def sentence_transformer(
    folder: Path,
    size: Size = TINY,
    seed: int = 0,
    *,
    pooling: str = "mean",
    prompts: Mapping[str, str] | None = None,
    dense: int | None = None,
) -> Path:
    """A folder as sentence-transformers has it: BERT, pooling, a tanh layer of width `dense` where asked, normalisation."""
    torch = import_torch()
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
    from transformers import BertModel

    torch.manual_seed(seed)
    body = folder / "body"
    BertModel(_bert_config(_wordpiece_tokenizer(body, size), size), add_pooling_layer=False).save_pretrained(body)
    modules: list[Any] = [Transformer(str(body)), Pooling(size.hidden, pooling_mode=pooling)]
    if dense is not None:
        modules.append(Dense(size.hidden, dense))
    model = SentenceTransformer(modules=[*modules, Normalize()], prompts=dict(prompts or {}), device="cpu")
    model.save(str(folder), create_model_card=False)
    for path in sorted(body.iterdir()):
        path.unlink()
    body.rmdir()
    return folder


def cross_encoder(folder: Path, size: Size = TINY, seed: int = 0) -> Path:
    """A folder as the MS MARCO cross-encoders have it: BERT with a pooler and a classifier of one label."""
    torch = import_torch()
    from transformers import BertForSequenceClassification

    torch.manual_seed(seed)
    config = _bert_config(_wordpiece_tokenizer(folder, size), size)
    config.num_labels = 1
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def make(kind: str, folder: Path, *, real_size: bool = False, seed: int = 0) -> Path:
    """Write a model of `kind` (one of KINDS) to `folder`, which is made. Raises KeyError for another kind."""
    build, size = {
        "bge-m3": (bge_m3, BGE_M3),
        "bge-reranker": (bge_reranker, BGE_M3),
        "sentence-transformer": (sentence_transformer, MINI_LM),
        "cross-encoder": (cross_encoder, MINI_LM),
    }[kind]
    written: Path = build(folder, size if real_size else TINY, seed)
    return written


def _xlm_config(tokenizer: Any, size: Size) -> Any:
    from transformers import XLMRobertaConfig

    positions = size.tokens + tokenizer.pad_token_id + 1  # RoBERTa's positions begin behind the padding's
    return XLMRobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=positions, type_vocab_size=1, layer_norm_eps=1e-5, **size.config()
    )


def _bert_config(tokenizer: Any, size: Size) -> Any:
    from transformers import BertConfig

    return BertConfig(vocab_size=len(tokenizer), max_position_embeddings=size.tokens, **size.config())


def _unigram_tokenizer(folder: Path, size: Size) -> Any:
    """XLM-R's tokenizer, written to `folder`: whole words where it knows them, else characters; all pieces alike in score."""
    from transformers import XLMRobertaTokenizer

    words, inner = _words(size)
    pieces = ["▁", *(f"▁{word}" for word in words), *(f"▁{word.capitalize()}" for word in words), *inner, *words]
    known = [(piece, -10.0) for piece in dict.fromkeys(pieces)]
    room = size.vocabulary - 5  # the four before and <mask> at the end, as in XLM-R
    known += [(f"▁filler{index}", -20.0) for index in range(room - len(known))]
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = XLMRobertaTokenizer(vocab=[*special, *known, ("<mask>", 0.0)], model_max_length=size.tokens)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _wordpiece_tokenizer(folder: Path, size: Size) -> Any:
    """BERT's tokenizer, written to `folder`."""
    from transformers import BertTokenizer

    words, inner = _words(size)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *inner, *(f"##{piece}" for piece in inner)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=size.tokens)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _words(size: Size) -> tuple[list[str], list[str]]:
    """Words, and pieces inside words: of TEXTS when tiny, else of MiniLM's vocabulary, so that texts are as long as with it.

    Not trained: the trainers of `tokenizers` give another vocabulary in every process.
    """
    if size.vocabulary > TINY.vocabulary:
        from gpu_server.starter import weights_folder

        lines = [line for line in (weights_folder() / "vocab.txt").read_text(encoding="utf-8").split("\n") if line]
        return [line for line in lines if line[0] != "[" and line[:2] != "##"], [line[2:] for line in lines if line[:2] == "##"]
    text = " ".join(TEXTS)
    return sorted(set(re.findall(r"\w+|[^\w\s]", text.lower()))), sorted(set(text.lower() + text) - {" "})


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.make_random_models", description=__doc__)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--size", choices=("tiny", "real"), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    make(options.kind, options.folder, real_size=options.size == "real", seed=options.seed)
    print(json.dumps({"kind": options.kind, "size": options.size, "folder": str(options.folder)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
