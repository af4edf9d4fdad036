"""`python -m rag ingest`: files and folders into the store, with progress on standard error."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from typing import Any

from rag.errors import RagError


def run(given: argparse.Namespace) -> int:
    """Ingest; 0 when every file went in, 1 when one failed or the run broke off."""
    import runtime
    from library import summary_json

    running = runtime.get()
    try:
        running.store.open()
        if given.reset:
            running.library.reset(given.collection)
        job = running.submit_ingest([path.resolve() for path in given.paths], given.collection)
        try:
            for event in job.follow():
                if event is not None and not given.json:
                    _show(event)
        except KeyboardInterrupt:
            with suppress(RagError):  # it has ended meanwhile
                running.library.ingestions.cancel(job.id)  # else the next process would go on with it
            job.wait(30)
            raise
        if job.error is not None:
            raise job.error if isinstance(job.error, RagError) else RagError(str(job.error))
        summary = summary_json(job.result or {})
    finally:
        runtime.shut_down()
    if given.json:
        print(json.dumps(summary, ensure_ascii=False))
    return 1 if summary.get("failed") or summary.get("error") else 0


def _show(event: dict[str, Any]) -> None:
    if event["type"] == "file_finished" and event["outcome"] == "failed":
        error = event["error"] or {}
        print(f"\rfailed: {event['source']}: {error.get('message')} {error.get('next_step', '')}", file=sys.stderr)
    elif event["type"] == "progress":
        left = event.get("seconds_left")
        rest = f", {left:.0f} s left" if left is not None else ""
        rate = event.get("passages_per_second") or 0.0
        print(f"\r{event['files_done']} of {event['files']} files, {event['passages']} passages, {rate:.1f} a second{rest}   ",
              end="", file=sys.stderr, flush=True)  # fmt: skip
    elif event["type"] == "ingest_finished":
        counts = ", ".join(
            f"{event[key]} {key}"
            for key in ("added", "replaced", "unchanged", "duplicate", "failed", "skipped")
            if event.get(key)
        )
        print(
            f"\r{counts or 'nothing to do'}: {event['passages']} passages in {event['seconds']:.1f} s{' ' * 30}", file=sys.stderr
        )
