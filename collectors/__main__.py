"""`python -m collectors sweep | watch | test MACHINE`. Exit codes: 0 ok, 1 failed, 2 wrong usage.

Reads everything the settings name, by itself: a dashboard that runs beside it is not asked, and its history is not touched.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import NoReturn

from collectors.connection_test import StepResult
from collectors.inventory import BadInventory, Inventory, from_settings
from collectors.machine_local import try_local
from collectors.machine_remote import try_machine
from collectors.sweep import Sweep
from collectors.table import table
from collectors.views import MachineView, ServiceView, Snapshot

ROUND_SECONDS = 30.0
STOP_SECONDS = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.DEBUG if given.verbose else logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _stop)
    from settings import SettingsError

    try:
        inventory = _inventory()
        if given.command == "test":
            return _test(inventory, given.machine, given.timeout, given.json)
        return _sweep(inventory, given) if given.command == "sweep" else _watch(inventory, given)
    except (SettingsError, BadInventory, _Usage) as problem:
        return _refuse(str(problem), given.json)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


class _Usage(Exception):
    """The command names something that is not there."""


def _stop(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _refuse(text: str, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": {"kind": "bad_input", "message": text, "next_step": ""}}, ensure_ascii=False))
    else:
        print(f"error: {text}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m collectors", description="Read machines and services without the dashboard.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON on standard output (watch: a document a line)")
    common.add_argument("--verbose", action="store_true", help="log what happens to standard error")
    commands = parser.add_subparsers(dest="command", required=True)
    sweep = commands.add_parser(
        "sweep", parents=[common], help="read everything once; fails when something cannot be read or is down"
    )
    sweep.add_argument("--timeout", type=_positive, default=ROUND_SECONDS, metavar="SECONDS", help="for all of it (default 30)")
    watch = commands.add_parser("watch", parents=[common], help="read everything until interrupted")
    watch.add_argument("--every", type=_positive, default=2.0, metavar="SECONDS", help="how often to print (default 2)")
    watch.add_argument("--rounds", type=int, metavar="N", help="stop after N prints")
    test = commands.add_parser("test", parents=[common], help="try to reach a machine, and say which step fails")
    test.add_argument("machine", metavar="MACHINE", help="its name in the settings")
    test.add_argument("--timeout", type=_positive, default=15.0, metavar="SECONDS", help="for all steps (default 15)")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError("expected seconds, at most 3600")
    return value


def _inventory() -> Inventory:
    import settings

    loaded = settings.load()
    return from_settings(*(getattr(loaded, name, ()) for name in ("machines", "services", "prometheus")))


def _sweep(inventory: Inventory, given: argparse.Namespace) -> int:
    sweep = Sweep(*inventory)
    sweep.start()
    try:
        sweep.wait_for(is_complete, given.timeout)
        snapshot = sweep.snapshot()
    finally:
        sweep.stop(STOP_SECONDS)
    _print(snapshot, given.json)
    return 0 if is_well(snapshot) else 1


def _watch(inventory: Inventory, given: argparse.Namespace) -> int:
    sweep = Sweep(*inventory)
    sweep.start()
    printed = 0
    try:
        sweep.wait_for(is_complete, given.every)
        while True:
            _print(sweep.snapshot(), given.json)
            printed += 1
            if given.rounds is not None and printed >= given.rounds:
                return 0
            time.sleep(given.every)
    except KeyboardInterrupt:
        return 0  # the way it is meant to end
    finally:
        sweep.stop(STOP_SECONDS)


def _print(snapshot: Snapshot, as_json: bool) -> None:
    if as_json:
        print(json.dumps(snapshot.to_json(), ensure_ascii=False), flush=True)
    else:
        print(f"{time.strftime('%H:%M:%S', time.localtime(snapshot.at))}\n{table(snapshot)}\n", flush=True)


def is_complete(snapshot: Snapshot) -> bool:
    """Everything was tried, and hosts have the rates that need two samples."""
    return (
        all(map(_is_machine_complete, snapshot.machines))
        and all(map(_is_service_complete, snapshot.services))
        and all(source.at is not None or source.problem is not None for source in snapshot.sources)
    )


def _is_machine_complete(machine: MachineView) -> bool:
    if machine.problem is not None:
        return True
    host = machine.host.value if machine.host else None
    return all(part.tried for _, part in machine.parts()) and (machine.host is None or host is None or host.seconds is not None)


def _is_service_complete(service: ServiceView) -> bool:
    alive = service.liveness.value
    return alive is not None and (not alive.up or service.functional.tried or service.functional.absent)


def is_well(snapshot: Snapshot) -> bool:
    """Every machine could be read and every service does its work."""
    return (
        all(machine.state == "ok" for machine in snapshot.machines)
        and all(service.state in ("ok", "degraded") for service in snapshot.services)
        and all(source.problem is None for source in snapshot.sources)
    )


def _test(inventory: Inventory, name: str, timeout: float, as_json: bool) -> int:
    machine = next((each for each in inventory.machines if each.name == name), None)
    if machine is None:
        raise _Usage(f"no machine {name!r} in the settings; there are {', '.join(each.name for each in inventory.machines)}")
    steps = try_local(timeout) if machine.is_local else try_machine(machine, timeout)
    if as_json:
        print(json.dumps({"machine": name, "steps": [asdict(step) for step in steps]}, ensure_ascii=False))
    else:
        print("\n".join([f"{machine.name} ({machine.shown_address})", *(_step(step) for step in steps)]))
    return 0 if all(step.ok for step in steps) else 1


def _step(step: StepResult) -> str:
    mark = {True: "ok", False: "FAILED", None: "-"}[step.ok]
    text = f"  {step.step:<16}{mark:<8}{step.text}".rstrip()
    return text + (f"\n{'':26}{step.next_step}" if step.next_step and not step.ok else "")


if __name__ == "__main__":
    sys.exit(main())
