"""Pages of a PDF to pictures, by PDFium. Knows nothing of texts.

PDFium may be entered by one thread at a time in a process: every call here holds one lock.
"""

from __future__ import annotations

import math
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rag.loaders.pictures import SENT_PIXELS, SENT_SIDE

if TYPE_CHECKING:
    from PIL.Image import Image

DPI = 200
POINTS_PER_INCH = 72
ROUNDED_UP = 0.995  # PDFium rounds both sides up
_PDFIUM = threading.Lock()


class PdfPages:
    """The pages of an open document, numbered from 1. Thread-safe; close it, or use it as a context.

    Raises pypdfium2's errors: the caller knows whether one page or the file is at fault.
    """

    def __init__(self, data: bytes) -> None:
        import pypdfium2  # type: ignore[import-untyped]

        with _PDFIUM:
            self._document: Any = pypdfium2.PdfDocument(data)
            self.count = len(self._document)

    def __enter__(self) -> PdfPages:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        with _PDFIUM:
            self._document.close()

    def picture(self, number: int, pixels: int = SENT_PIXELS) -> Image:
        """The page as people see it (rotated, annotated), at DPI or less: at most `pixels`."""
        with _PDFIUM:
            page = self._document[number - 1]
            try:
                width, height = page.get_size()
                area, longest = max(width * height, 1e-6), max(width, height, 1e-3)
                scale = min(DPI / POINTS_PER_INCH, ROUNDED_UP * math.sqrt(pixels / area), SENT_SIDE / longest)
                image: Image = page.render(scale=scale).to_pil().convert("RGB")
                return image
            finally:
                page.close()

    def picture_share(self, number: int) -> float:
        """The share of the page that its largest picture covers, 0 to 1."""
        from pypdfium2 import raw

        with _PDFIUM:
            page = self._document[number - 1]
            try:
                width, height = page.get_size()
                covered = 0.0
                for item in page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE], max_depth=3):
                    left, bottom, right, top = item.get_bounds()
                    covered = max(covered, abs(right - left) * abs(top - bottom))
                share: float = min(1.0, covered / max(width * height, 1e-6))
                return share
            finally:
                page.close()
