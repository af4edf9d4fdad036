"""Language names as Whisper servers write them, to ISO 639-1. OpenAI and whisper.cpp say `hebrew`, others `he`."""

from __future__ import annotations

_TABLE = (
    "af afrikaans am amharic ar arabic as assamese az azerbaijani ba bashkir be belarusian bg bulgarian bn bengali bo tibetan "
    "br breton bs bosnian ca catalan cs czech cy welsh da danish de german el greek en english es spanish et estonian eu basque "
    "fa persian fi finnish fo faroese fr french gl galician gu gujarati ha hausa he hebrew hi hindi hr croatian hu hungarian "
    "hy armenian id indonesian is icelandic it italian ja japanese ka georgian kk kazakh km khmer kn kannada ko korean la latin "
    "lb luxembourgish ln lingala lo lao lt lithuanian lv latvian mg malagasy mi maori mk macedonian ml malayalam mn mongolian "
    "mr marathi ms malay mt maltese my myanmar ne nepali nl dutch nn nynorsk no norwegian oc occitan pa punjabi pl polish "
    "ps pashto pt portuguese ro romanian ru russian sa sanskrit sd sindhi si sinhala sk slovak sl slovenian sn shona so somali "
    "sq albanian sr serbian su sundanese sv swedish sw swahili ta tamil te telugu tg tajik th thai tk turkmen tl tagalog "
    "tr turkish tt tatar uk ukrainian ur urdu uz uzbek vi vietnamese yi yiddish yo yoruba zh chinese"
)
_NAMES = _TABLE.split()
_CODES = dict(zip(_NAMES[1::2], _NAMES[::2], strict=True)) | {
    "iw": "he",
    "in": "id",
    "jw": "jv",
    "javanese": "jv",
    "burmese": "my",
    "castilian": "es",
    "cantonese": "zh",
    "yue": "zh",
    "mandarin": "zh",
}


def code(name: object) -> str | None:
    """The two letters of `name`, which is a code (`he`, `pt-BR`) or an English name; None where it says nothing."""
    if not isinstance(name, str):
        return None
    word = name.strip().lower()
    short = word.replace("_", "-").split("-")[0]
    if word in _CODES or short in _CODES:
        return _CODES.get(word) or _CODES[short]
    return short if len(short) == 2 and short.isalpha() else None
