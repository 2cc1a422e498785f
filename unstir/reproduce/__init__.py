"""Experiments of the papers, as functions: what they found beside what we find."""

from __future__ import annotations

from typing import Protocol

from unstir.reproduce.heartbeat import heartbeat as heartbeat
from unstir.reproduce.report import Advance as Advance
from unstir.reproduce.report import Report as Report


class Experiment(Protocol):
    """An experiment: at most ten minutes on two cores."""

    def __call__(self, *, seed: int, advance: Advance) -> Report:
        """Run it."""
        ...


EXPERIMENTS: dict[str, Experiment] = {"heartbeat": heartbeat}
