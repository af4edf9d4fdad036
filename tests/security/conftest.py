"""The world of hostile texts and planted secrets: one for all tests of this folder, because it takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.conftest import browser as browser
from tests.security.world import World, started


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with started(tmp_path_factory.mktemp("world")) as running:
        yield running
