"""Parsers fuzzed: never an exception, and what is read is never more than what was printed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collectors import disks, docker, nvidia_smi, owners, proc, systemd
from collectors.rates import rates
from collectors.readings import Record, metrics, to_json

DATA = Path(__file__).parent / "data"
FIELDS = tuple(names[0] for names in nvidia_smi.FIELDS)
CAPTURES = [path.read_text() for path in sorted(DATA.rglob("*.*")) if path.suffix in (".txt", ".csv")]
JUNK = st.one_of(
    st.sampled_from(
        ["", "N/A", "[N/A]", "-", "0x", "9" * 400, "1e400", "nan", "-1", "\u0663", "\x00", ",", "\n", "{", "cpu", "%"]
    ),
    st.text(max_size=8),
)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A capture with pieces cut out and junk put in."""
    text = draw(st.sampled_from(CAPTURES))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(text)))
        text = text[:start] + draw(JUNK) + text[start + draw(st.integers(0, 40)) :]
    return text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) else text


def sound(reading: Record) -> None:
    json.dumps(to_json(reading), allow_nan=False)
    for name, value in metrics(reading).items():
        assert math.isfinite(value), name
        assert value >= 0 or name.endswith(("_celsius", "exit_code")), (name, value)


@settings(max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(damaged(), st.text(max_size=300)))
def test_no_parser_raises(text: str) -> None:
    sound(nvidia_smi.parse(text, FIELDS))
    sound(disks.parse(text))
    sound(systemd.parse(text))
    sound(docker.parse(text))
    nvidia_smi.parse_processes(text)
    nvidia_smi.parse_mig(text)
    nvidia_smi.parse_nvlinks(text)
    assert nvidia_smi.known_fields(text)
    owners.owner(text)


@settings(max_examples=100, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(damaged(), damaged())
def test_no_two_samples_make_impossible_rates(first: str, second: str) -> None:
    host = rates(proc.parse(first), proc.parse(second))
    sound(host)
    if host.cpu is not None and host.cpu.busy_ratio is not None:
        assert 0 <= host.cpu.busy_ratio <= 1


VALUES = st.sampled_from(
    ["0", "17", "N/A", "[N/A]", " N/A ", "[Not Supported]", "[Unknown Error]", "ERR!", "[GPU is lost]", "", "-", "1.5"]
)


@settings(max_examples=150, deadline=None, database=None)
@given(st.lists(VALUES, min_size=len(FIELDS) - 1, max_size=len(FIELDS) - 1))
def test_zero_is_read_only_where_zero_was_printed(values: list[str]) -> None:
    reading = nvidia_smi.parse(", ".join(["3", *values]), FIELDS)
    assert reading.gpus is not None
    printed = dict(zip(FIELDS, ["3", *values], strict=True))
    found = reading.gpus[0]
    pairs = {
        "utilization.gpu": found.utilization_ratio,
        "memory.total": found.memory_total_bytes,
        "memory.used": found.memory_used_bytes,
        "temperature.gpu": found.temperature_celsius,
        "power.draw.instant": found.power_watts,
        "ecc.errors.uncorrected.volatile.total": found.ecc_uncorrected,
        "remapped_rows.failure": found.row_remap_failed,
        "pcie.link.width.current": found.pcie_width,
    }
    for field, value in pairs.items():
        assert (value is not None and value == 0) == (printed[field] == "0"), field


@pytest.mark.parametrize("field", FIELDS[1:])
def test_each_absent_field_is_none_alone(field: str) -> None:
    values = dict.fromkeys(FIELDS, "1")
    whole = to_json(nvidia_smi.parse(", ".join(values.values()), FIELDS))["gpus"][0]
    values[field] = "[N/A]"
    part = to_json(nvidia_smi.parse(", ".join(values.values()), FIELDS))["gpus"][0]
    changed = {name for name in whole if whole[name] != part[name]}
    assert all(part[name] is None for name in changed)
    assert changed or field in ("driver_version", "clocks_event_reasons.active")
