"""Geometry and escaping of the HTML figures, read back with a real HTML parser."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from bs4 import BeautifulSoup, Tag

from rag.types import Answer, Interval, Passage, Split, Stage
from ui import figures
from ui.style import SEVERITY_COLOURS, STAGE_COLOURS, stylesheet

EVIL = '"><script>alert(1)</script>'


def soup(html: str) -> BeautifulSoup:
    return BeautifulSoup(html, "html.parser")


def style(tag: Tag, name: str) -> float:
    found = re.search(rf"(?:^|;){name}:(?:min\()?([\d.]+)%", str(tag["style"]))
    assert found, tag["style"]
    return float(found.group(1))


def bars(html: str) -> list[Tag]:
    return list(soup(html).select(".rd-track .rd-bar"))


def interval(stage: str, start: float, seconds: float, **split: float) -> Interval:
    return Interval(stage, start, seconds, "a span", Split(**split))


def test_bars_lie_where_their_times_are() -> None:
    found = bars(
        figures.waterfall(figures.bars_of([interval("hyde", 0, 4, compute=4), interval("generate", 4, 6, compute=6)]), 10.0)
    )
    assert [(style(bar, "left"), style(bar, "width")) for bar in found] == [(0, 40), (40, 60)]


def test_the_parts_of_a_bar_fill_it() -> None:
    html = figures.waterfall(figures.bars_of([interval("embed", 0, 2, load=1, queue=0.5, network=0.25, compute=0.25)]), 2.0)
    parts = bars(html)[0].select("i")
    assert [str(part["class"][0]) for part in parts] == ["load", "queue", "network", "compute"]
    assert sum(style(part, "width") for part in parts) == pytest.approx(100)


def test_a_split_longer_than_its_stage_is_scaled_into_it() -> None:
    parts = figures.parts_of(Split(load=3, compute=3), 4)
    assert sum(value for _, value in parts) == pytest.approx(4)
    assert figures.parts_of(Split(compute=1), 0) == ()


def test_one_millisecond_beside_forty_seconds_stays_visible_and_inside() -> None:
    html = figures.waterfall(figures.bars_of([interval("generate", 0, 40, compute=40), interval("embed", 40, 0.001)]), 40.001)
    embed = bars(html)[0]
    assert style(embed, "left") < 100 and "calc(100% - 3px)" in str(embed["style"])
    assert "min-width: 3px" in stylesheet()
    assert "1.00 ms" in html


@pytest.mark.parametrize("total", [0.0, 1e-9])
def test_zero_lengths_do_not_divide(total: float) -> None:
    html = figures.waterfall(figures.bars_of([interval("cache", 0, 0)]), total)
    assert 'role="img"' in html and "nan" not in html and "inf" not in html.replace("info", "")


def test_a_bar_beyond_the_total_widens_the_axis() -> None:
    found = bars(figures.waterfall(figures.bars_of([interval("search", 1, 4)]), 2.0))
    assert style(found[0], "left") + style(found[0], "width") == pytest.approx(100)


def test_every_stage_has_a_row_in_order_and_says_why_it_did_not_run() -> None:
    stages = [Stage("cache", hit=False, reason="no semantic cache"), Stage("hyde", skipped="the question is a keyword")]
    page = soup(figures.waterfall((), 1.0, stages=stages))
    assert [row.text for row in page.select(".rd-name")] == ["cache", "hyde", "embed", "search", "rerank", "generate"]
    assert page.select_one('abbr[title="no semantic cache"]').text == "miss"  # type: ignore[union-attr]
    assert page.select_one('abbr[title="the question is a keyword"]').text == "–"  # type: ignore[union-attr]


def test_labels_are_escaped() -> None:
    html = figures.waterfall([figures.Bar("embed", 0, 1, EVIL)], 1.0, stages=[Stage("hyde", skipped=EVIL)])
    assert not soup(html).select("script")


def test_live_bars_follow_the_events() -> None:
    events = [
        {"type": "stage_started", "stage": "embed", "at": 0.1},
        {"type": "stage_finished", "stage": {"stage": "embed", "cold": True}, "at": 0.3},
        {"type": "stage_finished", "stage": {"stage": "hyde", "skipped": "x"}, "at": 0.3},
        {"type": "stage_started", "stage": "search", "at": 0.4},
    ]
    embed, search = figures.live_bars(events, 1.4)
    assert (embed.seconds, embed.cold, embed.running) == (pytest.approx(0.2), True, False)
    assert (search.seconds, search.running) == (pytest.approx(1.0), True)
    done = figures.live_bars([*events, {"type": "failed", "at": 1.5, "answer": {}}], 2.0)
    assert [bar.stage for bar in done] == ["embed"]


def passage(n: int, **ranks: int | None) -> Passage:
    return Passage(f"p{n}", "text", "s.md", f"Title {n}", kept=True, ranks=ranks, scores={"dense": 0.5})


def test_bump_chart_draws_one_line_a_passage_through_its_ranks() -> None:
    page = soup(
        figures.bump_chart(
            [passage(1, dense=3, sparse=1, fused=2, rerank=1), passage(2, dense=1, sparse=None, fused=1, rerank=2)]
        )
    )
    lines = page.select(".rd-line")
    assert len(lines) == 2
    assert [len(str(line["style"]).split("px")) - 1 for line in lines] == [6, 8]  # 3 and 4 points, there and back
    assert [head.text for head in page.select(".rd-bump-cols span")] == ["dense", "sparse", "fused", "reranked"]
    assert [name.text for name in page.select(".rd-bump-names span")] == ["Title 1", "Title 2"]


def test_bump_chart_of_one_route_or_nothing_is_empty() -> None:
    assert figures.bump_chart([]) == "" and figures.bump_chart([passage(1, dense=1)]) == ""


def test_ranks_get_lower_on_the_page_and_stay_on_it() -> None:
    scale = figures.RankScale(8, 40)
    tops = [scale.top(rank) for rank in range(1, 41)]
    assert tops == sorted(tops) and tops[0] > 0 and tops[-1] < scale.height
    assert min(b - a for a, b in pairwise(tops[:8])) >= 20  # names do not overlap
    assert 0 < figures.RankScale(1, 1).top(1) < figures.RankScale(1, 1).height


def test_bump_chart_escapes_and_takes_hebrew() -> None:
    one = passage(1, dense=1, fused=1)._replace(title=EVIL)
    two = passage(2, dense=2, fused=2)._replace(title="תכנון זיכרון")
    html = figures.bump_chart([one, two])
    assert not soup(html).select("script") and "תכנון זיכרון" in html and 'dir="auto"' in html


def test_rank_line_shows_missing_ranks_as_a_dash() -> None:
    line = figures.rank_line(passage(1, dense=3, sparse=None)._replace(scores={"dense": 0.71, "sparse": 12.3}))
    assert line == "dense 3 (0.710) · sparse – (12.3)"


def test_timing_table_adds_up_and_names_what_is_unknown() -> None:
    stages = (Stage("embed", 1.0, 2, cold=True, model=EVIL, split=Split(load=0.6, compute=0.4)), Stage("hyde", skipped="off"))
    html = figures.timing_table(Answer("1", "q", "2026-11-21T05:00:00Z", "answered", stages=stages, total_seconds=1.25))
    page = soup(html)
    assert not page.select("script")
    rows = [[cell.text for cell in row.select("td")] for row in page.select("tbody tr")]
    assert rows[0][1:6] == ["1.00 s", "80 %", "600 ms", "0 ms", "–"]
    assert rows[0][0].endswith("2 spans · cold") and rows[1][:2] == ["hydeoff", "–"] and rows[2][1:3] == ["250 ms", "20 %"]


def test_stage_and_severity_colours_are_all_different() -> None:
    both = [*STAGE_COLOURS.values(), *SEVERITY_COLOURS.values()]
    assert len({light for light, _ in both}) == len(both) and len({dark for _, dark in both}) == len(both)
