"""Machines from settings, and the two readers over this machine and over a real sshd."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from collectors.errors import CollectorError, ConnectionLost, TimedOut
from collectors.inventory import BadInventory, from_settings
from collectors.machine_local import LocalReader, try_local
from collectors.machine_remote import RemoteReader, try_machine
from collectors.machines import PARTS, PROCESS_SECONDS, HostRates, Machine
from collectors.psutil_host import sample
from collectors.readings import Containers, Filesystems, Gpus, Host, Units
from tests.collectors.machine_fakes import fake_nvidia_smi, machine_of, nvidia_smi_script, with_path
from tests.collectors.sshd import Sshd, eventually

# Settings


def test_local_is_always_there() -> None:
    found = from_settings([], [])
    assert found.machines == (Machine("local"),) and found.machines[0].is_local and found.services == ()
    changed = from_settings([{"name": "db", "address": "db.example"}, {"name": "local", "units": ["milvus"]}], [])
    assert [machine.name for machine in changed.machines] == ["db", "local"]
    assert changed.machines[1].units == ("milvus",) and changed.machines[1].collect == PARTS


def test_all_settings_of_a_machine_and_a_service_arrive(tmp_path: Path) -> None:
    machine = {
        "name": "gpu-1",
        "address": "gpu-1.example",
        "user": "ops",
        "port": 2222,
        "key": str(tmp_path / "key"),
        "passphrase": "open sesame",
        "jump": "ops@bastion.example:22,inner",
        "host_key_policy": "accept-new",
        "known_hosts": tmp_path / "known",
        "use_agent": False,
        "collect": ["gpus", "host"],
        "units": ["vllm.service"],
        "expected_gpus": 8,
        "every_seconds": 5,
        "slow_every_seconds": 60,
    }
    service = {
        "name": "llm",
        "kind": "openai-chat",
        "url": "https://llm.example/v1",
        "model": "m",
        "api_key": "sk-secret-1",
        "headers": {"X-Team": "search"},
        "verify": False,
        "ca_file": "/ca.pem",
        "timeout_seconds": 20,
        "slow_liveness_seconds": 0.5,
        "slow_functional_seconds": 2,
        "certificate_days": 7,
        "language": "en",
        "liveness_every_seconds": 5,
        "functional_every_seconds": 300,
        "expect_text": None,
    }
    prometheus = {
        "name": "fleet",
        "url": "http://prom.example:9090",
        "machine_label": "node",
        "window_seconds": 60,
        "every_seconds": 30,
    }
    found = from_settings([machine], [service], [prometheus])
    assert [each.name for each in found.machines] == ["local", "gpu-1"]
    target = found.machines[1].target
    assert (target.user, target.port, target.jump, target.host_key_policy) == (
        "ops",
        2222,
        "ops@bastion.example:22,inner",
        "accept-new",
    )
    assert (
        found.machines[1].collect == ("host", "gpus")
        and found.machines[1].every("gpus") == 5
        and found.machines[1].every("units") == 60
    )
    assert "open sesame" not in repr(found) and "sk-secret-1" not in repr(found)
    watched = found.services[0]
    assert (watched.liveness_every_seconds, watched.functional_every_seconds) == (5, 300)
    assert watched.service.thresholds.functional_seconds == 2 and watched.service.api_key == "sk-secret-1"
    assert found.sources[0].every_seconds == 30 and found.sources[0].source.machine_label == "node"
    assert from_settings([], [service | {"functional": False}]).services[0].functional_every_seconds is None


MACHINE = {"name": "m", "address": "h"}
SERVICE = {"name": "s", "kind": "tcp", "url": "h:1"}


@pytest.mark.parametrize(
    ("machines", "services", "said"),
    [
        ([{"address": "h"}], [], r"machines\[1\]: name is missing"),
        ([{"name": "m"}], [], r"machines\[1\] \(m\): address is missing"),
        ([MACHINE, {**MACHINE, "name": "n", "adress": "h"}], [], r"machines\[2\] \(n\): there is no setting 'adress'"),
        ([{**MACHINE, "address": "a b"}], [], "not an address"),
        ([{**MACHINE, "jump": "ok,-oProxyCommand=x"}], [], "not an address"),
        ([{**MACHINE, "port": 70_000}], [], "port is 70000, not a number from 1 to 65535"),
        ([{**MACHINE, "port": True}], [], "port is True"),
        ([{**MACHINE, "every_seconds": 0}], [], "every_seconds is 0"),
        ([{**MACHINE, "host_key_policy": "no"}], [], "host_key_policy is 'no'; it is one of strict, accept-new"),
        ([{**MACHINE, "collect": ["gpu"]}], [], "nothing called 'gpu' can be collected"),
        ([{**MACHINE, "collect": "gpus"}], [], "collect is not a list"),
        ([{**MACHINE, "units": ["a; reboot"]}], [], "not the name of a systemd unit"),
        ([MACHINE, MACHINE], [], "the name 'm' is used twice"),
        ([{"name": "s", "address": "h"}], [SERVICE], "the name 's' is used twice"),
        ([], [{**SERVICE, "kind": "ftp"}], r"services\[1\] \(s\): kind is 'ftp'; it is one of http,"),
        ([], [{**SERVICE, "url": "h"}], "the url names no port"),
        ([], [{"name": "s", "kind": "tcp"}], "url is missing"),
        ([], [{**SERVICE, "headers": {"a": 1}}], "headers is not a table of texts"),
        ([], [{**SERVICE, "verify": "no"}], "verify is not true or false"),
    ],
)
def test_mistakes_are_named(machines: list[dict[str, Any]], services: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(BadInventory, match=said):
        from_settings(machines, services)


def test_a_label_of_prometheus_cannot_be_a_query() -> None:
    with pytest.raises(BadInventory, match="machine_label is not the name of a label"):
        from_settings([], [], [{"name": "p", "url": "http://h:1", "machine_label": "a) or vector(1"}])


# This machine


def test_the_local_reader_reads_every_part() -> None:
    reader = LocalReader(Machine("local"))
    readings = [reader.read(part, 20.0) for part in PARTS]
    assert [type(reading) for reading in readings] == [Host, Gpus, Filesystems, Units, Containers]
    filesystems = readings[2]
    assert isinstance(filesystems, Filesystems) and filesystems.filesystems
    reader.close()


def test_the_local_test_says_what_is_missing() -> None:
    shell, command = try_local()
    assert (shell.step, shell.ok, command.step, command.ok) == ("shell", True, "command", True)


def test_processes_have_rates_between_the_samples_that_have_them() -> None:
    now = [0.0]
    host = HostRates(lambda: now[0])
    assert host.wants_processes
    assert host.reading(sample(processes=True)).processes is not None
    assert host.wants_processes, "one sample makes no rates"
    begun = time.process_time()
    while time.process_time() < begun + 0.1:
        sum(range(1000))
    found = host.reading(sample(processes=True)).processes or ()
    assert sum(process.cpu_ratio or 0.0 for process in found) > 0
    assert not host.wants_processes
    later = host.reading(sample())
    assert later.processes == found and later.seconds is not None and later.seconds < 60
    now[0] += PROCESS_SECONDS
    assert host.wants_processes


# Over SSH


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bin")


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Iterator[Sshd]:
    server = Sshd(tmp_path_factory.mktemp("sshd"), force=with_path(programs))
    yield server
    server.stop()


@pytest.fixture
def reader(sshd: Sshd) -> Iterator[RemoteReader]:
    made = RemoteReader(machine_of(sshd))
    made.connect(20.0)
    yield made
    made.close()
    assert eventually(lambda: sshd.left() == []), sshd.left()


def test_the_remote_reader_reads_every_part(reader: RemoteReader, programs: Path) -> None:
    fake_nvidia_smi(programs)
    host, gpus, filesystems, units, containers = (reader.read(part, 20.0) for part in PARTS)
    assert isinstance(host, Host) and host.processes and host.cpu is not None and host.seconds is None
    second = reader.read("host", 20.0)
    assert isinstance(second, Host) and second.cpu is not None and second.cpu.busy_ratio is not None
    assert isinstance(gpus, Gpus) and gpus.gpus is not None and len(gpus.gpus) == 8 and gpus.processes == ()
    assert isinstance(filesystems, Filesystems) and filesystems.filesystems
    assert isinstance(units, Units) and isinstance(containers, Containers)


def test_a_hung_nvidia_smi_holds_up_nothing_else(reader: RemoteReader, programs: Path) -> None:
    program = fake_nvidia_smi(programs)
    reader.read("gpus", 20.0)
    program.says(nvidia_smi_script("h100x8.csv", before="sleep 600;"))
    with pytest.raises(TimedOut):
        reader.read("gpus", 0.5)
    assert isinstance(reader.read("host", 20.0), Host) and isinstance(reader.read("filesystems", 20.0), Filesystems)


def test_without_gpus_the_channel_is_closed(reader: RemoteReader, programs: Path, sshd: Sshd) -> None:
    fake_nvidia_smi(programs).says("echo 'sh: nvidia-smi: not found'; exit 127")
    gpus = reader.read("gpus", 20.0)
    assert isinstance(gpus, Gpus) and gpus.gpus is None and gpus.faults[0].code == "no_nvidia_smi"
    assert sshd.left()
    reader.rest("gpus")
    assert eventually(lambda: sshd.left() == [])
    fake_nvidia_smi(programs)
    again = reader.read("gpus", 20.0)
    assert isinstance(again, Gpus) and again.gpus


def test_a_new_driver_is_asked_anew_for_its_fields(reader: RemoteReader, programs: Path) -> None:
    program = fake_nvidia_smi(programs)
    reader.read("gpus", 20.0)
    program.says(nvidia_smi_script("failure_unknown_field.txt"))
    odd = reader.read("gpus", 20.0)
    assert isinstance(odd, Gpus) and odd.faults[0].code == "unknown_field"
    fake_nvidia_smi(programs)
    again = reader.read("gpus", 20.0)
    assert isinstance(again, Gpus) and again.gpus


def test_reading_without_a_connection(sshd: Sshd) -> None:
    reader = RemoteReader(machine_of(sshd))
    assert not reader.connected
    with pytest.raises(ConnectionLost):
        reader.read("host", 5.0)
    with pytest.raises(CollectorError, match="not connected"):
        reader.run("true", 5.0)
    reader.close()
    with pytest.raises(CollectorError):
        reader.connect(5.0)
    assert not reader.connected


def test_a_machine_that_ends_the_connection_is_seen(sshd: Sshd) -> None:
    reader = RemoteReader(machine_of(sshd))
    reader.connect(20.0)
    reader.read("host", 20.0)
    sshd.signal_connections(9)
    with pytest.raises(ConnectionLost):
        reader.read("host", 20.0)
    assert eventually(lambda: not reader.connected)
    reader.disconnect()
    reader.connect(20.0)
    assert isinstance(reader.read("host", 20.0), Host)
    reader.close()


def test_the_connection_test_says_what_fails(sshd: Sshd, tmp_path: Path) -> None:
    machine = machine_of(sshd)
    assert all(step.ok for step in try_machine(machine))
    steps = {step.step: step for step in try_machine(replace(machine, known_hosts=tmp_path / "none"))}
    refused = steps["host key"]
    assert steps["connect"].ok and refused.ok is False and steps["authentication"].ok is None
    assert refused.fingerprint is not None and refused.fingerprint.startswith("SHA256:")
    assert refused.command is not None and str(tmp_path / "none") in refused.command
    (nonsense,) = try_machine(replace(machine, address="no such address"))
    assert nonsense.step == "name" and nonsense.ok is False
