"""`python -m gpu_server`: the models of one machine over HTTP. The only reader of the environment in this package.

Exit codes: 0 after SIGTERM or Ctrl-C, 1 when it cannot listen, 2 for wrong usage, and for listening
beyond this machine without a key. Models that fail to load end nothing:
`/health` tells why, and tries again.
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence

import orjson
import uvicorn

from gpu_server import makers
from gpu_server.batcher import MAX_QUEUE_TEXTS
from gpu_server.caches import CachedEmbedder, CachedReranker
from gpu_server.drain import DrainingServer, address_of, listen
from gpu_server.engine import Engine
from gpu_server.interfaces import Embedder, Reranker
from gpu_server.model_pool import ModelPool
from gpu_server.score_stores import score_store
from gpu_server.server import create_app
from gpu_server.service import Limits
from settings import VERSION

KEEP_ALIVE_SECONDS = 75  # longer than clients keep unused connections, so that it is they who close them
END_SECONDS = 5  # for answers that are being sent
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
LISTENING = "listening on {address}: embedder {embedder}, reranker {reranker}, device {device}, precision {precision}"
CLOSED = """\
refused to listen on {host} without a key: whoever reaches the port could use the models and read what others send.
Set GPU_SERVER_TOKEN (or --api-key), here and where the clients run; or listen on this machine alone: --host 127.0.0.1"""

log = logging.getLogger("gpu_server")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to end. Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    parser = _parser(os.environ)
    options = parser.parse_args(arguments)
    if options.embedder == options.reranker == "none":
        parser.error("--embedder none and --reranker none leave nothing to serve")
    try:
        engine = build_engine(options)
    except ValueError as problem:  # a model's name, or the address of Redis
        parser.error(str(problem))
    try:
        listener = listen(options.host, options.port)
    except OSError as problem:
        print(f"cannot listen on {options.host} port {options.port}: {problem.strerror or problem}", file=sys.stderr)
        return 1
    if not options.api_key and not _is_loopback(listener):
        listener.close()
        print(CLOSED.format(host=options.host), file=sys.stderr)
        return 2
    return _serve(options, engine, listener)


def _parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m gpu_server", description="Embeddings and reranking over HTTP, on models that stay warm."
    )
    add, usual = parser.add_argument, Limits()
    add("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    add("--port", type=_port, default=8000, help="0 takes a free one (default 8000)")
    named = "starter, hub name, folder, or none (default: {}, else starter)"
    add("--embedder", default=environment.get("EMBEDDING_MODEL") or "starter", help=named.format("EMBEDDING_MODEL"))
    add("--reranker", default=environment.get("RERANKER_MODEL") or "starter", help=named.format("RERANKER_MODEL"))
    add("--device", default=environment.get("DEVICE") or "auto", help="auto, cpu, cuda, cuda:1 (default auto)")
    add("--precision", choices=PRECISIONS, default="auto", help="of both models (default auto)")
    add("--api-key", default=environment.get("GPU_SERVER_TOKEN"), help="bearer key; better in GPU_SERVER_TOKEN")
    add("--redis-url", default=environment.get("REDIS_URL"), help="where rerank results are cached (default: in this process)")
    add(
        "--max-queue",
        type=_positive,
        default=MAX_QUEUE_TEXTS,
        help="texts that may wait for a model; more get 429 (default %(default)s)",
    )
    add("--max-body-bytes", type=_positive, default=usual.body_bytes, help="largest request body (default %(default)s)")
    add("--max-texts", type=_positive, default=usual.texts, help="texts of one request (default %(default)s)")
    add(
        "--timeout-seconds", type=float, default=usual.timeout_seconds, help="for a request that names none (default %(default)s)"
    )
    add("--json", action="store_true", help="print the address as one JSON line when listening")
    return parser


def _port(value: str) -> int:
    port = int(value)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError("a port is 0 to 65535")
    return port


def _positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return number


def build_engine(options: argparse.Namespace) -> Engine:
    """The pool with the models that were named, caches before them; nothing loads yet. Raises ValueError."""
    pool = ModelPool(max_queue_texts=options.max_queue)
    cached_embedder = cached_reranker = None
    if options.embedder != "none":
        pooled = pool.add_embedder(options.embedder, makers.embedders(options.embedder, options.device, options.precision))
        cached_embedder = CachedEmbedder(pooled)
    if options.reranker != "none":
        made = (
            _cosine(options, cached_embedder)
            if options.reranker == makers.STARTER
            else makers.rerankers(options.reranker, options.device, options.precision)
        )
        cached_reranker = CachedReranker(pool.add_reranker(options.reranker, made), score_store(options.redis_url))
    return Engine(pool, cached_embedder, cached_reranker)


def _cosine(options: argparse.Namespace, embedder: Embedder | None) -> Callable[[], Reranker]:
    """The starter reranker blends search scores, which texts over HTTP come without: what is left is the cosine.

    Where no embedder is served it has the starter's for itself.
    """
    own = makers.embedder(makers.STARTER, options.device, options.precision)
    vectors = embedder or ModelPool().add_embedder(makers.STARTER, own)
    return lambda: makers.cosine_reranker(vectors)


def _serve(options: argparse.Namespace, engine: Engine, listener: socket.socket) -> int:
    limits = Limits(options.max_body_bytes, options.max_texts, options.timeout_seconds)
    app = create_app(engine, limits, options.api_key, version=VERSION)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=END_SECONDS,
    )
    server = DrainingServer(
        config,
        app.state.traffic,
        patience_seconds=limits.timeout_seconds + END_SECONDS,
        closing=app.state.readiness.close,
        listening=_announce(options, listener),
    )
    server.run([listener])
    return 0


def _announce(options: argparse.Namespace, listener: socket.socket) -> Callable[[], None]:
    facts = {
        "address": address_of(listener),
        "pid": os.getpid(),
        "embedder": options.embedder,
        "reranker": options.reranker,
        "device": options.device,
        "precision": options.precision,
    }

    def announce() -> None:
        print(orjson.dumps(facts).decode() if options.json else LISTENING.format(**facts), flush=True)

    return announce


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0].split("%")[0]).is_loopback


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)  # a load that still runs in its thread would hold up the end; every answer is out
