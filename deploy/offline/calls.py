"""Calls in a program's source that fetch from the internet by themselves, found in its syntax tree.

Of packages whose downloads HF_HUB_OFFLINE does not forbid, and of Streamlit, where the browser of whoever looks fetches. Looks
at what is written literally; a call that is put together at run time is what the run without network is for.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from deploy.offline import page

# Call -> what it fetches.
DOWNLOADS: Mapping[str, str] = {
    "tiktoken.get_encoding": "an encoding, unless TIKTOKEN_CACHE_DIR holds it",
    "tiktoken.encoding_for_model": "an encoding, unless TIKTOKEN_CACHE_DIR holds it",
    "nltk.download": "a data set",
    "torch.hub.load": "a repository with its code",
    "torch.hub.load_state_dict_from_url": "weights",
    "torch.hub.download_url_to_file": "a file",
    "whisper.load_model": "weights, unless they are in its cache",
    "spacy.cli.download": "a model",
    "easyocr.Reader": "weights, unless download_enabled is False",
}
MAPS = frozenset({"streamlit.map", "streamlit.pydeck_chart"})  # the browser loads tiles of a public map service
SHOWN = frozenset(
    {"image", "video", "audio", "logo", "iframe", "set_page_config", "chat_message"}
)  # of Streamlit: by the browser
REMOTE = re.compile(page.REMOTE)


class Call(NamedTuple):
    """`code` is a finding's."""

    line: int
    code: str
    what: str


def in_source(text: str) -> Iterator[Call]:
    """Nothing for what is no Python: such a file does not run either."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    names = _imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = _dotted(node.func, names)
            yield from (Call(node.lineno, code, what) for code, what in _of_call(node, called))


def _of_call(node: ast.Call, called: str) -> Iterator[tuple[str, str]]:
    if called in DOWNLOADS:
        yield "download_call", f"{called} downloads {DOWNLOADS[called]}"
    if called in MAPS:
        yield "remote_asset", f"{called} loads its tiles from a public map service"
    given = [*node.args, *(each.value for each in node.keywords)]
    if called.startswith("streamlit.") and called.rpartition(".")[2] in SHOWN:
        yield from (("remote_asset", url) for url in map(_remote, given) if url)
    for each in node.keywords:
        if each.arg == "include_plotlyjs" and isinstance(each.value, ast.Constant) and each.value.value == "cdn":
            yield "remote_asset", f"{called} with include_plotlyjs='cdn' loads Plotly from another host"


def _remote(node: ast.expr) -> str | None:
    text = node.value if isinstance(node, ast.Constant) else None
    return text if isinstance(text, str) and REMOTE.fullmatch(text) else None


def _imported(tree: ast.AST) -> dict[str, str]:
    """Name in this file -> what it stands for."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {each.asname: each.name for each in node.names if each.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    return names


def _dotted(node: ast.expr, names: Mapping[str, str]) -> str:
    """Such as `torch.hub.load`; "" for what is no name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value, names)
        return f"{before}.{node.attr}" if before else ""
    return ""
