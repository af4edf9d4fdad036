"""Real small requests to models: vectors, scores, a token, a transcript, a page. Knows the shapes of the answers, no transport.

What a model says is judged by what must hold whatever the model (counts, finite numbers, some text); whether it is any good is a
note and a measure, never a failure of its own.
"""

from __future__ import annotations

import base64
import json
import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from collectors import probe_samples as samples
from collectors.attempt import Attempt, Finding
from collectors.probes_http import gpu_server_health, gpu_server_is_healthy, model_names, rows, version
from collectors.services import ServiceError

PAGE_TOKENS = 256
UNIT_NORM_TOLERANCE = 0.02
SAME_VECTOR = 1e-6
NO_HEBREW = "Two different Hebrew sentences get the same vector: choose a model that reads Hebrew, if your users write it."


def gpu_server_works(attempt: Attempt) -> Finding:
    """Our server: two sentences embedded, two passages ranked, or what of it the server is there for."""
    aside = attempt.aside()
    kinds = {row.get("kind") for row in rows(gpu_server_health(aside).get("models"))}
    work = {"embedder": _native_embeds, "reranker": _native_reranks}
    parts = [done for kind, ask in work.items() if not kinds or kind in kinds if (done := _unless_missing(ask, attempt, kinds))]
    if not parts:
        raise ServiceError("model", "it serves neither an embedder nor a reranker")
    worst = next((part for part in parts if part.state != "ok"), parts[0])
    health = gpu_server_is_healthy(aside)
    return Finding(
        "; ".join(part.message for part in parts),
        worst.state,
        worst.failure,
        worst.next_step,
        version=version(attempt, "/status"),
        models=health.models,
        device=health.device,
        notes=tuple(note for part in parts for note in part.notes),
        measures={name: value for part in parts for name, value in part.measures.items()},
    )


def _unless_missing(ask: Callable[[Attempt], Finding], attempt: Attempt, kinds: set[Any]) -> Finding | None:
    """None where the server has no such path and has not said that it has such a model (a reranker alone, as others serve it)."""
    try:
        return ask(attempt)
    except ServiceError as problem:
        if kinds or problem.failure != "not_found":
            raise
        return None


def _native_embeds(attempt: Attempt) -> Finding:
    data = attempt.post(attempt.root("/embed"), {"texts": list(samples.SENTENCES), "return_dense": True, "return_sparse": False})
    finding = _vectors(data.get("dense_embeddings") if isinstance(data, Mapping) else None)
    return replace(finding, measures={**finding.measures, "embed_seconds": attempt.last_seconds})


def _native_reranks(attempt: Attempt) -> Finding:
    body = {"query": samples.QUERY, "documents": list(samples.PASSAGES), "top_k": len(samples.PASSAGES)}
    finding = _ranking(attempt.post(attempt.root("/rerank"), body))
    return replace(finding, measures={**finding.measures, "rerank_seconds": attempt.last_seconds})


def embeds(attempt: Attempt) -> Finding:
    """OpenAI's `/v1/embeddings`: two Hebrew sentences."""
    body = {"model": _model(attempt), "input": list(samples.SENTENCES), "encoding_format": "float"}
    data = attempt.post(attempt.versioned("/embeddings"), body)
    listed = data.get("data") if isinstance(data, Mapping) else None
    if not isinstance(listed, list) or not all(isinstance(row, Mapping) for row in listed):
        raise ServiceError("bad_answer", "the answer holds no list of embeddings")
    ordered = sorted(listed, key=lambda row: row["index"] if isinstance(row.get("index"), int) else 0)
    return _served(attempt, _vectors([row.get("embedding") for row in ordered]), data)


def _vectors(found: Any) -> Finding:
    """Judges the vectors of the two sentences."""
    if not isinstance(found, list) or len(found) != len(samples.SENTENCES):
        count = len(found) if isinstance(found, list) else 0
        raise ServiceError("bad_answer", f"{count} vectors came back for {len(samples.SENTENCES)} texts")
    vectors = [_numbers(row, "a vector") for row in found]
    dimension = len(vectors[0])
    if not dimension or any(len(vector) != dimension for vector in vectors):
        raise ServiceError("bad_answer", "the vectors are empty or of different lengths")
    norms = [math.hypot(*vector) for vector in vectors]
    if min(norms) == 0.0:
        raise ServiceError("bad_answer", "a vector is zero throughout")
    measures = {"dimension": float(dimension), "norm": norms[0]}
    message = f"embeds Hebrew in {dimension} dimensions"
    if math.dist(*vectors) <= SAME_VECTOR * norms[0]:
        return Finding("gives different texts the same vector", "degraded", "model", NO_HEBREW, measures=measures)
    unit = abs(norms[0] - 1.0) <= UNIT_NORM_TOLERANCE
    notes = () if unit else (f"the vectors are not normalised: length {norms[0]:.3g}",)
    return Finding(message, notes=notes, measures=measures)


def reranks(attempt: Attempt) -> Finding:
    """A rerank endpoint of whichever shape: native, with documents as objects, Cohere's and Jina's as vLLM has it, TEI's."""
    refused: ServiceError | None = None
    for shape, url, body in _rerank_shapes(attempt):
        try:
            finding = _ranking(attempt.post(url, body))
        except ServiceError as problem:
            if problem.failure not in ("not_found", "bad_input"):
                raise
            attempt.uncount()
            if refused is None or refused.failure == "not_found":
                refused = problem
            continue
        measures = {**finding.measures, "rerank_seconds": attempt.last_seconds}
        return replace(finding, notes=(*finding.notes, f"it takes {shape}"), measures=measures)
    raise refused or ServiceError("not_found", "no rerank endpoint")


def _rerank_shapes(attempt: Attempt) -> Iterator[tuple[str, str, dict[str, Any]]]:
    count, passages = len(samples.PASSAGES), list(samples.PASSAGES)
    named = {"query": samples.QUERY, "top_k": count, "top_n": count}
    if attempt.service.model:
        named["model"] = attempt.service.model
    named_by_url = attempt.service.parts.path.endswith("/rerank")
    url = attempt.origin + attempt.service.parts.path if named_by_url else attempt.root("/rerank")
    yield "documents as texts", url, {**named, "documents": passages}
    yield "documents with content", url, {**named, "documents": [{"content": text, "metadata": {}} for text in passages]}
    yield "TEI's texts", url, {"query": samples.QUERY, "texts": passages}
    if not named_by_url:
        yield "Cohere's shape", attempt.versioned("/rerank"), {**named, "documents": passages}


def _ranking(data: Any) -> Finding:
    """Judges the scores of the two passages, in any shape: every passage scored once, each score finite."""
    pairs = _scored(data)
    if sorted(index for index, _ in pairs) != list(range(len(samples.PASSAGES))):
        raise ServiceError("bad_answer", f"{len(pairs)} scores came back for {len(samples.PASSAGES)} passages, or for others")
    values = _numbers([score for _, score in pairs], "a score")
    best = pairs[values.index(max(values))][0]
    right = best == samples.RIGHT_PASSAGE and len(set(values)) > 1
    notes = () if right else ("it does not put the passage that answers the Hebrew question first",)
    return Finding("scores Hebrew passages", notes=notes, measures={"right_first": float(right)})


def _scored(data: Any) -> list[tuple[Any, Any]]:
    """(index, score) of an answer; empty for what is none."""
    if isinstance(data, Mapping):
        rankings, scores = data.get("rankings"), data.get("scores")
        if isinstance(rankings, list) and isinstance(scores, list) and len(rankings) == len(scores):
            return [pair for pair in zip(rankings, scores, strict=True) if isinstance(pair[0], int)]
        data = data.get("results")
    return [
        (row["index"], row.get("relevance_score", row.get("score"))) for row in rows(data) if isinstance(row.get("index"), int)
    ]


def one_token(attempt: Attempt) -> Finding:
    """OpenAI's `/v1/chat/completions`, streamed, one token: how long until it came (`ttft_seconds`, from the request sent)."""
    body = {
        "model": _model(attempt),
        "messages": [{"role": "user", "content": samples.CHAT_PROMPT}],
        "max_tokens": 1,
        "temperature": 0,
        "stream": True,
    }
    url = attempt.versioned("/chat/completions")
    answer = attempt.send("POST", url, json.dumps(body).encode(), watch=_has_token)
    if "text/event-stream" not in answer.headers.get("content-type", "") or not 200 <= answer.status < 300:
        data = attempt.read(answer)
        if not any(_is_text(choice.get("message")) for choice in _choices(data)):
            raise ServiceError("bad_answer", "the answer holds no completion")
        return _served(
            attempt, Finding("generates", notes=("it does not stream, so that the first token's time is unknown",)), data
        )
    chunks = list(_events(answer.body))
    for chunk in chunks:
        if "error" in chunk:
            said = chunk["error"].get("message") if isinstance(chunk["error"], Mapping) else chunk["error"]
            raise ServiceError("server_error", f"it failed while generating: {said}")
    if answer.watched_seconds is None:
        raise ServiceError("bad_answer", "the stream ended without a token")
    first = next((chunk for chunk in chunks if chunk.get("model")), {})
    return _served(attempt, Finding("generates", measures={"ttft_seconds": answer.watched_seconds}), first)


def _has_token(body: bytes) -> bool:
    """A piece of answer or of reasoning came; or the completion ended by its length, since one token can be half a character."""
    for chunk in _events(body):
        for choice in _choices(chunk):
            if _is_text(choice.get("delta")) or choice.get("finish_reason") in ("length", "stop"):
                return True
    return False


def _is_text(message: Any) -> bool:
    """A message, or a piece of one, that says something, aloud or in thought."""
    return isinstance(message, Mapping) and any(message.get(key) for key in ("content", "reasoning_content", "reasoning"))


def _events(body: bytes) -> Iterator[Mapping[str, Any]]:
    """The JSON objects of server-sent events; an unfinished last line is left out."""
    for line in body.decode("utf-8", "replace").split("\n")[:-1]:
        if line.startswith("data:"):
            try:
                chunk = json.loads(line[len("data:") :])
            except (ValueError, RecursionError):
                continue
            if isinstance(chunk, Mapping):
                yield chunk


def transcribes(attempt: Attempt) -> Finding:
    """OpenAI's `/v1/audio/transcriptions`: a spoken sentence. Some text must come; how many of its words is a measure."""
    language = attempt.service.language
    fields = {"model": _model(attempt), "language": language, "response_format": "json", "temperature": "0"}
    body, content_type = _form(fields, ("file", "speech.wav", "audio/wav", samples.speech(language)))
    answer = attempt.send("POST", attempt.versioned("/audio/transcriptions"), body, content_type)
    text = _said(attempt.read(answer), "text")
    return _served(attempt, _recalled("heard", text, samples.SPEECH[language].replace(",", "").split()), {})


def reads_page(attempt: Attempt) -> Finding:
    """OpenAI's chat with a picture: a scanned page. None of its words read means that the picture was not looked at."""
    picture = "data:image/png;base64," + base64.b64encode(samples.page()).decode()
    content = [{"type": "text", "text": samples.PAGE_PROMPT}, {"type": "image_url", "image_url": {"url": picture}}]
    messages = [{"role": "user", "content": content}]
    body = {"model": _model(attempt), "messages": messages, "max_tokens": PAGE_TOKENS, "temperature": 0}
    data = attempt.post(attempt.versioned("/chat/completions"), body)
    choices = _choices(data)
    text = _said(choices[0].get("message") if choices else None, "content")
    return _served(attempt, _recalled("read", text, samples.PAGE_WORDS), data)


def _recalled(verb: str, text: str, expected: Sequence[str]) -> Finding:
    found = samples.found_words(text, expected)
    measures = {"word_recall_ratio": len(found) / len(expected)}
    message = f"{verb} {len(found)} of {len(expected)} words"
    notes = (f"it {verb}: {text}",)
    if found:
        return Finding(message, notes=notes, measures=measures)
    step = "Send it a sample of your own: the model may not know the language, or may not get the data."
    return Finding(message, "degraded", "model", step, notes=notes, measures=measures)


def _said(data: Any, key: str) -> str:
    text = data.get(key) if isinstance(data, Mapping) else None
    if not isinstance(text, str):
        raise ServiceError("bad_answer", f"the answer holds no {key}")
    return text


def _form(fields: Mapping[str, str], file: tuple[str, str, str, bytes]) -> tuple[bytes, str]:
    """A multipart body and its content type (RFC 7578)."""
    boundary = f"ragdeck-{secrets.token_hex(12)}"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()
    ]
    name, filename, kind, data = file
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\nContent-Type: {kind}\r\n\r\n'
    body = "".join(parts).encode() + head.encode() + data + f"\r\n--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


def _model(attempt: Attempt) -> str:
    """The model of the settings, else the first that the server lists."""
    if attempt.service.model:
        return attempt.service.model
    aside = attempt.aside()
    models = model_names(aside.get(aside.versioned("/models")))
    if not models:
        raise ServiceError("model", "the server lists no model")
    return models[0]


def _served(attempt: Attempt, finding: Finding, data: Any) -> Finding:
    """With the model that the answer names, and the server's version."""
    name = data.get("model") if isinstance(data, Mapping) else None
    models = (name,) if isinstance(name, str) and name else None
    return replace(finding, version=version(attempt), models=models)


def _choices(data: Any) -> list[Mapping[str, Any]]:
    return rows(data.get("choices")) if isinstance(data, Mapping) else []


def _numbers(values: Any, what: str) -> list[float]:
    """Finite floats. Raises ServiceError for anything else, NaN and truth values included."""
    if not isinstance(values, list):
        raise ServiceError("bad_answer", f"{what} is no list of numbers")
    try:
        numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    except OverflowError:
        numbers = []
    if len(numbers) != len(values) or not all(math.isfinite(number) for number in numbers):
        raise ServiceError("bad_answer", f"{what} holds something that is no finite number")
    return numbers
