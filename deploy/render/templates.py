"""Texts of deploy/templates with @NAMES@ to fill: $, {} and % all mean something in shell, nginx and Docker files."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "templates"
_MARK = re.compile(r"@([A-Z_]+)@")


@cache
def template(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def filled(name: str, /, **values: str) -> str:
    """A template with every mark filled. Raises KeyError for a mark without a value, ValueError for a value without a mark."""
    text = template(name)
    unused = values.keys() - {mark.lower() for mark in _MARK.findall(text)}
    if unused:
        raise ValueError(f"{name} has no mark for {sorted(unused)}")
    return _MARK.sub(lambda mark: values[mark[1].lower()], text)
