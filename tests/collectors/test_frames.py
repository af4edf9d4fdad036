"""Frames cut from a stream however it arrives."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.frames import Frame, Frames, loop_script

NONCE = "0123456789abcdef01234567"


def stream(noise: str, bodies: list[str]) -> bytes:
    text = f"{noise}\n{NONCE} ready\n"
    for number, body in enumerate(bodies, 1):
        text += f"\n{NONCE} begin {number}\n{body}\n{NONCE} end {number} {number % 3}\n"
    return text.encode()


TEXTS = st.text(alphabet=st.sampled_from("ab \n0123456789é"), max_size=40)


@settings(max_examples=200, deadline=None, database=None)
@given(TEXTS, st.lists(TEXTS, max_size=5), st.lists(st.integers(1, 60), max_size=20))
def test_pieces_do_not_matter(noise: str, bodies: list[str], sizes: list[int]) -> None:
    data, frames, found = stream(noise, bodies), Frames(NONCE), []
    for size in [*sizes, len(data)]:
        found += frames.feed(data[:size])
        data = data[size:]
    assert found == [Frame(number, body, number % 3) for number, body in enumerate(bodies, 1)]
    assert frames.ready and frames.noise == noise.strip()


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(st.binary(max_size=60), max_size=8))
def test_no_bytes_raise_nor_make_a_frame(pieces: list[bytes]) -> None:
    frames = Frames(NONCE)
    for piece in [f"\n{NONCE} ready\n".encode(), *pieces]:
        assert frames.feed(piece) == []


def test_an_end_without_a_beginning_is_no_frame() -> None:
    frames = Frames(NONCE)
    frames.feed(stream("", []))
    assert frames.feed(f"x\n{NONCE} end 1 0\n".encode()) == []
    assert frames.feed(f"\n{NONCE} begin 2\ny\n{NONCE} end 2 0\n".encode()) == [Frame(2, "y", 0)]


def test_an_unfinished_frame_waits() -> None:
    frames = Frames(NONCE)
    data = stream("", ["x" * 1000])
    assert frames.feed(data[:-3]) == [] and frames.pending_bytes > 1000
    assert frames.feed(data[-3:]) == [Frame(1, "x" * 1000, 1)] and frames.pending_bytes < 3


@pytest.mark.parametrize("word", ["", "Fast", "a b", "a)", "*", "a;b"])
def test_words_are_plain(word: str) -> None:
    with pytest.raises(ValueError, match="words of scripts"):
        loop_script({word: "true"}, NONCE, 10)
