"""Settings of RAG Deck: the only reader of environment, `.env` and TOML. Importing does no work and imports nothing of ours.

Environment over `.env` over `dashboard.toml` over `data/edited.toml` (what the pages change) over the defaults. The
sections themselves are in `_settings_models.py`, the kinds of values in `_settings_values.py`, files in `_settings_sources.py`.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from _settings_models import (
    KEYS,
    MERGED,
    SECRETS,
    TABLES,
    VARIABLES,
    Alerts,
    Api,
    CollectionMapping,
    Embeddings,
    GpuServer,
    Ingest,
    Llm,
    Milvus,
    Models,
    Offline,
    Query,
    Redis,
    Reranker,
    Server,
    Settings,
    Traces,
    extra,
    value_of,
)
from _settings_sources import (
    Entry,
    Problem,
    SettingsError,
    did_you_mean,
    line_of,
    read_env_file,
    read_toml,
    shown,
    write_toml,
)
from _settings_values import holds_login, holds_secret, key_variables, revealed, with_key

__all__ = [
    "MERGED",
    "SECRETS",
    "VERSION",
    "Alerts",
    "Api",
    "CollectionMapping",
    "Embeddings",
    "GpuServer",
    "Ingest",
    "Llm",
    "Milvus",
    "Models",
    "Offline",
    "Problem",
    "Query",
    "Redis",
    "Reranker",
    "Row",
    "Server",
    "Settings",
    "SettingsError",
    "Traces",
    "edited",
    "load",
    "reference",
    "revealed",
    "save_edited",
]

VERSION = "0.1.0"
PREFIX = "RAGDECK_"
EDITED_HINT = "data/edited.toml is written by the pages; deleting it restores the settings of dashboard.toml"
# Read by name in `_environment` and `_read`; every other variable belongs to one field.
SPECIAL_VARIABLES = ("RAGDECK_DATA", "RAGDECK_CONFIG", "MILVUS_HOST", "MILVUS_PORT", "OPENAI_API_KEY")
KEYED = ("services", "prometheus")  # tables whose entries may name the variable of their key
# Kubernetes puts RAGDECK_PORT=tcp://… and RAGDECK_SERVICE_HOST into every pod beside a service called "ragdeck".
_SERVICE_LINK = re.compile(r"RAGDECK(_\w+)?_(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")


class _Layers(NamedTuple):
    """What each source says, by dotted key; nothing validated yet."""

    data_dir: Path
    config_file: Path | None
    environment: dict[str, Entry]
    config: dict[str, Entry]
    edited: dict[str, Entry]
    openai_key: Entry | None


def load(environ: Mapping[str, str] | None = None, root: Path | None = None) -> Settings:
    """Settings from the environment, and from `.env`, `dashboard.toml`, `data/edited.toml` in `root` (default: this folder).

    Empty variables count as unset. Raises SettingsError with every problem found.
    """
    given = os.environ if environ is None else environ
    base = Path(os.path.abspath(root or Path(__file__).parent))
    problems: list[Problem] = []
    settings = _validated(_read(given, base, problems), problems)
    if settings is None or problems:
        raise SettingsError(problems)
    known = {*VARIABLES, *SPECIAL_VARIABLES, *key_variables(getattr(settings, table) for table in KEYED)}
    wanted = {name: value for name, value in given.items() if name.startswith(PREFIX) or name in known}
    settings._remembered = (wanted, base)
    return settings


def _read(environ: Mapping[str, str], root: Path, problems: list[Problem]) -> _Layers:
    written = _variables(environ, root, problems)
    variables = {name: entry for name, entry in written.items() if str(entry.value).strip()}
    data_dir = _path(variables.get("RAGDECK_DATA"), root / "data", root)
    if os.path.exists(data_dir) and not os.path.isdir(data_dir):
        problems.append(Problem(str(data_dir), "data_dir", "a file", "a directory"))
    named = variables.get("RAGDECK_CONFIG")
    config_file = _path(named, root / "dashboard.toml", root)
    config = _file_entries(config_file, named is not None, variables, problems)
    edited = _file_entries(data_dir / "edited.toml", False, variables, problems, is_edited=True)
    _refuse_unknown(written, key_variables(config[table].value for table in KEYED if table in config), problems)
    used = config_file if os.path.isfile(config_file) else None
    return _Layers(data_dir, used, _environment(variables, problems), config, edited, variables.get("OPENAI_API_KEY"))


def _path(entry: Entry | None, default: Path, root: Path) -> Path:
    return Path(os.path.abspath(root / os.path.expanduser(str(entry.value).strip()))) if entry else default


def _variables(environ: Mapping[str, str], root: Path, problems: list[Problem]) -> dict[str, Entry]:
    """Variables by name, the real environment over `.env`; an empty one of the environment hides nothing."""
    variables = read_env_file(root / ".env", problems)
    for name, value in environ.items():
        if value.strip():
            variables[name] = Entry(value, f"environment {name}", f"environment variable {name}")
    return variables


def _refuse_unknown(variables: Mapping[str, Entry], keys: Iterable[str], problems: list[Problem]) -> None:
    """A RAGDECK_ name that nobody reads is a problem; `keys` are those that entries name for their keys."""
    known = [*VARIABLES, *SPECIAL_VARIABLES, *keys]
    for name, entry in variables.items():
        link = _SERVICE_LINK.fullmatch(name) or name.endswith("_PORT") and str(entry.value).startswith("tcp://")
        if name.startswith(PREFIX) and name not in known and not link:
            problems.append(entry.problem(name, "an unknown variable", "one that RAG Deck reads", did_you_mean(name, known)))


def _environment(variables: Mapping[str, Entry], problems: list[Problem]) -> dict[str, Entry]:
    found = {key: variables[name] for name, key in VARIABLES.items() if name in variables}
    host, port = variables.get("MILVUS_HOST"), variables.get("MILVUS_PORT")
    # MILVUS_PORT=tcp://10.0.0.1:19530 is the link Kubernetes makes for a service called "milvus".
    number, linked = _port_number(port)
    if "milvus.uri" in found or host is None:
        if port and not linked and "milvus.uri" not in found:
            problems.append(port.problem("MILVUS_PORT", "a port without a host", "MILVUS_HOST beside it, or MILVUS_URI"))
        return found
    name = str(host.value).strip()
    if not re.fullmatch(r"[\w.-]+|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]+", name):
        problems.append(host.problem("MILVUS_HOST", shown(name), "a host name or address; for a whole URL use MILVUS_URI"))
    elif not 1 <= number <= 65535:
        problems.append((port or host).problem("MILVUS_PORT", shown(port and port.value), "a port from 1 to 65535"))
    else:
        uri = f"http://[{name}]:{number}" if ":" in name else f"http://{name}:{number}"
        found["milvus.uri"] = Entry(uri, host.origin, host.place, host.line)
    return found


def _port_number(entry: Entry | None) -> tuple[int, bool]:
    """(port or 0 where it is none, whether Kubernetes wrote it)."""
    if entry is None:
        return 19530, False
    text = str(entry.value).strip()
    linked = text.startswith("tcp://")
    digits = text.rpartition(":")[2] if linked else text
    return int(digits) if re.fullmatch(r"[0-9]{1,5}", digits) else 0, linked


def _file_entries(
    path: Path, required: bool, variables: Mapping[str, Entry], problems: list[Problem], is_edited: bool = False
) -> dict[str, Entry]:
    """Values of a TOML file by dotted key; unknown keys, and secrets in edited.toml, are problems. The keys that entries leave
    to a variable are looked up."""
    hint = EDITED_HINT if is_edited else None
    data, lines = read_toml(path, required, hint, problems)
    found: dict[str, Entry] = {}
    for key, value in _flat(data):
        line = line_of(key, lines)
        entry = Entry(value, path.name if is_edited else f"{path.name}:{line}", str(path), line, hint)
        problem = _key_problem(key, entry, is_edited)
        if problem:
            problems.append(problem)
            continue
        if key in KEYED and isinstance(value, list):
            keyed = [with_key(f"{key}[{place}]", each, entry, variables, lines, problems) for place, each in enumerate(value, 1)]
            entry = replace(entry, value=keyed)
        found[key] = entry
    return found


def _flat(data: Mapping[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value), where known tables are taken apart and everything else is left whole."""
    for name, value in data.items():
        if above + name in TABLES and isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value


def _key_problem(key: str, entry: Entry, is_edited: bool) -> Problem | None:
    if is_edited and (key in SECRETS or holds_login(entry.value) or key in MERGED and holds_secret(entry.value)):
        return entry.problem(key, "a secret", "secrets only in the environment, .env or dashboard.toml")
    if key in KEYS:
        return None
    if key in TABLES:
        return entry.problem(key, "a value", f"a table [{key}]")
    hint = f"did you mean {VARIABLES[key]}?" if key in VARIABLES else did_you_mean(key, [*KEYS, *TABLES])
    return entry.problem(key, "an unknown key", "a key of docs/settings.md", hint)


def _validated(layers: _Layers, problems: list[Problem]) -> Settings | None:
    entries = {**layers.edited, **layers.config, **layers.environment}
    entries |= {key: _merged(layers.edited[key], layers.config.get(key)) for key in MERGED if key in layers.edited}
    base_url = entries.get("llm.base_url")
    if layers.openai_key and "llm.api_key" not in entries and base_url and str(base_url.value).strip():
        entries["llm.api_key"] = layers.openai_key
    values = _nested((key, entry.value) for key, entry in entries.items())
    origins = {key: entry.origin for key, entry in entries.items()}
    details: list[ErrorDetails] = []
    try:
        return Settings(data_dir=layers.data_dir, config_file=layers.config_file, origins=origins, **values)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
    # Outside the except block, so that no traceback carries pydantic's error, which knows the values.
    problems.extend(_value_problem(detail, entries) for detail in details)
    return None


def _merged(edited: Entry, config: Entry | None) -> Entry:
    """The tables of both files; one of edited.toml gives way to one of the same name."""
    if config is None or not isinstance(config.value, list) or not isinstance(edited.value, list):
        return edited if config is None else config
    names = {entry.get("name") for entry in config.value if isinstance(entry, Mapping)}
    added = [entry for entry in edited.value if not (isinstance(entry, Mapping) and entry.get("name") in names)]
    return replace(config, value=[*config.value, *added])


def _nested(flat: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat:
        *tables, name = key.split(".")
        table = tree
        for part in tables:
            table = table.setdefault(part, {})
        table[name] = value
    return tree


def _value_problem(detail: ErrorDetails, entries: Mapping[str, Entry]) -> Problem:
    key = ".".join(part for part in detail["loc"] if isinstance(part, str))
    while key not in KEYS and key not in TABLES and "." in key:
        key = key.rpartition(".")[0]  # an entry of a table of values, such as one header, is its setting's
    expected = re.sub(r"^(Value error, |Input should be )", "", detail["msg"]).replace("String should", "a text that should")
    if detail["type"] == "missing":
        found, expected = "nothing", "a value"
    elif key in SECRETS:
        found = "a value that is not shown"
    else:
        found = "a table without" if key in TABLES else shown(detail["input"])
    table = key if key in TABLES else key.rpartition(".")[0]
    near = [(name, entry) for name, entry in entries.items() if name.startswith(f"{table}.")]
    if key in entries:
        return entries[key].problem(key, found, expected)
    if (detail["type"] == "missing" or key in TABLES) and near:
        return near[0][1].problem(key, found, expected)
    beside = ", ".join(f"{name} by {entry.origin}" for name, entry in near)
    return Problem("default", key, found, expected, hint=f"set: {beside}" if beside else None)


# ------------------------------------------------------------------------------------------------------------- saving

_SAVING = threading.Lock()


def save_edited(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Write changes (dotted key -> value; None goes back to the default; a table replaces that table) to edited.toml.

    Raises SettingsError, with nothing written, for unknown keys, bad values, secrets, and keys that the environment or
    dashboard.toml decides. Returns the settings as loaded afterwards.
    """
    if settings._remembered is None:
        raise SettingsError([Problem("save_edited", None, "settings made by hand", "settings made by load()")])
    environ, root = settings._remembered
    problems: list[Problem] = []
    with _SAVING:
        layers = _read(environ, root, problems)
        if not problems:
            layers = layers._replace(edited=_changed(layers, changes, problems))
            valid = _validated(layers, problems)
        if problems or valid is None:
            raise SettingsError(problems)
        _write(layers, valid)
        return load(environ, root)


def edited(settings: Settings, key: str) -> Any:
    """What edited.toml itself says for `key`, None where it says nothing. Raises SettingsError."""
    if settings._remembered is None:
        return None
    problems: list[Problem] = []
    found = _read(*settings._remembered, problems).edited.get(key)
    if problems:
        raise SettingsError(problems)
    return None if found is None else found.value


def _changed(layers: _Layers, changes: Mapping[str, Any], problems: list[Problem]) -> dict[str, Entry]:
    stronger = {**layers.config, **layers.environment}
    edited = dict(layers.edited)
    for key, value in changes.items():
        edited = {name: entry for name, entry in edited.items() if not _under(name, key)}
        for name, item in [(key, None)] if value is None else _flat(_nested([(key, value)])):
            entry = Entry(item, "edited.toml", "change")
            problem = _key_problem(name, entry, True) if not (item is None and name in TABLES) else None
            wins = next((entry for other, entry in stronger.items() if _under(other, name) and other not in MERGED), None)
            if problem is None and wins:
                problem = Problem("change", name, "a change", f"no change here, because {wins.origin} wins: change it there")
            if problem:
                problems.append(problem)
            elif item is not None:
                edited[name] = entry
    return edited


def _under(name: str, key: str) -> bool:
    return name == key or name.startswith(f"{key}.")


def _write(layers: _Layers, valid: Settings) -> None:
    # A key that a stronger source decides keeps what the file had; the others are written as validated.
    decided = layers.config.keys() | layers.environment.keys() | set(MERGED)
    flat = ((key, entry.value if key in decided else value_of(valid, key)) for key, entry in layers.edited.items())
    tree = _nested((key, list(value) if isinstance(value, tuple) else value) for key, value in flat if value is not None)
    path = layers.data_dir / "edited.toml"
    try:
        write_toml(path, tree)
    except OSError as error:
        found = f"an error on writing ({error.strerror})"
        raise SettingsError([Problem(str(path), None, found, "a writable directory")]) from None


# ---------------------------------------------------------------------------------------------------------- reference


class Row(NamedTuple):
    """One setting: dotted key, environment variable, default (None: unset), meaning."""

    key: str
    variable: str | None
    default: Any
    meaning: str


def reference() -> list[Row]:
    """Every setting, from the field descriptions; `scripts/settings_reference.py` makes docs/settings.md of it."""
    rows = [
        Row("data_dir", "RAGDECK_DATA", "data", "Directory of everything that is kept; not settable in a file."),
        Row("config_file", "RAGDECK_CONFIG", "dashboard.toml", "File with your settings; a file named here must exist."),
    ]
    return rows + [Row(key, extra(info)["env"], _default(info), info.description or "") for key, info in KEYS.items()]


def _default(info: FieldInfo) -> Any:
    return "required" if info.is_required() else info.default
