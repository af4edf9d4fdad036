"""dcgm-exporter's metrics as readings of a machine's GPUs. Pure; names as in its default-counters.csv and its optional ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from collectors.readings import Fault, Gpu, Gpus, MigDevice, Severity
from collectors.vllm_metrics import Row

MIB = 1024 * 1024
PREFIX = "DCGM_FI_DEV_"
# Our column ← its field, and the factor between their units.
RATIOS = {"utilization_ratio": "GPU_UTIL", "memory_bandwidth_ratio": "MEM_COPY_UTIL", "fan_ratio": "FAN_SPEED"}
NUMBERS = {
    "temperature_celsius": "GPU_TEMP",
    "memory_temperature_celsius": "MEMORY_TEMP",
    "power_watts": "POWER_USAGE",
    "power_limit_watts": "POWER_MGMT_LIMIT",
    "sm_clock_mhz": "SM_CLOCK",
    "memory_clock_mhz": "MEM_CLOCK",
}
COUNTS = {
    "ecc_corrected": "ECC_SBE_VOL_TOTAL",
    "ecc_uncorrected": "ECC_DBE_VOL_TOTAL",
    "ecc_uncorrected_lifetime": "ECC_DBE_AGG_TOTAL",
    "rows_remapped_correctable": "CORRECTABLE_REMAPPED_ROWS",
    "rows_remapped_uncorrectable": "UNCORRECTABLE_REMAPPED_ROWS",
}
MEMORY = ("FB_USED", "FB_FREE", "FB_TOTAL", "FB_RESERVED")
FIELDS = (*RATIOS.values(), *NUMBERS.values(), *COUNTS.values(), *MEMORY, "ROW_REMAP_FAILURE", "ROW_REMAP_PENDING", "XID_ERRORS")
NAMES = tuple(PREFIX + name for name in FIELDS)
# DCGM's marks for "no value" (dcgm_structs.h: DCGM_INT32_BLANK, DCGM_INT64_BLANK, DCGM_FP64_BLANK and the three above each)
BLANKS = (2147483632.0, 9223372036854775792.0, 140737488355328.0)
# XIDs that operators act on, and those that a program causes itself
CRITICAL_XIDS = frozenset({48, 62, 64, 74, 79, 95, 119, 120})
HARMLESS_XIDS = frozenset({13, 31, 43})


def gpus(rows: Iterable[Row]) -> Gpus:
    """The GPUs of one machine, by index. An instance of MIG is named, its numbers are not the GPU's."""
    found: dict[int, dict[str, float]] = {}
    about: dict[int, Mapping[str, str]] = {}
    instances: dict[tuple[int, int], MigDevice] = {}
    for name, labels, value in rows:
        index = _index(labels.get("gpu"))
        if index is None:
            continue
        values = found.setdefault(index, {})
        about.setdefault(index, labels)
        instance = _index(labels.get("GPU_I_ID"))
        if instance is not None:
            mig = MigDevice(index, instance, labels.get("GPU_I_PROFILE", ""), labels.get("UUID", ""))
            instances[index, instance] = mig
        elif not any(blank <= value <= blank + 16 for blank in BLANKS):
            values[name.removeprefix(PREFIX)] = value
    split = {index for index, _ in instances}
    return Gpus(
        gpus=tuple(_gpu(index, found[index], about[index], index in split) for index in sorted(found)),
        driver_version=next(
            (labels["DCGM_FI_DRIVER_VERSION"] for labels in about.values() if "DCGM_FI_DRIVER_VERSION" in labels), None
        ),
        mig_devices=tuple(instances[key] for key in sorted(instances)) or None,
        faults=tuple(fault for index in sorted(found) if (fault := _xid(index, found[index]))),
    )


def _gpu(index: int, value: Mapping[str, float], labels: Mapping[str, str], split: bool) -> Gpu:
    used, free = _bytes(value.get("FB_USED")), _bytes(value.get("FB_FREE"))
    total = _bytes(value.get("FB_TOTAL"))
    if total is None and used is not None and free is not None:
        total = used + free + (_bytes(value.get("FB_RESERVED")) or 0)
    numbers: dict[str, Any] = {column: value[name] for column, name in NUMBERS.items() if name in value}
    numbers |= {column: value[name] / 100.0 for column, name in RATIOS.items() if name in value}
    numbers |= {column: int(value[name]) for column, name in COUNTS.items() if name in value}
    failed, pending = value.get("ROW_REMAP_FAILURE"), value.get("ROW_REMAP_PENDING")
    return Gpu(
        index=index,
        uuid=labels.get("UUID") or None,
        name=labels.get("modelName") or None,
        pci_bus_id=labels.get("pci_bus_id") or None,
        memory_total_bytes=total,
        memory_used_bytes=used,
        memory_free_bytes=free,
        memory_used_ratio=used / total if used is not None and total else None,
        row_remap_failed=None if failed is None else failed > 0,
        row_remap_pending=None if pending is None else pending > 0,
        mig_enabled=True if split else None,
        **numbers,
    )


def _xid(index: int, value: Mapping[str, float]) -> Fault | None:
    """The last XID that the driver reported. It stays until the exporter is started anew."""
    number = int(value.get("XID_ERRORS", 0.0))
    if number == 0 or number in HARMLESS_XIDS:
        return None
    severity: Severity = "critical" if number in CRITICAL_XIDS else "warning"
    step = f"Look up XID {number} in NVIDIA's list and in dmesg of the machine: it names the process and the cause."
    return Fault("xid", f"XID {number}", step, subject=f"gpu {index}", severity=severity)


def _index(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) < 6 else None


def _bytes(mebibytes: float | None) -> int | None:
    return None if mebibytes is None else int(mebibytes * MIB)
