"""Conformance: exact answers that anyone can hold a sampler, a schedule or a model against."""

from __future__ import annotations

from unstir.verify.oracles import GaussianOracle as GaussianOracle
from unstir.verify.oracles import GivenNoise as GivenNoise
from unstir.verify.oracles import MixtureOracle as MixtureOracle
from unstir.verify.oracles import kolmogorov as kolmogorov
from unstir.verify.oracles import observed_orders as observed_orders
