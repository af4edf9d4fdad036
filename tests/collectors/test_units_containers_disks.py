"""Disks, units and containers: what the commands print, and the whole way with fake tools in a real shell."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from collectors import disks, docker, owners, systemd
from collectors.local import LocalShell
from collectors.readings import Fault, metrics

DATA = Path(__file__).parent / "data"
GIB = 2**30


def text(name: str) -> str:
    return (DATA / name).read_text()


def codes(faults: tuple[Fault, ...]) -> list[tuple[str, str | None]]:
    return [(fault.code, fault.subject) for fault in faults]


def run(command: str, tools: dict[str, str], directory: Path) -> str:
    """Run in sh with these scripts first on the path."""
    for name, script in tools.items():
        (directory / name).write_text("#!/bin/sh\n" + script)
        (directory / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}", "LC_ALL": "C"}
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, env=environment, check=False).stdout


# Disks.


def test_file_systems_of_a_server() -> None:
    reading = disks.parse(text("disks/server.txt"))
    found = {item.mount: item for item in reading.filesystems or ()}
    assert list(found) == ["/", "/boot/efi", "/mnt/model store", "/models"]  # the bind mount counts once
    assert found["/"].used_ratio == 1.0 and found["/"].available_bytes == 0
    assert found["/"].inodes_used_ratio == pytest.approx(1.0, abs=1e-4) and found["/"].type == "ext4"
    assert found["/boot/efi"].inodes_total is None and found["/boot/efi"].inodes_used_ratio is None
    store = found["/mnt/model store"]
    assert store.device == "/dev/mapper/vg-data one" and store.type == "xfs"
    assert store.total_bytes == 1073217536 * 1024 and store.used_ratio == pytest.approx(0.7, abs=1e-3)
    assert found["/models"].used_bytes is None and found["/models"].type == "nfs4"
    assert codes(reading.faults) == [("df_failed", None), ("network_filesystem", "/models")]
    assert "filesystem./mnt/model store.used_ratio" in metrics(reading)


def test_images_and_read_only_mounts_are_known_as_such() -> None:
    lines = (
        "/dev/loop0 / squashfs ro,relatime 0 0",
        "/dev/sdb1 /mnt/media iso9660 ro 0 0",
        "/dev/sda1 /data ext4 rw 0 0",
        "x /odd ext4",
    )
    space = "/dev/loop0 100 100 0 100% /\n/dev/sda1 100 40 60 40% /data\nx 100 1 99 1% /odd"
    reading = disks.parse("==> mounts <==\n" + "\n".join(lines) + f"\n==> space <==\nFilesystem 1K\n{space}\n==> inodes <==\n")
    found = {item.mount: (item.read_only, item.can_fill) for item in reading.filesystems or ()}
    assert found == {"/": (True, False), "/data": (False, True), "/odd": (None, True)}


def test_file_systems_of_a_container_with_busybox() -> None:
    found = disks.parse(text("disks/busybox.txt")).filesystems
    assert found and found[0].mount == "/" and found[0].available_bytes == 0 and found[0].used_ratio == 1.0
    assert found[0].inodes_used is None


def test_no_df_is_a_fault() -> None:
    assert disks.parse("").filesystems is None and disks.parse("").faults
    reading = disks.parse(text("disks/no_df.txt"))
    assert reading.filesystems is None and "df: not found" in reading.faults[0].text


def test_space_agrees_with_statvfs() -> None:
    reading = disks.parse(LocalShell().run(disks.COMMAND, 60).stdout)
    root = next(item for item in reading.filesystems or () if item.mount == "/")
    state = os.statvfs("/")
    assert root.total_bytes == state.f_blocks * state.f_frsize
    assert root.available_bytes == pytest.approx(state.f_bavail * state.f_frsize, rel=0.05, abs=2**28)  # others write
    assert root.inodes_used == pytest.approx(state.f_files - state.f_ffree, rel=0.1, abs=5_000)


def test_space_agrees_with_df_read_at_the_same_time() -> None:
    shell = LocalShell()
    found = {item.mount: item for item in disks.parse(shell.run(disks.COMMAND, 60).stdout).filesystems or ()}
    rows = [line.split() for line in shell.run("df -k --output=target,size,used,avail,pcent,iused", 60).stdout.splitlines()[1:]]
    shown = {row[0]: row[1:] for row in rows if row[0] in found}
    assert "/" in shown
    for mount, (size, used, available, percent, inodes) in shown.items():
        item = found[mount]
        assert item.total_bytes == int(size) * 1024
        # others write at the same time
        assert item.used_bytes == pytest.approx(int(used) * 1024, rel=0.05, abs=2**28), mount
        assert item.available_bytes == pytest.approx(int(available) * 1024, rel=0.05, abs=2**28), mount
        assert item.used_ratio is not None and 100 * item.used_ratio == pytest.approx(float(percent.rstrip("%")), abs=3.0)
        if item.inodes_used is not None:
            assert item.inodes_used == pytest.approx(int(inodes), rel=0.05, abs=5_000)


def test_df_is_asked_for_local_mounts_alone(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(text("disks/server.txt").split("==> mounts <==\n")[1].split("==> space")[0])
    output = run(disks.COMMAND.replace("/proc/mounts", str(mounts)), {"df": 'printf "%s|" "$@"; echo'}, tmp_path)
    space = output.split("==> space <==\n")[1].splitlines()[0]
    assert space == "-P|-k|--|/|/boot/efi|/mnt/model store|/var/lib/bind|/backup|"


# systemd.


def test_units() -> None:
    reading = systemd.parse(text("systemd/units.txt"))
    found = {unit.name: unit for unit in reading.units or ()}
    server, vllm, whisper, timer = found.values()
    assert (server.active, server.sub, server.restarts, server.memory_bytes) == ("active", "running", 3, 2362232012)
    assert server.state_seconds == pytest.approx(100_000) and server.description == "GPU server: embedder = reranker"
    assert (vllm.active, vllm.memory_bytes, vllm.main_pid, vllm.exit_status) == ("failed", None, None, 203)
    assert (whisper.load, whisper.memory_bytes, whisper.state_seconds, whisper.enabled) == ("not-found", None, None, None)
    assert (timer.name, timer.restarts, timer.state_seconds) == ("cron.timer", None, pytest.approx(499_999.25))
    assert codes(reading.faults) == [("unit_failed", "vllm.service"), ("unit_unknown", "whisper.service")]


@pytest.mark.parametrize(
    ("name", "code"), [("not_booted", "no_systemd"), ("no_bus", "systemd_unreachable"), ("missing", "no_systemd")]
)
def test_without_systemd_units_are_unknown(name: str, code: str) -> None:
    reading = systemd.parse(text(f"systemd/{name}.txt"))
    assert reading.units is None and [fault.code for fault in reading.faults] == [code]


def test_nothing_failed_and_a_refusal_differ() -> None:
    assert systemd.parse(text("systemd/none_failed.txt")).units == ()
    assert systemd.parse(text("systemd/none_failed.txt")).faults == ()
    assert [fault.code for fault in systemd.parse(text("systemd/show_denied.txt")).faults] == ["systemd_failed"]
    assert systemd.parse("").units is None


def test_units_asked_for_and_failed_ones_are_shown(tmp_path: Path) -> None:
    script = 'case $1 in list-units) echo "bad.service loaded failed failed Bad";; *) for a in "$@"; do echo "Id=$a"; echo; done;; esac'
    output = run(systemd.build(["vllm", "a@b.service"]), {"systemctl": script}, tmp_path)
    assert "Id=--\n\nId=vllm\n\nId=a@b.service\n\nId=bad.service\n" in output
    assert "answered\n" in output and output.startswith("uptime ")


def test_systemctl_that_fails_is_not_none(tmp_path: Path) -> None:
    output = run(systemd.build([]), {"systemctl": "echo 'Failed to connect to bus: Host is down' >&2; exit 1"}, tmp_path)
    assert systemd.parse(output).units is None


@pytest.mark.parametrize("name", ["a; reboot", "$(id)", "--now", "a b", "", "x" * 300, "a\nb"])
def test_names_that_are_no_units_or_containers_are_refused(name: str) -> None:
    for build in (lambda: systemd.build([name]), lambda: systemd.logs(name), lambda: docker.logs(name)):
        with pytest.raises(ValueError, match="not the name"):
            build()


def test_logs_are_asked_for_with_a_limit() -> None:
    assert systemd.logs("vllm.service", 20) == "journalctl --no-pager --output=short-iso --lines=20 --unit=vllm.service 2>&1"
    assert docker.logs("vllm", 20).endswith("$docker logs --tail 20 --timestamps vllm 2>&1")


# Docker.


def test_containers() -> None:
    reading = docker.parse(text("docker/containers.txt"))
    found = {item.name: item for item in reading.containers or ()}
    vllm, milvus, ocr, whisper, never = found.values()
    assert (vllm.state, vllm.health, vllm.restarts, vllm.memory_bytes) == ("running", "healthy", 0, 62277025792)
    assert vllm.state_seconds == pytest.approx(3600) and vllm.image == "vllm/vllm-openai:v0.9.1"
    assert (milvus.name, milvus.restarts, milvus.memory_bytes, milvus.state_seconds) == ("milvus.standalone", 2, None, 60)
    assert ocr.health is None and ocr.state_seconds == 30
    assert (whisper.exit_code, whisper.out_of_memory, whisper.state_seconds) == (137, True, 7200)
    assert (never.state_seconds, never.health) == (None, None)
    assert codes(reading.faults) == [
        ("container_gone", None),
        ("container_unhealthy", "milvus.standalone"),
        ("container_restarting", "ocr"),
        ("container_out_of_memory", "whisper"),
    ]
    assert metrics(reading)["container.milvus.standalone.restarts"] == 2.0


@pytest.mark.parametrize(("name", "code"), [("down", "docker_down"), ("denied", "docker_denied"), ("missing", "no_docker")])
def test_a_dead_daemon_is_not_none(name: str, code: str) -> None:
    reading = docker.parse(text(f"docker/{name}.txt"))
    assert reading.containers is None and [fault.code for fault in reading.faults] == [code]


def test_a_client_without_any_daemon_is_no_fault() -> None:
    down = text("docker/down.txt")
    (fault,) = docker.parse(down + "client alone\n").faults
    assert (fault.code, fault.severity) == ("no_docker_daemon", "note") and "client" in fault.text
    elsewhere = down.replace("unix:///var/run/docker.sock", "tcp://10.0.0.9:2375")  # a context names it: somebody set it up
    assert [each.code for each in docker.parse(elsewhere + "client alone\n").faults] == ["docker_down"]


@pytest.mark.parametrize("set_up", ["", "DOCKER_HOST=tcp://127.0.0.1:1; export DOCKER_HOST\n"])
def test_the_command_looks_for_a_daemon_that_was_set_up(set_up: str, tmp_path: Path) -> None:
    script = "echo 'Cannot connect to the Docker daemon at unix:///var/run/docker.sock.' >&2; exit 1"
    command = docker.COMMAND
    for trace in (
        "/var/run/docker.sock",
        "/var/lib/docker",
        "/lib/systemd/system/docker.service",
        "/etc/systemd/system/docker.service",
    ):
        assert trace in command
        command = command.replace(trace, str(tmp_path / "none"))  # whatever this machine has
    found = docker.parse(run(set_up + command, {"docker": script}, tmp_path))
    daemon_here = shutil.which("dockerd") is not None
    assert [each.code for each in found.faults] == ["docker_down" if set_up or daemon_here else "no_docker_daemon"]


def test_no_containers_and_a_broken_format_differ() -> None:
    assert docker.parse(text("docker/none.txt")).containers == () and docker.parse(text("docker/none.txt")).faults == ()
    assert [fault.code for fault in docker.parse(text("docker/template_error.txt")).faults] == ["docker_failed"]
    assert docker.parse("").containers is None


def test_docker_command_end_to_end(tmp_path: Path) -> None:
    line = text("docker/containers.txt").splitlines()[2]
    script = (
        f"case $1 in ps) echo abc; echo def;; inspect) printf '%s\\n' '{line}'; echo 'Error: No such container: def' >&2;; esac"
    )
    reading = docker.parse(run(docker.COMMAND, {"docker": script}, tmp_path))
    assert [item.name for item in reading.containers or ()] == ["vllm"] and codes(reading.faults) == [("container_gone", None)]
    assert docker.parse(run(docker.COMMAND, {"docker": "exit 0"}, tmp_path)).containers == ()
    assert docker.parse(run(docker.COMMAND, {"docker": "echo down; exit 1"}, tmp_path)).containers is None


# Owners.

ID = "3f2a9c0d1e4b5a69788796a5b4c3d2e1f00112233445566778899aabbccddeef"


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (f"0::/system.slice/docker-{ID}.scope", "docker 3f2a9c0d1e4b"),
        (f"12:memory:/docker/{ID}\n0::/system.slice/containerd.service", "docker 3f2a9c0d1e4b"),
        (f"0::/machine.slice/libpod-{ID}.scope/container", "podman 3f2a9c0d1e4b"),
        (f"0::/kubepods/burstable/pod12/{ID}", "pod 3f2a9c0d1e4b"),
        (f"0::/kubepods.slice/kubepods-pod1.slice/crio-{ID}.scope", "pod 3f2a9c0d1e4b"),
        ("0::/lxc.payload.web/system.slice/nginx.service", "lxc web"),
        ("0::/system.slice/vllm@0.service/worker", "unit vllm@0.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/app.service", "unit app.service"),
        ("0::/user.slice/user-1000.slice/session-3.scope", "unit session-3.scope"),
        ("0::/", None),
        ("", None),
        ("garbage", None),
    ],
)
def test_owner_of_a_process(group: str, expected: str | None) -> None:
    assert owners.owner(group) == expected
