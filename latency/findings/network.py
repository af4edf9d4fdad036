"""Distance: round trips to the store, and the network's part of a model behind HTTP."""

from __future__ import annotations

from collections.abc import Iterator

from latency.findings import advice
from latency.findings.drafts import WHERE, Draft
from latency.findings.ledger import Ledger
from latency.findings.words import component, count, doing, named, seconds, sentence, worker
from latency.types import Confidence, Evidence

SPIKE_SECONDS = 0.25  # once, where the way is usually short: a busy machine delays an answer by as much now and then
NEAR_SECONDS = 0.001  # a round trip between two processes of one machine or one rack


def store(ledger: Ledger) -> Iterator[Draft]:
    """Round trips of the search, times what one took on the open connection."""
    stage = ledger.stages.get("search")
    if stage is None:
        return
    trips = ledger.units("search", "round_trips") or 1.0
    taken = ledger.take("search", ledger.left("search", "network") - trips * NEAR_SECONDS, "network")
    beyond = _rest_of_the_way(ledger, taken)
    if taken <= 0:
        return
    one = (taken + trips * NEAR_SECONDS) / trips
    first = ledger.pieces("search")[0]
    text = f"The search made {count(trips, 'round trip')} of {seconds(one)} each, measured on the open connection."
    evidence = [Evidence(text, one, "s", first.span_id or "round_trip_seconds", first.start, first.end)]
    derivation = f"{count(trips, 'round trip')} × ({seconds(one)} − {seconds(NEAR_SECONDS)} next to the app) = {seconds(taken)}."
    if beyond > 0:
        text = f"The search took {seconds(beyond)} more than usual beyond these round trips, while the way was longer than usual."
        evidence.append(Evidence(text, beyond, "s", "baseline"))
        derivation += f" With the {seconds(beyond)} beyond the usual that came with the longer way: {seconds(taken + beyond)}."
    yield Draft(
        "network_store",
        "store",
        "search",
        f"The search waited for the network between app and store in {WHERE}",
        taken + beyond,
        taken + beyond,
        derivation,
        "measured" if beyond < taken else "derived",
        tuple(evidence),
        advice.STORE_NEARER,
    )


def _rest_of_the_way(ledger: Ledger, taken: float) -> float:
    """What a search takes beyond the usual when its round trip is longer than usual: calls that the count does not know."""
    usual = ledger.usual("search")
    longer = usual is not None and taken > 2 * (usual.network or 0.0) + 10 * NEAR_SECONDS
    return ledger.take_excess("search", "work", ledger.excess("search").get("work", 0.0)) if longer else 0.0


def model(ledger: Ledger) -> Iterator[Draft]:
    """The time of requests to models that their server did not have."""
    for name, stage in ledger.stages.items():
        if name == "search" or stage.where != "http":
            continue
        pieces = ledger.pieces(name)
        there, least = ledger.left(name, "network"), NEAR_SECONDS * len(pieces)
        usual = ledger.usual(name)
        is_spike = usual is not None and (usual.network or 0.0) < there / 2
        if there - least <= (SPIKE_SECONDS if is_spike else 0.0):
            continue
        taken = ledger.take(name, there - least, "network")
        estimated = any("estimated" in piece.label for piece in pieces)
        how = "estimated by the round trip on the open connection" if estimated else "the request's time less the server's"
        text = f"{sentence(doing(name))} spent {seconds(taken + least)} on the network to the {named(stage)} ({how})."
        certain: Confidence = "derived" if estimated else "measured"
        yield Draft(
            "network_model",
            component(name),
            name,
            f"Requests to the {worker(name)} waited for the network in {WHERE}",
            taken,
            taken,
            f"{seconds(taken + least)} less {seconds(least)} to a near server = {seconds(taken)}.",
            certain,
            (Evidence(text, taken + least, "s", pieces[0].span_id or "split.network", pieces[0].start, pieces[-1].end),),
            advice.model_nearer(name),
        )
