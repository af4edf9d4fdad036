"""vLLM's own view of a request: waiting in its queue, prefill (reading the prompt), decode (writing the answer). Pure.

Three ways, the surest first. 1) A server span that joined the trace: vLLM with `--otlp-traces-endpoint` sends one span a request,
`llm_request`, with these times as attributes. 2) What the path itself was told, on the interval's facts. 3) The growth of the
server's sums between a look at its metrics before the stage and one after it, only when nobody else was served in between: the
request counter grew by one and never more than one request ran. Otherwise the split is unknown, and says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from latency.types import Case, Fact, QueryReadings, Series
from rag.otlp import SpanRecord
from rag.types import Interval

STAGES = ("hyde", "generate")
SLACK_SECONDS = 0.1  # by which the server's times may exceed the stage's: clocks and rounding

_PREFIX = "gen_ai.latency."
_QUEUE, _PREFILL, _DECODE = f"{_PREFIX}time_in_queue", f"{_PREFIX}time_in_model_prefill", f"{_PREFIX}time_in_model_decode"
_FIRST_TOKEN, _END_TO_END = f"{_PREFIX}time_to_first_token", f"{_PREFIX}e2e"
_FACTS = ("server_queue_seconds", "server_prefill_seconds", "server_decode_seconds")
_SUMS = ("engine.queue_seconds_total", "engine.prefill_seconds_total", "engine.decode_seconds_total")
_REQUESTS = "engine.requests_total"
_LOOPBACK = {"localhost": "127.0.0.1", "::1": "127.0.0.1"}


class ServerSplit(NamedTuple):
    """Seconds of one stage inside the model server; all None when they are not known, and `reason` says why not.

    `source` is `span SPAN_ID`, `facts`, or `metrics of SERVICE`. What of the stage's time is in none of the three was spent
    between the two programs, or in the server before and after the engine.
    """

    stage: str
    queue: float | None = None
    prefill: float | None = None
    decode: float | None = None
    source: str | None = None
    reason: str | None = None

    @property
    def known(self) -> bool:
        return self.source is not None

    @property
    def seconds(self) -> float:
        """All that is known together."""
        return sum(part or 0.0 for part in (self.queue, self.prefill, self.decode))


def server_splits(case: Case) -> tuple[ServerSplit, ...]:
    """One for each stage that asked a language model over HTTP, and for others whose split is known all the same."""
    found = (server_split(case, stage) for stage in STAGES)
    return tuple(each for each in found if each.known or ((stage := case.stage(each.stage)) and stage.where == "http"))


def server_split(case: Case, stage: str = "generate") -> ServerSplit:
    """The split of one of STAGES, by the surest way there is."""
    known, intervals = case.stage(stage), case.intervals(stage)
    if known is None or not intervals:
        return ServerSplit(stage, reason="the stage did not run")
    if known.where == "in-process":
        return ServerSplit(stage, reason="the model runs in this process: the stage's own split has its times")
    if found := _of_spans(case, stage) or _of_facts(stage, intervals):
        return found
    if case.readings is None:
        return ServerSplit(stage, reason="no server span joined this trace, and there are no readings of this time")
    return _of_metrics(case, stage, intervals, case.readings)


# 1) spans


def _of_spans(case: Case, stage: str) -> ServerSplit | None:
    """The server's spans below this stage's; where a proxy left the parent out, the only one, if only one stage asked."""
    told = [span for span in case.spans if _is_server_span(span)]
    ours = {span.span_id for span in case.spans if span.stage == stage}
    below = [span for span in told if span.parent_id in ours]
    if not below:
        known = {span.span_id for span in case.spans}
        strays = [span for span in told if span.parent_id not in known]
        alone = all(case.stage(other) is None for other in STAGES if other != stage)
        below = strays if alone and len(strays) == 1 else []
    parts = [_span_parts(span.attributes) for span in below]
    if not parts:
        return None
    queue, prefill, decode = (_sum(part[index] for part in parts) for index in range(3))
    return ServerSplit(stage, queue, prefill, decode, f"span {', '.join(span.span_id for span in below)}")


def _is_server_span(span: SpanRecord) -> bool:
    return not span.stage and any(_seconds(span.attributes, name) is not None for name in (_QUEUE, _FIRST_TOKEN, _PREFILL))


def _span_parts(attributes: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    """Older versions give no prefill and decode: then these are first token less queue, and end less first token."""
    queue, prefill, decode = (_seconds(attributes, name) for name in (_QUEUE, _PREFILL, _DECODE))
    first, end = _seconds(attributes, _FIRST_TOKEN), _seconds(attributes, _END_TO_END)
    if prefill is None and first is not None and queue is not None:
        prefill = max(0.0, first - queue)
    if decode is None and first is not None and end is not None:
        decode = max(0.0, end - first)
    return queue, prefill, decode


def _seconds(attributes: Mapping[str, Any], name: str) -> float | None:
    value = attributes.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else None


# 2) facts


def _of_facts(stage: str, intervals: Sequence[Interval]) -> ServerSplit | None:
    queue, prefill, decode = (_sum(_seconds(each.facts, name) for each in intervals) for name in _FACTS)
    return None if queue is None and prefill is None and decode is None else ServerSplit(stage, queue, prefill, decode, "facts")


# 3) metrics


def _of_metrics(case: Case, stage: str, intervals: Sequence[Interval], readings: QueryReadings) -> ServerSplit:
    sources = _engines(readings, _address(case.spans, stage))
    if len(sources) != 1:
        several = "several servers' metrics are read, and which of them answered is not known"
        return ServerSplit(stage, reason=several if sources else "no metrics of the server that answered were read in this time")
    source = sources[0]
    start = min(each.start for each in intervals)
    end = max(each.start + each.seconds for each in intervals)
    looks = _looks(readings, source)
    if not looks:
        return ServerSplit(stage, reason=f"{source} gives no sums of its queue, prefill and decode times")
    before = [each for each in looks if each[0] <= start]
    after = next((each for each in looks if each[0] >= end and each[1] > (before[-1][1] if before else 0.0)), None)
    if not before or after is None:
        when = "before" if not before else "after"
        return ServerSplit(stage, reason=f"no look at the metrics of {source} shortly {when} the stage")
    return _grown(stage, readings, source, before[-1], after, end - start)


def _grown(
    stage: str, readings: QueryReadings, source: str, before: tuple[float, ...], after: tuple[float, ...], seconds: float
) -> ServerSplit:
    requests = after[1] - before[1]
    running = readings.get(source, "engine.running")
    most = max(running.within(before[0], after[0]), default=0.0) if running is not None else 0.0
    if requests != 1 or most > 1:
        others = f"{requests:.0f} requests ended" if requests != 1 else f"{most:.0f} requests ran at once"
        return ServerSplit(stage, reason=f"{source} served others too: {others} between the looks at its metrics")
    queue, prefill, decode = parts = [new - old for old, new in zip(before[2:], after[2:], strict=True)]
    if min(parts) < 0:
        return ServerSplit(stage, reason=f"{source} was started anew in this time")
    if sum(parts) > seconds + SLACK_SECONDS:
        return ServerSplit(stage, reason=f"{source} counted a longer request than this stage: another one")
    return ServerSplit(stage, queue, prefill, decode, f"metrics of {source}")


def _looks(readings: QueryReadings, source: str) -> list[tuple[float, ...]]:
    """(time, requests, queue, prefill, decode) at every time at which all of them were read."""
    series = [readings.get(source, name) for name in (_REQUESTS, *_SUMS)]
    known = [dict(zip(each.times, each.values, strict=True)) for each in series if each is not None]
    if len(known) < len(series):
        return []
    rows = [(time, *(each.get(time) for each in known)) for time in sorted(known[0])]
    return [tuple(value for value in row if value is not None) for row in rows if None not in row]


def _engines(readings: QueryReadings, address: tuple[str, int] | None) -> list[str]:
    """Sources with an engine's metrics that are at this address; where it is not known, all that have any."""
    engines = dict.fromkeys(_sources(readings.series))
    places = {fact.source: _place(fact) for fact in readings.facts if fact.name == "service.address"}
    return [source for source in engines if address is None or places.get(source) == address]


def _sources(series: Iterable[Series]) -> list[str]:
    return [each.source for each in series if each.metric in ("engine.running", _REQUESTS)]


def _address(spans: Sequence[SpanRecord], stage: str) -> tuple[str, int] | None:
    for span in spans:
        host, port = span.attributes.get("server.address"), span.attributes.get("server.port")
        if span.stage == stage and isinstance(host, str) and isinstance(port, int):
            return _LOOPBACK.get(host, host).lower(), port
    return None


def _place(fact: Fact) -> tuple[str, int] | None:
    try:
        parts = urlsplit(fact.value if "://" in fact.value else f"http://{fact.value}")
        host, port = (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None
    return _LOOPBACK.get(host, host), port


def _sum(values: Iterable[float | None]) -> float | None:
    """None when one is unknown, or there is none."""
    known = list(values)
    return None if not known or None in known else sum(value for value in known if value is not None)
