"""Samplers: ways from noise to data, one file per paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unstir.diffusion.samplers.ancestral import Ancestral as Ancestral
from unstir.diffusion.samplers.base import Sampler as Sampler
from unstir.diffusion.samplers.base import Step as Step
from unstir.diffusion.samplers.base import sample as sample
from unstir.diffusion.samplers.ddim import DDIM as DDIM
from unstir.diffusion.samplers.dpm_solver import DPMSolver2M as DPMSolver2M

SAMPLERS: dict[str, Callable[[], Sampler[Any]]] = {
    "ancestral": Ancestral,
    "ddim": DDIM,
    "dpm++2m": DPMSolver2M,
}
