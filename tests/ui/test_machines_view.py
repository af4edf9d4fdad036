from __future__ import annotations

import csv
import io
from datetime import UTC

import pytest
from bs4 import BeautifulSoup

from collectors.alerts import Alert
from collectors.rules import rules
from collectors.views import MachineView, Part, Problem, SourceView
from tests.ui.deployment_fakes import EVIL, connection_steps, machines
from ui import machines_view
from ui.gauges import Tones

VIEWS = {view.name: view for view in machines(1000.0)}
TONES = Tones(rules({}))


def spark(source: str, metric: str, what: str) -> str:
    return f"<s>{source}</s>"


def row(name: str, alerts: tuple[Alert, ...] = ()) -> list[BeautifulSoup]:
    html = machines_view.table([VIEWS[name]], alerts, TONES, UTC, spark)
    soup = BeautifulSoup(html, "html.parser")
    assert soup.img is None and soup.script is None
    return soup.find_all("td")


def alert(source: str, level: str = "warn") -> Alert:
    return Alert(1, "r", f"Hot {EVIL}", source, "m", level, 1, 1, 0.0, "", "", "state")  # type: ignore[arg-type]


def texts(name: str) -> list[str]:
    return [cell.get_text(" ", strip=True) for cell in row(name)]


def test_a_machine_with_a_gpu_in_one_row() -> None:
    cells = texts("l4-vm")
    assert cells[0].startswith("l4-vm ops@10.0.0.4 nightly-index.service")
    assert cells[1:3] == ["1 fault", "l4-vm 88 %"] and cells[3] == "93 %" and cells[5].endswith("22.5 GiB")
    assert cells[8:] == ["96 %", "1 s ago"]
    link = row("l4-vm")[0].a
    assert link is not None and link["href"] == "/machine?name=l4-vm"


def test_values_past_a_threshold_have_its_colour() -> None:
    cells = row("l4-vm")
    assert "--rd-warn" in str(cells[3]) and "--rd-warn" in str(cells[8])
    assert "--rd-" not in str(row("local")[3])


def test_eight_gpus_are_eight_cells_and_the_missing_one_shows() -> None:
    assert len(row("h100-1")[4].find_all("i")) == 8
    gone = row("h100-2")[4].find_all("i", class_="gone")
    assert len(gone) == 1


@pytest.mark.parametrize(
    ("name", "column", "reason"),
    [
        ("local", 4, "No NVIDIA driver is installed there"),
        ("vps", 2, "not read yet"),
        ("spark", 5, "unified memory"),
        ("spark", 8, "not collected"),
        ("ocr-gpu", 4, "not connected"),
    ],
)
def test_every_unknown_says_why(name: str, column: int, reason: str) -> None:
    mark = row(name)[column].find("abbr")
    assert mark is not None and mark.text == "–" and reason in mark["title"]


def test_old_readings_look_old() -> None:
    assert "rd-old" in str(row("spark")[2]) and "rd-old" in str(row("ocr-gpu")[2]) and "rd-old" not in str(row("local")[2])
    assert texts("ocr-gpu")[9] == "12 min ago"


def test_standing_is_state_then_faults_then_alerts() -> None:
    assert machines_view.standing(VIEWS["h100-1"])[:2] == ("ok", "ok")
    assert machines_view.standing(VIEWS["h100-1"], [alert("h100-1", "critical"), alert("other")])[:2] == ("critical", "1 alert")
    assert machines_view.standing(VIEWS["l4-vm"], [alert("l4-vm")])[:2] == ("critical", "1 fault")
    assert machines_view.standing(VIEWS["vps"])[:2] == ("critical", "cannot be read")
    assert machines_view.standing(VIEWS["ocr-gpu"])[1] == "login refused"
    assert machines_view.standing(VIEWS["new"])[:2] == ("unknown", "not read yet")


def test_titles_say_what_is_not_as_it_should_be() -> None:
    assert machines_view.title(list(VIEWS.values())) == "2 of 8 machines cannot be read: vps, ocr-gpu"
    assert machines_view.title([VIEWS["local"], VIEWS["spark"]]) == "1 machine of 2 has old readings: spark"
    assert machines_view.title([VIEWS["local"], VIEWS["new"]]) == "1 of 2 machines read so far"
    assert machines_view.title([VIEWS["local"], VIEWS["h100-1"]]) == "2 machines read, 8 GPUs"


@pytest.mark.parametrize(
    ("sort", "first"),
    [
        ("as in the settings", "local"),
        ("CPU", "l4-vm"),
        ("VRAM", "h100-1"),
        ("worst state first", "ocr-gpu"),
        ("disk", "l4-vm"),
        ("?", "local"),
    ],
)
def test_sorting(sort: str, first: str) -> None:
    found = machines_view.chosen(VIEWS.values(), "", sort)
    assert found[0].name == first and len(found) == len(VIEWS)


def test_unknown_sorts_last() -> None:
    assert [view.name for view in machines_view.chosen(VIEWS.values(), "", "heat")][-1] in ("local", "vps", "ocr-gpu", "new")


def test_filtering_by_name_or_address() -> None:
    assert [view.name for view in machines_view.chosen(VIEWS.values(), " H100 ", "name")] == ["h100-1", "h100-2"]
    assert [view.name for view in machines_view.chosen(VIEWS.values(), "10.0.0.9", "name")] == ["vps"]


def test_the_steps_of_a_test_name_the_failure_the_next_step_the_fingerprint_and_the_command() -> None:
    soup = BeautifulSoup(machines_view.steps(connection_steps()), "html.parser")
    steps = [step.get_text(" ", strip=True) for step in soup.find_all(class_="rd-step")]
    assert len(steps) == 6 and soup.img is None
    assert steps[0].startswith("Name resolves yes 2.00 ms") and steps[3] == "Login not reached"
    assert "Host key is known no" in steps[2] and "Next: Compare the fingerprint" in steps[2] and "SHA256:4bJ6" in steps[2]
    command = soup.find(class_="rd-command")
    assert command is not None and command.text == "printf '%s\\n' '10.0.0.9 ssh-ed25519 AAAA' >> ~/.ssh/known_hosts"
    assert not machines_view.passed(connection_steps()) and not machines_view.passed(())


def test_a_problem_says_when_it_is_tried_again() -> None:
    problem = Problem("timeout", "connect", f"no answer {EVIL}", "Check the firewall.")
    assert "tried again in 41.0 s" in machines_view.problem_note(problem, 41.0)
    halted = machines_view.problem_note(problem, None)
    assert "not tried again by itself" in halted and "<img" not in halted and "Host answers: no." in halted


def test_prometheus_servers_that_do_not_answer_are_named() -> None:
    problem = Problem("connection", "connect", "refused", "Start it.")
    source = SourceView("prom", "http://10.0.0.5:9090", None, None, None, None, problem)
    assert "prom" in machines_view.sources_note([source]) and "Start it." in machines_view.sources_note([source])
    assert machines_view.sources_note([]) == ""


def test_the_csv_has_unknown_as_empty_and_no_formulas() -> None:
    evil = MachineView("=cmd()", "@sum", "ssh", "ok", host=Part())
    rows = list(csv.DictReader(io.StringIO(machines_view.csv([*VIEWS.values(), evil]).decode("utf-8-sig"))))
    by_name = {row["machine"]: row for row in rows}
    assert by_name["h100-1"]["gpus"] == "8" and by_name["new"]["cpu_busy_ratio"] == "" and by_name["local"]["gpus"] == ""
    assert "'=cmd()" in by_name and by_name["'=cmd()"]["address"] == "'@sum"
