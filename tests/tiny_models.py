"""Tiny random models in folders as the real ones have them, written once a session. Imports nothing heavy before it is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import make_random_models


def folder(cache: pytest.TempPathFactory, kind: str) -> Path:
    """The session's folder of a tiny model; `kind` as `make_random_models.KINDS`."""
    path = cache.getbasetemp() / "tiny-models" / f"tiny-{kind}"
    return path if path.exists() else make_random_models.make(kind, path)


@pytest.fixture(scope="session")
def tiny_bge_m3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """XLM-R with sparse and late-interaction heads: width 64, 512 tokens."""
    return folder(tmp_path_factory, "bge-m3")


@pytest.fixture(scope="session")
def tiny_bge_reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """XLM-R with one label: 512 tokens."""
    return folder(tmp_path_factory, "bge-reranker")


@pytest.fixture(scope="session")
def tiny_sentence_transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT with mean pooling, no prompts: width 64, 512 tokens."""
    return folder(tmp_path_factory, "sentence-transformer")


@pytest.fixture(scope="session")
def tiny_cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT with one label: 512 tokens."""
    return folder(tmp_path_factory, "cross-encoder")
