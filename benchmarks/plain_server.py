"""The server that the field reports ran, as a peer to measure against: FastAPI around FlagEmbedding's own `encode`.

    python -m benchmarks.plain_server FOLDER PORT

One request, one `encode` call, on FastAPI's thread pool, under a lock, because FlagEmbedding is not thread-safe.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from pydantic import BaseModel


class EmbedRequest(BaseModel):
    """The body of R0's `/embed`."""

    texts: list[str]


def create_app(folder: str) -> Any:
    """An app with `/health` and `/embed`; the model is loaded before it is returned."""
    from fastapi import FastAPI
    from FlagEmbedding import FlagModel

    model: Any = FlagModel(folder, pooling_method="mean", use_fp16=False, devices="cpu")
    model.encode(["warm-up"])
    lock = threading.Lock()
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "healthy"}

    @app.post("/embed")
    def embed(request: EmbedRequest) -> dict[str, Any]:
        with lock:
            vectors = model.encode(request.texts)
        return {"dense_embeddings": vectors.tolist()}

    return app


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(create_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
