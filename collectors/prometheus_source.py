"""A Prometheus server as a source of readings: node_exporter, dcgm-exporter and vLLM on all machines by seven queries in all.

`PrometheusSource.read` asks, `machines` turns the answers into readings, keyed by machine. Metric names are those that
node_exporter 1.x and dcgm-exporter 3 and 4 have by default, and vLLM's of `vllm_metrics`. Knows no SSH and no alert.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from collectors import prometheus_gpus, prometheus_hosts
from collectors.attempt import Attempt
from collectors.readings import Fault, Filesystems, Gpus, Host, Record
from collectors.services import Service, ServiceError
from collectors.vllm_metrics import COUNTERS, GAUGES, HISTOGRAMS, SHARES, Engine, Row, engine_of, sample_of

ANSWER_BYTES = 64 * 1024 * 1024  # 500 machines are about 20 MB
FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class MachineReading(Record):
    """What Prometheus knows of one machine; None where no exporter tells it. `age_seconds` is that of its latest scrape."""

    name: str
    age_seconds: float | None = None
    host: Host | None = None
    filesystems: Filesystems | None = None
    gpus: Gpus | None = None
    engines: tuple[Engine, ...] | None = None
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class PrometheusSource:
    """`server` is a Service of kind `http` whose url is Prometheus' (with a path prefix where it has one).

    `machine_label` names the label that tells machines apart; a port at its end is cut off, so that several exporters of one
    machine come together. `window_seconds` is what rates are taken over: at least two scrapes must lie in it.
    """

    server: Service
    machine_label: str = "instance"
    window_seconds: int = 120

    def read(self) -> dict[str, MachineReading]:
        """Every machine that Prometheus watches. Raises ServiceError; `timeout_seconds` bounds all queries together."""
        attempt = Attempt(self.server, time.monotonic() + self.server.timeout_seconds)
        queries = queries_of(self.machine_label, self.window_seconds)
        answers = {name: query(attempt, text) for name, text in queries.items()}
        return machines(answers, self.machine_label, self.window_seconds)


def queries_of(label: str, window_seconds: int) -> dict[str, str]:
    """The queries by name."""
    engine_counters = [name for names in COUNTERS.values() for name in names]
    engine_buckets = [f"{name}_bucket" for names in HISTOGRAMS.values() for name in names]
    grown = f"increase(NAME[{window_seconds}s])"
    return {
        "scrapes": _tagged({"up": f"max by ({label}, job) (up)", "age": f"min by ({label}, job) (time() - timestamp(up))"}),
        "node": _named(prometheus_hosts.GAUGES),
        "node_rates": _tagged(prometheus_hosts.rate_queries(label, window_seconds)),
        "gpus": _named(prometheus_gpus.NAMES),
        "engines": _named([name for names in (*GAUGES.values(), *SHARES.values()) for name in names]),
        "engine_counters": _tagged(
            {name: f"sum by ({label}, model_name) ({grown.replace('NAME', name)})" for name in engine_counters}
        ),
        "engine_buckets": _tagged(
            {name: f"sum by ({label}, model_name, le) ({grown.replace('NAME', name)})" for name in engine_buckets}
        ),
    }


def query(attempt: Attempt, text: str) -> list[Row]:
    """An instant query: (name or tag, labels, value) of each series. Raises ServiceError."""
    answer = attempt.send(
        "POST", attempt.root("/api/v1/query"), urlencode({"query": text}).encode(), FORM, limit_bytes=ANSWER_BYTES
    )
    if answer.status in (400, 422, 503) and (said := _error(answer.body)):
        raise ServiceError("server_error", f"Prometheus refused a query: {said}")
    data = attempt.read(answer)
    result = data.get("data", {}) if isinstance(data, Mapping) and data.get("status") == "success" else None
    if not isinstance(result, Mapping) or result.get("resultType") != "vector" or not isinstance(result.get("result"), list):
        raise ServiceError("bad_answer", "what answers is no Prometheus server")
    return list(_series(result["result"]))


def machines(answers: Mapping[str, Iterable[Row]], label: str, window_seconds: float) -> dict[str, MachineReading]:
    """Readings by machine, of the answers to `queries_of`."""
    by_machine: dict[str, dict[str, list[Row]]] = {}
    for query_name, rows in answers.items():
        for row in rows:
            if name := machine_name(row[1].get(label, "")):
                by_machine.setdefault(name, {}).setdefault(query_name, []).append(row)
    return {name: _machine(name, rows, label, window_seconds) for name, rows in sorted(by_machine.items())}


def machine_name(value: str) -> str:
    """A label's value without the port at its end; an IPv6 address without its brackets."""
    head, colon, port = value.rpartition(":")
    if colon and port.isdecimal() and (":" not in head or head.startswith("[")):
        value = head
    return value.removeprefix("[").removesuffix("]")


def _machine(name: str, rows: Mapping[str, list[Row]], label: str, window_seconds: float) -> MachineReading:
    node, rates = rows.get("node", []), rows.get("node_rates", [])
    scrapes = rows.get("scrapes", [])
    ages = [value for kind, _, value in scrapes if kind == "age"]
    return MachineReading(
        name,
        age_seconds=max(0.0, min(ages)) if ages else None,
        host=prometheus_hosts.host(node, rates, window_seconds) if node else None,
        filesystems=prometheus_hosts.filesystems(node) if node else None,
        gpus=prometheus_gpus.gpus(rows["gpus"]) if "gpus" in rows else None,
        engines=_engines(rows, label, window_seconds),
        faults=tuple(_down(labels, label) for kind, labels, value in scrapes if kind == "up" and value == 0),
    )


def _down(labels: Mapping[str, str], label: str) -> Fault:
    target = labels.get(label, "")
    text = f"Prometheus cannot scrape {target} (job {labels.get('job', 'unknown')})"
    return Fault("scrape_failed", text, "See Status > Targets in Prometheus for the reason.", subject=target)


def _engines(rows: Mapping[str, list[Row]], label: str, window_seconds: float) -> tuple[Engine, ...] | None:
    """One reading for each address and model."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in (row for name in ("engines", "engine_counters", "engine_buckets") for row in rows.get(name, [])):
        found.setdefault((row[1].get(label, ""), row[1].get("model_name", "")), []).append(row)
    engines = [replace(engine_of(sample_of(each), window_seconds), name=key[0]) for key, each in sorted(found.items())]
    known = [engine for engine in engines if engine.running is not None or engine.waiting is not None]
    return tuple(known) if known else None


def _named(names: Iterable[str]) -> str:
    return '{__name__=~"' + "|".join(names) + '"}'


def _tagged(expressions: Mapping[str, str]) -> str:
    """Several expressions in one query, each under its tag: functions drop names, and series of the same labels would collide."""
    return " or ".join(f'label_replace({text}, "tag", "{tag}", "", "")' for tag, text in expressions.items())


def _series(rows: Iterable[object]) -> Iterator[Row]:
    for row in rows:
        labels = row.get("metric") if isinstance(row, Mapping) else None
        pair = row.get("value") if isinstance(row, Mapping) else None
        if not isinstance(labels, Mapping) or not isinstance(pair, list) or len(pair) != 2:
            raise ServiceError("bad_answer", "what answers is no Prometheus server")
        try:
            value = float(pair[1])
        except (TypeError, ValueError):
            continue
        if math.isfinite(value):
            plain = {str(key): str(text) for key, text in labels.items()}
            yield plain.get("tag") or plain.get("__name__", ""), plain, value


def _error(body: bytes) -> str | None:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return None
    said = data.get("error") if isinstance(data, Mapping) else None
    return said if isinstance(said, str) else None
