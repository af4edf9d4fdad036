"""What is rendered starts, and its parts reach each other with the right keys: the commands, variables and settings of units,
compose files and deployments, run as they are in a network of their own. Only models, the GPU and folders are replaced."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.render import files, reading, templates
from deploy.render.schema import STORES, Service
from deploy.render.site import Site
from deploy.render.targets import rendered
from tests.deploy.test_render import VARIANTS
from tests.deploy.tools import tool

ROOT = Path(__file__).resolve().parent.parent.parent
Step = dict[str, Any]
# Containers, units and pods; `make test-long` has the other presets, and each of these two the other way round.
STARTED = ["single-vm", "vm-and-vps", "kubernetes"]
REPLACED = {"--embedder": "starter", "--reranker": "starter", "--device": "cpu", "--precision": "auto"}


def secret(name: str) -> str:
    """The value of a secret, another one for each."""
    return hashlib.sha256(name.encode()).hexdigest()


def at_home(text: str, moved: Mapping[str, str]) -> str:
    """A text with the folders of a container, or of another machine, replaced by some of this one."""
    olds = "|".join(re.escape(old) for old in sorted(moved, key=len, reverse=True))
    return re.sub(rf"(?<![\w/])(?:{olds})(?=/|$)", lambda found: moved[found[0]], text) if olds else text


def step(name: str, command: list[str], environment: Mapping[str, str], health: Any, moved: Mapping[str, str]) -> Step:
    words = [at_home(word, moved) for word in command]
    if words[:2] == ["vllm", "serve"]:
        words = [sys.executable, "-m", "tests.deploy.started", "vllm", *words[2:]]
    elif words[:2] == ["milvus", "run"]:
        server = ["server", "--data-dir", moved["/var/lib/milvus"], "--host", "0.0.0.0", "--port", environment["PROXY_PORT"]]
        words = [sys.executable, "-m", "milvus_lite", *server]
    for flag, value in REPLACED.items():
        if flag in words and "gpu_server" in words:
            words[words.index(flag) + 1] = value
    given = {key: at_home(value, moved) for key, value in environment.items()}
    checked = [at_home(word, moved) for word in health] if isinstance(health, list) else health
    plain = {"python": sys.executable, "python3": sys.executable, "docker-entrypoint.sh": "env"}
    found = {"command": words, "environment": given, "health": checked}
    for key in ("command", "health"):
        if isinstance(found[key], list):
            found[key] = [plain.get(word, word.replace("docker-entrypoint.sh ", "")) for word in found[key]]  # type: ignore[union-attr]
    fake = "tests.deploy.started" in words
    return {"name": name, "folder": str(ROOT) if fake else moved.get("/data") or moved.get("/app", str(ROOT)), **found}


def in_the_image(path: str, rules: Sequence[str]) -> bool:
    """Whether a file is in the build context, by the list beside the Docker file: the last rule that names it decides."""
    taken = True
    for rule in rules:
        parts = [r".*" if each == "**" else re.escape(each).replace(r"\*", "[^/]*") for each in rule.removeprefix("!").split("/")]
        pattern = "/".join(parts).replace(".*/", "(?:.*/)?")
        if re.fullmatch(rf"{pattern}(?:/.*)?", path):
            taken = rule.startswith("!")
    return taken


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `COPY . /app` brings into an image of ours: this program is complete in it, or does not start."""
    rules = [line for line in templates.template("dockerignore").splitlines() if line and not line.startswith("#")]
    folder = tmp_path_factory.mktemp("app")
    packages = sorted(
        each.name for each in ROOT.iterdir() if (each / "__init__.py").exists() or each.name in ("samples", "pages")
    )
    paths = [*ROOT.glob("*.*"), ROOT / ".streamlit" / "config.toml"]
    paths += [path for package in packages for path in (ROOT / package).rglob("*")]
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        if path.is_file() and in_the_image(name, rules):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / name)
    assert (folder / "app.py").exists() and not (folder / "tests").exists() and not list(folder.rglob("*.pyc"))
    return folder


# ------------------------------------------------------------------------------------------------- reading what was rendered


def filled_in(folder: Path) -> dict[str, str]:
    """The secrets' example with a value in every line."""
    lines = (folder / "secrets.env.example").read_text().splitlines()
    return {line[:-1]: secret(line[:-1]) for line in lines if line.endswith("=")}


def composed(folder: Path, data: Path, image: Path) -> list[Step]:
    """The services of a compose file, with what Docker Compose would fill in."""
    secrets = filled_in(folder)

    def value(text: str) -> str:
        text = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: secrets[found[1]], text)
        return text.replace("$$", "$")

    found = []
    for name, service in yaml.safe_load((folder / "compose.yaml").read_text())["services"].items():
        moved = {"/app": str(image), "/tmp": str(data)}
        for mount in service.get("volumes", []):
            source, place = mount.split(":")[:2]
            moved[place] = str(folder / source[2:]) if source.startswith("./") else str(data / source)
        words = [value(word) for word in [*service.get("entrypoint", []), *service["command"]]]
        environment = {key: value(each) for key, each in service["environment"].items()}
        kind, *test = [value(word) for word in service["healthcheck"]["test"]]
        health: Any = ["sh", "-c", *test] if kind == "CMD-SHELL" else test
        port = int(environment.get("PROXY_PORT", 0))
        found.append(step(name, words, environment, port or health, moved))
    return found


def unit(path: Path, site: Site) -> Step:
    """A unit with its secrets as the example names them."""
    lines = [line.partition("=") for line in path.read_text().splitlines()]
    (command,) = [value for key, _, value in lines if key == "ExecStart"]
    given = [shlex.split(value)[0].partition("=") for key, _, value in lines if key == "Environment"]
    environment = {key: value.replace("%%", "%") for key, _, value in given}
    name = path.stem.removeprefix("ragdeck-")
    called = None
    for line in path.with_name(f"{name}.env.example").read_text().splitlines():
        called = found[1] if (found := re.search(r"is called (\w+) elsewhere", line)) else called
        if re.fullmatch(r"\w+=", line):
            assert called
            environment[line[:-1]] = secret(called)
        elif line.startswith("#REDIS_URL="):
            environment["REDIS_URL"] = line.removeprefix("#REDIS_URL=").replace("PASSWORD", secret("REDIS_PASSWORD"))
    (service,) = [each for each in site.deployment.services if each.name == name]
    path_of_health = "/health" if service.role == "gpu-server" else "/api/health"
    return step(name, shlex.split(command), environment, f"http://{site.address(service)}{path_of_health}", {})


def deployed(folder: Path, data: Path, image: Path) -> list[Step]:
    """The first container of each deployment, its settings where the map of its volume has them."""
    secrets = filled_in(folder)
    maps = {
        each["name"]: {pair.split("=")[0]: str(folder / pair.split("=")[-1]) for pair in each["files"]}
        for each in yaml.safe_load((folder / "kustomization.yaml").read_text())["configMapGenerator"]
    }
    found = []
    for path in sorted(folder.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if document["kind"] == "Deployment":
                found.append(pod(document["spec"]["template"]["spec"], data, secrets, {"/app": str(image)}, maps))
    return found


def pod(spec: dict[str, Any], data: Path, secrets: Mapping[str, str], moved: dict[str, str], maps: Mapping[str, Any]) -> Step:
    (container,) = spec["containers"]
    places = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    for volume in spec["volumes"]:
        place = places[volume["name"]]
        if "configMap" in volume:
            moved |= {f"{place}/{name}": source for name, source in maps[volume["configMap"]["name"]].items()}
        else:
            moved[place] = str(data / f"{container['name']}-{volume['name']}")
    environment: dict[str, str] = {}
    for variable in container["env"]:
        if "valueFrom" in variable:
            environment[variable["name"]] = secrets[variable["valueFrom"]["secretKeyRef"]["key"]]
        else:
            environment[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], variable["value"])
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    health = container["startupProbe"].get("exec", {}).get("command")
    if health is None:
        asked = container["readinessProbe"]["httpGet"]
        health = f"http://127.0.0.1:{ports[asked['port']]}{asked['path']}"
    return step(container["name"], [*container["command"], *container.get("args", [])], environment, health, moved)


def operated(data: Path) -> list[Step]:
    """What the operators run in a cluster: Milvus on its port, Redis with the password of the secret."""
    (data / "milvus").mkdir()
    redis = ["redis-server", "--port", "6379", "--requirepass", secret("REDIS_PASSWORD"), "--dir", str(data)]
    milvus = step("milvus", ["milvus", "run"], {"PROXY_PORT": "19530"}, 19530, {"/var/lib/milvus": str(data / "milvus")})
    return [milvus, step("redis", redis, {}, 6379, {})]


# -------------------------------------------------------------------------------------------------------------------- started


def prepared(variant: str, folder: Path, image: Path = ROOT, keyed: Sequence[str] = ()) -> tuple[Site, list[Step]]:
    """The variant's files in a folder, and everything of it that can be started here; the services `keyed` ask for a key of their
    own too. Postgres is nobody's but its owner's."""
    data, config = folder / "data", folder / "etc"
    data.mkdir()
    config.mkdir()
    places = f'install_dir = "{ROOT}"\ndata_dir = "{data}"\nconfig_dir = "{config}"'
    text = re.sub(r"^\[\[hosts\]\]$", rf"[[hosts]]\n{places}", VARIANTS[variant], flags=re.MULTILINE)
    for name in keyed:
        if 'token = "' not in text.partition(f'name = "{name}"\n')[2].partition("[[")[0]:
            text = text.replace(f'name = "{name}"\n', f'name = "{name}"\ntoken = "{name.upper()}_TOKEN"\n')
    site = reading.parse(text, "deployment.toml")
    out = folder / "out"
    files.write(rendered(site), out, force=False, whole=True)
    steps: list[Step] = []
    for host in site.deployment.hosts:
        here = out / host.name
        if host.kind == "kubernetes":
            steps += [*operated(data), *deployed(here, data, image)]
        if (here / "compose.yaml").exists():
            steps += composed(here, data, image)
        for path in sorted(here.glob("systemd/*.service")):
            steps.append(unit(path, site))
            told = path.with_name(f"{path.stem.removeprefix('ragdeck-')}.toml")
            if told.exists():
                (config / told.name).write_text(told.read_text())
    wanted = [each for each in steps if each["name"] != "postgres"]
    for each in wanted:
        for place in [each["folder"], *(value for value in each["environment"].values() if value.startswith(str(data)))]:
            Path(place).mkdir(parents=True, exist_ok=True)
    return site, wanted


def run(folder: Path, plan: Mapping[str, Any]) -> Any:
    (folder / "plan.json").write_text(json.dumps(plan))
    command = ["unshare", "-nm", sys.executable, "-m", "tests.deploy.started", str(folder / "plan.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def names(site: Site) -> dict[str, str]:
    """As Docker's and the cluster's name servers have them; with their real addresses beside them all are this one machine."""
    known = {each.name: "127.0.0.1" for each in site.deployment.services}
    return known | {f"{each.name}-milvus": "127.0.0.1" for each in site.deployment.services if each.role == "milvus"}


def local(site: Site, service: Service) -> str:
    """Where a service is reached from its own machine."""
    address = site.address(service) if site.host(service).kind == "machine" else f"127.0.0.1:{service.listens_on}"
    return f"http://{address}"


def questions(site: Site) -> dict[str, Step]:
    """What is asked of what was started. The keys that the dashboard uses show in its readings: vLLM lists its models and the GPU
    server tells its figures to whoever has the key, `api.key` is up where the API's key holds."""
    by_role = {each.role: each for each in site.deployment.services}
    dashboard, api, server = by_role["dashboard"], by_role["api"], by_role.get("gpu-server")
    key = {each.role: secret(each.token) for each in site.deployment.services if each.token}
    up = [each.name for each in site.deployment.services if each.role not in ("dashboard", "postgres")] + [f"{api.name}.key"]
    seen = [rf'ragdeck_service_up{{[^}}]*service="{re.escape(name)}"}} 1.0' for name in up]
    metrics, ask = f"{local(site, dashboard)}/metrics", f"{local(site, api)}/api/v1/ask"
    asked = {
        "readings": {"url": metrics, "token": key["dashboard"], "until": seen},
        "readings with the API's key": {"url": metrics, "token": key["api"]},
        "the API without a key": {"url": ask, "token": None, "method": "POST", "body": {"query": "Is there a key?"}},
        "a question": {"url": ask, "token": key["api"], "method": "POST", "body": {"query": "Is there a key?", "hyde": "on"}},
    }
    if server:
        asked["readings"]["until"].append(rf'ragdeck_engine_requests_limit{{[^}}]*service="{server.name}"')
        status = f"{local(site, server)}/status"
        asked["the GPU server without a key"] = {"url": status, "token": None}
        asked["the GPU server"] = {"url": status, "token": key["gpu-server"]}
    log = f"{dashboard.name}.log"
    return {name: {"log": log, **each} for name, each in asked.items()}


@pytest.mark.parametrize("variant", [pytest.param(each, marks=[] if each in STARTED else pytest.mark.long) for each in VARIANTS])
@pytest.mark.timeout(600)
def test_it_starts_and_every_part_reaches_the_others(variant: str, image: Path, tmp_path: Path) -> None:
    if not tool("unshare"):
        return
    site, steps = prepared(variant, tmp_path, image)
    asked = questions(site)
    addresses = [host.address for host in site.machines]
    plan = {"addresses": addresses, "names": names(site), "processes": steps, "asked": list(asked.values())}
    found = dict(zip(asked, run(tmp_path, plan), strict=True))
    for name, answer in found.items():
        assert answer["status"] == (401 if "key" in name else 200), (name, answer)
    answer = found["a question"]["text"]
    assert '"outcome":"no_documents"' in answer, "the way to the stores is open, and they are empty"
    stages = {each["stage"]: each for each in json.loads(answer)["stages"]}
    assert stages["hyde"]["where"] == "http" and stages["hyde"]["degraded"] is None
    assert stages["embed"]["where"] == "http" and stages["search"]["where"] == "http"


@pytest.mark.timeout(600)
def test_a_server_that_was_given_no_key_is_noticed(tmp_path: Path) -> None:
    """The refusal that the other tests have to meet is in force, and a process that ends is told."""
    if not tool("unshare"):
        return
    _, steps = prepared("single-vm", tmp_path)
    (server,) = [each for each in steps if each["name"] == "gpu-server"]
    del server["environment"]["GPU_SERVER_TOKEN"]
    with pytest.raises(AssertionError, match=r"gpu-server is not well: (.|\n)*refused to listen on 0\.0\.0\.0"):
        run(tmp_path, {"addresses": [], "names": {}, "processes": [server], "asked": []})


CLIENTS = {"gpu-server": "GPU_SERVER_TOKEN", "llm": "VLLM_API_KEY", "embedding": "EMBEDDING_API_KEY", "ocr": "OCR_API_KEY"}
CLIENTS |= {"whisper": "WHISPER_API_KEY", "api": "RAGDECK_API_TOKEN"}
SERVERS = {"gpu-server": "GPU_SERVER_TOKEN", "api": "RAGDECK_TOKEN"}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("keys", ["as shipped", "a key for each"])
def test_each_client_has_the_key_of_its_server(variant: str, keys: str, tmp_path: Path) -> None:
    """For every preset: what a server asks for is what its clients show, and nobody has a key of something else."""
    added = re.findall(r'name = "([\w-]+)"\nrole = "(?:llm|embedding|ocr|whisper)"', VARIANTS[variant]) if "each" in keys else ()
    site, steps = prepared(variant, tmp_path, keyed=added)
    running = {each["name"]: each["environment"] for each in steps}
    apps = [each for each in site.deployment.services if each.role in ("dashboard", "api")]
    for service in site.deployment.services:
        if service.name not in running or service.role in ("dashboard", *STORES):
            continue
        asked_for = running[service.name].get(SERVERS.get(service.role, "VLLM_API_KEY"))
        assert asked_for == (secret(service.token) if service.token else None)
        for app in apps:
            if app.role == "dashboard" or service.role != "api":
                assert running[app.name].get(CLIENTS[service.role]) == asked_for, (app.name, service.name)
    for app in apps:
        told = tomllib.loads(Path(running[app.name]["RAGDECK_CONFIG"]).read_text())
        for entry in told.get("services", []):
            if "api_key_env" in entry:
                (service,) = [each for each in site.deployment.services if each.name == entry["name"].removesuffix(".key")]
                assert running[app.name][entry["api_key_env"]] == secret(service.token or ""), entry
    tokens = [running[app.name]["RAGDECK_TOKEN"] for app in apps]
    assert len(set(tokens)) == len(apps), "the dashboard's own key is not the API's"
