"""The form for a model that is in no table: its config.json, sent or pasted. Keeps nothing: the model goes into the plan itself.

Sending a file needs the scope `operate` (it goes into the server's memory before a page sees it); pasting its text needs no
more than `read`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import streamlit as st

from access import uploads
from deploy.planner import request
from deploy.planner.brought import LONGEST_NAME, Brought, from_files
from deploy.planner.request import Request
from rag.errors import RagError
from ui.capacity_form import new_service

MOST_FILES = 3
MOST_BYTES = 500_000  # of a file; published configs have some thousand
NEW = "a new service"
_KINDS = {
    "": "as its config says",
    "llm": "a language model",
    "embedder": "an embedder",
    "reranker": "a reranker",
    "speech": "for speech",
}
_NAME_HELP = "As its server is to load it: the hub name, or the folder on that machine."
_KIND_HELP = "A config does not always tell a language model from an embedder made of one."
_FILES_HELP = "With it quantize_config.json or generation_config.json, where they lie beside it. The files are read and not kept."
_MAY_NOT = "Sending files is for those who may operate; paste the file's text instead."


def bring(asked: Request, may_send: bool) -> Request | None:
    """The fields. Returns the plan with the model once it is sent; None without. Raises RagError for files that are none, naming
    what is missing."""
    with st.form("bring", border=False):
        name, kind, target = _head(asked)
        files = _files(may_send)
        if not st.form_submit_button("Use this model", key="bring-send"):
            return None
    return with_model(asked, from_files(name, checked(files), kind), target)


def _head(asked: Request) -> tuple[str, str, str]:
    """(name, kind, the service it is for)"""
    name, kind, goal = st.columns([4, 2, 2], vertical_alignment="bottom")
    called = name.text_input(
        "Its name", max_chars=LONGEST_NAME, key="bring-name", placeholder="owner/model or /models/folder", help=_NAME_HELP
    )
    what = kind.selectbox("It is", tuple(_KINDS), format_func=_KINDS.__getitem__, key="bring-kind", help=_KIND_HELP)
    return called, what, goal.selectbox("For", [*(each.name for each in asked.services), NEW], key="bring-for")


def _files(may_send: bool) -> list[tuple[str, bytes]]:
    sent = st.file_uploader(
        "config.json",
        ["json"],
        accept_multiple_files=True,
        key="bring-files",
        disabled=not may_send,
        max_upload_size=1,
        help=_FILES_HELP if may_send else _MAY_NOT,
    )
    pasted = st.text_area("or its text", key="bring-text", height=120, placeholder='{"model_type": …')
    found = [(each.name, each.getvalue()) for each in sent or ()]
    return [*found, ("pasted.json", pasted.encode())] if pasted.strip() else found


def checked(files: Sequence[tuple[str, bytes]]) -> Sequence[tuple[str, bytes]]:
    """The files, where they may be read. Raises RagError (`bad_input`) for none, too many, too large, of another kind."""
    if not files:
        raise _bad("no config.json is given", "Choose the file, or paste its text.")
    for name, data in files:
        if len(data) > MOST_BYTES:
            raise _bad(f"{name[:80]} has {len(data):,} bytes", f"A config.json has at most {MOST_BYTES:,}.")
    uploads.check(files, uploads.Bounds(MOST_FILES, MOST_BYTES, MOST_FILES * MOST_BYTES), (".json",))
    return files


def _bad(what: str, next_step: str) -> RagError:
    return RagError(what, kind="bad_input", next_step=next_step)


def with_model(asked: Request, model: Brought, target: str) -> Request:
    """The plan with a model brought along for one of its services, or for a new one; models that no service has are dropped."""
    services = [
        replace(each, model=model.name, precision="", weights="") if each.name == target else each for each in asked.services
    ]
    if target not in {each.name for each in asked.services}:
        services.append(replace(new_service(services), model=model.name))
    used = {each.model for each in services}
    others = (each for each in asked.models if each.name in used and each.name != model.name)
    return request.from_dict(request.to_dict(replace(asked, services=tuple(services), models=(*others, model))))
