"""Make the files that functional probes send: collectors/probe_data/*.wav by espeak-ng, page.png by Pillow.

Needs espeak-ng (Debian package) and a font with Hebrew letters: `python -m scripts.probe_samples [FONT.ttf]`.
"""

from __future__ import annotations

import io
import subprocess
import sys
import wave

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from collectors.probe_samples import FOLDER, PAGE_LINES, SPEECH_SOUNDS

RATE = 16_000
VOICES = {"he": "he", "en": "en-us"}
FONT = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"
GREYS = 16  # steps of grey that are kept, for a small file
PAGE_SIZE = (620, 300)
HEBREW = range(0x590, 0x600)


def speak(language: str) -> None:
    command = ["espeak-ng", "-v", VOICES[language], "-s", "150", "--stdout", SPEECH_SOUNDS[language]]
    spoken = subprocess.run(command, check=True, capture_output=True, timeout=30).stdout
    with wave.open(io.BytesIO(spoken)) as source:
        rate = source.getframerate()
        samples = np.frombuffer(source.readframes(source.getnframes()), "<i2").astype(np.float64)
    with wave.open(str(FOLDER / f"speech_{language}.wav"), "wb") as target:
        target.setnchannels(1)
        target.setsampwidth(2)
        target.setframerate(RATE)
        target.writeframes(resampled(trimmed(samples), rate).astype("<i2").tobytes())


def trimmed(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without the silence at its ends."""
    loud = np.flatnonzero(np.abs(samples) > 100)
    return samples[loud[0] : loud[-1] + 1]


def resampled(samples: NDArray[np.float64], rate: int) -> NDArray[np.float64]:
    """At RATE, by cutting the spectrum off."""
    count = round(len(samples) * RATE / rate)
    spectrum = np.fft.rfft(samples)[: count // 2 + 1]
    return np.clip(np.fft.irfft(spectrum, count) * count / len(samples), -32768, 32767)


def draw_page(font_file: str) -> None:
    """Dark grey on uneven paper, turned by a degree and a little out of focus, as a scanner leaves it."""
    page = Image.new("L", PAGE_SIZE, 245)
    font, pen = ImageFont.truetype(font_file, 34, layout_engine=ImageFont.Layout.BASIC), ImageDraw.Draw(page)
    for number, line in enumerate(PAGE_LINES):
        right_to_left = any(ord(char) in HEBREW for char in line)
        shown = _visual(line) if right_to_left else line
        place = (PAGE_SIZE[0] - 40 - pen.textlength(shown, font) if right_to_left else 40, 30 + 60 * number)
        pen.text(place, shown, 40, font)
    turned = page.rotate(0.8, Image.Resampling.BICUBIC, fillcolor=245).filter(ImageFilter.GaussianBlur(0.6))
    noise = np.random.default_rng(4071).normal(0, 3, turned.size[::-1])
    noisy = np.clip(np.asarray(turned, np.float64) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(noisy // GREYS * GREYS).save(FOLDER / "page.png", optimize=True)


def _visual(line: str) -> str:
    """Hebrew in the order of drawing; a number keeps its own. Pillow's basic layout knows no direction."""
    return " ".join(word if word.isdigit() else word[::-1] for word in reversed(line.split()))


if __name__ == "__main__":
    for spoken_language in VOICES:
        speak(spoken_language)
    draw_page(sys.argv[1] if len(sys.argv) > 1 else FONT)
