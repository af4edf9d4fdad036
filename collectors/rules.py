"""When something is worth an alert: rules over metrics, with a level to clear below the one to raise, a window and a duration.

Pure data and arithmetic. The defaults are thresholds that operators of machines and GPUs use; every number can be changed in the
settings (`[alerts.rules.ID]`). A rule speaks of a metric by pattern (`filesystem.*.used_ratio`); states such as "unit failed"
come as metrics of 0 and 1 (`unit.NAME.failed`), so that there is one kind of rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

Level = Literal["ok", "warn", "critical"]
Unit = Literal["ratio", "bytes", "celsius", "seconds", "count", "state"]

GIB = 1024**3
ORDER: tuple[Level, ...] = ("ok", "warn", "critical")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. Thresholds are in the metric's own unit; None switches that level off.

    The value compared is the mean over `window_seconds` (0: the last value). It must be past a threshold for `for_seconds`
    without a break to raise, and back past `warn_clear` or `critical_clear` (default: the threshold itself) to leave the level.
    `above` False means that low values are bad. `kinds` limits the rule to sources of these kinds (`machine`, or a service's
    kind such as `rerank`); empty means all.
    """

    id: str
    title: str
    metric: str
    unit: Unit
    next_step: str
    warn: float | None = None
    critical: float | None = None
    warn_clear: float | None = None
    critical_clear: float | None = None
    window_seconds: float = 0.0
    for_seconds: float = 0.0
    above: bool = True
    kinds: tuple[str, ...] = ()
    enabled: bool = True

    def matches(self, kind: str, metric: str) -> bool:
        return self.enabled and (not self.kinds or kind in self.kinds) and fnmatchcase(metric, self.metric)

    def threshold(self, level: Level) -> float | None:
        return {"ok": None, "warn": self.warn, "critical": self.critical}[level]

    def level(self, value: float, before: Level = "ok") -> Level:
        """The level of a value, given the level it comes from: a level is left only past its clearing threshold."""
        reached: Level = "ok"
        for level in ("warn", "critical"):
            raise_at, clear_at = self._thresholds(level)
            if raise_at is None or clear_at is None:
                continue
            held = ORDER.index(before) >= ORDER.index(level)
            if self._past(value, clear_at if held else raise_at, inclusive=not held or raise_at == clear_at):
                reached = level
        return reached

    def _thresholds(self, level: Literal["warn", "critical"]) -> tuple[float | None, float | None]:
        raise_at, clear_at = (self.warn, self.warn_clear) if level == "warn" else (self.critical, self.critical_clear)
        return raise_at, raise_at if clear_at is None else clear_at

    def _past(self, value: float, threshold: float, inclusive: bool) -> bool:
        if inclusive and value == threshold:
            return True
        return value > threshold if self.above else value < threshold


CHANGEABLE = ("enabled", "warn", "critical", "warn_clear", "critical_clear", "window_seconds", "for_seconds")

DEFAULTS = (
    Rule(
        "cpu-busy",
        "CPU busy",
        "cpu.busy_ratio",
        "ratio",
        "Look at the top processes of the machine: what else runs beside the models?",
        warn=0.85,
        warn_clear=0.75,
        critical=0.95,
        critical_clear=0.85,
        window_seconds=600,
    ),
    Rule(
        "cpu-iowait",
        "CPU waits for disks",
        "cpu.iowait_ratio",
        "ratio",
        "Look at the machine's disks: which one is busy, and is a model being loaded or a collection flushed?",
        warn=0.40,
        warn_clear=0.20,
        window_seconds=600,
    ),
    Rule(
        "memory-used",
        "Memory used",
        "memory.used_ratio",
        "ratio",
        "Look at the top processes by memory; the kernel ends one of them when nothing is left.",
        warn=0.90,
        warn_clear=0.80,
        critical=0.98,
        critical_clear=0.90,
        for_seconds=60,
    ),
    Rule(
        "filesystem-used",
        "Disk space used",
        "filesystem.*.used_ratio",
        "ratio",
        "Free space: old model caches, container images (docker system df), logs.",
        warn=0.90,
        critical=0.98,
        for_seconds=60,
    ),
    Rule(
        "filesystem-room",
        "Disk space left",
        "filesystem.*.room_bytes",
        "bytes",
        "Free space: old model caches, container images (docker system df), logs.",
        warn=5 * GIB,
        warn_clear=6 * GIB,
        above=False,
        for_seconds=60,
    ),
    Rule(
        "disk-busy",
        "Disk busy",
        "disk.*.busy_ratio",
        "ratio",
        "Look at what reads and writes; Milvus and model loading compete for the disk.",
        warn=0.98,
        warn_clear=0.90,
        window_seconds=600,
    ),
    Rule(
        "load-per-core",
        "Load per core",
        "load.per_core_15m",
        "count",
        "More wants to run than there are cores: look at the top processes.",
        warn=2.0,
        warn_clear=1.5,
    ),
    Rule(
        "unit-failed",
        "Unit failed",
        "unit.*.failed",
        "state",
        "Open the unit on the machine's page and read its last log lines (journalctl -u UNIT).",
        critical=1,
    ),
    Rule(
        "container-unhealthy",
        "Container unhealthy",
        "container.*.unhealthy",
        "state",
        "Open the container on the machine's page and read its last log lines (docker logs CONTAINER).",
        critical=1,
    ),
    Rule(
        "gpu-uncorrectable-ecc",
        "Uncorrectable memory errors",
        "gpu.*.ecc_uncorrected",
        "count",
        "Stop work on this GPU and reset it; replace it when errors come back.",
        critical=1,
    ),
    Rule(
        "gpu-row-remap-failed",
        "Row remapping failed",
        "gpu.*.row_remap_failed",
        "state",
        "The GPU cannot repair its memory any more: ask the provider for another one.",
        critical=1,
    ),
    Rule(
        "gpu-slowed",
        "GPU slowed down by heat or power",
        "gpu.*.slowed",
        "state",
        "Check cooling and the power limit; the throttle reasons on the machine's page say which.",
        warn=1,
        for_seconds=300,
    ),
    Rule(
        "gpu-hot",
        "GPU hot",
        "gpu.*.temperature_celsius",
        "celsius",
        "Check cooling and airflow; the GPU slows itself down soon.",
        warn=85,
        warn_clear=80,
        for_seconds=600,
    ),
    Rule(
        "gpu-missing",
        "GPU missing",
        "gpus.missing",
        "count",
        "A GPU that was there is gone: dmesg on the machine says why (XID, fallen off the bus); a reboot may bring it back.",
        critical=1,
    ),
    Rule(
        "fault",
        "Fault on the machine",
        "fault.*",
        "state",
        "The text says what the machine reported and what to do.",
        warn=1,
        critical=2,
    ),
    Rule(
        "collection-failing",
        "Machine cannot be read",
        "collection.failing",
        "state",
        "Test the connection on the machine's page.",
        warn=1,
        for_seconds=600,
    ),
    Rule(
        "collection-stale",
        "Readings are old",
        "collection.age_seconds",
        "seconds",
        "Something on the machine hangs: a stuck nvidia-smi, a dead disk, a lost connection.",
        warn=300,
        warn_clear=60,
    ),
    Rule(
        "collection-slow",
        "Reading the machine is slow",
        "collection.seconds",
        "seconds",
        "GPUs without persistence mode wake up for each reading: nvidia-smi -pm 1.",
        warn=5,
        warn_clear=4,
        for_seconds=60,
    ),
    Rule(
        "service-failing",
        "Service fails",
        "service.failed",
        "ratio",
        "Open the service: the message says what failed and what to check.",
        warn=0.10,
        warn_clear=0.05,
        critical=0.40,
        critical_clear=0.20,
        window_seconds=300,
    ),
    Rule(
        "reranker-down",
        "Reranker down",
        "service.failed",
        "state",
        "Queries go on without reranking. Start the reranker, or set RERANKER_ENABLED=false until it is back.",
        critical=1,
        kinds=("rerank",),
    ),
    Rule(
        "reranker-slow",
        "Reranker slow",
        "service.functional_seconds",
        "seconds",
        "Is it on the CPU (device in its /health)? Look at its queue and at the GPU beside it.",
        warn=0.5,
        warn_clear=0.4,
        window_seconds=60,
        kinds=("rerank",),
    ),
    Rule(
        "certificate-expires",
        "Certificate expires",
        "service.certificate_days",
        "count",
        "Renew the certificate.",
        warn=14,
        critical=2,
        above=False,
    ),
)


def rules(changes: Mapping[str, Mapping[str, Any]]) -> tuple[Rule, ...]:
    """The default rules with what the settings change of them, by id. Raises ValueError that names an unknown rule or key."""
    unknown = sorted(set(changes) - {rule.id for rule in DEFAULTS})
    if unknown:
        raise ValueError(f"no rule {unknown[0]!r}; rules are {', '.join(rule.id for rule in DEFAULTS)}")
    return tuple(_changed(rule, changes.get(rule.id, {})) for rule in DEFAULTS)


def _changed(rule: Rule, changes: Mapping[str, Any]) -> Rule:
    for key, value in changes.items():
        if key not in CHANGEABLE:
            raise ValueError(f"rule {rule.id} has no {key!r} to change; {', '.join(CHANGEABLE)} can be")
        if key != "enabled" and value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{key} of rule {rule.id} is {value!r}, not a number")
    changed = replace(rule, **changes)
    for level in ("warn", "critical"):
        raise_at, clear_at = getattr(changed, level), getattr(changed, f"{level}_clear")
        if raise_at is not None and clear_at is not None and (clear_at > raise_at if changed.above else clear_at < raise_at):
            side = "above" if changed.above else "below"
            raise ValueError(f"{level}_clear of rule {rule.id} is {clear_at:g}, {side} {level} ({raise_at:g})")
    return changed
