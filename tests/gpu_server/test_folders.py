"""Folders that are not what they should be: refused before anything loads, with what is missing, where, and the next step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpu_server import folders, hub
from gpu_server.devices import import_torch
from gpu_server.errors import ModelError
from scripts import make_random_models
from tests.gpu_server.hub_server import COMMIT, fake_hub
from tests.ports import free_port

torch: Any = import_torch()

NAME = "somebody/some-model"


@pytest.fixture
def m3(tiny_bge_m3: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bge_m3, tmp_path / "my-bge-m3")


@pytest.fixture
def sentence(tiny_sentence_transformer: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_sentence_transformer, tmp_path / "sentence")


def refused(check: Callable[[str], object], folder: Path | str) -> str:
    """The message of the refusal; every one has a next step."""
    with pytest.raises(ModelError) as caught:
        check(str(folder))
    assert caught.value.next_step.endswith((".", "?")) and caught.value.kind == "model"
    return str(caught.value)


def rewrite(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: value for key, value in (config | changes).items() if value is not ...}))


# what passes


def test_the_kinds(tiny_bge_m3: Path, tiny_bge_reranker: Path, tiny_sentence_transformer: Path, tiny_cross_encoder: Path) -> None:
    assert folders.embedder(str(tiny_bge_m3)).kind == "bge-m3"
    assert folders.embedder(str(tiny_sentence_transformer)).kind == "sentence-transformer"
    assert folders.reranker(str(tiny_bge_reranker)).kind == folders.reranker(str(tiny_cross_encoder)).kind == "cross-encoder"


def test_bge_m3_is_known_by_its_heads_whatever_it_is_called(m3: Path, tmp_path: Path) -> None:
    other = m3.rename(tmp_path / "renamed")
    assert folders.embedder(str(other)).kind == "bge-m3"


def test_the_layout_of_old_sentence_transformers(sentence: Path, tmp_path: Path) -> None:
    """The transformer in a folder of its own."""
    body = sentence / "0_Transformer"
    body.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"):
        (sentence / name).rename(body / name)
    modules = json.loads((sentence / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (sentence / "modules.json").write_text(json.dumps(modules))
    assert folders.embedder(str(sentence)).body == body.resolve()


def test_shards(m3: Path) -> None:
    from transformers import AutoModel

    AutoModel.from_pretrained(m3).save_pretrained(m3 / "parts", max_shard_size="200KB")
    for shard in (m3 / "parts").glob("model*"):
        shard.rename(m3 / shard.name)
    (m3 / "model.safetensors").unlink()
    found = folders.embedder(str(m3))
    assert len(found.weights) > 3  # two shards at least, and the heads
    (m3 / found.weights[0].name).unlink()
    assert "1 of" in refused(folders.embedder, m3) and found.weights[0].name in refused(folders.embedder, m3)


# identity


def test_the_identity_ignores_where_the_folder_lies(m3: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(m3, tmp_path / "elsewhere" / m3.name)
    assert folders.identity(folders.embedder(str(m3)), 64, "cls") == folders.identity(folders.embedder(str(moved)), 64, "cls")


@pytest.mark.parametrize("file", ["model.safetensors", "sparse_linear.pt", "colbert_linear.pt"])
def test_the_identity_knows_other_weights_and_other_heads(m3: Path, tmp_path: Path, file: str) -> None:
    before = folders.identity(folders.embedder(str(m3)), 64, "cls")
    other = make_random_models.bge_m3(tmp_path / "other", seed=1)
    shutil.copy(other / file, m3 / file)
    after = folders.identity(folders.embedder(str(m3)), 64, "cls")
    assert before != after and before.rsplit("-", 1)[0] == after.rsplit("-", 1)[0] == "my-bge-m3-64-cls"


def test_a_folders_name_gives_no_odd_identity(m3: Path, tmp_path: Path) -> None:
    odd = m3.rename(tmp_path / "my model (2)")
    assert folders.identity(folders.embedder(str(odd)), 64, "cls").startswith("my_model__2_-64-cls-")


def test_the_hash_reads_samples_of_large_files(tmp_path: Path) -> None:
    large = tmp_path / "large"
    content = bytearray(8 * folders.SAMPLES * folders.SAMPLE_BYTES)
    large.write_bytes(content)
    before = folders.weights_hash([large])
    content[-1000] = 1  # between two samples
    large.write_bytes(content)
    assert folders.weights_hash([large]) == before
    content[len(content) // 2] = 1
    large.write_bytes(content)
    assert folders.weights_hash([large]) != before != folders.weights_hash([large, large])


# the wrong model


def test_a_reranker_is_no_embedder_and_the_reverse(tiny_bge_reranker: Path, tiny_cross_encoder: Path, tiny_bge_m3: Path) -> None:
    assert "XLMRobertaForSequenceClassification" in refused(folders.embedder, tiny_bge_reranker)
    assert "reranker" in refused(folders.embedder, tiny_cross_encoder)
    assert "XLMRobertaModel" in refused(folders.reranker, tiny_bge_m3)


def test_a_cross_encoder_saved_by_sentence_transformers_is_no_embedder(tiny_cross_encoder: Path, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    CrossEncoder(str(tiny_cross_encoder), device="cpu").save_pretrained(str(tmp_path / "saved"))
    refused(folders.embedder, tmp_path / "saved")
    assert folders.reranker(str(tmp_path / "saved")).kind == "cross-encoder"


@pytest.mark.parametrize("found", ["LlamaForCausalLM", "T5ForConditionalGeneration", "GPT2LMHeadModel"])
def test_language_models_are_neither(tmp_path: Path, m3: Path, found: str) -> None:
    rewrite(m3, architectures=[found], model_type="other")
    assert found in refused(folders.embedder, m3)
    assert found in refused(folders.reranker, m3)


def test_a_classifier_of_three_labels(tmp_path: Path, tiny_cross_encoder: Path) -> None:
    folder = shutil.copytree(tiny_cross_encoder, tmp_path / "three")
    rewrite(folder, id2label={"0": "a", "1": "b", "2": "c"})
    assert "3 labels" in refused(folders.reranker, folder)
    rewrite(folder, id2label=...)
    assert "2 labels" in refused(folders.reranker, folder)  # what transformers takes for granted


def test_other_models_of_sentence_transformers(sentence: Path) -> None:
    (sentence / "config_sentence_transformers.json").write_text(json.dumps({"model_type": "SparseEncoder"}))
    assert "SparseEncoder" in refused(folders.embedder, sentence)
    (sentence / "config_sentence_transformers.json").unlink()
    (sentence / "modules.json").write_text(json.dumps([{"path": "", "type": "sentence_transformers.models.StaticEmbedding"}]))
    assert "StaticEmbedding" in refused(folders.embedder, sentence)


# half a model


@pytest.mark.parametrize("head", folders.HEADS)
def test_bge_m3_without_a_head(m3: Path, head: str) -> None:
    (m3 / head).unlink()
    assert f"{head} missing" in refused(folders.embedder, m3)


def test_bge_m3_without_heads_is_known_by_its_name(m3: Path, tmp_path: Path) -> None:
    for head in folders.HEADS:
        (m3 / head).unlink()
    assert "sparse_linear.pt and colbert_linear.pt missing" in refused(folders.embedder, m3)
    other = m3.rename(tmp_path / "xlm-r-for-sentences")
    assert folders.embedder(str(other)).kind == "sentence-transformer"


def test_heads_of_another_model(m3: Path) -> None:
    torch.save(torch.nn.Linear(1024, 1).state_dict(), m3 / "sparse_linear.pt")
    assert "(1, 1024)" in refused(folders.embedder, m3)
    torch.save([1, 2], m3 / "sparse_linear.pt")
    assert "sparse_linear.pt cannot be read" in refused(folders.embedder, m3)


def test_a_head_that_is_half_there(m3: Path) -> None:
    head = m3 / "colbert_linear.pt"
    head.write_bytes(head.read_bytes()[:5000])
    assert "colbert_linear.pt is not whole" in refused(folders.embedder, m3)


@pytest.mark.parametrize("kept", [0, 4, 100, 5000, -1])
def test_half_a_download_of_safetensors(m3: Path, kept: int) -> None:
    weights = m3 / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    assert "model.safetensors is not whole" in refused(folders.embedder, m3)


def test_half_a_download_of_torchs_format(m3: Path) -> None:
    weights = m3 / "pytorch_model.bin"
    torch.save({"x": torch.zeros(100_000)}, weights)
    (m3 / "model.safetensors").unlink()
    folders.embedder(str(m3))
    weights.write_bytes(weights.read_bytes()[:200_000])
    assert "pytorch_model.bin is not whole" in refused(folders.embedder, m3)


def test_a_clone_without_its_large_files(m3: Path) -> None:
    (m3 / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2271064456\n")
    assert "Git LFS pointer" in refused(folders.embedder, m3)


def test_no_weights_at_all(m3: Path) -> None:
    (m3 / "model.safetensors").unlink()
    (m3 / ".cache" / "huggingface" / "download").mkdir(parents=True)
    (m3 / ".cache" / "huggingface" / "download" / "abc.incomplete").write_bytes(b"")
    message = refused(folders.embedder, m3)
    assert "no weights" in message and "a download broke off: 1 .incomplete file" in message


def test_no_tokenizer(m3: Path, tiny_cross_encoder: Path, tmp_path: Path) -> None:
    (m3 / "tokenizer.json").unlink()
    assert "no tokenizer" in refused(folders.embedder, m3)
    folder = shutil.copytree(tiny_cross_encoder, tmp_path / "ce")
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in refused(folders.reranker, folder)


def test_a_dense_layer_without_its_weights(tmp_path: Path) -> None:
    folder = make_random_models.sentence_transformer(tmp_path / "dense", dense=32)
    (folder / "2_Dense" / "model.safetensors").unlink()
    assert "2_Dense" in refused(folders.embedder, folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "[1]", "7", '"text"'])
def test_a_broken_config(m3: Path, content: str) -> None:
    (m3 / "config.json").write_text(content)
    for check in (folders.embedder, folders.reranker):
        assert "config.json" in refused(check, m3)


def test_an_empty_folder_a_file_and_nothing(tmp_path: Path) -> None:
    assert "config.json is missing" in refused(folders.embedder, tmp_path)
    file = tmp_path / "weights.bin"
    file.write_bytes(b"x")
    assert "is a file" in refused(folders.embedder, file)
    assert "there is no folder" in refused(folders.reranker, tmp_path / "nothing")
    assert "empty" in refused(folders.embedder, "")
    assert "neither" in refused(folders.embedder, "what is this?")


def test_names_of_the_hub_are_no_paths() -> None:
    assert all(hub.bad_name(name) is None for name in ("BAAI/bge-m3", "bert-base-uncased", "a/b.c_d-e", "starter"))


# the hub, and its cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no way to the real hub: its address is a port that nobody listens at."""
    from huggingface_hub import constants

    closed = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    use_hub(monkeypatch, closed)
    return tmp_path / "hub"


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def cached(cache: Path, source: Path, name: str = NAME) -> Path:
    """`source` in the cache as a download leaves it."""
    repository = cache / ("models--" + name.replace("/", "--"))
    snapshot = shutil.copytree(source, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_what_is_cached_needs_no_network(cache: Path, tiny_bge_m3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = cached(cache, tiny_bge_m3)
    found = folders.embedder(NAME)
    assert (found.path, found.name, found.short_name) == (snapshot, NAME, "some-model")
    assert folders.identity(found, 64, "cls").startswith("some-model-64-cls-")
    offline(monkeypatch)
    assert folders.embedder(NAME) == found


def test_a_cached_model_given_by_its_path_has_the_same_identity(cache: Path, tiny_bge_m3: Path) -> None:
    by_path = folders.embedder(str(cached(cache, tiny_bge_m3)))
    assert by_path.name == "some-model"
    assert folders.identity(by_path, 64, "cls") == folders.identity(folders.embedder(NAME), 64, "cls")


def test_offline_and_not_cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    message = refused(folders.embedder, NAME)
    assert NAME in message and str(cache) in message and "HF_HUB_OFFLINE" in message


def test_offline_and_half_cached(cache: Path, tiny_bge_m3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    snapshot = cached(cache, tiny_bge_m3)
    (snapshot / "model.safetensors").unlink()
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir()
    (blobs / "abc.12345678.incomplete").write_bytes(b"half")
    assert "a download broke off" in refused(folders.embedder, NAME)


def test_nobody_answers_at_the_hub(cache: Path) -> None:
    message = refused(folders.embedder, NAME)
    assert NAME in message and "could not be downloaded" in message


def test_a_download(cache: Path, tiny_bge_m3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once; weights in other formats, and the same weights again as .bin, stay where they are."""
    source = shutil.copytree(tiny_bge_m3, tmp_path / "source")
    (source / "onnx").mkdir()
    for extra in ("pytorch_model.bin", "onnx/model.onnx_data", "onnx/config.json", "picture.jpg", "flax_model.msgpack"):
        (source / extra).write_bytes(b"not wanted")
    with fake_hub({NAME: source}) as online:
        use_hub(monkeypatch, online.url)
        found = folders.embedder(NAME)
        got = {str(path.relative_to(found.path)) for path in found.path.rglob("*") if path.is_file()}
        assert got == {path.name for path in tiny_bge_m3.iterdir()}
        assert found.kind == "bge-m3" and found.path.is_relative_to(cache.resolve())
        asked = len(online.asked)
        assert folders.embedder(NAME) == found and len(online.asked) == asked


def test_a_half_cached_model_is_completed(cache: Path, tiny_bge_m3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cached(cache, tiny_bge_m3) / "sparse_linear.pt").unlink()
    with fake_hub({NAME: tiny_bge_m3}) as online:
        use_hub(monkeypatch, online.url)
        assert folders.embedder(NAME).kind == "bge-m3"


def test_a_hub_model_that_is_no_embedder(cache: Path, tiny_bge_reranker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_hub({NAME: tiny_bge_reranker}) as online:
        use_hub(monkeypatch, online.url)
        assert "reranker" in refused(folders.embedder, NAME)


def test_names_the_hub_does_not_give(cache: Path, tiny_bge_m3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_hub({"meta/gated": tiny_bge_m3}, gated=frozenset({"meta/gated"})) as online:
        use_hub(monkeypatch, online.url)
        assert "has no model nobody/nothing" in refused(folders.embedder, "nobody/nothing")
        assert "terms" in refused(folders.embedder, "meta/gated")
