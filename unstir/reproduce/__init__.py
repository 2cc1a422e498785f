"""Experiments of the papers, as functions: what they found beside what we find."""

from __future__ import annotations

from typing import Protocol

from unstir.reproduce.cosine_vs_linear import cosine_vs_linear as cosine_vs_linear
from unstir.reproduce.ddim_steps import ddim_steps as ddim_steps
from unstir.reproduce.dead_leaves import dead_leaves as dead_leaves
from unstir.reproduce.digits import digits as digits
from unstir.reproduce.heartbeat import heartbeat as heartbeat
from unstir.reproduce.objectives import objectives as objectives
from unstir.reproduce.rate_distortion import rate_distortion as rate_distortion
from unstir.reproduce.report import Advance as Advance
from unstir.reproduce.report import Report as Report
from unstir.reproduce.small_steps import small_steps as small_steps
from unstir.reproduce.swiss_roll import swiss_roll as swiss_roll


class Experiment(Protocol):
    """An experiment: at most ten minutes on two cores."""

    def __call__(self, *, seed: int, advance: Advance) -> Report:
        """Run it."""
        ...


EXPERIMENTS: dict[str, Experiment] = {
    "heartbeat": heartbeat,
    "swiss-roll": swiss_roll,
    "dead-leaves": dead_leaves,
    "digits": digits,
    "rate-distortion": rate_distortion,
    "objectives": objectives,
    "ddim-steps": ddim_steps,
    "cosine-vs-linear": cosine_vs_linear,
    "small-steps": small_steps,
}
