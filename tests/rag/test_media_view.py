"""The original behind a passage, on a page that runs: what the button says, what opens, and what is said where nothing can."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from rag.errors import RagError
from rag.types import Passage
from tests.media.samples import SCAN, VOICE, make_recording, make_scan, page_picture, squares, tone
from ui import media_view


def passage(source: str, location: str | None = None) -> Passage:
    return Passage("p1", "text", source, "Title", location, document_id="d1")


def one_button(source: str, location: str | None, path: str | None) -> None:
    from pathlib import Path

    from rag.types import Passage
    from ui import media_view

    found = Passage("p1", "text", source, "Title", location, document_id="d1")
    media_view.button_for(found, lambda document_id: Path(path) if path and document_id == "d1" else None, "one")


def only_show(path: str, location: str | None) -> None:
    from pathlib import Path

    from ui import media_view

    media_view.show(Path(path), location)


def app(script: Any, **kwargs: Any) -> AppTest:
    at = AppTest.from_function(script, kwargs=kwargs, default_timeout=60).run()
    assert not at.exception
    return at


def said(at: AppTest) -> str:
    return " ".join(str(getattr(item.proto, "body", "")) for item in at.get("html"))


@pytest.mark.parametrize(
    ("source", "location", "label"),
    [
        ("talk.ogg", "00:01:23 – 00:01:47", "Play at 00:01:23"),
        ("film.MP4", None, "Play"),
        ("a.pdf", "Article 7 › p. 12", "Open page 12"),
        ("fax.tif", "p. 2", "Open page 2"),
        ("photo.png", None, "Open the picture"),
    ],
)
def test_the_button_says_what_it_opens(source: str, location: str | None, label: str) -> None:
    assert media_view.label(passage(source, location)) == label
    assert [button.label for button in app(one_button, source=source, location=location, path=None).button] == [label]


def test_texts_have_no_button() -> None:
    assert not app(one_button, source="a.md", location="Heading", path=None).button


def test_a_recording_opens_at_its_second_and_the_address_says_so() -> None:
    at = app(one_button, source="talk.ogg", location="00:00:07 – 00:00:13", path=str(VOICE))
    assert not at.get("audio")
    at.button[0].click().run()
    assert not at.exception
    (player,) = at.get("audio")
    assert player.proto.start_time == 7
    assert at.query_params["open"] in ("one", ["one"])  # AppTest gives what was set as it was set
    linked = AppTest.from_function(
        one_button, kwargs={"source": "talk.ogg", "location": "00:00:07 – 00:00:13", "path": str(VOICE)}, default_timeout=60
    )
    linked.query_params["open"] = "one"
    assert linked.run().get("audio")


def test_a_film_opens_at_its_second(tmp_path: Path) -> None:
    film = make_recording(tmp_path / "a.mp4", tone(2), picture=True)
    (player,) = app(only_show, path=str(film), location="00:00:01 – 00:00:02").get("video")
    assert player.proto.start_time == 1


def test_the_page_of_a_scan_is_drawn_at_a_bounded_size(tmp_path: Path) -> None:
    path = make_scan(tmp_path / "a.pdf", [1, 2, 3])
    data, count = media_view.page_jpeg(str(path), 0, path.stat().st_size, 2)
    image = Image.open(io.BytesIO(data))
    assert (count, squares(image)) == (3, 2)
    assert image.width * image.height <= media_view.SHOWN_PIXELS
    page_picture(4, (3000, 4200)).save(tmp_path / "big.png")
    data, count = media_view.page_jpeg(str(tmp_path / "big.png"), 0, (tmp_path / "big.png").stat().st_size, 1)
    image = Image.open(io.BytesIO(data))
    assert (count, squares(image)) == (1, 4)
    assert image.width * image.height <= media_view.SHOWN_PIXELS
    at = app(only_show, path=str(path), location="p. 2")
    assert at.get("image")
    assert at.caption[0].value == "Page 2 of 3."


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(b"x")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 nothing")
    assert "There is no view of .docx files" in said(app(only_show, path=str(tmp_path / "a.docx"), location=None))
    assert "is gone" in said(app(only_show, path=str(tmp_path / "away.pdf"), location="p. 1"))
    assert "cannot be drawn" in said(app(only_show, path=str(tmp_path / "broken.pdf"), location="p. 1"))
    assert "no page 9" in said(app(only_show, path=str(SCAN), location="p. 9"))
    with pytest.raises(RagError):
        media_view.page_jpeg(str(SCAN), 0, SCAN.stat().st_size, 9)
    at = app(one_button, source="talk.ogg", location=None, path=None)
    at.button[0].click().run()
    assert "not kept" in said(at)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>.pdf"
    at = app(one_button, source=name, location="p. 1", path=str(tmp_path / name))
    at.button[0].click().run()
    assert not at.exception
    assert "<img" not in said(at)
    assert "&lt;img" in said(at)
