"""Fixtures: the tiny model's folder, the server that serves it, and one to kill. Loaded by tests/conftest.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.llm import tiny
from tests.llm.server import LlmServer, serve


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache that holds the tiny model."""
    home = tmp_path_factory.mktemp("hub")
    tiny.build_in_cache(home)
    return home


@pytest.fixture(scope="session")
def tiny_model(tiny_home: Path) -> Path:
    """The tiny model's folder, as `llm.local_model` takes it."""
    return tiny.folder_in_cache(tiny_home)


@pytest.fixture(scope="session")
def llm_server(tiny_home: Path) -> Iterator[LlmServer]:
    """A real OpenAI-compatible server, shared by the whole session: do not kill it."""
    with serve(tiny_home, tiny.NAME) as server:
        yield server


@pytest.fixture
def doomed_llm_server(tiny_home: Path) -> Iterator[LlmServer]:
    """A server of one's own, to be killed."""
    with serve(tiny_home, tiny.NAME) as server:
        yield server
