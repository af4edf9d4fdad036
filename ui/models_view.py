"""What the page Models shows of models: one row each, a title that says how they are, and what a test found. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from gpu_server.probes import Probe
from models import ModelStatus
from rag.errors import RagError
from rag.types import Problem
from ui import cards, figures
from ui.format import bytes_text, count, escape, number, percent, seconds, value_html

HEADS = ("Model", "State", "Where", "Memory", "Load", "First run", "Calls", "Queue", "Throughput", "Cache hits")


def table(models: Sequence[ModelStatus]) -> str:
    return figures.table(HEADS, [_row(model) for model in models], numeric=(3, 4, 5, 6, 7, 8, 9), wrap=(0, 2))


def title(models: Sequence[ModelStatus], warming: bool) -> str:
    """A sentence: whether a query that came now would wait for a model."""
    failed = [model for model in models if model.state == "failed"]
    if failed:
        return f"The {failed[0].kind} {'does not answer' if failed[0].where == 'http' else 'could not be loaded'}"
    if all(model.state == "remote" for model in models):
        return "Every model is served over HTTP"
    if all(model.state in ("warm", "remote") for model in models):
        return "Every model is warm: no query waits for loading"
    return "Models are warming up" if warming else "Models load with the first query that needs them"


def _row(model: ModelStatus) -> list[str]:
    about = [
        model.kind,
        f"{model.dimension:,} dimensions" if model.dimension else None,
        model.identity,
        model.error or model.note,
    ]
    hardware = " · ".join(text for text in (model.device, model.precision) if text and text != "unknown")
    place = "in-process" if model.where == "in-process" else f"HTTP {_host(model.address)}"
    remote = model.where == "http"
    return [
        f"<strong>{escape(model.name)}</strong>{_below(about)}",
        cards.model_state(model.state),
        f'<span title="{escape(model.address or "")}">{escape(place)}</span>{_below([hardware])}',
        value_html(bytes_text(model.memory_bytes), _untold(remote, "the model is not loaded, or has no weights")),
        value_html(seconds(model.load_seconds), _untold(remote, "not loaded yet")),
        value_html(seconds(model.first_run_seconds), _untold(remote, "has not run yet")),
        count(model.runs),
        value_html(count(model.queue_texts), _untold(remote, "this model has no queue, or is not loaded")),
        value_html(number(model.tokens_per_second, "tok/s"), _untold(remote, "no batch in the last 30 s")),
        value_html(percent(model.cache_hit_ratio), "no cache was asked since the start"),
    ]


def _untold(remote: bool, reason: str) -> str:
    return "the server does not tell" if remote else reason


def _host(address: str | None) -> str:
    return (urlsplit(address).netloc if address else "") or "unknown"


def _below(texts: Sequence[str | None]) -> str:
    line = " · ".join(text for text in texts if text)
    return f'<div class="rd-soft rd-plain rd-small">{escape(line)}</div>' if line else ""


def tested(kind: str, found: Probe | RagError) -> str:
    """What a test of a model found, as a note."""
    if isinstance(found, RagError):
        problem = Problem(None, found.kind, found.message, found.address, found.next_step)
        return cards.problem_note(problem, f"The test of the {kind}")
    info = found.info
    network = f", {seconds(found.network_seconds)} of it network" if found.network_seconds is not None else ""
    what = "embedded one text" if kind == "embedder" else "scored one pair"
    where = f"at {info.address}" if info.address else "in this process"
    size = f", {info.dimension:,} dimensions" if info.dimension else ""
    return cards.note("ok", escape(f"{info.name} {where} {what} in {seconds(found.seconds)}{network}{size}."))


def setting_text(value: object) -> str:
    """A setting's value in a table: `unset`, `none` for an empty list, lists with commas, `true` and `false` as in the file."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(str(each) for each in value) or "none"
    return str(value)


def unwritten(key: str, value: object, root: Path) -> str:
    """Where a value comes from that no source lists: the two that only the environment can set, or the default."""
    usual: dict[str, tuple[object, ...]] = {
        "data_dir": (str(root / "data"),),
        "config_file": (None, str(root / "dashboard.toml")),
    }
    return "environment or .env" if key in usual and value not in usual[key] else "default"
