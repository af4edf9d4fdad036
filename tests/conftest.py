"""What every test has."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import hypothesis
import pytest

# The same examples in every run and on every machine, however slow it is at the moment: what passed once passes again.
hypothesis.settings.register_profile(
    "same everywhere",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("same everywhere")
pytest_plugins = ["tests.llm.fixtures"]


@pytest.fixture(autouse=True)
def _own_main() -> Iterator[None]:
    """Streamlit's AppTest leaves its script as `__main__`; processes that a later test spawns would run it."""
    before = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = before
