"""`python scripts/settings_reference.py` writes docs/settings.md, dashboard.example.toml and .env.example."""

from __future__ import annotations

import sys
from pathlib import Path

import tomli_w

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from settings import MERGED, SECRETS, Row, Settings, reference  # noqa: E402

INTRODUCTION = """\
# Settings

Made from the field descriptions in `_settings_models.py` by `scripts/settings_reference.py`; a test fails when they differ.

A value comes from the first of these that has one:

1. the environment;
2. `.env` beside `settings.py` (`${NAME}` is not expanded);
3. `dashboard.toml` beside it, or the file that `RAGDECK_CONFIG` names;
4. `edited.toml` in the data directory, which the pages write; it never holds a secret, and deleting it is safe;
5. the default.

An empty environment variable counts as unset. An empty text in a file unsets an optional setting. Relative paths start
at the folder of `settings.py`. Unknown keys, and unknown variables that start with `RAGDECK_`, are refused with the
nearest known name. Without `MILVUS_URI`, `MILVUS_HOST` and `MILVUS_PORT` (19530) make the Milvus address.
"""
WATCHED = """
# Changes of alert rules, by id (see the page Alerts).
# [alerts.rules.gpu-hot]
# warn = 80

# A machine to watch over SSH; nothing is installed there. `python -m collectors test gpu-box` tries it.
# [[machines]]
# name = "gpu-box"
# address = "203.0.113.7"
# user = "ubuntu"
# key = "~/.ssh/id_ed25519"
# units = ["gpu-server.service"]
# restart = ["gpu-server.service", "docker:whisper"]  # may be restarted on the page Machine

# A service to probe: http, gpu_server, openai-chat, openai-embeddings, rerank, whisper, ocr, milvus, redis, postgres, tcp.
# [[services]]
# name = "vllm"
# kind = "openai-chat"
# url = "http://203.0.113.7:8001"

# A Prometheus server with node_exporter, dcgm-exporter or vLLM in it.
# [[prometheus]]
# name = "fleet"
# url = "http://203.0.113.9:9090"
"""
OPENING = "# Copy to {name}. Every line shows a default or an example; remove the # in front of those you change.\n"


def _default(row: Row) -> str:
    if row.default is None:
        return "unset"
    if isinstance(row.default, str) and "\n" in row.default:
        return "below"
    if row.default in ((), {}):
        return "none"
    if isinstance(row.default, tuple):
        return ", ".join(f"`{item}`" for item in row.default)
    return f"`{str(row.default).lower() if isinstance(row.default, bool) else row.default}`"


def markdown() -> str:
    """The text of docs/settings.md."""
    parts, rows = [INTRODUCTION], reference()
    for table in dict.fromkeys(row.key.rpartition(".")[0] for row in rows):
        title = f"\n## `[{table}]`\n" if table else "\n## Places, and what is watched\n"
        parts += [title, _about(table), "| key | environment | default | meaning |\n|---|---|---|---|\n"]
        for row in rows:
            if row.key.rpartition(".")[0] == table:
                variable = f"`{row.variable}`" if row.variable else ""
                secret = " Secret." if row.key in SECRETS else ""
                parts.append(f"| `{row.key.rpartition('.')[2]}` | {variable} | {_default(row)} | {row.meaning}{secret} |\n")
    for row in rows:
        if isinstance(row.default, str) and "\n" in row.default:
            parts.append(f"\n## Default of `{row.key}`\n\n```text\n{row.default}\n```\n")
    return "".join(parts)


def _about(table: str) -> str:
    fields = Settings.model_fields
    text = fields[table].annotation.__doc__ if table in fields and fields[table].annotation else None
    return f"\n{text}\n\n" if text else "\n"


def example_toml() -> str:
    """The text of dashboard.example.toml: every key, commented out, with its default."""
    parts, table = [OPENING.format(name="dashboard.toml") + "# Secrets are better kept in .env or the environment.\n"], ""
    for row in reference()[2:]:
        if row.key in MERGED or row.key == "alerts.rules":
            continue
        above, _, name = row.key.rpartition(".")
        if above != table:
            table = above
            # A mapping without its required keys is an error, so its header stays a comment too.
            parts.append(f"\n{'# ' if table == 'milvus.mapping' else ''}[{table}]\n")
        value = "" if row.default in (None, "required") else list(row.default) if isinstance(row.default, tuple) else row.default
        line = (
            tomli_w.dumps({name: value}).replace("[\n    ", "[").replace(",\n    ", ", ").replace(",\n]", "]")
        )  # a comment is one line
        parts.append(f"# {row.meaning}\n# {line}")
    return "".join([*parts, WATCHED])


def example_env() -> str:
    """The text of .env.example: every variable, commented out."""
    parts = [OPENING.format(name=".env")]
    for row in reference():
        if row.variable:
            default = str(row.default).lower() if isinstance(row.default, bool) else row.default
            parts.append(f"\n# {row.meaning}\n# {row.variable}={default if default not in (None, ()) else ''}\n")
    parts.append("\n# Used when MILVUS_URI is unset.\n# MILVUS_HOST=\n# MILVUS_PORT=19530\n")
    parts.append("\n# Used for llm.api_key when VLLM_API_KEY is unset and VLLM_BASE_URL is set.\n# OPENAI_API_KEY=\n")
    return "".join(parts)


FILES = {"docs/settings.md": markdown, "dashboard.example.toml": example_toml, ".env.example": example_env}

if __name__ == "__main__":
    for name, text in FILES.items():
        (ROOT / name).write_text(text(), encoding="utf-8")
