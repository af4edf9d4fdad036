from __future__ import annotations

from dataclasses import replace
from datetime import UTC

from bs4 import BeautifulSoup

from collectors.readings import Gpu, GpuProcess, Gpus, MigDevice, Units
from collectors.rules import rules
from collectors.views import MachineView, Part, Problem
from tests.ui.deployment_fakes import EVIL, containers, disks, gpus_of, host, machines, units
from ui import gpu_view, machine_view
from ui.gauges import Tones

VIEWS = {view.name: view for view in machines(1000.0)}
TONES = Tones(rules({}))


def soup(html: str) -> BeautifulSoup:
    found = BeautifulSoup(html, "html.parser")
    assert found.img is None and found.script is None
    return found


def text(html: str) -> str:
    return soup(html).get_text(" ", strip=True)


def part(value: object) -> Part[object]:
    return Part(value, 1000.0, 1.0, 0.1)


def with_gpus(reading: Gpus, **more: object) -> MachineView:
    return MachineView("m", "a", "ssh", "ok", gpus=part(reading), **more)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------------ host


def test_the_header_says_what_the_machine_is() -> None:
    line = text(machine_view.header(VIEWS["h100-1"], (), UTC))
    for said in ("10.0.0.7", "96 cores", "1.97 TiB", "8 × NVIDIA H100 80GB HBM3", "up 11 days", "3 s ago"):
        assert said in line
    assert "read by Prometheus" in text(machine_view.header(VIEWS["spark"], (), UTC))


def test_faults_are_told_with_their_next_step_and_notes_are_not() -> None:
    assert "nightly-index.service failed: exit-code 1. Next: Read its log." in text(machine_view.faults(VIEWS["l4-vm"]))
    assert machine_view.faults(VIEWS["local"]) == ""
    late = MachineView("m", "a", "ssh", "ok", gpus=Part(problem=Problem("timeout", "command", EVIL, "Look.")))
    assert "gpus cannot be read" in text(machine_view.faults(late))


def test_cpu_and_every_core() -> None:
    html = machine_view.cpu(part(host(0.88, 4)), TONES)
    assert "user 62 %" in text(html) and "waiting for disks 4 %" in text(html) and "--rd-warn" in html
    cores = soup(html).find_all("i", title=lambda title: bool(title and title.startswith("core ")))
    assert len(cores) == 4 and cores[1]["title"].endswith("3 % waiting for disks")
    assert machine_view.cpu_title(host(0.88)) == "CPU is 88 % busy" and machine_view.cpu_title(None) == "CPU"


def test_a_first_reading_says_that_rates_need_two() -> None:
    first = replace(host(), seconds=None, cpu=replace(host().cpu, busy_ratio=None, user_ratio=None))  # type: ignore[type-var]
    assert "rates need two readings" in machine_view.cpu(part(first), TONES)
    quiet = replace(first, disks=tuple(replace(each, read_bytes_per_second=None) for each in first.disks or ()))
    assert "rates need two readings" in machine_view.disks(part(quiet), TONES)


def test_memory_swap_and_pressure() -> None:
    shown = text(machine_view.memory(part(host()), TONES))
    assert "available 6.08 GiB" in shown and "swap 0.125 / 2.00 GiB" in shown and "io 11 % 7 % 3 % 5 % 2 %" in shown
    bare = replace(
        host(), pressures=None, memory=replace(host().memory, swap_total_bytes=0, limit_bytes=2**31, limit_used_bytes=2**30)
    )  # type: ignore[type-var]
    html = machine_view.memory(part(bare), TONES)
    assert "the machine has no swap" in html and "does not measure it" in html
    assert "limit of its container 1.00 / 2.00 GiB" in text(html)


def test_file_systems_the_fullest_first() -> None:
    rows = [
        row.get_text(" ", strip=True) for row in soup(machine_view.filesystems(part(disks(0.96, EVIL)), TONES)).find_all("tr")
    ]
    assert rows[1].startswith("/ /dev/nvme0n1p1 · ext4 96 % 4.68 GiB 117 GiB 5 %") and EVIL in rows[2]
    assert "not collected" in machine_view.filesystems(None, TONES)


def test_disks_and_network() -> None:
    assert "nvme0n1 34 % 45.8 MiB/s 11.8 MiB/s 910 /s 88.0 /s 0.610 ms 0.800" in text(machine_view.disks(part(host()), TONES))
    assert "ens4 1.81 MiB/s 393 KiB/s" in text(machine_view.network(part(host())))
    assert "not read yet" in machine_view.disks(Part(), TONES) and "not read yet" in machine_view.network(Part())


def test_processes_by_cpu_and_by_memory() -> None:
    def names(by_memory: bool) -> list[str]:
        return [row.td.text for row in soup(machine_view.processes(part(host(name=EVIL)), by_memory)).find_all("tr")[1:]]

    assert names(False)[:2] == [EVIL, "milvus"] and names(True)[:2] == [EVIL, "milvus"] and len(names(True)) == 4
    assert "twice for rates" in machine_view.processes(part(replace(host(), processes=None)), False)


def test_units_and_containers() -> None:
    shown = text(machine_view.units(part(units())))
    assert "gpu-server.service RAG Deck GPU server active" in shown and "failed 1 h 30 min 3" in shown
    assert "exit status: 1" in machine_view.units(part(units()))
    boxes = text(machine_view.containers(part(containers())))
    for said in ("running, healthy", "running, unhealthy", "exited with 137"):
        assert said in boxes
    assert "Name the units to watch" in machine_view.units(part(Units(())))
    assert "This machine does not run systemd" in machine_view.units(VIEWS["local"].units)


def test_logs_can_be_asked_for_what_is_listed_and_come_without_escape_sequences() -> None:
    assert machine_view.log_names(VIEWS["l4-vm"]) == ["gpu-server.service", "nightly-index.service", "vllm", "whisper", "migrate"]
    assert machine_view.log_names(VIEWS["vps"]) == []
    assert machine_view.log_text("\x1b[31mERROR\x1b[0m a\tb\r\n\x1b]0;title\x07c\x00\n\n") == "ERROR a\tb\nc"


# ------------------------------------------------------------------------------------------------------------------ GPUs


def test_eight_gpus_with_what_holds_one_back() -> None:
    html = gpu_view.table(VIEWS["h100-1"], TONES)
    rows = [row.get_text(" ", strip=True) for row in soup(html).find_all("tr")[1:]]
    assert (
        len(rows) == 8
        and rows[0] == "0 NVIDIA H100 80GB HBM3 97 % 72.5 / 79.6 GiB 58.0 °C 612 / 700 W 1,980 / 1,980 MHz nothing none"
    )
    assert (
        "heat (driver), heat (hardware)" in rows[3] and gpu_view.title(VIEWS["h100-1"]) == "GPU 3 is slowed down by heat or power"
    )


def test_titles_of_gpus() -> None:
    assert gpu_view.title(with_gpus(gpus_of("l4.csv"))) == "1 GPU, 0 % busy"
    two = Gpus((Gpu(0), Gpu(1)))
    assert gpu_view.title(with_gpus(two, expected_gpus=4)) == "2 GPUs of 4 missing" and gpu_view.title(with_gpus(two)) == "2 GPUs"
    assert gpu_view.title(VIEWS["vps"]) == "GPUs"


def test_unknown_gpu_values_are_dashes_with_a_reason() -> None:
    unified = soup(gpu_view.table(VIEWS["spark"], TONES))
    reasons = [mark["title"] for mark in unified.find_all("abbr")]
    assert any("unified memory" in reason for reason in reasons)
    split = soup(gpu_view.table(with_gpus(gpus_of("a100_mig.csv")), TONES))
    assert any("split by MIG" in mark["title"] for mark in split.find_all("abbr"))


def test_no_driver_and_no_gpu_are_told_apart() -> None:
    assert "nvidia-smi: not found" in text(gpu_view.table(VIEWS["local"], TONES))
    assert "The driver says that there is no GPU" in text(gpu_view.table(with_gpus(Gpus(())), TONES))


def test_sick_gpus_stand_out() -> None:
    html = gpu_view.table(with_gpus(gpus_of("h100x8_sick.csv")), TONES)
    assert "--rd-critical" in html and "uncorrected" in text(html)


def test_what_holds_the_memory_with_its_owner() -> None:
    shown = text(gpu_view.processes(VIEWS["l4-vm"].gpus))
    assert "python3 -m vllm.entrypoints.openai.api_server docker 3f2a9c11d0ab 0 11.0 GiB 4120" in shown
    html = gpu_view.processes(part(replace(gpus_of("l4.csv"), processes=(GpuProcess("x", 1, EVIL, None),))))  # type: ignore[arg-type]
    assert "neither a container nor a unit" in html and EVIL in text(html)
    assert "No process holds GPU memory" in gpu_view.processes(part(replace(gpus_of("l4.csv"), processes=())))  # type: ignore[arg-type]
    assert "hide the processes" in gpu_view.processes(part(gpus_of("h100x8.csv")))  # type: ignore[arg-type]
    assert gpu_view.processes(None) == ""


def test_the_rest_of_what_the_driver_tells() -> None:
    reading = replace(gpus_of("h100x8.csv"), mig_devices=(MigDevice(0, 1, "1g.10gb", EVIL),))
    shown = text(gpu_view.details(reading))
    assert "Driver 570.133.20" in shown and "gen 5 ×16" in shown and "1g.10gb" in shown
    assert gpu_view.details(None) == "" and gpu_view.details(Gpus(())) == ""
