"""The one style sheet of our own HTML and the colours of stages and severities. Knows nothing of data.

`light-dark()` follows Streamlit's theme, because Streamlit sets `color-scheme` on the app: a switch of theme needs no rerun.
"""

from __future__ import annotations

from collections.abc import Mapping

# (light, dark). Lightness alternates along the order, so that neighbours differ without hue as well.
STAGE_COLOURS: Mapping[str, tuple[str, str]] = {
    "cache": ("#7d8590", "#a0a7b0"),
    "hyde": ("#9160d8", "#b794f4"),
    "embed": ("#1d5fb4", "#4c93ee"),
    "search": ("#2aa79b", "#4fd1c5"),
    "rerank": ("#c47f00", "#e5a93b"),
    "generate": ("#4a8a22", "#86c75c"),
}
SEVERITY_COLOURS: Mapping[str, tuple[str, str]] = {
    "ok": ("#0b7a53", "#3fbf8f"),
    "warn": ("#b4460c", "#ff9a5c"),
    "critical": ("#c01f3f", "#ff6b81"),
    "unknown": ("#868d96", "#8d949d"),
}

_RULES = """
.rd, .rd-answer { font-variant-numeric: tabular-nums; }
.rd { font-size: .875rem; line-height: 1.45; color: inherit; --line: color-mix(in srgb, currentColor 14%, transparent);
  --soft: color-mix(in srgb, currentColor 62%, transparent); --faint: color-mix(in srgb, currentColor 6%, transparent); }
.rd a { color: inherit; text-decoration: underline; text-decoration-color: var(--line); text-underline-offset: 2px; }
.rd a:hover { text-decoration-color: currentColor; }
.rd-soft { color: var(--soft); } .rd-nowrap { white-space: nowrap; } .rd-mono { font-family: "Source Code Pro", monospace; }
.rd-unknown { color: var(--soft); cursor: help; } .rd time, .rd abbr { text-decoration: none; cursor: help; }
.rd-swatch { display: inline-block; width: .62em; height: .62em; border-radius: 2px; background: var(--c); margin-right: .4em; }
.rd-title { font-weight: 600; font-size: .95rem; margin: 0; }

.rd-head { display: flex; flex-wrap: wrap; align-items: baseline; gap: .15rem .9rem; }
.rd-head .rd-total { font-size: 1.6rem; font-weight: 600; letter-spacing: -.01em; }
.rd-head .rd-part { white-space: nowrap; }
.rd-state { font-weight: 600; } .rd-sev { color: var(--c); }

.rd-wf { display: grid; grid-template-columns: max-content minmax(0, 1fr) max-content; column-gap: .75rem; row-gap: 3px; align-items: center; }
.rd-wf .rd-name { white-space: nowrap; } .rd-wf .rd-time { text-align: right; white-space: nowrap; }
.rd-wf .rd-idle { color: var(--soft); }
.rd-track { position: relative; height: 18px; background-image: linear-gradient(to right, var(--line) 1px, transparent 1px);
  background-size: 25% 100%; border-right: 1px solid var(--line); }
.rd-bar { position: absolute; top: 2px; bottom: 2px; display: flex; min-width: 3px; border-radius: 2px; overflow: hidden;
  background: var(--c); cursor: help; }
.rd-bar i { display: block; flex: 0 0 auto; height: 100%; background: var(--c); }
.rd-bar i.load { background: repeating-linear-gradient(135deg, var(--c) 0 4px, color-mix(in srgb, var(--c) 35%, transparent) 4px 8px); }
.rd-bar i.queue { background: color-mix(in srgb, var(--c) 30%, transparent); }
.rd-bar i.network { background: radial-gradient(circle, var(--c) 1.2px, color-mix(in srgb, var(--c) 18%, transparent) 1.6px) 0 0 / 5px 5px; }
.rd-bar i.tokenize { background: color-mix(in srgb, var(--c) 78%, black); }
.rd-bar i.other { background: transparent; box-shadow: inset 0 0 0 1px var(--c); }
.rd-bar:has(i) { background: color-mix(in srgb, var(--c) 10%, transparent); }
.rd-bar.running { animation: rd-run 1.2s ease-in-out infinite alternate; }
@keyframes rd-run { from { opacity: 1; } to { opacity: .55; } }
@media (prefers-reduced-motion: reduce) { .rd-bar.running { animation: none; } }
.rd-axis { position: relative; height: 1.2em; font-size: .75rem; color: var(--soft); }
.rd-axis span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.rd-axis span:first-child { transform: none; } .rd-axis span:last-child { transform: translateX(-100%); }
.rd-mark { position: absolute; top: 0; bottom: 0; width: 0; border-left: 1.5px dashed currentColor; opacity: .7; cursor: help; }
.rd-legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .75rem; color: var(--soft); margin-top: .5rem; }
.rd-legend .rd-bar { position: static; display: inline-flex; width: 18px; height: .7em; min-width: 0; margin-right: .4em; vertical-align: baseline; }
.rd-legend .rd-bar i { width: 100%; } .rd-legend { --c: var(--soft); }

.rd-bump { display: grid; grid-template-columns: minmax(7rem, 1fr) minmax(0, 38%); column-gap: .6rem; }
.rd-bump-cols { position: relative; height: 1.3em; font-size: .75rem; color: var(--soft); }
.rd-bump-cols span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.rd-bump-plot, .rd-bump-names { position: relative; }
.rd-bump-plot b { position: absolute; top: 0; bottom: 0; width: 1px; background: var(--line); }
.rd-line { position: absolute; inset: 0; background: var(--c); cursor: help; }
.rd-line.gap { opacity: .35; } .rd-line.dropped { opacity: .28; }
.rd-dot { position: absolute; width: 15px; height: 15px; margin: -7.5px; border-radius: 50%; background: var(--c); color: white; cursor: help;
  font-size: 9px; line-height: 15px; text-align: center; font-weight: 600; font-style: normal; }
.rd-dot.small { width: 5px; height: 5px; margin: -2.5px; opacity: .4; }
.rd-bump-names span { position: absolute; left: 0; right: 0; transform: translateY(-50%); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; font-size: .78rem; }

.rd-passages { display: flex; flex-direction: column; gap: .4rem; }
.rd-passage { border: 1px solid var(--line); border-radius: 6px; padding: .45rem .7rem; scroll-margin-top: 5rem; }
.rd-passage:target { border-color: currentColor; box-shadow: 0 0 0 1px currentColor; }
.rd-passage summary { cursor: pointer; list-style: none; } .rd-passage summary::-webkit-details-marker { display: none; }
.rd-passage .rd-phead { display: flex; gap: .5rem; align-items: baseline; }
.rd-passage .rd-number { font-weight: 600; min-width: 1.4em; } .rd-passage .rd-ptitle { font-weight: 600; flex: 1 1 auto; min-width: 0; overflow-wrap: anywhere; }
.rd-passage .rd-ranks { font-size: .75rem; color: var(--soft); display: flex; flex-wrap: wrap; gap: 0 .8rem; }
.rd-excerpt { display: -webkit-box; -webkit-line-clamp: 2; -webkit-box-orient: vertical; overflow: hidden; color: var(--soft); margin-top: .15rem; unicode-bidi: plaintext; text-align: start; }
.rd-passage[open] .rd-excerpt { display: none; }
.rd-ptext { white-space: pre-wrap; overflow-wrap: anywhere; margin: .35rem 0 .1rem; unicode-bidi: plaintext; text-align: start; }
.rd-plain { unicode-bidi: plaintext; text-align: start; overflow-wrap: anywhere; }

.rd-scroll { overflow-x: auto; }
.rd-table { border-collapse: collapse; width: 100%; font-size: .8125rem; border: 0; margin: 0; }
.rd-table th { text-align: left; font-weight: 500; color: var(--soft); border: 0; border-bottom: 1px solid var(--line); padding: .25rem .6rem .25rem 0; white-space: nowrap; }
.rd-table td { border: 0; border-bottom: 1px solid var(--line); padding: .28rem .6rem .28rem 0; vertical-align: top; }
.rd-table tr:last-child td { border-bottom: 0; } .rd-table .n { text-align: right; white-space: nowrap; }
.rd-table td.wrap { overflow-wrap: anywhere; min-width: 9rem; }

.rd-note { border-left: 3px solid var(--c); padding: .15rem 0 .15rem .8rem; }
.rd-note p { margin: 0; } .rd-note p + p { margin-top: .15rem; }
.rd-dotmark { display: inline-block; width: .55em; height: .55em; border-radius: 50%; background: var(--c); margin-right: .45em; }
.rd-dotmark.hollow { background: transparent; box-shadow: inset 0 0 0 1.5px var(--c); }
.rd-meter { height: 6px; border-radius: 3px; background: var(--line); overflow: hidden; margin: .35rem 0; }
.rd-meter i { display: block; height: 100%; background: var(--c, currentColor); }

[class*="st-key-answer"] :is(p, li, h1, h2, h3, h4, td, th, blockquote) { unicode-bidi: plaintext; text-align: start; }
[class*="st-key-answer"] :is(h1, h2, h3, h4) { font-size: 1rem; padding: .4rem 0 .1rem; }
[class*="st-key-answer"] a[href^="#passage-"] { text-decoration: none; font-size: .75em; font-weight: 600; vertical-align: .2em; padding: 0 .2em; }
.st-key-question textarea { unicode-bidi: plaintext; text-align: start; }
@media (max-width: 640px) {
  .rd-wf { column-gap: .4rem; font-size: .78rem; } .rd-head .rd-total { font-size: 1.35rem; }
  .rd-wide { display: none; }
}
"""


def _variables() -> str:
    colours = {**STAGE_COLOURS, **SEVERITY_COLOURS}
    pairs = (f"--rd-{name}: light-dark({light}, {dark});" for name, (light, dark) in colours.items())
    return ":root { " + " ".join(pairs) + " }"


def stylesheet() -> str:
    """The `<style>` element for `st.html`, to be sent once a run."""
    return f"<style>{_variables()}{_RULES}</style>"


def colour(name: str) -> str:
    """An inline declaration that gives an element the colour of a stage or severity; unknown names are grey."""
    known = name if name in STAGE_COLOURS or name in SEVERITY_COLOURS else "unknown"
    return f"--c:var(--rd-{known})"
