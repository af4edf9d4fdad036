"""Generation: prompts that take long to read, first tokens that come late, tokens that come slowly, answers that are long."""

from __future__ import annotations

from collections.abc import Iterator

from latency.findings import advice
from latency.findings.drafts import WHERE, Draft
from latency.findings.ledger import LEAST_SURPRISE_SECONDS, LLM, Ledger
from latency.findings.words import component, count, doing, figure, named, percent, seconds, sentence
from latency.types import Evidence, Usual
from rag.types import Stage

_LESS = ", and less what other findings explain:"
LONG_PROMPT_RATIO = 1.4  # of the usual tokens
LONG_PROMPT_TOKENS = 4000  # where nothing is usual yet
LONG_ANSWER_RATIO = 1.5
SLOW_RATE = 0.75  # of the usual tokens a second
FIGURES_AROUND = 1.5  # how far the cost of a longer prompt may lie above a straight line, where something else slowed the stage


def long_prompt(ledger: Ledger) -> Iterator[Draft]:
    """The time to the first token that the prompt's length beyond the usual accounts for."""
    stage = ledger.stages.get("generate")
    tokens = ledger.units("generate", "prompt_tokens") or ledger.case.answer.tokens.prompt
    if stage is None or not tokens:
        return
    usual = ledger.usual_prefill("generate")
    if usual is None:
        yield from _prompt_without_usual(ledger, stage, float(tokens))
        return
    expected = usual_units(usual)
    if expected is None or tokens < LONG_PROMPT_RATIO * expected:
        return
    late = max(0.0, ledger.left("generate", "prefill") - usual.compute)
    by_length = usual.per_unit * (tokens - expected)
    if late < 2 * usual.spread:
        return
    taken = ledger.take("generate", min(late, FIGURES_AROUND * by_length), "prefill")
    yield _prompt(ledger, stage, tokens, expected, taken, usual)


def rest_of_long_prompt(ledger: Ledger) -> Iterator[Draft]:
    """What else the first token came later, where nothing but the long prompt explains it."""
    stage, usual = ledger.stages.get("generate"), ledger.usual_prefill("generate")
    tokens = ledger.units("generate", "prompt_tokens") or ledger.case.answer.tokens.prompt
    expected = None if usual is None else usual_units(usual)
    if stage is None or usual is None or not tokens or not expected or tokens < LONG_PROMPT_RATIO * expected:
        return
    taken = ledger.take("generate", ledger.left("generate", "prefill") - usual.compute, "prefill")
    if taken > 0:
        yield _prompt(ledger, stage, tokens, expected, taken, usual)


def _prompt(ledger: Ledger, stage: Stage, tokens: float, expected: float, taken: float, usual: Usual) -> Draft:
    piece = ledger.pieces(stage.stage)[0]
    prefill = ledger.units(stage.stage, "server_prefill_seconds")
    told = "" if prefill is None else f" The server itself says that it read for {seconds(prefill)}."
    text = f"The prompt had {count(tokens, 'token')} where {count(expected, 'token')} are usual ({named(stage)}).{told}"
    first = f"The first token came {seconds(piece.fact('ttft_seconds'))} after the request; {seconds(usual.compute)} are usual."
    return Draft(
        "prompt_too_long",
        component(stage.stage),
        stage.stage,
        f"The language model read a long prompt before its first token in {WHERE}",
        taken,
        taken,
        f"First token beyond the usual {seconds(usual.compute)}, for {count(tokens - expected, 'token')} beyond the usual "
        f"{expected:,.0f} (about {seconds(taken / max(1.0, tokens - expected))} each).",
        "derived",
        (
            Evidence(text, tokens, "tokens", piece.span_id or "prompt_tokens", piece.start, piece.end),
            Evidence(first, piece.fact("ttft_seconds"), "s", piece.span_id or "ttft_seconds", piece.start, piece.end),
        ),
        advice.SHORTER_PROMPT,
    )


def _prompt_without_usual(ledger: Ledger, stage: Stage, tokens: float) -> Iterator[Draft]:
    """Reading takes time in proportion to the prompt (compute-bound, so about linear): half of it, half the time."""
    prefill = ledger.units("generate", "server_prefill_seconds")
    reading = ledger.left("generate", "prefill") if prefill is None else prefill
    if tokens < LONG_PROMPT_TOKENS or ledger.usual("generate") is not None:
        return
    taken = ledger.take("generate", reading / 2, "prefill")
    if taken <= 0:
        return
    piece = ledger.pieces("generate")[0]
    who = "The time to the first token was" if prefill is None else "The server says that it read the prompt for"
    text = f"The prompt had {count(tokens, 'token')}. {who} {seconds(reading)}."
    yield Draft(
        "prompt_too_long",
        "llm",
        "generate",
        f"The language model read a long prompt before its first token in {WHERE}",
        reading,
        taken,
        f"Reading grows with the prompt: half of {count(tokens, 'token')} saves half of {seconds(reading)}.",
        "suspected",
        (Evidence(text, tokens, "tokens", piece.span_id or "prompt_tokens", piece.start, piece.end),),
        advice.SHORTER_PROMPT,
    )


def long_answer(ledger: Ledger) -> Iterator[Draft]:
    """Many more tokens than answers usually have, at the usual rate each."""
    for name in LLM:
        stage, usual = ledger.stages.get(name), ledger.usual(name)
        tokens = ledger.units(name, "completion_tokens")
        expected = None if usual is None else usual_units(usual)
        if stage is None or usual is None or tokens is None or expected is None or tokens < LONG_ANSWER_RATIO * expected:
            continue
        each = 1 / usual.per_second if usual.per_second else usual.per_unit
        taken = ledger.take(name, min(each * (tokens - expected), ledger.left(name, "decode", "compute")), "decode", "compute")
        piece = ledger.pieces(name)[0]
        had = f"{sentence(doing(name))} has {count(tokens, 'token')}"
        text = f"{had}; {expected:,.0f} are usual ({named(stage)})."
        yield Draft(
            "answer_long",
            component(name),
            name,
            f"The language model wrote much more than usual in {WHERE}",
            taken,
            taken,
            f"{count(tokens - expected, 'token')} beyond the usual × {seconds(each)} a token = {seconds(taken)}.",
            "derived",
            (Evidence(text, tokens, "tokens", piece.span_id or "completion_tokens", piece.start, piece.end),),
            advice.SHORTER_ANSWER if name == "generate" else advice.SHORTER_HYPOTHESIS,
        )


def slow_decode(ledger: Ledger) -> Iterator[Draft]:
    """Tokens that came far more slowly than this model usually gives them."""
    for name in LLM:
        stage, usual = ledger.stages.get(name), ledger.usual(name)
        tokens = ledger.units(name, "completion_tokens")
        wrote = ledger.units(name, "decode_seconds") or ledger.left(name, "decode")
        if stage is None or usual is None or not usual.per_second or not tokens or wrote <= 0:
            continue
        rate = max(0.0, tokens - 1) / wrote
        late = ledger.excess(name).get("decode", 0.0) if rate <= SLOW_RATE * usual.per_second else 0.0
        if late < LEAST_SURPRISE_SECONDS:
            continue
        taken = ledger.take(name, late, "decode")
        piece = ledger.pieces(name)[0]
        text = f"{sentence(named(stage))} wrote {figure(rate)} tokens/s; {figure(usual.per_second)} tokens/s are usual."
        told = ledger.units(name, "server_decode_seconds")
        evidence = [Evidence(text, rate, "tokens/s", piece.span_id or "decode_seconds", piece.end - wrote, piece.end)]
        if told is not None:
            evidence.append(Evidence(f"Its server says that it decoded for {seconds(told)}.", told, "s", "server_decode_seconds"))
        yield Draft(
            "decode_slow",
            component(name),
            name,
            f"The language model wrote slowly in {WHERE}",
            taken,
            taken,
            f"{seconds(wrote)} less {tokens - 1:,.0f} tokens / {figure(usual.per_second)} tokens/s{_LESS} {seconds(taken)}.",
            "derived",
            tuple(evidence),
            advice.FASTER_DECODE,
        )


def slow_first_token(ledger: Ledger) -> Iterator[Draft]:
    """A first token that came late, and neither queue nor prompt nor a reading says why."""
    for name in LLM:
        stage, usual = ledger.stages.get(name), ledger.usual(name)
        expected = ledger.expected_prefill(name)
        if stage is None or usual is None or expected is None:
            continue
        least = max(LEAST_SURPRISE_SECONDS, expected)
        late = ledger.excess(name).get("prefill", 0.0) if ledger.left(name, "prefill") > least else 0.0
        if late < least:
            continue
        taken = ledger.take(name, late, "prefill")
        piece = ledger.pieces(name)[0]
        first = piece.fact("ttft_seconds") or expected + taken
        came = f"The first token of {doing(name)} came {seconds(first)} after the request"
        text = f"{came}; {seconds(expected)} are usual for this prompt."
        evidence = [Evidence(text, first, "s", piece.span_id or "ttft_seconds", piece.start, piece.start + first)]
        prefill = ledger.units(name, "server_prefill_seconds")
        if prefill is not None:
            text = f"Its server says that it read for {seconds(prefill)} of it ({percent(min(1.0, prefill / first))})."
            evidence.append(Evidence(text, prefill, "s", "server_prefill_seconds"))
        yield Draft(
            "ttft_slow",
            component(name),
            name,
            f"The language model's first token came late in {WHERE}",
            taken,
            taken,
            f"{seconds(first)} to the first token less the usual {seconds(expected)}{_LESS} {seconds(taken)}.",
            "derived",
            tuple(evidence),
            advice.FASTER_FIRST_TOKEN,
        )


def usual_units(usual: Usual) -> float | None:
    """The work load that the median seconds stand for; None where the time does not depend on it."""
    units = (usual.compute - usual.fixed) / usual.per_unit if usual.per_unit > 0 else 0.0
    return units if units > 0 else None
