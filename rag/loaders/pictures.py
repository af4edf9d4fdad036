"""Pictures: opened within bounds, upright, at a size that a vision model reads, as JPEG. Knows nothing of models or texts."""

from __future__ import annotations

import io
import math
import warnings
from typing import TYPE_CHECKING

from rag.loaders.document import LoadError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 120_000_000  # some 360 MB while it is decoded
SENT_PIXELS = 4_000_000  # an A4 page at 200 dpi; vision models scale larger ones down themselves
SENT_SIDE = 8000
SMALLER = 0.6
QUALITY = 85
BLANK_DEVIATION = 1.5  # of 255 grey levels: paper without a mark; one short line gives 5 and more


def pages(name: str, data: bytes) -> int:
    """How many pages a picture file has: the frames of a TIFF; of an animation only the first is read. Raises LoadError."""
    image = _open(name, data)
    return int(getattr(image, "n_frames", 1)) if image.format == "TIFF" else 1


def page(name: str, data: bytes, number: int) -> Image:
    """Page `number` from 1 on, as `upright`. Raises LoadError."""
    image = _open(name, data)
    try:
        if number > 1:
            image.seek(number - 1)
        _check_size(name, image)
        image.draft("RGB", _bounded(*image.size))
        return upright(image)
    except LoadError:
        raise
    except Exception as problem:  # Pillow's decoders fail in any way on broken files
        raise _broken(name, problem) from problem


def upright(image: Image) -> Image:
    """As the camera was held (EXIF), on white, in RGB, at most SENT_PIXELS."""
    from PIL import Image as images
    from PIL import ImageOps

    turned = ImageOps.exif_transpose(image)
    if turned.mode in ("RGBA", "LA", "PA") or "transparency" in turned.info:
        layer = turned.convert("RGBA")
        turned = images.new("RGB", layer.size, "white")
        turned.paste(layer, mask=layer.getchannel("A"))
    if turned.mode.startswith(("I", "F")):  # 16 bits and more a pixel: convert() would clip them to white
        low, high = (float(value) for value in turned.getextrema())  # type: ignore[arg-type]
        scale = 255 / (high - low) if high > low else 1.0
        turned = turned.convert("F").point(lambda value: value * scale - low * scale).convert("L")
    turned = turned.convert("RGB")
    size = _bounded(*turned.size)
    return turned if size == turned.size else turned.resize(size, images.Resampling.LANCZOS, reducing_gap=2.0)


def is_blank(image: Image) -> bool:
    from PIL import ImageStat

    return float(ImageStat.Stat(image.convert("L")).stddev[0]) < BLANK_DEVIATION


def jpeg(image: Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def smaller(data: bytes) -> bytes:
    """The JPEG at SMALLER of its sides."""
    from PIL import Image as images

    with images.open(io.BytesIO(data)) as image:
        size = (max(1, round(image.width * SMALLER)), max(1, round(image.height * SMALLER)))
        return jpeg(image.convert("RGB").resize(size, images.Resampling.LANCZOS))


def _open(name: str, data: bytes) -> Image:
    from PIL import Image as images

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", images.DecompressionBombWarning)  # the bound here is MAX_PIXELS
            image = images.open(io.BytesIO(data))
    except images.DecompressionBombError as problem:
        raise LoadError(name, f"is too large a picture ({problem})"[:300], "Save it at fewer pixels.") from problem
    except Exception as problem:
        raise _broken(name, problem) from problem
    _check_size(name, image)
    return image


def _check_size(name: str, image: Image) -> None:
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        cause = f"has {image.width:,} × {image.height:,} pixels; the limit is {MAX_PIXELS:,} in all"
        raise LoadError(name, cause, "Save it at fewer pixels.")


def _broken(name: str, problem: Exception) -> LoadError:
    return LoadError(name, f"is a broken picture, or none ({problem})"[:300], "Open it in a viewer and save it again as PNG.")


def _bounded(width: int, height: int) -> tuple[int, int]:
    scale = min(1.0, math.sqrt(SENT_PIXELS / (width * height)), SENT_SIDE / max(width, height))
    return max(1, int(width * scale)), max(1, int(height * scale))
