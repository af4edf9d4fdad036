"""What files and settings tell without running anything: offline variables, endpoints, telemetry, remote assets, models.

Settings come in as plain values; nothing is asked of any host.
"""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.offline import calls, completeness, page
from deploy.offline.findings import Finding
from deploy.offline.hosts import host_of, is_outside

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
ON = frozenset({"1", "true", "yes", "on"})
# Package -> what switches its telemetry off. Only packages that are installed count.
TELEMETRY = {
    "posthog": {"POSTHOG_DISABLED": ON, "DO_NOT_TRACK": ON},
    "chromadb": {"ANONYMIZED_TELEMETRY": frozenset({"false", "0"})},
    "gradio": {"GRADIO_ANALYTICS_ENABLED": frozenset({"false", "0"})},
    "vllm": {"VLLM_NO_USAGE_STATS": ON, "DO_NOT_TRACK": ON},
    "huggingface_hub": {"HF_HUB_DISABLE_TELEMETRY": ON, "HF_HUB_OFFLINE": ON, "DO_NOT_TRACK": ON},
}
LEFT_OUT = frozenset({"tests", ".venv", "__pycache__", "node_modules", ".git", "data", "offline"})
TRUST = re.compile(r"\btrust_remote_code\s*(?:=|['\"]\s*:)\s*True\b")


def offline_variables(in_force: Mapping[str, bool]) -> Iterator[Finding]:
    """`in_force` is what environment, `.env` and settings say together."""
    for name in OFFLINE_VARIABLES:
        if not in_force.get(name):
            yield Finding("offline_variable_unset", f"{name} is not set", "environment, .env or [offline] of dashboard.toml")


def endpoints(addresses: Sequence[tuple[str, str]], allowed: frozenset[str]) -> Iterator[Finding]:
    """`addresses`: (setting, URL or host:port). Secrets in a URL are not repeated."""
    for setting, address in addresses:
        host = host_of(address)
        if host and is_outside(host, allowed):
            yield Finding("public_endpoint", f"{setting} leads to {host}", setting)


def telemetry(root: Path, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Streamlit's own by its configuration; other packages' that are installed by the variables that switch them off."""
    path = root / ".streamlit" / "config.toml"
    config = _toml(path)
    variable = environ.get("STREAMLIT_BROWSER_GATHER_USAGE_STATS", "").lower()
    stated = config.get("browser", {}).get("gatherUsageStats")
    if variable not in ("false", "0") and (stated is not False or variable in ON):
        where = f"{path}:{_line(path, 'gatherUsageStats')}" if not variable else "STREAMLIT_BROWSER_GATHER_USAGE_STATS"
        yield Finding("telemetry", "Streamlit's page sends usage statistics (browser.gatherUsageStats is not false)", where)
    for package, switches in TELEMETRY.items():
        off = any(environ.get(name, "").lower() in values for name, values in switches.items())
        if not off and importlib.util.find_spec(package) is not None:
            ways = " or ".join(f"{name}={min(values)}" for name, values in switches.items())
            yield Finding("telemetry", f"{package} is installed and its telemetry is not switched off", ways)


def theme(root: Path) -> Iterator[Finding]:
    """Fonts and other files that Streamlit's configuration names on other hosts."""
    path = root / ".streamlit" / "config.toml"
    for number, line in enumerate(_text(path).splitlines(), 1):
        code = line.split("#")[0]
        for url in re.findall(page.REMOTE, code):
            yield Finding("remote_font" if "theme" in code or page.FONT.search(code) else "remote_asset", url, f"{path}:{number}")


def source(root: Path) -> Iterator[Finding]:
    """The program's own source: markup that loads from other hosts, and calls that run a model repository's code."""
    for path in sorted(root.rglob("*.py")):
        if LEFT_OUT & set(path.relative_to(root).parts):
            continue
        text = _text(path)
        for number, remote in page.in_python(text):
            yield Finding("remote_font" if remote.is_font else "remote_asset", remote.url, f"{path}:{number}")
        for number, line in enumerate(text.splitlines(), 1):
            if TRUST.search(line.split("#")[0]):
                yield Finding("trust_remote_code", "a model is loaded with trust_remote_code=True", f"{path}:{number}")
        yield from (Finding(each.code, each.what, f"{path}:{each.line}") for each in calls.in_source(text))


def models(names: Sequence[str], cache: Path) -> Iterator[Finding]:
    """Everything that is missing of the models that run in this process."""
    for name in dict.fromkeys(names):
        yield from completeness.problems(completeness.find(name, cache))


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text(path))
    except tomllib.TOMLDecodeError:
        return {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _line(path: Path, word: str) -> int:
    return next((number for number, line in enumerate(_text(path).splitlines(), 1) if word in line), 1)
