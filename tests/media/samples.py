"""Pictures, scans and recordings for tests.

`data/hebrew-synthetic-voice.ogg` is VOICE_TEXT by a formant synthesiser (espeak-ng), 13 s, not by a person.
`data/hebrew-scan.pdf` is SCAN_TEXT as a picture: printed on a page with one square, laid askew, with dust, no text layer.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from fpdf import FPDF
from numpy.typing import NDArray
from PIL import Image, ImageDraw

DATA = Path(__file__).parent / "data"
VOICE = DATA / "hebrew-synthetic-voice.ogg"
VOICE_TEXT = (
    "חלון התחזוקה של שרת הדירוג נפתח ביום שלישי בשעה שתיים בלילה.",
    "הוא נמשך ארבע שעות לכל היותר.",
    "אחרי אתחול, הדירוג הראשון איטי, ולכן מחממים את המודל.",
)
SCAN_TEXT = "סעיף 72. חלון התחזוקה של המאיץ לא יעלה על ארבע שעות.\nהשרת נבדק בכל יום שלישי בבוקר."
SCAN = DATA / "hebrew-scan.pdf"
ROW = 0.05  # of the height: where the squares' middle is


def page_picture(number: int, size: tuple[int, int] = (620, 877)) -> Image.Image:
    """A white page with `number` black squares in a row near its top, and a line."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    side = size[0] // 24
    top = int(size[1] * ROW) - side // 2
    for index in range(number):
        left = side * (1 + 2 * index)
        draw.rectangle((left, top, left + side - 1, top + side - 1), fill="black")
    draw.line((side, size[1] // 2, size[0] - side, size[1] // 2), fill="black", width=3)
    return image


def squares(image: Image.Image) -> int:
    """How many squares `page_picture` drew, at whatever size the picture is now."""
    grey = image.convert("L")
    row = [grey.getpixel((x, int(grey.height * ROW))) < 128 for x in range(grey.width)]  # type: ignore[operator]
    return sum(dark and not before for before, dark in zip([False, *row], row, strict=False))


def picture_bytes(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def make_scan(path: Path, pages: Sequence[int | str], stamp: str = "") -> Path:
    """A PDF whose pages are a picture with that many squares (int; 0 is blank paper), or a text layer (str).

    `stamp` is a text layer over each picture, as some scanners write.
    """
    pdf = FPDF()
    pdf.set_font("helvetica", size=12)
    for page in pages:
        pdf.add_page()
        if isinstance(page, str):
            pdf.multi_cell(0, text=page)
            continue
        if page:
            pdf.image(io.BytesIO(picture_bytes(page_picture(page))), 0, 0, 210, 297)
        if stamp:
            pdf.text(20, 200, stamp)
    pdf.output(str(path))
    return path


def tone(seconds: float, quiet: Sequence[tuple[float, float]] = (), rate: int = 16_000) -> NDArray[np.int16]:
    """A tone, silent in the `quiet` stretches."""
    times = np.arange(int(seconds * rate)) / rate
    wave = 8000 * np.sin(2 * np.pi * 440 * times)
    for start, end in quiet:
        wave[int(start * rate) : int(end * rate)] = 0
    return wave.astype(np.int16)


def make_recording(path: Path, samples: NDArray[np.int16], picture: bool = False, rate: int = 16_000) -> Path:
    """A file in the container and codec that its suffix stands for; with `picture` a video."""
    codecs = {".mp3": "libmp3lame", ".wav": "pcm_s16le", ".flac": "flac", ".mov": "aac", ".mp4": "aac", ".m4a": "aac"}
    rate_out = 48_000 if path.suffix in (".ogg", ".opus", ".webm", ".mkv") else rate
    with av.open(str(path), "w", format={".m4a": "mp4", ".mkv": "matroska", ".opus": "ogg"}.get(path.suffix)) as output:
        video = output.add_stream("libvpx" if path.suffix == ".webm" else "mpeg4", rate=5) if picture else None
        sound = output.add_stream(codecs.get(path.suffix, "libopus"), rate=rate_out, layout="mono") if len(samples) else None
        if video is not None:
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            for _ in range(5):
                output.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
            output.mux(video.encode(None))
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
            frame.sample_rate = rate
            for piece in av.AudioResampler(format=sound.format.name, layout="mono", rate=rate_out, frame_size=1024).resample(
                frame
            ):
                output.mux(sound.encode(piece))
            output.mux(sound.encode(None))
    return path


def decoded_seconds(data: bytes) -> float:
    with av.open(io.BytesIO(data)) as source:
        return sum(frame.samples / frame.sample_rate for frame in source.decode(audio=0))
