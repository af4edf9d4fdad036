"""The card of what HyDE changed, alone and in a running app."""

from __future__ import annotations

from pathlib import Path

from streamlit.testing.v1 import AppTest

from rag.hyde_history import ClassRow
from rag.trace_store import TraceStore
from rag.types import Answer, HydeEffect
from ui import hyde_view


def test_a_row_says_how_many_and_what_auto_does() -> None:
    rows = [ClassRow("all questions", 0, 48, 2, 0.0115, 0.1397, "skip"), ClassRow("<b>", 1, 3, 3, 0.44, 1.0, "learn")]
    html = hyde_view.table(rows)
    for text in ("All questions", ">2 of 48<", ">1–14 %<", ">skips<", "&lt;b&gt;", ">learns<", "fewer than 20 such questions"):
        assert text in html, text
    assert hyde_view.title(rows) == "HyDE changed the first passages of 2 of 48 questions"
    assert hyde_view.title([]) == "What HyDE changes"


def script(path: str) -> None:
    from pathlib import Path

    from rag.hyde_history import HydeHistory
    from ui import hyde_view

    hyde_view.show(HydeHistory(Path(path)))


def shown(path: Path) -> str:
    run = AppTest.from_function(script, args=(str(path),), default_timeout=60).run()
    assert not run.exception
    return "".join(str(element.proto.body) for element in run.get("html"))


def test_the_card(tmp_path: Path) -> None:
    assert "It is not known yet" in shown(tmp_path / "none.db")
    store = TraceStore(tmp_path / "traces.db")
    for number in range(30):
        question = f"How do I warm model {chr(97 + number)}?"
        store.save(
            Answer(f"{number:032x}", question, f"2026-11-21T05:00:{number:02}Z", "answered", hyde_effect=HydeEffect(False, 1.0))
        )
    assert store.flush()
    html = shown(store.path)
    store.close(5.0)
    assert "HyDE changed the first passages of 0 of 30 questions" in html
    assert ">skips<" in html and "English, “how”" in html
