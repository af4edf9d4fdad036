"""What is watched comes from settings, can be changed on a page, survives, and never holds up the process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from collectors import machine_watch
from collectors.history import Sample
from collectors.inventory import BadInventory, from_settings
from collectors.restart_powers import Powers
from deployment import own_machines
from rag.errors import RagError
from runtime import Runtime
from settings import SettingsError, load
from tests.collectors.machine_fakes import FakeProgram
from tests.collectors.service_fakes import fake_service

PATIENCE = 90.0
FOREVER = "http://127.0.0.1:9/nothing"


def settings_of(tmp_path: Path, toml: str = "", **environ: str) -> Any:
    (tmp_path / "dashboard.toml").write_text(toml, encoding="utf-8")
    return load({"RAGDECK_DATA": str(tmp_path / "data"), **environ}, tmp_path)


@pytest.fixture
def make(tmp_path: Path) -> Any:
    made: list[Runtime] = []

    def build(toml: str = "", **environ: str) -> Runtime:
        made.append(Runtime(settings_of(tmp_path, toml, **environ)))
        return made[-1]

    yield build
    for each in made:
        each.stop()


def names(runtime: Runtime) -> list[str]:
    return [machine.name for machine in runtime.sweep.snapshot().machines]


def test_this_machine_is_always_watched_and_its_history_kept(make: Any) -> None:
    runtime = make()
    runtime.deployment.start()
    assert runtime.sweep.wait_for(lambda now: now.machine("local") is not None and now.machine("local").state == "ok", PATIENCE)

    def kept() -> bool:
        return any(metric == "memory.used_ratio" for _, metric in runtime.history.series("local"))

    assert runtime.sweep.wait_for(lambda _: kept(), PATIENCE)


def test_services_of_the_settings_are_probed_and_their_failure_is_an_alert(make: Any) -> None:
    runtime = make(f'[[services]]\nname = "reranker"\nkind = "rerank"\nurl = "{FOREVER}"\nliveness_every_seconds = 1\n')
    runtime.deployment.start()
    assert runtime.sweep.wait_for(lambda _: any(alert.rule == "reranker-down" for alert in runtime.alerts.active()), PATIENCE)
    alert = next(alert for alert in runtime.alerts.active() if alert.rule == "reranker-down")  # a busy machine may have others
    assert (alert.source, alert.level) == ("reranker", "critical") and "RERANKER_ENABLED" in alert.next_step


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('[[machines]]\nname = "db"\n', r"machines\[1\] \(db\): address is missing"),
        ('[[machines]]\nname = "db"\naddress = "h"\nprot = 3\n', "there is no setting 'prot'"),
        ('[[services]]\nname = "x"\nkind = "htpp"\nurl = "http://h"\n', r"services\[1\] \(x\): kind is 'htpp'"),
        ("[alerts.rules.gpu-hott]\nwarn = 3\n", "no rule 'gpu-hott'"),
        ('[alerts.rules.gpu-hot]\nwarn = "hot"\n', "warn of rule gpu-hot is 'hot'"),
    ],
)
def test_entries_that_cannot_be_are_refused_by_name(make: Any, toml: str, message: str) -> None:
    with pytest.raises(RagError, match=message):
        make(toml)


def test_the_key_of_a_variable_reaches_the_service_and_nothing_else(make: Any, tmp_path: Path) -> None:
    """Our own API, a GPU server or vLLM behind a key: asked with it, by a real server that refuses everybody else."""

    async def guarded(request: Request) -> Response:
        known = request.headers.get("authorization") == "Bearer sk-hunter2-keyed"
        return JSONResponse({"data": [{"id": "m"}]} if known else {"detail": "no"}, 200 if known else 401)

    with fake_service({"GET /v1/models": guarded}) as fake:
        entries = "".join(
            f'[[services]]\nname = "{name}"\nkind = "openai-chat"\nurl = "{fake.address}"\nfunctional = false\n{line}\n'
            for name, line in (("keyed", 'api_key_env = "VLLM_KEY"'), ("bare", ""), ("wrong", 'api_key_env = "OTHER_KEY"'))
        )
        runtime = make(entries, VLLM_KEY="sk-hunter2-keyed", OTHER_KEY="sk-hunter2-other")
        found = {name: runtime.sweep.probe(name, "liveness") for name in ("keyed", "bare", "wrong")}
    assert found["keyed"].state == "ok"
    assert found["bare"].message.startswith("needs a key: set api_key_env")
    assert found["wrong"].message.startswith("key refused") and "api_key_env (OTHER_KEY)" in found["wrong"].next_step
    assert "hunter2" not in repr(runtime.sweep.snapshot()) + repr(runtime.settings) + repr(found)


def test_a_restart_that_cannot_work_here_is_told_at_the_start(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = Powers(998, "ragdeck", True, True, True, False, None)
    monkeypatch.setattr(machine_watch, "powers", lambda: bound)
    (notice,) = make('[[machines]]\nname = "local"\nrestart = ["vllm"]\n').status().notices
    assert "vllm.service cannot be restarted on this machine" in notice and "Install polkitd" in notice


def test_an_entry_whose_variable_nobody_looked_up_is_refused() -> None:
    with pytest.raises(BadInventory, match=r"services\[1\] \(x\): api_key_env names A, whose value is not known"):
        from_settings([], [{"name": "x", "kind": "http", "url": "http://h", "api_key_env": "A"}])


def test_two_of_one_name_and_secrets_in_the_wrong_file(make: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="`name` of their own"):
        settings_of(tmp_path, '[[services]]\nname = "a"\n[[services]]\nname = "a"\n')
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "edited.toml").write_text('[[machines]]\nname = "a"\naddress = "h"\npassphrase = "hunter2"\n')
    with pytest.raises(SettingsError, match="secrets only in") as problem:
        settings_of(tmp_path)
    assert "hunter2" not in str(problem.value)


def test_secrets_of_entries_show_nowhere_and_reach_the_prober(make: Any) -> None:
    runtime = make(
        f'[[services]]\nname = "a"\nkind = "http"\nurl = "{FOREVER}"\napi_key = "hunter2-key"\nheaders = {{ X = "hunter2-x" }}\n'
    )
    settings = runtime.settings
    assert "hunter2" not in repr(settings) + str(settings.masked()) + repr(runtime.deployment._inventory)
    service = runtime.deployment._inventory.services[0].service
    assert service.api_key == "hunter2-key" and service.headers == {"X": "hunter2-x"}


def test_a_machine_added_on_a_page_is_watched_at_once_and_after_a_restart(make: Any, tmp_path: Path) -> None:
    toml = '[[machines]]\nname = "gpu-a"\naddress = "192.0.2.1"\n'
    runtime = make(toml)
    runtime.add_machine({"name": "gpu-b", "address": "192.0.2.2", "host_key_policy": "strict"})
    assert names(runtime) == ["local", "gpu-a", "gpu-b"]
    assert names(make(toml)) == ["local", "gpu-a", "gpu-b"]
    for entry, message in (
        ({"name": "gpu-a", "address": "h"}, "gpu-a is watched already"),
        ({"name": "gpu-c"}, "address is missing"),
        ({"name": "gpu-c", "address": "h", "colour": "red"}, "no setting 'colour'"),
    ):
        with pytest.raises(RagError, match=message):
            runtime.add_machine(entry)
    with pytest.raises(SettingsError, match="a secret"):
        runtime.add_machine({"name": "gpu-c", "address": "h", "passphrase": "hunter2"})
    assert names(runtime) == ["local", "gpu-a", "gpu-b"]
    runtime.add_machine({"name": "gpu-b", "address": "192.0.2.3"})  # corrects itself
    assert [view.address for view in runtime.sweep.snapshot().machines][2] == "192.0.2.3"


def test_rules_are_changed_kept_and_given_back(make: Any) -> None:
    runtime = make()

    def hot(of: Runtime) -> Any:
        return next(rule for rule in of.alerts.rules if rule.id == "gpu-hot")

    runtime.change_alert_rules({"gpu-hot": {"warn": 70.0, "warn_clear": 60.0, "critical": None}})
    runtime.change_alert_rules({"gpu-hot": {"warn": None}})
    assert (hot(runtime).warn, hot(runtime).warn_clear) == (None, 60.0) == (hot(make()).warn, hot(make()).warn_clear)
    for changes, message in (({"gpu-hott": {}}, "no alert rule"), ({"gpu-hot": {"warn": "x"}}, "not a number")):
        with pytest.raises(RagError, match=message):
            runtime.change_alert_rules(changes)
    runtime.change_alert_rules({"gpu-hot": {"warn": 85, "warn_clear": 80}})
    assert hot(runtime).warn == 85 and "gpu-hot" not in runtime.settings.alerts.rules


def test_files_that_cannot_be_opened_are_said_and_stop_nothing(make: Any, tmp_path: Path) -> None:
    (tmp_path / "data" / "history.db").mkdir(parents=True)
    runtime = make()
    assert "history.db cannot be opened" in runtime.status().notices[0]
    runtime.deployment.start()
    assert runtime.sweep.wait_for(lambda _: bool(runtime.history.series("local")), PATIENCE)


def test_a_bad_notification_url_is_refused_without_being_shown(make: Any) -> None:
    with pytest.raises(RagError) as problem:
        make(RAGDECK_NOTIFY="nonsense://hunter2")
    assert "hunter2" not in str(problem.value) and problem.value.kind == "bad_input"


# Restarts and the audit log


RESTARTABLE = '[[machines]]\nname = "local"\ncollect = ["host"]\nrestart = ["vllm", "docker:whisper"]\n'


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake `systemctl` in front of the PATH, and a fake `id` of root; what it was asked for is in the file."""
    programs = tmp_path / "bin"
    done = tmp_path / "done"
    FakeProgram(programs, "systemctl").says(f'echo "$*" >> {done}')
    FakeProgram(programs, "id").says("echo 0")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return done


def test_a_restart_leaves_its_lines_in_the_audit_log(make: Any, systemctl: Path, tmp_path: Path) -> None:
    runtime = make(RESTARTABLE)
    done = runtime.deployment.restart("local", "vllm.service", who="10.0.0.3")
    assert done.ok and systemctl.read_text() == "restart vllm.service\n"
    for machine, name, said in (("local", "ssh.service", "do not name"), ("nowhere", "vllm.service", "no machine 'nowhere'")):
        with pytest.raises(RagError, match=said):
            runtime.deployment.restart(machine, name)
    assert systemctl.read_text() == "restart vllm.service\n"
    found = [(action.what, action.outcome, action.who) for action in make(RESTARTABLE).deployment.audit.read()]
    assert found == [
        ("restart vllm.service", "refused", None),
        ("restart ssh.service", "refused", None),
        ("restart vllm.service", "done", "10.0.0.3"),
    ]
    assert (tmp_path / "data" / "audit.log").read_text().count("\n") == 6


def test_a_restart_that_fails_says_so_there(make: Any, tmp_path: Path, systemctl: Path) -> None:
    FakeProgram(tmp_path / "bin", "systemctl").says("echo 'Unit vllm.service not found.'; exit 5")
    runtime = make(RESTARTABLE)
    failed = runtime.deployment.restart("local", "vllm.service")
    assert not failed.ok and "Is its name right?" in failed.next_step
    assert [(action.outcome, action.text) for action in runtime.deployment.audit.read()] == [
        ("failed", "Unit vllm.service not found.")
    ]


def test_nothing_is_restarted_that_cannot_be_audited(make: Any, systemctl: Path, tmp_path: Path) -> None:
    runtime = make(RESTARTABLE)
    (tmp_path / "data" / "audit.log").mkdir()
    with pytest.raises(RagError, match="nothing was restarted"):
        runtime.deployment.restart("local", "vllm.service")
    assert not systemctl.exists()


def test_a_page_cannot_allow_a_restart(make: Any) -> None:
    runtime = make()
    with pytest.raises(RagError, match="not set on a page"):
        runtime.add_machine({"name": "m", "address": "192.0.2.9", "restart": ["sshd"]})
    assert names(runtime) == ["local"]


# Changing and removing what was added on a page


def test_a_machine_added_on_a_page_is_removed_with_its_history_or_without(make: Any) -> None:
    toml = '[[machines]]\nname = "filed"\naddress = "192.0.2.1"\n'
    runtime = make(toml)
    for name in ("a", "b"):
        runtime.add_machine({"name": name, "address": "192.0.2.2"})
        runtime.history.write([Sample(name, time.time(), {"cpu.busy_ratio": 0.5})])
    assert [each["name"] for each in own_machines(runtime.settings)] == ["a", "b"]
    runtime.remove_machine("a")
    runtime.remove_machine("b", forget=True)
    assert names(runtime) == ["local", "filed"] == names(make(toml))
    assert [source for source, _ in runtime.history.series()] == ["a"]
    for name in ("filed", "local", "gone"):
        with pytest.raises(RagError, match="was not added on a page"):
            runtime.remove_machine(name)


def test_a_file_that_names_a_machine_wins_over_the_page(make: Any, tmp_path: Path) -> None:
    runtime = make()
    runtime.add_machine({"name": "m", "address": "192.0.2.2"})
    again = make('[[machines]]\nname = "m"\naddress = "192.0.2.1"\n')
    assert own_machines(again.settings) == []
    with pytest.raises(RagError, match="was not added on a page"):
        again.remove_machine("m")
    with pytest.raises(RagError, match="m is watched already"):
        again.add_machine({"name": "m", "address": "192.0.2.3"})
    again.add_machine({"name": "other", "address": "192.0.2.4"})
    assert 'address = "192.0.2.2"' in (tmp_path / "data" / "edited.toml").read_text(), "what somebody wrote stays"
