"""Figures of a running server, as Prometheus reads them.

Knows: how requests are counted and timed, the text format of Prometheus, the memory of this process.
Does not know: who asks; how the service comes to its figures.

Source: the text format 0.0.4, https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unstir import __version__

if TYPE_CHECKING:
    from unstir.server.logs import Told
    from unstir.server.service import Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
"""Upper ends of the bands in which seconds are counted."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure with its name and what it is of.

    Args:
        name: without the suffix of a sample.
        kind: "counter", "gauge" or "histogram".
        help: one sentence.
        samples: suffix of the name, labels and value.
    """

    name: str
    kind: str
    help: str
    samples: tuple[tuple[str, Mapping[str, str], float], ...]


def render(figures: Iterable[Figure]) -> str:
    """The figures as text."""
    return "".join(line + "\n" for figure in figures for line in _lines(figure))


def _lines(figure: Figure) -> Iterator[str]:
    yield f"# HELP {figure.name} {_escaped(figure.help)}"
    yield f"# TYPE {figure.name} {figure.kind}"
    for suffix, labels, value in figure.samples:
        told = ",".join(f'{name}="{_quoted(text)}"' for name, text in labels.items())
        yield f"{figure.name}{suffix}{'{' + told + '}' if told else ''} {_number(value)}"


class Requests:
    """How many requests there were, and how long they took, by method, route and status."""

    def __init__(self) -> None:
        self._bands: dict[tuple[str, str, int], list[int]] = {}
        self._seconds: dict[tuple[str, str, int], float] = {}

    def add(self, told: Told) -> None:
        """Count a request that has ended."""
        key = (told.method, told.route, told.status)
        bands = self._bands.setdefault(key, [0] * (len(BOUNDS) + 1))
        bands[bisect_left(BOUNDS, told.seconds)] += 1
        self._seconds[key] = self._seconds.get(key, 0.0) + told.seconds

    def figures(self) -> list[Figure]:
        """A histogram of all requests; its count is their number."""
        samples: list[tuple[str, Mapping[str, str], float]] = []
        for key, bands in sorted(self._bands.items()):
            labels = {"method": key[0], "route": key[1], "status": str(key[2])}
            total = 0
            for bound, count in zip((*BOUNDS, float("inf")), bands, strict=True):
                total += count
                samples.append(("_bucket", {**labels, "le": _number(bound)}, total))
            samples += [("_sum", labels, self._seconds[key]), ("_count", labels, total)]
        return [
            Figure(
                name="unstir_http_request_seconds",
                kind="histogram",
                help="Seconds of HTTP requests, streams included.",
                samples=tuple(samples),
            )
        ]


def of_service(service: Service) -> list[Figure]:
    """What waits, what is drawn, and what the device did."""
    counts = service.counts
    return [
        Figure(
            name="unstir_jobs",
            kind="gauge",
            help="Jobs that are not finished, by state.",
            samples=(("", {"state": "queued"}, service.waiting), ("", {"state": "running"}, service.running)),
        ),
        _one("unstir_queue_seconds", "gauge", "Seconds until a new job would be drawn, about.", service.seconds_ahead),
        _one("unstir_pictures_total", "counter", "Pictures drawn, drafts included.", counts.pictures),
        _one("unstir_network_calls_total", "counter", "Calls of a network.", counts.calls),
        _one("unstir_network_rows_total", "counter", "Rows of all calls; by calls, how full they were.", counts.rows),
        _one("unstir_steps_total", "counter", "Steps of all pictures.", counts.steps),
        _one("unstir_busy_seconds_total", "counter", "Seconds in which the device drew.", counts.busy_seconds),
    ]


def of_process() -> list[Figure]:
    """Memory and time of this process, by the names that Prometheus gives them."""
    memory = _resident()
    return [
        _one("process_cpu_seconds_total", "counter", "Processor time.", time.process_time()),
        *([] if memory is None else [_one("process_resident_memory_bytes", "gauge", "Memory in use.", memory)]),
        Figure(name="unstir_info", kind="gauge", help="The version.", samples=(("", {"version": __version__}, 1.0),)),
    ]


def _one(name: str, kind: str, explanation: str, value: float) -> Figure:
    return Figure(name=name, kind=kind, help=explanation, samples=(("", {}, value),))


def _resident() -> int | None:
    """Bytes that this process holds in memory, where the system tells."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', '\\"')
