"""schemathesis against the OpenAPI of the GPU server and of /api: no 5xx, answers and errors as the document says. Bounded."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import checks
from starlette.applications import Starlette

from access import api as access_api
from access.scopes import RULES
from guard import Guard, Policy
from rag import api as query_api
from runtime import Runtime
from settings import load
from tests.gpu_server.serving import Served, process
from tests.rag.test_api import NOTES, serving

EXAMPLES = 30
PHASES = (Phase.explicit, Phase.generate)
ALL = list(HealthCheck)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with process("--device", "cpu", "--precision", "fp32") as server:
        yield server


def test_the_gpu_server_keeps_to_its_document(served: Served) -> None:
    tried = _kept_to(f"{served.address}/openapi.json", EXAMPLES)
    assert len(tried) >= 8 and sum(tried.values()) >= 100


def _kept_to(url: str, examples: int) -> dict[str, int]:
    """Try what the document allows, and hold the answers against it; returns how often by path."""
    document = schemathesis.openapi.from_url(url)
    tried: dict[str, int] = {}
    for found in document.get_all_operations():
        operation = found.ok()

        @settings(max_examples=examples, deadline=None, derandomize=True, database=None, phases=PHASES, suppress_health_check=ALL)
        @given(case=operation.as_strategy())
        def holds(case: schemathesis.Case) -> None:
            response = case.call(timeout=120)
            tried[case.path] = tried.get(case.path, 0) + 1
            wanted = [checks.not_a_server_error]
            if response.status_code == 200:
                wanted += [checks.content_type_conformance, checks.response_schema_conformance]
            case.validate_response(response, checks=wanted)

        holds()
    return tried


def test_the_document_lists_every_model_route(served: Served) -> None:
    paths = served.get("/openapi.json").json()["paths"]
    assert set(paths) >= {
        "/embed",
        "/embed_sparse",
        "/rerank",
        "/v1/embeddings",
        "/v1/rerank",
        "/v2/rerank",
        "/health",
        "/status",
    }
    assert set(paths["/metrics"]["get"]["responses"]["200"]["content"]) == {"text/plain"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """/api of a runtime with three documents; deleting, asking and reading are real."""
    root = tmp_path_factory.mktemp("openapi")
    (root / "dashboard.toml").write_text("[ingest]\nsample_corpus = false\n")
    (root / "notes").mkdir()
    for name, text in NOTES.items():
        (root / "notes" / name).write_text(text)
    runtime = Runtime(load({"RAGDECK_DATA": str(root / "data")}, root=root))
    runtime.start()
    assert runtime.wait_warm(120)
    assert runtime.submit_ingest([root / "notes"]).wait(120)
    routes = [*query_api.routes(lambda: runtime), *access_api.routes(lambda: runtime)]
    with serving(Guard(Starlette(routes=routes), Policy("127.0.0.1"))) as url:
        yield url
    runtime.stop()


def test_the_api_keeps_to_its_document(api: str) -> None:
    tried = _kept_to(f"{api}/api/v1/openapi.json", 15)
    assert len(tried) == 6 and sum(tried.values()) >= 60


def test_the_document_names_every_route_of_the_api(api: str) -> None:
    paths = httpx.get(f"{api}/api/v1/openapi.json", timeout=120).json()["paths"]
    told = {(method.upper(), path) for path, operations in paths.items() for method in operations}
    ours = {(rule.method, rule.path) for rule in RULES if rule.path.startswith("/api/")}
    assert told == ours - {("GET", "/api/v1/openapi.json")}
