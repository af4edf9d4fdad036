"""`python -m rag ask`: questions through the path in this process, or through a running server with `--api`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_server.interfaces import CacheMode
from rag.api import ORIGIN_HEADER
from rag.errors import RagError
from rag.quantities import rank, seconds
from rag.types import Answer, Options, Stage

PERCENTILES = (50, 90, 95, 99)
Ask = Callable[[str, Callable[[str], None]], Answer]


def run(given: argparse.Namespace) -> int:
    """Ask all questions, print each answer and, for a series, the percentiles. 0 when every query was answered."""
    questions = _questions(given) * given.repeat
    series = _is_series(given)
    caches: CacheMode = given.caches or ("bypass" if series else "use")
    answers: list[Answer] = []
    for ask in _asker(given, caches):
        for number, question in enumerate(questions, 1):
            stream = not given.json and not series
            answer = ask(question, _print_piece if stream else lambda _: None)
            answers.append(answer)
            if not given.json:
                print(f"\n\n{_report(answer)}" if stream else f"{number:>4}  {_line(answer)}", flush=True)
    summary = percentiles(answers)
    if given.json:
        data: Any = {"answers": [a.to_json() for a in answers], "percentiles": summary} if series else answers[0].to_json()
        print(json.dumps(data, ensure_ascii=False))
    elif series:
        print(_table(summary))
    return 0 if all(answer.outcome in ("answered", "no_documents") for answer in answers) else 1


def _questions(given: argparse.Namespace) -> list[str]:
    if given.questions is None:
        return [given.query if given.query is not None else given.question]
    path: Path = given.questions
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as problem:
        raise RagError(
            f"cannot read {path}: {problem}", kind="bad_input", next_step="Give a text file with a question a line."
        ) from None
    found = [line for line in lines if line]
    if not found:
        raise RagError(f"{path} has no question", kind="bad_input", next_step="Write a question a line.")
    return found


def _is_series(given: argparse.Namespace) -> bool:
    """Many questions in one go measure; they do not count as usual afterwards."""
    return given.repeat > 1 or given.questions is not None


def _asker(given: argparse.Namespace, caches: CacheMode) -> Iterator[Ask]:
    """One function that asks; what it needs is opened before and closed after."""
    if given.api:
        yield from _remote(given, caches)
    else:
        yield from _here(given, caches)


def _here(given: argparse.Namespace, caches: CacheMode) -> Iterator[Ask]:
    import runtime

    running = runtime.get()
    try:
        running.store.open()  # held by another process: said before any model loads
        _wait_for_samples(running)
        options = _options(given, running.default_options(), caches)

        def ask(question: str, show: Callable[[str], None]) -> Answer:
            job = running.submit_query(question, options, origin="measure" if _is_series(given) else "cli")
            for event in job.follow():
                if event is not None and event["type"] == "token":
                    show(event["text"])
            if job.result is None:
                raise RagError(f"the query broke off: {job.error}", next_step="Run again with --verbose.")
            return job.result

        yield ask
    finally:
        runtime.shut_down()


def _wait_for_samples(running: Any) -> None:
    """The first `ask` on an empty embedded store fills it with the sample corpus. Loads the embedder only if it must."""
    if not running.library.samples_wanted():
        return
    job = running.library.ensure_samples()
    if job is not None:
        print("filling the empty store with the sample corpus …", file=sys.stderr, flush=True)
        job.wait()


def _options(given: argparse.Namespace, defaults: Options, caches: CacheMode) -> Options:
    chosen = {"hyde": given.hyde, "candidates": given.candidates, "keep": given.keep, "collection": given.collection}
    options = replace(defaults, **{key: value for key, value in chosen.items() if value is not None})
    return replace(options, rerank=options.rerank and not given.no_rerank, caches=caches)


def _remote(given: argparse.Namespace, caches: CacheMode) -> Iterator[Ask]:
    import httpx

    address = given.api.rstrip("/")
    body = {"caches": caches, **({"rerank": False} if given.no_rerank else {})}
    for key in ("hyde", "candidates", "keep", "collection"):
        if getattr(given, key) is not None:
            body[key] = getattr(given, key)
    token = os.environ.get("RAGDECK_TOKEN") or _token()
    headers = {"authorization": f"Bearer {token}"} if token else {}
    if _is_series(given):
        headers[ORIGIN_HEADER] = "measure"
    with httpx.Client(timeout=httpx.Timeout(600, connect=5), headers=headers) as client:

        def ask(question: str, show: Callable[[str], None]) -> Answer:
            try:
                response = client.post(f"{address}/api/v1/ask", json={"query": question, **body})
                data = response.json()
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as problem:
                raise RagError(
                    f"no answer from {address}: {problem}",
                    kind="connection",
                    address=address,
                    next_step="Check that the dashboard or `python -m rag serve` runs there.",
                ) from None
            if "id" not in data:
                error = data.get("error") or {}
                said = error.get("message") or f"HTTP {response.status_code}"
                raise RagError(f"{address}: {said}", kind=error.get("kind", "bad_answer"), next_step=error.get("next_step") or "")
            answer = Answer.from_json(data)
            show(answer.answer)
            return answer

        yield ask


def _token() -> str | None:
    from settings import load

    token = load().server.token
    return token.get_secret_value() if token else None


def percentiles(answers: Sequence[Answer]) -> dict[str, Any]:
    """Per stage and total: n and p50 … p99 in seconds, over warm answers; cold ones are counted apart."""
    warm = [answer for answer in answers if not answer.cold and answer.outcome != "failed"]
    values: dict[str, list[float]] = {"total": [answer.total_seconds for answer in warm]}
    for answer in warm:
        for stage in answer.stages:
            if stage.spans:
                values.setdefault(stage.stage, []).append(stage.seconds)
    return {
        "warm": len(warm),
        "cold": sum(answer.cold for answer in answers),
        "failed": sum(answer.outcome == "failed" for answer in answers),
        "seconds": {name: {"n": len(v), **{f"p{p}": _percentile(v, p) for p in PERCENTILES}} for name, v in values.items() if v},
    }


def _percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value with at least so many percent of all at or below it (nearest rank), as everywhere."""
    return round(sorted(values)[rank(percent, len(values))], 6)


# what is printed for people


def _print_piece(text: str) -> None:
    print(text, end="", flush=True)


def _stage(stage: Stage) -> str:
    if stage.skipped:
        return f"{stage.stage} –"
    return f"{stage.stage} {seconds(stage.seconds)}" + (" (cold)" if stage.cold else "")


def _line(answer: Answer) -> str:
    stages = " · ".join(_stage(stage) for stage in answer.stages if stage.spans)
    state = "" if answer.outcome == "answered" else f"  [{answer.outcome}]"
    return f"{seconds(answer.total_seconds):>8}  {'cold' if answer.cold else 'warm'}  {stages}{state}"


def _report(answer: Answer) -> str:
    lines = [f"[{c.number}] {c.title} ({c.source}{', ' + c.location if c.location else ''})" for c in answer.citations]
    if answer.error is not None:
        error = answer.error
        where = f" at {error.address}" if error.address else ""
        lines.append(f"{answer.outcome} in stage {error.stage}{where} ({error.kind}): {error.message}\n  {error.next_step}")
    lines.append(f"{seconds(answer.total_seconds)}  " + " · ".join(_stage(stage) for stage in answer.stages))
    lines += [f"  {stage.stage} degraded: {stage.degraded}" for stage in answer.stages if stage.degraded]
    lines += [f"  {stage.stage} skipped: {stage.skipped}" for stage in answer.stages if stage.skipped]
    lines.append(f"  trace {answer.id}")
    return "\n".join(lines)


def _table(summary: dict[str, Any]) -> str:
    head = f"\nwarm {summary['warm']} · cold {summary['cold']} (not counted) · failed {summary['failed']}\n"
    rows = [f"{'':10}{'n':>6}" + "".join(f"{f'p{p}':>12}" for p in PERCENTILES)]
    for name, found in summary["seconds"].items():
        rows.append(f"{name:10}{found['n']:>6}" + "".join(f"{seconds(found[f'p{p}']):>12}" for p in PERCENTILES))
    return head + "\n".join(rows)
