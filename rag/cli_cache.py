"""`python -m rag calibrate-cache`: from when on two questions count as one, for the embedder in use, by labelled pairs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

from rag.cache.book import CacheBook
from rag.cache.calibrate import PAIRS, Calibration, Rates, read_pairs
from rag.cache.calibration_run import CalibrationRun, calibrating


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=Path, metavar="FILE", help="labelled pairs, JSON lines (default: samples/cache-pairs)")
    parser.add_argument(
        "--false-hits", type=_share, default=0.01, metavar="SHARE", help="of the near misses at most this may hit (default 0.01)"
    )
    parser.add_argument("--dry-run", action="store_true", help="measure, and leave the thresholds in use as they are")
    parser.set_defaults(run=run)


def _share(text: str) -> float:
    value = float(text)
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError("expected a share from 0 to below 1, such as 0.01")
    return value


def run(given: argparse.Namespace) -> int:
    """Calibrate and store the thresholds; reported pairs of this data folder count too. Raises RagError."""
    import models
    from gpu_server.model_pool import ModelPool
    from settings import load

    settings = load()
    pairs = read_pairs(given.pairs or PAIRS)
    book = CacheBook(settings.data_dir / "cache-book.db")
    built = models.build(settings, ModelPool())
    try:
        found = _last(calibrating((*pairs, *book.pairs()), built.embedder, false_hits=given.false_hits)).calibration
        if not given.dry_run:
            book.set_thresholds(found.thresholds)
    finally:
        built.close()
        built.pool.stop()
        book.close()
    print(json.dumps(found.to_json(), ensure_ascii=False) if given.json else report(found, kept=not given.dry_run))
    return 0


def _last(steps: Generator[Any, None, CalibrationRun]) -> CalibrationRun:
    """What a generator returns at its end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def report(found: Calibration, *, kept: bool) -> str:
    """The calibration as people read it."""
    limits = found.thresholds
    lines = [
        f"embedder   {limits.embedder}",
        f"thresholds cosine {limits.dense:.2f}, agreement {limits.agreement:.2f}" + ("" if kept else " (not stored)"),
        f"{'':22}{'paraphrases found':>20}{'near misses hit':>18}{'at most':>9}{'precision':>11}   95 %",
        _line("chosen on", found.chosen_on),
        _line("held out", found.held_out),
        *(_line(f"  {name}", rates) for name, rates in (*found.by_language.items(), *found.by_kind.items())),
    ]
    return "\n".join([*lines, *(f"note: {remark}" for remark in found.remarks)])


def _line(name: str, rates: Rates) -> str:
    recall = f"{rates.hits} of {rates.same}" + (f" ({rates.recall:.0%})" if rates.recall is not None else "")
    upper = f"{rates.false_hits_upper:.1%}" if rates.false_hits_upper is not None else "–"
    precision = f"{rates.precision:.3f}" if rates.precision is not None else "–"
    low, high = rates.precision_low, rates.precision_high
    spread = f"{low:.3f} … {high:.3f}" if low is not None and high is not None else "–"
    return f"{name:22}{recall:>20}{f'{rates.false_hits} of {rates.different}':>18}{upper:>9}{precision:>11}   {spread}"
