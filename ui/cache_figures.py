"""What the page Cache shows of look-ups and entries, as HTML. Pure; all is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any
from urllib.parse import quote

from rag.cache.counts import CacheStatus, Counted
from rag.cache.tally import Look, Spread, Tally
from rag.cache.types import CachedAnswer, Thresholds
from ui import cards, figures
from ui.format import (
    UNKNOWN,
    count,
    escape,
    percent,
    percentile,
    plural,
    query_url,
    seconds,
    shortened,
    time_html,
    unknown_html,
    value_html,
)
from ui.gauges import duration

_GRID = "display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,11.5rem),1fr));gap:.8rem 1.2rem"


def entry_url(entry_id: str) -> str:
    return f"/cache?entry={quote(entry_id, safe='')}"


def when(unix: float | None, now: datetime, zone: tzinfo, reason: str) -> str:
    return unknown_html(reason) if unix is None else time_html(datetime.fromtimestamp(unix, UTC), now, zone)


def signed_seconds(value: float | None) -> str:
    return UNKNOWN if value is None else f"{'−' if value < 0 else ''}{seconds(abs(value))}"


# ------------------------------------------------------------------------------------------------------------ 1) the head


def head(status: CacheStatus, found: Tally, limits: str, now: datetime, zone: tzinfo) -> str:
    """Hit rate, time saved, time added to a miss, entries and where they are, thresholds: `limits` is HTML already."""
    cells = (_hit_rate(found, now, zone), _saved(found), _added(found), _stored(status), limits)
    return f'<div class="rd" style="{_GRID}">{"".join(cells)}</div>'


def cell(name: str, value: str, *lines: str, about: str = "") -> str:
    """One head figure; `value` and `lines` are HTML, `about` is the formula on hover."""
    hover = f' title="{escape(about)}"' if about else ""
    below = "".join(f'<div class="rd-soft rd-small rd-plain">{line}</div>' for line in lines if line)
    mark = f'<abbr class="rd-soft rd-small"{hover}> ?</abbr>' if about else ""
    shown = f'<div class="rd-head"><span class="rd-total">{value}</span></div>'
    return f'<div><div class="rd-soft">{escape(name)}{mark}</div>{shown}{below}</div>'


def _hit_rate(found: Tally, now: datetime, zone: tzinfo) -> str:
    since = f"n {found.lookups:,} since {when(found.since_unix, now, zone, 'nothing was looked up')}" if found.lookups else ""
    recent = len(found.recent_hits)
    of = "" if recent == found.hits else f" of the newest {plural(recent, 'hit')}"
    kinds = f"{found.equal:,} equal, {recent - found.equal:,} alike{of} · {plural(found.lookups - found.hits, 'miss', 'misses')}"
    about = (
        "Stored queries that got a kept answer, over those that asked the cache; of the newest 5,000. Queries that bypassed it, "
        "measurements and other programs' queries do not count."
    )
    value = value_html(percent(found.hit_ratio), "no query has asked the cache in this time")
    return cell("Hit rate", value, since, kinds if found.lookups else "", about=about)


def _saved(found: Tally) -> str:
    about = (
        "Sum over the hits of: seconds that the kept answer took when it was made, minus seconds that the query took which got "
        "it. From stored queries, so it survives a restart and a purge."
    )
    reason = "no hit in this time" if not found.hits else "these hits do not tell what their answer once took"
    of = (
        f"over {plural(found.saved_of, 'hit')}"
        if found.saved_of == found.hits
        else f"over {found.saved_of:,} of {found.hits:,} hits"
    )
    hit = f"a hit takes {spread(found.hit_seconds)}" if found.hit_seconds else ""
    return cell(
        "Time saved", value_html(signed_seconds(found.saved_seconds), reason), of if found.saved_of else "", hit, about=about
    )


def _added(found: Tally) -> str:
    about = "Seconds of the stage cache in queries that missed: both look-ups. The question's embedding serves the search too."
    value = value_html(seconds(found.added.p50 if found.added else None), "no query has missed in this time")
    return cell("Added to a miss, p50", value, spread(found.added) if found.added else "", about=about)


def spread(found: Spread) -> str:
    """`p50 3.11 ms · p95 8.40 ms · n 70`."""
    return f"p50 {seconds(found.p50)} · {percentile('p95', found.p95, found.n)}"


def _stored(status: CacheStatus) -> str:
    answers = status.answers
    value = value_html(count(answers.entries), answers.problem or "the store did not say")
    kind = "Redis" if answers.store == "redis" else "SQLite file"
    state = cards.state_mark("critical", "away", answers.problem) if answers.problem else cards.state_mark("ok", "in use")
    held = value_html(count(status.index_entries), status.problem or "the index did not say")
    ready = (
        cards.state_mark("ok", "ready")
        if status.index_ready
        else cards.state_mark("warn", "is being built", status.problem or "")
    )
    thrown = f" · {answers.evictions:,} thrown out for others since the start" if answers.evictions else ""
    return cell(
        f"Entries, of {status.limits.max_entries:,} at most",
        value,
        f'{kind} <span class="rd-mono">{escape(answers.address)}</span> {state}{thrown}',
        f"index in {escape(status.index)}: {held} {ready} · forgotten after {duration(status.limits.ttl_seconds)}",
    )


def limits(found: Thresholds | None, source: str, semantic: bool) -> str:
    """The thresholds in force and what the calibration measured; `source` is where they come from, as HTML."""
    if not semantic:
        return cell("Least likeness of a hit", unknown_html("cache.semantic is off"), "only equal questions get a kept answer")
    if found is None:
        return cell("Least likeness of a hit", unknown_html("no thresholds for this embedder"), source)
    value = f'{found.dense:.2f} <span class="rd-soft" style="font-size:1rem">and {found.agreement:.2f}</span>'
    about = "Cosine of both questions' vectors, and the share of weighted words they have in common (Dice). Guards come first."
    return cell("Least cosine, agreement", value, source, measured(found.measured), about=about)


def measured(found: Mapping[str, Any]) -> str:
    """What the calibration saw on pairs that no threshold was chosen on. HTML."""
    held = found.get("held_out")
    if not isinstance(held, Mapping):
        return "not calibrated: nothing is known of their precision"
    precision = with_interval(held.get("precision"), held.get("precision_low"), held.get("precision_high"))
    return (
        f"{held['same'] + held['different']:,} unseen pairs: precision {precision} (95 %), recall {percent(held.get('recall'))}, "
        f"{held['false_hits']:,} of {held['different']:,} near misses hit"
    )


def with_interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return unknown_html("nothing was hit")
    return f'<span class="rd-nowrap">{value:.3f} [{low:.3f}, {high:.3f}]</span>'


def reasons(found: Tally) -> str:
    rows = [[escape(reason), count(n), percent(n / found.reasons_of)] for reason, n in found.reasons[:12]]
    return figures.table([f"Why it missed (newest {found.reasons_of:,})", "Misses", "Share"], rows, numeric=(1, 2), wrap=(0,))


def since_start(found: Counted) -> str:
    """What only the process knows: refusals of candidates, answers that were not kept, what new documents did."""
    rows = [
        *([f"candidates refused by the guard: {escape(name)}", count(n)] for name, n in _most(found.refusals)),
        *([f"answers not kept: {escape(shortened(why, 120))}", count(n)] for why, n in _most(found.not_kept)),
        ["answers kept", count(found.kept)],
        ["answers that new documents made void", count(found.invalidated)],
        ["answers that stayed true after new documents", count(found.carried_over)],
        ["wrong answers reported", count(found.false_hits_reported)],
    ]
    return figures.table(["Since RAG Deck started", "Times"], rows, numeric=(1,), wrap=(0,))


def _most(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:8]


# -------------------------------------------------------------------------------------------------------------- 2) entries


def entries_table(entries: Sequence[CachedAnswer], now: datetime, zone: tzinfo) -> str:
    heads = ["Question", "Hits", "Age", "Last used", "Expires", "Sources", "Answer"]
    table = figures.table(heads, (_row(entry, now, zone) for entry in entries), numeric=(1,), wrap=(0, 5, 6))
    return f'<div class="rd-queries">{table}</div>'


def _row(entry: CachedAnswer, now: datetime, zone: tzinfo) -> list[str]:
    question = escape(shortened(entry.question, 160) or "(no text)")
    return [
        f'<a class="rd-plain" dir="auto" href="{entry_url(entry.id)}">{question}</a> {marks(entry)}',
        count(entry.hits),
        f'<span class="rd-nowrap rd-soft">{when(entry.created_at_unix, now, zone, "")}</span>',
        f'<span class="rd-nowrap rd-soft">{when(entry.used_at_unix, now, zone, "the store did not say")}</span>',
        f'<span class="rd-nowrap rd-soft">{when(entry.expires_at_unix, now, zone, "the store did not say")}</span>',
        _sources(entry.sources),
        f'<span class="rd-soft rd-plain" dir="auto">{escape(shortened(entry.answer, 110))}</span>',
    ]


def marks(entry: CachedAnswer) -> str:
    parts = [cards.state_mark("ok", "good")] if entry.good else []
    parts += ['<span class="rd-soft rd-small">edited</span>'] if entry.edited else []
    return " ".join(parts)


def _sources(names: Sequence[str]) -> str:
    """The first few files, with all of them in full on hover. HTML."""
    short = ", ".join(shortened(name.rpartition("/")[2] or name, 40) for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f'<span class="rd-small rd-plain" dir="auto" title="{escape(", ".join(names))}">{escape(short + more)}</span>'


def facts(entry: CachedAnswer, query_known: bool, documents: str, now: datetime, zone: tzinfo) -> str:
    """What made the entry, how it is used, and everything it is kept under. `documents` says whether they are still the same."""
    made = "its query is no longer stored"
    query = f'<a href="{query_url(entry.query_id)}">{escape(entry.query_id[:12])}…</a>' if query_known else unknown_html(made)
    untold = "kept by an older version, which did not note it"
    key = [[escape(words), _mono(entry.key.get(name), untold)] for name, words in _KEY_WORDS.items()]
    rows = [
        ["documents", escape(documents)],
        ["kept", when(entry.created_at_unix, now, zone, "")],
        ["last used", f"{when(entry.used_at_unix, now, zone, 'the store did not say')} · {plural(entry.hits, 'hit')}"],
        ["expires", when(entry.expires_at_unix, now, zone, "the store did not say")],
        ["made by the query", f"{query}, in {seconds(entry.seconds)}"],
        *key,
        ["id", _mono(entry.id, "")],
    ]
    return figures.table(["This answer", ""], rows, wrap=(1,))


_KEY_WORDS = {
    "collection": "collection",
    "content_version": "version of its documents",
    "embedder": "embedder",
    "model": "language model",
    "prompt": "prompts and sampling (digest)",
    "options": "options (digest)",
}


def _mono(text: str | None, reason: str) -> str:
    return (
        f'<span class="rd-mono rd-small" style="overflow-wrap:anywhere">{escape(text)}</span>' if text else unknown_html(reason)
    )


def hit_line(look: Look, now: datetime, zone: tzinfo) -> str:
    """One query that got the answer."""
    asked = escape(shortened(look.question, 140)) or "question not kept"
    saved = f"saved {signed_seconds(look.saved_seconds)}" if look.saved_seconds is not None else ""
    kind = "equal" if look.equal else "alike"
    tail = " · ".join(text for text in (when(look.asked_at_unix, now, zone, ""), kind, saved) if text)
    link = f'<a class="rd-plain" dir="auto" href="{query_url(look.query_id)}" title="{escape(look.reason)}">{asked}</a>'
    return f'<div class="rd">{link} <span class="rd-soft rd-small">{tail}</span></div>'
