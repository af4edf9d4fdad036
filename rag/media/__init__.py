"""Clients of the endpoints that read pictures and speech. Settings come in as values."""

from __future__ import annotations

from rag.loaders.media import Check, MediaReaders, PageReader, Transcriber

__all__ = ["media_readers", "page_reader", "transcriber"]


def page_reader(
    base_url: str | None,
    *,
    model: str | None = None,
    api_key: str | None = None,
    timeout_seconds: float = 120.0,
    retries: int = 2,
    max_pages: int = 200,
    parallel: int = 2,
    max_tokens: int = 4096,
) -> PageReader | None:
    """A vision model behind an OpenAI-compatible chat endpoint; None without an address. Nothing is asked yet."""
    from rag.media.ocr import VisionReader

    if not base_url:
        return None
    return VisionReader(base_url, model, api_key, timeout_seconds, retries, max_pages, parallel, max_tokens)


def transcriber(
    base_url: str | None,
    *,
    model: str | None = None,
    api_key: str | None = None,
    language: str | None = None,
    timeout_seconds: float = 600.0,
    retries: int = 2,
) -> Transcriber | None:
    """An OpenAI-compatible transcription endpoint; None without an address. Nothing is asked yet."""
    from rag.media.speech import WhisperClient

    return WhisperClient(base_url, model, api_key, language, timeout_seconds, retries) if base_url else None


def media_readers(ocr: PageReader | None, speech: Transcriber | None, check: Check | None = None) -> MediaReaders:
    """Both as the loaders take them; `check` raises Cancelled when the work is no longer wanted."""
    return MediaReaders(ocr, speech, check) if check is not None else MediaReaders(ocr, speech)
