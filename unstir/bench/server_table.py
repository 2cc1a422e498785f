"""The figures of ``unstir bench server``, for programs and for people.

Knows: which medians, quantiles and means are told, in which words.
Does not know: how anything was measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from unstir.bench.processes import Compared
from unstir.bench.server import LONG_PICTURES, LONG_STEPS, Result

_QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def memory_growth(memory: Sequence[int]) -> tuple[float, float] | None:
    """Means of the first and of the last third; None if there are too few figures."""
    third = len(memory) // 3
    return (statistics.fmean(memory[:third]), statistics.fmean(memory[-third:])) if third else None


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which so many lie; the nearest that there is."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))] if ordered else float("nan")


def figures(result: Result) -> dict[str, Any]:
    """All of it, for programs."""
    tallies = [each.tally for each in result.rounds]
    latencies = [seconds for tally in tallies for seconds in tally.latencies]
    growth = memory_growth(result.memory)
    offline = [result.rounds[0].before, *(each.after for each in result.rounds)]
    return {
        "model": result.config.model,
        "clients": result.config.clients,
        "load_seconds": result.config.seconds,
        "is_mixed": result.config.is_mixed,
        "ready_seconds": round(result.ready, 2),
        "jobs": {
            "accepted": sum(tally.accepted for tally in tallies),
            "ended": sum(tally.ended for tally in tallies),
            "lost": sum(len(tally.lost) for tally in tallies),
            "busy": sum(tally.busy for tally in tallies),
            "failures": [sentence for tally in tallies for sentence in tally.failures],
        },
        "pictures_per_second": [round(each.rate, 2) for each in result.rounds],
        "offline_pictures_per_second": [round(rate, 2) for rate in offline],
        "share_of_offline": None if result.config.is_mixed else _share(result),
        "latency_seconds": {name: round(quantile(latencies, share), 3) for name, share in _QUANTILES.items()},
        "compared": _told(result.compared),
        "memory_mib": None if growth is None else [round(each / 2**20, 1) for each in growth],
        "short_seconds": {
            "alone": round(statistics.median(result.alone), 3),
            "behind": round(statistics.median(result.behind), 3),
            "ratio": round(statistics.median(result.behind) / statistics.median(result.alone), 2),
        },
        "killed": {
            "accepted": result.killed.accepted,
            "ended": result.killed.ended,
            "seconds": round(result.killed.seconds, 1),
            "compared": _told(result.killed.compared),
            "failures": list(result.killed.failures),
        },
    }


def _share(result: Result) -> float:
    return round(statistics.median(each.share for each in result.rounds), 3)


def _told(compared: Compared) -> dict[str, Any]:
    return {"pictures": compared.count, "of": compared.of, "worst": compared.worst, "wrong": list(compared.wrong)}


def lines(told: Mapping[str, Any]) -> list[str]:
    """The same for people.

    Args:
        told: as ``figures`` says.
    """
    jobs, compared, killed, short = told["jobs"], told["compared"], told["killed"], told["short_seconds"]
    kind = "jobs of different steps, samplers, guidance and sizes" if told["is_mixed"] else "jobs of one picture"
    memory = (
        "not told by this system" if told["memory_mib"] is None else "{} MiB, then {} MiB".format(*told["memory_mib"])
    )
    # Jobs that ask for more or less than the defaults cannot be set beside them.
    share = "" if told["share_of_offline"] is None else f"; share {told['share_of_offline']:.0%}"
    said = [
        f"start until it answers: {told['ready_seconds']} s",
        f"load: {told['clients']} clients, {told['load_seconds']:g} s, {kind}",
        f"jobs: {jobs['accepted']} accepted, {jobs['ended']} ended, {jobs['lost']} lost, {len(jobs['failures'])} failed"
        f", told {jobs['busy']} times to wait",
        f"pictures a second: {_joined(told['pictures_per_second'])}; by the model's defaults and without a server, in "
        f"batches, before, between and after: {_joined(told['offline_pictures_per_second'])}{share}",
        "seconds from the question to the picture: "
        + ", ".join(f"{name} {seconds:.2f}" for name, seconds in told["latency_seconds"].items()),
        f"beside serial twins: {_compared(compared)}",
        f"memory of the server, first and last third of the load: {memory}",
        f"a short job: {short['alone']} s alone, {short['behind']} s behind {LONG_PICTURES} pictures of {LONG_STEPS} "
        f"steps: {short['ratio']} times",
        f"kill -9: {killed['accepted']} jobs were accepted, {killed['ended']} ended, {killed['seconds']} s after the "
        f"restart; {_compared(killed['compared'])}",
    ]
    wrong = [*jobs["failures"], *compared["wrong"], *killed["failures"], *killed["compared"]["wrong"]]
    return said + [f"wrong: {sentence}" for sentence in wrong]


def _compared(told: Mapping[str, Any]) -> str:
    return f"{told['pictures']} of {told['of']} pictures, {len(told['wrong'])} wrong, at most {told['worst']}/255 apart"


def _joined(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:.1f}" for rate in rates)
