"""`python -m latency components | load | replay | compare | findings`. Exit codes: 0 ok, 1 failed or too slow, 2 wrong usage."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rag.cli_run import run

CHANGES = """\
KEY of a change is an option of a query (hyde=off|on|auto, candidates=N, keep=N, rerank=on|off, caches=use|bypass|refresh,
model=NAME, collection=NAME) or a model: embedder=in-process|http, reranker=in-process|http, embedder.device=cpu|cuda|cuda:1,
reranker.device=…, embedder.precision=fp32|bf16|int8, reranker.precision=…, llm.model=…, llm.temperature=…, llm.max_tokens=…"""


def main(arguments: Sequence[str] | None = None) -> int:
    return run(_parser().parse_args(arguments), quiet=logging.ERROR)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m latency",
        description="Find out where a query's time goes: test components, apply load, replay, compare, name causes.",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    common.add_argument("--verbose", action="store_true", help="log what happens to standard error")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--name", help="what the experiment is called where it is kept (the page Experiments)")
    commands = parser.add_subparsers(dest="command", required=True)
    _components(commands.add_parser("components", parents=[common, named], help="test each part of the path by itself"))
    _load(commands.add_parser("load", parents=[common, named], help="more and more users ask: throughput, percentiles, the knee"))
    _replay(
        commands.add_parser(
            "replay",
            parents=[common, named],
            help="ask stored queries again with something changed, interleaved",
            epilog=CHANGES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    compare = commands.add_parser("compare", parents=[common], help="two queries, or two sets, stage by stage")
    compare.add_argument("a", metavar="A", help="a query's id, or several with commas, or EXPERIMENT:SIDE of a replay")
    compare.add_argument("b", metavar="B", help="what A is compared with")
    compare.set_defaults(run=_run_compare)
    findings = commands.add_parser("findings", parents=[common], help="ranked causes of slowness, with evidence")
    findings.add_argument("ids", nargs="*", metavar="ID", help="queries; by default those of the last hour")
    findings.add_argument("--last", type=_duration, metavar="TIME", help="of all queries since: 30m, 1h, 7d (default 1h)")
    findings.add_argument("--limit", type=_positive, default=500, metavar="N", help="newest queries at most (default 500)")
    findings.set_defaults(run=_run_findings)
    return parser


def _components(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", help="components, with commas: embedder,store,reranker,llm,network,disk,memory")
    parser.add_argument("--reload", action="store_true", help="load a second copy of each model of this process, and time that")
    parser.add_argument("--preset", action="append", default=[], metavar="NAME", help="targets: r1-a100, r2-t4, r2-cpu")
    parser.add_argument(
        "--target", action="append", default=[], metavar="CODE=SECONDS", help="a target of your own, such as reranker.20=0.1"
    )
    parser.set_defaults(run=_run_components)


def _load(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--users", type=_users, default=(1, 2, 4, 8, 16), metavar="N,N,…", help="steps (default 1,2,4,8,16)")
    parser.add_argument("--questions", type=Path, required=True, metavar="FILE", help="a question a line, or JSONL")
    parser.add_argument("--api", metavar="URL", help="ask a running dashboard or `rag serve`, not this process")
    parser.add_argument("--seconds", type=_seconds, default=20.0, metavar="N", help="a step lasts (default 20)")
    parser.add_argument("--requests", type=_positive, default=500, metavar="N", help="or so many requests (default 500)")
    parser.add_argument("--rate", type=_seconds, metavar="R", help="open loop: each user asks R times a second, answered or not")
    parser.add_argument("--warmup", type=int, default=3, metavar="N", help="requests before, not counted (default 3)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of every query: hyde=off")
    parser.set_defaults(run=_run_load)


def _replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="+", metavar="ID", help="stored queries")
    parser.add_argument(
        "--change",
        action="append",
        default=[],
        metavar="KEY=VALUE[,…]",
        help="one more side: what it does differently; `as-stored` for none (side A is the query as stored, or --base)",
    )
    parser.add_argument("--base", default="as-stored", metavar="KEY=VALUE[,…]", help="what side A does differently")
    parser.add_argument(
        "--times",
        type=_positive,
        default=8,
        metavar="N",
        help="rounds; an even number is best, and 8 the least for an interval (default 8)",
    )
    parser.set_defaults(run=_run_replay)


# values


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected a number from 1")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError("expected a number above 0")
    return value


def _users(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _duration(text: str) -> float:
    """Seconds of `90s`, `30m`, `1h`, `7d`."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
    try:
        value = float(text[:-1]) * units[text[-1:]]
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError("expected a time such as 30m, 1h or 7d") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("expected a time above 0")
    return value


# commands, imported when they are wanted


def _run_components(given: argparse.Namespace) -> int:
    from latency import cli_components

    return cli_components.run(given)


def _run_load(given: argparse.Namespace) -> int:
    from latency import cli_load

    return cli_load.run(given)


def _run_replay(given: argparse.Namespace) -> int:
    from latency import cli_replay

    return cli_replay.run(given)


def _run_compare(given: argparse.Namespace) -> int:
    from latency import cli_stored

    return cli_stored.compare(given)


def _run_findings(given: argparse.Namespace) -> int:
    from latency import cli_stored

    return cli_stored.findings(given)


if __name__ == "__main__":
    sys.exit(main())
