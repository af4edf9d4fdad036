"""What an evaluation is made of: judgements, questions, sets, settings, runs. Frozen records; knows no file, store or model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["good", "bad"]
State = Literal["running", "finished", "failed", "cancelled", "interrupted"]
HIGHEST_GRADE = 3
STALE_SECONDS = 300.0  # a run that was not heard of for so long ended with its process; a hypothesis may take 120
GRADE_WORDS = ("not relevant", "helps a little", "answers it", "answers it best")  # by grade
STAGES = ("dense", "sparse", "fused", "rerank")
METRICS = ("ndcg@10", "recall@10", "recall@100", "mrr@10", "hit@keep")


@dataclass(frozen=True, slots=True)
class Judgement:
    """How well a document, or one place in it, answers a question: 0 (not relevant) to 3.

    Documents are named by their source and places by their location, because passage ids change when a document is cut anew.
    `location` None judges the whole document.
    """

    source: str
    location: str | None = None
    grade: int = 1

    @property
    def name(self) -> str:
        return self.source if self.location is None else f"{self.source}#{self.location}"

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its judgements, at least one of them relevant. `query_id` is the marked query it came from."""

    text: str
    judgements: tuple[Judgement, ...]
    language: str | None = None
    query_id: str | None = None

    def to_json(self) -> dict[str, Any]:
        told: dict[str, Any] = {"question": self.text, "relevant": [each.to_json() for each in self.judgements]}
        optional = {"language": self.language, "query_id": self.query_id}
        return told | {key: value for key, value in optional.items() if value is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Question:
        judged = tuple(Judgement(**each) for each in data["relevant"])
        return cls(data["question"], judged, data.get("language"), data.get("query_id"))


@dataclass(frozen=True, slots=True)
class SetInfo:
    """One version of a question set. `origin` says in words where its questions are from; `runs` how many were made with it."""

    id: str
    version: int
    name: str
    created_at_unix: float
    origin: str
    questions: int
    runs: int = 0


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """A version with its questions."""

    info: SetInfo
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run varies, as `rag.types.Options` has it. HyDE is off or on: what `auto` does depends on more than the question."""

    candidates: int = 40
    keep: int = 8
    rerank: bool = True
    hyde: bool = False

    @property
    def words(self) -> str:
        rerank = "rerank" if self.rerank else "no rerank"
        return f"{self.candidates} candidates · keep {self.keep} · {rerank} · HyDE {'on' if self.hyde else 'off'}"


@dataclass(frozen=True, slots=True)
class Item:
    """What a stage ranked, as a run keeps it: a document, or a judged place in it; `grade` None was not judged."""

    source: str
    location: str | None
    grade: int | None


@dataclass(frozen=True, slots=True)
class Measured:
    """One question's result. `scores` by stage and metric, `seconds` by stage of the path, `first` the rank of the first
    relevant item by stage (None: not among the candidates), `top` the first ten of the last stage. `missing` counts the judged
    documents that the collection does not hold, None where its documents cannot be listed. `degraded` says what did not work."""

    question: str
    scores: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float]
    first: Mapping[str, int | None]
    top: tuple[Item, ...]
    missing: int | None
    degraded: str | None = None

    @property
    def last_stage(self) -> str:
        return "rerank" if "rerank" in self.scores else "fused"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measured:
        return cls(**{**data, "top": tuple(Item(**each) for each in data["top"])})


@dataclass(frozen=True, slots=True)
class Run:
    """One set measured with one setting. `environment` is what else the numbers depend on: models, chunks, the collection's
    content, versions. `summary` has the means by stage and metric with their intervals (`rag.evaluation.statistics.summary`),
    None until something was measured. `beat_at_unix` is when it was last heard of."""

    id: str
    set_id: str
    set_version: int
    set_name: str
    started_at_unix: float
    setting: Setting
    job_id: str = ""
    state: State = "running"
    beat_at_unix: float = 0.0
    seconds: float | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] | None = None
    error: str | None = None

    @property
    def measured(self) -> int:
        """Questions that were measured."""
        return int(self.summary["questions"]) if self.summary else 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
