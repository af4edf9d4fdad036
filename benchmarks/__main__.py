"""`python -m benchmarks [MODULE…]` (or `make bench`): every benchmark, or those named, one after the other.

Results go under benchmarks/results/, one file a day; those of modules that were not run today stay in it.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

MODULES = (
    "bench_path",
    "bench_traces",
    "bench_pages",
    "bench_engine",
    "bench_server",
    "bench_sampling",
    "bench_latency",
    "bench_fleet",
    "bench_history",
    "bench_cache",
    "bench_ingest",
    "bench_cache_path",
    "bench_store",
)
PACKAGES = (
    "streamlit",
    "pymilvus",
    "milvus-lite",
    "torch",
    "transformers",
    "FlagEmbedding",
    "sentence-transformers",
    "fastapi",
    "opentelemetry-sdk",
)
RESULTS = Path(__file__).parent / "results"


def main(names: Sequence[str]) -> int:
    unknown = sorted(set(names) - set(MODULES))
    if unknown:
        print(f"no benchmark {unknown[0]!r}; there are {', '.join(MODULES)}", file=sys.stderr)
        return 2
    path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-cpu.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}
    for module in names or MODULES:
        print(f"== {module}", flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{module}"], stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, end="")
        if done.returncode:
            return done.returncode
        results[module] = json.loads(done.stdout.strip().splitlines()[-1])
    record = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": _machine(), "results": results}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return 0


def _machine() -> dict[str, Any]:
    model = next((line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown")
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "cpu": model,
        "cores": sum(line.startswith("processor") for line in _lines("/proc/cpuinfo")),
        "memory_gib": round(memory / 1024 / 1024, 1),
        "gpu": None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
