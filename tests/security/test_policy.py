"""The content policy in Chromium, and that nothing of ours refers to a foreign host."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Browser

from latency.reports.reports import query_report
from latency.types import Case
from rag.trace_store import TraceStore
from tests.security.looking import shows, signed_in, watched
from tests.security.payloads import FOREIGN
from tests.security.world import ROOT, World

TRY = f"""async wanted => {{
  const blocked = [];
  addEventListener('securitypolicyviolation', event => blocked.push(event.effectiveDirective));
  const add = (tag, values) => document.body.append(Object.assign(document.createElement(tag), values));
  add('img', {{src: 'http://{FOREIGN}/1'}});
  add('script', {{src: 'http://{FOREIGN}/2'}});
  add('link', {{rel: 'stylesheet', href: 'http://{FOREIGN}/3'}});
  add('iframe', {{src: 'http://{FOREIGN}/4'}});
  add('object', {{data: 'http://{FOREIGN}/5'}});
  add('video', {{src: 'http://{FOREIGN}/6'}});
  const font = new FontFace('x', 'url(http://{FOREIGN}/7)');
  document.fonts.add(font);
  await Promise.allSettled([font.load(), fetch('http://{FOREIGN}/8'), fetch('http://127.0.0.1:1/9')]);
  try {{ new WebSocket('ws://{FOREIGN}/10') }} catch (error) {{ blocked.push('connect-src') }}
  navigator.sendBeacon('http://{FOREIGN}/11');
  const form = Object.assign(document.createElement('form'), {{action: 'http://{FOREIGN}/12', method: 'post'}});
  document.body.append(form);
  form.submit();
  const end = Date.now() + 60000;
  while (!wanted.every(name => blocked.includes(name)) && Date.now() < end) await new Promise(done => setTimeout(done, 50));
  return [...new Set(blocked)].sort();
}}"""
WANTED = {
    "img-src",
    "script-src-elem",
    "style-src-elem",
    "frame-src",
    "object-src",
    "media-src",
    "font-src",
    "connect-src",
    "form-action",
}
# What a browser loads by itself: sources in markup, style sheets, modules.
LOADS = re.compile(
    r"""(?:src|href|action|poster|data|srcset)\s*=\s*\\?["']https?://[^"']+|url\(\s*["']?https?://|@import\s+["']?https?://
    |import\s*\(?\s*["']https?://|fetch\(\s*["']https?://""",
    re.VERBOSE,
)
SHOWN_TO_BROWSERS = ("ui", "pages", "guard.py", "gpu_server/docs.html", "latency/reports", ".streamlit", "app.py", "access")


def test_the_policy_stops_every_way_out(world: World, browser: Browser) -> None:
    context = signed_in(browser, world.url, world.token)
    with watched(context, world.url) as seen:
        seen.visit("/models")
        blocked = set(seen.page.evaluate(TRY, sorted(WANTED)))
        assert blocked >= WANTED, WANTED - blocked
    context.close()


def test_every_answer_has_the_policy(world: World) -> None:
    for path in ("/", "/api/health", "/api/v1/queries", "/metrics", "/_stcore/health", "/nothing", "/signin"):
        policy = world.call("GET", path).headers["content-security-policy"]
        assert "default-src 'self'" in policy and "object-src 'none'" in policy and "frame-ancestors" in policy
        assert not re.search(r"https?:|\*", policy), policy


def test_no_page_of_ours_refers_to_a_foreign_host() -> None:
    found = []
    for name in SHOWN_TO_BROWSERS:
        place = ROOT / name
        for path in [place] if place.is_file() else sorted(place.rglob("*")):
            if path.suffix in (".py", ".html", ".css", ".js", ".svg", ".toml") and path.is_file():
                found += [f"{path}: {match.group()}" for match in LOADS.finditer(path.read_text())]
    assert found == []


def test_the_search_for_references_finds_them() -> None:
    for text in (
        '<img src="http://x/y">',
        "<a href='https://x'>",
        "url(https://x/f.woff)",
        '@import "http://x"',
        'fetch("https://x")',
    ):
        assert LOADS.search(text), text


def test_a_report_opened_from_a_disk_loads_nothing(world: World, browser: Browser) -> None:
    """A report is sent on: there it has no policy of ours."""
    key = world.call("GET", "/api/v1/queries").json()["queries"][0]["id"]
    traces = TraceStore(world.data / "traces.db")
    answer = traces.get(key)
    traces.close()
    assert answer is not None
    context = browser.new_context()
    with watched(context, world.url) as seen:
        seen.page.set_content(query_report(Case(answer), ()).html())
        assert seen.harm() == []
        assert shows(seen.page.inner_text("body"))
    context.close()


def test_the_projects_own_pictures_hold_no_script() -> None:
    for path in [*Path(ROOT / "ui").glob("*.svg"), *Path(ROOT / "docs").rglob("*.svg")]:
        text = path.read_text().lower()
        assert "<script" not in text and "onload" not in text and "<foreignobject" not in text, path
