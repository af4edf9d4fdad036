"""nvidia-smi: what it prints for many GPUs and drivers, and what it says when it fails."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from collectors import nvidia_smi
from collectors.gpu_facts import throttle_names
from collectors.readings import Gpu, Gpus, metrics

DATA = Path(__file__).parent / "data" / "nvidia_smi"
MIB = 2**20


def read(name: str) -> Gpus:
    head, _, text = (DATA / name).read_text().partition("\n")
    return nvidia_smi.parse(text, head.removeprefix("# ").split(","))


def gpu(name: str) -> Gpu:
    found = read(name).gpus
    assert found
    return found[0]


def codes(reading: Gpus) -> list[tuple[str, str | None]]:
    return [(fault.code, fault.subject) for fault in reading.faults]


def test_eight_h100() -> None:
    reading = read("h100x8.csv")
    assert reading.gpus and [item.index for item in reading.gpus] == list(range(8))
    assert reading.driver_version == "570.133.20" and reading.faults == ()
    first, second, _, hot = reading.gpus[:4]
    assert first.name == "NVIDIA H100 80GB HBM3" and first.utilization_ratio == 0.97 and first.memory_bandwidth_ratio == 0.61
    assert (first.memory_total_bytes, first.memory_used_bytes) == (81559 * MIB, 74211 * MIB)
    assert first.memory_used_ratio == pytest.approx(0.9099, abs=1e-4)
    assert (first.power_watts, first.power_limit_watts, first.temperature_celsius) == (612.44, 700.0, 58.0)
    assert first.fan_ratio is None and first.recovery_action == "None" and first.mig_enabled is False
    assert (first.pcie_generation, first.pcie_width, first.throttle_reasons, first.slowed) == (5, 16, (), False)
    assert second.throttle_reasons == ("sw_power_cap",) and second.slowed is False
    assert hot.throttle_reasons == ("sw_thermal_slowdown", "hw_thermal_slowdown") and hot.slowed is True


def test_an_idle_gpu_full_of_weights_is_no_fault() -> None:
    reading = read("a100.csv")
    assert reading.faults == () and reading.gpus
    assert reading.gpus[0].utilization_ratio == 0.0 and (reading.gpus[0].memory_used_ratio or 0) > 0.88
    assert reading.gpus[0].recovery_action is None  # driver 550 does not know it: unknown, not "None"


def test_mig_has_no_utilization() -> None:
    found = gpu("a100_mig.csv")
    assert found.mig_enabled is True and found.utilization_ratio is None and found.memory_used_bytes == 20125 * MIB
    assert "gpu.0.utilization_ratio" not in metrics(found)


def test_unified_memory_is_unknown_not_zero() -> None:
    found = gpu("gb10_unified_memory.csv")
    assert (found.memory_total_bytes, found.memory_used_bytes, found.memory_used_ratio) == (None, None, None)
    assert found.ecc_enabled is None and found.ecc_uncorrected is None and found.row_remap_failed is None
    assert found.utilization_ratio == 0.12 and found.power_limit_watts is None


def test_laptop_and_l4_without_persistence_mode() -> None:
    assert gpu("laptop.csv").power_watts is None and gpu("laptop.csv").persistence_enabled is False
    assert codes(read("l4.csv")) == [("persistence_off", "gpu 0")]
    assert read("l4.csv").faults[0].severity == "note"


def test_old_driver_with_units_and_old_names() -> None:
    found = gpu("k80_driver_418.csv")
    assert (found.utilization_ratio, found.memory_used_bytes, found.power_watts) == (0.37, 812 * MIB, 141.2)
    assert (found.sm_clock_mhz, found.pcie_generation, found.pcie_width, found.throttle_reasons) == (823.0, 3, 16, ())


def test_every_way_to_be_absent_is_none() -> None:
    reading = read("absent_in_every_way.csv")
    assert reading.gpus and reading.faults == ()
    known = {name for name, value in metrics(reading).items() if value is not None}
    assert known == set()  # the index tells GPUs apart and is no metric
    assert reading.gpus[0].name == "Quadro, with, commas"
    assert reading.driver_version is None


def test_one_lost_gpu_does_not_hide_the_others() -> None:
    reading = read("h100x8_one_lost.csv")
    assert reading.gpus and [item.index for item in reading.gpus] == [0, 1, 2, 3, 4, 6, 7]
    assert codes(reading) == [("device_handle", "gpu 0000:C3:00.0")]


def test_sick_gpus_each_have_their_findings() -> None:
    reading = read("h100x8_sick.csv")
    assert reading.gpus and len(reading.gpus) == 4
    assert codes(reading) == [
        ("gpu_lost", "gpu 2"),
        ("gpu_value_error", "gpu 3"),
        ("gpu_value_error", "gpu 3"),
        ("recovery_action", "gpu 0"),
        ("row_remap_pending", "gpu 0"),
        ("ecc_uncorrected", "gpu 0"),
        ("row_remap_failed", "gpu 1"),
    ]
    lost, partly = reading.gpus[2:]
    assert (lost.utilization_ratio, lost.memory_used_bytes, lost.temperature_celsius, lost.recovery_action) == (None,) * 4
    assert lost.memory_total_bytes == 81559 * MIB
    assert partly.power_watts is None and partly.throttle_reasons == ("hw_slowdown", "hw_power_brake_slowdown", "bit_0x200")


@pytest.mark.parametrize("path", sorted(DATA.glob("failure_*.txt")), ids=lambda path: path.stem)
def test_each_failure_is_its_own_finding(path: Path) -> None:
    reading = nvidia_smi.parse(path.read_text(), nvidia_smi.BASIC_FIELDS)
    expected = path.stem.removeprefix("failure_")
    assert reading.faults[0].code == expected and reading.faults[0].next_step
    assert reading.faults[0].text == path.read_text().splitlines()[0].replace("  ", " ").strip() or expected == "gpu_lost"
    assert reading.gpus == (() if expected == "no_gpus" else None)
    assert (reading.faults[0].severity == "note") == (expected == "no_nvidia_smi")


def test_silence_is_a_fault() -> None:
    reading = nvidia_smi.parse("", nvidia_smi.BASIC_FIELDS)
    assert reading.gpus is None and [fault.code for fault in reading.faults] == ["nvidia_smi_silent"]


def test_fields_are_those_the_driver_knows() -> None:
    new, middle, old = (nvidia_smi.known_fields((DATA / f"help_{driver}.txt").read_text()) for driver in (570, 550, 418))
    assert new[0] == "index" and new[-1] == "name" and len(new) == len(nvidia_smi.FIELDS)
    assert set(new) - set(middle) == {"gpu_recovery_action"}
    assert "clocks_throttle_reasons.active" in old and "power.draw" in old and "clocks_event_reasons.active" not in old
    assert "power.draw.instant" not in old and "mig.mode.current" not in old
    assert nvidia_smi.known_fields("sh: nvidia-smi: not found") == nvidia_smi.BASIC_FIELDS


def test_throttle_mask() -> None:
    assert throttle_names(None) is None
    assert throttle_names(0) == ()
    assert throttle_names(0x1 | 0x100 | 1 << 40) == ("gpu_idle", "display_clock_setting", "bit_0x10000000000")


def test_processes_with_their_owners() -> None:
    found = nvidia_smi.parse_processes((DATA / "compute_apps.txt").read_text())
    assert found is not None
    assert [(item.pid, item.name, item.memory_bytes, item.owner) for item in found] == [
        (41207, "VLLM::Worker_TP0", 73690 * MIB, "docker 3f2a9c0d1e4b"),
        (51890, "/opt/ocr/bin/python3 -m serve --name a,b, c", 30512 * MIB, "pod aa11bb22cc33"),
        (60001, "python", 2210 * MIB, "unit rag-gpu-server.service"),
        (60002, "/usr/local/bin/ollama", 1020 * MIB, "unit ollama.service"),
        (70000, None, None, None),  # a pid of the host, seen from a container: the /proc/70000 here is another process
        (70001, "./train", 300 * MIB, "unit session-12.scope"),
    ]


def test_no_processes_and_no_answer_differ() -> None:
    assert nvidia_smi.parse_processes((DATA / "compute_apps_none.txt").read_text()) == ()
    assert nvidia_smi.parse_processes((DATA / "compute_apps_mismatch.txt").read_text()) is None


def test_links_and_mig_devices_are_joined() -> None:
    links = nvidia_smi.parse_nvlinks((DATA / "nvlink_h100.txt").read_text())
    assert links == {0: (18, 0, pytest.approx(18 * 26.562e9)), 1: (17, 1, pytest.approx(17 * 26.562e9))}
    mig = nvidia_smi.parse_mig((DATA / "list_mig.txt").read_text())
    assert [(item.gpu_index, item.device, item.profile) for item in mig] == [(0, 0, "3g.20gb"), (0, 1, "1g.5gb+me")]
    joined = nvidia_smi.gpus_with(read("h100x8.csv"), (), mig, links)
    assert joined.gpus and joined.gpus[1].nvlinks_active == 17 and joined.gpus[2].nvlinks_active is None
    assert joined.mig_devices == mig and joined.processes == ()


# The commands, with a fake nvidia-smi in a real shell.


def run(command: str, directory: Path, script: str) -> str:
    tool = directory / "nvidia-smi"
    tool.write_text("#!/bin/sh\n" + script)
    tool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"}
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, env=environment, check=False).stdout


def test_query_asks_for_the_fields(tmp_path: Path) -> None:
    text = run(nvidia_smi.query(["index", "name"]), tmp_path, 'printf "%s\\n" "$*" >"$0.args"; echo "0, Fake, One"')
    assert (tmp_path / "nvidia-smi.args").read_text() == "--query-gpu=index,name --format=csv,noheader,nounits\n"
    found = nvidia_smi.parse(text, ["index", "name"]).gpus
    assert found and found[0].name == "Fake, One"


def test_where_one_bad_gpu_fails_the_query_each_is_asked(tmp_path: Path) -> None:
    bus = tmp_path / "gpus"
    for address in ("0000:1b:00.0", "0000:43:00.0", "0000:52:00.0"):
        (bus / address).mkdir(parents=True)
    command = nvidia_smi.query(["index", "name"]).replace("/proc/driver/nvidia/gpus", str(bus))
    broken = "Unable to determine the device handle for GPU 0000:43:00.0: Unknown Error"
    script = f'case "$*" in *-i*1b*) echo "0, A";; *-i*52*) echo "2, C";; *) echo "{broken}"; exit 15;; esac'
    reading = nvidia_smi.parse(run(command, tmp_path, script), ["index", "name"])
    assert reading.gpus and [item.index for item in reading.gpus] == [0, 2]
    assert codes(reading) == [("device_handle", "gpu 0000:43:00.0")]


def test_owner_of_a_real_process_is_looked_up(tmp_path: Path) -> None:
    text = run(nvidia_smi.PROCESSES, tmp_path, f'echo "GPU-1, {os.getpid()}, 10, python"; echo "GPU-1, x; reboot, 10, evil"')
    assert f"cgroup {os.getpid()}\n{Path('/proc/self/cgroup').read_text()}" in text
    found = nvidia_smi.parse_processes(text)
    assert found is not None and [item.pid for item in found] == [os.getpid()]


def test_processes_of_a_failing_nvidia_smi_are_unknown(tmp_path: Path) -> None:
    assert nvidia_smi.parse_processes(run(nvidia_smi.PROCESSES, tmp_path, "echo broken; exit 9")) is None
