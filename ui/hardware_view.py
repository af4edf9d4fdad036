"""What the page Experiments shows of CPU against GPU: matrices, reported numbers beside, costs, advice, progress. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latency.hardware.prices import REPORT, REPORTED, REPORTED_INT8, Advice, Cost, Price, Reported
from latency.hardware.types import Cell, Component, HardwareResult, Place, Row
from ui import cards, figures
from ui.format import UNKNOWN, count, escape, number, percentile, plural, seconds, unknown_html, value_html

_WORDS: Mapping[str, str] = {"embed": "Embedding", "rerank": "Reranking"}


def latency_table(result: HardwareResult, component: Component) -> str:
    """p50 for one client by how many texts a call has; for reranking the reported numbers below, marked as such."""
    rows = result.of(component)
    sizes = sorted({cell.size for row in rows for cell in row.cells})
    alone = min((cell.clients for row in rows for cell in row.cells), default=1)
    body = [[_place(row), *(_cell_time(row, size, alone) for size in sizes)] for row in rows]
    if component == "rerank":
        body += [[_reported(device), *(_reported_time(device, size) for size in sizes)] for device in ("CPU", "T4")]
    heads = [f"{_WORDS[component]}, {plural(alone, 'client')}", *(_texts(component, size) for size in sizes)]
    return figures.table(heads, body, numeric=range(1, len(heads)), wrap=(0,))


def throughput_table(result: HardwareResult, component: Component, size: int) -> str:
    """Calls a second of `size` texts by how many clients call at once."""
    rows = result.of(component)
    clients = sorted({cell.clients for row in rows for cell in row.cells})
    body = [[_place(row), *(_cell_rate(row, size, each) for each in clients)] for row in rows]
    if component == "rerank":
        body += [[_reported(each.device), *_spread(each, len(clients))] for each in REPORTED if each.candidates is None]
    heads = [f"Calls a second of {_texts(component, size)}", *(plural(each, "client") for each in clients)]
    return figures.table(heads, body, numeric=range(1, len(heads)), wrap=(0,))


def _spread(each: Reported, columns: int) -> list[str]:
    told = f'<abbr class="rd-soft" title="{escape(f"{REPORT}, at no stated number of clients: not measured here")}">'
    cells = [f"{told}{each.low:g}–{each.high:g}</abbr>"]
    return (cells + [""] * columns)[:columns]


def _texts(component: Component, size: int) -> str:
    if component == "rerank":
        return plural(size, "candidate")
    return "one question" if size == 1 else f"{size} passages"


def _place(row: Row) -> str:
    about = [row.model, row.device, row.precision] if row.place.where == "http" else [row.model]
    loaded = f"ready in {seconds(row.load_seconds)}" if row.load_seconds is not None else None
    below = " · ".join(text for text in (*about, loaded, row.skipped) if text)
    return f'<strong>{escape(row.place.name)}</strong><div class="rd-soft rd-plain rd-small">{escape(below)}</div>'


def _reported(device: str) -> str:
    return (
        f'<span class="rd-soft">reported: {escape(device)}</span>'
        f'<div class="rd-soft rd-plain rd-small">{escape(REPORT)}, not measured here</div>'
    )


def _reported_time(device: str, size: int) -> str:
    found = next((each for each in REPORTED if each.device == device and each.candidates == size), None)
    if found is None:
        return unknown_html(f"{REPORT} has no number for it")
    return f'<span class="rd-soft">{seconds(found.low)}–{seconds(found.high)}</span>'


def _cell_time(row: Row, size: int, clients: int) -> str:
    cell = row.cell(size, clients)
    if cell is None or cell.step is None or cell.step.total is None:
        return unknown_html(_why(row, cell))
    total = cell.step.total
    told = f"{percentile('p50', total.p50, total.n)}\n{percentile('p95', total.p95, total.n)}"
    return f'<span title="{escape(told)}">{seconds(total.p50)}</span>'


def _cell_rate(row: Row, size: int, clients: int) -> str:
    cell = row.cell(size, clients)
    if cell is None or cell.step is None or not cell.step.answered:
        return unknown_html(_why(row, cell))
    step = cell.step
    p95 = percentile("p95", step.total.p95, step.total.n) if step.total else ""
    failed = f"\n{step.failed} failed" if step.failed else ""
    return f'<span title="{escape(f"{number(step.throughput * size)} texts/s, {p95}{failed}")}">{number(step.throughput)}</span>'


def _why(row: Row, cell: Cell | None) -> str:
    if row.skipped:
        return row.skipped
    if cell is None:
        return "not measured: the comparison ended before"
    if cell.skipped:
        return cell.skipped
    errors = next(iter(cell.step.examples.values()), "") if cell.step else ""
    return f"no call was answered: {errors}" if errors else "no call was answered"


def skipped_list(rows: Sequence[Row]) -> str:
    """Places that could not be measured, with the reason; empty without one."""
    found = [[escape(_WORDS[row.place.component]), escape(row.place.name), escape(row.skipped)] for row in rows if row.skipped]
    return figures.table(["Not measured", "Where", "Why"], found, wrap=(2,)) if found else ""


def progress_line(events: Sequence[Mapping[str, Any]]) -> tuple[float, str]:
    """(share done, what goes on) of a running comparison; plain text."""
    begun = next((event for event in events if event["type"] == "hardware_started"), None)
    place = next((event for event in reversed(events) if event["type"] == "place_started"), None)
    if begun is None or place is None:
        return 0.0, "preparing"
    cells = [event for event in events if event["type"] == "cell"]
    ended = sum(event["type"] == "place_finished" for event in events)
    of = begun["places"]
    last = cells[-1] if cells else None
    now = f"place {place['number']} of {of}: {_WORDS[place['place']['component']].lower()} on {place['name']}"
    told = (
        f" · last: {last['size']} × {last['clients']} clients, {seconds(last['p50'])}" if last and last["p50"] is not None else ""
    )
    return min(1.0, ended / of if of else 0.0), now + told


def cells_table(events: Sequence[Mapping[str, Any]]) -> str:
    """The last cells of a running comparison, newest first."""
    cells = [event for event in events if event["type"] == "cell"][-12:]
    rows = [
        [
            escape(f"{_WORDS[each['place']['component']]}, {_name(each['place'])}"),
            count(each["size"]),
            count(each["clients"]),
            value_html(seconds(each["p50"]), each["skipped"] or "no call was answered"),
            value_html(number(each["per_second"]), each["skipped"] or "no call was answered"),
        ]
        for each in reversed(cells)
    ]
    return figures.table(["Measured last", "Texts", "Clients", "p50", "Calls/s"], rows, numeric=(1, 2, 3, 4), wrap=(0,))


def _name(place: Mapping[str, Any]) -> str:
    return Place(**place).name


# costs


def advice_card(advice: Advice) -> str:
    severity = "ok" if advice.choice else "unknown"
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in advice.reasons)
    return (
        cards.note(severity, f"<strong>{escape(advice.text)}</strong>")
        + f'<ul class="rd rd-plain" style="margin:.4rem 0 0 1.1rem">{reasons}</ul>'
    )


def costs_table(costs: Sequence[Cost]) -> str:
    """What each place costs at the load wanted."""
    heads = ["Place", "Within the target", "p95", "Queries/s", "Machines", "EUR a month", "EUR per million", "When full"]
    rows = [
        [
            f"<strong>{escape(each.option.name)}</strong>",
            cards.state_mark("ok" if each.option.meets_target else "critical", "yes" if each.option.meets_target else "no"),
            f'<span title="{escape(percentile("p95", each.option.p95, each.option.n))}">{seconds(each.option.p95)}</span>',
            f'<span title="with {plural(each.option.clients, "client")} at once">{number(each.option.per_second)}</span>',
            count(each.machines),
            number(each.eur_month),
            number(each.eur_per_million),
            value_html(number(each.eur_per_million_full), "it carries nothing"),
        ]
        for each in costs
    ]
    return figures.table(heads, rows, numeric=(2, 3, 4, 5, 6, 7))


def prices_table(prices: Sequence[Price]) -> str:
    rows = [[escape(each.name), number(each.eur_month), escape(each.date)] for each in prices]
    return figures.table(["GPU machine", "EUR a month", "As of"], rows, numeric=(1,))


def reported_note() -> str:
    return f'<div class="rd rd-soft rd-small">Reported ({escape(REPORT)}), never measured here. {escape(REPORTED_INT8)}</div>'


def side_by_side(first: HardwareResult, second: HardwareResult, component: Component) -> str:
    """p50 for one client in both, and their ratio; places that only one has are left out."""
    others = {row.place: row for row in second.of(component)}
    rows = []
    for row in first.of(component):
        other = others.get(row.place)
        for cell in row.cells if other is not None else ():
            again = other.cell(cell.size, cell.clients) if other is not None else None
            pair = [each.step.total for each in (cell, again) if each is not None and each.step is not None]
            if cell.clients != 1 or len(pair) != 2 or pair[0] is None or pair[1] is None:
                continue
            ratio = f"{pair[1].p50 / pair[0].p50:.2f}" if pair[0].p50 > 0 else UNKNOWN
            name = f"{escape(row.place.name)}, {_texts(component, cell.size)}"
            rows.append([name, seconds(pair[0].p50), seconds(pair[1].p50), ratio])
    heads = [f"{_WORDS[component]}, p50 of one client", "A", "B", "B / A"]
    return figures.table(heads, rows, numeric=(1, 2, 3)) if rows else ""
