"""The way to a machine: host keys, keys, agent, jump host, ~/.ssh/config, and the test that says which step failed."""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from collectors.connection_test import StepResult, try_connection
from collectors.errors import (
    AuthenticationFailed,
    CollectorError,
    ConnectionFailed,
    HostKeyChanged,
    HostKeyRevoked,
    HostKeyUnknown,
    KeyUnusable,
)
from collectors.host_keys import HostKey, KnownHosts
from collectors.ssh import SshShell, _ordered
from collectors.ssh_config import Route, Target, resolve, split_address
from tests.collectors.sshd import Sshd, eventually, keygen
from tests.ports import free_port


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    server = Sshd(tmp_path_factory.mktemp("sshd"), host_keys=("ed25519", "ecdsa", "rsa"))
    yield server
    server.stop()


def connect(route: Route) -> None:
    shell = SshShell(route)
    shell.connect(20)
    try:
        assert shell.run("echo in", 20).stdout == "in\n"
    finally:
        shell.close()


def public(path: Path) -> HostKey:
    import base64

    kind, blob = Path(f"{path}.pub").read_text().split()[:2]
    return HostKey(kind, base64.b64decode(blob))


# Host keys.


def test_an_unknown_host_is_refused_with_the_command_that_adds_it(sshd: Sshd, tmp_path: Path) -> None:
    route = sshd.route(known_hosts=(tmp_path / "not yet" / "known hosts",))
    with pytest.raises(HostKeyUnknown) as error:
        connect(route)
    shown = subprocess.run(["ssh-keygen", "-lf", str(sshd.host_keys[0])], capture_output=True, text=True, check=True, timeout=20)
    assert error.value.fingerprint == shown.stdout.split()[1]
    assert error.value.command in error.value.next_step and not (tmp_path / "not yet").exists()
    subprocess.run(["sh", "-c", error.value.command], check=True, timeout=20)
    connect(route)


def test_accept_new_adds_it_once_and_refuses_another_later(sshd: Sshd, tmp_path: Path) -> None:
    file = tmp_path / "new" / "known_hosts"
    route = sshd.route(known_hosts=(file,), policy="accept-new")
    connect(route)
    connect(route)
    assert file.read_text().count("\n") == 1 and file.stat().st_mode & 0o777 == 0o600
    other = keygen(tmp_path / "other")
    file.write_text(sshd.known_line(other))
    with pytest.raises(HostKeyChanged) as error:
        connect(route)
    assert "ssh-keygen -f" in error.value.next_step and public(other).fingerprint in error.value.message


def test_the_command_of_a_changed_key_removes_it(sshd: Sshd, tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(sshd.known_line(keygen(tmp_path / "other")))
    with pytest.raises(HostKeyChanged) as error:
        connect(sshd.route(known_hosts=(file,)))
    command = error.value.next_step.split("`")[3]
    subprocess.run(shlex.split(command), check=True, timeout=20, capture_output=True)
    with pytest.raises(HostKeyUnknown):
        connect(sshd.route(known_hosts=(file,)))


def test_a_host_known_by_a_key_of_another_type_is_asked_for_that(sshd: Sshd, tmp_path: Path) -> None:
    for path in sshd.host_keys:
        file = tmp_path / f"known_{path.name}"
        file.write_text(sshd.known_line(path))
        connect(sshd.route(known_hosts=(file,)))


def test_a_revoked_key_is_refused_under_every_policy(sshd: Sshd) -> None:
    file = sshd.directory / "revoked"
    file.write_text(sshd.known_line(sshd.host_keys[0]) + f"@revoked * {sshd.known_line(sshd.host_keys[0]).split(' ', 1)[1]}")
    for policy in ("strict", "accept-new"):
        with pytest.raises(HostKeyRevoked):
            connect(sshd.route(known_hosts=(file,), policy=policy))


def test_an_authority_alone_is_not_enough_and_is_named(sshd: Sshd, tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"@cert-authority * {sshd.known_line(keygen(tmp_path / 'ca')).split(' ', 1)[1]}")
    for policy in ("strict", "accept-new"):
        with pytest.raises(HostKeyUnknown, match="cert-authority"):
            connect(sshd.route(known_hosts=(file,), policy=policy))


def test_lines_of_known_hosts(tmp_path: Path) -> None:
    key, other = public(keygen(tmp_path / "key")), public(keygen(tmp_path / "other"))
    kind, blob = key.line("x").split()[1:]
    hashed = tmp_path / "hashed"
    hashed.write_text(f"db.example.org {kind} {blob}\n[db.example.org]:2222 {kind} {blob}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(hashed)], check=True, timeout=20, capture_output=True)
    plain = tmp_path / "plain"
    plain.write_text(
        f"# a comment\n\nbroken\n@broken\nbad.example.org ssh-ed25519 not*base64\n|1|x db.example.org {kind} {blob}\n"
        f"web1.example.org,10.0.0.? {kind} {blob} a comment\n*.lan,!evil.lan {kind} {blob}\n[jump]:2222\t{kind}\t{blob}\n"
        f"@cert-authority *.ca {kind} {blob}\n@revoked web2.example.org {kind} {blob}\n"
    )

    def known(name: str) -> KnownHosts:
        return KnownHosts([plain, hashed, tmp_path / "absent"], [name])

    trusted = [
        "web1.example.org",
        "WEB1.example.org",
        "10.0.0.7",
        "a.lan",
        "[jump]:2222",
        "db.example.org",
        "[db.example.org]:2222",
    ]
    for name in trusted:
        assert known(name).trusted == [key], name
        known(name).check(key, "strict", name)
        with pytest.raises(HostKeyChanged):
            known(name).check(other, "accept-new", name)
    for name in ("evil.lan", "jump", "10.0.0.77", "web3.example.org", "bad.example.org", "x.ca"):
        assert known(name).trusted == [], name
    assert known("x.ca").has_authority and not known("a.lan").has_authority
    assert known("web2.example.org").revoked == [key]


def test_rsa_keys_are_asked_for_by_their_modern_names() -> None:
    possible = ("ssh-ed25519", "rsa-sha2-512", "rsa-sha2-256")
    assert _ordered(possible, ["ssh-rsa"]) == ("rsa-sha2-512", "rsa-sha2-256", "ssh-ed25519")
    assert _ordered(possible, []) == possible


# Keys and agent.


def test_a_wrong_key_is_refused_and_says_what_was_tried(sshd: Sshd, tmp_path: Path) -> None:
    wrong = keygen(tmp_path / "wrong")
    with pytest.raises(AuthenticationFailed) as error:
        connect(sshd.route(keys=(wrong,)))
    assert str(wrong) in error.value.message and error.value.step == "authentication" and error.value.next_step
    connect(sshd.route(keys=(wrong, sshd.key)))


def test_no_key_at_all(sshd: Sshd, tmp_path: Path) -> None:
    with pytest.raises(AuthenticationFailed, match="there is no key to try"):
        connect(sshd.route(keys=(tmp_path / "absent",), explicit_keys=False))


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_a_key_with_a_passphrase(sshd: Sshd, tmp_path: Path, kind: str) -> None:
    locked = keygen(tmp_path / "locked", kind, "open sesame")
    with (sshd.directory / "authorized_keys").open("a") as file:
        file.write(Path(f"{locked}.pub").read_text())
    with pytest.raises(KeyUnusable, match="needs its passphrase"):
        connect(sshd.route(keys=(locked,)))
    with pytest.raises(KeyUnusable, match="wrong passphrase"):
        connect(sshd.route(keys=(locked,), passphrase="wrong"))
    connect(sshd.route(keys=(locked,), passphrase="open sesame"))
    connect(sshd.route(passphrase="for a key that has none"))
    assert "open sesame" not in repr(sshd.route(passphrase="open sesame"))


def test_keys_that_cannot_be_read(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "junk").write_text("no key")
    for name, words in (("junk", "not a private key"), ("absent", "cannot be read"), (".", "cannot be read")):
        with pytest.raises(KeyUnusable, match=words):
            connect(sshd.route(keys=(tmp_path / name,)))


def takes_connections(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def test_a_locked_key_is_taken_from_the_agent(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.DEVNULL)
    try:
        assert eventually(lambda: takes_connections(tmp_path / "agent"))
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        for name in ("unrelated1", "unrelated2", "unrelated3", "unrelated4"):
            subprocess.run(["ssh-add", "-q", str(keygen(tmp_path / name))], check=True, timeout=20)
        subprocess.run(["ssh-add", "-q", str(sshd.key)], check=True, timeout=20)
        locked = tmp_path / "locked"
        locked.write_bytes(sshd.key.read_bytes())
        locked.chmod(0o600)
        (tmp_path / "locked.pub").write_bytes(Path(f"{sshd.key}.pub").read_bytes())
        subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(locked)], check=True, timeout=20)
        connect(sshd.route(keys=(locked,), use_agent=True))  # of the agent's keys only the named one is tried
        with pytest.raises(KeyUnusable):
            connect(sshd.route(keys=(locked,), use_agent=False))
    finally:
        agent.kill()
        agent.wait(10)


# The way there.


def test_through_a_jump_host(sshd: Sshd, tmp_path: Path) -> None:
    hop = Sshd(tmp_path / "hop")
    try:
        jump = hop.route()
        connect(sshd.route(jump=jump))
        with pytest.raises(ConnectionFailed, match="the jump host"):
            connect(sshd.route(jump=jump, port=free_port()))
        with pytest.raises(HostKeyUnknown):
            connect(sshd.route(jump=replace(jump, known_hosts=(tmp_path / "none",))))
        with pytest.raises(HostKeyUnknown):
            connect(sshd.route(jump=jump, known_hosts=(tmp_path / "none",)))
        assert eventually(lambda: hop.children() == [])
    finally:
        hop.stop()


def proxies() -> set[int]:
    """Our children that a proxy command may have left."""
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() in ("nc", "busybox", "sh"):
                found.add(child.pid)
    return found


def test_through_a_proxy_command(sshd: Sshd) -> None:
    before, others = set(os.listdir("/proc/self/fd")), proxies()
    connect(sshd.route(proxy_command=f"busybox nc 127.0.0.1 {sshd.port}"))
    with pytest.raises(ConnectionFailed):
        connect(sshd.route(proxy_command="exit 1"))
    assert eventually(lambda: set(os.listdir("/proc/self/fd")) <= before)
    assert eventually(lambda: not proxies() - others)


def test_configuration_of_the_user(tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text(
        "Host gpu*\n  HostName 10.1.0.%h\n  User ops\n  Port 2200\n  IdentityFile /keys/ops\n  ProxyJump outer,ops@inner:2022\n"
        "Host inner\n  HostKeyAlias inner-cluster\n  UserKnownHostsFile ~/.ssh/lab /etc/lab\n"
        "Host direct\n  ProxyCommand nc %h %p\n"
    )
    gpu = resolve(Target("gpu1"), tmp_path)
    assert (gpu.host, gpu.port, gpu.user, gpu.keys, gpu.names) == (
        "10.1.0.gpu1",
        2200,
        "ops",
        (Path("/keys/ops"),),
        ("[10.1.0.gpu1]:2200",),
    )
    assert gpu.jump and (gpu.jump.host, gpu.jump.port, gpu.jump.user, gpu.jump.names) == (
        "inner",
        2022,
        "ops",
        ("inner-cluster",),
    )
    assert gpu.jump.known_hosts[:2] == (tmp_path / ".ssh/lab", Path("/etc/lab"))
    assert gpu.jump.jump and gpu.jump.jump.host == "outer" and gpu.jump.jump.jump is None
    ours = resolve(Target("me@gpu1:22", key=Path("/keys/me"), jump="none"), tmp_path)
    assert (ours.port, ours.user, ours.keys, ours.jump) == (22, "me", (Path("/keys/me"),), None)
    assert resolve(Target("direct"), tmp_path).proxy_command == "nc direct 22"
    plain = resolve(Target("10.0.0.1"), tmp_path / "nobody")
    assert plain.user == getpass.getuser() and not plain.explicit_keys and plain.keys[0].name == "id_ed25519"


def test_included_configuration_is_read(tmp_path: Path) -> None:
    (tmp_path / ".ssh" / "conf.d").mkdir(parents=True)
    (tmp_path / ".ssh" / "config").write_text(
        f"Include conf.d/*.conf {tmp_path}/absent\nUser everybody\nHost lab*\n  Include lab\n  Port 2222\nHost other\n  Port 3333\n"
    )
    (tmp_path / ".ssh" / "conf.d" / "cloud.conf").write_text("Host cloud\n  HostName 10.9.9.9\n  Include ../loop\n")
    (tmp_path / ".ssh" / "loop").write_text("Include loop\n")
    (tmp_path / ".ssh" / "lab").write_text("HostName 10.8.8.8\n")
    cloud, lab, other = (resolve(Target(name), tmp_path) for name in ("cloud", "lab7", "other"))
    assert (cloud.host, cloud.port, cloud.user) == ("10.9.9.9", 22, "everybody")
    assert (lab.host, lab.port, lab.user) == ("10.8.8.8", 2222, "everybody")
    assert (other.host, other.port) == ("other", 3333)


def test_broken_configuration_is_said(tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text("Host a\n  ProxyJump a\nHost b\n  Port many\n")
    for alias, words in (("a", "circle"), ("b", "not a port")):
        with pytest.raises(CollectorError, match=words):
            resolve(Target(alias), tmp_path)
    (tmp_path / ".ssh" / "config").write_text("Match never\n")
    with pytest.raises(CollectorError, match="cannot be used"):
        resolve(Target("a"), tmp_path)


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("gpu", (None, "gpu", None)),
        ("ops@10.0.0.1:2200", ("ops", "10.0.0.1", 2200)),
        ("[fe80::1%eth0]:22", (None, "fe80::1%eth0", 22)),
        ("2001:db8::1", (None, "2001:db8::1", None)),
        ("ops@[2001:db8::1]", ("ops", "2001:db8::1", None)),
    ],
)
def test_addresses(address: str, parts: tuple[Any, ...]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["", "-oProxyCommand=x", "a b", "host:0", "host:99999", "host:x", "a@b@c", "http://x"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(CollectorError, match="not an address"):
        split_address(address)


# The connection test.


def steps(results: tuple[StepResult, ...]) -> list[tuple[str, bool | None]]:
    return [(result.step, result.ok) for result in results]


ORDER = ["name", "connect", "host key", "authentication", "shell", "command"]


def failed_at(step: str) -> list[tuple[str, bool | None]]:
    place = ORDER.index(step)
    return [(name, True if index < place else False if index == place else None) for index, name in enumerate(ORDER)]


def test_everything_passes(sshd: Sshd) -> None:
    results = try_connection(sshd.route(), 30)
    assert steps(results) == [(step, True) for step in ORDER]
    assert all(result.seconds is not None for result in results)


def test_each_step_that_fails_is_named(sshd: Sshd, tmp_path: Path) -> None:
    wrong = keygen(tmp_path / "wrong")
    assert steps(try_connection(sshd.route(host="no..name"), 30)) == failed_at("name")
    refused = try_connection(sshd.route(port=free_port()), 30)
    assert steps(refused) == failed_at("connect") and "refused" in refused[1].text and refused[1].next_step
    unknown = try_connection(sshd.route(known_hosts=(tmp_path / "none",)), 30)
    assert steps(unknown) == failed_at("host key")
    assert (
        unknown[2].fingerprint and unknown[2].fingerprint.startswith("SHA256:") and (unknown[2].command or "").startswith("echo ")
    )
    assert steps(try_connection(sshd.route(keys=(wrong,)), 30)) == failed_at("authentication")
    missing = try_connection(sshd.route(), 30, needed=("tail", "no-such-tool"))
    assert steps(missing) == failed_at("command") and "no-such-tool" in missing[-1].text
    through = try_connection(sshd.route(jump=sshd.route(keys=(wrong,))), 30)
    assert steps(through) == [(step, False if step == "authentication" else None) for step in ORDER]
    assert "jump host" in through[3].text


def test_an_account_without_a_shell(tmp_path: Path) -> None:
    server = Sshd(tmp_path, force="echo closed on Sundays; exit 1")
    try:
        results = try_connection(server.route(), 30)
        assert steps(results) == failed_at("shell") and "closed on Sundays" in results[4].text
    finally:
        server.stop()


@pytest.mark.parametrize(("greeting", "limit"), [(b"HTTP/1.1 400 Bad Request\r\n\r\n", 20.0), (b"", 1.5)])
def test_what_does_not_speak_ssh(tmp_path: Path, greeting: bytes, limit: float) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted: list[socket.socket] = []

        def answer() -> None:
            connection, _ = listener.accept()
            accepted.append(connection)
            connection.sendall(greeting)
            if greeting:
                connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        route = Route(
            "127.0.0.1", listener.getsockname()[1], "me", (), True, (tmp_path / "none",), ("x",), "strict", use_agent=False
        )
        results = try_connection(route, limit)
        thread.join(10)
        assert [result.step for result in results if result.ok is False] == ["connect"], results
        for connection in accepted:
            connection.close()
