"""`python -m deploy plan`: what it prints and its exit codes; and that planning needs no model library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.__main__ import main
from deploy.planner import presets

ROOT = Path(__file__).resolve().parent.parent.parent
TOO_MUCH = 'gpu = "T4"\n[[services]]\nname = "llm"\nmodel = "Qwen/Qwen3-8B"\n'


@pytest.mark.parametrize("name", presets.NAMES)
def test_each_preset_fits(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--preset", name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and all(each["figures"]["weights"]["formula"] for each in found["services"])
    assert all(each["figures"][part]["source"] for each in found["services"] for part in each["figures"])


def test_text_names_shares_and_formulas(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--preset", "a100-40", "--formulas"]) == 0
    said = capsys.readouterr().out
    for words in ("--gpu-memory-utilization 0.32", "less than the buffer of 3 GB", "5 sequences × 8,192 tokens", "Ainslie"):
        assert words in said


def test_what_does_not_fit_exits_with_1_and_says_the_cure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.toml").write_text(TOO_MUCH)
    assert main(["plan", str(tmp_path / "plan.toml")]) == 1
    said = capsys.readouterr().out
    assert "DOES NOT FIT" in said and "cure: " in said
    assert main(["plan", str(tmp_path / "plan.toml"), "--json"]) == 1
    (service,) = json.loads(capsys.readouterr().out)["services"]
    assert service["short_bytes"] > 0 and service["cures"] and service["command"] is None


def test_a_printed_plan_is_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--preset", "h100x8", "--toml"]) == 0
    (tmp_path / "again.toml").write_text(capsys.readouterr().out)
    assert main(["plan", str(tmp_path / "again.toml")]) == 0


@pytest.mark.parametrize(
    "text", ["", "gpu = 3", "= =", 'gpu = "L4"\n[[services]]\nname = "a"\nmodel = "nobody/nothing"\n', "\x00"]
)
def test_wrong_usage_exits_with_2(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.toml").write_text(text)
    assert main(["plan", str(tmp_path / "plan.toml"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["message"]
    assert main(["plan", str(tmp_path / "missing.toml")]) == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("words", [["plan"], ["plan", "--preset", "nothing"], ["fly"], []])
def test_arguments_that_are_none_exit_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--models"]) == 0
    assert "BAAI/bge-m3" in capsys.readouterr().out
    assert main(["plan", "--models", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["models"]) >= 25


def test_planning_loads_neither_torch_nor_streamlit_nor_the_runtime() -> None:
    code = (
        "import sys\nfrom deploy.__main__ import main\ncode = main(['plan', '--preset', 'l4'])\n"
        "bad = {'torch', 'transformers', 'streamlit', 'runtime', 'pymilvus'} & set(sys.modules)\nassert not bad, bad\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
