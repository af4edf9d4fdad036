"""The firewall scripts, run: ufw and iptables in a network and mount namespace of their own; gcloud as a fake that keeps rules."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.render import firewall, reading
from tests.deploy.test_render import VARIANTS, made, site
from tests.deploy.tools import ran, tool

# Rules land in namespaces that end with the shell, and ufw's files in copies mounted over them: this machine keeps its own.
INSIDE = """
set -eu
cp -a /etc/ufw "$1/ufw"; cp /etc/default/ufw "$1/default"
mount --bind "$1/ufw" /etc/ufw; mount --bind "$1/default" /etc/default/ufw
iptables -w -N DOCKER-USER; ip6tables -w -N DOCKER-USER
tell() { echo "== $1"; ufw status verbose; iptables -S DOCKER-USER; iptables -S RAGDECK; ip6tables -S RAGDECK; }
sh "$2"; tell first
sh "$2"; tell again
sh "$3"; tell other
sh "$3" docker; tell docker
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]] | None:
    """The state after the rules of the A100, after the same again, after those of the GPU machine, after Docker's part alone."""
    if not all([tool("ufw"), tool("iptables"), tool("unshare")]):
        return None
    folder = tmp_path_factory.mktemp("ufw")
    (folder / "first.sh").write_text(made("six-services-a100")["a100/firewall/ufw.sh"].text)
    (folder / "other.sh").write_text(made("vm-and-vps")["gpu-vm/firewall/ufw.sh"].text)
    (folder / "kept").mkdir()
    said = ran("unshare", "-nm", "sh", "-c", INSIDE, "sh", folder / "kept", folder / "first.sh", folder / "other.sh")
    assert said.returncode == 0, said.stdout
    parts = said.stdout.split("== ")[1:]
    return {part.partition("\n")[0]: part.splitlines()[1:] for part in parts}


def rows(lines: list[str]) -> set[tuple[str, str]]:
    """(port, network) of ufw's rules."""
    return {(line.split("/tcp")[0], line.split("ALLOW IN")[1].split()[0]) for line in lines if "ALLOW IN" in line}


def test_only_named_sources_are_let_in(told: dict[str, list[str]] | None) -> None:
    if told is None:
        return
    first = told["first"]
    assert "Status: active" in first and any("deny (incoming)" in line for line in first)
    assert rows(first) == {("22", "10.20.0.0/16")}
    let_in = [line for line in first if line.startswith("-A RAGDECK") and line.endswith("RETURN")]
    assert {tuple(line.split("--ctorigdstport ")[1].split()[0] for _ in "1") for line in let_in} == {("8080",), ("3000",)}
    assert all("-s 10.20.0.0/16" in line for line in let_in)
    dropped = [line for line in first if line.endswith("-j DROP") and line.startswith("-A RAGDECK")]
    assert sorted(line.split("--ctorigdstport ")[1].split()[0] for line in dropped[: len(dropped) // 2]) == [
        "3000",
        "8001",
        "8002",
        "8003",
        "8004",
        "8080",
    ]
    assert len(dropped) == 12, "and over IPv6"
    assert first.index(let_in[-1]) < first.index(dropped[0])


def test_a_second_run_changes_nothing(told: dict[str, list[str]] | None) -> None:
    if told is not None:
        assert told["again"] == told["first"]


def test_what_is_no_longer_named_is_closed(told: dict[str, list[str]] | None) -> None:
    if told is None:
        return
    assert rows(told["other"]) == {("22", "203.0.113.0/24"), ("8000", "198.51.100.20")}
    assert not any("10.20.0.0" in line for line in told["other"])
    assert told["other"].count("-A DOCKER-USER -j RAGDECK") == 1
    assert told["docker"] == told["other"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_port_that_is_published_beyond_the_machine_has_its_clients(variant: str) -> None:
    for host in site(variant).machines:
        openings = {each.name: each for each in firewall.openings(site(variant), host)}
        assert openings["ssh"].clients
        for service in site(variant).on(host.name):
            assert (service.name in openings) == site(variant).exposed(service) or not site(variant).clients(service)
            if service.name in openings:
                assert openings[service.name].port == service.listens_on


def test_servers_of_the_split_let_the_other_machine_in_and_nobody_else() -> None:
    found = {each.name: each for each in firewall.openings(site("vm-and-vps"), site("vm-and-vps").deployment.host("gpu-vm"))}
    assert {name: [client.cidr for client in each.clients] for name, each in found.items()} == {
        "ssh": ["203.0.113.0/24"],
        "llm": ["198.51.100.20/32"],
        "gpu-server": ["198.51.100.20/32"],
    }


def test_without_a_way_in_there_are_no_rules() -> None:
    text = VARIANTS["vm-and-vps"].replace('[firewall]\nssh_from = ["office"]\n', "")
    assert list(firewall.files(reading.parse(text))) == []


def test_a_rule_of_google_cloud_has_addresses_of_one_kind() -> None:
    text = VARIANTS["vm-and-vps"].replace('["203.0.113.0/24"]', '["203.0.113.0/24", "2001:db8::/32"]')
    (script,) = [each.text for each in firewall.files(reading.parse(text)) if each.path == "gpu-vm/firewall/gcloud.sh"]
    assert "allow ragdeck-gpu-vm-ssh-22 22 203.0.113.0/24\n" in script
    assert "allow ragdeck-gpu-vm-ssh-22-6 22 2001:db8::/32\n" in script


FAKE_GCLOUD = """#!{python}
# A fake gcloud: keeps firewall rules in a JSON file, and a log of what changed.
import json, pathlib, sys
store = pathlib.Path({store!r})
rules = json.loads(store.read_text()) if store.exists() else {{}}
words = sys.argv[1:]
options = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
if words[:2] == ["compute", "instances"]:
    sys.exit(0)
assert words[:2] == ["compute", "firewall-rules"], words
verb = words[2]
if verb == "list":
    print("\\n".join(sorted(rules)))
    sys.exit(0)
name = words[3]
if verb == "describe":
    sys.exit(0 if name in rules else 1)
if verb == "delete":
    del rules[name]
elif verb == "create":
    assert name not in rules
    rules[name] = options
elif verb == "update":
    assert "network" not in options and "priority" not in options, "an update takes neither"
    rules[name] |= options
store.write_text(json.dumps(rules))
"""


def test_gcloud_rules_are_made_kept_and_taken_away(tmp_path: Path) -> None:
    store = tmp_path / "rules.json"
    (tmp_path / "gcloud").write_text(FAKE_GCLOUD.format(python=sys.executable, store=str(store)))
    (tmp_path / "gcloud").chmod(0o755)
    script = tmp_path / "gcloud.sh"

    def run(text: str) -> dict[str, dict[str, str]]:
        script.write_text(text)
        done = subprocess.run(
            ["sh", script], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(store.read_text()))

    text = made("vm-and-vps")["gpu-vm/firewall/gcloud.sh"].text
    first = run(text)
    assert run(text) == first
    assert {name: (each["rules"], each["source-ranges"]) for name, each in first.items()} == {
        "ragdeck-gpu-vm-ssh-22": ("tcp:22", "203.0.113.0/24"),
        "ragdeck-gpu-vm-llm-8001": ("tcp:8001", "198.51.100.20/32"),
        "ragdeck-gpu-vm-gpu-server-8000": ("tcp:8000", "198.51.100.20/32"),
        "ragdeck-gpu-vm-deny": ("all", "0.0.0.0/0"),
    }
    assert first["ragdeck-gpu-vm-deny"]["action"] == "DENY"
    assert int(first["ragdeck-gpu-vm-ssh-22"]["priority"]) < int(first["ragdeck-gpu-vm-deny"]["priority"]) < 65534
    moved = run(text.replace("-llm-8001 8001", "-llm-9001 9001"))
    assert "ragdeck-gpu-vm-llm-9001" in moved and "ragdeck-gpu-vm-llm-8001" not in moved
