"""`rag evaluate --set NAME` as a user runs it, on a real runtime and store of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import runtime
from rag import cli_evaluate
from rag.__main__ import main
from rag.evaluation.evaluations import Evaluations
from rag.evaluation.types import Judgement, Question
from settings import reference

pytestmark = pytest.mark.xdist_group("pages")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [row.variable for row in reference() if row.variable] + ["MILVUS_HOST", "OPENAI_API_KEY"]:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "empty.toml").write_text("")
    monkeypatch.setenv("RAGDECK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("RAGDECK_CONFIG", str(tmp_path / "empty.toml"))
    runtime.shut_down()
    return tmp_path / "data"


def test_a_set_is_measured_over_the_live_collection_and_kept(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The collection is empty, so that no document has to be read in: all is not found, and said."""
    evaluations = Evaluations(data)
    made = evaluations.sets.create("Mine", [Question("is Milvus slow through a tunnel", (Judgement("tunnel.md"),))], "a test")
    assert main(["evaluate", "--set", "mine", "--candidates", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["state"] == "finished" and told["summary"]["stages"]["rerank"]["ndcg@10"]["mean"] == 0.0
    assert (told["summary"]["missing_questions"], told["summary"]["not_found"]) == (1, 1)
    (kept,) = evaluations.runs.list(made.id)
    assert kept.id == told["id"] and kept.setting.candidates == 3 and kept.environment["documents"] == 0
    assert "tunnel" not in cli_evaluate.table(kept) and "rerank" in cli_evaluate.table(kept)


def test_a_set_that_is_not_there_is_told_with_those_that_are(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Evaluations(data).sets.create("Mine", [Question("q", (Judgement("a.md"),))], "a test")
    assert main(["evaluate", "--set", "Yours"]) == 1
    said = capsys.readouterr().err
    assert "no question set named 'Yours'" in said and "There are: Mine." in said


def test_a_folder_or_a_set_is_needed_not_both(data: Path) -> None:
    for arguments in (["evaluate"], ["evaluate", "somewhere", "--set", "Mine"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
