"""What the page Capacity shows of a plan: bars of GPUs, figures with formulas, what is carried, offers, reality. Pure.

Everything a plan holds may have been typed by anybody: it is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from deploy.planner import limits
from deploy.planner.figures import Figure
from deploy.planner.fleet import Offer
from deploy.planner.memory import PartName
from deploy.planner.placement import GpuUse, Placed, Plan
from deploy.planner.reality import DRIFT_RATIO, Measured
from ui import cards, figures
from ui.format import bytes_text, count, escape, number, percent, plural, unknown_html, value_html
from ui.gauges import below

# One hue, from dark to light, and patterns: neither a stage's colour nor a severity's.
_FILL: Mapping[str, str] = {
    "weights": "light-dark(#2f4a6d, #a9c3e6)",
    "cache": "light-dark(#6488b4, #7395c2)",
    "activation": "light-dark(#9db6d3, #4f6e98)",
    "overhead": "light-dark(#c9d6e5, #36506f)",
    "buffer": "repeating-linear-gradient(135deg, var(--line) 0 3px, transparent 3px 6px)",
    "free": "transparent",
}
_WORDS: Mapping[str, str] = {
    "weights": "weights",
    "cache": "key-value cache",
    "activation": "activation",
    "framework": "framework",
    "graphs": "CUDA graphs",
    "context": "CUDA context",
    "overhead": "framework, graphs, contexts",
    "buffer": "buffer",
    "free": "free",
}
CONTEXTS = (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)


def title(plan: Plan) -> tuple[str, str]:
    """(severity, a sentence) of the whole plan."""
    unfit = [each.service.name for each in plan.services if not each.fits]
    if unfit:
        verb = "does" if len(unfit) == 1 else "do"
        return "critical", f"{' and '.join(unfit)} {verb} not fit"
    free = min((use.free_bytes for use in plan.gpus), default=0)
    many = plural(len(plan.services), "service")
    return "ok", f"{many} on {_hardware(plan)}: all fit, {bytes_text(free)} beyond the buffer stay free" + (
        " on the fullest GPU" if len(plan.gpus) > 1 else ""
    )


def _hardware(plan: Plan) -> str:
    asked = plan.request
    return f"{asked.count} × {asked.gpu.name}" if asked.count > 1 else f"one {asked.gpu.name}"


def notes(plan: Plan) -> str:
    severity, sentence = title(plan)
    return cards.note(severity, f"<strong>{escape(sentence)}</strong>", *(escape(each) for each in plan.notes))


# bars


def bars(plan: Plan) -> str:
    """A bar for each GPU, and the legend."""
    drawn = "".join(_gpu_bar(plan, use) for use in plan.gpus)
    legend = "".join(
        f'<span class="rd-nowrap">{_swatch(name)}{escape(_WORDS[name])}</span>'
        for name in ("weights", "cache", "activation", "overhead", "buffer", "free")
    )
    return f'<div class="rd">{drawn}<div class="rd-legend">{legend}</div></div>'


def _swatch(name: str) -> str:
    return (
        f'<i style="display:inline-block;width:18px;height:.7em;border-radius:2px;margin-right:.4em;background:{_FILL[name]};'
        'box-shadow:inset 0 0 0 1px var(--line)"></i>'
    )


def _gpu_bar(plan: Plan, use: GpuUse) -> str:
    total = use.gpu.usable_bytes
    segments = list(_segments(plan, use))
    drawn = "".join(_segment(owner, name, size, total) for owner, name, size in segments if size > 0)
    services = [plan.service(name) for name in use.services]
    below = [f"{escape(each.service.name)} {bytes_text(each.reserved_bytes)}" for each in services]
    below += [f"contexts {bytes_text(use.contexts_bytes)}"] if use.contexts_bytes else []
    below += [f"buffer {bytes_text(use.buffer_bytes)}", f"free {bytes_text(use.free_bytes)}"]
    told = ", ".join(f"{owner} {_WORDS[name]} {bytes_text(size)}".strip() for owner, name, size in segments if size > 0)
    return (
        f'<div style="margin-top:.6rem"><div><strong>GPU {use.index}</strong> '
        f'<span class="rd-soft">{escape(use.gpu.name)}, {bytes_text(total)} usable</span></div>'
        f'<div role="img" aria-label="{escape(f"GPU {use.index}: {told}")}" style="display:flex;height:22px;margin:.2rem 0;'
        f'border-radius:3px;overflow:hidden;box-shadow:inset 0 0 0 1px var(--line)">{drawn}</div>'
        f'<div class="rd-soft rd-small rd-plain">{" · ".join(below)}</div></div>'
    )


def _segments(plan: Plan, use: GpuUse) -> Iterator[tuple[str, str, int]]:
    """(service, part, bytes) along a GPU's bar."""
    for name in use.services:
        placed = plan.service(name)
        found = dict(placed.parts())
        overhead = found["framework"] + found["graphs"]
        held = {"weights": found["weights"], "cache": found["cache"], "activation": found["activation"], "overhead": overhead}
        yield from ((name, part, size) for part, size in _within(held, placed.reserved_bytes).items())
    yield "", "overhead", use.contexts_bytes
    yield "", "buffer", use.buffer_bytes
    yield "", "free", use.free_bytes


def _within(held: Mapping[str, int], given: int) -> dict[str, int]:
    """Parts cut where what was given ends: what does not fit is not drawn."""
    found, left = {}, given
    for part, size in held.items():
        found[part] = min(size, left)
        left -= found[part]
    return found


def _segment(owner: str, name: str, size: int, total: int) -> str:
    told = f"{owner}: {_WORDS[name]} {bytes_text(size)}" if owner else f"{_WORDS[name]} {bytes_text(size)}"
    edge = ";border-left:2px solid light-dark(#fff, #14171b)" if owner and name == "weights" else ""
    return (
        f'<i style="display:block;width:{size / total * 100:.3f}%;background:{_FILL[name]};cursor:help{edge}" '
        f'title="{escape(told)}"></i>'
    )


# services


def service_table(plan: Plan) -> str:
    """A row for each service: where, what it gets, and its figures with formula and source on hover."""
    heads = ["Service", "GPU", "Share", "Gets", "Weights", "Cache needed", "Activation", "Other", "Fits"]
    rows = [
        [
            _named(each),
            escape(", ".join(map(str, each.gpus))) or unknown_html(each.problem or "it has no GPU"),
            _share(each),
            bytes_text(each.reserved_bytes) if each.gpus else unknown_html(each.problem or "it has no GPU"),
            *(_figure(getattr(each.need, name)) for name in ("weights", "cache", "activation")),
            _others(each),
            cards.state_mark("ok", "yes") if each.fits else cards.state_mark("critical", "no", each.problem),
        ]
        for each in plan.services
    ]
    return figures.table(heads, rows, numeric=(1, 2, 3, 4, 5, 6, 7), wrap=(0,))


def _named(placed: Placed) -> str:
    service = placed.service
    about = f"{service.model} · {placed.precision}"
    if placed.model.shape.has_cache:
        about += f" · {service.sequences} × {service.context:,} tokens"
    over = f" · {service.split} GPUs" if service.split > 1 else ""
    return f'<strong>{escape(service.name)}</strong><div class="rd-soft rd-plain rd-small">{escape(about + over)}</div>'


def _share(placed: Placed) -> str:
    if placed.share is None:
        return unknown_html("only vLLM takes a share; this server holds what it loads")
    if placed.share > 1:
        return unknown_html("it needs more than the whole GPU")
    return f"{placed.share:.2f}"


def _figure(figure: Figure) -> str:
    if not figure.value_bytes:
        return unknown_html(figure.source)
    return f'<abbr title="{escape(figure.formula)}\n{escape(figure.source)}">{bytes_text(figure.value_bytes)}</abbr>'


def _others(placed: Placed) -> str:
    names: tuple[PartName, ...] = ("framework", "graphs", "context")
    parts = [(name, getattr(placed.need, name)) for name in names]
    told = "\n".join(f"{_WORDS[name]}: {figure.formula} ({figure.source})" for name, figure in parts if figure.value_bytes)
    return f'<abbr title="{escape(told)}">{bytes_text(sum(figure.value_bytes for _, figure in parts))}</abbr>'


def formulas(placed: Placed) -> str:
    """Each figure of a service with its formula and where it comes from."""
    rows = [
        [escape(_WORDS[name]), bytes_text(figure.value_bytes), escape(figure.formula), escape(figure.source)]
        for name, figure in placed.need.items()
        if figure.value_bytes
    ]
    return figures.table(["On each GPU", "Bytes", "Formula", "Source"], rows, numeric=(1,), wrap=(2, 3))


def service_notes(placed: Placed) -> str:
    """What is wrong with a service and what is to be known of it; empty for nothing."""
    found = cards.note("critical", f"<strong>{escape(placed.problem)}</strong>") if placed.problem else ""
    lines = [escape(each) for each in placed.notes]
    return found + (cards.note("unknown", *lines) if lines else "")


def carried(plan: Plan, placed: Placed) -> str:
    """How many sequences of which context fit into its cache, and the bounds of speed."""
    if not placed.fits or placed.model.shape.kind != "decoder":
        return ""
    model_context = placed.model.shape.max_context
    shown = [context for context in CONTEXTS if context <= model_context]
    rows = [[count(context), count(limits.concurrency(placed, context))] for context in shown]
    table = figures.table(["Tokens of context", "Sequences at once"], rows, numeric=(0, 1))
    longest = limits.longest_context(placed)
    many = plural(placed.service.sequences, "sequence")
    said = f"{many} at once may have {longest:,} tokens each." if longest else "Not one block of cache is left."
    return f'<div class="rd">{escape(said)}</div>{table}{_bounds(plan, placed)}'


def _bounds(plan: Plan, placed: Placed) -> str:
    bounds = limits.bounds(placed, plan.request.gpu)
    why = "the GPU's data sheet is not known, or the model generates no text"
    pairs = (
        ("decoding, all together", bounds.decode),
        ("decoding, one alone", bounds.decode_alone),
        ("reading prompts", bounds.prefill),
    )
    shown = "".join(
        f'<span class="rd-pair"><span class="rd-soft">{escape(name)}</span> {value_html(number(value, "tokens/s"), why)}</span>'
        for name, value in pairs
    )
    told = f"No server is faster than this; real ones are slower. {bounds.source}"
    return f'<div class="rd rd-pairs" title="{escape(told)}"><span class="rd-soft">Upper bounds:</span>{shown}</div>'


# load and cost


def offers_table(offers: Sequence[Offer]) -> str:
    heads = ["GPU", "Takes", "Streams at once", "Tokens/s each", "Questions/s a copy", "EUR a month", "Price of one GPU"]
    rows = [
        [
            f"<strong>{escape(each.gpu.name)}</strong>",
            escape(_takes(each)) if not each.why_not else f'<span class="rd-soft rd-plain">{escape(each.why_not)}</span>',
            count(each.sequences) if each.sequences else "",
            number(each.stream) if each.stream is not None else "",
            number(each.requests_per_second) if each.requests_per_second is not None else "",
            "" if each.why_not else value_html(number(each.eur_month), "no price is entered for it"),
            _price(each),
        ]
        for each in offers
    ]
    return figures.table(heads, rows, numeric=(2, 3, 4, 5), wrap=(1, 6))


def _price(offer: Offer) -> str:
    """What one GPU costs, as of when, and who says so."""
    if offer.price is None:
        return ""
    told = f"{offer.price.date}, {offer.price.source}"
    return f'{number(offer.price.eur_month)} EUR<div class="rd-soft rd-plain rd-small">{escape(told)}</div>'


def _takes(offer: Offer) -> str:
    copies = plural(offer.copies, "copy", "copies")
    return f"{offer.copies * offer.split} GPUs: {copies} on {offer.split}" if offer.copies * offer.split > 1 else "1 GPU"


# plan against reality


def measured_title(rows: Sequence[Measured]) -> str:
    apart = [row for row in rows if row.verdict in ("more", "less")]
    missing = [row for row in rows if row.verdict == "not running"]
    if apart:
        worst = max(apart, key=lambda row: abs(row.drift_ratio or 0.0))
        return f"{worst.name} holds {percent(abs(worst.drift_ratio or 0.0))} {worst.verdict} than planned"
    if missing:
        return f"{plural(len(missing), 'planned process', 'planned processes')} not running"
    return "What runs is as planned"


def measured_table(rows: Sequence[Measured]) -> str:
    """Planned beside measured, on each GPU."""
    tones = {
        "as planned": "ok",
        "more": "warn",
        "less": "warn",
        "not running": "unknown",
        "not planned": "warn",
        "unknown": "unknown",
    }
    body = [
        [
            f"GPU {row.gpu}",
            f'<strong class="rd-plain">{escape(row.name)}</strong>{below(row.process)}',
            value_html(bytes_text(row.planned_bytes), "it is not in the plan"),
            value_html(bytes_text(row.measured_bytes), row.reason or "not measured"),
            _drift(row),
            cards.state_mark(tones[row.verdict], row.verdict, row.reason),
        ]
        for row in rows
    ]
    heads = ["", "Process", "Planned", "Measured", "Drift", f"Beyond ± {percent(DRIFT_RATIO)} is flagged"]
    return figures.table(heads, body, numeric=(2, 3, 4), wrap=(1,))


def _drift(row: Measured) -> str:
    if row.drift_ratio is None:
        return unknown_html(row.reason or "there is nothing to compare with")
    return f"{row.drift_ratio * 100:+.0f} %"
