"""The sound of a recording in small parts, by PyAV (FFmpeg's libraries), for servers that refuse the file as it is.

Knows nothing of endpoints. PyAV is only needed here: without it such files are refused with that next step.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rag.errors import RagError
from rag.loaders.document import LoadError
from rag.loaders.media import Check

if TYPE_CHECKING:
    from numpy.typing import NDArray

RATE = 16_000  # what Whisper hears
PART_SECONDS = 600
LEAST_SECONDS = 30
LEAST_TAIL_SECONDS = 0.1  # no word is shorter
OPUS_BITS_PER_SECOND = 32_000
WINDOW_SECONDS = 0.25
SEARCH_SHARE = 0.1  # of a part: how far before its end a quiet moment is looked for

Container = Literal["ogg", "wav"]


@dataclass(frozen=True, slots=True)
class Part:
    """Some seconds of the recording, mono at RATE. `samples` is int16 [n]."""

    start: float
    samples: NDArray[np.int16]

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE

    def halves(self) -> tuple[Part, Part]:
        cut = quiet_cut(self.samples, len(self.samples) // 2)
        return Part(self.start, self.samples[:cut]), Part(self.start + cut / RATE, self.samples[cut:])


def parts(name: str, data: bytes, check: Check, part_seconds: float = PART_SECONDS) -> Iterator[Part]:
    """The whole recording in parts of at most `part_seconds`, cut where it is quiet. Raises LoadError; what `check` does."""
    held: list[NDArray[np.int16]] = []
    start, length, wanted = 0, 0, int(part_seconds * RATE)
    for block in _samples(name, data):
        check()
        held.append(block)
        length += len(block)
        while length >= wanted:
            samples = np.concatenate(held)
            cut = quiet_cut(samples[:wanted], wanted)
            yield Part(start / RATE, samples[:cut])
            start, held, length = start + cut, [samples[cut:]], length - cut
    if length > LEAST_TAIL_SECONDS * RATE or start == 0 and length:
        yield Part(start / RATE, np.concatenate(held))


def quiet_cut(samples: NDArray[np.int16], end: int) -> int:
    """The middle of the quietest window in the last SEARCH_SHARE before `end`: a cut there falls between words."""
    window = int(WINDOW_SECONDS * RATE)
    first = int(end * (1 - SEARCH_SHARE))
    count = (end - first) // window
    if count < 2:
        return end
    blocks = samples[end - count * window : end].astype(np.float64).reshape(count, window)
    return end - count * window + int(np.argmin((blocks**2).mean(axis=1))) * window + window // 2


def encoded(part: Part, container: Container) -> bytes:
    """The part as a file: Opus in Ogg (4 kB a second) or PCM in WAV (32 kB a second)."""
    av = _library("")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream("libopus" if container == "ogg" else "pcm_s16le", rate=RATE, layout="mono")
        if container == "ogg":
            stream.bit_rate = OPUS_BITS_PER_SECOND
        frame = av.AudioFrame.from_ndarray(part.samples.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = RATE
        fifo = av.AudioFifo()
        fifo.write(frame)
        size = stream.codec_context.frame_size or RATE
        while (piece := fifo.read(size, partial=True)) is not None:
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def _samples(name: str, data: bytes) -> Iterator[NDArray[np.int16]]:
    av = _library(name)
    try:
        with av.open(io.BytesIO(data), mode="r") as source:
            stream = next(iter(source.streams.audio), None)
            if stream is None:
                raise LoadError(name, "has no sound track", "Remove it: there is nothing to hear.")
            resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
            for frame in _decoded(av, source, stream):
                for piece in resampler.resample(frame):
                    yield piece.to_ndarray().reshape(-1).copy()
            for piece in resampler.resample(None):
                yield piece.to_ndarray().reshape(-1).copy()
    except av.FFmpegError as problem:
        raise LoadError(name, f"cannot be decoded ({problem})"[:300], "Convert it to MP3 or WAV.") from problem


def _decoded(av: Any, source: Any, stream: Any) -> Iterator[Any]:
    """Frames, until the first that is damaged: what comes before a file's torn end is still good."""
    got = False
    try:
        for frame in source.decode(stream):
            got = True
            yield frame
    except av.FFmpegError:
        if not got:
            raise


def _library(name: str) -> Any:
    try:
        import av
    except ImportError as problem:
        raise RagError(
            f"{name or 'the recording'} must be split or converted for this server, and PyAV is not installed",
            kind="bad_input",
            next_step="Install it (`pip install av`), raise the server's limit, or convert the file to MP3 in short parts.",
        ) from problem
    return av
