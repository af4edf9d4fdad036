"""The texts of /proc, whole, odd and broken; rates of two samples; and the same figures that the system's own tools show."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from collectors import proc, psutil_host
from collectors.local import LocalShell
from collectors.rates import rates
from collectors.readings import metrics
from collectors.samples import CpuTimes, DiskCounters, Sample
from tests.collectors.sshd import eventually

DATA = Path(__file__).parent / "data" / "proc"


def sample(name: str) -> Sample:
    return proc.parse((DATA / f"{name}.txt").read_text())


def test_recorded_host_is_read_whole() -> None:
    host = sample("host")
    assert host.faults == ()
    assert host.uptime_seconds and host.cpu and host.cpu.core is None
    assert [core.core for core in host.cores or ()] == [0, 1]
    assert host.memory and host.memory.total_bytes == 25276502016
    assert [pressure.resource for pressure in host.pressures or ()] == ["cpu", "memory", "io"]
    assert [disk.name for disk in host.disks or ()] == ["vda"]
    assert [interface.name for interface in host.interfaces or ()] == ["eth0"]


def test_names_of_processes_may_hold_anything() -> None:
    found = {process.pid: process for process in sample("host").processes or ()}
    assert found[812].name == "tmux: server (1)" and found[812].state == "S" and found[812].threads == 3
    assert found[812].cpu_seconds == 3.0 and found[812].memory_bytes == 100 * 4096
    assert found[813].name == ") 9) R 1 (" and found[813].state == "D"
    assert found[814].state == "Z"


def test_odd_machine() -> None:
    host = sample("odd")
    assert [core.core for core in host.cores or ()] == [0, 1, 3]  # core 2 is offline
    assert host.cores and host.cores[0].steal_seconds == 0.05 and host.cores[0].irq_seconds == 0.2
    assert host.load and (host.load.average_1m, host.load.running, host.load.tasks) == (260.01, 12, 20345)
    assert host.memory and host.memory.swap_used_ratio == pytest.approx(0.5, abs=1e-6)
    assert (host.memory.limit_bytes, host.memory.limit_used_bytes) == (64 * 2**30, 2**30)
    assert host.pressures is None and [fault.code for fault in host.faults] == ["no_pressure"]
    # partitions, loops, memory disks, optical drives, unused and cut-off lines are left out; a lone xvda1 is a disk
    assert [disk.name for disk in host.disks or ()] == ["nvme0n1", "sda", "xvda1", "md0", "mmcblk0"]
    assert host.disks and host.disks[0].read_bytes == 80000 * 512 and host.disks[0].busy_seconds == 0.9
    names = {interface.name: interface for interface in host.interfaces or ()}
    assert list(names) == ["eth0", "eth0:1", "bond0.100"]
    assert names["eth0"].received_bytes == 4294967300 and names["eth0"].errors == 4 and names["eth0"].drops == 6
    assert names["eth0:1"].received_bytes == 7


def test_what_is_missing_is_none_with_a_fault_and_never_zero() -> None:
    host = sample("partial")
    assert host.cpu is None and host.cores and host.cores[0].iowait_seconds is None
    assert host.load is None  # decimal commas: a locale that LC_ALL=C did not reach
    assert host.memory and host.memory.available_bytes is None and host.memory.used_bytes is None
    assert host.memory.swap_total_bytes is None and host.memory.swap_used_ratio is None
    assert host.disks is None and host.interfaces is None
    assert {fault.subject for fault in host.faults} >= {"/proc/stat", "/proc/loadavg", "/proc/diskstats", "/proc/net/dev"}
    reading = rates(None, host)
    assert "cpu.busy_ratio" not in metrics(reading) and "memory.used_bytes" not in metrics(reading)


def test_nothing_is_read_from_nothing() -> None:
    host = sample("empty")
    assert (host.uptime_seconds, host.cpu, host.cores, host.memory, host.disks, host.processes) == (None,) * 6
    assert metrics(rates(host, host)) == {}


# Rates.

BEFORE = Sample(
    100.0,
    CpuTimes(None, 10.0, 0.0, 5.0, 100.0, 5.0, 1.0, 1.0),
    (CpuTimes(0, 10.0, 0.0, 5.0, 100.0, 5.0, 1.0, 1.0),),
    None,
    None,
    None,
    (DiskCounters("sda", 100, 1000, 100, 2000, 1.0, 1.0, 1.0),),
    None,
)
AFTER = replace(
    BEFORE,
    uptime_seconds=104.0,
    cpu=CpuTimes(None, 11.0, 0.0, 5.5, 101.0, 5.5, 1.25, 1.75),
    disks=(DiskCounters("sda", 110, 5096, 130, 2000, 1.2, 3.0, 5.0),),
)


def test_rates_of_two_samples() -> None:
    host = rates(BEFORE, AFTER)
    assert host.seconds == 4.0 and host.cpu
    assert host.cpu.busy_ratio == pytest.approx(2.5 / 4.0)
    assert host.cpu.user_ratio == pytest.approx(0.25) and host.cpu.system_ratio == pytest.approx(0.125)
    assert host.cpu.iowait_ratio == pytest.approx(0.125) and host.cpu.steal_ratio == pytest.approx(0.1875)
    assert host.disks
    disk = host.disks[0]
    assert (disk.read_bytes_per_second, disk.written_bytes_per_second) == (1024.0, 0.0)
    assert (disk.reads_per_second, disk.writes_per_second, disk.busy_ratio, disk.queue_length) == (2.5, 7.5, 0.5, 1.0)
    assert disk.wait_seconds == pytest.approx(0.2 / 40)


def test_first_sample_has_no_rates() -> None:
    host = rates(None, AFTER)
    assert host.seconds is None and host.cpu and host.cpu.busy_ratio is None
    assert host.disks and host.disks[0].read_bytes_per_second is None


def test_restart_between_samples_gives_no_rates() -> None:
    host = rates(AFTER, replace(AFTER, uptime_seconds=3.0))
    assert host.seconds is None and host.cpu and host.cpu.busy_ratio is None


def test_a_counter_that_went_back_is_unknown_but_iowait_may() -> None:
    after = replace(
        AFTER,
        cpu=replace(AFTER.cpu, iowait_seconds=4.0, idle_seconds=99.0),
        disks=(DiskCounters("sda", 5, 10, 130, 2048, 0.1, 3.0, 5.0),),
    )
    host = rates(BEFORE, after)
    assert host.cpu and host.cpu.iowait_ratio == 0.0 and host.cpu.busy_ratio == 1.0
    assert host.disks and host.disks[0].reads_per_second is None and host.disks[0].wait_seconds is None
    assert host.disks[0].written_bytes_per_second == 12.0


def test_same_pid_of_another_process_has_no_rate() -> None:
    host = sample("host")
    assert host.processes
    reused = tuple(replace(process, started_seconds=process.started_seconds + 1, cpu_seconds=99.0) for process in host.processes)
    later = replace(host, uptime_seconds=(host.uptime_seconds or 0) + 2, processes=reused)
    assert {process.cpu_ratio for process in rates(host, later).processes or ()} == {None}


def test_the_busiest_and_the_largest_processes_are_kept() -> None:
    host = sample("host")
    assert host.processes
    busier = tuple(replace(item, cpu_seconds=item.cpu_seconds + (1.0 if item.pid == 813 else 0.0)) for item in host.processes)
    later = replace(host, uptime_seconds=(host.uptime_seconds or 0) + 2, processes=busier)
    top = rates(host, later, top=1).processes or ()
    assert [process.pid for process in top] == [813, 1]
    assert top[0].cpu_ratio == pytest.approx(0.5)


# This machine: both ways, and the system's own tools.


def lies_between(before: float | None, found: float | None, after: float | None, slack: float) -> bool:
    """A counter that was read between two others; `slack` for what the kernel rounds."""
    return None not in (before, found, after) and before - slack <= found <= after + slack  # type: ignore[operator]


def test_psutil_and_proc_read_the_same_machine() -> None:
    before = psutil_host.sample()
    ours = proc.parse(LocalShell().run(proc.COMMAND_WITH_PROCESSES, 60).stdout)
    theirs = psutil_host.sample(processes=True)
    assert ours.faults == theirs.faults
    assert lies_between(before.uptime_seconds, ours.uptime_seconds, theirs.uptime_seconds, 1.0)
    assert before.cpu and ours.cpu and theirs.cpu
    slack = float(os.cpu_count() or 1)
    assert lies_between(before.cpu.idle_seconds, ours.cpu.idle_seconds, theirs.cpu.idle_seconds, slack)
    assert len(ours.cores or ()) == len(theirs.cores or ()) == os.cpu_count()
    assert ours.memory and theirs.memory and ours.memory.total_bytes == theirs.memory.total_bytes
    assert {disk.name for disk in ours.disks or ()} == {disk.name for disk in theirs.disks or ()}
    assert {nic.name for nic in ours.interfaces or ()} == {nic.name for nic in theirs.interfaces or ()}
    mine = [next(item for item in found.processes or () if item.pid == os.getpid()) for found in (ours, theirs)]
    assert mine[0].name == mine[1].name and mine[0].memory_bytes == pytest.approx(mine[1].memory_bytes, rel=0.2)
    assert mine[0].cpu_seconds == pytest.approx(mine[1].cpu_seconds, abs=2)


def test_psutil_without_proc_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    found = psutil_host.sample(root=tmp_path)
    assert found.cpu is None and found.memory is None and found.pressures is None
    assert {"cpu", "memory"} <= {fault.subject for fault in found.faults}


def memory_agrees_with_free() -> bool:
    """Others may take or give back much between the two: what is computed wrongly never agrees."""
    text = LocalShell().run("free -b", 60).stdout
    memory = proc.parse(LocalShell().run(proc.COMMAND, 60).stdout).memory
    free = next(line for line in text.splitlines() if line.startswith("Mem:")).split()
    assert memory and memory.total_bytes == int(free[1])
    used, available = pytest.approx(int(free[2]), rel=0.2), pytest.approx(int(free[6]), rel=0.1)
    return bool(memory.used_bytes == used and memory.available_bytes == available)


def test_values_agree_with_the_tools_of_the_system() -> None:
    """`free`, `uptime`, `iostat` (procps, sysstat) read at the same time."""
    assert eventually(memory_agrees_with_free)
    text = LocalShell().run("cut -d' ' -f1-3 /proc/loadavg; uptime; iostat -d -k", 60).stdout
    host = proc.parse(LocalShell().run(proc.COMMAND, 60).stdout)
    averages = next(line for line in text.splitlines() if "load average:" in line).rsplit("load average: ", 1)[1]
    assert host.load and host.load.average_15m == pytest.approx(float(averages.split(", ")[2]), abs=0.5)
    began = LocalShell().run("TZ=UTC uptime --since", 60).stdout.strip()
    since = datetime.strptime(began, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
    assert host.uptime_seconds == pytest.approx(time.time() - since, abs=30)
    disk = (host.disks or ())[0]
    row = next(line for line in text.splitlines() if line.startswith(disk.name)).split()
    assert disk.read_bytes / 1024 == pytest.approx(float(row[5]), rel=0.05, abs=20_000)


def test_command_works_in_small_shells() -> None:
    for shell in (["dash"], ["bash"], ["busybox", "sh"]):
        run = subprocess.run([*shell, "-c", proc.COMMAND_WITH_PROCESSES], capture_output=True, text=True, timeout=60, check=False)
        found = proc.parse(run.stdout)
        assert found.faults == () and found.processes, shell


def test_command_works_with_busybox_tools_alone(tmp_path: Path) -> None:
    for tool in ("tail", "cat", "sed"):
        (tmp_path / tool).symlink_to("/usr/bin/busybox")
    run = subprocess.run(
        ["/usr/bin/busybox", "sh", "-c", proc.COMMAND_WITH_PROCESSES],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": str(tmp_path)},
        check=False,
    )
    found = proc.parse(run.stdout)
    assert found.faults == () and found.processes and found.processes[0].memory_bytes is not None
