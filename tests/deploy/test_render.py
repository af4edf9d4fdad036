"""`python -m deploy render`: one settings file, many files that agree; what is refused and where; edited files are kept."""

from __future__ import annotations

import json
import re
import shlex
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import settings as settings_module
from collectors.inventory import from_settings
from deploy.__main__ import main
from deploy.render import files, reading
from deploy.render.files import File
from deploy.render.site import Site
from deploy.render.targets import rendered
from rag.errors import RagError

APP_ROLES = ("dashboard", "api")
MODEL_SERVERS = ("llm", "embedding", "ocr", "whisper")


def text_of(preset: str) -> str:
    return (reading.PRESETS_FOLDER / f"{preset}.toml").read_text(encoding="utf-8")


def by_systemd(text: str) -> str:
    """The same deployment with all of ours as units."""
    return re.sub(r'^(role = "(?:api|dashboard|gpu-server)")$', r'\1\nrun_by = "systemd"', text, flags=re.MULTILINE)


def by_compose(text: str) -> str:
    return re.sub(r'^run_by = "systemd"\n', "", text, flags=re.MULTILINE)


VARIANTS = {
    **{name: text_of(name) for name in reading.PRESETS},
    "single-vm by units": by_systemd(text_of("single-vm")),
    "vm-and-vps in containers": by_compose(text_of("vm-and-vps")),
    "six-services-a100 by units": by_systemd(text_of("six-services-a100")),
}


@cache
def site(variant: str) -> Site:
    return reading.parse(VARIANTS[variant], f"{variant}.toml")


@cache
def made(variant: str) -> dict[str, File]:
    return {each.path: each for each in rendered(site(variant))}


def raw_services(variant: str) -> dict[str, dict[str, Any]]:
    """The services as the settings file has them, read without our reader."""
    return {each["name"]: each for each in tomllib.loads(VARIANTS[variant])["services"]}


def port(variant: str, name: str) -> int:
    """What the file says, or the port of the role as the requirements have it."""
    usual = {"dashboard": 8502, "api": 8080, "gpu-server": 8000, "embedding": 8001, "ocr": 8002, "llm": 8003, "whisper": 8004}
    stores = {"milvus": 19530, "redis": 6379, "postgres": 5432}
    service = raw_services(variant)[name]
    return int(service.get("port") or (usual | stores)[service["role"]])


def compose_files(variant: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, file in made(variant).items():
        if path.endswith("/compose.yaml"):
            yield path.partition("/")[0], yaml.safe_load(file.text)


def units(variant: str) -> dict[str, list[str]]:
    """The command line of each unit."""
    found = {}
    for path, file in made(variant).items():
        if path.endswith(".service") and "/systemd/" in path:
            (line,) = [line for line in file.text.splitlines() if line.startswith("ExecStart=")]
            found[Path(path).stem.removeprefix("ragdeck-")] = shlex.split(line.removeprefix("ExecStart="))
    return found


def pods(variant: str) -> dict[str, list[dict[str, Any]]]:
    """The documents of each workload in a cluster."""
    found = {}
    for path, file in made(variant).items():
        folder, _, name = path.partition("/")
        if folder == "cluster" and name.removesuffix(".yaml") in raw_services(variant):
            found[name.removesuffix(".yaml")] = list(yaml.safe_load_all(file.text))
    return found


def app_settings(variant: str) -> dict[str, dict[str, Any]]:
    found = {}
    for path, file in made(variant).items():
        name = Path(path).stem
        if path.endswith(".toml") and raw_services(variant)[name]["role"] in APP_ROLES:
            found[name] = tomllib.loads(file.text)
    return found


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


# ------------------------------------------------------------------------------------------------------------ agreement


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_service_is_started_exactly_once(variant: str) -> None:
    started = (
        [name for _, file in compose_files(variant) for name in file["services"]] + list(units(variant)) + list(pods(variant))
    )
    operators = {"milvus", "redis"} if variant == "kubernetes" else set()
    assert sorted(started) == sorted(raw_services(variant).keys() - operators)


@pytest.mark.parametrize("variant", VARIANTS)
def test_ports_are_the_same_in_every_file(variant: str) -> None:
    for _, file in compose_files(variant):
        for name, service in file["services"].items():
            said = str(port(variant, name))
            for mapping in service.get("ports", []):
                assert mapping.split(":")[-2:] == [said, said], name
            flagged = service["command"]
            if "--port" in flagged:
                assert after(flagged, "--port") == said
            if name != "milvus":
                assert said in " ".join(service["healthcheck"]["test"])
    for name, command in units(variant).items():
        if "--port" in command:
            assert after(command, "--port") == str(port(variant, name))
    for name, (deployment, service, *_) in pods(variant).items():
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert container["ports"] == [{"name": "http", "containerPort": port(variant, name)}]
        assert service["spec"]["ports"][0]["port"] == port(variant, name)
        if "--port" in container.get("args", []):
            assert after(container["args"], "--port") == str(port(variant, name))
    for name, data in app_settings(variant).items():
        own = data["server"] if raw_services(variant)[name]["role"] == "dashboard" else data["api"]
        assert own["port"] == port(variant, name)


ADDRESSES = {
    "gpu-server": ("gpu_server", "url"),
    "embedding": ("embeddings", "base_url"),
    "llm": ("llm", "base_url"),
    "ocr": ("ocr", "base_url"),
    "whisper": ("speech", "base_url"),
    "milvus": ("milvus", "uri"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_clients_are_told_the_servers_ports_and_models(variant: str) -> None:
    served = {}
    for _, file in compose_files(variant):
        served |= {
            name: each["command"][0] for name, each in file["services"].items() if each.get("entrypoint") == ["vllm", "serve"]
        }
    for name, (deployment, *_) in pods(variant).items():
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        if container["command"] == ["vllm", "serve"]:
            served[name] = container["args"][0]
    found = app_settings(variant)
    assert len(found) == 2
    for data in found.values():
        for name, service in raw_services(variant).items():
            if service["role"] in ADDRESSES:
                table, key = ADDRESSES[service["role"]]
                assert re.search(r":(\d+)(/v1)?$", data[table][key])[1] == str(port(variant, name))  # type: ignore[index]
            if service["role"] in MODEL_SERVERS:
                assert data[table]["model"] == served[name] == (service.get("weights") or service["model"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_flags_are_the_planners(variant: str) -> None:
    """GPU indices, share, context and tensor parallelism in every command line."""
    for host, file in compose_files(variant):
        for name, service in file["services"].items():
            placed = (
                [each for each in site(variant).plans[host].services if each.service.runs_in == name]
                if host in site(variant).plans
                else []
            )
            if not placed:
                assert "deploy" not in service
                continue
            (device,) = service["deploy"]["resources"]["reservations"]["devices"]
            assert device["device_ids"] == [str(each) for each in placed[0].gpus]
            if service["entrypoint"] == ["vllm", "serve"]:
                assert after(service["command"], "--gpu-memory-utilization") == f"{placed[0].share:.2f}"
                assert after(service["command"], "--tensor-parallel-size") == str(raw_services(variant)[name].get("split", 1))
    for name, (deployment, *_) in pods(variant).items():
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        gpus = container["resources"]["limits"].get("nvidia.com/gpu", 0)
        assert gpus == (1 if name in ("llm", "gpu-server") else 0)


def test_the_reports_shares_come_out() -> None:
    """R4's table on the A100: 12, 6, 6, 13 of 40 GB; on eight H100: 4, 2, 1, 1 GPUs."""
    ((_, a100),) = compose_files("six-services-a100")
    shares = {
        name: after(each["command"], "--gpu-memory-utilization")
        for name, each in a100["services"].items()
        if name in MODEL_SERVERS
    }
    assert shares == {"ocr": "0.30", "whisper": "0.15", "embedding": "0.15", "llm": "0.32"}
    ((_, h100),) = compose_files("six-services-h100")
    devices = {
        name: h100["services"][name]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for name in MODEL_SERVERS
    }
    assert {name: len(each) for name, each in devices.items()} == {"llm": 4, "ocr": 2, "embedding": 1, "whisper": 1}
    assert len({index for each in devices.values() for index in each}) == 8


@pytest.mark.parametrize("variant", [name for name in VARIANTS])
def test_a_moved_port_leaves_no_trace_of_the_old_one(variant: str) -> None:
    """Every port given another number: the old ones are in no file, in whatever format."""
    services = raw_services(variant)
    text = re.sub(r"^port = \d+\n", "", VARIANTS[variant], flags=re.MULTILINE)
    fixed = ("milvus", "redis") if variant == "kubernetes" else ()  # the operators take no other
    numbers = {name: 21_000 + place for place, name in enumerate(services) if name not in fixed}
    for name, number in numbers.items():
        text = text.replace(f'name = "{name}"\nrole', f'name = "{name}"\nport = {number}\nrole')
    moved = reading.parse(text, "moved.toml")
    everything = {each.path: each.text for each in rendered(moved)}
    for path, said in everything.items():
        if path.startswith("docker/"):  # the images' own defaults, which every start overrides
            continue
        for name in numbers:
            assert not re.search(rf"(?<![\d.]){port(variant, name)}(?!\d)", said), (path, name)
    assert all(any(str(number) in said for said in everything.values()) for number in numbers.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_our_own_settings_reader_takes_what_is_rendered(variant: str, tmp_path: Path) -> None:
    for path, file in made(variant).items():
        if Path(path).stem in app_settings(variant) and path.endswith(".toml"):
            config = tmp_path / Path(path).name
            config.write_text(file.text)
            token = {"RAGDECK_TOKEN": "t" * 64}
            token |= dict.fromkeys(re.findall(r'api_key_env = "(\w+)"', file.text), "k" * 64)
            loaded = settings_module.load({"RAGDECK_CONFIG": str(config), "RAGDECK_DATA": str(tmp_path / "d"), **token}, tmp_path)
            assert loaded.milvus.uri
            tables = ([settings_module.revealed(each) for each in table] for table in (loaded.machines, loaded.services))
            inventory = from_settings(*tables, loaded.prometheus)
            watched = (raw_services(variant).keys() - {Path(path).stem}) | {"api.key"}
            assert {each.service.name for each in inventory.services} == (watched if loaded.services else set())


def test_stores_are_reached_by_nobody_beyond_their_machine() -> None:
    for variant in VARIANTS:
        for _, file in compose_files(variant):
            for name in ("milvus", "redis", "postgres"):
                published = file["services"].get(name, {}).get("ports", [])
                assert all(each.startswith("127.0.0.1:") for each in published), (variant, name)
            for service in file["services"].values():
                assert not any(each.startswith("0.0.0.0") or each.count(":") < 2 for each in service.get("ports", []))


def test_offline_is_told_to_every_process_that_loads_models() -> None:
    ((_, file),) = compose_files("six-services-a100")
    for name, service in file["services"].items():
        if name not in ("milvus", "redis"):
            said = service["environment"]
            assert said["HF_HUB_OFFLINE"] == said["TRANSFORMERS_OFFLINE"] == said["HF_DATASETS_OFFLINE"] == "1"
    build = made("six-services-a100")["docker/build.sh"].text
    assert (
        "image ocr Dockerfile.vllm images.internal.example/ragdeck/ocr:0.1.0 --build-arg MODELS=rednote-hilab/dots.ocr" in build
    )
    assert "MODELS" not in made("single-vm")["docker/build.sh"].text


def test_servers_on_one_gpu_start_one_after_the_other() -> None:
    ((_, file),) = compose_files("six-services-a100")
    waits = {name: list(file["services"][name].get("depends_on", {})) for name in MODEL_SERVERS}
    assert waits == {"embedding": [], "ocr": ["embedding"], "llm": ["ocr"], "whisper": ["llm"]}
    ((_, apart),) = compose_files("six-services-h100")
    assert not any(apart["services"][name].get("depends_on") for name in MODEL_SERVERS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_secrets_are_named_and_never_there(variant: str) -> None:
    secret = re.compile(r"TOKEN|API_KEY|PASSWORD|REDIS_URL")
    seen = 0
    for _, file in compose_files(variant):
        for service in file["services"].values():
            values = [value for name, value in service.get("environment", {}).items() if secret.search(name)]
            assert all(":?set " in value for value in values)
            seen += len(values)
    for deployment, *_ in pods(variant).values():
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        given = {each["name"]: each for each in container["env"] if secret.search(each["name"])}
        assert all("secretKeyRef" in each.get("valueFrom", {}) or "$(REDIS_PASSWORD)" in each["value"] for each in given.values())
        seen += len(given)
    for path, file in made(variant).items():
        if path.endswith(".env.example"):
            assert file.mode == 0o600
            assert all(line.startswith("#") or line.endswith("=") for line in file.text.splitlines() if line), path
            seen += file.text.count("=\n")
        elif path.endswith(".service"):
            assert not any(secret.search(line) for line in file.text.splitlines() if line.startswith("Environment=")), path
        elif path.endswith(".toml"):
            said = re.sub(r'api_key_env = "[A-Z_]+"|context_tokens', "", file.text)
            assert "token" not in said and "api_key" not in said, path
    assert seen >= 4


# -------------------------------------------------------------------------------------------------------------- refusals

MINIMAL = """name = "x"
[[hosts]]
name = "vm"
address = "10.0.0.1"
gpu = "L4"

[[services]]
name = "llm"
role = "llm"
host = "vm"
model = "Qwen/Qwen3-8B-AWQ"
stated_share = 0.5
sequences = 1
"""


@pytest.mark.parametrize(
    ("change", "line", "key", "words"),
    [
        (('host = "vm"\nmodel', 'host = "vn"\nmodel'), 10, "services.llm.host", "one of vm"),
        (("sequences = 1", "sequenzes = 1"), 13, "services.llm.sequenzes", "expected sequences"),
        (("sequences = 1", "sequences = 1\nport = 70000"), 14, "services.llm.port", "less than or equal to 65535"),
        (("sequences = 1", 'sequences = 1\nallow = ["home"]'), 14, "services.llm.allow", "a name of [sources]"),
        (("sequences = 1", 'sequences = 1\nrun_by = "systemd"'), 14, "services.llm.run_by", "compose or external"),
        (("sequences = 1", "sequences = 1\nreplicas = 3"), 14, "services.llm.replicas", "1 outside Kubernetes"),
        (("sequences = 1", "sequences = 64\ncontext = 32768"), 7, "services.llm", "no room for Qwen/Qwen3-8B-AWQ"),
        (("stated_share = 0.5", 'precision = "gptq"'), 7, "services.llm.weights", "the GPTQ weights"),
        (('address = "10.0.0.1"', 'address = "gpu.example.org"'), 4, "hosts.vm.address", "an IP address"),
        (('gpu = "L4"', ""), 10, "services.llm.host", "a host with one"),
        (('name = "x"', 'name = "x"\n[sources]\nall = ["0.0.0.0/0"]'), 3, "sources.all.0", "not the whole world"),
        (('name = "x"', 'name = "x"\n[images]\nvllm = "vllm/vllm-openai:latest"'), 3, "images.vllm", "a tag other than latest"),
        (('name = "x"', 'name = "x"\n[firewall]\nssh_from = []'), 3, "firewall.ssh_from", "lock everybody out"),
        (('model = "Qwen/Qwen3-8B-AWQ"', 'model = "a b; rm -rf /"'), 11, "services.llm.model", "match pattern"),
        (("sequences = 1", 'sequences = 1\n[[services]]\nname = "web"\nrole = "dashboard"\nhost = "vm"'), 14, "services.web.token", "never served without"),
        (("sequences = 1", 'sequences = 1\n[[services]]\nname = "llm2"\nrole = "ocr"\nhost = "vm"\nmodel = "a/b"\nport = 8003'), 19, "services.llm2.port", "a port that llm on vm"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_key_and_line(change: tuple[str, str], line: int, key: str, words: str) -> None:
    assert change[0] in MINIMAL
    with pytest.raises(RagError) as refused:
        reading.parse(MINIMAL.replace(*change))
    assert refused.value.kind == "bad_input"
    assert f"line {line}, {key}: found " in refused.value.message and words in refused.value.message


def test_what_others_run_is_used_and_not_started() -> None:
    """A store and a model server that are there already, over IPv6: addressed, watched, in no compose file, no firewall rule."""
    text = VARIANTS["single-vm"].replace(
        'name = "milvus"\nrole = "milvus"\nhost = "vm"', 'name = "milvus"\nrole = "milvus"\nhost = "store"\nrun_by = "external"'
    )
    text += '\n[[hosts]]\nname = "store"\naddress = "2001:db8::7"\n'
    out = {each.path: each.text for each in rendered(reading.parse(text))}
    assert "milvus" not in yaml.safe_load(out["vm/compose.yaml"])["services"]
    told = tomllib.loads(out["vm/dashboard.toml"])
    assert told["milvus"]["uri"] == "http://[2001:db8::7]:19530"
    assert "http://[2001:db8::7]:19530" in [each["url"] for each in told["services"]]
    assert "19530" not in out["vm/firewall/ufw.sh"] + out["store/firewall/ufw.sh"]


def test_an_address_that_leads_nowhere_is_refused() -> None:
    with pytest.raises(RagError, match=r"hosts\.a100\.address: found '127.0.0.1', expected the address at which api is reached"):
        reading.parse(VARIANTS["six-services-a100"].replace("10.10.0.5", "127.0.0.1"))
    with pytest.raises(RagError, match=r"hosts\.vps\.address: found '127.0.0.1', expected an address that the other hosts see"):
        reading.parse(VARIANTS["vm-and-vps"].replace("198.51.100.20", "127.0.0.1"))


def test_a_model_server_that_others_reach_wants_a_key() -> None:
    with pytest.raises(RagError, match=r"services\.llm\.token: found nothing, expected .* beyond its machine"):
        reading.parse(VARIANTS["vm-and-vps"].replace('token = "LLM_TOKEN"\n', ""))
    reading.parse(VARIANTS["single-vm"].replace('token = "LLM_TOKEN"\n', ""))
    reading.parse(VARIANTS["single-vm by units"].replace('token = "GPU_SERVER_TOKEN"\n', ""))
    with pytest.raises(RagError, match=r"services\.gpu-server\.token: found nothing, expected .* does not start in a container"):
        reading.parse(VARIANTS["single-vm"].replace('token = "GPU_SERVER_TOKEN"\n', ""))


def test_plain_http_over_a_public_address_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "d.toml").write_text(VARIANTS["vm-and-vps"].replace("203.0.113.10", "8.8.4.4"))
    assert run(tmp_path / "d.toml", "--out", tmp_path / "out", "--json") == 0
    found = json.loads(capsys.readouterr().out)["warnings"]
    assert [each.split(" ")[0] for each in found] == ["llm", "gpu-server"] and all("8.8.4.4" in each for each in found)
    assert not list(site("vm-and-vps").warnings())


def test_an_unknown_model_and_no_toml_are_clear() -> None:
    with pytest.raises(RagError, match="host vm cannot be planned: the model 'nobody/nothing' is not in the table"):
        reading.parse(MINIMAL.replace("Qwen/Qwen3-8B-AWQ", "nobody/nothing"))
    with pytest.raises(RagError, match="is no TOML"):
        reading.parse("[[hosts")
    with pytest.raises(RagError, match=r"2 problems(.|\n)*services"):
        reading.parse("")


def test_kubernetes_gives_no_half_gpus() -> None:
    shared = (
        text_of("kubernetes")
        .replace("gpus = [0]\n", "")
        .replace("gpus = [1]\n", "")
        .replace("fill = true\n", "stated_share = 0.6\n")
    )
    with pytest.raises(RagError, match="Kubernetes gives whole ones"):
        reading.parse(shared)
    with pytest.raises(RagError, match=r"hosts\.cluster\.gpus: found 4, expected at least 5"):
        reading.parse(text_of("kubernetes").replace("gpus = 5", "gpus = 4"))


# ---------------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_settings_give_the_same_bytes(variant: str) -> None:
    again = rendered(reading.parse(VARIANTS[variant], f"{variant}.toml"))
    assert {each.path: each for each in again} == made(variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_file_says_from_what_it_is_and_notices_an_edit(variant: str) -> None:
    for path, file in made(variant).items():
        assert f"from {variant}.toml (sha256 {site(variant).digest[:16]})" in file.text, path
        assert files.untouched(file.text) is True, path
        assert files.untouched(file.text.replace("e", "f")) is not True, path
        if not path.endswith(".json"):
            assert files.untouched(file.text + "\n") is False, path


def run(*words: object) -> int:
    return main(["render", *map(str, words)])


def test_writing_checking_editing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """New, unchanged, edited by hand, forced, changed by the settings, left over."""
    plan, out = tmp_path / "deployment.toml", tmp_path / "out"
    plan.write_text(text_of("single-vm"))
    assert run(plan, "--out", out, "--check") == 1 and not out.exists()
    assert run(plan, "--out", out) == 0
    assert run(plan, "--out", out, "--check", "--json") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {each["change"] for each in found["files"]} == {"unchanged"} and found["checked"]
    compose = out / "vm" / "compose.yaml"
    assert stat.S_IMODE((out / "vm" / "secrets.env.example").stat().st_mode) == 0o600
    compose.write_text(compose.read_text().replace("unless-stopped", "always"))
    plan.write_text(text_of("single-vm").replace("port = 8001", "port = 8009"))
    assert run(plan, "--out", out) == 1
    assert "vm/compose.yaml (edited)" in capsys.readouterr().err
    assert "8009" not in (out / "vm" / "api.toml").read_text(), "nothing is written where something is refused"
    assert run(plan, "--out", out, "--force") == 0
    assert "127.0.0.1:8009:8009" in compose.read_text() and "8009" in (out / "vm" / "api.toml").read_text()
    plan.write_text(by_systemd(plan.read_text()))
    assert run(plan, "--out", out) == 0
    assert "left over vm/api.toml" in capsys.readouterr().out


def test_files_of_others_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "vm").mkdir()
    (tmp_path / "vm" / "compose.yaml").write_text("services: {}\n")
    (tmp_path / "vm" / "notes.txt").write_text("mine")
    (tmp_path / "vm" / "probe.py").symlink_to("/etc/hostname")
    assert run("--preset", "single-vm", "--out", tmp_path) == 1
    said = capsys.readouterr().err
    assert "vm/compose.yaml (foreign)" in said and "vm/probe.py (foreign)" in said and "notes" not in said
    assert (tmp_path / "vm" / "compose.yaml").read_text() == "services: {}\n"


def test_one_target_and_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--preset", "single-vm", "--out", tmp_path, "--target", "proxy") == 0
    assert [each.name for each in tmp_path.rglob("*") if each.is_file()] == ["ragdeck.conf"]
    assert run("--preset", "single-vm", "--out", tmp_path, "--target", "kubernetes") == 2
    assert 'kind = "kubernetes"' in capsys.readouterr().err
    assert run("--preset", "single-vm") == 2
    assert run(tmp_path / "missing.toml", "--out", tmp_path, "--json") == 2
    (tmp_path / "bad.toml").write_text("name = 3")
    assert run(tmp_path / "bad.toml", "--out", tmp_path) == 2
    capsys.readouterr()
    assert run("--preset", "kubernetes", "--show") == 0
    assert capsys.readouterr().out == text_of("kubernetes")


def test_rendering_needs_no_model_library_and_no_runtime() -> None:
    said = "import sys, deploy.cli_render; print(sorted({'torch', 'streamlit', 'runtime', 'pymilvus', 'settings'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", said], cwd=Path(settings_module.__file__).parent, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_steps_name_what_is_there() -> None:
    """Every script and folder that the steps speak of was rendered."""
    for variant in VARIANTS:
        said = made(variant)["STEPS.txt"].text
        for name in re.findall(r"\./([a-z]+\.sh)", said):
            assert any(path.endswith(f"/{name}") for path in made(variant)), (variant, name)
        assert ("install.sh" in said) == any(path.endswith("install.sh") for path in made(variant))
        assert ("nginx -t" in said) == any(path.endswith("ragdeck.conf") for path in made(variant))
    split = made("vm-and-vps")["STEPS.txt"].text
    assert split.index("On gpu-vm") < split.index("On vps"), "servers before those who use them"
