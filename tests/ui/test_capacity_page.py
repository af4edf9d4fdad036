"""The page Capacity on a real runtime with a fake deployment: presets, the form, cures, links, offers, plan and reality."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

import runtime
from deploy.planner import catalogue, presets, request, shapes
from deploy.planner.brought import from_files, kept
from deploy.planner.placement import plan
from deploy.planner.request import Request, Service
from rag.errors import RagError
from settings import reference
from tests.ui.deployment_fakes import fake_deployment
from ui import capacity_bring, capacity_form, capacity_view

ROOT = Path(__file__).resolve().parent.parent.parent
EVIL = '"><img src=x onerror=alert(1)>'
NOW = 1_760_000_000.0
pytestmark = pytest.mark.xdist_group("pages")


@pytest.fixture(scope="module")
def rt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[runtime.Runtime]:
    folder = tmp_path_factory.mktemp("capacity")
    with pytest.MonkeyPatch.context() as patch:
        for name in [row.variable for row in reference() if row.variable] + ["MILVUS_HOST", "OPENAI_API_KEY"]:
            patch.delenv(name, raising=False)
        patch.setenv("RAGDECK_DATA", str(folder / "data"))
        (folder / "empty.toml").write_text("")
        patch.setenv("RAGDECK_CONFIG", str(folder / "empty.toml"))
        runtime.shut_down()
        running = runtime.get()
        fake_deployment(running, folder / "fake", NOW)
        yield running
        runtime.shut_down()


@pytest.fixture
def app(rt: runtime.Runtime, tmp_path: Path) -> AppTest:
    """The page beside the one it links to, without the frame."""
    pages = [str(ROOT / "pages" / f"{name}.py") for name in ("capacity", "machines")]
    script = tmp_path / "frame.py"
    script.write_text(f"import streamlit as st\nst.navigation([st.Page(each) for each in {pages!r}]).run()\n")
    return AppTest.from_file(str(script), default_timeout=60)


def html(app: AppTest) -> str:
    return "\n".join(str(item.proto.body) for item in app.get("html"))


def opened(app: AppTest, **query: str) -> AppTest:
    for key, value in query.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception
    return app


def field(app: AppTest, kind: str, prefix: str) -> Any:
    return next(each for each in getattr(app, kind) if str(each.key).startswith(prefix))


@pytest.mark.parametrize("name", presets.NAMES)
def test_each_preset_is_shown_with_bars_flags_and_formulas(app: AppTest, name: str) -> None:
    shown = html(opened(app, preset=name))
    assert "all fit" in shown and "GPU 0" in shown and "key-value cache" in shown
    commands = [each.value for each in app.code if "CUDA_VISIBLE_DEVICES" in each.value]
    assert len(commands) == len(presets.preset(name).services)


def test_the_trap_of_the_a100_is_said(app: AppTest) -> None:
    shown = html(opened(app, preset="a100-40"))
    assert "less than the buffer of 3 GB" in shown and "which is 14 GB of 40" in shown


def test_a_change_in_the_form_goes_into_the_link_and_back(app: AppTest) -> None:
    opened(app, preset="l4")
    field(app, "number_input", "sequences-0").set_value(9)
    next(each for each in app.button if each.label == "Plan").click().run()
    assert not app.exception and "vllm does not fit" in html(app)
    asked = capacity_form.unpack(
        str(app.query_params["plan"][0] if isinstance(app.query_params["plan"], list) else app.query_params["plan"])
    )
    assert asked.services[0].sequences == 9
    assert field(app, "number_input", "sequences-0").value == 9


def test_a_cure_is_one_click(app: AppTest) -> None:
    too_much = Request(
        "x", catalogue.gpu("L4"), services=(Service("llm", "meta-llama/Llama-3.1-8B-Instruct", context=32_768, sequences=8),)
    )
    opened(app, plan=capacity_form.pack(too_much))
    assert "llm does not fit" in html(app)
    first = field(app, "button", "cure-llm-0")
    assert "tokens of context instead of 32" in first.label
    first.click().run()
    assert not app.exception and "all fit" in html(app)


def test_services_are_added_and_removed(app: AppTest) -> None:
    opened(app, preset="t4")
    next(each for each in app.button if each.label == "Add a service").click().run()
    assert not app.exception and "service-2" in html(app)
    field(app, "checkbox", "remove-1").check()
    next(each for each in app.button if each.label == "Plan").click().run()
    assert not app.exception and "service-2" not in html(app)


def test_what_cannot_be_is_said_and_not_planned(app: AppTest) -> None:
    opened(app, preset="l4")
    field(app, "text_input", "gpus-0").set_value("seven")
    next(each for each in app.button if each.label == "Plan").click().run()
    assert not app.exception and "is no list of GPUs" in html(app)
    assert "all fit" in html(app)  # the plan of the link stays


@pytest.mark.parametrize("link", ["", "x", "!!!", "e30", "A" * 30_000])
def test_a_broken_link_is_said(app: AppTest, link: str) -> None:
    opened(app, plan=link)
    assert "cannot be" in html(app) or "to 32" in html(app)


def test_a_link_names_no_file_of_this_machine_and_shows_no_markup(app: AppTest, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    spying = Request("x", catalogue.gpu("L4"), services=(Service("a", str(tmp_path)),))
    opened(app, plan=capacity_form.pack(spying))
    assert "is not in the table" in html(app)
    named = Request(EVIL, catalogue.gpu("L4"), services=(Service(EVIL, "Qwen/Qwen3-4B"),), notes=(EVIL,))
    app.query_params["plan"] = capacity_form.pack(named)
    app.run()
    assert not app.exception and "<img" not in html(app) and "&lt;img" in html(app)


CONFIG = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "torch_dtype": "bfloat16", "hidden_size": 1024, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936,
    "max_position_embeddings": 40960, "tie_word_embeddings": True, "transformers_version": "4.51.0",
}  # fmt: skip


def bring(app: AppTest, name: str, text: str) -> AppTest:
    app.text_input(key="bring-name").set_value(name)
    app.text_area(key="bring-text").set_value(text)
    app.button(key="bring-send").click().run()
    assert not app.exception
    return app


def test_a_model_is_brought_by_its_config_and_goes_into_the_link_and_the_file(app: AppTest) -> None:
    opened(app, preset="l4")
    shown = html(bring(app, "ours/law-0.6b", json.dumps(CONFIG)))
    assert "596,049,920 parameters, counted from the shapes" in shown and "all fit" in shown
    assert "vllm serve ours/law-0.6b" in " ".join(each.value for each in app.code)
    link = app.query_params["plan"]
    asked = capacity_form.unpack(str(link[0] if isinstance(link, list) else link))
    assert asked.services[0].model == "ours/law-0.6b" and request.from_toml(request.to_toml(asked)) == asked
    again = opened(app, plan=str(link[0] if isinstance(link, list) else link))
    assert "596,049,920 parameters" in html(again)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no config.json is given"), ("{", "is no JSON"), ("[]", "holds no JSON object"), ("{}", "model_type is missing"),
     (json.dumps({"model_type": "mamba"}), "Known are"), (json.dumps({**CONFIG, "vocab_size": None}), "it has no vocab_size"),
     (json.dumps({**CONFIG, "hidden_size": "x"}), "hidden_size is"),
     (json.dumps({**CONFIG, "quantization_config": {"quant_method": "magic"}}), "is not known"),
     (json.dumps({**CONFIG, "model_type": EVIL}), "is not known"), (" " * 600_000 + "{}", "pasted.json has 600,002 bytes")],
)  # fmt: skip
def test_a_config_that_cannot_be_is_refused_with_the_missing_field(app: AppTest, text: str, words: str) -> None:
    opened(app, preset="l4")
    shown = html(bring(app, "ours/law", text))
    assert words in shown and "all fit" in shown and "<img" not in shown  # the plan of the link stays


def test_a_brought_model_has_a_name_of_its_own(app: AppTest) -> None:
    opened(app, preset="l4")
    assert "the model has no name" in html(bring(app, " ", json.dumps(CONFIG)))
    assert "is in the table already" in html(bring(app, "Qwen/Qwen3-8B", json.dumps(CONFIG)))


def test_files_are_sent_only_by_those_who_may_operate_and_pasted_by_all(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not opened(app, preset="l4").get("file_uploader")[0].proto.disabled
    monkeypatch.setattr("ui.viewer.may", lambda running, scope: scope == "read")
    assert opened(app, preset="l4").get("file_uploader")[0].proto.disabled
    assert "596,049,920 parameters" in html(bring(app, "ours/law-0.6b", json.dumps(CONFIG)))


def test_folders_are_models_only_where_the_settings_allow_them(app: AppTest, rt: runtime.Runtime, tmp_path: Path) -> None:
    for place in ("allowed/owner/model", "elsewhere/model"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "allowed" / "link").symlink_to(tmp_path / "elsewhere" / "model")
    allowed = [tmp_path / "allowed"]
    inside, outside = str(tmp_path / "allowed/owner/model"), str(tmp_path / "elsewhere/model")
    assert str(catalogue.folders_in(allowed)[0]) in (inside, outside)
    asked = Request("x", catalogue.gpu("L4"), services=(Service("a", inside),))
    assert capacity_form.known_models(asked, allowed)[inside].shape.hidden == 1024
    for name in (outside, str(tmp_path / "allowed/link"), str(tmp_path / "allowed/../elsewhere/model"), "../x"):
        with pytest.raises(RagError, match="not in the table"):
            capacity_form.known_models(replace(asked, services=(Service("a", name),)), allowed)


def test_gpus_are_compared_for_a_load(app: AppTest) -> None:
    opened(app, preset="l4")
    next(each for each in app.button if each.label == "Compare GPUs").click().run()
    shown = html(app)
    assert not app.exception and "EUR a month" in shown and "nothing was measured" in shown
    assert "no price is entered" in shown and "2025-01, Hetzner T4, the report of 2025-01" in shown


def test_the_plan_stands_beside_what_a_machine_holds(app: AppTest) -> None:
    opened(app, preset="l4")
    app.selectbox(key="measured-machine").set_value("l4-vm").run()
    shown = html(app)
    assert not app.exception and "Measured" in shown and "docker 3f2a9c11d0ab" not in shown and "· vllm" in shown
    app.selectbox(key="measured-machine").set_value("h100-1").run()
    assert "This machine has H100 80GB; the plan is for L4." in html(app)


def test_downloads_hold_the_plan(app: AppTest) -> None:
    opened(app, preset="l4")
    labels = {each.proto.label for each in app.get("download_button")}
    assert labels == {"Plan as TOML", "Result as JSON"}


# without a page


def test_files_beside_the_config_are_taken_in_or_left_out() -> None:
    files = [("config.json", json.dumps(CONFIG).encode()), ("generation_config.json", b'{"eos_token_id": 2, "max_new_tokens": 512}'),
             ("quant_config.json", b'{"w_bit": 4, "q_group_size": 64, "zero_point": true}')]  # fmt: skip
    model = from_files("ours/x", files).model()
    assert (model.precision, model.shape.quantised and model.shape.quantised.group) == ("awq", 64)
    compressed = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
    }
    assert (
        from_files("ours/x", [("c.json", json.dumps({**CONFIG, "quantization_config": compressed}).encode())]).model().precision
        == "fp8"
    )
    with pytest.raises(RagError, match="several files"):
        from_files("ours/x", [files[0], files[0]])
    with pytest.raises(RagError, match="neither"):
        from_files("ours/x", [files[0], ("tokenizer.json", b'{"version": 1}')])


def test_files_are_checked_before_they_are_read() -> None:
    for files, words in (
        ([("a.json", b"x" * 600_000)], "600,000 bytes"),
        ([("a.exe", b"{}")], "kind"),
        ([("a.json", b"{}")] * 4, "too many"),
    ):
        with pytest.raises(RagError, match=words):
            capacity_bring.checked(files)


def test_all_of_a_config_that_decides_memory_is_kept() -> None:
    """Every known model, brought along, has the shape that its whole config has."""
    import tomllib

    for entry in tomllib.loads((catalogue.HERE / "models.toml").read_text())["models"]:
        assert shapes.from_config(kept({**entry["config"], "extra": "x" * 1000})) == shapes.from_config(entry["config"])


def test_a_link_holds_a_whole_plan_in_a_moderate_length() -> None:
    for name in presets.NAMES:
        asked = presets.preset(name)
        text = capacity_form.pack(asked)
        assert capacity_form.unpack(text) == asked and len(text) < 1500


def test_a_link_that_unpacks_without_end_is_refused() -> None:
    import base64
    import zlib

    bomb = base64.urlsafe_b64encode(zlib.compress(b" " * 50_000_000, 9)).decode()
    with pytest.raises(RagError):
        capacity_form.unpack(bomb)


def test_a_bar_is_as_long_as_the_gpu() -> None:
    import re

    for name in presets.NAMES:
        drawn = capacity_view.bars(plan(presets.preset(name)))
        for bar in drawn.split('role="img"')[1:]:
            widths = [float(each) for each in re.findall(r"width:([0-9.]+)%", bar.split("</div>")[0])]
            assert sum(widths) == pytest.approx(100, abs=0.05)


def test_every_figure_has_its_formula_on_hover() -> None:
    found = plan(presets.preset("l4"))
    table = capacity_view.service_table(found)
    for each in found.services:
        assert each.need.weights.formula in table and each.need.weights.source.replace("'", "&#x27;") in table
    assert request.to_toml(found.request)
