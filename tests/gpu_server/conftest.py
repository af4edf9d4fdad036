"""Fixtures of the engine's tests: tiny random models."""

from __future__ import annotations

from tests.tiny_models import tiny_bge_m3, tiny_bge_reranker, tiny_cross_encoder, tiny_sentence_transformer

__all__ = ["tiny_bge_m3", "tiny_bge_reranker", "tiny_cross_encoder", "tiny_sentence_transformer"]
