"""Samplers: ways from noise to data, one file per paper."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from unstir.diffusion.samplers.ancestral import Ancestral as Ancestral
from unstir.diffusion.samplers.base import Sampler as Sampler
from unstir.diffusion.samplers.base import Step as Step
from unstir.diffusion.samplers.base import sample as sample
from unstir.diffusion.samplers.ddim import DDIM as DDIM
from unstir.diffusion.samplers.ddim import encode as encode
from unstir.diffusion.samplers.deis import DEIS as DEIS
from unstir.diffusion.samplers.dpm_solver import DPMSolverMultistep as DPMSolverMultistep
from unstir.diffusion.samplers.dpm_solver import DPMSolverSinglestep as DPMSolverSinglestep
from unstir.diffusion.samplers.heun import Heun as Heun
from unstir.diffusion.samplers.plms import PLMS as PLMS
from unstir.diffusion.samplers.predictor_corrector import PredictorCorrector as PredictorCorrector
from unstir.diffusion.samplers.renoise import Renoise as Renoise
from unstir.diffusion.samplers.repaint import RePaint as RePaint
from unstir.diffusion.samplers.sde_dpm_solver import SDEDPMSolver as SDEDPMSolver
from unstir.diffusion.samplers.tuned import Tuned as Tuned
from unstir.diffusion.samplers.unipc import UniPC as UniPC

SAMPLERS: dict[str, Callable[[], Sampler[Any]]] = {
    "ancestral": Ancestral,
    "ddim": DDIM,
    "dpm++2m": DPMSolverMultistep,
    "dpm++3m": partial(DPMSolverMultistep, max_order=3),
    "dpm++2s": DPMSolverSinglestep,
    "dpm++3s": partial(DPMSolverSinglestep, max_order=3),
    "unipc": UniPC,
    "unipc3": partial(UniPC, max_order=3),
    "deis": DEIS,
    "plms": PLMS,
    "heun": Heun,
    "euler": DDIM,
    "euler_ancestral": partial(DDIM, eta=1.0),
    "dpm++2m_sde": SDEDPMSolver,
    "predictor_corrector": partial(PredictorCorrector, predictor=Ancestral()),
    "renoise": Renoise,
}
