"""The dashboard: `streamlit run app.py`. Starts and stops the runtime, guards every route, mounts /api, shows ui/frame.py."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import streamlit as st
from starlette.middleware import Middleware
from streamlit import config

import runtime
from collectors import metrics_api
from collectors.alerts import Alert
from collectors.views import Snapshot
from guard import Guard, Policy
from latency.otlp import api as receiving
from rag import api
from settings import Settings, SettingsError, load

log = logging.getLogger("ragdeck")


def policy(settings: Settings, host: str) -> Policy:
    """The guard's rules from the settings; `host` is what the server binds."""
    server = settings.server
    token = server.token.get_secret_value() if server.token else None
    return Policy(host, tuple(server.allowed_hosts), tuple(server.allowed_origins), token)


_rules: Policy | None = None


def current_policy() -> Policy:
    """Wrong settings must not open the door: only this machine gets in, to read what is wrong.

    They are read again at each request until they are right: correcting them puts their token in force at once.
    """
    global _rules
    if _rules is None:
        try:
            settings = load()
        except SettingsError:
            return Policy("127.0.0.1", local_clients_only=True)
        # Streamlit checks the origin of its WebSocket once more, by a list of its own
        config.set_option("server.corsAllowedOrigins", list(settings.server.allowed_origins))
        _rules = policy(settings, config.get_option("server.address") or "0.0.0.0")
    return _rules


@asynccontextmanager
async def lifespan(_: Any) -> AsyncIterator[None]:
    """Runs once a process, before any browser comes."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    rules = current_policy()
    if not rules.loopback_only and rules.token is None:
        log.warning(
            "listening on %s without a token: anybody who reaches this port can read and ask; set RAGDECK_TOKEN", rules.host
        )
    try:
        runtime.started(f"http://127.0.0.1:{config.get_option('server.port')}")
    except Exception as problem:  # the page shows what is wrong; a server that does not start shows nothing
        log.error("the runtime could not be built: %s", problem)
    yield
    runtime.shut_down()


def watched() -> tuple[Snapshot, Sequence[Alert]]:
    """What /metrics tells of."""
    running = runtime.started()
    return running.sweep.snapshot(), running.alerts.active()


ROUTES = [*api.routes(runtime.started), *receiving.routes(runtime.started), *metrics_api.routes(watched)]

app = st.App("ui/frame.py", lifespan=lifespan, routes=ROUTES, middleware=[Middleware(Guard, policy=current_policy)])


def main() -> None:
    """`python app.py`: run the server where the settings say. Wrong settings end it with what is wrong (exit code 2)."""
    try:
        server = load().server
    except SettingsError as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
    where = ["--server.address", server.host, "--server.port", str(server.port)]
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", __file__, *where])


if __name__ == "__main__":
    main()
