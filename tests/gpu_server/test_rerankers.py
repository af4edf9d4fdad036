"""Our pairs, pass and heads against FlagEmbedding's `compute_score` and sentence-transformers' `predict` on the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gpu_server import rerankers
from gpu_server.devices import import_torch
from gpu_server.errors import ModelError
from gpu_server.interfaces import RerankModel
from gpu_server.starter import weights_folder
from scripts import make_random_models

torch: Any = import_torch()

CORPUS = Path(__file__).parents[2] / "samples" / "field-guide-eval" / "corpus.jsonl"
QUERY = "What happens when the memory of the GPU is full?"
TEXTS = (
    "Requests wait in the queue until a model is free.",
    "a",
    "The reranker scores a query with each candidate.",
    "מה קורה כשהזיכרון של המעבד הגרפי מלא?",
    "Latency has many parents : cold models, small batches, long texts." * 3,
    "queue model vector " * 300,
)


def scores(model: RerankModel, query: str, texts: Sequence[str]) -> NDArray[np.float32]:
    return model.forward(model.encode(query, texts))


def sigmoid(values: Any) -> NDArray[np.float32]:
    return np.asarray(1 / (1 + np.exp(-np.asarray(values))))


def kendall_tau(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Concordant less discordant pairs, over all pairs (Kendall 1938)."""
    upper = np.triu_indices(len(one), 1)
    agree = np.sign(one[:, None] - one)[upper] * np.sign(other[:, None] - other)[upper]
    return float(agree.mean())


@pytest.fixture(scope="module")
def flag(tiny_bge_reranker: Path) -> Any:
    from FlagEmbedding import FlagReranker

    return FlagReranker(str(tiny_bge_reranker), use_fp16=False, devices="cpu")


def test_equals_flagembedding(tiny_bge_reranker: Path, flag: Any) -> None:
    wanted = flag.compute_score([(QUERY, text) for text in TEXTS], max_length=512, normalize=False)
    found = scores(rerankers.load(str(tiny_bge_reranker), "cpu", "fp32"), QUERY, TEXTS)
    assert np.abs(found - np.array(wanted)).max() <= 1e-4 and np.ptp(wanted) > 0.1


def test_bf16_is_within_a_hundredth_of_flagembedding(tiny_bge_reranker: Path, flag: Any) -> None:
    """Of the activated scores, which lie between 0 and 1."""
    wanted = flag.compute_score([(QUERY, text) for text in TEXTS], max_length=512, normalize=True)
    found = scores(rerankers.load(str(tiny_bge_reranker), "cpu", "bf16"), QUERY, TEXTS)
    assert np.abs(sigmoid(found) - np.array(wanted)).max() <= 1e-2


def test_long_queries_are_cut_as_flagembedding_cuts_them(tiny_bge_reranker: Path, flag: Any) -> None:
    """The query at 3/4 of the limit, then the passage; whole words, so that its decoding and encoding again changes nothing."""
    query, texts = "memory " * 700, ["queue " * 700, "queue"]
    wanted = flag.compute_score([(query, text) for text in texts], max_length=512, normalize=False)
    assert np.allclose(scores(rerankers.load(str(tiny_bge_reranker), "cpu", "fp32"), query, texts), wanted, atol=1e-4)


def test_an_empty_passage_is_still_a_pair(tiny_bge_reranker: Path) -> None:
    """FlagEmbedding under transformers 5 drops the passage's separators then; sentence-transformers keeps them, as we do."""
    from sentence_transformers import CrossEncoder

    theirs = CrossEncoder(str(tiny_bge_reranker), device="cpu", activation_fn=torch.nn.Identity())
    wanted = theirs.predict([(QUERY, ""), ("", "full")])
    model = rerankers.load(str(tiny_bge_reranker), "cpu", "fp32")
    assert np.allclose([scores(model, QUERY, [""])[0], scores(model, "", ["full"])[0]], wanted, atol=1e-4)


def test_equals_sentence_transformers(tiny_cross_encoder: Path) -> None:
    from sentence_transformers import CrossEncoder

    theirs = CrossEncoder(str(tiny_cross_encoder), device="cpu", activation_fn=torch.nn.Identity())
    texts = [*TEXTS, "", "unknown 😀 sign"]
    wanted = theirs.predict([(QUERY, text) for text in texts])
    exact, low = (
        scores(rerankers.load(str(tiny_cross_encoder), "cpu", precision), QUERY, texts) for precision in ("fp32", "bf16")
    )
    assert np.abs(exact - wanted).max() <= 1e-4 and np.ptp(wanted) > 0.1
    assert np.abs(sigmoid(low) - sigmoid(wanted)).max() <= 1e-2


def test_the_two_segments_of_bert_are_told_apart(tiny_cross_encoder: Path, tiny_bge_reranker: Path) -> None:
    (item,) = rerankers.load(str(tiny_cross_encoder), "cpu", "fp32").encode("full", ["memory queue"])
    assert item.type_ids is not None and len(item.type_ids) == len(item.ids)
    assert list(item.type_ids) == [0] * 3 + [1] * (len(item.ids) - 3)
    assert rerankers.load(str(tiny_bge_reranker), "cpu", "fp32").encode("full", ["memory"])[0].type_ids is None


# INT8 keeps the order


def aim_head(folder: Path, texts: Sequence[str]) -> Path:
    """Point the classifier where these pairs differ most (their first principal component), as a trained one does.

    A random head looks past most of what differs between pairs: its scores lie so close that rounding alone swaps neighbours.
    """
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    name = "classifier.out_proj" if hasattr(model.classifier, "out_proj") else "classifier"
    head = model.get_submodule(name)
    seen: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.inference_mode():
        model(**tokenizer([QUERY] * len(texts), list(texts), padding=True, truncation=True, return_tensors="pt"))
        direction = torch.linalg.svd(seen[0] - seen[0].mean(0), full_matrices=False).Vh[0]
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {f"{name}.weight": direction[None].clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def order_kept(folder: Path, texts: Sequence[str]) -> float:
    exact, found = (scores(rerankers.load(str(folder), "cpu", precision), QUERY, texts) for precision in ("fp32", "int8"))
    assert len(set(exact.tolist())) == len(texts) and not np.array_equal(exact, found)
    return kendall_tau(exact, found)


@pytest.mark.parametrize("build", [make_random_models.bge_reranker, make_random_models.cross_encoder])
def test_int8_keeps_the_order_of_tiny_models(tmp_path: Path, build: Any) -> None:
    words = " ".join(make_random_models.TEXTS).split()
    texts = [" ".join(words[start : start + 3 + start % 17]) for start in range(120)]
    assert order_kept(aim_head(build(tmp_path), texts[1::2]), texts[::2]) >= 0.95


def cross_encoder_of_mini_lm(folder: Path) -> Path:
    """MiniLM's trained body with a new head: activations as real weights make them, outliers included."""
    from transformers import AutoConfig, BertForSequenceClassification

    torch.manual_seed(0)
    source = weights_folder()
    config = AutoConfig.from_pretrained(source, num_labels=1, initializer_range=0.3)
    BertForSequenceClassification.from_pretrained(source, config=config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(source / name, folder)
    return folder


def test_int8_keeps_the_order_with_trained_weights(tmp_path: Path) -> None:
    """The sample set: sections of the sample corpus as candidates."""
    sections = [json.loads(line)["text"][:200] for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    assert order_kept(aim_head(cross_encoder_of_mini_lm(tmp_path), sections[1:120:4]), sections[0:120:2]) >= 0.95


# families that do not run packed, and models that are no rerankers


def test_another_family_runs_its_own_forward(tmp_path: Path, tiny_cross_encoder: Path) -> None:
    from sentence_transformers import CrossEncoder
    from transformers import AutoTokenizer, DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_cross_encoder))
    config = DistilBertConfig(
        vocab_size=len(tokenizer), dim=64, n_layers=2, n_heads=4, hidden_dim=128, initializer_range=0.15, num_labels=1
    )
    DistilBertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tokenizer_config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    tokenizer_config["model_input_names"] = ["input_ids", "attention_mask"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    theirs = CrossEncoder(str(tmp_path), device="cpu", activation_fn=torch.nn.Identity())
    wanted = theirs.predict([(QUERY, text) for text in TEXTS])
    model = rerankers.load(str(tmp_path), "cpu", "fp32")
    assert np.abs(scores(model, QUERY, TEXTS) - wanted).max() <= 1e-4 and np.ptp(wanted) > 0.01
    low = scores(rerankers.load(str(tmp_path), "cpu", "bf16"), QUERY, TEXTS)
    assert np.abs(sigmoid(low) - sigmoid(wanted)).max() <= 1e-2
    assert model.info.memory_bytes
    with pytest.raises(ModelError, match="int8"):
        rerankers.load(str(tmp_path), "cpu", "int8")


def test_a_roberta_cross_encoder(tmp_path: Path, tiny_bge_reranker: Path) -> None:
    """RoBERTa's head without FlagEmbedding: the weights of the XLM-R one under its own name."""
    shutil.copytree(tiny_bge_reranker, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    renamed = config | {"model_type": "roberta", "architectures": ["RobertaForSequenceClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(renamed))
    found = scores(rerankers.load(str(tmp_path), "cpu", "fp32"), QUERY, TEXTS)
    assert np.allclose(found, scores(rerankers.load(str(tiny_bge_reranker), "cpu", "fp32"), QUERY, TEXTS), atol=1e-5)


@pytest.mark.parametrize("kind", ["bge_reranker", "cross_encoder"])
def test_a_reranker_without_its_head_is_refused(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    """transformers would make a random one."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(request.getfixturevalue(f"tiny_{kind}"), tmp_path, dirs_exist_ok=True)
    tensors = {name: value for name, value in load_file(tmp_path / "model.safetensors").items() if "classifier" not in name}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"missing from the weights.*classifier"):
        rerankers.load(str(tmp_path), "cpu", "fp32")
