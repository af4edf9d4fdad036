"""What a vision model answers to a page's Markdown alone: no fences, no chatter, no loops. Pure; knows no endpoint."""

from __future__ import annotations

import re

from rag.errors import RagError

CHATTER_CHARS = 300
LOOP_REPEATS = 8
LOOP_CHARS = 600  # tables do have equal rows; a page of nothing else has not
LONGEST_PERIOD = 800

_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_FENCED = re.compile(
    r"\A(?P<before>[^`]*?)^(?P<mark>`{3,}|~{3,})[ \t]*(?P<kind>[\w-]*)[ \t]*\n(?P<body>.*)\Z", re.DOTALL | re.MULTILINE
)
_PREAMBLE = re.compile(
    r"\A(sure|certainly|of course|here(?:'s| is| are)|below is|the (?:text|content|markdown|transcription)|voici|aqui est[áa]|"
    r"hier ist|aquí está|claro|הנה|להלן)\b[^\n]{0,200}:[ \t]*\n+",
    re.IGNORECASE,
)
_EPILOGUE = re.compile(
    r"\n\n(let me know|i hope this|please let me know|if you (?:need|have|would)|feel free)\b[^\n]{0,280}\Z", re.IGNORECASE
)
_REFUSAL = re.compile(r"\A(i['’]?m sorry|i am sorry|sorry,|i can(?:no|['’])t|i['’]?m unable|i am unable)\b", re.IGNORECASE)
_EMPTY = re.compile(
    r"\A[\s\W]*(empty page|blank page|no text|(?:this|the) (?:page|image|picture) (?:is|appears to be) "
    r"(?:completely )?(?:blank|empty)|"
    r"there is no (?:visible |readable )?text (?:in|on) (?:this|the) (?:image|page|picture))[\s\W]*\Z",
    re.IGNORECASE,
)
_PICTURES = re.compile(r"!\[[^\]\n]*\]\([^()\n]*\)|<img\b[^>]*>", re.IGNORECASE)


def page_markdown(answer: str) -> str:
    """The page's own text, "" where the model says that there is none. Raises RagError where it declined to read."""
    text = _THOUGHTS.sub("", answer).replace("\r\n", "\n").strip()
    text = _unfenced(text)
    text = _EPILOGUE.sub("", _PREAMBLE.sub("", text, count=1))
    text = _PICTURES.sub("", text).strip()
    if _EMPTY.match(text):
        return ""
    if len(text) <= CHATTER_CHARS and _REFUSAL.match(text):
        raise RagError(f"the model declined: {text}", kind="bad_answer", next_step="Try another ocr.model.")
    return text


def _unfenced(text: str) -> str:
    """What is inside the fence that holds the whole answer; an open one (cut at the limit) holds the rest."""
    found = _FENCED.match(text)
    if (
        found is None
        or len(found["before"]) > CHATTER_CHARS
        or found["kind"].lower() not in ("", "markdown", "md", "text", "html")
    ):
        return text
    before = found["before"].strip()
    if before and ("\n" in before or not before.endswith(":")):
        return text  # a code block within the page
    body, closing, after = _last_fence(found["body"], found["mark"])
    chatter = not after or _EPILOGUE.match(f"\n\n{after}") or found["kind"] and not before and len(after) <= CHATTER_CHARS
    return body if not closing or chatter else text


def _last_fence(body: str, mark: str) -> tuple[str, bool, str]:
    closing = list(re.finditer(rf"^{re.escape(mark)}[ \t]*$", body, re.MULTILINE))
    if not closing:
        return body, False, ""
    return body[: closing[-1].start()].rstrip("\n"), True, body[closing[-1].end() :].strip()


def loop_start(text: str) -> int | None:
    """Where the end of `text` begins to say the same again and again (the first copy comes before); None where it does not."""
    for period in range(1, min(LONGEST_PERIOD, len(text) // 2) + 1):
        length = max(LOOP_CHARS, LOOP_REPEATS * period)
        if len(text) < length:
            break
        if text[-length:-period] == text[-length + period :]:
            return _first_copy_end(text, period)
    return None


def _first_copy_end(text: str, period: int) -> int:
    start = len(text) - period
    while start > 0 and text[start - 1] == text[start - 1 + period]:
        start -= 1
    return start + period
