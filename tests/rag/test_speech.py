"""Recordings by a transcription server, from the file to its sections: every shape of answer, and whatever the server does."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from openai.types.audio import TranscriptionVerbose

from rag.errors import Cancelled
from rag.loaders import LoadedDocument, LoadError, load, speech
from rag.loaders.media import MediaReaders, Segment, second_of
from rag.media import media_readers, sound, transcriber
from rag.media.languages import code
from tests.media.samples import VOICE, VOICE_TEXT, decoded_seconds, make_recording, tone
from tests.media.servers import FakeServer, Heard, Reply, error, segment, verbose
from tests.media.servers import speech as speech_server

LIMIT = 50_000_000
HEBREW = [segment(0, 0.0, 5.2, VOICE_TEXT[0]), segment(1, 5.2, 7.9, VOICE_TEXT[1]), segment(2, 7.9, 13.0, VOICE_TEXT[2])]


def readers(server: FakeServer, check: Callable[[], None] | None = None, **options: object) -> MediaReaders:
    settings = {"model": "whisper-large", "api_key": "k", "timeout_seconds": 60.0, "retries": 2, **options}
    return media_readers(None, transcriber(server.address, **settings), check)  # type: ignore[arg-type]


def read(path: Path, answer: Callable[[Heard], Reply], **options: object) -> tuple[LoadedDocument, FakeServer]:
    server = speech_server(answer)
    with server.running():
        return load(path, LIMIT, readers(server, **options)), server


def refusal(path: Path, answer: Callable[[Heard], Reply], **options: object) -> LoadError:
    with pytest.raises(LoadError) as caught:
        read(path, answer, **options)
    assert caught.value.message.startswith(path.name)
    assert caught.value.next_step
    return caught.value


def said(*texts: str, seconds: float = 6.0, **more: object) -> Reply:
    return verbose([segment(n, n * seconds, (n + 1) * seconds, text) for n, text in enumerate(texts)], "en", **more)


# 1) what is sent, and the shapes that come back


def test_a_hebrew_recording_gets_its_words_times_and_language() -> None:
    document, server = read(VOICE, lambda _: verbose(HEBREW), language="he")
    assert [(item.location, item.kind) for item in document.sections] == [("00:00:00 – 00:00:13", "speech")]
    assert document.sections[0].text == " ".join(VOICE_TEXT)
    assert (document.language, document.notes, document.incomplete) == ("he", (), False)
    (request,) = server.requests
    assert request.fields == {"model": "whisper-large", "response_format": "verbose_json", "language": "he"}
    assert (request.data, request.type, request.authorization) == (VOICE.read_bytes(), "audio/ogg", "Bearer k")


def test_the_shapes_of_other_servers(tmp_path: Path) -> None:
    vllm = {
        "duration": "13.0",
        "language": "he",
        "text": "".join(f" {text}" for text in VOICE_TEXT),
        "segments": [
            {"id": n, "avg_logprob": None, "compression_ratio": None, "no_speech_prob": None, "seek": 0, "temperature": 0.0,
             "start": n * 4.0, "end": n * 4.0 + 4, "text": text, "tokens": []}
            for n, text in enumerate(VOICE_TEXT)
        ],
        "words": None,
    }  # fmt: skip
    whisper_cpp = {
        "task": "transcribe",
        "language": "hebrew",
        "duration": 13.01,
        "text": "\n".join(VOICE_TEXT),
        "segments": [
            {"id": n, "text": f" {text}", "start": n * 4.0, "end": n * 4.0 + 4, "tokens": [1], "temperature": 0.0,
             "words": [{"word": text, "start": n * 4.0, "end": n * 4.0 + 4, "t_dtw": -1, "probability": 0.9}],
             "avg_logprob": -0.3, "no_speech_prob": 1e-9}
            for n, text in enumerate(VOICE_TEXT)
        ],
        "detected_language": "hebrew",
        "detected_language_probability": 0.99,
        "language_probabilities": {"he": 0.99},
    }  # fmt: skip
    for body in (vllm, whisper_cpp):
        document, _ = read(VOICE, lambda _, body=body: Reply(body=body))
        assert (document.sections[0].location, document.language, document.notes) == ("00:00:00 – 00:00:12", "he", ())


def test_a_server_without_times_gives_one_section_and_says_so() -> None:
    plain = Reply(body={"text": " ".join(VOICE_TEXT), "usage": {"type": "duration", "seconds": 13}})
    for answer in (plain, Reply(body=" ".join(VOICE_TEXT))):
        document, _ = read(VOICE, lambda _, answer=answer: answer)
        assert [(item.location, item.text) for item in document.sections] == [(None, " ".join(VOICE_TEXT))]
        assert document.language == "he"  # of the words
        assert "without times" in document.notes[0]


def test_a_model_without_verbose_json_is_asked_for_what_it_has() -> None:
    def answer(request: Heard) -> Reply:
        if request.fields["response_format"] == "verbose_json":
            return error(400, "response_format 'verbose_json' is not compatible with model 'gpt-4o-transcribe'.")
        return Reply(body={"text": " ".join(VOICE_TEXT)})

    document, server = read(VOICE, answer)
    assert [request.fields["response_format"] for request in server.requests] == ["verbose_json", "json"]
    assert "without times" in document.notes[0]


@pytest.mark.parametrize("suffix", [".mp3", ".wav", ".m4a", ".ogg", ".opus", ".flac", ".webm", ".mp4", ".mkv", ".mov"])
def test_every_container_goes_as_it_is(tmp_path: Path, suffix: str) -> None:
    path = make_recording(tmp_path / f"talk{suffix}", tone(1.0), picture=suffix in (".webm", ".mp4", ".mkv", ".mov"))
    document, server = read(path, lambda _: said("A sentence about the server."))
    assert document.title == "talk"
    assert server.requests[0].data == path.read_bytes()
    assert server.requests[0].name == f"recording{suffix}"  # the file's own name may tell what it should not


def test_files_of_another_kind_are_not_sent(tmp_path: Path) -> None:
    (tmp_path / "a.mp3").write_bytes(b"%PDF-1.7 and so on")
    assert "holds a PDF, not a recording" in refusal(tmp_path / "a.mp3", lambda _: verbose(HEBREW)).message


# 2) sections


def test_segments_become_sections_of_half_a_minute_that_end_with_a_sentence() -> None:
    texts = [f"This is sentence number {n} of the talk." if n % 2 else f"And this, number {n}, goes" for n in range(20)]
    document, _ = read(VOICE, lambda _: said(*texts))
    starts = [second_of(item.location) for item in document.sections]
    assert starts[0] == 0
    assert all(20 <= after - before <= 40 for before, after in zip(starts[:-1], starts[1:], strict=True))  # type: ignore[operator]
    assert all(item.text.endswith("talk.") for item in document.sections)
    assert " ".join(item.text for item in document.sections) == " ".join(texts)


def test_a_pause_or_much_text_ends_a_section() -> None:
    long = "word " * 100
    items = [Segment(0, 2, "One."), Segment(30, 32, "Two."), Segment(32, 34, long), Segment(34, 36, long)]
    assert [item.start for item in speech.grouped(items)] == [0, 30, 34]


def test_times_that_make_no_sense_are_put_in_order() -> None:
    odd = [
        segment(0, 9.0, 8.0, "Second."),
        segment(1, -1.0, 4.0, "First."),
        {"id": 2, "text": "no times"},
        "x",
        segment(3, 9, 9, " "),
    ]
    document, _ = read(VOICE, lambda _: Reply(body={"text": "First. Second.", "language": None, "segments": odd}))
    assert [(item.location, item.text) for item in document.sections] == [
        ("00:00:00 – 00:00:04", "First."),
        ("00:00:09 – 00:00:09", "Second."),
    ]
    assert any("no times" in note for note in document.notes)


def test_what_was_heard_in_silence_is_left_out_with_a_note() -> None:
    silent = segment(1, 6, 30, "Thank you for watching.", no_speech_prob=0.93, avg_logprob=-1.4)
    unsure = segment(2, 30, 36, "Quiet but spoken.", no_speech_prob=0.93, avg_logprob=-0.3)
    document, _ = read(VOICE, lambda _: verbose([segment(0, 0, 6, "Spoken."), silent, unsure], "en"))
    assert [item.text for item in document.sections] == ["Spoken.", "Quiet but spoken."]
    assert document.notes == ("left out words that were probably heard in silence: 00:00:06 – 00:00:30",)


def test_loops_are_left_out_with_a_note() -> None:
    texts = ["It begins.", *["And so on."] * 9, "Yes.", "Yes.", "It ends."]
    document, _ = read(VOICE, lambda _: said(*texts, seconds=2.0))
    words = " ".join(item.text for item in document.sections)
    assert (words.count("And so on."), words.count("Yes."), words.count("It ends.")) == (1, 2, 1)
    assert "repetitions that no one speaks" in document.notes[0]
    assert document.notes[0].endswith("and 3 more")
    inside = segment(1, 6, 12, "na " * 60, compression_ratio=14.0, avg_logprob=-1.6)
    assert len(read(VOICE, lambda _: verbose([segment(0, 0, 6, "Words."), inside], "en"))[0].sections) == 1


def test_nothing_heard_is_an_error_that_says_why() -> None:
    silent = segment(0, 0, 30, "Thanks.", no_speech_prob=0.93, avg_logprob=-1.4)
    assert "heard in silence" in refusal(VOICE, lambda _: verbose([silent])).message
    assert "holds no speech" in refusal(VOICE, lambda _: verbose([])).message
    assert "holds no speech" in refusal(VOICE, lambda _: Reply(body={"text": ""})).message


# 3) languages


def test_the_wrong_language_is_noted() -> None:
    document, _ = read(VOICE, lambda _: said("This was heard in English."), language="he")
    assert document.language == "en"
    assert "heard as `en`, while speech.language is `he`" in document.notes[0]
    english = (
        "The maintenance window of the reranking server opens on Tuesday at two in the night, and lasts for at most four hours, "
        "while the queries wait."
    )
    translated, _ = read(VOICE, lambda _: verbose([segment(0, 0, 9, english)], "he"), language="he")
    assert "the words look like `en`" in translated.notes[0]
    assert read(VOICE, lambda _: verbose(HEBREW, "hebrew"), language="iw")[0].notes == ()


def test_names_of_languages() -> None:
    assert [code(name) for name in ("Hebrew", "he", "iw", "pt-BR", "en_US", "Cantonese", "jw")] == [
        "he",
        "he",
        "he",
        "pt",
        "en",
        "zh",
        "jv",
    ]
    assert [code(name) for name in (None, "", "unknown", 7)] == [None] * 4


# 4) what servers do


def test_a_file_too_large_for_the_server_goes_in_parts_with_the_times_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sound.parts, "__defaults__", (60.0,))
    path = make_recording(tmp_path / "talk.wav", tone(150, quiet=[(57, 58), (115, 116)]))
    lengths: list[float] = []

    def answer(request: Heard) -> Reply:
        if len(request.data) > 1_000_000:
            return Reply(413, "<html><body><h1>413 Request Entity Too Large</h1></body></html>")
        lengths.append(decoded_seconds(request.data))
        return verbose([segment(0, 1.0, 5.0, f"Part {len(lengths)} begins here.")], "en")

    document, server = read(path, answer)
    starts = [second_of(item.location) for item in document.sections]
    assert sum(lengths) == pytest.approx(150, abs=0.5)
    assert 57 <= lengths[0] <= 58  # cut where it is quiet
    assert starts == [1, 58, 116]
    assert [item.text for item in document.sections] == [f"Part {n} begins here." for n in (1, 2, 3)]
    assert "sent in parts" in document.notes[0]
    assert (server.requests[1].name, server.requests[1].type) == ("recording.ogg", "audio/ogg")


def test_parts_are_halved_until_they_fit_and_then_refused_with_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound, "LEAST_SECONDS", 5)
    path = make_recording(tmp_path / "talk.wav", tone(40))
    seen: list[float] = []

    def answer(request: Heard) -> Reply:
        seconds = decoded_seconds(request.data)
        seen.append(round(seconds))
        return error(413, "too large") if seconds > 25 else verbose([segment(0, 0, 2, f"From {len(seen)}.")], "en")

    document, _ = read(path, answer)
    assert seen[:2] == [40, 40]
    assert len(document.sections) == 2
    assert second_of(document.sections[1].location) in range(15, 25)
    problem = refusal(path, lambda _: error(400, "Maximum content size limit (26214400) exceeded"))
    assert "was refused too" in problem.message
    assert "client_max_body_size" in problem.next_step


def test_a_format_the_server_does_not_read_is_sent_as_wav(tmp_path: Path) -> None:
    path = make_recording(tmp_path / "film.mkv", tone(3), picture=True)

    def answer(request: Heard) -> Reply:
        if not request.data.startswith(b"RIFF"):
            return Reply(400, {"error": "failed to read audio data"})
        return said("Heard as WAV.")

    document, server = read(path, answer)
    assert document.sections[0].text == "Heard as WAV."
    assert "does not read .mkv files" in document.notes[0]
    assert decoded_seconds(server.requests[1].data) == pytest.approx(3, abs=0.2)


def test_parts_go_as_wav_where_the_server_reads_no_ogg(tmp_path: Path) -> None:
    path = make_recording(tmp_path / "talk.mp3", tone(4))
    answers = {"recording.mp3": error(413, "too large"), "recording.ogg": error(400, "Invalid file format.")}
    document, server = read(path, lambda request: answers.get(request.name) or said("As WAV."))
    assert [request.name for request in server.requests] == ["recording.mp3", "recording.ogg", "recording.wav"]
    assert document.sections[0].text == "As WAV."


def test_the_fake_answers_in_the_shape_of_the_api() -> None:
    TranscriptionVerbose.model_validate(verbose(HEBREW).body, strict=True)


def test_without_the_library_that_splits_the_next_step_is_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_recording(tmp_path / "talk.mp3", tone(1))
    monkeypatch.setitem(sys.modules, "av", None)
    problem = refusal(path, lambda _: error(413, "too large"))
    assert "PyAV is not installed" in problem.message
    assert "pip install av" in problem.next_step


def test_a_film_without_sound_and_a_broken_file(tmp_path: Path) -> None:
    def unreadable(_: Heard) -> Reply:
        return Reply(400, {"error": "failed to read audio data"})

    silent = make_recording(tmp_path / "silent.mp4", np.zeros(0, np.int16), picture=True)
    assert "has no sound track" in refusal(silent, unreadable).message
    (tmp_path / "broken.mp3").write_bytes(b"ID3\x03\0" + bytes(range(250)) * 9)
    assert "cannot be decoded" in refusal(tmp_path / "broken.mp3", unreadable).message


def test_a_part_that_fails_does_not_lose_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound.parts, "__defaults__", (10.0,))
    path = make_recording(tmp_path / "talk.wav", tone(30))
    answers = iter([error(413, "too large"), said("First."), error(500, "CUDA out of memory"), said("Third.")])
    document, _ = read(path, lambda _: next(answers, said("Rest.")))
    assert document.sections[0].text == "First."
    assert document.incomplete
    assert any("could not be read: the speech server failed (500): CUDA out of memory" in note for note in document.notes)
    failing = iter([error(413, "too large")])
    assert "CUDA" in refusal(path, lambda _: next(failing, error(500, "CUDA out of memory"))).message


def test_a_busy_server_is_asked_again_when_it_says() -> None:
    busy = iter([error(429, "queue is full", retry_after="0.01"), error(503, "loading the model", retry_after="0")])
    document, server = read(VOICE, lambda _: next(busy, verbose(HEBREW)))
    assert len(server.requests) == 3
    assert document.sections
    problem = refusal(VOICE, lambda _: error(429, "full"), retries=0)
    assert "overloaded" in problem.message
    assert "speech.retries" in problem.next_step


def test_half_an_answer_is_asked_for_again() -> None:
    halves = iter([Reply(body={"text": "x" * 5000}, broken=True)])
    document, server = read(VOICE, lambda _: next(halves, verbose(HEBREW)))
    assert len(server.requests) == 2
    assert document.sections[0].text.startswith(VOICE_TEXT[0])
    problem = refusal(VOICE, lambda _: Reply(body={"text": "x" * 5000}, broken=True), retries=0)
    assert "broke off" in problem.message


def test_a_silent_server_ends_at_the_deadline_and_a_cancel_before() -> None:
    asked, leave = threading.Event(), threading.Event()

    def silent(_: Heard) -> Reply:
        asked.set()
        leave.wait(20)
        return verbose(HEBREW)

    def check() -> None:
        if asked.is_set():
            raise Cancelled("not wanted any more")

    try:
        problem = refusal(VOICE, silent, timeout_seconds=0.3)
        assert "did not answer within 0.3 s" in problem.message
        assert "speech.timeout_seconds" in problem.next_step
        asked.clear()
        server = speech_server(silent)
        with server.running():
            with pytest.raises(Cancelled):
                load(VOICE, LIMIT, readers(server, check))
            leave.set()
    finally:
        leave.set()


@pytest.mark.parametrize(
    ("answer", "cause", "cure"),
    [
        (error(401, "Unauthorized"), "refused the key", "speech.api_key"),
        (error(404, "The model `whisper-1` does not exist"), "no such model", "speech.model"),
        (
            Reply(422, {"detail": [{"msg": "Input should be 'en'", "loc": ["body", "language"]}]}),
            "refused the request",
            "speech.language",
        ),
        (error(500, "CUDA error"), "failed (500): CUDA error", "log"),
        (Reply(200, {"choices": []}), "holds no transcription", "speech.base_url"),
        (Reply(200, ["text"]), "holds no transcription", "speech.base_url"),
    ],
)
def test_errors_name_cause_and_cure(answer: Reply, cause: str, cure: str) -> None:
    problem = refusal(VOICE, lambda _: answer)
    assert cause in problem.message
    assert cure in problem.next_step


def test_a_server_that_is_away_and_addresses_in_full() -> None:
    server = speech_server(lambda _: verbose(HEBREW))
    with server.running():
        for address in (server.address, f"{server.address}/v1/", f"{server.address}/v1/audio/transcriptions"):
            assert load(VOICE, LIMIT, media_readers(None, transcriber(address))).sections
    assert {request.fields["model"] for request in server.requests} == {"whisper-1"}
    with pytest.raises(LoadError) as caught:
        load(VOICE, LIMIT, readers(server))
    assert "connection to the speech server failed" in caught.value.message
