"""The rule by which the dashboard restarts what runs beside it, read by the real polkit on a bus of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.render import apps
from tests.deploy.test_render import made, site, units
from tests.deploy.tools import ran, tool

POLKITD = Path("/usr/lib/polkit-1/polkitd")
BUS = """<busconfig><type>system</type><listen>unix:path=@BUS@</listen><auth>EXTERNAL</auth><policy context="default">
<allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>"""
# `daemon` (1) is there on every Debian, and stands for the user of the units; 65534 is somebody else.
INSIDE = """
set -eu
cd "$1"
mount --bind rules /etc/polkit-1/rules.d
dbus-daemon --config-file=bus.conf --nofork --nopidfile 2>/dev/null & bus=$!
export DBUS_SYSTEM_BUS_ADDRESS="unix:path=$1/bus"
while [ ! -S bus ]; do sleep 0.05; done
@POLKITD@ --no-debug >/dev/null 2>&1 & polkit=$!
trap 'kill $polkit $bus' EXIT
tries=0
until pkaction >/dev/null 2>&1; do tries=$((tries + 1)); [ $tries -lt 900 ]; sleep 0.1; done
may() {
    setpriv --reuid "$1" --clear-groups sleep 60 & asking=$!
    # until then it is still root, who may do everything
    until grep -q "^Uid:[[:space:]]*$1[[:space:]]" "/proc/$asking/status"; do sleep 0.02; done
    said=no
    if pkcheck --action-id "$4" --process $asking --detail unit "$2" --detail verb "$3" >/dev/null 2>&1; then said=yes; fi
    kill $asking
    echo "$1 $2 $3 $said"
}
units=org.freedesktop.systemd1.manage-units
may 1 ragdeck-api.service restart $units
may 1 ragdeck-api.service stop $units
may 1 ragdeck-dashboard.service restart $units
may 1 ssh.service restart $units
may 65534 ragdeck-api.service restart $units
may 1 ragdeck-api.service restart org.freedesktop.systemd1.manage-unit-files
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where polkit's own user can read, which pytest's folders are not."""
    found = Path(tempfile.mkdtemp(prefix="ragdeck-polkit-"))
    found.chmod(0o755)
    yield found
    shutil.rmtree(found)


def test_polkit_lets_the_units_user_restart_the_units_and_no_more(folder: Path) -> None:
    if not all([tool("pkcheck"), tool("dbus-daemon"), tool("unshare"), tool("setpriv")]):
        return
    rule = made("vm-and-vps")["vps/systemd/polkit.rules"].text
    assert 'subject.user == "ragdeck"' in rule
    (folder / "rules").mkdir()
    (folder / "rules" / "50-ragdeck.rules").write_text(rule.replace('"ragdeck"', '"daemon"'))
    (folder / "bus.conf").write_text(BUS.replace("@BUS@", str(folder / "bus")))
    said = ran("unshare", "-m", "sh", "-c", INSIDE.replace("@POLKITD@", str(POLKITD)), "sh", folder)
    assert said.returncode == 0, said.stdout
    answers = [line.rsplit(" ", 1)[1] for line in said.stdout.splitlines() if line.endswith((" yes", " no"))]
    assert answers == ["yes", "no", "no", "no", "no", "no"], said.stdout


def test_the_rule_names_what_the_page_may_restart() -> None:
    """The settings of the dashboard and the rule agree; where nothing of ours is beside it, there is neither."""
    for variant in ("vm-and-vps", "single-vm by units", "six-services-a100 by units"):
        found = site(variant)
        (dashboard,) = [each for each in found.deployment.services if each.role == "dashboard"]
        named = apps.restartable(found, dashboard)
        beside = {f"ragdeck-{name}.service" for name in units(variant)} - {apps.unit_name(dashboard)}
        if variant == "vm-and-vps":
            beside -= {"ragdeck-gpu-server.service"}
        assert set(named) == beside and beside
        rule = made(variant)[f"{dashboard.host}/systemd/polkit.rules"].text
        assert all(f'"{name}"' in rule for name in named)
        assert "polkit.rules" in made(variant)[f"{dashboard.host}/systemd/install.sh"].text
        machines = apps.settings(found, dashboard)["machines"]
        assert machines[0] == {"name": "local", "units": [*named, apps.unit_name(dashboard)], "restart": named}
    assert not any(path.endswith(".rules") for path in made("single-vm")) and "gpu-vm/systemd/polkit.rules" not in made(
        "vm-and-vps"
    )
