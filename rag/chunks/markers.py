"""Lines that begin a numbered article, section or clause, or a chapter that holds some: "Art. 5.º", "§ 433", "סעיף 12".

English, Portuguese, French, German, Spanish, Italian and Hebrew. Knows nothing of passages or tokens. A line that only refers
to an article ("Article 12 of the Treaty applies", or a line that a column broke before "Article 12") is none: what stands
before and after it decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby

from rag.outlines import fence_after

TITLE_CHARS = 100
TITLE_WORDS = 12
CONTENTS_LINES = 3  # so many articles of one line each, one below the other, are a table of contents

_FAMILIES = {
    "article": "Article|Art.|Artigo|Artikel|Artículo|Articolo|Arts.",
    "section": "Section|Sec.|Secção|Seção|Sección|Sezione|Abschnitt",
    "paragraph": "§",
    "clause": "Clause|Cláusula|Klausel|Clausola",
    "rule": "Rule|Regulation|Règle|Regra|תקנה",
    "seif": "סעיף",
}
_CONTAINERS = {
    "part": "Part|Partie|Parte|Teil|חלק",
    "book": "Book|Livre|Livro|Buch|Libro",
    "title": "Title|Titre|Título|Titel|Titolo",
    "chapter": "Chapter|Chapitre|Capítulo|Kapitel|Capitolo|פרק",
    "annex": "Annex|Annexe|Anexo|Anhang|Anlage|Appendix|Schedule|Allegato|נספח|תוספת",
}
_FAMILY_OF = {
    word.casefold(): name for each in (_FAMILIES, _CONTAINERS) for name, words in each.items() for word in words.split("|")
}
_WORDS = "|".join(re.escape(word) for word in sorted(_FAMILY_OF, key=len, reverse=True))
_ORDINAL = (
    "premier|première|unique|primeir[oa]|segund[oa]|terceir[oa]|quart[oa]|quint[oa]|sext[oa]|sétim[oa]|oitav[oa]|non[oa]"
    "|décim[oa](?: (?:primeir|segund|terceir|quart|quint|sext|sétim|oitav|non)[oa])?|únic[oa]|primer[oa]?|primo"
)
_NUMBER = (
    r"(?P<code>[LRDA]\*?\.?[ ]?(?=\d))?\d{1,4}(?:[.\-–]\d{1,4})*(?:\.?[ºª°]|\.?o\b|er\b|ère\b)?"
    r"(?:-?[A-Za-zא-ת](?!\w))?(?:[ ](?:bis|ter|quater|quinquies)\b)?"
    r"|[IVXLCDM]{1,7}(?!\w)|[A-Z](?![\w'’])|[א-ת]{1,3}(?:['׳]|[\"״][א-ת])?(?!\w)"
    rf"|(?:{_ORDINAL})\b"
)
_NAME = rf"(?P<name>(?P<word>{_WORDS})(?:[ \t\xa0]+|(?<=[.§]))(?P<number>{_NUMBER}))"
_LINE = re.compile(rf"^[ \t]*(?:\#{{1,6}}[ \t]+)?[*_]{{0,3}}{_NAME}(?P<rest>[^\n]*)$", re.MULTILINE | re.IGNORECASE)
_GROUPS = re.compile(r"(?:[ \t]+\([^()\n]{1,40}\))+")
_ACRONYM = re.compile(r"[A-ZÄÖÜ]{2,}\w*\s+[^\W\d_A-Z]")
_GERMAN_REFERENCE = re.compile(r"(?:Abs|Absatz|Satz|Nr|Nummer|Buchst)\b")
_HEBREW_REFERENCE = re.compile(r"(?:ל|של|לעיל|זה|זו|ו|קטן)[א-ת]*\s")
_LEADS_ON = re.compile(
    r"(?:[,\-–(/]|(?:^|\s)(?:in|of|to|by|under|with|and|or|see|the|from|per|than|this|that|de|da|do|das|dos|du|des|del|della|à|ao|em|no|na|nos"
    r"|nas|e|ou|o|a|os|as|et|le|la|les|l'|par|selon|der|die|das|dem|den|im|nach|gemäß|und|oder|von|vom|mit|zu|y|según|לפי|של|את|או"
    r"|מכוח))$",
    re.IGNORECASE,
)
_LATIN = ("bis", "ter", "quater", "quinquies")
_AROUND_TITLE = " \t.:–—-*_\xa0"


@dataclass(frozen=True, slots=True)
class Marker:
    """Where an article begins in its text. `name` is as written, with its title where there is one ("Article 5 — Scope").

    `family` tells articles from sections, `number` orders them within a `series` of it (the L of "L. 121-1").
    `head_chars`: how long name and title are where nothing else is on their lines, else 0. `holds`: it is a chapter or the
    like. `contents`: the first of a table of contents, which is no article and ends one.
    """

    start: int
    family: str
    number: tuple[int, ...]
    name: str
    head_chars: int = 0
    series: str = ""
    holds: bool = False
    contents: bool = False


def markers(text: str) -> list[Marker]:
    """The markers in `text`, in order. Lines within code fences are none."""
    fenced = _fences(text) if "```" in text or "~~~" in text else []
    found: list[Marker] = []
    for match in _LINE.finditer(text):
        inside = any(start <= match.start() < end for start, end in fenced)
        marker = None if inside or _leads_on(text, match.start()) else _marker(match, text)
        if marker is not None:
            found.append(marker)
    return _without_contents(found, text)


def heading_marker(heading: str) -> Marker | None:
    """The marker that a heading is, if it is one."""
    match = _LINE.match(heading)
    return _marker(match, heading) if match else None


def _fences(text: str) -> list[tuple[int, int]]:
    spans, fence, at, began = [], "", 0, 0
    for line in text.split("\n"):
        after = fence_after(fence, line)
        if after and not fence:
            began = at
        elif fence and not after:
            spans.append((began, at))
        fence, at = after, at + len(line) + 1
    return [*spans, (began, at)] if fence else spans


def _leads_on(text: str, start: int) -> bool:
    """Whether the line before is not at its end: what follows is the rest of its sentence."""
    before = text[max(0, start - 200) : start]
    if before.endswith("\n\n") or not before.strip():
        return False
    return _LEADS_ON.search(before.rstrip().rpartition("\n")[2]) is not None


def _marker(match: re.Match[str], text: str) -> Marker | None:
    word, number = match["word"], match["number"]
    family = _FAMILY_OF[word.casefold()]
    holds = family in _CONTAINERS
    if word[0].islower() or number in ("L", "R", "D", "A") and not holds:
        return None
    rest = match["rest"].rstrip("*_ \t")
    if not (_follows_hebrew(number, rest) if "א" <= word[0] <= "ת" else _follows(number, rest, holds)):
        return None
    title, end = _title(rest, text, match.end())
    name = " ".join(match["name"].split())
    bare = title is not None or not rest.strip(_AROUND_TITLE)
    return Marker(
        start=match.start(),
        family=family,
        number=_ordinals(number),
        name=f"{name} — {title}" if title else name,
        head_chars=end - match.start() if bare else 0,
        series=(match["code"] or "")[:1],
        holds=holds,
    )


def _follows(number: str, rest: str, holds: bool) -> bool:
    """Whether what stands behind the number lets the line be the beginning of an article."""
    if number.isalpha() and not number.isupper() and len(number) > 3:
        return not rest or not rest[0].isalnum()  # an ordinal in words
    if number.isalpha() and not number.isupper() or len(number) == 1 and number.isalpha() and not holds and number not in "IVX":
        return False
    groups = _GROUPS.match(rest)
    tail = rest[groups.end() if groups else 0 :]
    if not tail.strip():
        return True
    if tail[0] in ".:–—-":
        return not tail[1:2].isdigit()
    if tail[0] not in " \t*_\xa0":
        return False
    tail = tail.strip(" \t*_\xa0")
    if not tail or tail[0] in ':–—-"“«„[':
        return True
    return (tail[0].isupper() or not tail[0].isalpha() and tail[0] not in ",;)/") and not (
        _ACRONYM.match(tail) or _GERMAN_REFERENCE.match(tail)
    )


def _follows_hebrew(number: str, rest: str) -> bool:
    tail = rest.strip()
    if not tail or tail[0] in ":.–—-":
        return True
    if not number[0].isdigit() and not set(number) & set("'׳\"״"):  # "chapter this deals with": a word, no number
        return False
    if rest[0] not in " \t" or tail[0] in ",;(":
        return False
    return len(tail) <= TITLE_CHARS and tail[-1] not in ".;," and not _HEBREW_REFERENCE.match(tail)


def _title(rest: str, text: str, end: int) -> tuple[str | None, int]:
    """The article's title and where it ends: the rest of its line, or the next line, where that is short, no sentence and
    not gone on with."""
    own = rest.strip(_AROUND_TITLE)
    if own:
        alone = _titular(own) and not rest.endswith((".", ";", ",")) and not text[end + 1 : end + 2].islower()
        return (own if alone else None), end
    line, newline, after = text[end + 1 : end + 2 + 2 * TITLE_CHARS].partition("\n")
    title = line.strip(" \t*_")
    letters = title.lstrip("(")
    cased = letters[:1].isalpha() and not letters[:1].islower()
    if newline and cased and after.strip() and _titular(title) and not after[:1].islower() and not _LINE.match(title):
        return title, end + 1 + len(line)
    return None, end


def _titular(text: str) -> bool:
    words = len(text.split())
    return 0 < len(text) <= TITLE_CHARS and words <= TITLE_WORDS and text[-1] not in ".;:,!?" and not re.match(r"\(\d", text)


def _ordinals(number: str) -> tuple[int, ...]:
    """The numbers in "12", "3.1", "12-A", "5 bis" or "IV", to compare them; () where there are none."""
    digits = tuple(int(each) for each in re.findall(r"\d+", number))
    if digits:
        latin = re.search(r"(bis|ter|quater|quinquies)$", number)
        letter = re.search(r"(?<=[\dºª°-])([a-zא-ת])$", number.lower())
        return digits + ((_LATIN.index(latin[1]) + 1,) if latin else (ord(letter[1]),) if letter and letter[1] != "o" else ())
    if not re.fullmatch("[IVXLCDM]+", number):
        return ()
    values = [{"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}[sign] for sign in number]
    return (sum(-one if one < other else one for one, other in zip(values, [*values[1:], 0], strict=True)),)


def _without_contents(found: list[Marker], text: str) -> list[Marker]:
    """The markers with each table of contents made one: lines below each other that are all articles and hold no sentence."""
    ends = [*(marker.start for marker in found[1:]), len(text)]

    def listed(item: tuple[int, Marker]) -> bool:
        line = text[item[1].start : ends[item[0]]].strip()
        return "\n" not in line and not line.endswith((".", ";", "!", "?"))

    kept: list[Marker] = []
    for is_listed, group in groupby(enumerate(found), listed):
        run = [marker for _, marker in group]
        families = [marker.family for marker in run]
        if is_listed and any(families.count(family) >= CONTENTS_LINES for family in set(families)):
            # a chapter right behind the table opens the text; an article there is the table's last line
            opens_text = run[-1].holds and len(run) > CONTENTS_LINES
            kept.append(Marker(run[0].start, run[0].family, (), "", contents=True))
            kept += run[-1:] if opens_text else []
        else:
            kept += run
    return kept
