"""How findings speak: quantities with three significant digits and their unit, and what the stages' workers are called. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rag.types import Stage

WORKERS: Mapping[str, str] = {
    "embed": "embedder",
    "rerank": "reranker",
    "hyde": "language model",
    "generate": "language model",
    "search": "store",
}
# what tells findings of one code apart: HyDE and the answer ask the same language model
COMPONENTS: Mapping[str, str] = {"embed": "embedder", "rerank": "reranker", "hyde": "llm", "generate": "llm", "search": "store"}
_STAGES: Mapping[str, str] = {
    "embed": "the embedding",
    "search": "the search",
    "rerank": "the reranking",
    "hyde": "HyDE",
    "generate": "the answer",
}


def figure(value: float) -> str:
    """Three significant digits without exponent: 9.76, 12.1, 0.0321, 1,230."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    decimals = 2 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    if rounded and math.floor(math.log10(abs(rounded))) > math.floor(math.log10(abs(value))):
        decimals -= 1  # 9.996 became 10.0
    text = f"{rounded:,.{max(0, decimals)}f}"
    return text if "." not in text or decimals <= 2 else text.rstrip("0").rstrip(".")


def seconds(value: float | None) -> str:
    """`0.42 ms`, `193 ms`, `9.76 s`, `148 s`; an en dash for unknown."""
    if value is None:
        return "–"
    return f"{figure(value)} s" if abs(value) >= 0.9995 else f"{figure(value * 1000)} ms"


def percent(ratio: float) -> str:
    return "< 1 %" if 0 < ratio < 0.005 else f"{ratio * 100:.0f} %"


def gib(value: float) -> str:
    return f"{figure(value / 2**30)} GiB"


def count(number: float, noun: str) -> str:
    """`1 query`, `1,204 queries`, `40 candidates`."""
    whole = round(number)
    many = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{whole:,} {noun if whole == 1 else many}"


def sentence(words: str) -> str:
    """With a capital letter; the rest stays, since it holds names."""
    return words[:1].upper() + words[1:]


def worker(stage: str) -> str:
    """`reranker`: who does the work of a stage."""
    return WORKERS.get(stage, stage)


def component(stage: str) -> str:
    return COMPONENTS.get(stage, stage)


def doing(stage: str) -> str:
    """`the reranking`: what a stage does, within a sentence."""
    return _STAGES.get(stage, f"the stage {stage}")


def named(stage: Stage) -> str:
    """`reranker BAAI/bge-reranker-v2-m3`."""
    return f"{worker(stage.stage)} {stage.model}" if stage.model else worker(stage.stage)


def listed(items: list[str]) -> str:
    """`a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""
