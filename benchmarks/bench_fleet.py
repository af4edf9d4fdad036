"""A fleet over loopback SSH: what watching it costs here and there, how old its readings are, what one hung machine changes.

    python -m benchmarks.bench_fleet [--machines 50] [--seconds 60] [--samples 40] [--gpus]

1) All machines but one are names of one real sshd, the last one is another sshd. The real sweep reads host and disk space of each
(with `--gpus` also eight GPUs from a fake `nvidia-smi`) every 2 s, into a real history and before the alert rules.
2) The last sshd and its connections are stopped (SIGSTOP): the ages of the others before and after.
3) One sample over the long-lived loop, by one `exec` each, and by a scrape of node_exporter, in turn.
CPU over there is that of sshd's sessions and of all that they started, by the kernel's count.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks.figures import percentile
from benchmarks.servers import free_port, running
from collectors import proc
from collectors.alerts import Alerts
from collectors.errors import ConnectionFailed
from collectors.history import History
from collectors.machine_local import LocalReader
from collectors.machine_remote import RemoteReader
from collectors.machines import Machine, PartName, Reader
from collectors.readings import Record
from collectors.rules import DEFAULTS
from collectors.ssh import SshShell
from collectors.ssh_config import resolve
from collectors.sweep import Sweep

DATA = Path(__file__).parents[1] / "tests" / "collectors" / "data" / "nvidia_smi"
HUNG = "hung"
LOOK_SECONDS = 0.25
WARM_SECONDS = 120.0
NVIDIA_SMI = """#!/bin/sh
case "$1" in
--help-query-gpu) exec cat {data}/help_570.txt ;;
--query-gpu*) exec sed '/^# /d' {data}/h100x8.csv ;;
--query-compute-apps*) echo ;;
*) exit 1 ;;
esac
"""


class Sshd:
    """A real sshd on loopback for the user who runs this, with keys of its own. A login's profile is kept short (SHLVL)."""

    def __init__(self, folder: Path, programs: Path | None) -> None:
        folder.mkdir()
        self.folder, self.port = folder, free_port()
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True, timeout=60)
        shutil.copy(folder / "user.pub", folder / "authorized_keys")
        kind, blob = (folder / "host.pub").read_text(encoding="utf-8").split()[:2]
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {blob}\n", encoding="utf-8")
        self._configure(programs)
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        command = ["/usr/sbin/sshd", "-D", "-f", str(folder / "sshd_config")]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _configure(self, programs: Path | None) -> None:
        options = {
            "Port": self.port,
            "ListenAddress": "127.0.0.1",
            "HostKey": self.folder / "host",
            "AuthorizedKeysFile": self.folder / "authorized_keys",
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PermitRootLogin": "yes",
            "MaxStartups": 200,
            "SetEnv": "SHLVL=1",
        }
        if programs is not None:
            options["ForceCommand"] = f'PATH={programs}:$PATH; export PATH; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
        text = "".join(f"{name} {value}\n" for name, value in options.items())
        (self.folder / "sshd_config").write_text(text, encoding="utf-8")

    def machine(self, name: str, collect: tuple[PartName, ...]) -> Machine:
        return Machine(
            name,
            "127.0.0.1",
            user=getpass.getuser(),
            port=self.port,
            key=self.folder / "user",
            known_hosts=self.folder / "known_hosts",
            use_agent=False,
            collect=collect,
        )

    def sessions(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self.process.pid).children(recursive=True))
        return []

    def cpu_seconds(self) -> float:
        """Of everything that runs or ran in the sessions that are open."""
        total = 0.0
        for process in self.sessions():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def signal(self, number: int) -> None:
        for process in [psutil.Process(self.process.pid), *self.sessions()]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def stop(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait(10)


class Counting:
    """Counts the host samples of all remote machines but the one that is to hang."""

    def __init__(self) -> None:
        self.samples = 0
        self._lock = threading.Lock()

    def reader(self, machine: Machine) -> Reader:
        return LocalReader(machine) if machine.is_local else _Counted(machine, self)

    def one_more(self) -> None:
        with self._lock:
            self.samples += 1


class _Counted(RemoteReader):
    def __init__(self, machine: Machine, counting: Counting) -> None:
        super().__init__(machine)
        self._counting = counting

    def read(self, part: PartName, timeout: float) -> Record:
        found = super().read(part, timeout)
        if part == "host" and self._machine.name != HUNG:
            self._counting.one_more()
        return found


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 1e6


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def look(sweep: Sweep, names: frozenset[str], seconds: float, each: Callable[[], None]) -> list[float]:
    """The ages of the hosts' readings, seen four times a second."""
    ages: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
        each()
        parts = [view.host for view in sweep.snapshot().machines if view.name in names]
        ages += [part.age_seconds for part in parts if part is not None and part.age_seconds is not None]
    return ages


def told(ages: list[float]) -> dict[str, float]:
    return {"p50": round(percentile(ages, 0.5), 2), "p95": round(percentile(ages, 0.95), 2), "max": round(max(ages), 2)}


def fleet(folder: Path, machines: int, seconds: float, gpus: bool) -> dict[str, Any]:
    """Watch the machines, then go on with one of them hung."""
    programs = _programs(folder / "bin") if gpus else None
    collect: tuple[PartName, ...] = ("host", "gpus", "filesystems") if gpus else ("host", "filesystems")
    with ExitStack() as stack:
        many, single = Sshd(folder / "many", programs), Sshd(folder / "single", programs)
        stack.callback(many.stop)
        stack.callback(single.stop)
        names = [f"machine-{index:02}" for index in range(machines - 1)]
        before, counting = rss_mb(), Counting()
        history, alerts = History(folder / "history.db"), Alerts(folder / "alerts.db", DEFAULTS)
        watched = [*(many.machine(name, collect) for name in names), single.machine(HUNG, collect)]
        sweep = Sweep(watched, history=history, alerts=alerts, reader=counting.reader)
        sweep.start()
        stack.callback(alerts.close)
        stack.callback(history.close)
        stack.callback(sweep.stop, 10.0)
        if not sweep.wait_for(lambda now: all(_is_read(view) for view in now.machines), WARM_SECONDS):
            raise TimeoutError("not every machine was read in time: is this machine too busy?")
        time.sleep(5.0)  # processes are read twice at first
        well = _measured(sweep, frozenset(names), many, counting, seconds)
        single.signal(signal.SIGSTOP)
        try:
            time.sleep(5.0)
            hung = _measured(sweep, frozenset(names), many, counting, seconds)
            view = sweep.snapshot().machine(HUNG)
            state = None if view is None else view.state
        finally:
            single.signal(signal.SIGCONT)
        well["rss_growth_mb"] = round(max(well["rss_mb"], hung["rss_mb"]) - before, 1)
        return {"well": well, "one_hung": hung | {"its_state": state}}


def _is_read(view: Any) -> bool:
    return all(part.value is not None or part.absent for _, part in view.parts())


def _programs(folder: Path) -> Path:
    folder.mkdir()
    (folder / "nvidia-smi").write_text(NVIDIA_SMI.format(data=DATA), encoding="utf-8")
    (folder / "nvidia-smi").chmod(0o755)
    return folder


def _measured(sweep: Sweep, names: frozenset[str], sshd: Sshd, counting: Counting, seconds: float) -> dict[str, Any]:
    peak = [rss_mb()]
    there, here, samples, started = sshd.cpu_seconds(), cpu_seconds(), counting.samples, time.monotonic()
    ages = look(sweep, names, seconds, lambda: peak.append(max(peak.pop(), rss_mb())))
    elapsed, used = time.monotonic() - started, cpu_seconds() - here
    taken = counting.samples - samples
    return {
        "cpu_share_of_a_core": round(used / elapsed, 4),
        "rss_mb": round(peak[0], 1),
        "age_seconds": told(ages),
        "samples": taken,
        "samples_wanted": round(elapsed / 2.0 * len(names)),
        "cpu_there_ms_per_sample": round(1000 * (sshd.cpu_seconds() - there) / max(1, taken), 2),
        "machine_busy_share": round(psutil.cpu_percent() / 100, 2),
    }


# 3) Side by side


@contextmanager
def ways(folder: Path) -> Iterator[dict[str, tuple[Callable[[], object], Callable[[], float]]]]:
    """The three ways to one sample, each with the CPU seconds that it has cost over there."""
    with ExitStack() as stack:
        sshd = Sshd(folder / "ways", None)
        stack.callback(sshd.stop)
        machine = sshd.machine("ways", ("host",))
        shells = [SshShell(resolve(machine.target)) for _ in range(2)]
        for shell in shells:
            _connected(shell)
            stack.callback(shell.close)
        loop = shells[0].loop({"host": proc.COMMAND})
        loop.sample("host", 30.0)
        port = free_port()
        exporter = [str(shutil.which("prometheus-node-exporter")), f"--web.listen-address=127.0.0.1:{port}"]
        stack.enter_context(running(exporter, port))
        served = next(process for process in psutil.Process().children() if "node-exporter" in " ".join(process.cmdline()))

        def scrape() -> int:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
                return len(answer.read())

        def exporter_seconds() -> float:
            times = served.cpu_times()
            return float(times.user + times.system)

        yield {
            "loop": (lambda: proc.parse(loop.sample("host", 30.0).body), sshd.cpu_seconds),
            "exec": (lambda: proc.parse(shells[1].run(proc.COMMAND, 30.0).stdout), sshd.cpu_seconds),
            "node_exporter": (scrape, exporter_seconds),
        }


def _connected(shell: SshShell) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            return shell.connect(30.0)
        except ConnectionFailed:  # sshd does not listen yet
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def side_by_side(folder: Path, samples: int) -> dict[str, Any]:
    """Each way in runs of ten, in turn: the kernel counts CPU in hundredths of a second."""
    spent: dict[str, list[float]] = {}
    with ways(folder) as known:
        for turn in range(max(1, samples // 10) + 1):
            for name, (take, there) in known.items():
                before = (time.perf_counter(), cpu_seconds(), there())
                for _ in range(10):
                    take()
                after = (time.perf_counter(), cpu_seconds(), there())
                if turn:
                    sums = spent.setdefault(name, [0.0, 0.0, 0.0])
                    spent[name] = [total + end - start for total, start, end in zip(sums, before, after, strict=True)]
    count = max(1, samples // 10) * 10
    names = ("wall_ms", "cpu_here_ms", "cpu_there_ms")
    return {
        way: {name: round(1000 * value / count, 2) for name, value in zip(names, sums, strict=True)}
        for way, sums in spent.items()
    }


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each phase: all well, one hung")
    parser.add_argument("--samples", type=int, default=40, help="of each way, side by side")
    parser.add_argument("--gpus", action="store_true", help="also eight GPUs each, from a fake nvidia-smi")
    given = parser.parse_args(None if arguments is None else list(arguments))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = side_by_side(folder, given.samples)
        found = fleet(folder, given.machines, given.seconds, given.gpus)
    for phase, values in found.items():
        print(f"{phase:9} {100 * values['cpu_share_of_a_core']:.1f} % of a core, ages {values['age_seconds']}, "
              f"{values['cpu_there_ms_per_sample']} ms CPU a sample there")  # fmt: skip
    for way, costs in known.items():
        print(f"{way:14} {costs}")
    about = {"machines": given.machines, "seconds": given.seconds, "gpus": given.gpus}
    print(json.dumps({"benchmark": "fleet", **about, **found, "side_by_side": known}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
