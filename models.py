"""The models that the settings ask for: loaded by the pool in this process, or clients of servers, and the state of each.

For the embedder `embeddings.base_url` wins over `gpu_server.url` over a model in this process; for the reranker
`reranker.api_url` over `gpu_server.url` over a model in this process. Caches stand before all of them but the GPU server,
which has its own. Building loads nothing and calls no model.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from gpu_server import makers
from gpu_server.caches import CachedEmbedder, CachedReranker
from gpu_server.endpoint import Endpoint, SettingNames
from gpu_server.errors import EngineError
from gpu_server.interfaces import ChatModel, Embedder, ModelInfo, Reranker
from gpu_server.model_pool import ModelPool
from gpu_server.probes import Probe, probe_embedder, probe_reranker
from gpu_server.redaction import shown_address
from gpu_server.score_stores import ScoreStore, score_store
from rag.chat import OpenAIChat
from rag.errors import RagError
from rag.loaders.media import MediaReaders
from rag.media import media_readers, page_reader, transcriber
from settings import Settings

if TYPE_CHECKING:
    from gpu_server.client import RemoteEmbedder, RemoteReranker

log = logging.getLogger("ragdeck")


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A model as the pages show it; what is not measured or not told is None.

    State: `waiting`, `loading`, `warm` or `failed` in this process; behind HTTP `waiting` until the first call, then `remote`
    or `failed`, as the last call ended. `where` is `in-process` or `http`, `address` the server's. From `failures` on: as
    `gpu_server.slot.SlotStatus` has them; of a model behind HTTP only our GPU server tells them, when it is asked.
    """

    kind: str
    name: str
    state: str
    device: str | None = None
    precision: str | None = None
    load_seconds: float | None = None
    first_run_seconds: float | None = None
    runs: int = 0
    note: str | None = None
    error: str | None = None
    where: str = "in-process"
    address: str | None = None
    identity: str | None = None
    dimension: int | None = None
    max_tokens: int | None = None
    failures: int | None = None
    proven: bool | None = None
    loaded_at: float | None = None
    devices: Sequence[str] = ()
    memory_bytes: int | None = None
    queue_texts: int | None = None
    batches: int | None = None
    texts: int | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    busy_ratio: float | None = None
    cache_hit_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Models:
    """What the query path calls. `reranker` None: switched off; `chat` None: no language model in this process."""

    embedder: Embedder
    reranker: Reranker | None
    chat: ChatModel | None
    pool: ModelPool
    remote: tuple[RemoteEmbedder | RemoteReranker, ...] = ()
    caches: Mapping[str, CachedEmbedder | CachedReranker] = field(default_factory=dict)

    def greet(self) -> bool:
        """Try each remote model that has not answered last; False where one does not. Problems are logged and in the status."""
        for model in self.remote:
            if model.server.status.state == "remote":
                continue
            try:
                self.probe(model.server.status.kind)
            except EngineError as problem:
                log.warning("the %s at %s: %s. %s", model.server.status.kind, problem.address, problem.message, problem.next_step)
        return all(model.server.status.state == "remote" for model in self.remote)

    def probe(self, kind: str) -> Probe:
        """Embed one text, or rerank one pair, past every cache. Raises EngineError, LookupError for no such model."""
        if kind == "embedder":
            return probe_embedder(self.embedder)
        if kind == "reranker" and self.reranker is not None:
            return probe_reranker(self.reranker)
        raise LookupError(f"no {kind} is configured")

    def reload(self, kind: str) -> Probe:
        """Load the model anew, or find out anew what stands at its address, and try it. Raises as `probe` does."""
        far = next((model for model in self.remote if model.server.status.kind == kind), None)
        if far is not None:
            far.server.forget()
        elif any(slot.kind == kind for slot in self.pool.status()):
            self.pool.reload(kind)
        return self.probe(kind)

    def status(self, *, live: bool = False) -> tuple[ModelStatus, ...]:
        """Of every model. `live` also asks our GPU servers for what only they know, 2 s each at most."""
        local = [_status(asdict(slot), slot.info) for slot in self.pool.status()]
        rows = [*local, *(_remote_status(model, live) for model in self.remote)]
        ratios = {kind: cache.stats.hit_ratio for kind, cache in self.caches.items()}
        told = (replace(row, cache_hit_ratio=ratios.get(row.kind, row.cache_hit_ratio)) for row in rows)
        return tuple(sorted(told, key=lambda row: ("embedder", "reranker", "llm").index(row.kind)))

    def close(self) -> None:
        for model in self.remote:
            model.server.close()


def build(settings: Settings, pool: ModelPool) -> Models:
    """Raises RagError for a model that no maker knows, or one that needs torch where torch is not installed."""
    embedder, far_embedder = embedder_of(settings, pool)
    reranker, far_reranker = reranker_of(settings, pool) if settings.reranker.enabled else (None, None)
    remote = tuple(model for model in (far_embedder, far_reranker) if model is not None)
    caches: dict[str, CachedEmbedder | CachedReranker] = {}
    if far_embedder is None or settings.embeddings.base_url:
        embedder = caches["embedder"] = CachedEmbedder(embedder)
    if reranker and not reranker.uses_route_scores and (far_reranker is None or settings.reranker.api_url):
        reranker = caches["reranker"] = CachedReranker(reranker, _score_store(settings))
    return Models(embedder, reranker, _local_chat(settings, pool), pool, remote, caches)


def embedder_of(settings: Settings, pool: ModelPool) -> tuple[Embedder, RemoteEmbedder | None]:
    """The embedder without a cache, and once more where it is a client to be closed. Raises as `build` does."""
    far = _remote_embedder(settings)
    with _known():
        return far or _local_embedder(settings, pool), far


def reranker_of(settings: Settings, pool: ModelPool) -> tuple[Reranker, RemoteReranker | None]:
    """As `embedder_of`."""
    far = _remote_reranker(settings)
    with _known():
        return far or _local_reranker(settings, pool), far


@contextmanager
def _known() -> Iterator[None]:
    try:
        yield
    except makers.UnknownModel as problem:
        raise RagError(
            str(problem), kind="model", next_step="Change models.embedder or models.reranker in the settings."
        ) from None


def _score_store(settings: Settings) -> ScoreStore:
    url = settings.redis.url
    try:
        return score_store(url.get_secret_value() if url else None)
    except ValueError:  # its words may hold the password
        raise RagError("the address of Redis cannot be used", kind="bad_input", next_step="Correct REDIS_URL.") from None


def _local_chat(settings: Settings, pool: ModelPool) -> ChatModel | None:
    models, name = settings.models, settings.llm.local_model
    if name is None:
        return None
    _need_torch("the language model", "VLLM_BASE_URL")
    return pool.add_chat_model(name, makers.chat(name, models.device, models.precision))


def _local_embedder(settings: Settings, pool: ModelPool) -> Embedder:
    models = settings.models
    _need_torch("the embedder", "GPU_SERVER_URL or EMBEDDING_BASE_URL")
    return pool.add_embedder(models.embedder, makers.embedders(models.embedder, models.device, models.precision))


def _local_reranker(settings: Settings, pool: ModelPool) -> Reranker:
    models = settings.models
    wants_scores = makers.uses_route_scores(models.reranker)
    if not wants_scores:  # a blend of the routes' scores is arithmetic, a model is not
        _need_torch("the reranker", "GPU_SERVER_URL or RERANKER_API_URL")
    make = makers.rerankers(models.reranker, models.device, models.precision)
    identity = partial(makers.reranker_identity, models.reranker)
    return pool.add_reranker(models.reranker, make, uses_route_scores=wants_scores, identity=identity)


def _need_torch(what: str, instead: str) -> None:
    if importlib.util.find_spec("torch") is None:
        raise RagError(
            f"{what} is to run in this process, and torch is not installed",
            kind="model",
            next_step=f"Run `pip install -r requirements.txt`, or set {instead} to a server that has the model.",
        )


def _remote_embedder(settings: Settings) -> RemoteEmbedder | None:
    chosen = settings.embeddings
    if chosen.base_url is None and settings.gpu_server.url is None:
        return None
    from gpu_server.client import RemoteEmbedder

    if chosen.base_url is None:
        return RemoteEmbedder(_gpu_server(settings), dialect="native")
    endpoint = Endpoint(
        chosen.base_url,
        chosen.model or _asked(settings.models.embedder),
        chosen.api_key.get_secret_value() if chosen.api_key else None,
        {name: value.get_secret_value() for name, value in (chosen.headers or {}).items()},
        chosen.timeout_seconds,
        chosen.retries,
        chosen.backoff_factor,
        SettingNames("EMBEDDING_BASE_URL", "EMBEDDING_API_KEY", "embeddings.model", "embeddings.timeout_seconds"),
    )
    return RemoteEmbedder(
        endpoint,
        dialect="openai",
        batch_size=chosen.batch_size,
        query_prompt=chosen.query_prompt,
        passage_prompt=chosen.passage_prompt,
    )


def _remote_reranker(settings: Settings) -> RemoteReranker | None:
    chosen, server = settings.reranker, settings.gpu_server
    if chosen.api_url is None and server.url is None:
        return None
    from gpu_server.client import RemoteReranker

    if chosen.api_url is None:
        return RemoteReranker(_gpu_server(settings), dialect="native")
    endpoint = Endpoint(
        chosen.api_url,
        chosen.api_model or _asked(settings.models.reranker),
        chosen.api_key.get_secret_value() if chosen.api_key else None,
        timeout=server.timeout_seconds,
        retries=server.retries,
        backoff_factor=server.backoff_factor,
        names=SettingNames("RERANKER_API_URL", "RERANKER_API_KEY", "reranker.api_model", "gpu_server.timeout_seconds"),
    )
    return RemoteReranker(endpoint, dialect=chosen.api_dialect)


def _gpu_server(settings: Settings) -> Endpoint:
    server = settings.gpu_server
    assert server.url is not None
    return Endpoint(
        server.url,
        api_key=server.token.get_secret_value() if server.token else None,
        timeout=server.timeout_seconds,
        retries=server.retries,
        backoff_factor=server.backoff_factor,
        names=SettingNames("GPU_SERVER_URL", "GPU_SERVER_TOKEN", "the server's models", "gpu_server.timeout_seconds"),
    )


def _asked(local_name: str) -> str | None:
    """EMBEDDING_MODEL and RERANKER_MODEL name the model at the endpoint too; `starter` names one of ours only."""
    return None if local_name == "starter" else local_name


def remote_chat(settings: Settings, model: str | None = None) -> OpenAIChat | None:
    """The language model at `llm.base_url`, None without one; another model of the same server where one is named."""
    llm = settings.llm
    if not llm.base_url:
        return None
    return OpenAIChat(llm.base_url, model or llm.model, _revealed(llm.api_key), llm.timeout_seconds, llm.retries)


def document_readers(settings: Settings) -> MediaReaders:
    """Who reads scans and recordings: the endpoints of the settings, nobody where they name none."""
    ocr, speech = settings.ocr, settings.speech
    return media_readers(
        page_reader(
            ocr.base_url,
            model=ocr.model,
            api_key=_revealed(ocr.api_key),
            timeout_seconds=ocr.timeout_seconds,
            retries=ocr.retries,
            max_pages=ocr.max_pages,
            parallel=ocr.parallel,
            max_tokens=ocr.max_tokens,
        ),
        transcriber(
            speech.base_url,
            model=speech.model,
            api_key=_revealed(speech.api_key),
            language=speech.language,
            timeout_seconds=speech.timeout_seconds,
            retries=speech.retries,
        ),
    )


def _revealed(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def llm_sentence(settings: Settings, chat: ChatModel | None) -> str:
    """Who writes the answers, in words."""
    if settings.llm.local_model:
        return f"Answers come from {settings.llm.local_model}, run in this process."
    if chat is not None and settings.llm.base_url:
        return f"Answers come from {settings.llm.model or 'the first model'} at {shown_address(settings.llm.base_url)}."
    return "No language model is configured: answers quote the best sentences. Set VLLM_BASE_URL to have them written."


def _remote_status(model: RemoteEmbedder | RemoteReranker, live: bool) -> ModelStatus:
    known = model.server.status
    told = model.server.report() if live and known.state == "remote" else {}
    return _status({**told, **asdict(known), "where": "http"}, known.info)


def _status(values: Mapping[str, Any], info: ModelInfo | None) -> ModelStatus:
    """The fields that a slot's status, a server's report and the model's own description have under the same names."""
    known = {**values, **{key: value for key, value in (asdict(info) if info else {}).items() if value is not None}}
    return ModelStatus(**{field.name: known[field.name] for field in fields(ModelStatus) if field.name in known})
