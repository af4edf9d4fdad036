"""Retrieval: the collection's state, more candidates than reranking needs, HyDE without effect, caches, texts that are cut."""

from __future__ import annotations

import math
from collections.abc import Iterator

from latency.baseline import fact, lowest_kept_rank
from latency.findings import advice
from latency.findings.drafts import WHERE, Draft
from latency.findings.ledger import WORK, Ledger, Piece
from latency.findings.words import component, count, named, percent, seconds, sentence, worker
from latency.types import Confidence, Evidence

LEAST_UNFLUSHED_ROWS = 50
SECONDS_A_ROW = (0.915 - 0.0065) / 5000  # measured in Milvus Lite: 5,000 rows took 915 ms unflushed, 6.5 ms flushed
HYDE_QUERIES = 10  # with and without HyDE, until its effect is known
HYDE_WORTH = 1 / 3  # of the queries with other top passages: from there on it is taken to be worth its time
ROOM = 1.25  # candidates to keep beyond the lowest rank that reranking usually lifts
CACHE_HIT_SECONDS = 0.05  # "Semantic-cache hit about 50 ms" (requirements.md, R1)


def not_loaded(ledger: Ledger) -> Iterator[Draft]:
    """The store was connected, or the collection loaded or flushed, inside the request."""
    for piece in ledger.pieces("search"):
        opened = piece.fact("open_seconds") or piece.left("load")
        taken = piece.take(opened, ("load", "other", "compute"))
        if taken <= 0:
            continue
        why = "The collection was not loaded" if piece.facts.get("loaded") is False else "The store was not open"
        text = f"{why}: connecting, loading and flushing took {seconds(taken)} of this search."
        yield Draft(
            "store_not_loaded",
            "store",
            "search",
            f"The store was opened, or its collection loaded, inside {WHERE}",
            taken,
            taken,
            f"All of the opening: {seconds(taken)}.",
            "measured",
            (Evidence(text, taken, "s", piece.span_id or "open_seconds", piece.start, piece.start + taken),),
            advice.OPEN_AT_START,
        )


def unflushed(ledger: Ledger) -> Iterator[Draft]:
    """Rows that were written and not flushed are compared one by one."""
    pieces = ledger.pieces("search")
    rows = max((piece.fact(name) or 0.0 for piece in pieces for name in ("unflushed_rows", "slow_rows")), default=0.0)
    if rows < LEAST_UNFLUSHED_ROWS:
        return
    usual = ledger.usual("search")
    there = ledger.left("search", *WORK)
    confidence: Confidence
    if usual is not None:
        expected = usual.expected(ledger.work_load("search"))
        wanted, confidence = ledger.excess("search").get("work", 0.0), "derived"
        derivation = f"{seconds(there)} of searching less the usual {seconds(expected)} ({count(usual.n, 'query')})."
    else:
        wanted, confidence = min(there, rows * SECONDS_A_ROW * len(pieces)), "suspected"
        each = f"{count(rows, 'row')} × {seconds(SECONDS_A_ROW)} a row, as measured in Milvus Lite"
        derivation = f"{each}, at most the search's own time."
    taken = ledger.take("search", wanted, *WORK)
    if taken <= 0:
        return
    piece = pieces[0]
    text = f"The collection held {count(rows, 'row')} that were not flushed; without an index they are compared one by one."
    yield Draft(
        "store_unflushed",
        "store",
        "search",
        f"The search went through rows that were never flushed in {WHERE}",
        taken,
        taken,
        derivation,
        confidence,
        (Evidence(text, rows, "rows", piece.span_id or "unflushed_rows", piece.start, piece.end),),
        advice.FLUSH,
    )


def too_many_candidates(ledger: Ledger) -> Iterator[Draft]:
    """Candidates below the ranks that reranking ever lifts into the kept passages: their scoring changed nothing."""
    stage = ledger.stages.get("rerank")
    scored = ledger.units("rerank", "candidates") or float(ledger.case.answer.options.candidates)
    found = _needed(ledger, scored)
    if stage is None or found is None:
        return
    needed, reason, confidence = found
    usual = ledger.usual("rerank")
    now = ledger.left("rerank", *WORK)
    if usual is not None and usual.per_unit > 0:
        target = min(now, usual.expected(needed))
        how = f"{count(needed, 'candidate')} usually take {seconds(target)}"
    else:
        target = now * needed / scored
        how = f"{count(needed, 'candidate')} in proportion {seconds(target)}"
    reranking = ledger.take("rerank", now - target, *WORK)
    searching = _wider_search(ledger, needed)
    piece = ledger.pieces("rerank")[0]
    kept = count(ledger.case.answer.options.keep, "passage")
    text = f"{count(scored, 'candidate')} were reranked in {seconds(now)} ({named(stage)}) to keep {kept}."
    beyond = f" and {seconds(searching)} of the wider search" if searching > 0 else ""
    yield Draft(
        "too_many_candidates",
        "reranker",
        "rerank",
        f"More candidates were reranked than it takes, in {WHERE}",
        reranking + searching,
        reranking + searching,
        f"{seconds(now)} of scoring less {how}{beyond} = {seconds(reranking + searching)}.",
        confidence,
        (
            Evidence(text, scored, "candidates", piece.span_id or "candidates", piece.start, piece.end),
            Evidence(reason, needed, "candidates", "baseline" if confidence == "derived" else "passages"),
        ),
        advice.fewer_candidates(needed),
    )


def _needed(ledger: Ledger, scored: float) -> tuple[float, str, Confidence] | None:
    """(candidates that are enough, the sentence that says why, how sure); None where fewer would not do or nobody knows."""
    answer, moved = ledger.case.answer, ledger.baseline.rerank_moved
    own = lowest_kept_rank(answer)
    if moved is not None:
        needed = float(max(answer.options.keep, math.ceil(moved * ROOM)))
        reason = f"In 95 % of the recent queries every kept passage was among the first {moved:.0f} before reranking."
        return (needed, reason, "derived") if needed * ROOM < scored else None
    if own is None or own * 3 > scored:  # one query says little: only where it is far off
        return None
    needed = float(max(2 * answer.options.keep, 2 * own))
    reason = f"In this query every kept passage was among the first {own} before reranking."
    return (needed, reason, "suspected") if needed * ROOM < scored else None


def _wider_search(ledger: Ledger, needed: float) -> float:
    """What the search took beyond the usual because it had to find more candidates than usual."""
    usual, limit = ledger.usual("search"), max((piece.fact("limit") or 0.0 for piece in ledger.pieces("search")), default=0.0)
    if usual is None or limit < 2 * needed:
        return 0.0
    beyond = ledger.left("search", *WORK, "other") - usual.compute - usual.other
    return ledger.take("search", beyond, *WORK, "other") if beyond > 4 * usual.spread else 0.0


def hyde_cost(ledger: Ledger) -> Iterator[Draft]:
    """The hypothesis, its embedding and the second search, against how often they changed the first five passages."""
    baseline, stage = ledger.baseline, ledger.stages.get("hyde")
    if stage is None or baseline.hyde_both < HYDE_QUERIES:
        return
    changed = baseline.hyde_changed / baseline.hyde_both
    if changed > HYDE_WORTH:
        return
    pieces = [piece for piece in ledger.all() if piece.for_hyde]
    cost = sum(piece.take(piece.left(), [*piece.pools]) for piece in pieces)
    kept = f"{baseline.hyde_both - baseline.hyde_changed} of {baseline.hyde_both} queries"
    yield Draft(
        "hyde_cost",
        "llm",
        "hyde",
        f"HyDE cost its time and seldom changes what is found, in {WHERE}",
        cost,
        cost,
        f"All of it, {seconds(cost)}, is saved without HyDE; in {kept} it left the first five passages as they were.",
        "derived",
        tuple(_hyde_evidence(ledger, pieces)),
        advice.hyde_off(ledger.case.answer.options.hyde),
    )


def _hyde_evidence(ledger: Ledger, pieces: list[Piece]) -> Iterator[Evidence]:
    baseline, effect = ledger.baseline, ledger.case.answer.hyde_effect
    parts = {"hyde": "writing the hypothesis", "embed": "embedding it", "search": "searching again"}
    for piece in pieces:
        spent = piece.end - piece.start
        text = f"{sentence(parts[piece.stage])} took {seconds(spent)}."
        yield Evidence(text, spent, "s", piece.span_id or piece.stage, piece.start, piece.end)
    often = f"{baseline.hyde_changed} of the {baseline.hyde_both} queries"
    text = f"HyDE changed the first five passages in {often} that were searched with and without it."
    yield Evidence(text, baseline.hyde_changed / baseline.hyde_both, "ratio", "baseline")
    if effect is not None:
        here = "changed" if effect.changed_top else "did not change"
        text = f"In this query it {here} the first five passages ({percent(effect.overlap)} of them are the same)."
        yield Evidence(text, effect.overlap, "ratio", "hyde_effect")


def cache_misses(ledger: Ledger) -> Iterator[Draft]:
    """A near-equal question was asked before, by the word of the cache stage, and its answer was not used."""
    answer = ledger.case.answer
    asked = next((value for each in ledger.case.intervals("cache") if (value := fact(each.facts, "near_equal"))), None)
    cache = next((stage for stage in answer.stages if stage.stage == "cache"), None)
    if asked is None or (cache is not None and cache.hit):
        return
    cost = sum(piece.take(piece.left(), [*piece.pools]) for piece in ledger.all())
    saving = max(0.0, cost - CACHE_HIT_SECONDS)
    why = cache.reason or cache.skipped if cache is not None else None
    before = f"A near-equal question had been asked {count(asked, 'time')} before"
    text = f"{before}, and the cache was not used ({why or 'it missed'})."
    yield Draft(
        "cache_misses",
        "cache",
        "cache",
        f"The answer to a near-equal question was there, and not used in {WHERE}",
        cost,
        saving,
        f"{seconds(cost)} of the query's own work less {seconds(CACHE_HIT_SECONDS)} for a cache hit = {seconds(saving)}.",
        "derived",
        (Evidence(text, asked, "times", "cache"),),
        advice.CACHE,
    )


def truncation(ledger: Ledger) -> Iterator[Draft]:
    """Padding that was computed, and text that was tokenised and cut away: only where it costs."""
    for name in ("embed", "rerank"):
        stage = ledger.stages.get(name)
        padded, tokens = ledger.units(name, "padded_tokens") or 0.0, ledger.units(name, "tokens") or 0.0
        truncated = ledger.units(name, "truncated") or 0.0
        if stage is None:
            continue
        piece = ledger.pieces(name)[0]
        padding = ledger.left(name, *WORK) * padded / (padded + tokens) if padded > 0 else 0.0
        cut = ledger.left(name, "tokenize") if truncated > 0 else 0.0
        taken = ledger.take(name, padding, *WORK) + ledger.take(name, cut / 2, "tokenize")
        if taken <= 0:
            continue
        unit, cut_text = ("tokens" if padded else "texts"), count(truncated, "text")
        what = f"computed {count(padded, 'token')} of padding beside {count(tokens, 'token')} of text"
        text = f"The {named(stage)} {what if padded else f'was given {cut_text} longer than it reads'}."
        yield Draft(
            "padding_waste",
            component(name),
            name,
            f"The {worker(name)} spent time on padding and on text that it then cut away in {WHERE}",
            taken,
            taken,
            f"Padding's share of the computing {seconds(padding)}, half of tokenising texts that are cut {seconds(cut / 2)}.",
            "suspected",
            (Evidence(text, padded or truncated, unit, piece.span_id or "tokens", piece.start, piece.end),),
            advice.SHORTER_TEXTS,
        )
