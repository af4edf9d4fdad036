"""`python -m rag COMMAND`: ask, ingest, evaluate, calibrate-cache, move, backup, restore, reembed, serve.

Exit codes: 0 ok, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rag import cli_cache, cli_store
from rag.cli_run import run


def main(arguments: Sequence[str] | None = None) -> int:
    return run(_parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rag", description="Ask, ingest, evaluate and serve without the dashboard.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    common.add_argument("--verbose", action="store_true", help="log what happens to standard error")
    commands = parser.add_subparsers(dest="command", required=True)
    _ask_parser(commands.add_parser("ask", parents=[common], help="send questions through the whole path"))
    ingest = commands.add_parser("ingest", parents=[common], help="add files and folders (documents, tables, images, audio)")
    ingest.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    ingest.add_argument("--collection", help="base name of the collection (default: milvus.collection)")
    ingest.add_argument("--reset", action="store_true", help="empty the collection first")
    ingest.set_defaults(run=_ingest)
    evaluate = commands.add_parser("evaluate", parents=[common], help="measure retrieval on a labelled set")
    measured = evaluate.add_mutually_exclusive_group(required=True)
    measured.add_argument("folder", type=Path, metavar="DIR", nargs="?", help="a labelled set in BEIR layout, in its own store")
    measured.add_argument("--set", metavar="NAME", help="a question set of the page Evaluation, over the live collection")
    evaluate.add_argument("--candidates", type=_positive, default=40, help="how many go into the reranker (default 40)")
    evaluate.set_defaults(run=_evaluate)
    calibrate = commands.add_parser(
        "calibrate-cache", parents=[common], help="from when on two questions share an answer, by labelled pairs"
    )
    cli_cache.add_arguments(calibrate)
    for name, add, words in (
        ("move", cli_store.add_move, "carry every collection to a Milvus server"),
        ("backup", cli_store.add_backup, "collections and databases into one file"),
        ("restore", cli_store.add_restore, "put a backup back"),
        ("reembed", cli_store.add_reembed, "fill a new collection from the stored texts and put it into use"),
    ):
        add(commands.add_parser(name, parents=[common], help=words))
    serve = commands.add_parser("serve", parents=[common], help="serve the API without the dashboard")
    serve.add_argument("--host", help="address to bind (default: api.host)")
    serve.add_argument("--port", type=_positive, help="port to bind (default: api.port, 8080)")
    serve.set_defaults(run=_serve)
    return parser


def _ask_parser(parser: argparse.ArgumentParser) -> None:
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("question", nargs="?")
    asked.add_argument("--query", metavar="TEXT", help="the question, as an option")
    asked.add_argument("--questions", type=Path, metavar="FILE", help="a file with a question a line")
    parser.add_argument(
        "--repeat", type=_positive, default=1, metavar="N", help="ask N times in this process: only the first is cold"
    )
    parser.add_argument(
        "--hyde", choices=["off", "on", "auto"], help="write a hypothetical answer first (default: llm.default_hyde)"
    )
    parser.add_argument(
        "--candidates", type=_positive, metavar="N", help="passages that go into the reranker (default: reranker.top_k)"
    )
    parser.add_argument("--keep", type=_positive, metavar="N", help="passages that come out of it (default: reranker.return_k)")
    parser.add_argument("--no-rerank", action="store_true", help="keep the fused order")
    parser.add_argument(
        "--caches", choices=["use", "bypass", "refresh"], help="default: use for one question, bypass for a series"
    )
    parser.add_argument("--collection", help="base name of the collection (default: milvus.collection)")
    parser.add_argument("--api", metavar="URL", help="ask a running dashboard or `rag serve` instead of opening the store here")
    parser.set_defaults(run=_ask)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected a number from 1")
    return value


def _ask(given: argparse.Namespace) -> int:
    from rag import cli_ask

    return cli_ask.run(given)


def _ingest(given: argparse.Namespace) -> int:
    from rag import cli_ingest

    return cli_ingest.run(given)


def _evaluate(given: argparse.Namespace) -> int:
    if given.set is not None:
        from rag import cli_evaluate

        return cli_evaluate.run_set(given)
    import models
    from gpu_server.model_pool import ModelPool
    from rag.evaluate import evaluate, read
    from settings import load

    settings = load()
    dataset = read(given.folder)
    measured = settings.model_copy(update={"reranker": settings.reranker.model_copy(update={"enabled": True})})
    built = models.build(measured, ModelPool())
    assert built.reranker is not None
    built.pool.warm_up()
    try:
        result = evaluate(
            dataset,
            built.embedder,
            built.reranker,
            candidates=given.candidates,
            report=lambda line: print(line, file=sys.stderr),
        )
    finally:
        built.close()
        built.pool.stop()
    if given.json:
        print(json.dumps(result))
        return 0
    print(f"{result['queries']} queries, {result['documents']} documents, {result['candidates']} candidates into the reranker")
    print(f"{'':8}{'nDCG@10':>10}{'MRR@10':>10}{'recall@100':>12}")
    for stage, scores in result["stages"].items():
        print(f"{stage:8}{scores['ndcg@10']:>10.4f}{scores['mrr@10']:>10.4f}{scores['recall@100']:>12.4f}")
    print("mean time a query: " + " · ".join(f"{stage} {1000 * spent:.1f} ms" for stage, spent in result["seconds"].items()))
    return 0


def _serve(given: argparse.Namespace) -> int:
    import uvicorn
    from starlette.applications import Starlette

    import runtime
    from access import api as access_api
    from access import limits, wiring
    from collectors import metrics_api
    from guard import Guard, Policy
    from latency.otlp import api as receiving
    from rag import api
    from settings import load

    settings = load()
    host, port = given.host or settings.api.host, given.port or settings.api.port
    wiring.checked_start(settings, host, sign_in=False)
    wiring.redact_logs(settings)
    limits.hurry_all()
    rules = Policy(
        host,
        tuple(settings.server.allowed_hosts),
        tuple(settings.server.allowed_origins),
        access=wiring.authenticator(settings, host, sign_in=False),
        limits=wiring.limits(settings),
    )
    running = runtime.get(f"http://{'127.0.0.1' if rules.loopback_only else host}:{port}")
    running.store.open()  # a store held by another process ends this here, with who holds it
    running.start()
    logging.getLogger().setLevel(logging.INFO)
    try:
        parts = (api, receiving, access_api)
        routes = [route for part in parts for route in part.routes(runtime.started)]
        server = Guard(Starlette(routes=[*routes, *metrics_api.routes_of(runtime.started)]), rules)
        uvicorn.run(server, host=host, port=port, log_level="info", timeout_graceful_shutdown=30)
    except KeyboardInterrupt:  # uvicorn drains on SIGTERM and SIGINT, then raises the signal once more for us
        return 0
    finally:
        runtime.shut_down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
