"""Conformance: exact answers that anyone can hold a sampler, a schedule or a model against."""

from __future__ import annotations

from unstir.verify.oracles import BitsOracle as BitsOracle
from unstir.verify.oracles import GaussianOracle as GaussianOracle
from unstir.verify.oracles import GivenNoise as GivenNoise
from unstir.verify.oracles import Mixture as Mixture
from unstir.verify.oracles import MixtureOracle as MixtureOracle
from unstir.verify.oracles import kolmogorov as kolmogorov
from unstir.verify.oracles import observed_orders as observed_orders
from unstir.verify.outcome import Outcome as Outcome
from unstir.verify.statements import STATEMENTS as STATEMENTS
from unstir.verify.suite import Report as Report
from unstir.verify.suite import Row as Row
from unstir.verify.suite import plan as plan
from unstir.verify.suite import verify as verify
from unstir.verify.target import Case as Case
from unstir.verify.target import Promise as Promise
from unstir.verify.target import SamplerTarget as SamplerTarget
from unstir.verify.target import Target as Target
from unstir.verify.target import level_of as level_of
from unstir.verify.target import load_cases as load_cases
