"""Whether an answer given to one question answers another: typed things must agree, and every word that carries meaning.

A guard only ever refuses. Embeddings put "Art. 72" and "Art. 75", "allowed" and "not allowed", "from A to B" and "from B to A"
next to each other; these rules keep them apart. They know two questions and nothing of vectors, caches or documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from rag.cache.lexicon import UNKNOWN
from rag.cache.question import DIRECTED, ORDERED, Kind, Question, Token, analyse

WEIGHTS: dict[Kind, float] = {"weak": 0.25, "modal": 0.25}
_TYPED = frozenset(("number", "quantity", "date"))
_OF_TIME = frozenset(("until", "since", "before", "after"))
_ROLES_THAT_ASSIGN = ("from", "than", "instead", "before", "after", "behind", "against", "over", "under", "without")


class Check(NamedTuple):
    """One guard's verdict; `said` is why it refuses, or what it found to agree."""

    name: str
    passed: bool
    said: str


class Comparison(NamedTuple):
    """Both questions against each other. `agreement` is the share of their weighted tokens that they have in common, 0..1."""

    checks: tuple[Check, ...]
    agreement: float

    @property
    def refused(self) -> Check | None:
        return next((check for check in self.checks if not check.passed), None)


def compare(asked: str, cached: str) -> Comparison:
    """Every guard on two questions. Pure; a fraction of a millisecond."""
    first, second = both_read(asked, cached)
    guards: tuple[Callable[[Question, Question], Check], ...] = (
        _language, _articles, _numbers, _quantities, _dates, _identifiers, _negation, _direction, _names, _asks, _modality,
        _content, _roles, _order,
    )  # fmt: skip
    return Comparison(tuple(guard(first, second) for guard in guards), agreement(first, second))


def both_read(asked: str, cached: str) -> tuple[Question, Question]:
    """Both taken apart as the guards read them: a question without a word of any language is of the other's."""
    first, second = analyse(asked), analyse(cached)
    if first.language == UNKNOWN != second.language:
        first = analyse(asked, second.language)
    elif second.language == UNKNOWN != first.language:
        second = analyse(cached, first.language)
    return first, second


def agreement(first: Question, second: Question) -> float:
    """Dice's coefficient over the tokens' weights; words that say little count little. 1 for two questions without any."""
    ours, theirs = _weights(first), _weights(second)
    total = sum(ours.values()) + sum(theirs.values())
    shared = sum(weight for key, weight in ours.items() if key in theirs)
    return 2 * shared / total if total else 1.0


def _weights(question: Question) -> dict[tuple[str, str], float]:
    return {(_class(token), token.value): WEIGHTS.get(token.kind, 1.0) for token in question.tokens}


def _class(token: Token) -> str:
    return "word" if token.kind == "name" else token.kind


# typed tokens


def _language(first: Question, second: Question) -> Check:
    if first.language == second.language:
        return Check("language", True, first.language)
    return Check("language", False, f"asked in {first.language}, the cached question is in {second.language}")


def _articles(first: Question, second: Question) -> Check:
    return _same("article", "article", first, second)


def _numbers(first: Question, second: Question) -> Check:
    return _same("number", "number", first, second)


def _quantities(first: Question, second: Question) -> Check:
    return _same("unit", "quantity or unit", first, second, "quantity")


def _dates(first: Question, second: Question) -> Check:
    return _same("date", "date or time", first, second)


def _identifiers(first: Question, second: Question) -> Check:
    return _same("identifier", "identifier, product or version", first, second)


def _same(name: str, noun: str, first: Question, second: Question, kind: Kind | None = None) -> Check:
    """Both must hold the same tokens of a kind, equally often."""
    wanted: Kind = kind or name  # type: ignore[assignment]
    ours, theirs = first.of(wanted), second.of(wanted)
    if Counter(token.value for token in ours) == Counter(token.value for token in theirs):
        return Check(name, True, _listed(ours) or f"no {noun}")
    mine, other = _left(ours, theirs), _left(theirs, ours)
    return Check(name, False, f"{noun}: {_listed(mine) or 'none'} is asked, the cached question has {_listed(other) or 'none'}")


def _left(ours: Sequence[Token], theirs: Sequence[Token]) -> list[Token]:
    """Our tokens that the others have not, or not as often."""
    spare = Counter(token.value for token in theirs)
    left = []
    for token in ours:
        if spare[token.value]:
            spare[token.value] -= 1
        else:
            left.append(token)
    return left


def _listed(tokens: Sequence[Token]) -> str:
    return ", ".join(dict.fromkeys(token.said for token in tokens))


def _negation(first: Question, second: Question) -> Check:
    ours, theirs = first.of("negation"), second.of("negation")
    mine, other = _negations(first), _negations(second)
    if mine == other:
        return Check("negation", True, _listed(ours) or "no negation")
    return Check("negation", False, f"negation: {_listed(ours) or 'none'} against {_listed(theirs) or 'none'}")


def _negations(question: Question) -> int:
    return len(question.of("negation"))


def _direction(first: Question, second: Question) -> Check:
    """Opposites: increase and decrease, before and after, at most and at least."""
    ours = {token.value: token for token in first.of("pole")}
    theirs = {token.value: token for token in second.of("pole")}
    for value, token in ours.items():
        opposite = _opposite(value)
        if value not in theirs and opposite in theirs and opposite not in ours:
            return Check("direction", False, f"direction: {token.said!r} against {theirs[opposite].said!r}")
    return Check("direction", True, _listed(list(ours.values())) or "no direction")


def _opposite(value: str) -> str:
    return value[:-1] + ("-" if value.endswith("+") else "+")


def _names(first: Question, second: Question) -> Check:
    mine, other = _unmatched(first, second, names=True), _unmatched(second, first, names=True)
    if not mine and not other:
        return Check("name", True, _listed(first.of("name")) or "no name")
    return Check("name", False, f"name: {_listed(mine) or 'none'} is asked, the cached question has {_listed(other) or 'none'}")


def _unmatched(first: Question, second: Question, *, names: bool) -> list[Token]:
    there = {token.value for token in second.of("name", "word")}
    kinds: tuple[Kind, ...] = ("name",) if names else ("word",)
    return [token for token in first.of(*kinds) if token.value not in there]


# what is asked


def _asks(first: Question, second: Question) -> Check:
    ours, theirs = first.asks, second.asks
    loose = {frozenset((kind,)) for kind in ("what", "how", "keywords")}
    keywords = frozenset(("keywords",))
    if ours == theirs or keywords in (ours, theirs) and ours in loose and theirs in loose:
        return Check("question", True, _kinds(ours))
    return Check("question", False, f"it asks {_kinds(ours)}, the cached question asks {_kinds(theirs)}")


def _kinds(asks: frozenset[str]) -> str:
    names = {"polar": "yes or no", "keywords": "by keywords", "number": "how many"}
    return " and ".join(sorted(names.get(kind, kind) for kind in asks))


def _modality(first: Question, second: Question) -> Check:
    """Must, may and should are different questions, but not in "how must I", "how can I". How much may be is not how much is."""
    ours, theirs = {token.value for token in first.of("modal")}, {token.value for token in second.of("modal")}
    one_alone = first.measures and second.measures and bool(ours) != bool(theirs)
    bounded = any(token.value.startswith("bound:") for token in (*first.tokens, *second.tokens))
    if one_alone and not bounded and "should" not in ours | theirs:
        said = _listed(first.of("modal")) or _listed(second.of("modal"))
        return Check("modality", False, f"modality: {said!r} is in one of the two alone")
    if first.asks == second.asks == {"how"} or not ours or not theirs or ours & theirs:
        return Check("modality", True, _listed(first.of("modal")) or "none")
    return Check("modality", False, f"modality: {_listed(first.of('modal'))!r} against {_listed(second.of('modal'))!r}")


def _content(first: Question, second: Question) -> Check:
    """Every word that carries meaning must stand, as itself or as a known synonym, in the other question too."""
    mine = [*_unmatched(first, second, names=False), *_poles(first, second)]
    other = [*_unmatched(second, first, names=False), *_poles(second, first)]
    if not any(token.kind in ORDERED for token in first.tokens):
        return Check("content", False, "no word in it can be compared")
    if not mine and not other:
        return _light_words(first, second)
    if mine and other:
        return Check("content", False, f"words: {_listed(mine)!r} stands where the cached question has {_listed(other)!r}")
    if mine:
        return Check("content", False, f"words: {_listed(mine)!r} is not in the cached question")
    return Check("content", False, f"words: {_listed(other)!r} of the cached question is not asked")


def _light_words(first: Question, second: Question) -> Check:
    """Words that say little may be missing where a thing is asked for ("which port does it use") or whether something is so, but
    never stand in for others."""
    mine, other = _unmatched_light(first, second), _unmatched_light(second, first)
    for token in (*mine, *other):
        if mine and other:
            return Check("content", False, f"words: {_listed(mine)!r} stands where the cached question has {_listed(other)!r}")
        if not _asks_for_a_thing(first) or not _asks_for_a_thing(second):
            return Check("content", False, f"words: {token.said!r} is in one of the two alone, and may be what is asked")
    return Check("content", True, _listed(first.of("word", "pole")) or "no content words")


def _unmatched_light(first: Question, second: Question) -> list[Token]:
    there = {token.value for token in second.of("weak")}
    return [token for token in first.of("weak") if token.value not in there]


def _asks_for_a_thing(question: Question) -> bool:
    named = any(token.role == "asked" and token.kind in ORDERED for token in question.tokens)
    return named or not question.asks.isdisjoint(("polar", "keywords", "duration", "frequency", "number", "size", "speed", "age"))


def _poles(first: Question, second: Question) -> list[Token]:
    """Our opposites without a counterpart. "How much may X hold?" asks for the most that X may hold, also unsaid."""
    there = {token.value for token in second.tokens}
    said_by_may = {"bound:+"} if any(token.value == "may" for token in second.of("modal")) else set()
    return [token for token in first.of("pole") if token.value not in there | said_by_may]


# who does what to whom


def _roles(first: Question, second: Question) -> Check:
    """What stands after from, than, before … must overlap, where both questions have such a phrase."""
    for role in _ROLES_THAT_ASSIGN:
        ours, theirs = _headed(first, role), _headed(second, role)
        values = {token.value for token in ours} & {token.value for token in theirs}
        if ours and theirs and not values:
            return Check("role", False, f"{role} {_listed(ours)!r} against {role} {_listed(theirs)!r}")
    there = {token.value: token for token in second.tokens}
    for token in first.tokens:
        other = there.get(token.value)
        if other is not None and _plays_another_part(token, other):
            parts = (f"{it.role if it.role in DIRECTED else ''} {it.said!r}".strip() for it in (token, other))
            return Check("role", False, " against ".join(parts))
    moved = _moved_prefixes(first, second)
    if moved is not None:
        return Check("role", False, f"{moved[0]!r} against {moved[1]!r}")
    return Check("role", True, "the same things in the same parts")


def _plays_another_part(token: Token, other: Token) -> bool:
    """From against to, before against after; of a number or a date also "in 5 days" against "after 5 days"."""
    roles = {token.role, other.role}
    return len(roles) == 2 and (roles <= DIRECTED or token.kind in _TYPED and bool(roles & _OF_TIME))


def _headed(question: Question, role: str) -> list[Token]:
    return [token for token in question.tokens if token.role == role and token.kind in ORDERED and token.value != f"time:{role}"]


def _moved_prefixes(first: Question, second: Question) -> tuple[str, str] | None:
    """Hebrew says to and from by a letter before the word."""
    if first.language != "he":
        return None
    for ours in first.of("word", "name"):
        for theirs in second.of("word", "name"):
            if {ours.said[0], theirs.said[0]} == {"ל", "מ"} and ours.said[1:].lstrip("ה") == theirs.said[1:].lstrip("ה"):
                return ours.said, theirs.said
    return None


def _order(first: Question, second: Question) -> Check:
    """The same words in another order may ask the reverse ("Does A call B?"). Phrases may move as wholes, verbs and opposites
    within the sentence; what stands in the same part must keep its order, and a number its noun."""
    ours, theirs = _line(first), _line(second)
    values, others = [token.value for token in ours], [token.value for token in theirs]
    if values == others or sorted(values) != sorted(others):
        return Check("order", True, "the same order" if values == others else "not the same words")
    fixed = {token.value for token in (*ours, *theirs) if not token.movable}
    verbs = {token.value for token in (*ours, *theirs)} - fixed | _participles(first) | _participles(second)
    if _facts(ours, verbs) == _facts(theirs, verbs) or _facts(_plain(ours), verbs) == _facts(_plain(theirs), verbs):
        return Check("order", True, "the same phrases in another order")
    return Check("order", False, "the same words stand in another order")


def _facts(line: Sequence[Token], verbs: set[str]) -> list[Facts]:
    return [_things(line, verbs), _deeds(line, verbs), _values(line), _counted(line)]


def _plain(line: Sequence[Token]) -> list[Token]:
    """Without the parts that say little: what follows in, on, which, in the order of the sentence."""
    return [token._replace(role=None) if token.role in ("on", "asked", "topic") else token for token in line]


Facts = list[tuple[str, ...]]


def _things(line: Sequence[Token], movable: set[str]) -> Facts:
    """Things in the order they are named, part by part."""
    kinds = ("word", "name", "identifier", "article")
    return _by_part([token for token in line if token.kind in kinds and token.value not in movable])


def _by_part(tokens: Sequence[Token]) -> Facts:
    parts: dict[str, list[str]] = {}
    for token in tokens:
        parts.setdefault(token.role or "", []).append(token.value)
    return sorted((role, *values) for role, values in parts.items())


def _deeds(line: Sequence[Token], movable: set[str]) -> Facts:
    """Verbs, opposites of which both poles are named, and negations with what they precede: in their order."""
    poles = {token.value for token in line if token.kind == "pole"}
    both = {value for value in poles if _opposite(value) in poles}
    verbs = [token for token in line if token.kind == "word" and token.value in movable or token.value in both]
    nexts = [*(token.value for token in line[1:]), ""]
    denied = sorted((value,) for token, value in zip(line, nexts, strict=True) if token.kind == "negation")
    return [*_by_part(verbs), *denied]


def _values(line: Sequence[Token]) -> Facts:
    """Numbers, quantities and dates, each kind in its order."""
    return [tuple(token.value for token in line if token.kind == kind) for kind in ("number", "quantity", "date")]


def _counted(line: Sequence[Token]) -> Facts:
    """Each number with the thing that follows it."""
    pairs = pairwise(line)
    return sorted(
        (one.value, two.value)
        for one, two in pairs
        if one.kind == "number" and two.kind in ("word", "name") and _part(one) == _part(two)
    )


def _participles(question: Question) -> set[str]:
    """English words in -ed at the end of their phrase: verbs, whatever the lexicon knows of them."""
    nexts = (*question.tokens[1:], None)
    ends = (one for one, two in zip(question.tokens, nexts, strict=True) if two is None or _part(one) != _part(two))
    return {token.value for token in ends if token.kind == "word" and question.language == "en" and token.said.endswith("ed")}


def _line(question: Question) -> list[Token]:
    """The ordered tokens, with "Y of X" written as "X Y", "… by X" as "X …"; of two partners the first by its letters."""
    line: list[Token] = []
    for segment in _segments([token for token in question.tokens if token.kind in ORDERED]):
        if segment[0].role == "of":
            head = line[-1] if line else Token("word", "", "")
            start = next((index for index, token in enumerate(line) if _part(token) == _part(head)), 0)
            line[start:start] = [token._replace(role=head.role, phrase=head.phrase) for token in segment]
        else:
            line += segment
    doers = [token._replace(role=None) for token in line if token.role == "by"]
    line = doers + [token for token in line if token.role != "by"]
    if question.symmetric:
        partners = [token._replace(role=None) for token in line if token.role == "with"]
        others = [token for token in line if token.role != "with"]
        line = [token for side in sorted((others, partners), key=lambda side: [token.value for token in side]) for token in side]
    return line


def _part(token: Token) -> tuple[str | None, int]:
    return token.role, token.phrase


def _segments(tokens: Sequence[Token]) -> list[list[Token]]:
    segments: list[list[Token]] = []
    for token in tokens:
        if segments and _part(segments[-1][-1]) == _part(token):
            segments[-1].append(token)
        else:
            segments.append([token])
    return segments
