"""schemathesis against the GPU server's own OpenAPI: no 5xx, and answers and errors as the document says. Seeded and bounded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import checks

from tests.gpu_server.serving import Served, process

EXAMPLES = 30
PHASES = (Phase.explicit, Phase.generate)
ALL = list(HealthCheck)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with process("--device", "cpu", "--precision", "fp32") as server:
        yield server


def test_the_gpu_server_keeps_to_its_document(served: Served) -> None:
    document = schemathesis.openapi.from_url(f"{served.address}/openapi.json")
    tried: dict[str, int] = {}
    for found in document.get_all_operations():
        operation = found.ok()

        @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=PHASES, suppress_health_check=ALL)
        @given(case=operation.as_strategy())
        def holds(case: schemathesis.Case) -> None:
            response = case.call(timeout=30)
            tried[case.path] = tried.get(case.path, 0) + 1
            wanted = [checks.not_a_server_error]
            if response.status_code == 200:
                wanted += [checks.content_type_conformance, checks.response_schema_conformance]
            case.validate_response(response, checks=wanted)

        holds()
    assert len(tried) >= 8 and sum(tried.values()) >= 100


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
