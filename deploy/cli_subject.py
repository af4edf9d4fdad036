"""What the command `validate` and the page Readiness share: settings as a `Subject`, a runtime as a `Process`."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
from pydantic import SecretStr

import models
from collectors.readings import Gpus
from collectors.services import Service
from deploy.validation import kept, runner
from deploy.validation.checks import chosen
from deploy.validation.subject import QUESTION, LocalModel, OwnServer, Subject, Targets
from deploy.validation.types import Report
from deploy.validation.world import World
from deployment import inventory
from gpu_server.interfaces import Embedder, Reranker
from gpu_server.model_pool import ModelPool
from jobs import Event, Job, JobsFull
from parts import endpoints
from rag.chat import OpenAIChat
from rag.errors import HeldError, RagError
from rag.media import page_reader, transcriber
from rag.store import CollectionInfo
from runtime import ROOT, Runtime
from settings import VERSION, Settings

ASK_SECONDS = 300.0
PROBE_SECONDS = 60.0
JOB_KIND = "validation"
# R4: 3 to 5 users at once on one A100, 10 to 15 on 8×H100 80 GB; the lower ends
USERS, USERS_LARGE = 3, 10
LARGE_GPUS, LARGE_GPU_BYTES = 8, 79e9  # of nominal 80 GB, a driver tells 85.0e9 to 85.9e9 bytes


# 1) the settings


def targets(settings: Settings, gpus: Iterable[Gpus] = ()) -> Targets:
    """What these settings call acceptable. Where they do not say how many users, the watched machines' `gpus` decide."""
    wanted = settings.readiness
    users = wanted.users or (USERS_LARGE if any(_is_large(each) for each in gpus) else USERS)
    return Targets(wanted.answer_seconds, wanted.first_token_seconds, users, wanted.evidence_days, wanted.query_days)


def _is_large(read: Gpus) -> bool:
    """Whether a machine is of the size of R4's second: eight GPUs of 80 GB."""
    return sum((gpu.memory_total_bytes or 0) >= LARGE_GPU_BYTES for gpu in read.gpus or ()) >= LARGE_GPUS


def subject(settings: Settings, *, question: str = QUESTION, limits: Targets | None = None, root: Path = ROOT) -> Subject:
    """What these settings describe. Raises RagError bad_input for entries that cannot be."""
    known = inventory(settings)
    token = _secret(settings.server.token)
    ocr, speech = settings.ocr, settings.speech
    return Subject(
        root=root,
        data_dir=settings.data_dir,
        version=VERSION,
        path_services=(*endpoints(settings), *_more(settings)),
        watched=tuple(each.service for each in known.services),
        machines=known.machines,
        own=(
            OwnServer("dashboard", settings.server.host, settings.server.port, token),
            OwnServer("query API", settings.api.host, settings.api.port, token),
        ),
        addresses=addresses(settings),
        local_models=local_models(settings),
        offline={
            "HF_HUB_OFFLINE": settings.offline.hf_hub_offline,
            "TRANSFORMERS_OFFLINE": settings.offline.transformers_offline,
            "HF_DATASETS_OFFLINE": settings.offline.hf_datasets_offline,
        },
        device=settings.models.device,
        llm_url=None if settings.llm.local_model else settings.llm.base_url,
        gpu_server_url=settings.gpu_server.url,
        milvus_url=settings.milvus.uri,
        page_reader=page_reader(
            ocr.base_url, model=ocr.model, api_key=_secret(ocr.api_key), timeout_seconds=ocr.timeout_seconds, retries=0
        ),
        transcriber=transcriber(
            speech.base_url,
            model=speech.model,
            api_key=_secret(speech.api_key),
            language=speech.language,
            timeout_seconds=speech.timeout_seconds,
            retries=0,
        ),
        question=question,
        targets=limits or targets(settings),
    )


def _more(settings: Settings) -> tuple[Service, ...]:
    """What the path uses besides models and store: Redis, and the readers of scans and recordings."""
    found = []
    if settings.redis.url:
        found.append(Service("redis", "redis", settings.redis.url.get_secret_value()))
    for name, kind, table in (("ocr", "ocr", settings.ocr), ("speech", "whisper", settings.speech)):
        if table.base_url:
            seconds = min(PROBE_SECONDS, table.timeout_seconds)
            service = Service(name, "ocr", table.base_url, table.model, _secret(table.api_key), timeout_seconds=seconds)
            found.append(service if kind == "ocr" else replace(service, kind="whisper"))
    return tuple(found)


def local_models(settings: Settings) -> tuple[LocalModel, ...]:
    """The models that run in this process."""
    chosen, found = settings.models, []
    if settings.embeddings.base_url is None and settings.gpu_server.url is None:
        found.append(LocalModel("embedder", chosen.embedder))
    if settings.reranker.enabled and settings.reranker.api_url is None and settings.gpu_server.url is None:
        found.append(LocalModel("reranker", chosen.reranker))
    if settings.llm.local_model:
        found.append(LocalModel("llm", settings.llm.local_model))
    return tuple(found)


def addresses(settings: Settings) -> Mapping[str, str]:
    """Every url of the settings by the setting's name, without user, password and query."""
    redis = settings.redis.url.get_secret_value() if settings.redis.url else None
    named = {
        "GPU_SERVER_URL": settings.gpu_server.url,
        "EMBEDDING_BASE_URL": settings.embeddings.base_url,
        "RERANKER_API_URL": settings.reranker.api_url,
        "VLLM_BASE_URL": settings.llm.base_url,
        "OCR_BASE_URL": settings.ocr.base_url,
        "WHISPER_BASE_URL": settings.speech.base_url,
        "MILVUS_URI": settings.milvus.uri,
        "REDIS_URL": None if redis is None or redis.startswith("unix") else redis,
        "OTEL_EXPORTER_OTLP_ENDPOINT": settings.traces.otlp_endpoint,
    }
    found = {name: bare(url) for name, url in named.items() if url}
    for each in inventory(settings).services:
        found[f"service {each.service.name} ({each.service.kind})"] = each.service.address
    return found


def bare(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() if value else None


# 2) a run as a job


def submit(running: Runtime, codes: Sequence[str] = (), *, question: str = QUESTION) -> Job[Report]:
    """Run the checks of these codes (all without any) as a job of the runtime; the report is kept at its end, also of those that
    ran until it was cancelled. Events as `runner.run` has them. Raises RagError: `overloaded` while one runs, `bad_input`."""
    checks = chosen(codes)
    if any(not job.done for job in running.jobs.recent(JOB_KIND)):
        raise RagError("a validation is running already", kind="overloaded", next_step="Wait for its end, or stop it.")
    what = subject(running.settings, question=question)

    def work(job: Job[Report]) -> Generator[Event, None, Report]:
        world = World(what, lambda: RunningProcess(running))
        made = yield from runner.run(world, checks, job.cancelled.is_set)
        return kept.save(what.data_dir, made)

    try:
        return running.jobs.submit(JOB_KIND, "Validation", work)
    except JobsFull as full:
        raise RagError(str(full), kind="overloaded", next_step="Wait for its end.") from None


# 3) the process


class RunningProcess:
    """See `subject.Process`: a runtime of this process."""

    where = "in this process"

    def __init__(self, running: Runtime) -> None:
        self._running = running

    @property
    def embedder(self) -> Embedder | None:
        return self._running.models.embedder

    @property
    def reranker(self) -> Reranker | None:
        return self._running.models.reranker

    @property
    def chat_address(self) -> str | None:
        chat = self._running.chat
        return chat.address if isinstance(chat, OpenAIChat) else None

    def collections(self) -> tuple[CollectionInfo, ...]:
        running = self._running
        return running.store.collections(running.store.collection_name(running.models.embedder.info))

    def ask(self, question: str) -> Mapping[str, Any]:
        options = replace(self._running.default_options(), caches="bypass")
        job = self._running.submit_query(question, options, origin="measure")
        if not job.wait(ASK_SECONDS) or job.result is None:
            job.cancel()
            step = "Look at the page Queries: it shows the stage that it hangs in."
            raise RagError(f"the query did not end within {ASK_SECONDS:.0f} s", kind="timeout", next_step=step)
        return job.result.to_json()


class ServerProcess:
    """See `subject.Process`: another process of ours that has the embedded store open and serves at `url`. Its models and its
    store are seen through its answers alone, but models behind HTTP can be asked from here too."""

    reranker: Reranker | None = None
    chat_address: str | None = None

    def __init__(self, held: HeldError, settings: Settings) -> None:
        self._held = held
        self._token = _secret(settings.server.token)
        self.embedder: Embedder | None = models.embedder_of(settings, ModelPool())[1]

    @property
    def where(self) -> str:
        return f"at {self._held.url}"

    def collections(self) -> tuple[CollectionInfo, ...]:
        raise self._held

    def ask(self, question: str) -> Mapping[str, Any]:
        headers = {"x-ragdeck-origin": "measure"} | ({"Authorization": f"Bearer {self._token}"} if self._token else {})
        body = {"query": question, "caches": "bypass"}
        try:
            answer = httpx.post(f"{self._held.url}/api/v1/ask", json=body, headers=headers, timeout=ASK_SECONDS)
            data = answer.json()
        except (httpx.HTTPError, ValueError) as problem:
            step = "Look at the log of the process that has the store open."
            message = f"the query API there did not answer: {type(problem).__name__}"
            raise RagError(message, kind="connection", address=self._held.url, next_step=step) from None
        if isinstance(data, dict) and "outcome" in data:
            return data
        error = data.get("error") if isinstance(data, dict) else None
        said = error if isinstance(error, dict) else {}
        message = str(said.get("message") or f"it answered {answer.status_code}")
        raise RagError(message, kind="bad_answer", address=self._held.url, next_step=str(said.get("next_step") or ""))
