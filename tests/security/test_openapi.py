"""schemathesis against the GPU server's own OpenAPI: no 5xx, and answers and errors as the document says. Seeded and bounded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import checks

from tests.gpu_server.serving import Served, process

EXAMPLES = 30


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with process("--device", "cpu", "--precision", "fp32") as server:
        yield server


@pytest.fixture(scope="module")
def document(served: Served) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{served.address}/openapi.json")


schema = schemathesis.pytest.from_fixture("document")


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_the_gpu_server_keeps_to_its_document(case: schemathesis.Case) -> None:
    response = case.call(timeout=30)
    case.validate_response(
        response, checks=[checks.not_a_server_error, checks.response_schema_conformance, checks.content_type_conformance]
    ) if response.status_code == 200 else case.validate_response(response, checks=[checks.not_a_server_error])


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
