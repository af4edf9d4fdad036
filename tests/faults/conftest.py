from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.laboratory import Laboratory
from tests.faults.world import Bench


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """One bench for the whole session: its models, stores and servers are built when a cause first wants them."""
    with Bench(tmp_path_factory.mktemp("faults")) as bench:
        yield Laboratory(bench)
