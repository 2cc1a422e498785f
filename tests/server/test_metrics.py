"""Figures, as an independent reader of Prometheus's text format reads them."""

from __future__ import annotations

import math
import resource
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from unstir.server.logs import Told
from unstir.server.metrics import BOUNDS, Figure, Requests, of_process, of_service, render


def told(seconds: float, *, method: str = "GET", route: str = "/api/jobs/{id}", status: int = 200) -> Told:
    return Told(id="x", method=method, route=route, status=status, seconds=seconds, client="")


def read(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(figures: Any, name: str, **labels: str) -> float:
    return read(render(figures))[name, frozenset(labels.items())]


@given(st.lists(st.floats(0, 200) | st.sampled_from(BOUNDS), max_size=30))
def test_bands_hold_what_is_not_above_them(seconds: list[float]) -> None:
    requests = Requests()
    for each in seconds:
        requests.add(told(each))
    if not seconds:
        assert not read(render(requests.figures()))
        return
    labels = {"method": "GET", "route": "/api/jobs/{id}", "status": "200"}
    for bound in BOUNDS:
        le = str(int(bound)) if bound == int(bound) else repr(bound)
        found = value(requests.figures(), "unstir_http_request_seconds_bucket", **labels, le=le)
        assert found == sum(each <= bound for each in seconds)
    assert value(requests.figures(), "unstir_http_request_seconds_bucket", **labels, le="+Inf") == len(seconds)
    assert value(requests.figures(), "unstir_http_request_seconds_count", **labels) == len(seconds)
    total = value(requests.figures(), "unstir_http_request_seconds_sum", **labels)
    assert total == pytest.approx(math.fsum(seconds))


def test_requests_are_told_apart() -> None:
    requests = Requests()
    for one in (told(1.0), told(1.0, status=404), told(1.0, method="POST"), told(1.0, route=""), told(2.0)):
        requests.add(one)
    counts = {labels: n for (name, labels), n in read(render(requests.figures())).items() if name.endswith("_count")}
    assert sorted(counts.values()) == [1, 1, 1, 2]


@given(st.text(max_size=20), st.text(st.characters(exclude_characters="\r"), max_size=20))
def test_odd_texts_do_no_harm(label: str, explanation: str) -> None:
    figure = Figure(name="a", kind="gauge", help=explanation, samples=(("", {"b": label}, 0.5),))
    text = render([figure])
    assert text.count("\n") == 3
    if not set(label + explanation) & {"\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\r"}:
        assert read(text) == {("a", frozenset({("b", label)})): 0.5}


def test_the_service_s_figures() -> None:
    counts = SimpleNamespace(calls=3, rows=40, steps=16, pictures=2, busy_seconds=0.75)
    service: Any = SimpleNamespace(waiting=5, running=1, seconds_ahead=2.5, counts=counts)
    assert read(render(of_service(service))) == {
        ("unstir_jobs", frozenset({("state", "queued")})): 5,
        ("unstir_jobs", frozenset({("state", "running")})): 1,
        ("unstir_queue_seconds", frozenset()): 2.5,
        ("unstir_pictures_total", frozenset()): 2,
        ("unstir_network_calls_total", frozenset()): 3,
        ("unstir_network_rows_total", frozenset()): 40,
        ("unstir_steps_total", frozenset()): 16,
        ("unstir_busy_seconds_total", frozenset()): 0.75,
    }


def test_memory_is_what_the_system_says() -> None:
    """At most the largest that the kernel remembers of this process, and most of it."""
    found = value(of_process(), "process_resident_memory_bytes")
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 0.2 * largest < found <= largest * 1.05
