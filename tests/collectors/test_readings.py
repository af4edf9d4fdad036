"""Records as JSON and as named numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from collectors.readings import Core, Cpu, Fault, Gpu, GpuProcess, Gpus, Host, Load, Memory, Unit, Units, metrics, to_json


def host() -> Host:
    memory = Memory(100, 40, 10, 60, 0.6, None, None, 0, 0, None)
    return Host(
        9.0, 2.0, Cpu(2, 0.5, 0.4, 0.1, 0.0, None), (Core(0, 1.0, None, None),), Load(1, 2, 3), memory, None, None, (), None
    )


def test_json_keeps_unknown_as_null_and_nothing_as_empty() -> None:
    plain = json.loads(json.dumps(to_json(host())))
    assert plain["cpu"]["steal_ratio"] is None and plain["disks"] is None and plain["interfaces"] == []
    assert plain["cores"] == [{"index": 0, "busy_ratio": 1.0, "iowait_ratio": None, "steal_ratio": None}]


def test_faults_are_in_the_json() -> None:
    fault = Fault("code", "text", "step", "gpu 1", "note")
    assert to_json(Gpus(None, faults=(fault,)))["faults"] == [
        {"code": "code", "text": "text", "next_step": "step", "subject": "gpu 1", "severity": "note"}
    ]


def test_each_known_number_has_a_name() -> None:
    assert metrics(host()) == {
        "host.uptime_seconds": 9.0,
        "host.seconds": 2.0,
        "cpu.cores": 2.0,
        "cpu.busy_ratio": 0.5,
        "cpu.user_ratio": 0.4,
        "cpu.system_ratio": 0.1,
        "cpu.iowait_ratio": 0.0,
        "core.0.busy_ratio": 1.0,
        "load.average_1m": 1.0,
        "load.average_5m": 2.0,
        "load.average_15m": 3.0,
        "memory.total_bytes": 100.0,
        "memory.available_bytes": 40.0,
        "memory.free_bytes": 10.0,
        "memory.used_bytes": 60.0,
        "memory.used_ratio": 0.6,
        "memory.swap_total_bytes": 0.0,
        "memory.swap_used_bytes": 0.0,
    }


def test_truth_values_are_numbers_texts_and_processes_are_not() -> None:
    gpu = Gpu(3, name="A", slowed=True, mig_enabled=False, throttle_reasons=("x",))
    assert metrics(Gpus((gpu,), "570", (GpuProcess("u", 1, "n", 5),))) == {"gpu.3.slowed": 1.0, "gpu.3.mig_enabled": 0.0}


def test_a_key_may_hold_dots() -> None:
    (name,) = metrics(Units((Unit("vllm@0.service", restarts=4),)))
    kind, _, rest = name.partition(".")
    assert (kind, *rest.rpartition(".")[::2]) == ("unit", "vllm@0.service", "restarts")


def test_importing_does_no_work_and_loads_nothing_heavy() -> None:
    names = sorted(
        path.stem for path in (Path(__file__).parents[2] / "collectors").glob("*.py") if not path.stem.startswith("__")
    )
    ours = [name for name in names if name in PIECES]
    code = f"import sys, threading, {', '.join(f'collectors.{name}' for name in ours)}\n"
    code += "heavy = {'paramiko', 'psutil', 'pynvml', 'cryptography'} & set(sys.modules)\nassert not heavy, heavy\n"
    code += "assert threading.active_count() == 1"
    assert set(ours) == PIECES
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).parents[2])


PIECES = set(
    "readings samples errors texts shell local proc rates disks systemd docker owners nvidia_smi gpu_facts nvml psutil_host frames loop"
    " host_keys ssh_config ssh_keys ssh connection_test".split()
)
