"""`python -m rag move | backup | restore | reembed`: care of the store from the command line, with progress on standard error."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Generator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rag.errors import RagError

R = TypeVar("R")
PARTS = ("collections", "databases", "settings", "uploads")


def add_move(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", required=True, metavar="URI", help="the Milvus server, such as http://10.0.0.5:19530")
    parser.add_argument("--token-env", metavar="NAME", help="environment variable that holds its token (user:password)")
    parser.add_argument("--collection", action="append", default=[], metavar="NAME", help="only this one; may be given again")
    parser.set_defaults(run=move)


def add_backup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", type=Path, help="to write (default: ragdeck-DATE.zip here)")
    _choice(parser, "left out: uploads unless --with uploads")
    parser.add_argument(
        "--with", dest="more", action="append", default=[], choices=["uploads"], help="the uploaded documents too"
    )
    parser.set_defaults(run=backup)


def add_restore(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path)
    _choice(parser, "not restored")
    parser.add_argument("--force", action="store_true", help="replace what is there (files are kept in replaced-DATE)")
    parser.set_defaults(run=restore)


def add_reembed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from", dest="source", metavar="COLLECTION", help="whose texts (default: the only one)")
    parser.add_argument("--embedder", metavar="MODEL", help="embed by another model than models.embedder")
    parser.add_argument("--collection", help="base name of the collection to fill (default: milvus.collection)")
    parser.add_argument("--drop-old", action="store_true", help="delete the source once the new collection is in use")
    parser.set_defaults(run=reembed)


def _choice(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--collection", action="append", default=[], metavar="NAME", help="only this one; may be given again")
    parser.add_argument("--without", action="append", default=[], choices=PARTS, help=what)


def move(given: argparse.Namespace) -> int:
    """Carry the collections over, and print the settings that use them there. Raises RagError."""
    from library import open_store
    from rag.store import Store
    from rag.store_care.move import move as moving
    from settings import load

    settings = load()
    token = _token(given.token_env)
    source = open_store(settings, None)
    target = Store(
        uri=_server(given.to, settings.milvus.uri),
        data_dir=settings.data_dir,
        collection=settings.milvus.collection,
        token=token,
        timeout=settings.milvus.timeout_seconds,
    )
    try:
        moved = _follow(moving(source, target, given.collection), given.json)
    finally:
        target.close()
        source.close()
    change = {"MILVUS_URI": given.to, **({"MILVUS_TOKEN": f"the value of {given.token_env}"} if token else {})}
    if given.json:
        print(json.dumps({"collections": [item.to_json() for item in moved], "settings": change}, ensure_ascii=False))
        return 0
    for item in moved:
        print(
            f"{item.name}: {item.rows:,} rows there, {item.carried:,} carried now; {item.rows_compared} rows with their vectors "
            f"and {item.searches_compared} searches compared"
        )
    print(f"{len(moved)} collections are at {given.to}; the original is as it was. To use them, set and start again:")
    print("\n".join(f"  {name}={value}" for name, value in change.items()))
    return 0


def _token(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise RagError(
            f"the environment variable {variable} is not set",
            kind="bad_input",
            next_step="Put the token (user:password) into it; it is not taken from the command line, which others can read.",
        )
    return os.environ[variable]


def _server(uri: str, current: str | None) -> str:
    try:
        parts = urlsplit(uri)
        known = parts.scheme in ("http", "https", "tcp") and bool(parts.hostname)
    except ValueError:
        known = False
    if not known:
        raise RagError(f"{uri!r} is no address of a server", kind="bad_input", next_step="Write it as http://HOST:19530.")
    if parts.password:
        raise RagError("the address holds a password", kind="bad_input", next_step="Name a variable with it: --token-env NAME.")
    if current and current.rstrip("/") == uri.rstrip("/"):
        raise RagError("the collections are at this address already", kind="bad_input", next_step="Name another server.")
    return uri


def backup(given: argparse.Namespace) -> int:
    """Write one file. Raises RagError."""
    from library import open_store
    from rag.store_care.backup import backup as saving
    from settings import VERSION, load

    settings = load()
    path = (given.file or Path(f"ragdeck-{datetime.now():%Y%m%d-%H%M%S}.zip")).resolve()
    store = None if "collections" in given.without else open_store(settings, None)
    parts = [part for part in ("databases", "settings", *given.more) if part not in given.without]
    work = saving(path, store=store, data_dir=settings.data_dir, names=given.collection, parts=parts, version=VERSION)
    try:
        done = _follow(work, given.json)
    finally:
        if store is not None:
            store.close()
    if given.json:
        print(json.dumps(done.to_json(), ensure_ascii=False))
    else:
        print(f"{done.path}: {done.size_bytes / 2**20:,.1f} MiB, {_listed(done.collections, done.files)}")
        print("It holds documents, questions and answers in plain form, and no passwords or keys: those are in the environment.")
    return 0


def restore(given: argparse.Namespace) -> int:
    """Put a backup back. Raises RagError with nothing changed."""
    from library import open_store
    from rag.store_care.restore import restore as putting_back
    from settings import load

    settings = load()
    store = None if "collections" in given.without else open_store(settings, None)
    parts = [part for part in ("databases", "settings", "uploads") if part not in given.without]
    work = putting_back(
        given.file, store=store, data_dir=settings.data_dir, names=given.collection, parts=parts, force=given.force
    )
    try:
        done = _follow(work, given.json)
    finally:
        if store is not None:
            store.close()
    if given.json:
        print(json.dumps(done.to_json(), ensure_ascii=False))
    else:
        print(f"restored {_listed(done.collections, done.files)}")
        if done.replaced:
            print(f"what was there before is in {done.replaced}")
    return 0


def reembed(given: argparse.Namespace) -> int:
    """Fill a new collection and put it into use. Raises RagError."""
    import models
    from gpu_server.model_pool import ModelPool
    from library import open_store
    from rag.store_care.reembed import reembed as filling
    from rag.store_care.reembed import sources
    from settings import load

    settings = load()
    if given.embedder:
        settings = settings.model_copy(update={"models": settings.models.model_copy(update={"embedder": given.embedder})})
    built = models.build(settings, ModelPool())
    store = open_store(settings, None)
    try:
        source = given.source or _only(sources(store, built.embedder, given.collection))
        work = filling(store, built.embedder, source, base=given.collection, drop_old=given.drop_old)
        done = _follow(work, given.json)
    finally:
        store.close()
        built.close()
        built.pool.stop()
    if given.json:
        print(json.dumps(done.to_json(), ensure_ascii=False))
        return 0
    print(f"{done.collection} is in use with {done.rows:,} passages: {done.embedded:,} embedded now, {done.copied:,} copied")
    if not done.dropped and done.source != done.collection:
        print(f"{done.source} is kept; drop it on the page Knowledge, or with --drop-old")
    if given.embedder:
        print(f"To use it, set and start again:\n  EMBEDDING_MODEL={given.embedder}")
    return 0


def _only(found: list[str]) -> str:
    if len(found) == 1:
        return found[0]
    raise RagError(
        f"there are {len(found)} collections with passages to take the texts from",
        kind="bad_input" if found else "not_found",
        next_step=f"Name one with --from: {', '.join(found)}."
        if found
        else "Ingest documents instead: python -m rag ingest PATH",
    )


def _listed(collections: dict[str, int], files: tuple[str, ...]) -> str:
    rows = ", ".join(f"{name} ({count:,} rows)" for name, count in collections.items())
    return f"collections: {rows or 'none'}; files: {', '.join(files) or 'none'}"


def _follow(work: Generator[dict[str, Any], None, R], quiet: bool) -> R:
    """Drive the work to its end and show how far it is."""
    shown = False
    while True:
        try:
            event = next(work)
        except StopIteration as end:
            if shown:
                print(file=sys.stderr)
            result: R = end.value
            return result
        if not quiet:
            shown = True
            left = f", {event['seconds_left']:.0f} s left" if event["seconds_left"] is not None else ""
            print(
                f"\r{event['doing']}: {event['done']:,} of {event['total']:,}{left}{' ' * 12}",
                end="",
                file=sys.stderr,
                flush=True,
            )
