"""Does a server answer with its model? `probe.py KIND PORT [MODEL]`; exit code 0 for yes. Standard library only, for any image.

KIND is health:PATH (200 is well; our GPU server says so only after a real forward pass), completion, embedding or transcription
(one small real request). The key comes from VLLM_API_KEY or GPU_SERVER_TOKEN. PROBE_SECONDS limits the wait (20).
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import urllib.error
import urllib.request
import wave
from typing import Any

MOST_BYTES = 4_000_000


def main(arguments: list[str]) -> int:
    if len(arguments) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    kind, port = arguments[:2]
    model = arguments[2] if len(arguments) == 3 else ""
    try:
        problem = probe(kind, f"http://127.0.0.1:{int(port)}", model)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
    if problem:
        print(f"not well: {problem}", file=sys.stderr)
    return 1 if problem else 0


def probe(kind: str, base: str, model: str) -> str | None:
    """What is wrong, or None."""
    if kind.startswith("health:"):
        asked(base + kind.partition(":")[2])
        return None
    if kind == "completion":
        found = posted(f"{base}/v1/completions", {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0})
        return None if isinstance(found["choices"][0]["text"], str) else "no text"
    if kind == "embedding":
        vector = posted(f"{base}/v1/embeddings", {"model": model, "input": ["1"]})["data"][0]["embedding"]
        good = vector and all(math.isfinite(each) for each in vector) and any(vector)
        return None if good else "the vector is empty, all zero, or not of numbers"
    if kind == "transcription":
        found = asked(f"{base}/v1/audio/transcriptions", *form(model))
        return None if isinstance(found["text"], str) else "no text"
    return f"unknown kind {kind!r}"


def posted(url: str, body: dict[str, Any]) -> Any:
    return asked(url, json.dumps(body).encode(), "application/json")


def asked(url: str, body: bytes | None = None, content_type: str | None = None) -> Any:
    """The answer's JSON; of a plain look only that it came. Raises ValueError for a status that is no success, OSError."""
    request = urllib.request.Request(url, data=body)
    if content_type:
        request.add_header("Content-Type", content_type)
    key = os.environ.get("VLLM_API_KEY") or os.environ.get("GPU_SERVER_TOKEN")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    # A proxy in the environment must not see, or answer, a request to this container.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=float(os.environ.get("PROBE_SECONDS", "20"))) as answer:
            text = answer.read(MOST_BYTES)
    except urllib.error.HTTPError as error:
        said = error.read(300).decode("utf-8", "replace")
        raise ValueError(f"{error.code} {said}") from error
    try:
        return json.loads(text)
    except ValueError:
        if body is None:
            return {}
        raise


def form(model: str) -> tuple[bytes, str]:
    """Half a second of silence as multipart/form-data."""
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(16_000))
    mark = "ragdeck-probe"
    field = f"--{mark}\r\nContent-Disposition: form-data; name="
    said = f'{field}"model"\r\n\r\n{model}\r\n{field}"file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    return said.encode() + sound.getvalue() + f"\r\n--{mark}--\r\n".encode(), f"multipart/form-data; boundary={mark}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
