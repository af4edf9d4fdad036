"""Pictures and scanned pages by a vision model's server, from the file to its sections: whatever the server does."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from openai.types.chat import ChatCompletionChunk
from PIL import Image, ImageDraw, ImageOps

from rag.errors import Cancelled
from rag.loaders import LoadedDocument, LoadError, find, load, pdf, pictures
from rag.loaders.media import MediaReaders
from rag.media import media_readers, page_reader, transcriber
from tests.media.samples import make_scan, page_picture, picture_bytes, squares
from tests.media.servers import FakeServer, Reply, Seen, completion, error, vision

LIMIT = 5_000_000
TEXTS = {number: f"# Sheet {number}\n\nThe reading on sheet {number} is {number * 11} units." for number in range(1, 9)}


def told(seen: Seen) -> Reply:
    return completion(TEXTS[seen.squares])


def readers(server: FakeServer, check: Callable[[], None] | None = None, **options: object) -> MediaReaders:
    settings = {"model": "fake-vision", "api_key": "k", "timeout_seconds": 60.0, "retries": 2, **options}
    return media_readers(page_reader(server.address, **settings), None, check)  # type: ignore[arg-type]


def read(path: Path, answer: Callable[[Seen], Reply], **options: object) -> tuple[LoadedDocument, FakeServer]:
    server = vision(answer)
    with server.running():
        return load(path, LIMIT, readers(server, **options)), server


def refusal(path: Path, answer: Callable[[Seen], Reply], **options: object) -> LoadError:
    with pytest.raises(LoadError) as caught:
        read(path, answer, **options)
    assert caught.value.message.startswith(path.name)
    assert caught.value.next_step
    return caught.value


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


# 1) which pages are sent, and where their text lands


def test_a_scan_page_by_page(tmp_path: Path) -> None:
    document, server = read(make_scan(tmp_path / "scan.pdf", [1, 2, 3]), told)
    assert [(section.location, section.kind) for section in document.sections] == [(f"p. {n}", "scan") for n in (1, 2, 3)]
    assert "33 units" in document.sections[2].text
    assert (document.title, document.language, document.notes, document.incomplete) == ("scan", "en", (), False)
    request = server.requests[0].payload
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("fake-vision", 0.0, 4096)
    assert 3_000_000 < server.requests[0].size[0] * server.requests[0].size[1] <= pictures.SENT_PIXELS


def test_a_mixed_pdf_keeps_its_text_pages_and_every_page_number(tmp_path: Path) -> None:
    text = "This page was printed with a text layer, and it is long enough to be one."
    document, server = read(make_scan(tmp_path / "mixed.pdf", [text, 4, 0, text, 5]), told)
    assert [(item.location, item.kind) for item in document.sections] == [
        ("p. 1", "pdf"),
        ("p. 2", "scan"),
        ("p. 4", "pdf"),
        ("p. 5", "scan"),
    ]
    assert sorted(item.squares for item in server.requests) == [4, 5]  # blank paper is not sent: a model would make up a text
    assert document.notes == ("page 3 was read and has no words",)


def test_a_stamp_over_a_scan_is_no_text_layer(tmp_path: Path) -> None:
    document, _ = read(make_scan(tmp_path / "stamped.pdf", [2], stamp="Scanned by X"), told)
    assert "22 units" in document.sections[0].text
    kept, server = read(make_scan(tmp_path / "short.pdf", ["Fig. 7"]), told)
    assert (kept.sections[0].text, server.requests) == ("Fig. 7", [])
    fallen_back, _ = read(make_scan(tmp_path / "again.pdf", [2], stamp="Scanned by X"), lambda _: error(500, "boom"))
    assert fallen_back.sections[0].text == "Scanned by X"
    assert fallen_back.incomplete
    assert "page 1" in fallen_back.notes[0]


@pytest.mark.parametrize("text", ["(cid:12)(cid:44)(cid:9) (cid:3)a", "\ue012\ue013\ue014 b \ue015", "\ufffd\ufffd\ufffd c"])
def test_a_layer_that_names_no_letters_is_broken(text: str) -> None:
    from rag.loaders.pdf import broken

    assert broken(text)
    assert not broken("A page, with one \ufffd in its thirty-three letters.")
    assert not broken("")


def test_pages_beyond_the_limit_are_named(tmp_path: Path) -> None:
    document, server = read(make_scan(tmp_path / "long.pdf", [1, 2, 3, 4]), told, max_pages=2)
    assert len(document.sections) == len(server.requests) == 2
    assert document.notes == ("pages 3–4 were not read: ocr.max_pages is 2",)


def test_pages_go_out_in_parallel_and_no_more_than_allowed(tmp_path: Path) -> None:
    meet = threading.Barrier(3, timeout=60)

    def together(seen: Seen) -> Reply:
        meet.wait()  # breaks unless three are asked at once
        return told(seen)

    document, server = read(make_scan(tmp_path / "many.pdf", [1, 2, 3, 4, 5, 6]), together, parallel=3)
    assert [item.location for item in document.sections] == [f"p. {n}" for n in range(1, 7)]
    assert server.most_at_once == 3


# 2) pictures


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"])
def test_pictures_of_every_kind(tmp_path: Path, suffix: str) -> None:
    document, _ = read(saved(tmp_path / f"sheet{suffix}", page_picture(3)), told)
    assert (document.title, document.sections[0].location) == ("sheet", None)
    assert "33 units" in document.sections[0].text


def test_a_picture_is_turned_as_the_camera_was_held(tmp_path: Path) -> None:
    lying = page_picture(4).rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    path = saved(tmp_path / "photo.jpg", lying, exif=exif, quality=95)
    assert squares(lying) != 4
    assert read(path, told)[1].requests[0].squares == 4
    assert ImageOps.exif_transpose(Image.open(path)).size == page_picture(4).size


def test_tiff_pages_have_numbers_and_an_animation_is_its_first_picture(tmp_path: Path) -> None:
    frames = [page_picture(number) for number in (1, 2, 3)]
    path = tmp_path / "fax.tif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    document, _ = read(path, told)
    assert [item.location for item in document.sections] == ["p. 1", "p. 2", "p. 3"]
    limited, _ = read(path, told, max_pages=2)
    assert limited.notes == ("page 3 was not read: ocr.max_pages is 2",)
    moving = tmp_path / "moving.gif"
    frames[0].save(moving, save_all=True, append_images=frames[1:])
    assert len(read(moving, told)[1].requests) == 1


def test_odd_modes_become_black_on_white(tmp_path: Path) -> None:
    layer = page_picture(2).convert("L").point(lambda value: 255 - value)
    see_through = Image.merge("RGBA", [Image.new("L", layer.size, 0)] * 3 + [layer])
    assert read(saved(tmp_path / "alpha.png", see_through), told)[1].requests[0].squares == 2
    deep = page_picture(5).convert("I").point(lambda value: value * 257)
    assert read(saved(tmp_path / "deep.png", deep.convert("I;16")), told)[1].requests[0].squares == 5
    assert read(saved(tmp_path / "bits.tif", page_picture(6).convert("1")), told)[1].requests[0].squares == 6


def test_a_huge_picture_is_sent_at_a_bounded_size_and_a_bomb_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, server = read(saved(tmp_path / "poster.png", page_picture(2, (3100, 4385))), told)
    width, height = server.requests[0].size
    assert width * height <= pictures.SENT_PIXELS
    assert width / height == pytest.approx(3100 / 4385, rel=0.01)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 500_000)
    assert "620 × 877 pixels" in refusal(saved(tmp_path / "bomb.png", page_picture(1)), told).message


def test_a_long_strip_stays_readable(tmp_path: Path) -> None:
    strip = Image.new("RGB", (800, 20_000), "white")
    ImageDraw.Draw(strip).rectangle((100, 990, 140, 1010), fill="black")
    _, server = read(saved(tmp_path / "receipt.png", strip), lambda _: completion("Total 12"))
    assert server.requests[0].size[0] >= 300


def test_pictures_that_are_refused(tmp_path: Path) -> None:
    whole = picture_bytes(page_picture(1))
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.bmp").write_bytes(b"BM" + bytes(range(200)))
    (tmp_path / "text.jpg").write_bytes(b"%PDF-1.7 something else")
    assert "broken picture" in refusal(tmp_path / "cut.png", told).message
    assert "broken picture" in refusal(tmp_path / "noise.bmp", told).message
    assert "holds a PDF, not an image" in refusal(tmp_path / "text.jpg", told).message
    assert "no words" in refusal(saved(tmp_path / "white.png", Image.new("RGB", (600, 800), "white")), told).message
    assert "no words" in refusal(saved(tmp_path / "cat.png", page_picture(1)), lambda _: completion("[empty page]")).message


# 3) what models answer


def test_a_cut_page_is_named(tmp_path: Path) -> None:
    document, _ = read(
        make_scan(tmp_path / "a.pdf", [1, 2]),
        lambda seen: completion(TEXTS[seen.squares], "length" if seen.squares == 2 else "stop"),
    )
    assert document.notes == ("page 2 was cut at ocr.max_tokens",)


def test_a_model_that_loops_is_stopped_and_what_came_before_is_kept(tmp_path: Path) -> None:
    endless = "The table begins here.\n\n" + "The value of the field is not known. " * 5000
    document, server = read(saved(tmp_path / "loop.png", page_picture(1)), lambda _: completion(endless))
    assert document.sections[0].text.count("not known") == 1
    assert "repeated itself and was stopped" in document.notes[0]
    assert server.gone.wait(60)  # the server was left in the middle: it need not go on


def test_a_page_in_another_script_than_the_others_is_named(tmp_path: Path) -> None:
    hebrew = "חלון התחזוקה של שרת הדירוג נפתח ביום שלישי בשעה שתיים בלילה ונמשך ארבע שעות לכל היותר."
    english = "The maintenance window of the reranking server opens on Tuesday at two in the night and lasts four hours."
    document, _ = read(
        make_scan(tmp_path / "a.pdf", [1, 2, 3]), lambda seen: completion(english if seen.squares == 2 else hebrew)
    )
    assert document.language == "he"
    assert document.notes == ("page 2 was read as Latin, the others are Hebrew: look whether it was translated",)


def test_a_model_that_declines_fails_its_page_alone(tmp_path: Path) -> None:
    declined = "I'm sorry, I can't help with that."
    document, _ = read(
        make_scan(tmp_path / "a.pdf", [1, 2]), lambda seen: completion(declined if seen.squares == 1 else TEXTS[2])
    )
    assert [item.location for item in document.sections] == ["p. 2"]
    assert document.notes == (f"page 1: the model declined: {declined}",)
    assert document.incomplete


# 4) what servers do


def test_a_failed_page_does_not_lose_the_others(tmp_path: Path) -> None:
    document, _ = read(
        make_scan(tmp_path / "a.pdf", [1, 2, 3]), lambda seen: error(500, "CUDA error") if seen.squares == 2 else told(seen)
    )
    assert [item.location for item in document.sections] == ["p. 1", "p. 3"]
    assert document.notes == ("page 2: the server failed (500): CUDA error",)
    assert document.incomplete


def test_when_every_page_fails_the_file_is_refused_with_the_reason(tmp_path: Path) -> None:
    problem = refusal(make_scan(tmp_path / "a.pdf", [1, 2, 3]), lambda _: error(500, "CUDA error"))
    assert "pages 1–3 could not be read: the server failed (500): CUDA error" in problem.message
    assert "ocr.base_url" in problem.next_step


def test_a_busy_server_is_asked_again_when_it_says(tmp_path: Path) -> None:
    busy = iter([error(429, "queue is full", retry_after="0.01"), error(503, "starting")])
    document, server = read(saved(tmp_path / "a.png", page_picture(1)), lambda seen: next(busy, None) or told(seen))
    assert "11 units" in document.sections[0].text
    assert len(server.requests) == 3
    assert "overloaded" in refusal(saved(tmp_path / "b.png", page_picture(1)), lambda _: error(429, "full"), retries=0).message


def test_a_picture_too_large_for_the_server_goes_once_more_at_a_smaller_size(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", page_picture(3, (1654, 2339)))
    document, server = read(path, lambda seen: error(413, "Request Entity Too Large") if seen.size[0] > 1200 else told(seen))
    assert [item.size[0] for item in server.requests] == [1654, 992]
    assert "33 units" in document.sections[0].text
    assert "smaller size" in document.notes[0]
    problem = refusal(path, lambda _: Reply(413, "<html>413 Request Entity Too Large</html>"))
    assert "too large, at a smaller size too" in problem.message
    assert "client_max_body_size" in problem.next_step
    context = "This model's maximum context length is 4096 tokens. However, you requested 9000 tokens."
    assert read(path, lambda seen: error(400, context) if seen.size[0] > 1200 else told(seen))[0].sections


def test_half_an_answer_is_asked_for_again_and_never_taken_for_a_page(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", page_picture(1))
    halves = iter([completion("Half of a senten", broken=True)])
    document, server = read(path, lambda seen: next(halves, None) or told(seen))
    assert "Half" not in document.sections[0].text
    assert len(server.requests) == 2
    problem = refusal(path, lambda _: completion("Half of a senten", broken=True))
    assert "broke off" in problem.message
    unfinished = refusal(path, lambda _: completion("An end without a reason", finish_reason=None))
    assert "broke off" in unfinished.message


def test_a_silent_server_ends_at_the_deadline(tmp_path: Path) -> None:
    path, leave = saved(tmp_path / "a.png", page_picture(1)), threading.Event()

    def silent(seen: Seen) -> Reply:
        leave.wait(20)
        return told(seen)

    try:
        problem = refusal(path, silent, timeout_seconds=0.3)
    finally:
        leave.set()
    assert "did not answer in time" in problem.message
    assert "ocr.timeout_seconds" in problem.next_step


def test_a_server_that_is_away_is_not_asked_for_every_page(tmp_path: Path) -> None:
    server = vision(told)
    with server.running():
        pass
    with pytest.raises(LoadError) as caught:
        load(make_scan(tmp_path / "a.pdf", [1, 2, 3]), LIMIT, readers(server, parallel=1))
    assert "connection to the vision model failed" in caught.value.message
    assert "ocr.base_url" in caught.value.next_step
    refused = vision(lambda _: error(401, "Unauthorized"))
    with refused.running(), pytest.raises(LoadError) as denied:
        load(make_scan(tmp_path / "b.pdf", [1, 2, 3, 4]), LIMIT, readers(refused, parallel=1))
    assert len(refused.requests) == 1
    assert "ocr.api_key" in denied.value.next_step


def test_an_answer_that_is_no_completion(tmp_path: Path) -> None:
    problem = refusal(saved(tmp_path / "a.png", page_picture(1)), lambda _: Reply(200, "<html>Welcome</html>"))
    assert "could not be read" in problem.message
    assert "ocr.base_url" in problem.next_step


def test_a_cancel_is_obeyed_in_the_middle_of_a_page(tmp_path: Path) -> None:
    asked, leave = threading.Event(), threading.Event()

    def silent(seen: Seen) -> Reply:
        asked.set()
        leave.wait(20)
        return told(seen)

    def check() -> None:
        if asked.is_set():
            raise Cancelled("not wanted any more")

    server = vision(silent)
    with server.running():
        try:
            with pytest.raises(Cancelled):
                load(make_scan(tmp_path / "a.pdf", [1, 2, 3]), LIMIT, readers(server, check, parallel=2))
        finally:
            leave.set()
    assert len(server.requests) <= 2


# 5) without a reader


def test_without_a_reader_files_say_what_to_set(tmp_path: Path) -> None:
    root = tmp_path / "docs"
    root.mkdir()
    saved(root / "a.png", page_picture(1))
    (root / "b.mp3").write_bytes(b"ID3\x03\0")
    make_scan(root / "c.pdf", [1])
    found = find([root])
    assert [file.path.name for file in found.files] == ["c.pdf"]
    assert {item.reason.split(",")[0]: item.count for item in found.skipped} == {
        "pictures need text recognition": 1,
        "recordings need speech recognition": 1,
    }
    named = find([root / "a.png", root / "b.mp3"])
    assert [item.next_step.split(" ")[1] for item in named.refused] == ["ocr.base_url", "speech.base_url"]
    for name, setting in (("a.png", "ocr.base_url"), ("b.mp3", "speech.base_url"), ("c.pdf", "ocr.base_url")):
        with pytest.raises(LoadError) as caught:
            load(root / name, LIMIT)
        assert setting in caught.value.next_step
    both = media_readers(page_reader("http://127.0.0.1:1"), transcriber("http://127.0.0.1:1"))
    assert len(find([root], both).files) == 3


def test_the_fingerprint_names_the_reader_of_what_needs_one() -> None:
    ocr, speech = page_reader("http://127.0.0.1:1", model="eyes"), transcriber("http://127.0.0.1:1", model="ears", language="he")
    both = media_readers(ocr, speech)
    assert both.fingerprint(Path("a.PDF")) == both.fingerprint(Path("a.png")) == "ocr:eyes"
    assert both.fingerprint(Path("a.mp4")) == "speech:ears:he"
    assert both.fingerprint(Path("a.md")) == MediaReaders().fingerprint(Path("a.png")) == ""
    assert page_reader(None) is transcriber("") is None


class Undrawable(pdf.PdfPages):
    """A document whose second page PDFium cannot draw."""

    def picture(self, number: int, pixels: int = pictures.SENT_PIXELS) -> Image.Image:
        if number == 2:
            raise RuntimeError("Failed to load page.")
        return super().picture(number, pixels)


def test_a_page_that_cannot_be_drawn_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_scan(tmp_path / "a.pdf", [1, 2, 3])
    monkeypatch.setattr(pdf, "PdfPages", Undrawable)
    document, _ = read(path, told)
    assert [item.location for item in document.sections] == ["p. 1", "p. 3"]
    assert document.notes == ("page 2: RuntimeError: Failed to load page.",)


def test_a_document_that_cannot_be_drawn_keeps_its_text_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(data: bytes) -> pdf.PdfPages:
        raise ValueError("Data format error.")

    monkeypatch.setattr(pdf, "PdfPages", refuses)
    text = "This page was printed with a text layer, and it is long enough to be one."
    document, server = read(make_scan(tmp_path / "a.pdf", [text, 2]), told)
    assert ([item.location for item in document.sections], server.requests) == (["p. 1"], [])
    assert "could not be drawn" in document.notes[0]
    assert "could not be drawn" in refusal(make_scan(tmp_path / "b.pdf", [2]), told).message


def test_a_smaller_picture_is_a_whole_one() -> None:
    assert Image.open(io.BytesIO(pictures.smaller(picture_bytes(page_picture(1), "JPEG")))).size == (372, 526)


def test_the_fake_answers_in_the_shape_of_the_api() -> None:
    for chunk in completion("Some text.", "length").sse or ():
        ChatCompletionChunk.model_validate(chunk, strict=True)
