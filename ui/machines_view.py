"""The list of machines: one row each, how they are in a sentence, and the steps of a connection test. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import tzinfo
from statistics import fmean
from typing import Any

from collectors.alerts import Alert
from collectors.connection_test import STEPS, StepResult
from collectors.readings import Filesystem, Gpu
from collectors.views import MachineView, Problem
from ui import cards, figures, gauges
from ui.exports import to_csv
from ui.format import code_html, count, escape, number, percent, plural, seconds, shortened, unknown_html
from ui.gauges import Tones

HEADS = ("Machine", "State", "CPU", "Memory", "GPU", "VRAM", "Heat", "Load", "Disk", "Read")
STATES: Mapping[str, tuple[str, str]] = {
    "ok": ("ok", "ok"),
    "waiting": ("unknown", "not read yet"),
    "stale": ("unknown", "stale"),
    "failing": ("critical", "cannot be read"),
    "halted": ("critical", "login refused"),
}
_ORDER = ("halted", "failing", "stale", "waiting", "ok")
_STEPS = {
    "name": "Name resolves",
    "connect": "Host answers",
    "host key": "Host key is known",
    "authentication": "Login",
    "shell": "Shell answers",
    "command": "Commands are there",
}

Spark = Callable[[str, str, str], str]  # (machine, metric, what it is) -> HTML


# -------------------------------------------------------------------------------------------------- numbers of a machine


def busy_ratio(view: MachineView) -> float | None:
    host = view.host.value if view.host else None
    return host.cpu.busy_ratio if host and host.cpu else None


def memory_ratio(view: MachineView) -> float | None:
    host = view.host.value if view.host else None
    return host.memory.used_ratio if host and host.memory else None


def gpus_of(view: MachineView) -> tuple[Gpu, ...]:
    return (view.gpus.value.gpus or ()) if view.gpus and view.gpus.value else ()


def gpu_ratio(view: MachineView) -> float | None:
    """The mean utilization of those GPUs that tell theirs."""
    known = [gpu.utilization_ratio for gpu in gpus_of(view) if gpu.utilization_ratio is not None]
    return fmean(known) if known else None


def vram(view: MachineView) -> tuple[float | None, float | None]:
    """(used, total) bytes of all GPUs together; None where one of them does not tell."""
    gpus = gpus_of(view)

    def together(values: Iterable[int | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(sum(known)) if known and len(known) == len(gpus) else None

    return together(gpu.memory_used_bytes for gpu in gpus), together(gpu.memory_total_bytes for gpu in gpus)


def hottest(view: MachineView) -> float | None:
    return max((gpu.temperature_celsius for gpu in gpus_of(view) if gpu.temperature_celsius is not None), default=None)


def fullest(view: MachineView) -> Filesystem | None:
    """The file system with the least room, by share; of those that can fill up."""
    listed = (view.filesystems.value.filesystems or ()) if view.filesystems and view.filesystems.value else ()
    known = (each for each in listed if each.used_ratio is not None and each.can_fill)
    return max(known, key=lambda each: each.used_ratio or 0.0, default=None)


def oldest(view: MachineView) -> Any:
    """The fast part (host, GPUs) that was read longest ago; of those never read only where there is no other."""
    fast = [part for part in (view.host, view.gpus) if part is not None and not part.absent]
    return max(fast, key=lambda part: -1.0 if part.age_seconds is None else part.age_seconds, default=None)


# --------------------------------------------------------------------------------------------------------------- sorting


def _falling(of: Callable[[MachineView], float | None]) -> Callable[[MachineView], tuple[bool, float]]:
    """Highest first, unknown last."""
    return lambda view: (of(view) is None, -(of(view) or 0.0))


SORTS: Mapping[str, Callable[[MachineView], Any]] = {
    "as in the settings": lambda view: 0,
    "name": lambda view: view.name.casefold(),
    "worst state first": lambda view: (_ORDER.index(view.state), -len(wrong(view))),
    "CPU": _falling(busy_ratio),
    "memory": _falling(memory_ratio),
    "GPU": _falling(gpu_ratio),
    "VRAM": _falling(lambda view: gauges.ratio_of(*vram(view))),
    "heat": _falling(hottest),
    "disk": _falling(lambda view: each.used_ratio if (each := fullest(view)) else None),
}


def chosen(views: Iterable[MachineView], text: str, sort: str) -> list[MachineView]:
    """Those whose name or address holds `text`, sorted."""
    wanted = text.strip().casefold()
    found = [view for view in views if wanted in view.name.casefold() or wanted in view.address.casefold()]
    return sorted(found, key=SORTS.get(sort, SORTS["as in the settings"]))


# ------------------------------------------------------------------------------------------------------------- sentences


def title(views: Sequence[MachineView]) -> str:
    """How many, and what is not as it should be."""
    bad = [view for view in views if view.state in ("failing", "halted")]
    if bad:
        names = ", ".join(view.name for view in bad[:3]) + (" …" if len(bad) > 3 else "")
        return f"{len(bad)} of {plural(len(views), 'machine')} cannot be read: {names}"
    old = [view for view in views if view.state == "stale"]
    if old:
        return f"{plural(len(old), 'machine')} of {len(views)} {'has' if len(old) == 1 else 'have'} old readings: {old[0].name}"
    waiting = [view for view in views if view.state == "waiting"]
    if waiting:
        return f"{len(views) - len(waiting)} of {plural(len(views), 'machine')} read so far"
    gpus = sum(len(gpus_of(view)) for view in views)
    return f"{plural(len(views), 'machine')} read" + (f", {plural(gpus, 'GPU')}" if gpus else "")


def wrong(view: MachineView) -> list[str]:
    """What the machine reports as wrong, critical first, in words; notes are none."""
    faults = sorted((fault for fault in view.faults if fault.severity != "note"), key=lambda fault: fault.severity)
    texts = [f"{fault.subject}: {fault.text}" if fault.subject else fault.text for fault in faults]
    return texts + [gauges.said(part.problem) for _, part in view.parts() if part.problem and view.problem is None]


def standing(view: MachineView, alerts: Sequence[Alert] = ()) -> tuple[str, str, str]:
    """(severity, word, more in words): how it can be read, else its faults, else its active alerts."""
    severity, word = STATES.get(view.state, ("unknown", view.state))
    faults, active = wrong(view), [alert for alert in alerts if alert.source == view.name]
    if severity == "ok" and faults:
        worst = any(fault.severity == "critical" for fault in view.faults)
        return "critical" if worst else "warn", plural(len(faults), "fault"), "\n".join(faults[:8])
    if severity == "ok" and active:
        worst = any(alert.level == "critical" for alert in active)
        return "critical" if worst else "warn", plural(len(active), "alert"), "\n".join(alert.title for alert in active[:8])
    return severity, word, gauges.said(view.problem) if view.problem else ""


def state(view: MachineView, alerts: Sequence[Alert] = ()) -> str:
    return cards.state_mark(*standing(view, alerts))


# ----------------------------------------------------------------------------------------------------------------- table


def table(views: Sequence[MachineView], alerts: Sequence[Alert], tones: Tones, zone: tzinfo, spark: Spark) -> str:
    rows = [[*_who(view, alerts), *_host(view, tones, spark), *_gpu(view, tones), *_rest(view, tones, zone)] for view in views]
    return f'<div class="rd-machines">{figures.table(HEADS, rows, numeric=(6, 7, 9), wrap=(0,))}</div>'


def _who(view: MachineView, alerts: Sequence[Alert]) -> list[str]:
    source = "" if view.source != "prometheus" else "by Prometheus"
    about = " · ".join(text for text in (view.address, source) if text)
    trouble = [gauges.said(view.problem)] if view.problem else wrong(view)[:2]
    lines = gauges.below(about) + "".join(
        f'<div class="rd-plain rd-small" dir="auto">{escape(shortened(text, 160))}</div>' for text in trouble
    )
    return [f"<strong>{gauges.link(gauges.machine_url(view.name), view.name)}</strong>{lines}", state(view, alerts)]


def _host(view: MachineView, tones: Tones, spark: Spark) -> list[str]:
    reason = gauges.why(view.host, "the machine does not tell")
    busy, used = busy_ratio(view), memory_ratio(view)
    host = view.host.value if view.host else None
    memory = host.memory if host else None
    total = gauges.used_of(memory.used_bytes, memory.total_bytes) if memory else ""
    cores = f"{host.cpu.cores} cores" if host and host.cpu and host.cpu.cores else ""
    cpu = gauges.bar(busy, percent(busy), _rate_reason(view, reason), tones.of("cpu.busy_ratio", busy), cores)
    drawn = spark(view.name, "cpu.busy_ratio", "CPU busy")
    memory_bar = gauges.bar(used, percent(used), reason, tones.of("memory.used_ratio", used), total)
    return [_dim(view, "host", f'<span class="rd-with-spark">{drawn}{cpu}</span>'), _dim(view, "host", memory_bar)]


def _rate_reason(view: MachineView, reason: str) -> str:
    first = view.host is not None and view.host.value is not None and view.host.value.seconds is None
    return "rates need two readings" if first else reason


def _gpu(view: MachineView, tones: Tones) -> list[str]:
    part, gpus = view.gpus, gpus_of(view)
    if not gpus and not view.expected_gpus:
        empty = part is not None and part.value is not None and part.value.gpus is not None
        dash = unknown_html("the machine has no GPU" if empty else gauges.why(part, "the driver does not tell"))
        return [dash, dash, dash]
    faults = part.value.faults if part and part.value else ()
    drawn = gauges.cells(gpus, faults, view.expected_gpus)
    mean = gpu_ratio(view)
    name = gpus[0].name or "" if gpus else ""
    used, total = vram(view)
    heat = hottest(view)
    worst = next(
        (tone for gpu in gpus if (tone := tones.of(f"gpu.{gpu.index}.temperature_celsius", gpu.temperature_celsius))), ""
    )
    return [
        _dim(
            view, "gpus", f'<span class="rd-with-spark">{drawn}{gauges.bar(None, percent(mean), _silent(gpus), "", name)}</span>'
        ),
        _dim(view, "gpus", gauges.bar(gauges.ratio_of(used, total), gauges.used_of(used, total), _silent(gpus))),
        _dim(view, "gpus", gauges.bar(None, number(heat, "°C"), "the driver does not tell", worst)),
    ]


def _silent(gpus: Sequence[Gpu]) -> str:
    if any(gpu.mig_enabled for gpu in gpus):
        return "split by MIG: the driver tells it of no whole GPU"
    return "the driver does not tell (unified memory, or too old)" if gpus else "no GPU answers"


def _rest(view: MachineView, tones: Tones, zone: tzinfo) -> list[str]:
    host = view.host.value if view.host else None
    load = host.load.average_1m if host and host.load else None
    reason = gauges.why(view.host, "the machine does not tell")
    disk = fullest(view)
    if disk is None:
        space = unknown_html(gauges.why(view.filesystems, "no file system told its size"))
    else:
        room = f"{disk.mount}: {gauges.used_of(disk.used_bytes, disk.total_bytes)}"
        tone = tones.of(f"filesystem.{disk.mount}.used_ratio", disk.used_ratio)
        space = gauges.bar(disk.used_ratio, percent(disk.used_ratio), reason, tone, room)
    return [
        _dim(view, "host", gauges.shown(number(load), reason)),
        _dim(view, "filesystems", space),
        gauges.age(oldest(view), zone),
    ]


def _dim(view: MachineView, part: str, cell: str) -> str:
    """An old reading is shown as old."""
    found = getattr(view, part)
    if found is None or not (found.stale or view.state in ("failing", "halted")):
        return cell
    return f'<div class="rd-old" title="an old reading: see the last column">{cell}</div>'


def sources_note(sources: Iterable[Any]) -> str:
    """Prometheus servers that do not answer."""
    lines = [
        f"<strong>{escape(each.name)}</strong> at {escape(each.address)} (Prometheus): {escape(gauges.said(each.problem))}"
        for each in sources
        if each.problem
    ]
    return cards.note("critical", *lines) if lines else ""


# ----------------------------------------------------------------------------------------------------------- connection


def problem_note(problem: Problem, retry_seconds: float | None) -> str:
    """Why a machine cannot be read: what to do, and what its host key is where that is the question."""
    again = f"It is tried again in {seconds(retry_seconds)}." if retry_seconds else "It is not tried again by itself."
    return cards.note(
        "critical",
        f"<strong>{escape(_STEPS.get(problem.step, problem.step))}: no.</strong> {escape(problem.text)}",
        f"<strong>Next:</strong> {code_html(problem.next_step)}" if problem.next_step else "",
        *_key_lines(problem.fingerprint, problem.command),
        escape(again),
    )


def steps(results: Sequence[StepResult]) -> str:
    """A connection test, one line a step: what went well, what failed and what to do, what was not reached."""
    return f'<div class="rd rd-steps">{"".join(_step(result) for result in results)}</div>'


def steps_so_far(results: Sequence[StepResult], order: Sequence[str] = STEPS) -> str:
    """A test that goes on: the steps that are over, the one that is being tried, and those to come."""
    left = [step for step in order if step not in {result.step for result in results}]
    failed = any(result.ok is False for result in results)
    words = ["not reached" if failed else "to come" for _ in left]
    if words and not failed:
        words[0] = "now …"
    told = [_step(result) for result in results]
    told += [_line(step, "unknown", word) for step, word in zip(left, words, strict=True)]
    return f'<div class="rd rd-steps">{"".join(told)}</div>'


def _line(step: str, severity: str, word: str, more: str = "") -> str:
    mark = cards.state_mark(severity, _STEPS.get(step, step))
    return f'<div class="rd-step">{mark} <span class="rd-soft">{word}</span> {more}</div>'


def _step(result: StepResult) -> str:
    severity, word = {True: ("ok", "yes"), False: ("critical", "no"), None: ("unknown", "not reached")}[result.ok]
    took = f'<span class="rd-soft rd-small">{seconds(result.seconds)}</span>' if result.seconds is not None else ""
    lines = [escape(result.text)] if result.text else []
    if result.ok is not True and result.next_step:
        lines.append(f"<strong>Next:</strong> {code_html(result.next_step)}")
    lines += _key_lines(result.fingerprint, result.command)
    told = "".join(f'<div class="rd-plain" dir="auto">{line}</div>' for line in lines)
    return _line(result.step, severity, word, took + told)


def _key_lines(fingerprint: str | None, command: str | None) -> list[str]:
    lines = [f'Its key has the fingerprint <span class="rd-mono">{escape(fingerprint)}</span>'] if fingerprint else []
    if command:
        lines.append(
            "If that is the fingerprint which the machine's owner names, this makes it known:"
            f'<div class="rd-command">{escape(command)}</div>'
        )
    return lines


def passed(results: Sequence[StepResult]) -> bool:
    return bool(results) and all(result.ok for result in results)


# ---------------------------------------------------------------------------------------------------------------- export

_COLUMNS: Mapping[str, Callable[[MachineView], Any]] = {
    "machine": lambda view: view.name,
    "address": lambda view: view.address,
    "source": lambda view: view.source,
    "state": lambda view: view.state,
    "problem": lambda view: view.problem.text if view.problem else None,
    "cpu_busy_ratio": busy_ratio,
    "memory_used_ratio": memory_ratio,
    "load_average_1m": lambda view: view.host.value.load.average_1m if _has_load(view) else None,  # type: ignore[union-attr]
    "gpus": lambda view: len(gpus_of(view)) if view.gpus and view.gpus.value and view.gpus.value.gpus is not None else None,
    "gpu_utilization_ratio": gpu_ratio,
    "vram_used_bytes": lambda view: vram(view)[0],
    "vram_total_bytes": lambda view: vram(view)[1],
    "hottest_gpu_celsius": hottest,
    "fullest_mount": lambda view: each.mount if (each := fullest(view)) else None,
    "fullest_used_ratio": lambda view: each.used_ratio if (each := fullest(view)) else None,
    "age_seconds": lambda view: part.age_seconds if (part := oldest(view)) else None,
    "faults": lambda view: "; ".join(wrong(view)) or None,
}


def _has_load(view: MachineView) -> bool:
    return bool(view.host and view.host.value and view.host.value.load)


def csv(views: Iterable[MachineView]) -> bytes:
    return to_csv(tuple(_COLUMNS), ([of(view) for of in _COLUMNS.values()] for view in views))


def gpu_words(view: MachineView) -> str:
    """`8 × NVIDIA H100`, or nothing."""
    gpus = gpus_of(view)
    name = gpus[0].name if gpus else None
    return f"{count(len(gpus))} × {name}" if name and len(gpus) > 1 else name or ""
