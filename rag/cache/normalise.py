"""One writing for texts that differ only in how they are written: Unicode forms, case, blanks, the end's punctuation.

Knows no words of any language. What NFKC and casefold would make equal and is not, stays apart: 10² and 102, Mb and MB.
"""

from __future__ import annotations

import re
import unicodedata

_QUOTES = str.maketrans(
    {"’": "'", "‘": "'", "ʼ": "'", "`": "'", "´": "'", "׳": "'", "״": '"', "“": '"', "”": '"', "„": '"', "«": '"', "»": '"'}
    | {"‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "−": "-", "־": "-", "º": "", "ª": "", "¿": "", "¡": "", "™": "", "®": ""}
)
_HEBREW_POINTS = re.compile(r"[\u0591-\u05bd\u05bf\u05c1-\u05c2\u05c4-\u05c5\u05c7]")
_BLANKS = re.compile(r"\s+")
_END = " ?!.…;:,؟。"
_BITS = re.compile(r"(?<![A-Za-z])([KMGTkmgt])(i?)b(?=(?:ps|it|/s)?(?![A-Za-z]))")
_CASE_MATTERS = re.compile(r"(?<![A-Za-z])(mW|MW)(?![A-Za-z])|(?<=\d)([mM])(?![A-Za-z])")
_FOLDED_CASE = {"mW": "milliwatt", "MW": "megawatt", "m": "m", "M": " mega"}


def clean(text: str) -> str:
    """Compatibility forms, quotes, dashes and blanks made one; marks without a glyph and Hebrew points taken out. Keeps case."""
    spelled = "".join(_spelled(letter) for letter in text) if not text.isascii() else text
    folded = unicodedata.normalize("NFKC", spelled).translate(_QUOTES)
    if not folded.isascii():
        folded = "".join(letter for letter in folded if unicodedata.category(letter) not in ("Cf", "Cc") or letter.isspace())
        folded = _HEBREW_POINTS.sub("", folded)
    return _BLANKS.sub(" ", folded).strip()


def _spelled(letter: str) -> str:
    """Raised and lowered digits and fractions, which NFKC would glue to the digits before them."""
    form = unicodedata.decomposition(letter)
    if form.startswith("<super>") and letter.isdigit():
        return f"^{unicodedata.digit(letter)}"
    if form.startswith("<sub>") and letter.isdigit():
        return f"_{unicodedata.digit(letter)}"
    if form.startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", letter).replace("\u2044", "/")
    return letter.translate(_QUOTES)


def units_told_apart(text: str) -> str:
    """Where case tells units apart, words instead: Gb (bits) from GB, mW from MW, 5M from 5m."""
    text = _BITS.sub(lambda found: f"{found[1]}{found[2]}bit" if _is_bits(found, text) else found[0], text)
    return _CASE_MATTERS.sub(lambda found: _FOLDED_CASE[found[1] or found[2]], text)


def _is_bits(found: re.Match[str], text: str) -> bool:
    """A small b after a capital prefix, or before "ps", means bits; "16 gb" is how people write gigabytes."""
    after = text[found.end() :]
    return (found[1].isupper() or after.startswith("ps")) and not after.startswith("it")


def exact(text: str) -> str:
    """The form under which two questions are the same text: cleaned, casefolded, without the punctuation at its end."""
    return units_told_apart(clean(text)).casefold().rstrip(_END).lstrip(" ")
