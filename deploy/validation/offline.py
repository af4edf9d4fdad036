"""Whether everything works without internet: models that are all here (R4's second issue), and the variables that forbid calls.

Looks at folders and the hub cache only; nothing is downloaded and no host is asked. That nothing *tries* to connect is proven by
`python -m deploy offline-check`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from deploy.offline import proof
from deploy.offline.hosts import host_of, is_outside
from deploy.validation.subject import LocalModel
from deploy.validation.types import Check, Item, Verdict, failed, passed, skipped, warning
from deploy.validation.world import World
from gpu_server import folders, hub, makers, starter
from gpu_server.errors import ModelError

FAULTS = (ModelError, OSError)
VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
CHECK_OF = {"embedder": folders.check_embedder, "reranker": folders.check_reranker}


def model_folder(role: str, name: str) -> Path | None:
    """Where the model's files are on this machine; None where the hub cache has not got it, or a blend has no weights. A folder
    that is there may be incomplete. Raises ModelError for a name that can be none."""
    if name == makers.STARTER:
        return starter.weights_folder() if role == "embedder" else None
    reason = hub.bad_name(name)
    if reason:
        raise ModelError(reason, next_step="Name a model folder, or a model as the hub writes it: BAAI/bge-m3.")
    folder = Path(name).expanduser()
    return folder.resolve() if folder.is_dir() else _cached(name)


def _cached(name: str) -> Path | None:
    """The newest snapshot in the hub cache, complete or not, as the hub lays it out: `models--owner--name/snapshots/REVISION`."""
    from huggingface_hub import constants

    snapshots = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots"
    try:
        found = [each for each in snapshots.iterdir() if each.is_dir()]
    except OSError:
        return None
    main = snapshots.parent / "refs" / "main"
    revision = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    return next(
        (each for each in found if each.name == revision), max(found, key=lambda each: each.stat().st_mtime, default=None)
    )


def problem_with(model: LocalModel, folder: Path) -> ModelError | None:
    """What is wrong with a model's folder: shards, tokenizer, heads."""
    try:
        if model.name == makers.STARTER:
            return None
        if model.role == "llm":
            folders.read_config(folder / "config.json")
            folders.check_weights(folder)
            folders.check_tokenizer(folder)
        else:
            CHECK_OF[model.role](folder, model.name)
    except ModelError as problem:
        return problem
    return None


def complete_models(world: World) -> Verdict:
    """R4-2: every model of this process is on this machine, all of it."""
    if not world.subject.local_models:
        return Verdict(reason="no model runs in this process; validate on the machine of each server too")
    return Verdict(tuple(_complete(model, _is_offline(world)) for model in world.subject.local_models))


def _complete(model: LocalModel, offline: bool) -> Item:
    name = f"{model.role} {model.name}"
    copy = f"With internet: `hf download {model.name}`; then copy the hub cache (HF_HOME), or name a folder with the files."
    try:
        folder = model_folder(model.role, model.name)
    except FAULTS as problem:
        return failed(
            name, str(problem), "The name is neither a folder nor a name on the hub.", getattr(problem, "next_step", copy)
        )
    if folder is None:
        if model.name == makers.STARTER:
            return passed(name, "arithmetic over the routes' scores: it has no weights")
        cause = "The model is not in the hub cache: its server or this program will try to download it at the start."
        return (failed if offline else warning)(name, "not on this machine", cause, copy)
    fault = problem_with(model, folder)
    if fault is not None:
        cause = f"The download or the copy broke off, and loading will try to download the rest: {fault.message}."
        return failed(name, f"incomplete: {folder.name}", cause, copy)
    return passed(name, "complete: configuration, weights and tokenizer are there")


def _is_offline(world: World) -> bool:
    return world.subject.offline.get("HF_HUB_OFFLINE", False)


def variables(world: World) -> Verdict:
    """The three variables are set, and no address of the settings is on the public internet."""
    unset = [name for name in VARIABLES if not world.subject.offline.get(name)]
    items = []
    if unset:
        cause = "Libraries ask the hub for newer files at each start, and wait for the answer where there is no network."
        cure = f"Set {', '.join(f'{name}=1' for name in unset)} in the environment or .env (section [offline])."
        items.append(warning("variables", f"not set: {', '.join(unset)}", cause, cure))
    else:
        items.append(passed("variables", f"{', '.join(VARIABLES)} are set"))
    items += [_address(name, url) for name, url in world.subject.addresses.items()]
    return Verdict(tuple(items))


def _address(name: str, url: str) -> Item:
    host = host_of(url)
    if host is None:
        return skipped(name, "the address cannot be read")
    if not is_outside(host):
        return passed(name, f"{host} is inside")
    cause = "The setting names a host on the public internet, which an air-gapped network has not."
    return warning(name, host, cause, f"Serve it inside and change {name}.")


def nothing_calls_out(world: World) -> Verdict:
    """O-2: what the last `offline-check` of this data folder saw; it runs the program without a network, which takes a minute."""
    found = proof.load(world.subject.data_dir)
    if found is None:
        return Verdict(reason="`python -m deploy offline-check` has not run with this data folder")
    at = f"{datetime.fromtimestamp(found.at_unix, UTC):%Y-%m-%d %H:%M} UTC"
    cure = "See `python -m deploy offline-check` for the code that tried, correct it, and run it again."
    if found.findings:
        cause = "Something in the program, its page or its settings needs the internet."
        return Verdict(tuple(failed(code, f"{what} ({at})", cause, cure) for code, what in found.findings))
    if found.weaker:
        cause = "There was no network namespace: what does not go through Python was not seen."
        return Verdict((warning("offline-check", f"nothing found by the hook in each process ({at})", cause, cure),))
    return Verdict((passed("offline-check", f"nothing called out of a network namespace without routes ({at})"),))


CHECKS = (
    Check(
        "O-1", "Offline", "Nothing is asked of the internet", "The offline variables are set and all addresses inside.", variables
    ),
    Check("O-2", "Offline", "Nothing calls out", "The program answers a query where there is no network.", nothing_calls_out),
)
R4_2 = Check(
    "R4-2",
    "Reported issues",
    "Models are complete on this machine",
    "No model tries to download when there is no network.",
    complete_models,
)
