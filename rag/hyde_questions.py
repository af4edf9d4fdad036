"""What kind of question this is, by signals that cost microseconds: language, length, the question word.

Knows nothing of searches or of HyDE. The classes are coarse on purpose: each must gather cases to be learnt from.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Literal, NamedTuple

Length = Literal["short", "medium", "long"]
Kind = Literal["how", "why", "what", "who, when, where", "yes or no", "keywords", "statement"]

QUESTION_WORDS: tuple[Kind, ...] = ("how", "why", "what", "who, when, where")
SHORT_WORDS = 6
MEDIUM_WORDS = 14
KEYWORDS = 5
OPENING_WORDS = 3  # a question word is looked for among so many: "and how", "in which"

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_SCRIPTS = {"HEBREW": "Hebrew", "CYRILLIC": "Cyrillic", "ARABIC": "Arabic", "GREEK": "Greek", "HANGUL": "Korean"}
_SCRIPTS |= {"HIRAGANA": "Japanese", "KATAKANA": "Japanese", "CJK": "Chinese or Japanese", "THAI": "Thai", "DEVANAGARI": "Hindi"}
OTHER = "another language"

_COMMON = {
    "English": "the a an of to in is are does do did for and or with on from this that it my we you by at be was when if not"
    " how why what which who where can should",
    "Portuguese": "o a os as um uma de do da dos das em no na é são para e ou com por que não se ao à como qual quais porque"
    " quando onde quem pode",
    "French": "le la les un une de du des en dans est sont pour et ou avec par que ne pas se au aux comment pourquoi quel quelle"
    " quels quelles quand où qui ce",
    "German": "der die das ein eine einen von zu im ist sind für und oder mit auf den dem nicht wie warum was welche welcher wann"
    " wo wer kann man",
    "Spanish": "el la los las un una de del en es son para y o con por que no se al cómo cuál cuáles cuándo dónde quién qué",
    "Italian": "il lo la gli le un una di del della in è sono per e o con che non si al come quale quali quando dove chi perché",
}
_COMMON_WORDS = {language: frozenset(words.split()) for language, words in _COMMON.items()}

_ASKING: dict[str, tuple[tuple[Kind, str], ...]] = {
    "English": (("how", "how"), ("why", "why"), ("what", "what which what's"), ("who, when, where", "who whom whose when where")),
    "Portuguese": (
        ("how", "como"),
        ("why", "porque porquê"),
        ("what", "que quê qual quais"),
        ("who, when, where", "quem quando onde"),
    ),
    "French": (
        ("how", "comment"),
        ("why", "pourquoi"),
        ("what", "que quoi quel quelle quels quelles qu'est-ce qu"),
        ("who, when, where", "qui quand où"),
    ),
    "German": (
        ("how", "wie"),
        ("why", "warum wieso weshalb"),
        ("what", "was welche welcher welches welchen"),
        ("who, when, where", "wer wann wo wem wen"),
    ),
    "Spanish": (("how", "cómo"), ("why", "porqué"), ("what", "qué cuál cuáles"), ("who, when, where", "quién cuándo dónde")),
    "Italian": (("how", "come"), ("why", "perché"), ("what", "che cosa quale quali"), ("who, when, where", "chi quando dove")),
    "Hebrew": (
        ("how", "איך כיצד"),
        ("why", "למה מדוע"),
        ("what", "מה מהו מהי איזה איזו אילו"),
        ("who, when, where", "מי מתי איפה היכן"),
    ),
}
_YES_NO = {
    "English": "is are was were does do did can could should has have had will would may must",
    "Portuguese": "é são pode podem posso podemos devo deve há tem existe",
    "French": "est est-ce sont peut peut-on peut-il faut-il dois-je doit-on y a-t-il existe-t-il",
    "German": "ist sind kann können darf muss müssen hat haben gibt soll wird",
    "Spanish": "es son puede puedo podemos hay debe debo existe",
    "Italian": "è sono può posso possiamo ci deve devo esiste",
    "Hebrew": "האם אפשר ניתן",
}
_KINDS = {language: {word: kind for kind, words in pairs for word in words.split()} for language, pairs in _ASKING.items()}
_YES_NO_WORDS = {language: frozenset(words.split()) for language, words in _YES_NO.items()}


class QuestionClass(NamedTuple):
    """`language` is a name to show; of a script that several languages share and no common word tells, OTHER."""

    language: str
    length: Length
    kind: Kind


def classify(question: str) -> QuestionClass:
    """The class of a question; any text has one."""
    words = [word.replace("’", "'") for word in _WORD.findall(question.casefold())]
    language = _language(words)
    size = len(question.split())
    length: Length = "short" if size <= SHORT_WORDS else "medium" if size <= MEDIUM_WORDS else "long"
    return QuestionClass(language, length, _kind(words, language, asked="?" in question or "؟" in question))


def _language(words: list[str]) -> str:
    script = _script("".join(words))
    if script != "LATIN":
        return _SCRIPTS.get(script, OTHER)
    hits = {language: sum(word in common for word in words) for language, common in _COMMON_WORDS.items()}
    best = max(hits.values())
    first = [language for language, count in hits.items() if count == best]
    return first[0] if best and len(first) == 1 else _by_opening(words, first) if best else OTHER


def _by_opening(words: list[str], among: list[str]) -> str:
    """Of languages with as many common words, the one whose question word opens it; else the first, the more frequent one."""
    openings = set(words[:OPENING_WORDS])
    return next((language for language in among if openings & _KINDS[language].keys()), among[0])


def _script(letters: str) -> str:
    counts: Counter[str] = Counter()
    for letter, count in Counter(letters).items():
        counts[unicodedata.name(letter, "?").split(" ", 1)[0]] += count
    return counts.most_common(1)[0][0] if counts else "?"


def _kind(words: list[str], language: str, *, asked: bool) -> Kind:
    kinds = _KINDS.get(language, _KINDS["English"])
    if words[:2] in (["por", "que"], ["por", "qué"], ["por", "quê"]):
        return "why"
    if words and words[0] in _YES_NO_WORDS.get(language, ()):
        return "yes or no"
    for word in words[:OPENING_WORDS]:
        if word in kinds:
            return kinds[word]
    common = _COMMON_WORDS.get(language, frozenset())
    if not asked and len(words) <= KEYWORDS and not common.intersection(words):
        return "keywords"
    return "statement"
