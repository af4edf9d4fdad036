"""Recordings to words by an OpenAI-compatible `/audio/transcriptions` endpoint (Whisper servers, vLLM, clouds).

A recording goes as it is. Refused as too large it is sent as small parts, refused for its format as WAV: times stay those of the
whole. A cancel is obeyed in the middle of a request.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from gpu_server.redaction import login, masked, secrets_of, shown_address, without_login
from rag.chat import BUSY, CONNECT_SECONDS, FIRST_PAUSE_SECONDS, base_url
from rag.errors import Kind, RagError
from rag.loaders.media import Check, Segment, Transcript
from rag.media import sound
from rag.media.languages import code
from rag.media.transcripts import shifted, transcript

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
BEAT_SECONDS = 0.1
DEFAULT_MODEL = "whisper-1"
LONGEST_PAUSE_SECONDS = 60.0
ENDING_KINDS = ("connection", "authentication", "model")

_ENDPOINT = re.compile(r"/audio/transcriptions/?$")
_TYPES = {
    ".mp3": "audio/mpeg",
    ".wav": "audio/wav",
    ".m4a": "audio/mp4",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".flac": "audio/flac",
    ".mp4": "video/mp4",
    ".mkv": "video/x-matroska",
    ".mov": "video/quicktime",
    ".webm": "video/webm",
}


class _TooLarge(RagError):
    """413, or a 400 that says the same."""


class _WrongFormat(RagError):
    """The server does not decode such a file."""


class _NoSegments(RagError):
    """The model does not give `verbose_json`."""


@dataclass(frozen=True, slots=True)
class _Upload:
    name: str
    data: bytes
    type: str


class WhisperClient:
    """`rag.loaders.media.Transcriber` over HTTP. Thread-safe; `timeout_seconds` is the deadline of one request."""

    def __init__(
        self, address: str, model: str | None, api_key: str | None, language: str | None, timeout_seconds: float, retries: int
    ) -> None:
        url = f"{base_url(_ENDPOINT.sub('', address.strip()))}/audio/transcriptions"
        self.address, self._url, self._login = shown_address(url), without_login(url), login(url)
        self._secrets = secrets_of(url, (api_key,))
        self.language = code(language)
        self._said_language = language
        self._model, self._timeout_seconds, self._retries = model or DEFAULT_MODEL, timeout_seconds, retries
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    @property
    def identity(self) -> str:
        return f"speech:{self._model}:{self._said_language or ''}"

    def transcribe(self, data: bytes, name: str, check: Check) -> Transcript:
        suffix = f".{name.rsplit('.', 1)[-1].lower()}"
        whole = _Upload(f"recording{suffix}", data, _TYPES.get(suffix, "application/octet-stream"))
        try:
            return self._one(whole, check)
        except _TooLarge as problem:
            note = "the server refused the whole file as too large; its sound was sent in parts"
            return self._in_parts(name, data, "ogg", note, problem, check)
        except _WrongFormat as problem:
            note = f"the server does not read {suffix} files; the sound was sent as WAV"
            return self._in_parts(name, data, "wav", note, problem, check)

    # 1) parts

    def _in_parts(
        self, name: str, data: bytes, container: sound.Container, note: str, refusal: RagError, check: Check
    ) -> Transcript:
        """A part that fails does not lose the others; when all fail, the first one's reason is raised."""
        done: list[tuple[float, Transcript]] = []
        failed: list[tuple[float, float, str]] = []
        first: RagError | None = None
        for part in sound.parts(name, data, check):
            try:
                if first is not None and first.kind in ENDING_KINDS:
                    raise first
                done += self._part(part, container, check)
            except (_TooLarge, _WrongFormat) as problem:
                if isinstance(problem, _WrongFormat) and container == "ogg":
                    return self._in_parts(name, data, "wav", note, refusal, check)
                raise RagError(
                    f"{refusal.message}; a part of {part.seconds:.0f} s was refused too: {problem.message}",
                    kind="bad_input",
                    address=self.address,
                    next_step="Raise the server's limit (nginx: client_max_body_size), or give it FFmpeg to read other formats.",
                ) from problem
            except RagError as problem:
                check()  # a cancel is no failed part
                first = first or problem
                failed.append((part.start, part.start + part.seconds, problem.message))
        if first is not None and not done:
            raise first
        return _joined(done, (note,), tuple(failed))

    def _part(self, part: sound.Part, container: sound.Container, check: Check) -> list[tuple[float, Transcript]]:
        """Halved as long as the server says that it is too large. All or an error: never one half of a part."""
        answers: list[tuple[float, Transcript]] = []
        waiting = [part]
        while waiting:
            piece = waiting.pop(0)
            upload = _Upload(f"recording.{container}", sound.encoded(piece, container), f"audio/{container}")
            try:
                answers.append((piece.start, self._one(upload, check)))
            except _TooLarge:
                if piece.seconds < 2 * sound.LEAST_SECONDS:
                    raise
                waiting[:0] = piece.halves()
        return answers

    # 2) one request

    def _one(self, upload: _Upload, check: Check) -> Transcript:
        """Raises RagError; where the model gives no times, without them."""
        # no timestamp_granularities: segments are their default, and strict servers refuse fields that they do not know
        fields = {"model": self._model, "response_format": "verbose_json"}
        if self._said_language:
            fields["language"] = self.language or self._said_language
        try:
            return asyncio.run(_watched(self._patiently(upload, fields), check))
        except _NoSegments:
            return asyncio.run(_watched(self._patiently(upload, {**fields, "response_format": "json"}), check))

    async def _patiently(self, upload: _Upload, fields: dict[str, str]) -> Transcript:
        """Asked again, after a pause (its own, where it names one), while the server is busy or half an answer came."""
        import httpx

        timeout = httpx.Timeout(self._timeout_seconds, connect=min(CONNECT_SECONDS, self._timeout_seconds))
        async with httpx.AsyncClient(timeout=timeout, headers=self._headers, auth=self._login) as client:
            for failed in range(self._retries + 1):
                last = failed == self._retries
                try:
                    async with asyncio.timeout(self._timeout_seconds):
                        files = {"file": (upload.name, upload.data, upload.type)}
                        response = await client.post(self._url, data=fields, files=files)
                except (httpx.RemoteProtocolError, httpx.ReadError) as problem:
                    if last:
                        raise self._broken(problem) from problem
                    pause = _pause(None, failed)
                except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as problem:
                    raise self._broken(problem) from problem
                else:
                    if response.status_code not in BUSY or last:
                        return self._understood(response, fields)
                    pause = _pause(response, failed)
                await asyncio.sleep(pause)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _understood(self, response: httpx.Response, fields: dict[str, str]) -> Transcript:
        if response.status_code == 200:
            try:
                answer: Any = response.json()
            except ValueError:
                answer = response.text if response.headers.get("content-type", "").startswith("text/plain") else None
            return transcript(answer)
        raise self._refused(response, fields)

    # 3) errors

    def _refused(self, response: httpx.Response, fields: dict[str, str]) -> RagError:
        status, said = response.status_code, masked(_said(response), self._secrets)
        low = said.lower()
        if status == 413 or status in (400, 422) and re.search(r"too (large|big|long)|maximum (content|file) size|exceeds", low):
            return _TooLarge(f"the server refused the recording as too large ({status}): {said}", address=self.address)
        if (
            status in (400, 422)
            and fields["response_format"] == "verbose_json"
            and re.search(r"verbose_json|response_format", low)
        ):
            return _NoSegments(said)
        if (
            status == 415
            or status in (400, 422, 500)
            and re.search(
                r"(unsupported|invalid|unrecogni[sz]ed|unknown) (file |audio |media )*(format|type)|failed to (read|decode|load)|"
                r"unsupported (audio|file|media)|format not recogni[sz]ed|could not (read|decode)",
                low,
            )
        ):
            return _WrongFormat(f"the server cannot read the recording ({status}): {said}", address=self.address)
        kind, cause, cure = _status(status)
        return RagError(f"{cause} ({status}): {said}", kind=kind, address=self.address, next_step=cure)

    def _broken(self, problem: Exception) -> RagError:
        import httpx

        if isinstance(problem, (TimeoutError, httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout)):
            cause = f"the speech server did not answer within {self._timeout_seconds:g} s"
            return RagError(
                cause, kind="timeout", address=self.address, next_step="Look at its queue, or raise speech.timeout_seconds."
            )
        said = masked(str(problem)[:300], self._secrets) or type(problem).__name__
        return RagError(
            f"the connection to the speech server failed or broke off: {said}",
            kind="connection",
            address=self.address,
            next_step="Check that the server at speech.base_url runs and was not restarted.",
        )


async def _watched(work: Coroutine[Any, Any, T], check: Check) -> T:
    """The result of `work`, given up as soon as `check` raises."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            check()
            await asyncio.wait({task}, timeout=BEAT_SECONDS)
    except BaseException:
        task.cancel()
        await asyncio.wait({task})
        raise
    return task.result()


def _status(status: int) -> tuple[Kind, str, str]:
    if status in (401, 403):
        return "authentication", "the speech server refused the key", "Check speech.api_key."
    if status == 404:
        return "model", "the speech server knows no such model or path", "Check speech.model and speech.base_url."
    if status in (429, 503):
        return "overloaded", "the speech server is overloaded", "Wait, lower the load, or raise speech.retries."
    if status < 500:
        return "bad_input", "the speech server refused the request", "Check speech.model and speech.language."
    return "internal", "the speech server failed", "Look at its log."


def _pause(response: httpx.Response | None, failed: int) -> float:
    """Seconds until the next attempt: what the server asks for, else 0.5, 1, 2 … with jitter; at most LONGEST_PAUSE_SECONDS."""
    try:
        asked = float(response.headers["retry-after"]) if response is not None else -1.0
    except (KeyError, ValueError):
        asked = -1.0
    pause = asked if asked >= 0 else FIRST_PAUSE_SECONDS * 2**failed * random.uniform(0.75, 1.25)
    return float(min(pause, LONGEST_PAUSE_SECONDS))


def _said(response: httpx.Response) -> str:
    """The server's own words: OpenAI's error object, FastAPI's `detail`, whisper.cpp's text."""
    try:
        body = response.json()
    except ValueError:
        body = response.text
    if isinstance(body, dict):
        error = body.get("error", body.get("detail", body.get("message", body)))
        body = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(body).split())[:300]


def _joined(
    answers: list[tuple[float, Transcript]], notes: tuple[str, ...], failed: tuple[tuple[float, float, str], ...]
) -> Transcript:
    """One transcript. Where a part came without times, the part itself is the segment: its own start is known."""
    segments: list[Segment] = []
    for index, (start, part) in enumerate(answers):
        if part.segments:
            segments += shifted(part, start)
        elif part.text:
            end = answers[index + 1][0] if index + 1 < len(answers) else start
            segments.append(Segment(start, max(start, end), part.text))
    languages = Counter(part.language for _, part in answers if part.language)
    language = languages.most_common(1)[0][0] if languages else None
    text = " ".join(part.text for _, part in answers)
    own = dict.fromkeys(note for _, part in answers for note in part.notes)
    return replace(Transcript(text), segments=tuple(segments), language=language, notes=(*notes, *own), failed=failed)
