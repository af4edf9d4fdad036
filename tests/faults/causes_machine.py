"""Causes in the machine. Its readings are recorded (`readings.py`); the stage that suffers is really slowed beside them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults import readings
from tests.faults.laboratory import Fault, Injection
from tests.faults.world import Bench, Machine, World

SLOWED = 0.011  # seconds a candidate in place of 0.0008: 40 candidates take 0.41 s longer
NOTE = "readings recorded, the fake reranker slowed"


def slowed(machine: Machine) -> Injection:
    """Reranking slower on a machine that tells why."""

    @contextmanager
    def inject(bench: Bench, world: World) -> Iterator[World]:
        with bench.rerank_speed.at(per_text=SLOWED):
            yield world.on(machine)

    return inject


@contextmanager
def busy_processor(bench: Bench, world: World) -> Iterator[World]:
    """A process that burns, for two seconds at most; what it takes of shared cores is not certain, so that seconds are added."""
    burning = "import time\nend = time.monotonic() + 2\nwhile time.monotonic() < end:\n    pass"
    hog = subprocess.Popen([sys.executable, "-S", "-c", burning])
    try:
        with bench.rerank_speed.at(per_text=SLOWED):
            yield world.on(readings.busy_processor)
    finally:
        hog.kill()
        hog.wait()


FAULTS = (
    Fault("processors busy", "cpu_saturated", busy_processor, note="a real hog, seconds added, readings recorded"),
    Fault("GPU throttled by heat", "gpu_throttled", slowed(readings.throttled), note=NOTE),
    Fault("GPU throttled by its power limit", "gpu_throttled", slowed(readings.power_capped), note=NOTE, only_long=True),
    Fault("GPU shared with another process", "gpu_shared", slowed(readings.foreign), note=NOTE),
    Fault("GPU asleep, persistence off", "gpu_persistence_off", slowed(readings.asleep), note=NOTE, only_long=True),
    Fault("GPU clocks low", "gpu_clocks_low", slowed(readings.low_clocks), note=NOTE, only_long=True),
    Fault("GPU memory full", "vram_full", slowed(readings.full_memory), note=NOTE, only_long=True),
)
