"""What is rendered, checked by the tools that will read it: systemd, Docker Compose, hadolint, promtool, nginx, Kubernetes' schemas,
kubectl, shellcheck, ufw and iptables. Each tool is also shown to refuse something broken, so that its silence means something."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from deploy.render import files, kubernetes, reading
from deploy.render.targets import rendered
from gpu_server import __main__ as gpu_server
from gpu_server.service import Limits
from tests.deploy.test_render import VARIANTS, made
from tests.deploy.test_render_metrics import Fake
from tests.deploy.tools import ran, tool
from tests.gpu_server.serving import wait_until
from tests.ports import free_port

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every variant in a folder of its own; units start the program of this repository."""
    found = {}
    for number, (name, text) in enumerate(VARIANTS.items()):
        text = re.sub(r"^(\[\[hosts\]\])$", rf'\1\ninstall_dir = "{ROOT}"', text, flags=re.MULTILINE)
        folder = tmp_path_factory.mktemp(f"v{number}")
        files.write(rendered(reading.parse(text, "deployment.toml")), folder, force=False, whole=True)
        found[name] = folder
    return found


def of(folders: dict[str, Path], pattern: str) -> Iterator[Path]:
    found = [path for folder in folders.values() for path in sorted(folder.glob(pattern))]
    assert found, pattern
    yield from found


def test_systemd_verifies_every_unit(folders: dict[str, Path], tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    if analyze is None:
        return
    for unit in [*of(folders, "*/systemd/*.service"), *of(folders, "*/firewall/*.service")]:
        said = ran(analyze, "verify", "--man=no", unit)
        ours = [line for line in said.stdout.splitlines() if unit.name in line]
        assert not ours, ours
        assert said.returncode == 0 or unit.name == "ragdeck-firewall.service", (
            said.stdout
        )  # docker.service is not on this machine
    broken = tmp_path / "broken.service"
    broken.write_text(
        next(of(folders, "*/systemd/ragdeck-api.service")).read_text().replace("ProtectSystem=strict", "ProtectSystm=strict")
    )
    assert "ProtectSystm" in ran(analyze, "verify", "--man=no", broken).stdout


# systemd's exposure in tenths, 0 to 100; measured 1.7, 1.2 and 1.9 by version 252. The rest is what they are there for: the network,
# GPUs, code that torch writes into memory, and for the dashboard the processes of its machine.
EXPOSURE = {"gpu-server": 17, "api": 12, "dashboard": 19, "frontend": 19}


def test_systemd_rates_the_units_as_hardened(folders: dict[str, Path]) -> None:
    analyze = tool("systemd-analyze")
    if analyze is None:
        return
    for unit in of(folders, "*/systemd/*.service"):
        most = next(bound for name, bound in EXPOSURE.items() if name in unit.name)
        said = ran(analyze, "security", "--offline=yes", f"--threshold={most}", "--no-pager", unit)
        assert said.returncode == 0, said.stdout.splitlines()[-1]


def test_docker_compose_takes_every_file(folders: dict[str, Path]) -> None:
    compose = tool("docker-compose")
    if compose is None:
        return
    for path in of(folders, "*/compose.yaml"):
        example = (path.parent / "secrets.env.example").read_text()
        (path.parent / "test.env").write_text(re.sub(r"=$", "=0123abcd", example, flags=re.MULTILINE))
        said = ran(compose, "--env-file", "test.env", "-f", path, "config", "--format", "json", cwd=path.parent)
        assert said.returncode == 0, said.stdout
        found = json.loads(said.stdout[said.stdout.index("{") :])
        assert found["services"].keys() == yaml.safe_load(path.read_text())["services"].keys()
        assert "0123abcd" in said.stdout, "the secrets arrive"
        missing = ran(compose, "-f", path, "config", cwd=path.parent)
        assert missing.returncode != 0 and "set " in missing.stdout, "and are asked for"


def test_hadolint_has_nothing_to_say(folders: dict[str, Path], tmp_path: Path) -> None:
    hadolint = tool("hadolint")
    if hadolint is None:
        return
    for path in of(folders, "docker/Dockerfile.*"):
        if not path.name.endswith("ignore"):
            said = ran(hadolint, "--no-color", path)
            assert (said.returncode, said.stdout) == (0, "")
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /tmp\n")
    assert "DL3006" in ran(hadolint, tmp_path / "Dockerfile").stdout


def test_shellcheck_has_nothing_to_say(folders: dict[str, Path], tmp_path: Path) -> None:
    shellcheck = tool("shellcheck")
    if shellcheck is None:
        return
    scripts = [*of(folders, "**/*.sh")]
    assert all(stat.S_IMODE(each.stat().st_mode) == 0o755 for each in scripts)
    said = ran(shellcheck, *scripts)
    assert (said.returncode, said.stdout) == (0, "")
    (tmp_path / "a.sh").write_text("#!/bin/sh\nrm $1\n")
    assert ran(shellcheck, tmp_path / "a.sh").returncode == 1


def test_promtool_takes_rules_and_configuration(folders: dict[str, Path]) -> None:
    promtool = tool("promtool")
    if promtool is None:
        return
    for path in of(folders, "monitoring/ragdeck.rules.yml"):
        assert "SUCCESS" in (said := ran(promtool, "check", "rules", path).stdout) and "FAILED" not in said
    for path in of(folders, "monitoring/prometheus.yml"):
        (path.parent / "secrets").mkdir()
        for job in yaml.safe_load(path.read_text())["scrape_configs"]:
            if "authorization" in job:
                (path.parent / job["authorization"]["credentials_file"]).write_text("x")
        said = ran(promtool, "check", "config", path)
        assert said.returncode == 0, said.stdout


def test_the_rules_fire(folders: dict[str, Path], tmp_path: Path) -> None:
    """promtool's own unit test: a service that is down, a queue that is long, and one that is not."""
    promtool = tool("promtool")
    if promtool is None:
        return
    (tmp_path / "rules.yml").write_text(next(of(folders, "monitoring/ragdeck.rules.yml")).read_text())
    series = [
        {"series": 'ragdeck_service_up{service="llm"}', "values": "1 0x10"},
        {"series": 'te_queue_size{instance="a",model="m",kind="embedder"}', "values": "300x10"},
        {"series": 'te_queue_size{instance="b",model="m",kind="embedder"}', "values": "3x10"},
    ]
    down = {"exp_labels": {"service": "llm", "severity": "critical"}}
    down["exp_annotations"] = {
        "summary": "llm does not answer its probe",
        "description": "Open the page Services: it says which probe failed and what to check.",
    }
    long = {"exp_labels": {"instance": "a", "model": "m", "severity": "warning"}}
    long["exp_annotations"] = {
        "summary": "More than 256 texts wait for m",
        "description": "Add a replica, or let fewer candidates in.",
    }
    expected = [
        {"eval_time": "2m", "alertname": "RagDeckServiceDown", "exp_alerts": []},
        {"eval_time": "4m", "alertname": "RagDeckServiceDown", "exp_alerts": [down]},
        {"eval_time": "4m", "alertname": "GpuServerQueueLong", "exp_alerts": [long]},
    ]
    test = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": expected}],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    said = ran(promtool, "test", "rules", "test.yml", cwd=tmp_path)
    assert said.returncode == 0, said.stdout


# ------------------------------------------------------------------------------------------------------------- Kubernetes


def test_kubernetes_schemas_take_every_resource(folders: dict[str, Path]) -> None:
    """Of the newest version and the oldest that is said to do; custom resources of operators have no schema here."""
    seen = set()
    for path in of(folders, "cluster/*.yaml"):
        if path.name == "kustomization.yaml":
            continue
        for document in yaml.safe_load_all(path.read_text()):
            for version in (kubernetes.OLDEST, "1.37"):
                kubernetes_validate.validate(document, version, strict=True)
            seen.add(document["kind"])
    wanted = {"Namespace", "Deployment", "Service", "PersistentVolumeClaim", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
    assert seen == wanted | {"NetworkPolicy", "Ingress"}
    document["spec"]["ruls"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.37", strict=True)


def test_kustomization_names_what_is_there(folders: dict[str, Path]) -> None:
    folder = folders["kubernetes"] / "cluster"
    said = yaml.safe_load((folder / "kustomization.yaml").read_text())
    there = {each.name for each in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(said["resources"]) == there
    for generator in said["configMapGenerator"]:
        assert all((folder / each.rpartition("=")[2]).is_file() for each in generator["files"])
    kubectl = tool("kubectl") if not os.environ.get("CI") else None  # no package of CI's has it
    if kubectl:
        built = ran(kubectl, "kustomize", folder)
        assert built.returncode == 0, built.stdout
        kinds = [each["kind"] for each in yaml.safe_load_all(built.stdout)]
        assert kinds.count("ConfigMap") == 3 and kinds.count("Deployment") == 4


def resources(kind: str) -> list[dict[str, Any]]:
    found = []
    for path, file in made("kubernetes").items():
        if path.startswith("cluster/") and path.endswith(".yaml"):
            found += [each for each in yaml.safe_load_all(file.text) if each.get("kind") == kind]
    return found


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """A label selector, as Kubernetes reads those that are used here."""
    for each in selector.get("matchExpressions", []):
        assert each["operator"] == "NotIn"
        if labels.get(each["key"]) in each["values"]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def test_network_policies_deny_all_and_then_name(folders: dict[str, Path]) -> None:
    """Who may reach which pod, worked out from the policies alone."""
    labels = {each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"] for each in resources("Deployment")}
    policies = resources("NetworkPolicy")

    def may(source: str, target: str, port: int) -> bool:
        def passes(way: str, side: str, mine: str, other: str) -> bool:
            mine_labels = labels.get(mine, {})  # of an operator's pod none is ours
            chosen = [
                each["spec"]
                for each in policies
                if way in each["spec"]["policyTypes"] and matches(each["spec"]["podSelector"], mine_labels)
            ]
            assert chosen or (way == "Egress" and mine not in labels), "an unguarded pod"
            rules = [rule for spec in chosen for rule in spec.get(way.lower(), [])]
            return not chosen or any(
                matches(peer["podSelector"], labels.get(other, {}))
                for rule in rules
                for peer in rule.get(side, [])
                if "podSelector" in peer and (not rule.get("ports") or port in [each["port"] for each in rule["ports"]])
            )

        return passes("Egress", "to", source, target) and passes("Ingress", "from", target, source)

    assert (
        may("api", "llm", 8003)
        and may("dashboard", "llm", 8003)
        and may("api", "gpu-server", 8000)
        and may("dashboard", "api", 8080)
    )
    assert may("api", "milvus", 19530) and may("dashboard", "redis", 6379)
    assert not may("llm", "gpu-server", 8000) and not may("gpu-server", "api", 8080) and not may("llm", "milvus", 19530)
    assert not may("api", "llm", 22) and not may("api", "dashboard", 8502)


def test_pods_are_restricted_and_probed(folders: dict[str, Path]) -> None:
    for deployment in resources("Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
        mounted = {each["name"] for each in container["volumeMounts"]}
        assert mounted == {each["name"] for each in pod["volumes"]}
    scaled = {each["metadata"]["name"]: each["spec"] for each in resources("HorizontalPodAutoscaler")}
    assert scaled["gpu-server"]["minReplicas"] == 2 and scaled["gpu-server"]["maxReplicas"] == 3


def test_disks_budgets_and_ends_fit_the_replicas(folders: dict[str, Path]) -> None:
    """What one pod alone has: a disk of one node and no budget, which could only block a drain. What several have: the opposite,
    and a moment in which nobody asks the one that ends any more."""
    several = {"llm", "gpu-server"}
    budgets = {each["metadata"]["name"]: each["spec"] for each in resources("PodDisruptionBudget")}
    assert budgets.keys() == several
    assert all(each["maxUnavailable"] == 1 and each["unhealthyPodEvictionPolicy"] == "AlwaysAllow" for each in budgets.values())
    modes = {each["metadata"]["name"]: each["spec"]["accessModes"] for each in resources("PersistentVolumeClaim")}
    shared = {f"{name}-models": ["ReadWriteMany"] for name in several}
    assert modes == {**shared, "api-data": ["ReadWriteOnce"], "dashboard-data": ["ReadWriteOnce"]}
    lone = reading.parse(VARIANTS["kubernetes"].replace("max_replicas = 2\n", ""), "x.toml")
    (claim,) = [each for each in kubernetes._workload(lone, lone.role("llm")) if each["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    for deployment in resources("Deployment"):
        spec, name = deployment["spec"], deployment["metadata"]["name"]
        (container,) = spec["template"]["spec"]["containers"]
        start = container["startupProbe"]
        assert spec["progressDeadlineSeconds"] > start["periodSeconds"] * start["failureThreshold"], "a slow start is no failure"
        assert ("lifecycle" in container) == (name in several)
        ours = Limits().timeout_seconds + gpu_server.END_SECONDS * 2 + kubernetes.LEAVE_SECONDS
        assert name != "gpu-server" or spec["template"]["spec"]["terminationGracePeriodSeconds"] > ours


def test_an_app_neither_restarts_nor_hides_because_a_store_is_away(folders: dict[str, Path]) -> None:
    """/api/health is 503 then: as a start or life probe it would end the pod, as readiness take the dashboard off the network."""
    for deployment in resources("Deployment"):
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        if container["name"] in ("api", "dashboard"):
            assert all(container[each]["tcpSocket"] == {"port": "http"} for each in ("startupProbe", "livenessProbe"))
            ready = {"dashboard": "/_stcore/health", "api": "/api/health"}[container["name"]]
            assert container["readinessProbe"]["httpGet"]["path"] == ready


def test_models_go_to_the_nodes_they_were_planned_for() -> None:
    for deployment in resources("Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        on_gpu = "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]
        assert pod.get("nodeSelector") == ({"nvidia.com/gpu.product": "NVIDIA-L4"} if on_gpu else None)
        assert ("tolerations" in pod) == on_gpu
    text = re.sub(r"^node_labels.*$", 'runtime_class = "nvidia"', VARIANTS["kubernetes"], flags=re.MULTILINE)
    open_to_all = reading.parse(text, "x.toml")
    assert any("node_labels" in each for each in open_to_all.warnings())
    assert (
        kubernetes._deployment(open_to_all, open_to_all.role("llm"))["spec"]["template"]["spec"]["runtimeClassName"] == "nvidia"
    )


def test_what_is_missing_in_the_cluster_is_said_by_apply(tmp_path: Path) -> None:
    """A fake kubectl, for a cluster with our secret and neither certificates nor custom metrics."""
    for path, file in made("kubernetes").items():
        if path == "cluster/apply.sh":
            (tmp_path / "apply.sh").write_text(file.text)
    fake = tmp_path / "bin" / "kubectl"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\ncase "$*" in *-tls|*custom.metrics*) exit 1;; esac\n')
    fake.chmod(0o755)
    said = ran("sh", tmp_path / "apply.sh", env={"PATH": f"{fake.parent}:{os.environ['PATH']}"})
    assert said.returncode == 0, said.stdout
    for name in ("api", "dashboard"):
        assert (
            f"create secret tls {name}-tls --cert=/etc/ssl/ragdeck/fullchain.pem --key=/etc/ssl/ragdeck/privkey.pem"
            in said.stdout
        )
    assert "nothing serves custom metrics" in said.stdout


# ------------------------------------------------------------------------------------------------------------------ nginx


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with fullchain.pem and privkey.pem."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "deck.example.org")])
    now = datetime.datetime(2026, 1, 1)
    made_up = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    signed = made_up.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=9999)).sign(key, hashes.SHA256())
    (folder / "fullchain.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    (folder / "privkey.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return folder


def test_nginx_takes_the_proxy(certificate: Path, tmp_path: Path) -> None:
    nginx = tool("nginx")
    if nginx is None:
        return
    text = VARIANTS["vm-and-vps"].replace("/etc/ssl/ragdeck/", f"{certificate}/")
    (site,) = [each for each in rendered(reading.parse(text), "proxy")]
    main = (
        f"pid {tmp_path}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\ninclude {tmp_path}/ragdeck.conf;\n}}\n"
    )
    (tmp_path / "nginx.conf").write_text(main)
    (tmp_path / "ragdeck.conf").write_text(site.text)
    said = ran(nginx, "-t", "-p", tmp_path, "-c", tmp_path / "nginx.conf")
    assert said.returncode == 0, said.stdout
    (tmp_path / "ragdeck.conf").write_text(site.text.replace("proxy_buffering off", "proxy_bufering off"))
    assert ran(nginx, "-t", "-p", tmp_path, "-c", tmp_path / "nginx.conf").returncode == 1


@contextlib.contextmanager
def proxied(certificate: Path, folder: Path, allowed: str, upstream: str) -> Iterator[str]:
    """The rendered proxy on a free port of loopback, in front of `upstream`; only its listening addresses are others."""
    nginx = tool("nginx")
    assert nginx
    port = free_port()
    text = VARIANTS["vm-and-vps"].replace("/etc/ssl/ragdeck/", f"{certificate}/").replace("203.0.113.0/24", allowed)
    (made_up,) = rendered(reading.parse(text), "proxy")
    said = re.sub(r"^    listen \[::\].*\n", "", made_up.text, flags=re.MULTILINE)
    said = said.replace("listen 443 ", f"listen 127.0.0.1:{port} ").replace("listen 80", f"listen unix:{folder}/plain.socket")
    (folder / "ragdeck.conf").write_text(said.replace("server 127.0.0.1:8502;", f"server 127.0.0.1:{upstream};"))
    places = "".join(f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    main = f"daemon off;\npid {folder}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{places}include {folder}/ragdeck.conf;\n}}\n"
    (folder / "nginx.conf").write_text(main)
    running = subprocess.Popen([nginx, "-p", folder, "-c", folder / "nginx.conf"])
    try:
        wait_until(lambda: _listens(port), 90.0)
        yield f"https://127.0.0.1:{port}"
    finally:
        running.terminate()
        running.wait(30)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


FORGED = {"X-Forwarded-User": "admin", "Remote-User": "admin", "X-Auth-Request-Email": "a@b", "X-Forwarded-For": "1.2.3.4"}


def test_the_proxy_passes_on_what_it_saw_and_no_identity(certificate: Path, tmp_path: Path) -> None:
    if tool("nginx") is None:
        return
    head = {"Host": "deck.example.org", "Authorization": "Bearer t", **FORGED}
    with Fake(200, "{}") as app, proxied(certificate, tmp_path, "127.0.0.0/8", app.port) as address:
        answer = httpx.get(address, headers=head, verify=False, timeout=30)
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
        httpx.get(f"{address}/_stcore/stream", headers=head | upgrade, verify=False, timeout=30)
    assert answer.status_code == 200 and "max-age" in answer.headers["strict-transport-security"]
    (_, plain, _), (path, stream, _) = app.asked
    assert plain["authorization"] == "Bearer t" and plain["host"] == "deck.example.org"
    assert not any(plain[name] for name in FORGED if name != "X-Forwarded-For")
    assert plain["x-forwarded-for"] == plain["x-real-ip"] == "127.0.0.1"
    assert plain["upgrade"] is None
    assert path == "/_stcore/stream" and (stream["upgrade"], stream["connection"]) == ("websocket", "upgrade")


def test_the_proxy_lets_nobody_else_in(certificate: Path, tmp_path: Path) -> None:
    if tool("nginx") is None:
        return
    with Fake(200, "{}") as app, proxied(certificate, tmp_path, "198.18.0.0/15", app.port) as address:
        assert httpx.get(address, headers={"Host": "deck.example.org"}, verify=False, timeout=30).status_code == 403
    assert not app.asked


def test_no_image_takes_secrets_or_other_folders_along() -> None:
    """What the build context holds, by the list's own rules, of this repository: no settings, data, tests or keys."""
    said = made("single-vm")["docker/Dockerfile.cpu.dockerignore"].text
    rules = [line for line in said.splitlines() if line and not line.startswith("#")]
    assert rules[0] == "**", "everything is left out first"
    named = {rule[1:].split("/")[0] for rule in rules if rule.startswith("!")}
    assert not named & {"data", "tests", ".env", ".git", ".venv", "dashboard.toml", "docs"}
    last = rules[max(index for index, rule in enumerate(rules) if rule.startswith("!")) + 1 :]
    assert {"**/.env", "**/*.env", "**/*.key", "**/*.pem", "**/*.db"} <= set(last)
    for needed in (
        "app.py",
        "requirements.txt",
        "requirements-remote.txt",
        "deploy/templates/probe.py",
        ".streamlit/config.toml",
    ):
        assert (ROOT / needed).is_file()
