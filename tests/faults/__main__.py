"""`python -m tests.faults [--repeats N] [NAME …]`: every cause, or those whose names hold a word: what it costs, what is said."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.faults.causes import FAULTS
from tests.faults.laboratory import Experiment, Fault, Laboratory
from tests.faults.world import Bench


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="The fault laboratory's table.")
    parser.add_argument("names", nargs="*", help="words of the causes' names; all causes without")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--explain", action="store_true", help="print every finding of each cause")
    chosen = parser.parse_args()
    wanted = [fault for fault in FAULTS if not chosen.names or any(word in fault.name for word in chosen.names)]
    print(f"{'cause':44} {'healthy':>8} {'slow':>8} {'saving':>8} {'said':>8}  rank  first finding")
    with tempfile.TemporaryDirectory() as folder, Bench(Path(folder)) as bench:
        laboratory = Laboratory(bench, chosen.repeats)
        for fault in wanted:
            tried = laboratory.try_out(fault)
            print(_row(fault, tried), flush=True)
            if chosen.explain:
                print(tried.told())


def _row(fault: Fault, tried: Experiment) -> str:
    said, rank = tried.said(fault.code), tried.rank(fault.code)
    first = tried.findings[0].code if tried.findings else "nothing stands out"
    shown = "–" if said is None else f"{said:.3f}"
    seconds = f"{tried.healthy:8.3f} {tried.slow:8.3f} {tried.saving:8.3f} {shown:>8}"
    return f"{fault.name:44} {seconds}  {rank or '–':>4}  {first}"


if __name__ == "__main__":
    main()
