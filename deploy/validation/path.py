"""One full query with its stage table, the time to its first token, and the languages of the users. Knows no stage's insides."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from collectors import probe_samples as samples
from collectors.services import ServiceKind
from deploy.validation.endpoints import probe_item, problem_item
from deploy.validation.types import Check, Item, Verdict, failed, passed, warning
from deploy.validation.world import World
from gpu_server.errors import EngineError
from gpu_server.interfaces import RerankCandidate
from rag.errors import RagError
from rag.loaders import pictures

SAME_VECTOR = 1e-6
LEAST_RECALL_RATIO = 0.5
MEDIA_SECONDS = 120.0
HEBREW_MODEL = "Choose models that read Hebrew, such as BAAI/bge-m3 with BAAI/bge-reranker-v2-m3, and ingest again."


# 1) the query


def query(world: World) -> Verdict:
    """One question from end to end, past the caches, and where its seconds went."""
    try:
        answer, where = world.answer(), world.process().where
    except RagError as problem:
        cause = "The path cannot be asked."
        return Verdict((failed("query", problem.message, cause, problem.next_step),))
    stages = [stage for stage in answer.get("stages") or () if stage.get("spans") or stage.get("seconds")]
    measures = {f"{stage['stage']}_seconds": float(stage["seconds"]) for stage in stages}
    measures |= {name: float(answer[name]) for name in _TIMES if answer.get(name) is not None}
    table = (("stage", "seconds", "where", "device", "model", "cold"), *(_row(stage) for stage in stages))
    first = _outcome(answer, where, world.subject.targets.total_seconds)
    return Verdict((first, *_degraded(answer)), table=table if stages else (), measures=measures)


_TIMES = ("total_seconds", "ttft_seconds", "first_token_seconds", "cold_total_seconds")


def _outcome(answer: Mapping[str, Any], where: str, limit: float) -> Item:
    total = answer.get("total_seconds")
    took = "" if total is None else f" in {total:.3g} s, asked {where}"
    outcome = answer.get("outcome")
    if outcome == "answered":
        kept = sum(bool(each.get("kept")) for each in answer.get("passages") or ())
        text = f"answered{took}, from {kept} passages"
        return passed("query", text) if total is None or total <= limit else failed("query", text, *_slow(answer, limit))
    if outcome == "no_documents":
        cause = "The collection in use is empty, or nothing in it fits the question."
        return warning("query", f"no relevant documents{took}", cause, "Ingest documents, or ask one of them: --question.")
    error = answer.get("error") or {}
    cause = f"Stage {error.get('stage') or 'unknown'}: {error.get('kind') or 'unknown'}."
    return failed("query", f"{outcome}: {error.get('message') or 'no reason was told'}", cause, str(error.get("next_step") or ""))


def _slow(answer: Mapping[str, Any], limit: float) -> tuple[str, str]:
    """(cause, cure) of a query that took longer than is acceptable."""
    stages = [each for each in answer.get("stages") or () if each.get("seconds")]
    slowest = max(stages, key=lambda each: float(each["seconds"]), default=None)
    most = f"; most of it in {slowest['stage']}, {float(slowest['seconds']):.3g} s" if slowest else ""
    cause = f"A warm query is to take {limit:g} s at most (readiness.answer_seconds, or --target-seconds){most}."
    return cause, "See the page Latency for what the time went into and what each change would save."


def _degraded(answer: Mapping[str, Any]) -> Iterator[Item]:
    for stage in answer.get("stages") or ():
        if stage.get("degraded"):
            cause = "The stage worked with less than the settings ask for."
            yield warning(f"stage {stage['stage']}", str(stage["degraded"]), cause, "Mend what the reason names.")


def _row(stage: Mapping[str, Any]) -> tuple[str, ...]:
    cells = (stage.get("where"), stage.get("device"), stage.get("model"), "yes" if stage.get("cold") else "no")
    return (str(stage["stage"]), f"{float(stage['seconds']):.4f}", *("–" if each is None else str(each) for each in cells))


def first_token(world: World) -> Verdict:
    """How long until the language model's first token: of the query, and of one token asked of each endpoint."""
    limit = world.subject.targets.first_token_seconds
    found = {
        service.name: result.measures["ttft_seconds"]
        for service, result in world.probes("functional")
        if "ttft_seconds" in result.measures
    }
    has_model = any(each.kind == "openai-chat" for each in world.subject.path_services) or any(
        each.role == "llm" for each in world.subject.local_models
    )
    if has_model:
        try:
            told = world.answer().get("ttft_seconds")
            found |= {} if told is None else {"query": float(told)}
        except RagError as problem:
            if not found:
                return Verdict(reason=f"no query was answered: {problem.message}")
    if not found:
        return Verdict(reason="no language model is configured: answers quote the best sentences")
    return Verdict(
        tuple(_ttft(name, value, limit) for name, value in found.items()),
        measures={f"{name}.ttft_seconds": value for name, value in found.items()},
    )


def _ttft(name: str, value: float, limit: float) -> Item:
    text = f"{value * 1000:.0f} ms from the request to the first token"
    if value <= limit:
        return passed(name, text)
    cause = "The server queues or prefills for long: long prompts, too many requests, or a model too large for its GPU."
    cure = "Look at queue and prefill on the page Query; shorten llm.context_tokens, switch prefix caching on, add a replica."
    return warning(name, f"{text}, more than {limit:g} s", cause, cure)


# 2) the languages of the users


def hebrew_text(world: World) -> Verdict:
    """Hebrew sentences through the embedder and reranker in force, and through every text service."""
    items = [*_own_models(world), *_probed(world, ("openai-chat", "openai-embeddings", "gpu_server", "rerank"))]
    return Verdict(tuple(items), "" if items else "no model of the path can be asked from here")


def _own_models(world: World) -> Iterator[Item]:
    try:
        process = world.process()
        embedder, reranker = process.embedder, process.reranker
    except RagError as problem:
        yield failed("models", problem.message, "The models of the path cannot be had.", problem.next_step)
        return
    if embedder is not None:
        with _said("embedder") as said:
            said.append(_hebrew_embedder(embedder))
        yield said[0]
    if reranker is not None and not reranker.uses_route_scores:  # a blend of the routes' scores reads no text
        with _said("reranker") as said:
            scores = reranker.score(samples.QUERY, [RerankCandidate(text) for text in samples.PASSAGES], caches="bypass").values
            said.append(_ranked("reranker", list(map(float, scores))))
        yield said[0]


@contextmanager
def _said(name: str) -> Iterator[list[Item]]:
    """A list for the item; what the model raises becomes one."""
    found: list[Item] = []
    try:
        yield found
    except (RagError, EngineError) as problem:
        found.append(failed(name, problem.message, "The model does not work.", problem.next_step))


def _hebrew_embedder(embedder: Any) -> Item:
    """The question must be nearer to the passage that answers it, and different sentences must get different vectors."""
    passages = embedder.embed(list(samples.PASSAGES), "passage", caches="bypass").dense
    question = embedder.embed([samples.QUERY], "query", caches="bypass").dense[0]
    if float(abs(passages[0] - passages[1]).max()) <= SAME_VECTOR:
        cause = "The model's tokenizer knows no Hebrew letters."
        return failed("embedder", "two different Hebrew sentences get the same vector", cause, HEBREW_MODEL)
    return _ranked("embedder", [float(question @ passage) for passage in passages])


def _ranked(name: str, scores: list[float]) -> Item:
    right, other = scores[samples.RIGHT_PASSAGE], scores[1 - samples.RIGHT_PASSAGE]
    text = f"the Hebrew passage that answers scores {right:.3f}, the other one {other:.3f}"
    if right > other:
        return passed(name, text)
    return warning(name, text, "The model was not trained on Hebrew: search in it finds at random.", HEBREW_MODEL)


def _probed(world: World, kinds: tuple[ServiceKind, ...]) -> list[Item]:
    """The functional probes, which send Hebrew; what a probe only notes (order, words missed) counts here."""
    items = [
        problem_item(service, made.problem)
        for service, made in world.connections()
        if service.kind in kinds and made.problem is not None
    ]
    for service, result in world.probes("functional"):
        if service.kind not in kinds:
            continue
        right, recall = result.measures.get("right_first"), result.measures.get("word_recall_ratio")
        if result.up and right == 0.0:
            items.append(warning(service.name, "; ".join(result.notes), "The model was not trained on Hebrew.", HEBREW_MODEL))
        elif result.up and recall is not None:
            items.append(_recall(service.name, recall))
        else:
            items.append(probe_item(service, result))
    return items


def _recall(name: str, ratio: float) -> Item:
    text = f"{ratio:.0%} of the words of the sample"
    if ratio >= LEAST_RECALL_RATIO:
        return passed(name, text)
    cause = "The model reads or hears something else than what is there: not trained on this language, or the wrong language set."
    cure = "Choose a model of the users' language (such as ivrit-ai/whisper-large-v3 for Hebrew audio), and set speech.language."
    return (failed if ratio == 0 else warning)(name, text, cause, cure)


def hebrew_audio(world: World) -> Verdict:
    """A spoken Hebrew sentence through the path's own transcriber and through every Whisper service."""
    items = _probed(world, ("whisper",))
    transcriber = world.subject.transcriber
    if transcriber is not None:
        with _said("[speech]") as said:
            heard = transcriber.transcribe(samples.speech("he"), "speech.wav", _deadline())
            said.append(_of_words("[speech]", heard.text, samples.SPEECH["he"].replace(",", "").split()))
        items.append(said[0])
    return Verdict(tuple(items), "" if items else "no transcription is configured: [speech] (WHISPER_BASE_URL) is unset")


def scanned_page(world: World) -> Verdict:
    """A scanned page in Hebrew and English through the path's own reader and through every OCR service."""
    items = _probed(world, ("ocr",))
    reader = world.subject.page_reader
    if reader is not None:
        with _said("[ocr]") as said:
            said.append(_of_words("[ocr]", reader.read(_picture(), _deadline()).text, list(samples.PAGE_WORDS)))
        items.append(said[0])
    return Verdict(tuple(items), "" if items else "no page reader is configured: [ocr] (OCR_BASE_URL) is unset")


def _picture() -> bytes:
    """The sample page as the readers take it: a JPEG."""
    return pictures.jpeg(pictures.page("page.png", samples.page(), 1))


def _of_words(name: str, text: str, expected: list[str]) -> Item:
    return _recall(name, len(samples.found_words(text, expected)) / len(expected))


def _deadline() -> Any:
    """What the readers call between their steps: raises RagError once the time is over."""
    end = time.monotonic() + MEDIA_SECONDS

    def check() -> None:
        if time.monotonic() > end:
            step = "Look at the queue and the GPU of the service."
            raise RagError(f"the sample was not read within {MEDIA_SECONDS:.0f} s", kind="timeout", next_step=step)

    return check


CHECKS = (
    Check("Q-1", "Path", "One query from end to end", "Every stage works with the others.", query),
    Check("Q-2", "Path", "Time to the first token", "Readers do not wait long for the answer to begin.", first_token),
    Check("L-1", "Languages", "Hebrew text", "Search and ranking understand Hebrew.", hebrew_text),
    Check("L-2", "Languages", "Hebrew audio", "Recordings in Hebrew become text.", hebrew_audio),
    Check("L-3", "Languages", "A scanned page", "Scans in Hebrew and English become text.", scanned_page),
)
