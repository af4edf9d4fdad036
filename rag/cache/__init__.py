"""The parts of the semantic cache; `rag/semantic_cache.py` is the door."""
