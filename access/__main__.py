"""`python -m access token create|list|revoke`, `access audit`. Exit codes: 0 ok, 1 failed, 2 wrong usage."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from access import audit
from access.scopes import ALL, MEANING, SCOPES, Identity
from access.tokens import Token, TokenStore
from collectors.audit import AuditLog
from rag.cli_run import run

DAY_SECONDS = 86_400.0


def main(arguments: Sequence[str] | None = None) -> int:
    return run(_parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m access", description="API tokens and the audit log of this data folder.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    common.add_argument("--verbose", action="store_true", help="log what happens to standard error")
    nouns = parser.add_subparsers(dest="noun", required=True)
    verbs = nouns.add_parser("token", help="tokens for programs").add_subparsers(dest="verb", required=True)
    create = verbs.add_parser("create", parents=[common], help="make one; it is shown once")
    create.add_argument("name", help="what it is for")
    meaning = "; ".join(f"{scope}: {MEANING[scope]}" for scope in SCOPES)
    create.add_argument("--scope", action="append", choices=SCOPES, dest="scopes", required=True, help=f"once or more; {meaning}")
    create.add_argument("--days", type=float, metavar="DAYS", help="days until it expires (default: never)")
    create.set_defaults(run=_create)
    verbs.add_parser("list", parents=[common], help="all of them, without their secrets").set_defaults(run=_list)
    revoke = verbs.add_parser("revoke", parents=[common], help="it counts for nothing from the next request on")
    revoke.add_argument("id", help="as the list shows it")
    revoke.set_defaults(run=_revoke)
    shown = nouns.add_parser("audit", parents=[common], help="who did what, the newest first")
    shown.add_argument("--text", default="", help="only lines that hold it")
    shown.add_argument("--limit", type=int, default=50, metavar="N", help="lines at most (default %(default)s)")
    shown.set_defaults(run=_audit)
    return parser


def _opened() -> tuple[TokenStore, AuditLog]:
    from access.wiring import token_store
    from settings import load

    settings = load()
    return token_store(settings), AuditLog(settings.data_dir / "audit.log")


def _me() -> Identity:
    return Identity(f"{getpass.getuser()} (command line)", "open", ALL)


def _create(given: argparse.Namespace) -> int:
    store, log = _opened()
    with audit.recorded(log, _me(), None, f"create token ({', '.join(given.scopes)})", given.name):
        expires = None if given.days is None else given.days * DAY_SECONDS
        secret, token = store.create(given.name, given.scopes, created_by=_me().name, expires_in_seconds=expires)
    if given.json:
        print(json.dumps({"token": secret, **_plain(token)}))
    else:
        print(secret)
        print(f"{token.name}: {', '.join(sorted(token.scopes))}. It is not shown again.", file=sys.stderr)
    return 0


def _list(given: argparse.Namespace) -> int:
    store, _ = _opened()
    tokens = store.all()
    if given.json:
        print(json.dumps({"tokens": [_plain(token) for token in tokens]}, ensure_ascii=False))
        return 0
    for token in tokens:
        used = _time(token.used_at_unix) or "never"
        print(
            f"{token.id}  {token.state(time.time()):8}  {', '.join(sorted(token.scopes)):20}  last used {used:20}  {token.name}"
        )
    if not tokens:
        print("no tokens; `python -m access token create NAME --scope read` makes one", file=sys.stderr)
    return 0


def _revoke(given: argparse.Namespace) -> int:
    store, log = _opened()
    with audit.recorded(log, _me(), None, "revoke token", given.id):
        token = store.revoke(given.id)
    print(json.dumps(_plain(token)) if given.json else f"{token.name} is revoked")
    return 0


def _audit(given: argparse.Namespace) -> int:
    _, log = _opened()
    actions = audit.found(log, audit.Filter(given.text), given.limit)
    if given.json:
        print(json.dumps({"actions": [asdict(action) for action in actions]}, ensure_ascii=False))
        return 0
    for action in actions:
        who = f"{action.who or '–'} from {action.address or '–'}"
        line = f"{action.at}  {action.outcome:8}  {who}: {action.what} {action.target or action.machine}"
        print("".join(character if character.isprintable() else "\ufffd" for character in line))
    return 0


def _plain(token: Token) -> dict[str, Any]:
    return {**asdict(token), "scopes": sorted(token.scopes), "state": token.state(time.time()), "prefix": token.prefix}


def _time(unix: float | None) -> str:
    return "" if unix is None else datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M UTC")


if __name__ == "__main__":
    sys.exit(main())
