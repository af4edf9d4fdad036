"""Our tokenise, pass and heads against FlagEmbedding's and sentence-transformers' own `encode` on the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_server import embedders, folders
from gpu_server.devices import import_torch
from gpu_server.errors import ModelError
from gpu_server.interfaces import EmbeddingModel, Encoded, VectorKind
from scripts import make_random_models

torch: Any = import_torch()

ALL: frozenset[VectorKind] = frozenset({"dense", "sparse", "late"})
TEXTS = (
    "What happens when the memory of the GPU is full?",
    "",
    "a",
    "queue queue queue model queue",
    "שלום עולם! מה קורה?",
    "Où vont les requêtes quand le serveur est arrêté ?",
    "unknown 😀 signs ∮ and </s> <pad> tokens",
    "What happens when the memory is full? " * 80,
)
LIMIT = 512


def dense(model: EmbeddingModel, texts: Sequence[str], kind: Any = "passage") -> np.ndarray:
    return np.stack([item.dense for item in model.forward(model.encode(texts, kind), frozenset({"dense"}))])


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return np.asarray((one * other).sum(-1) / lengths)


# BGE-M3


@pytest.fixture(scope="module")
def flag_vectors(tiny_bge_m3: Path) -> dict[str, Any]:
    from FlagEmbedding import BGEM3FlagModel

    model = BGEM3FlagModel(str(tiny_bge_m3), use_fp16=False, devices="cpu")
    return dict(model.encode(list(TEXTS), max_length=LIMIT, return_sparse=True, return_colbert_vecs=True))


@pytest.mark.parametrize(("precision", "cosine", "difference"), [("fp32", 0.99999, 1e-4), ("bf16", 0.999, 1e-2)])
def test_bge_m3_equals_flagembedding(
    tiny_bge_m3: Path, flag_vectors: dict[str, Any], precision: str, cosine: float, difference: float
) -> None:
    model = embedders.load(str(tiny_bge_m3), "cpu", precision)
    found = model.forward(model.encode(TEXTS, "passage"), ALL)
    assert cosines(np.stack([item.dense for item in found]), flag_vectors["dense_vecs"]).min() >= cosine
    for item, weights, late in zip(found, flag_vectors["lexical_weights"], flag_vectors["colbert_vecs"], strict=True):
        assert item.sparse is not None and item.late is not None
        near_zero = {token for token in {*map(str, item.sparse), *weights} if float(weights.get(token, 0)) < difference}
        assert {str(token) for token in item.sparse} - near_zero == set(weights) - near_zero
        wanted = {int(token): float(weight) for token, weight in weights.items()}
        assert all(abs(weight - wanted.get(token, 0.0)) <= difference for token, weight in item.sparse.items())
        assert item.late.shape == late.shape and item.late.dtype == np.float32
        assert cosines(item.late, late).min() >= cosine


def test_sparse_weights_are_plain_numbers_of_words(tiny_bge_m3: Path) -> None:
    """Integer keys and Python floats (JSON takes them), none for special tokens, one for a word that comes thrice."""
    model = embedders.load(str(tiny_bge_m3), "cpu", "fp32")
    encoded = model.encode(["queue queue queue model", "", "</s> <pad> <unk> 😀"], "query")
    repeated, empty, special = model.forward(encoded, ALL)
    assert repeated.sparse and all(type(key) is int and type(value) is float for key, value in repeated.sparse.items())
    assert json.loads(json.dumps(repeated.sparse))
    assert min(repeated.sparse.values()) > 0 and len(repeated.sparse) <= len(set(encoded[0].ids)) - 2
    assert empty.sparse == {}
    assert special.sparse is not None and not set(special.sparse) & {0, 1, 2, 3}


def test_bge_m3_says_what_it_makes(tiny_bge_m3: Path) -> None:
    info = embedders.load(str(tiny_bge_m3), "cpu", "fp32").info
    assert (info.learned_sparse, info.late_interaction, info.dimension, info.max_tokens) == (True, True, 64, LIMIT)
    assert info.identity.startswith("tiny-bge-m3-64-cls-") and info.name == "tiny-bge-m3"


def test_each_token_of_a_repeated_word_is_read_but_the_highest_weight_kept(tiny_bge_m3: Path) -> None:
    """The highest of the token's own weights, as a plain loop over positions finds it with torch's linear layer."""
    folder = folders.embedder(str(tiny_bge_m3))
    model = embedders.BgeM3(folder, "cpu", "fp32")
    (item,) = model.encode(["queue model queue full queue"], "query")
    hidden = model._encoder.hidden([item]).states
    head = torch.load(folder.path / "sparse_linear.pt", weights_only=True)
    by_position = torch.relu(hidden @ head["weight"][0] + head["bias"]).tolist()
    wanted: dict[int, float] = {}
    for token, weight in zip(item.ids, by_position, strict=True):
        if token > 3 and weight > 0:
            wanted[token] = max(weight, wanted.get(token, 0.0))
    found = model.forward([item], ALL)[0].sparse
    assert found == pytest.approx(wanted, abs=1e-6)
    assert len(item.ids) > len(set(item.ids))


@pytest.mark.parametrize("kinds", [{"dense"}, {"sparse"}, {"late"}, {"dense", "late"}])
def test_heads_that_nobody_asked_for_are_not_made(tiny_bge_m3: Path, kinds: set[VectorKind]) -> None:
    model = embedders.load(str(tiny_bge_m3), "cpu", "fp32")
    (item,) = model.forward(model.encode(["full"], "query"), frozenset(kinds))
    assert (item.sparse is not None, item.late is not None) == ("sparse" in kinds, "late" in kinds)


# sentence-transformers


@pytest.mark.parametrize(
    "build",
    [
        {},
        {"pooling": "cls"},
        {"pooling": "max"},
        {"pooling": "lasttoken"},
        {"pooling": "mean", "prompts": {"query": "query: ", "document": "passage: "}},
        {"pooling": "cls", "dense": 32},
    ],
    ids=lambda build: "-".join(map(str, build.values())) or "mean",
)
def test_equals_sentence_transformers(tmp_path: Path, build: dict[str, Any]) -> None:
    from sentence_transformers import SentenceTransformer

    make_random_models.sentence_transformer(tmp_path, **build)
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    ours = embedders.load(str(tmp_path), "cpu", "fp32")
    texts = [text for text in TEXTS if text]
    assert cosines(dense(ours, texts), theirs.encode_document(texts)).min() >= 0.99999
    assert cosines(dense(ours, texts, "query"), theirs.encode_query(texts)).min() >= 0.99999
    assert ours.info.dimension == theirs.get_embedding_dimension() and ours.info.max_tokens == theirs.max_seq_length


def test_a_prompt_changes_the_vector_of_its_kind_alone(tmp_path: Path) -> None:
    make_random_models.sentence_transformer(tmp_path, prompts={"query": "Represent this: "})
    model = embedders.load(str(tmp_path), "cpu", "fp32")
    query, passage = dense(model, ["full"], "query"), dense(model, ["full"], "passage")
    assert cosines(query, passage)[0] < 0.99
    assert np.allclose(query, dense(model, ["Represent this: full"], "passage"), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "about", "wanted"),
    [
        ("x", {"prompts": {"query": "q: ", "passage": "p: "}}, ("q: ", "p: ")),
        ("x", {"prompts": {"query": "q: ", "document": ""}}, ("q: ", "")),
        ("x", {"prompts": {"document": "d: ", "query": ""}, "default_prompt_name": None}, ("", "d: ")),
        ("x", {"prompts": {"search": "s: "}, "default_prompt_name": "search"}, ("s: ", "s: ")),
        ("x", {}, ("", "")),
        ("x", {"prompts": None}, ("", "")),
        ("multilingual-e5-base", {}, ("query: ", "passage: ")),
        ("e5-small-v2", {"prompts": {"query": "", "document": ""}}, ("query: ", "passage: ")),
        ("multilingual-e5-large-instruct", {}, ("", "")),
        ("multilingual-e5-base", {"prompts": {"query": "own: "}}, ("own: ", "")),
    ],
)
def test_prompts(tiny_sentence_transformer: Path, name: str, about: dict[str, Any], wanted: tuple[str, str]) -> None:
    folder = replace(folders.embedder(str(tiny_sentence_transformer)), short_name=name)
    found = embedders.prompts(folder, about)
    assert (found["query"], found["passage"]) == wanted


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["lasttoken"]}, "lasttoken"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode_max_tokens": True}, "max"),
    ],
)
def test_pooling_in_either_spelling(tiny_sentence_transformer: Path, config: dict[str, Any], wanted: str) -> None:
    assert embedders.pooling_mode(config, folders.embedder(str(tiny_sentence_transformer))) == wanted


@pytest.mark.parametrize(
    "config",
    [
        {"pooling_mode": "weightedmean"},
        {"pooling_mode": ["cls", "mean"]},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
        {"pooling_mode": "mean", "include_prompt": False},
        {},
    ],
)
def test_other_ways_of_pooling_are_refused(tiny_sentence_transformer: Path, config: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="not supported"):
        embedders.pooling_mode(config, folders.embedder(str(tiny_sentence_transformer)))


def test_a_plain_encoder_is_pooled_by_its_mean(tmp_path: Path, tiny_sentence_transformer: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_sentence_transformer / name, plain)
    model, pooled = embedders.load(str(plain), "cpu", "fp32"), embedders.load(str(tiny_sentence_transformer), "cpu", "fp32")
    assert np.allclose(dense(model, TEXTS), dense(pooled, TEXTS), atol=1e-6)
    assert model.info.identity.removeprefix("plain") == pooled.info.identity.removeprefix("tiny-sentence-transformer")


def test_the_folders_own_limit_and_lower_case_count(tmp_path: Path, tiny_sentence_transformer: Path) -> None:
    shutil.copytree(tiny_sentence_transformer, tmp_path, dirs_exist_ok=True)
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16, "do_lower_case": True}))
    model = embedders.load(str(tmp_path), "cpu", "fp32")
    long, upper, lower = model.encode(["memory " * 50, "FULL", "full"], "passage")
    assert model.info.max_tokens == 16 and len(long.ids) == 16 and long.truncated
    assert upper == lower


def test_a_model_made_for_dot_products_says_so(tmp_path: Path, tiny_sentence_transformer: Path) -> None:
    shutil.copytree(tiny_sentence_transformer, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"similarity_fn_name": "dot"}))
    assert "dot products" in (embedders.load(str(tmp_path), "cpu", "fp32").info.note or "")


# transformers that do not run packed


def causal_folder(folder: Path, tokenizer_of: Path) -> Path:
    """A decoder with last-token pooling, as Qwen3-Embedding is one: causal attention, no special tokens of its own."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_of))
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, initializer_range=0.15, pad_token_id=1,
        architectures=["Qwen3ForCausalLM"],
    )  # fmt: skip
    Qwen3Model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    kinds = "sentence_transformers.models"
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 64, "pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False})
    )
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": 0, "name": "0", "path": "", "type": f"{kinds}.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kinds}.Pooling"},
                {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{kinds}.Normalize"},
            ]
        )
    )
    return folder


def test_a_decoder_with_last_token_pooling(tmp_path: Path, tiny_bge_m3: Path) -> None:
    from sentence_transformers import SentenceTransformer

    causal_folder(tmp_path, tiny_bge_m3)
    theirs, ours = SentenceTransformer(str(tmp_path), device="cpu"), embedders.load(str(tmp_path), "cpu", "fp32")
    texts = [text for text in TEXTS if text]
    assert cosines(dense(ours, texts), theirs.encode(texts)).min() >= 0.99999


def test_an_empty_text_without_special_tokens_has_a_vector(tmp_path: Path, tiny_bge_m3: Path) -> None:
    """It must not take its neighbour's last token for its own."""
    causal_folder(tmp_path, tiny_bge_m3)
    config = json.loads((tmp_path / "tokenizer.json").read_text())
    config["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "model_max_length": LIMIT})
    )
    model = embedders.load(str(tmp_path), "cpu", "fp32")
    encoded = model.encode(["full", "", "queue"], "passage")
    assert len(encoded[1].ids) == 1 and 0 not in encoded[0].ids
    together = dense(model, ["full", "", "queue"])
    assert np.isfinite(together).all() and cosines(together[0], together[1]) < 0.999
    assert np.allclose(together[1], dense(model, [""])[0], atol=1e-5)


def test_an_encoder_of_another_family(tmp_path: Path, tiny_sentence_transformer: Path) -> None:
    """MPNet: its positions begin behind the padding's, so that its limit is two less than its table."""
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer, MPNetConfig, MPNetModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_sentence_transformer), model_max_length=600)
    sizes = make_random_models.TINY.config()
    MPNetModel(
        MPNetConfig(vocab_size=len(tokenizer), max_position_embeddings=66, **sizes), add_pooling_layer=False
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ours = embedders.load(str(tmp_path), "cpu", "fp32")
    assert ours.info.max_tokens == 64
    texts = [text for text in TEXTS if text and len(ours.encode([text], "passage")[0].ids) < 60]
    assert cosines(dense(ours, texts), SentenceTransformer(str(tmp_path), device="cpu").encode(texts)).min() >= 0.99999
    assert np.isfinite(dense(ours, ["memory " * 500])).all()
    with pytest.raises(ModelError, match="int8"):
        embedders.load(str(tmp_path), "cpu", "int8")


def test_the_encoder_of_t5(tmp_path: Path, tiny_bge_m3: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import AutoTokenizer, T5Config, T5EncoderModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_bge_m3))
    config = T5Config(vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, pad_token_id=1)
    T5EncoderModel(config).save_pretrained(tmp_path / "body")
    tokenizer.save_pretrained(tmp_path / "body")
    theirs = SentenceTransformer(modules=[Transformer(str(tmp_path / "body")), Pooling(64)], device="cpu")
    theirs.save(str(tmp_path / "saved"), create_model_card=False)
    ours = embedders.load(str(tmp_path / "saved"), "cpu", "fp32")
    texts = [text for text in TEXTS if text]
    assert cosines(dense(ours, texts), theirs.encode(texts)).min() >= 0.99999


# weights that do not fit


def test_weights_that_lack_a_layer_are_refused(tmp_path: Path, tiny_bge_m3: Path, tiny_sentence_transformer: Path) -> None:
    """transformers would fill it with random numbers and go on."""
    for number, source in enumerate((tiny_bge_m3, tiny_sentence_transformer)):
        folder = tmp_path / str(number)
        shutil.copytree(source, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
        with pytest.raises(ModelError, match=r"missing from the weights.*encoder\.layer\.2"):
            embedders.load(str(folder), "cpu", "fp32")


def test_what_the_libraries_raise_names_the_model(tmp_path: Path, tiny_sentence_transformer: Path) -> None:
    shutil.copytree(tiny_sentence_transformer, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "no-such-model"}))
    with pytest.raises(ModelError, match="could not be loaded") as caught:
        embedders.load(str(tmp_path), "cpu", "fp32")
    assert caught.value.next_step and tmp_path.name in str(caught.value)


def test_weights_in_torchs_own_format(tmp_path: Path, tiny_bge_m3: Path) -> None:
    """BAAI/bge-m3 comes as pytorch_model.bin."""
    from safetensors.torch import load_file

    shutil.copytree(tiny_bge_m3, tmp_path, dirs_exist_ok=True)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    found = dense(embedders.load(str(tmp_path), "cpu", "fp32"), TEXTS)
    assert np.allclose(found, dense(embedders.load(str(tiny_bge_m3), "cpu", "fp32"), TEXTS), atol=1e-6)


def test_an_unknown_device_is_a_model_error(tiny_bge_m3: Path) -> None:
    with pytest.raises(ModelError):
        embedders.load(str(tiny_bge_m3), "cuda:77", "auto")


def test_token_ids_may_come_from_elsewhere(tiny_bge_m3: Path) -> None:
    """The batcher may hand over what `encode` made for another worker: plain lists of ids."""
    model = embedders.load(str(tiny_bge_m3), "cpu", "fp32")
    ids = list(model.encode(["full"], "query")[0].ids)
    assert np.allclose(model.forward([Encoded(ids)], ALL)[0].dense, dense(model, ["full"])[0], atol=1e-6)
