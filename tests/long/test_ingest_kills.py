"""`make test-long`: ten kills of an ingestion."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rag.test_ingest_kill import killed

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def test_ten_kills_and_the_result_is_that_of_an_uninterrupted_run(tmp_path: Path) -> None:
    killed(tmp_path, kills=10, files=300, longest_seconds=1.5)
