"""What functional probes send: texts, a spoken sentence, a page. `scripts/probe_samples.py` makes the files of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

FOLDER = Path(__file__).parent / "probe_data"

SENTENCES = ("חימום מוקדם של המודלים מקצר את זמן התגובה.", "החתול ישן על הספה ליד החלון.")
QUERY = "כמה זמן לוקחת טעינת המודל?"
PASSAGES = ("הגשם ירד כל הלילה בהרים.", "טעינת המודל לוקחת שתים עשרה שניות.")  # the second one answers
RIGHT_PASSAGE = 1
CHAT_PROMPT = "ענה במילה אחת: מהי בירת צרפת?"
PAGE_PROMPT = "Transcribe all text on this page exactly, in its own languages. Give the text only."

SPEECH = {"he": "שלום, זוהי בדיקת תמלול", "en": "Hello, this is a transcription test"}
# espeak-ng leaves out vowels that Hebrew does not write, so it is told the sounds
SPEECH_SOUNDS = {"he": "[[Sal'om, z'oi bdik'at timl'ul]]", "en": SPEECH["en"]}
PAGE_LINES = ("Invoice 4071", "Delivery: 12 pumps", "חשבון מספר 4071", "סך הכל לתשלום")
PAGE_WORDS = tuple(word.strip(":") for line in PAGE_LINES for word in line.split())


def speech(language: Literal["he", "en"]) -> bytes:
    """A WAV of `SPEECH[language]`: 16 kHz, 16 bit, mono, about two seconds."""
    return (FOLDER / f"speech_{language}.wav").read_bytes()


def page() -> bytes:
    """A PNG of `PAGE_LINES`, as scanned."""
    return (FOLDER / "page.png").read_bytes()


def found_words(text: str, expected: Sequence[str]) -> list[str]:
    """Those of `expected` that stand in `text`, whatever the case, the points of Hebrew vowels and the punctuation."""
    words = set(_words(text))
    return [word for word in expected if set(_words(word)) <= words]


def _words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", text.casefold())
    kept = "".join(char if char.isalnum() else " " for char in plain if not unicodedata.combining(char))
    return kept.split()
