"""The language of sections, by py3langid."""

from __future__ import annotations

from collections.abc import Sequence

from rag.loaders.document import Section

LANGUAGE_LETTERS = 20


def detect_language(sections: Sequence[Section]) -> str | None:
    """ISO 639-1 code of the first 4,000 characters, None with fewer than 20 letters."""
    sample = ""
    for section in sections:
        sample = f"{sample} {section.text[:4000]}"
        if len(sample) > 4000:
            break
    if sum(map(str.isalpha, sample)) < LANGUAGE_LETTERS:
        return None
    import py3langid

    code = str(py3langid.classify(sample)[0])
    return code if len(code) == 2 else None  # `zxx`: no language, such as a list of numbers
