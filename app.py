"""The dashboard: `streamlit run app.py`. Starts and stops the runtime, guards every route, mounts /api, shows ui/frame.py."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import streamlit as st
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import Route
from streamlit import config

import runtime
from access import api as access_api
from access import limits, wiring
from collectors import metrics_api
from guard import Guard, Policy
from latency.otlp import api as receiving
from rag import api
from rag.errors import RagError
from settings import Settings, SettingsError, load
from ui.socket_words import StreamlitWords

log = logging.getLogger("ragdeck")


def policy(settings: Settings, host: str) -> Policy:
    """The guard's rules from the settings; `host` is what the server binds. Raises OSError where the files that a sign-in needs
    cannot be written."""
    server = settings.server
    ways = wiring.authenticator(settings, host)
    sign_in = _oidc_url if ways.oidc is not None else None
    return Policy(
        host,
        tuple(server.allowed_hosts),
        tuple(server.allowed_origins),
        access=ways,
        limits=wiring.limits(settings),
        oidc_url=sign_in,
        words=StreamlitWords(),
    )


def _oidc_url() -> str:
    """Where Streamlit's sign-in begins; the address holds for two minutes."""
    from streamlit.auth_util import encode_provider_token

    return f"/auth/login?provider={encode_provider_token('default')}"


_rules: Policy | None = None


def current_policy() -> Policy:
    """Wrong settings must not open the door: only this machine gets in, to read what is wrong.

    They are read again at each request until they are right: correcting them puts their token in force at once.
    """
    global _rules
    if _rules is None:
        try:
            settings = load()
            rules = policy(settings, bound_host())
        except (SettingsError, OSError) as problem:
            log.error("only this machine gets in: %s", problem)
            return Policy("127.0.0.1", local_clients_only=True)
        # Streamlit checks the origin of its WebSocket once more, by a list of its own
        config.set_option("server.corsAllowedOrigins", list(settings.server.allowed_origins))
        if rules.access is not None and rules.access.oidc is not None:
            config.set_option("secrets.files", [str(wiring.oidc_folder(settings) / "secrets.toml")])
        wiring.redact_logs(settings)
        _rules = rules
    return _rules


def bound_host() -> str:
    return config.get_option("server.address") or "0.0.0.0"


@asynccontextmanager
async def lifespan(_: Any) -> AsyncIterator[None]:
    """Runs once a process, before any browser comes."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    _end_if_open()
    limits.hurry_all()
    current_policy()
    try:
        runtime.started(f"http://127.0.0.1:{config.get_option('server.port')}")
    except Exception as problem:  # the page shows what is wrong; a server that does not start shows nothing
        log.error("the runtime could not be built: %s", problem)
    yield
    runtime.shut_down()


def _end_if_open() -> None:
    """End the process where it would serve everybody. Settings that are wrong otherwise end nothing: see `current_policy`."""
    try:
        wiring.checked_start(load(), bound_host())
    except SettingsError:
        return
    except RagError as problem:
        _say(problem)
        os._exit(2)  # an exception here would be a traceback of the server's; nothing is running yet


def _say(problem: RagError) -> None:
    print(f"{problem.message}\n{problem.next_step}", file=sys.stderr, flush=True)


def _to_ask(request: Request) -> RedirectResponse:
    """The first page has no path of its own; who types its name gets there, with what else the address says."""
    return RedirectResponse(request.url.replace(scheme="", netloc="", path="/"), status_code=308)


ROUTES = [
    Route("/ask", _to_ask),
    *api.routes(runtime.started),
    *access_api.routes(runtime.started),
    *receiving.routes(runtime.started),
    *metrics_api.routes_of(runtime.started),
]

app = st.App("ui/frame.py", lifespan=lifespan, routes=ROUTES, middleware=[Middleware(Guard, policy=current_policy)])


def main() -> None:
    """`python app.py`: run the server where the settings say. Wrong settings end it with what is wrong (exit code 2)."""
    try:
        settings = load()
        wiring.checked_start(settings, settings.server.host)
    except SettingsError as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
    except RagError as problem:
        _say(problem)
        sys.exit(2)
    megabytes = str(-(-settings.ingest.max_file_bytes // 1_000_000))
    where = ["--server.address", settings.server.host, "--server.port", str(settings.server.port)]
    where += ["--server.maxUploadSize", megabytes]
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", __file__, *where])


if __name__ == "__main__":
    main()
