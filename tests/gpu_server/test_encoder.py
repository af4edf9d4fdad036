"""Both encoders against the Hugging Face models' own output, text by text; what the packed one promises besides."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import numpy as np
import pytest

from gpu_server import linears
from gpu_server.devices import import_torch
from gpu_server.encoder import Encoder, PackedEncoder, PaddedEncoder, make_encoder, supports
from gpu_server.errors import BadInput, ModelError, TooLarge
from gpu_server.interfaces import Encoded

torch = import_torch()
VOCABULARY, HIDDEN, LONGEST = 300, 64, 96
COSINE = {"fp32": 0.999999, "bf16": 0.9995, "int8": 0.995}


def tiny(family: str) -> Any:
    """A random model of 3 layers whose LayerNorms and biases are not the initial ones and zeros."""
    from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel, XLMRobertaConfig, XLMRobertaModel

    shape: dict[str, float] = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 4}
    shape |= {"intermediate_size": 128, "type_vocab_size": 2, "initializer_range": 0.1}
    torch.manual_seed(7)
    if family == "bert":
        model = BertModel(BertConfig(**shape, max_position_embeddings=LONGEST), add_pooling_layer=False)
    else:
        kinds: dict[str, Any] = {
            "roberta": (RobertaModel, RobertaConfig),
            "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig),
        }
        model_class, config_class = kinds[family]
        config = config_class(**shape, max_position_embeddings=LONGEST + 2, pad_token_id=1)
        model = model_class(config, add_pooling_layer=False)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "LayerNorm" in name or name.endswith("bias"):
                weight.add_(torch.randn_like(weight) * 0.1)
    return model.eval()


MODELS = {family: tiny(family) for family in ("bert", "roberta", "xlm-roberta")}


def text(length: int, *, seed: int = 0, segments: bool = False) -> Encoded:
    ids = np.random.default_rng([length, seed]).integers(5, VOCABULARY, length).tolist()
    half = length // 2
    return Encoded(ids, type_ids=[0] * half + [1] * (length - half) if segments else None)


def own_output(model: Any, item: Encoded) -> Any:
    """What the Hugging Face model says about this text alone: [tokens, hidden]."""
    types = {} if item.type_ids is None else {"token_type_ids": torch.tensor([list(item.type_ids)])}
    mask = torch.ones(1, len(item.ids), dtype=torch.long)
    with torch.inference_mode():
        return model(input_ids=torch.tensor([list(item.ids)]), attention_mask=mask, **types).last_hidden_state[0]


def by_text(encoder: Encoder, batch: list[Encoded]) -> list[Any]:
    hidden = encoder.hidden(batch)
    assert hidden.states.dtype == torch.float32
    assert tuple(hidden.states.shape) == (sum(len(item.ids) for item in batch), HIDDEN)
    assert len(hidden.starts) == len(batch) + 1
    return [hidden.states[start:stop] for start, stop in zip(hidden.starts, hidden.starts[1:], strict=False)]


def lowest_cosine(left: Any, right: Any) -> float:
    return float(torch.nn.functional.cosine_similarity(left, right, dim=-1).min())


KINDS = [
    pytest.param((kind, family, precision), id=f"{kind.__name__}-{family}-{precision}")
    for kind, precisions in ((PackedEncoder, ("fp32", "bf16", "int8")), (PaddedEncoder, ("fp32", "bf16")))
    for family in MODELS
    for precision in precisions
]
MIXED = [text(40), text(1), text(LONGEST), text(9, segments=True), text(40, seed=1), text(3), text(8), text(16, segments=True)]


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest) -> tuple[Encoder, Any, float]:
    """An encoder, the model it was made from, and how near their outputs must be."""
    kind, family, precision = request.param
    return kind(copy.deepcopy(MODELS[family]), "cpu", precision), MODELS[family], COSINE[precision]


class TestBothEncoders:
    def test_every_token_of_a_mixed_batch_is_as_the_model_alone_says(self, made: tuple[Encoder, Any, float]) -> None:
        encoder, model, cosine = made
        for item, states in zip(MIXED, by_text(encoder, MIXED), strict=True):
            assert lowest_cosine(states, own_output(model, item)) > cosine

    def test_a_text_alone_is_as_in_a_batch(self, made: tuple[Encoder, Any, float]) -> None:
        encoder, _, cosine = made
        tolerance = {COSINE["fp32"]: 1e-5}.get(cosine, 0.1)
        for item, states in zip(MIXED, by_text(encoder, MIXED), strict=True):
            assert torch.allclose(by_text(encoder, [item])[0], states, atol=tolerance)

    def test_segments_count(self, made: tuple[Encoder, Any, float]) -> None:
        encoder, *_ = made
        plain, paired = text(12), text(12, segments=True)
        assert lowest_cosine(by_text(encoder, [plain])[0], by_text(encoder, [paired])[0]) < 0.99

    def test_no_texts_and_texts_without_tokens(self, made: tuple[Encoder, Any, float]) -> None:
        encoder, *_ = made
        assert by_text(encoder, []) == []
        empty, full = by_text(encoder, [Encoded([]), text(5)])
        assert len(empty) == 0
        assert torch.allclose(full, by_text(encoder, [text(5)])[0])

    def test_what_the_tables_lack_is_refused_before_it_reaches_a_device(self, made: tuple[Encoder, Any, float]) -> None:
        encoder, *_ = made
        for ids in ([5, VOCABULARY], [-1, 5]):
            with pytest.raises(BadInput, match="token id"):
                encoder.hidden([Encoded(ids)])
        for types in ([0, 2], [0]):
            with pytest.raises(BadInput, match="segment id"):
                encoder.hidden([Encoded([5, 6], type_ids=types)])
        with pytest.raises(TooLarge, match=f"{LONGEST + 1} tokens"):
            encoder.hidden([text(LONGEST + 1)])

    def test_it_says_what_it_is(self, made: tuple[Encoder, Any, float]) -> None:
        encoder, model, cosine = made
        assert (encoder.device, encoder.hidden_size, COSINE[encoder.precision]) == ("cpu", HIDDEN, cosine)
        whole = sum(weight.nbytes for weight in model.parameters())
        assert 0.2 * whole < encoder.memory_bytes <= whole


class TestPackedEncoder:
    @pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
    def test_a_padding_token_inside_a_text_takes_no_position(self, family: str) -> None:
        item = Encoded([5, 1, 7, 8, 1, 9])
        (states,) = by_text(make_encoder(copy.deepcopy(MODELS[family]), "cpu", "fp32"), [item])
        assert lowest_cosine(states, own_output(MODELS[family], item)) > COSINE["fp32"]

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_a_batch_over_many_chunks_keeps_its_order(self, precision: str) -> None:
        encoder = PackedEncoder(copy.deepcopy(MODELS["bert"]), "cpu", precision)
        batch = [text(length, seed=length) for length in np.random.default_rng(3).integers(1, LONGEST, 60)]
        for item, states in zip(batch, by_text(encoder, batch), strict=True):
            assert lowest_cosine(states, own_output(MODELS["bert"], item)) > COSINE[precision]

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_torchs_own_linear_stands_in_where_onednns_is_missing(self, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(linears, "packs", lambda dtype: False)
        encoder = PackedEncoder(copy.deepcopy(MODELS["bert"]), "cpu", precision)
        for item, states in zip(MIXED, by_text(encoder, MIXED), strict=True):
            assert lowest_cosine(states, own_output(MODELS["bert"], item)) > COSINE[precision]

    def test_what_onednn_cannot_do_is_found_out_and_not_raised(self) -> None:
        assert linears.packs(torch.float32)
        assert not linears.packs(torch.float64)
        assert linears.runs_int8()

    def test_int8_is_refused_where_it_cannot_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(linears, "runs_int8", lambda: False)
        with pytest.raises(ModelError, match="int8"):
            PackedEncoder(copy.deepcopy(MODELS["bert"]), "cpu", "int8")

    def test_the_model_is_used_up_and_its_weights_are_freed(self) -> None:
        model = copy.deepcopy(MODELS["bert"])
        weights = [weakref.ref(part.weight) for part in model.modules() if isinstance(part, torch.nn.Linear)]
        encoder = make_encoder(model, "cpu", "bf16")
        gc.collect()
        assert isinstance(encoder, PackedEncoder)
        assert len(weights) == 18
        assert all(weight() is None for weight in weights)
        assert sum(weight.numel() for weight in model.parameters()) == 0

    def test_bf16_takes_half_of_fp32_and_int8_a_quarter_of_the_linears(self) -> None:
        sizes = {name: make_encoder(copy.deepcopy(MODELS["bert"]), "cpu", name).memory_bytes for name in COSINE}
        assert sizes["bf16"] < 0.6 * sizes["fp32"]
        assert sizes["int8"] < 0.4 * sizes["fp32"]


class TestChoice:
    @pytest.mark.parametrize("family", list(MODELS))
    def test_the_family_is_packed(self, family: str) -> None:
        assert supports(MODELS[family])
        assert isinstance(make_encoder(copy.deepcopy(MODELS[family]), "cpu", "fp32"), PackedEncoder)

    @pytest.mark.parametrize(
        "change", [{"hidden_act": "relu"}, {"is_decoder": True}, {"position_embedding_type": "relative_key"}]
    )
    def test_a_model_that_differs_in_what_it_computes_is_not(self, change: dict[str, Any]) -> None:
        from transformers import BertConfig, BertModel

        config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
        for name, value in change.items():
            setattr(config, name, value)
        assert not supports(BertModel(config))

    def test_another_architecture_runs_as_it_is(self) -> None:
        from transformers import DistilBertConfig, DistilBertModel

        config = DistilBertConfig(vocab_size=VOCABULARY, dim=HIDDEN, n_layers=2, n_heads=4, hidden_dim=128)
        model = DistilBertModel(config).eval()
        encoder = make_encoder(model, "cpu", "fp32")
        assert isinstance(encoder, PaddedEncoder)
        batch = [text(12), text(30), text(1)]
        for item, states in zip(batch, by_text(encoder, batch), strict=True):
            assert lowest_cosine(states, own_output(model, item)) > COSINE["fp32"]

    def test_int8_of_another_architecture_is_refused(self) -> None:
        from transformers import DistilBertConfig, DistilBertModel

        model = DistilBertModel(DistilBertConfig(vocab_size=20, dim=8, n_layers=1, n_heads=2, hidden_dim=8))
        with pytest.raises(ModelError, match="DistilBertModel"):
            make_encoder(model, "cpu", "int8")


def test_int8_keeps_the_order_of_passages_with_real_weights() -> None:
    """Kendall's tau over cosines to a query, real MiniLM weights; random ones have no outlying channels to get wrong."""
    from tokenizers import Tokenizer
    from transformers import BertModel

    from gpu_server.starter import weights_folder

    tokenizer = Tokenizer.from_file(str(weights_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    passages = [f"{subject} {verb} {place}." for subject in SUBJECTS for verb in VERBS for place in PLACES]
    batch = [Encoded(item.ids) for item in tokenizer.encode_batch([*QUERIES, *passages])]
    similarities = {}
    for precision in ("fp32", "int8"):
        model = BertModel.from_pretrained(str(weights_folder()), local_files_only=True, add_pooling_layer=False)
        hidden = make_encoder(model, "cpu", precision).hidden(batch)
        pooled = [hidden.states[start:stop].mean(0) for start, stop in zip(hidden.starts, hidden.starts[1:], strict=False)]
        vectors = torch.nn.functional.normalize(torch.stack(pooled), dim=-1).numpy()
        similarities[precision] = vectors[: len(QUERIES)] @ vectors[len(QUERIES) :].T
    taus = [kendall_tau(left, right) for left, right in zip(similarities["fp32"], similarities["int8"], strict=True)]
    assert float(np.mean(taus)) >= 0.95, taus


QUERIES = ["Who repairs the engine?", "Is it allowed to park here?", "How warm is the water?", "rules for visitors"]
SUBJECTS = ["The mechanic", "A visitor of the museum", "The engine's cooling water", "Nobody"]
VERBS = ["repairs the pump in", "may leave a car near", "is heated to 60 degrees in"]
PLACES = ["the old harbour", "building 7", "the swimming pool", "a garage, by the rules of 2021"]


def kendall_tau(left: Any, right: Any) -> float:
    """Pairs in the same order less pairs in the other, over all pairs (Kendall 1938)."""
    above = np.triu_indices(len(left), 1)
    same = np.sign(left[:, None] - left)[above] * np.sign(right[:, None] - right)[above]
    return float(same.mean())
