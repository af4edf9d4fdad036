"""Pack everything for a machine without internet: wheels, models, images, settings. Exit codes: 0 ok, 1 failed, 2 wrong usage."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w
from dotenv import dotenv_values

from _settings_models import VARIABLES
from _settings_values import SECRET_NAMES
from deploy.offline import bundle, sources, wheels
from rag.errors import RagError
from settings import SECRETS, VERSION, Settings, SettingsError, load

ROOT = Path(__file__).parents[1]
STARTER = "starter"
ELSEWHERE = "Correct that, or choose another place with --out and --work; then run it again: what is done is kept."
NOT_CARRIED = frozenset({"RAGDECK_DATA", "RAGDECK_CONFIG", "EMBEDDING_MODEL", "RERANKER_MODEL", "RAGDECK_LOCAL_MODEL"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the bundle is written; again goes on")
    parser.add_argument(
        "--python", default=".".join(map(str, sys.version_info[:2])), help="Python over there (default: this one)"
    )
    parser.add_argument("--platform", default="manylinux_2_28_x86_64", help="platform tag over there (default %(default)s)")
    parser.add_argument("--part-bytes", type=int, default=1_000_000_000, metavar="N", help="size of a part (default %(default)s)")
    parser.add_argument("--models", nargs="+", default=[], metavar="ID", help="further models, hub names or folders")
    parser.add_argument("--image", nargs="+", default=[], metavar="NAME", help="container images that Docker has here")
    parser.add_argument("--requirements", default="requirements.txt", metavar="FILE", help="of the program (default %(default)s)")
    parser.add_argument("--no-wheels", action="store_true", help="no Python packages: they are over there")
    parser.add_argument("--find-links", action="append", default=[], metavar="DIR", help="a folder with wheels")
    parser.add_argument("--extra-index", action="append", default=[], metavar="URL", help="such as torch's index for one CUDA")
    parser.add_argument("--no-index", action="store_true", help="take wheels from --find-links only")
    parser.add_argument("--work", type=Path, metavar="DIR", help="downloads are kept there for another run (default: DIR.work)")
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Raises RagError."""
    out = arguments.out.absolute()
    work = (arguments.work or out.with_name(out.name + ".work")).absolute()
    say = _progress if sys.stderr.isatty() and not arguments.json else lambda text: None
    asked = wanted(arguments)
    try:
        made = bundle.make(asked, out, work, datetime.now(UTC).isoformat(timespec="seconds"), say)
    except OSError as problem:  # a disk that is full, read-only or gone, wherever it was met
        place = problem.filename or f"{out} or {work}"
        message = f"{place}: {problem.strerror or problem}"
        raise RagError(message, kind="bad_input", next_step=ELSEWHERE) from problem
    if arguments.json:
        print(json.dumps({**asdict(made), "out": str(out), "work": str(work)}, ensure_ascii=False))
        return 0
    print(f"\r{out}: {made.parts} part(s), {made.bytes:,} bytes, {made.files:,} files, bundle {made.id}")
    print(f"checksum of SHA256SUMS, to be told by another way: {made.digest}")
    if made.contents["secrets"]:
        print(f"not in the bundle, to be set over there: {', '.join(made.contents['secrets'])}")
    print(f"over there: python3 install.py --to DIR --start      ({work} can be deleted)")
    return 0


def wanted(given: argparse.Namespace, root: Path = ROOT, environ: Mapping[str, str] = os.environ) -> bundle.Wanted:
    """What the arguments and the settings in `root` ask for. Raises RagError."""
    try:
        settings = load(environ, root)
    except SettingsError as problem:
        raise RagError(str(problem), kind="bad_input", next_step="Correct the settings first.") from problem
    config, secrets = _config(settings, root, environ)
    return bundle.Wanted(
        root,
        VERSION,
        wheels.Target(given.python, given.platform),
        None if given.no_wheels else given.requirements,
        wheels.Sources(tuple(given.find_links), tuple(given.extra_index), given.no_index),
        (*local_models(settings), *(bundle.Model(name) for name in given.models)),
        tuple(given.image),
        config,
        secrets,
        given.part_bytes,
    )


def local_models(settings: Settings) -> tuple[bundle.Model, ...]:
    """The models that run in this process; the starter ones are carried by a wheel."""
    far = settings.gpu_server.url
    found = [
        (None if far or settings.embeddings.base_url else settings.models.embedder, "EMBEDDING_MODEL"),
        (
            None if far or settings.reranker.api_url or not settings.reranker.enabled else settings.models.reranker,
            "RERANKER_MODEL",
        ),
        (settings.llm.local_model, "RAGDECK_LOCAL_MODEL"),
    ]
    return tuple(bundle.Model(name, variable) for name, variable in found if name and name != STARTER)


def _config(settings: Settings, root: Path, environ: Mapping[str, str]) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """The settings' files without secrets, and the names of the secrets."""
    files, secrets = [], []
    for name, path in (("dashboard.toml", settings.config_file), ("edited.toml", settings.data_dir / "edited.toml")):
        if path is not None and path.is_file():
            data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
            clean, left_out = sources.without_secrets(data, SECRETS, SECRET_NAMES)
            files.append((name, tomli_w.dumps(clean)))
            secrets += [f"{key} of {name}" for key in left_out]
    given = {**dotenv_values(root / ".env", interpolate=False), **environ}
    lines = []
    for name, key in sorted(VARIABLES.items()):
        value = (given.get(name) or "").strip()
        plain = sources.without_user(value)
        secret = key in SECRETS or plain != value
        if value and secret:
            secrets.append(name)
        if value and key not in SECRETS and (name not in NOT_CARRIED or not Path(value).expanduser().is_dir()):
            lines.append(f"{name}={_quoted(plain)}")
    lines += [f"{name}={_quoted(str(given[name]))}" for name in ("MILVUS_HOST", "MILVUS_PORT") if given.get(name)]
    secrets += ["OPENAI_API_KEY"] if given.get("OPENAI_API_KEY") and settings.llm.base_url else []
    files.append(("env", "\n".join(lines) + "\n"))
    return tuple(files), tuple(secrets)


def _quoted(value: str) -> str:
    """As `.env` files write it: single quotes keep everything but themselves."""
    return (
        value
        if value.replace("-", "a").replace("/", "a").isalnum()
        else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    )


def _progress(text: str) -> None:
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
