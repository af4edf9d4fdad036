"""What lives as long as the process: settings, models, store, traces, jobs. Built once, started and stopped by the app.

`get()` builds it once also without the app's lifespan (tests, commands). Pages, the API and the command line all ask queries
through `submit_query`, so that every query is a job with a trace.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deployment
import models
import variants
from answer_cache import AnswerCache
from collectors.alerts import Alerts
from collectors.history import History
from collectors.notify import Notifier
from collectors.sweep import Sweep
from deployment import Deployment
from gpu_server.errors import EngineError
from gpu_server.interfaces import ChatModel
from gpu_server.model_pool import ModelPool
from gpu_server.probes import Probe
from investigation import Investigation
from jobs import Job, Jobs, JobsFull
from latency.experiments.experiments import ExperimentStore
from latency.lab import Variant
from latency.otlp.receiver import Receiver
from latency.readings.store import ReadingStore
from latency.types import Baseline
from library import IngestSummary, Knowledge, Library, open_store
from models import ModelStatus
from rag.chat import OpenAIChat
from rag.errors import RagError
from rag.hyde_history import HydeHistory
from rag.options import checked
from rag.otlp import exporter
from rag.query import Clients, Control, Prompts, answer
from rag.semantic_cache import SemanticCache
from rag.trace import Tracing
from rag.trace_store import TraceStore
from rag.types import Answer, Event, Options, Problem
from settings import VERSION, Settings, load, save_edited

DAY_SECONDS = 86_400.0
MEND_SECONDS = 5.0
STARTING_SECONDS = 20.0
LONGEST_MEND_SECONDS = 300.0
FAILED_SECONDS = 5.0  # how long settings with which nothing could be built are not tried again
ROOT = Path(__file__).parent
SAMPLES = ROOT / "samples" / "field-guide"

# What takes effect with the next query and gives nothing away
CHANGEABLE = frozenset(
    {
        "llm.model",
        "llm.hyde_model",
        "llm.default_hyde",
        "llm.temperature",
        "llm.max_tokens",
        "llm.hyde_max_tokens",
        "llm.context_tokens",
        "llm.answer_prompt",
        "llm.hyde_prompt",
        "reranker.top_k",
        "reranker.return_k",
    }
)

log = logging.getLogger("ragdeck")


@dataclass(frozen=True, slots=True)
class Status:
    """What the process has ready. `store` is why the passage store cannot be used, None when it can (or nobody has tried yet).

    `notices` are settings that are in force nowhere, one sentence each.
    """

    version: str
    models: tuple[ModelStatus, ...]
    llm: str
    store: Problem | None
    warming: bool
    notices: tuple[str, ...]
    sample_job: Job[IngestSummary] | None


class Runtime:
    """One process's RAG Deck. Thread-safe."""

    def __init__(self, settings: Settings, url: str | None = None) -> None:
        """`url` is where this process serves, told to other processes that find the embedded store held."""
        self.settings = settings
        self.url = url
        _export_offline(settings)
        self.deployment = Deployment(settings, url)  # before anything is opened: entries that cannot be end it here
        self.jobs = Jobs(limits=_limits(settings))
        self.traces = TraceStore(settings.data_dir / "traces.db", capture_content=settings.traces.capture_content)
        self.hyde_history = HydeHistory(self.traces.path)
        self._tracing = Tracing(
            exporter=exporter(settings.traces.otlp_endpoint), capture_content=settings.traces.capture_content, version=VERSION
        )
        self.pool = ModelPool()
        self.models = models.build(settings, self.pool)
        self._chat = self.models.chat or models.remote_chat(settings)
        self.store = open_store(settings, url)
        self.library = Library(
            settings, self.store, self.models.embedder, self.jobs, SAMPLES, readers=models.document_readers(settings)
        )
        self._answer_cache = AnswerCache(settings, self.store, self.models)
        self.investigation = Investigation(settings, self.traces, self.deployment.sweep)
        self._warm = threading.Event()
        self._ending = threading.Event()
        self._started = False
        self._stopped = False
        self._lock = threading.Lock()
        for notice in self._notices():
            log.warning(notice)

    # 1) start and stop

    def start(self) -> None:
        """Load and warm the models, open the store and fill an empty one with the samples, all in the background. Once."""
        with self._lock:
            if self._started:
                return
            self._started = True
        self.deployment.start()
        self.investigation.start()
        threading.Thread(target=self._prepare, name="warm-up", daemon=True).start()

    def _prepare(self) -> None:
        try:
            if self.settings.models.preload:
                self.pool.warm_up()
                threading.Thread(target=self._mend, args=(self.models.greet(),), name="mend", daemon=True).start()
            self.library.prepare()
            self._answer_cache.prepare()
            threading.Thread(target=self._prune_daily, name="prune-traces", daemon=True).start()
            if isinstance(self._chat, OpenAIChat):
                self._greet(self._chat)
        finally:
            gc.collect()
            gc.freeze()  # the models' objects are never garbage: later collections need not look at them
            self._warm.set()

    def _mend(self, well: bool) -> None:
        """Try remote models again that were away at the start, ever more rarely: they may come up without a restart here."""
        wait = MEND_SECONDS
        while not well and not self._ending.wait(wait):
            wait = min(2 * wait, LONGEST_MEND_SECONDS)
            well = self.models.greet()
            if self.library.problem is not None:
                self.library.prepare()

    def _prune_daily(self) -> None:
        """Delete traces older than `traces.keep_days`, now and once a day; nothing without the setting."""
        days = self.settings.traces.keep_days
        while days is not None:
            try:
                before = time.time() - days * DAY_SECONDS
                gone = self.traces.delete_before(before)
                self.investigation.forget_before(before)
                log.info("deleted %d traces older than %d days", gone, days)
            except RagError as problem:
                log.warning("old traces could not be deleted: %s", problem.message)
            if self._ending.wait(DAY_SECONDS):
                return

    def _greet(self, chat: OpenAIChat) -> None:
        try:
            chat.model()
        except RagError as problem:
            log.warning("the language model at %s: %s. %s", problem.address, problem.message, problem.next_step)

    @property
    def stopped(self) -> bool:
        return self._stopped

    def wait_warm(self, timeout: float | None = None) -> bool:
        """Wait until models are warm and the store is open; False when `timeout` seconds passed first."""
        return self._warm.wait(timeout)

    def stop(self) -> None:
        """End the jobs, write what is pending, close the stores. Once."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
        self._ending.set()
        self.library.stop()
        if not self.jobs.stop(10.0):
            log.warning("some jobs did not end within 10 s")
        if self._started:  # closing models and store while they still open would end the process with abort()
            self._warm.wait(STARTING_SECONDS)
        self.investigation.stop()
        self.deployment.stop()
        self._answer_cache.close()
        self.library.close()
        self.store.close()
        if isinstance(self._chat, OpenAIChat):
            self._chat.close()
        self.models.close()
        self.pool.stop()
        if not self.traces.close():
            log.error("not every trace could be written: %s", self.traces.health())
        self._tracing.shutdown()

    # 2) queries

    def submit_query(
        self,
        question: str,
        options: Options | None = None,
        *,
        remote_parent: str | None = None,
        origin: str = "ask",
        variant: Variant | None = None,
    ) -> Job[Answer]:
        """Ask. `origin` is who asks (`rag.types.Answer`); `variant` has other models than those in force.

        Raises RagError bad_input for a question or options that cannot be, overloaded when too many queries run.
        """
        options = checked(options or self.default_options(), question, self.settings.query.max_question_chars)
        clients = variant.clients if variant else self.clients()

        def work(job: Job[Answer]) -> Generator[Event, None, Answer]:
            control = Control(job.cancelled, job.deadline, remote_parent, origin)
            with self.investigation.watching() as keep_readings:
                done = yield from answer(question, options, clients, control)
                self.traces.save(done.answer, done.spans)
                self.deployment.own.answered(done.answer)
                keep_readings(done.answer)
            self.investigation.look_without_hyde(done)
            kind = "failed" if done.answer.outcome == "failed" else "finished"
            yield {"type": kind, "answer": done.answer.to_json()}
            return done.answer

        try:
            return self.jobs.submit("query", question[:200], work, self.settings.query.deadline_seconds)
        except JobsFull as full:
            self.deployment.own.refused()
            raise RagError(str(full), kind="overloaded", next_step="Wait for one to end, or raise query.max_running.") from None

    def default_options(self) -> Options:
        """What the settings say where a caller says nothing."""
        settings = self.settings
        return Options(
            hyde=settings.llm.default_hyde,
            candidates=settings.reranker.top_k,
            keep=settings.reranker.return_k,
            rerank=settings.reranker.enabled,
        )

    def clients(self) -> Clients:
        """What the path calls with the settings in force."""
        settings = self.settings
        return Clients(
            embedder=self.models.embedder,
            reranker=self.models.reranker,
            chat=self._chat,
            store=self.store,
            tracing=self._tracing,
            prompts=Prompts(
                answer=settings.llm.answer_prompt,
                hyde=settings.llm.hyde_prompt,
                temperature=settings.llm.temperature,
                max_tokens=settings.llm.max_tokens,
                hyde_max_tokens=settings.llm.hyde_max_tokens,
                context_tokens=settings.llm.context_tokens,
                timeout=settings.llm.timeout_seconds,
                hyde_model=settings.llm.hyde_model,
            ),
            fingerprint={"version": VERSION, "settings": settings.fingerprint()},
            hyde_history=self.hyde_history,
            cache=self.cache,
            cache_off=self.cache_off,
        )

    @property
    def cache(self) -> SemanticCache | None:
        """Answers that are given again; None where the settings want none, and `cache_off` says why."""
        return self._answer_cache.cache

    @property
    def cache_off(self) -> str:
        return self._answer_cache.off

    @property
    def chat(self) -> ChatModel | None:
        """The language model that is configured."""
        return self._chat

    def variant(self, changes: Mapping[str, Any]) -> AbstractContextManager[Variant]:
        """Other models for a while, for queries that measure; see `latency.lab.Lab`."""
        return variants.variant(self.settings, self.clients(), changes)

    def baseline(self, *, before: float | None = None) -> Baseline:
        """What is usual here, from stored queries (before that time, Unix seconds)."""
        return self.investigation.baseline(before=before)

    def change(self, changes: Mapping[str, Any]) -> None:
        """Write settings that pages may change (`CHANGEABLE`) to edited.toml and put them in force for the next query.

        Raises SettingsError, with nothing written, for a bad value or a key that a stronger source decides; RagError for a key
        that is not for pages: an address changed on a page would be sent the key that the environment holds.
        """
        refused = sorted(set(changes) - CHANGEABLE)
        if refused:
            raise RagError(
                f"{', '.join(refused)} cannot be changed on a page",
                kind="bad_input",
                next_step="Set it in the environment or dashboard.toml and start again.",
            )
        with self._lock:
            self.settings = save_edited(self.settings, changes)
            if "llm.model" in changes and self.models.chat is None:
                self._chat = models.remote_chat(self.settings)
        log.info("settings changed on a page: %s", ", ".join(sorted(changes)))

    def add_machine(self, entry: Mapping[str, Any]) -> None:
        """Watch one more machine from now on, kept in edited.toml. Raises SettingsError, RagError, with nothing written."""
        with self._lock:
            self._put({"machines": deployment.with_machine(self.settings, entry)})

    def change_alert_rules(self, changes: Mapping[str, Mapping[str, Any]]) -> None:
        """Change rules by id, kept in edited.toml, in force with the next reading. Raises SettingsError, RagError."""
        with self._lock:
            self._put({"alerts.rules": deployment.with_rules(self.settings, changes) or None})

    def _put(self, changes: Mapping[str, Any]) -> None:
        self.settings = save_edited(self.settings, changes)
        self.deployment.apply(self.settings)

    # 3) documents

    def submit_ingest(self, paths: Sequence[Path], collection: str | None = None, label: str | None = None) -> Job[IngestSummary]:
        """Ingest files and folders as a job; see `library.Library.submit`."""
        return self.library.submit(paths, collection, label)

    def remove_document(self, document_id: str, collection: str | None = None) -> int:
        """Delete a document's passages; returns how many."""
        return self.library.remove(document_id, collection)

    def knowledge(self) -> Knowledge:
        return self.library.knowledge()

    def save_upload(self, name: str, data: bytes) -> Path:
        """Keep an uploaded file under the data folder, by its own name, for ingestion."""
        return self.library.save_upload(name, data)

    # 4) the deployment

    def remove_machine(self, name: str, *, forget: bool = False) -> None:
        """Watch a machine no more that was added on a page; `forget` deletes its history too. Raises SettingsError, RagError."""
        with self._lock:
            self._put({"machines": deployment.without_machine(self.settings, name) or None})
        if forget:
            self.deployment.forget(name)

    @property
    def sweep(self) -> Sweep:
        return self.deployment.sweep

    @property
    def history(self) -> History:
        return self.deployment.history

    @property
    def alerts(self) -> Alerts:
        return self.deployment.alerts

    @property
    def notifier(self) -> Notifier:
        return self.deployment.notifier

    # 5) the investigation

    @property
    def readings(self) -> ReadingStore:
        return self.investigation.readings

    @property
    def experiments(self) -> ExperimentStore:
        return self.investigation.experiments

    @property
    def receiver(self) -> Receiver | None:
        """Takes the spans of other programs; None where the settings say not to."""
        return self.investigation.receiver

    # 6) status

    def test_model(self, kind: str) -> Probe:
        """Try the embedder or the reranker with one text or pair, past every cache. Raises RagError."""
        return self._tried(lambda: self.models.probe(kind))

    def reload_model(self, kind: str) -> Probe:
        """Load the model anew, or find out anew what its server serves, and try it. Raises RagError."""
        return self._tried(lambda: self.models.reload(kind))

    def _tried(self, trial: Callable[[], Probe]) -> Probe:
        try:
            return trial()
        except EngineError as problem:
            raise RagError(problem.message, kind=problem.kind, address=problem.address, next_step=problem.next_step) from problem
        except LookupError as problem:
            raise RagError(str(problem), kind="not_found", next_step="Switch it on in the settings.") from None

    def _notices(self) -> tuple[str, ...]:
        """What is in force nowhere, or will be lost: said, so that nobody waits for it."""
        return tuple(self.deployment.problems)

    def status(self, *, live: bool = False) -> Status:
        """`live` also asks our GPU servers for what only they know of their models (queue, memory), 2 s each at most."""
        return Status(
            version=VERSION,
            models=self.models.status(live=live),
            llm=models.llm_sentence(self.settings, self._chat),
            store=self.library.problem,
            warming=self._started and not self._warm.is_set(),
            notices=self._notices(),
            sample_job=self.library.sample_job,
        )


_current: Runtime | None = None
_failed: tuple[Settings, float, Exception] | None = None
_building = threading.Lock()


def get(url: str | None = None) -> Runtime:
    """The process's runtime, built from the settings at the first call. Raises SettingsError, RagError.

    Every request asks, also those without a token: what could not be built is not tried again at each of them, since a try
    opens files and connections.
    """
    global _current
    with _building:
        if _current is None:
            _current = _built(load(), url)
        return _current


def _built(settings: Settings, url: str | None) -> Runtime:
    global _failed
    if _failed is not None and _failed[0] == settings and time.monotonic() - _failed[1] < FAILED_SECONDS:
        raise _failed[2].with_traceback(None)
    try:
        return Runtime(settings, url)
    except Exception as problem:
        _failed = settings, time.monotonic(), problem
        raise


def started(url: str | None = None) -> Runtime:
    """`get()` and start it: for servers, where settings that were wrong at the start may have been corrected since."""
    running = get(url)
    running.start()
    return running


def shut_down() -> None:
    """Stop the process's runtime, if there is one; the next `get` builds a new one."""
    global _current
    with _building:
        running, _current = _current, None
    if running is not None:
        running.stop()


def _limits(settings: Settings) -> dict[str, int]:
    """Most jobs of a kind that run at once."""
    alone = ("experiment", "evaluation", "calibration", "duplicates", "validation")
    return {"query": settings.query.max_running, "inspect": settings.query.max_running, **dict.fromkeys(alone, 1)}


def _export_offline(settings: Settings) -> None:
    """transformers and huggingface_hub read only the environment: hand on what `.env` or the file says."""
    offline = settings.offline
    for name, wanted in (
        ("HF_HUB_OFFLINE", offline.hf_hub_offline),
        ("TRANSFORMERS_OFFLINE", offline.transformers_offline),
        ("HF_DATASETS_OFFLINE", offline.hf_datasets_offline),
    ):
        if wanted:
            os.environ[name] = "1"
