"""The pages of the door: where a browser shows a token or goes to its sign-in, and where it is refused. Plain HTML that needs
nothing else of this server."""

from __future__ import annotations

import html
from urllib.parse import quote

SIGN_IN = "/signin"
SIGN_IN_OIDC = "/signin/oidc"
SIGN_OUT = "/signout"
OIDC_SIGN_OUT = "/auth/logout"  # Streamlit's: it forgets the account, and tells the provider


def local(target: str) -> str:
    """A path on this server, never another site: browsers take a backslash for a slash and leave out tabs and line ends."""
    plain = target.isprintable() and "\\" not in target
    return target if plain and target.startswith("/") and not target.startswith("//") else "/"


def refusal_page(message: str, next_step: str) -> str:
    """For a browser whose user is known and may not do this."""
    said = f'<p role="alert">{html.escape(message)}.</p><p>{html.escape(next_step)}</p>'
    return _whole("Refused", f'{said}<p><a class="way" href="{SIGN_OUT}">Sign out</a></p>')


def page(following: str, problem: str | None, *, token: bool, oidc: bool) -> str:
    said = f'<p role="alert">{html.escape(problem)}</p>' if problem else ""
    action = html.escape(f"{SIGN_IN}?next={quote(following)}", quote=True)
    focus = "" if oidc else "autofocus"
    ways = [f'<p><a class="way" href="{SIGN_IN_OIDC}">Sign in with your account</a></p>' if oidc else ""]
    if token:
        ways.append(
            f'<form method="post" action="{action}"><label>Token of this server\n'
            f'<input name="token" type="password" autocomplete="current-password" {focus} required></label>'
            f"<button>Sign in</button></form>"
        )
    if not token and not oidc:
        ways.append("<p>People sign in at the proxy in front of this server. Come by its address.</p>")
    return _whole("Sign in", said + "".join(ways))


def _whole(title: str, body: str) -> str:
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>RAG Deck · {title}</title><link rel="icon" href="data:,"><style>
:root{{color-scheme:light dark;--line:light-dark(#c3c9d1,#4a535e);--accent:light-dark(#2f5577,#93bbe0)}}
body{{font:15px/1.5 system-ui,sans-serif;max-width:22rem;margin:18vh auto;padding:0 1rem;
background:light-dark(#fff,#14171b);color:light-dark(#1c2127,#e6e9ed)}}h1{{font-size:1.6rem;font-weight:600}}
input,button,.way{{font:inherit;width:100%;padding:.6rem;margin:.3rem 0;box-sizing:border-box;border:1px solid var(--line);
border-radius:6px;background:none;color:inherit}}
button{{background:light-dark(#2f5577,#4c7aa4);border-color:transparent;color:#fff;cursor:pointer}}
.way{{display:block;color:var(--accent);text-align:center;text-decoration:none}}
[role=alert]{{color:light-dark(#b42318,#f0837a)}}:focus-visible{{outline:2px solid var(--accent);outline-offset:2px}}
</style><h1>RAG Deck</h1>{body}</html>"""
