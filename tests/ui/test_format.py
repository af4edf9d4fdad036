from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest

from ui import format as f


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0.0, "0 ms"),
        (0.000001, "< 0.01 ms"),
        (0.00042, "0.420 ms"),
        (0.0071, "7.10 ms"),
        (0.193, "193 ms"),
        (0.99949, "999 ms"),
        (0.9996, "1.00 s"),
        (1.415, "1.42 s"),
        (9.76, "9.76 s"),
        (9.996, "10.0 s"),
        (40.0, "40.0 s"),
        (119.94, "120 s"),
        (125.2, "2 min 05 s"),
        (3780.0, "1 h 03 min"),
    ],
)
def test_seconds(value: float | None, text: str) -> None:
    assert f.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (9.996, "10.0"), (0.0321, "0.0321"), (1234.0, "1,230"), (-0.5, "-0.500"), (1e-9, "0.00000000100")],
)
def test_significant(value: float, text: str) -> None:
    assert f.significant(value) == text


def test_percentile_has_its_count_and_unknown_is_a_dash_with_a_reason() -> None:
    assert f.percentile("p95", 1.42, 212) == "p95 1.42 s · n 212"
    assert 'title="no &quot;data&quot;"' in f.unknown_html('no "data"')
    assert f.value_html("5 ms", "never used") == "5 ms"
    assert [f.percent(x) for x in (None, 0.0, 0.001, 0.34)] == ["–", "0 %", "< 1 %", "34 %"]


def test_times() -> None:
    now = datetime(2026, 11, 21, 5, 0, 12, tzinfo=UTC)
    gaps = [0.3, 12, 200, 7200, 86400 * 5, -3]
    texts = [f.relative(now - timedelta(seconds=gap), now) for gap in gaps]
    assert texts == ["just now", "12 s ago", "3 min ago", "2 h ago", "5 days ago", "in 3 s"]
    assert f.absolute(now) == "2026-11-21 05:00:12 UTC"
    assert 'title="2026-11-21 05:00:12 UTC"' in f.time_html(now, now)
    assert f.parse_time("2026-11-21T05:00:12Z") == now
    assert f.parse_time("2026-11-21T05:00:12") == now
    assert f.parse_time("soon") is None


def test_escape_covers_attributes() -> None:
    assert f.escape("<script>\"'&") == "&lt;script&gt;&quot;&#x27;&amp;"


def test_answer_keeps_structure_and_escapes_the_rest() -> None:
    text = f.answer_markdown(
        "# T\n- *a* costs $5 to $6, `x_$1` and my_var ~2 s <b>x</b> :red[no] :smile: ![i](http://e/x.png)", ()
    )
    assert text == (
        "# T\n- *a* costs \\$5 to \\$6, `x_$1` and my\\_var \\~2 s &lt;b>x&lt;/b> \\:red\\[no\\] \\:smile: "
        "!\\[i\\](`http://e/x.png`)"
    )


def test_addresses_are_shown_and_are_no_links() -> None:
    assert f.answer_markdown("See https://e.example/a?b=[1], www.e.example. [1]", {1}) == (
        "See `https://e.example/a?b=`[\\[1\\]](#passage-1), `www.e.example`. [\\[1\\]](#passage-1)"
    )
    assert f.plain_markdown("https://e www.e") == "https\\:\u2060//e www\u2060\\.e"


def test_only_cited_numbers_become_links() -> None:
    assert f.answer_markdown("A [1][2], B [3] and [1, 2].", {1, 2}) == (
        "A [\\[1\\]](#passage-1)[\\[2\\]](#passage-2), B \\[3\\] and [\\[1\\]](#passage-1)[\\[2\\]](#passage-2)."
    )


@pytest.mark.parametrize(
    "text",
    [
        "open ` tick then $x$ and ![a](http://evil)",
        "`a\n\n$x$ b`",
        "| `a | ![x](http://evil) ` |",
        "```` not a fence ` $x$",
        "    ```\n$x$",
        "\\[1](http://evil) $x$",
    ],
)
def test_tricks_with_backticks_leave_nothing_alive(text: str) -> None:
    out = f.answer_markdown(text, {1})
    assert "](http" not in out.replace("\\](http", "")
    assert "$" not in out.replace("\\$", "")


def test_a_fence_is_written_at_the_margin_and_always_closed() -> None:
    out = f.answer_markdown("- a\n  ```py {x}\n$x$\n  more", ())
    assert out == "- a\n\n\n```pyx\n$x$\n  more\n```\n\n"
    assert f.answer_markdown("```\na\n```\n$b$") == "\n\n```\na\n```\n\n\n\\$b\\$"


def test_unbalanced_backticks_take_linear_time() -> None:
    assert len(f.answer_markdown("`" * 3001 + "a" * 20_000 + "``")) > 20_000


def test_small_things() -> None:
    assert f.shortened("a b\n c") == "a b c"
    assert f.shortened("word " * 40, 20) == "word word word…"
    assert f.query_url("a b/c") == "/query?id=a%20b%2Fc"
    assert [f.csv_cell(x) for x in ("=1+1", "ok", -3, "@x")] == ["'=1+1", "ok", -3, "'@x"]
    assert f.plural(1, "query", "queries") == "1 query" and f.plural(1200, "query", "queries") == "1,200 queries"
    assert f.plain_markdown("a_b [x](y) $z$") == "a\\_b \\[x\\]\\(y\\) \\$z\\$"


def test_commands_in_texts_are_shown_as_code_and_stay_harmless() -> None:
    assert f.code_html("Run `docker ps` <by hand>") == "Run <code>docker ps</code> &lt;by hand&gt;"
    assert f.code_html("`<img src=x>` and a lone `") == "<code>&lt;img src=x&gt;</code> and a lone `"
