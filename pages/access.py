"""Access: who you are here, the tokens of programs, and who did what."""

from __future__ import annotations

import streamlit as st

from access import audit, operations, wiring
from access.scopes import MEANING, SCOPES
from access.signin import SIGN_OUT
from access.tokens import TokenStore
from rag.errors import RagError
from ui import access_view, cards, viewer
from ui.cached import now, the_runtime, zone
from ui.format import code_html, escape, plain_markdown

MOST_LINES = 200
DAYS = {"30 days": 30, "90 days": 90, "1 year": 365, "never": None}
OUTCOMES = ("any", "done", "failed", "refused", "asked")

runtime = the_runtime()
me = viewer.of(runtime)
who = me.identify()


def problem(error: RagError, what: str) -> None:
    st.html(cards.note("critical", f"<strong>{what}: {escape(error.message)}</strong>", code_html(error.next_step)))


def tokens_card(store: TokenStore) -> None:
    with st.container(border=True, gap="small"):
        st.html('<p class="rd rd-title">API tokens</p>')
        if "token-said" in st.session_state:
            st.html(st.session_state.pop("token-said"))
        try:
            known = store.all()
        except RagError as error:
            problem(error, "The tokens cannot be read")
            return
        if known:
            st.html(access_view.tokens(known, now(), zone()))
        else:
            st.html(cards.empty("No program has a token yet.", "Make one for each, with no more than it needs."))
        make(store)
        active = {token.id: token for token in known if token.state(now().timestamp()) == "active"}
        if active:
            with st.popover("Revoke a token"):
                chosen = st.selectbox(
                    "Token", list(active), format_func=lambda key: f"{active[key].name} ({active[key].prefix}…)"
                )
                st.caption("It counts for nothing from the next request on. This cannot be undone.")
                if st.button("Revoke it", type="primary", key="really-revoke"):
                    revoke(store, chosen, active[chosen].name)


def make(store: TokenStore) -> None:
    with st.popover("Make a token"), st.form("make-token", border=False):
        name = st.text_input("What it is for", max_chars=100, placeholder="nightly evaluation")
        chosen = st.pills("It may", SCOPES, selection_mode="multi", default=["read"])
        st.caption(" · ".join(f"{scope}: {MEANING[scope]}" for scope in SCOPES))
        lasts = st.selectbox("It expires in", tuple(DAYS), index=1)
        sent = st.form_submit_button("Make it", type="primary")
    if not sent:
        return
    days = DAYS[lasts]
    try:
        by = operations.require(me, "operate", "create token", name)
        with audit.recorded(me.log, by, me.address, f"create token ({', '.join(chosen)})", name):
            expires = None if days is None else days * 86_400.0
            secret, token = store.create(name, list(chosen), created_by=by.name, expires_in_seconds=expires)
    except RagError as error:
        problem(error, "No token was made")
        return
    st.session_state["token-said"] = access_view.made(secret, token)
    st.rerun()


def revoke(store: TokenStore, token_id: str, name: str) -> None:
    try:
        by = operations.require(me, "operate", "revoke token", name)
        with audit.recorded(me.log, by, me.address, "revoke token", f"{name} ({token_id})"):
            store.revoke(token_id)
    except RagError as error:
        problem(error, "It was not revoked")
        return
    st.session_state["token-said"] = cards.note("ok", f"<strong>{escape(name)} is revoked.</strong>")
    st.rerun()


def audit_card() -> None:
    with st.container(border=True, gap="small"):
        row = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
        text = row.text_input("Contains", key="text", bind="query-params", width=220, help="In who, what, to what, or outcome.")
        outcome = row.selectbox("Outcome", OUTCOMES, key="outcome", bind="query-params", width=140)
        where = audit.Filter(text or "", None if outcome == "any" else outcome)
        try:
            found = audit.found(me.log, where, MOST_LINES)
        except RagError as error:
            problem(error, "Not shown")
            return
        row.download_button(
            "Download CSV",
            lambda: audit.to_csv(audit.found(me.log, where, audit.MOST)),
            "audit.csv",
            "text/csv",
            on_click="ignore",
            type="tertiary",
            help="All lines of the log's end that match, with all fields.",
        )
        st.html(f'<p class="rd rd-title">{access_view.audit_title(len(found), MOST_LINES)}</p>')
        if found:
            st.html(access_view.audit(found, now(), zone()))
        else:
            st.html(cards.empty("No line matches.", "What changes something is written here, with who asked for it."))


st.title("Access")
with st.container(border=True, gap="small"):
    st.html(access_view.me(who))
    if who.how in ("server token", "api token", "oidc"):
        st.html(f'<div class="rd"><a href="{SIGN_OUT}" target="_self">Sign out</a></div>')
for line in wiring.incomplete(runtime.settings):
    st.html(cards.note("warn", escape(line)))
if who.may("operate"):
    tokens_card(wiring.token_store(runtime.settings))
    audit_card()
else:
    st.html(cards.empty("Tokens and the audit log are for operators.", f"{plain_markdown(who.name)} lacks the scope “operate”."))
