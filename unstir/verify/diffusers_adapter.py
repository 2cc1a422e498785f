"""Schedulers of diffusers as targets: the worked example of how a stranger's code is verified.

Knows: how a diffusers scheduler is driven, and which alpha and sigma it holds its sample to be at.
Does not know: any statement.

Each factory drives one scheduler as diffusers' own pipelines do: ``set_timesteps``, then ``scale_model_input`` and
``step`` for each of its timesteps, and ``set_begin_index`` for a start in the middle. The belief is turned into the
prediction that the scheduler is configured for, exactly, at the scheduler's own alpha and sigma. Nothing is clipped
unless the factory says so, and samples are float64, so that only the scheduler's own float32 tables round.

    unstir verify --target unstir.verify.diffusers_adapter:ddim
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.schedule import Level
from unstir.typing import Noise, X, floats
from unstir.verify.target import Promise, level_of

Path = Literal["table", "preserving", "exploding", "flow"]
"""How a scheduler keeps its levels: alphas_cumprod at whole timesteps, or a list of sigmas with alpha = 1/sqrt(1 +
sigma^2) and sigma/sqrt(1 + sigma^2), alpha = 1, or alpha = 1 - sigma."""

_FLOAT32 = 2e-4

# What was found in the source of diffusers 0.42.1 for every failure, and of which kind it is.
_LEADING = {"C4": "documented default: timestep_spacing='leading' starts below the last timestep of training"}
_LINSPACE = {"C4": "bug: a linspace of one point is its first, so N = 1 starts at timestep 0, nearly clean"}
_STATE = {"C21": "by design: a scheduler holds the state of one run; from_config makes one for each thread"}
_HALF = {
    "C11": "bug: add_noise casts alphas_cumprod to the sample's type before it takes 1 - alphas_cumprod (issue 9004)"
}
_PREVIOUS = (
    "bug: step goes to timestep t - 1000 // N, whatever the next timestep is (issues 11347, 12633); right where N "
    "divides 1000"
)
_STRIDE = {name: _PREVIOUS for name in ("C1", "C12", "C16", "C17")}
_COUNT = "bug: arange with a step of 1000/N yields N + 1 timesteps for 62 values of N (61, 103, 121, ...), the last -1"
_TRAILING = {"C2": _COUNT, "C3": _COUNT, "C5": _COUNT}
_SAME_TIME = (
    "bug: N + 1 points from 999 to 0 are rounded; at N = 1000 timestep 500 occurs twice, and a step of no length "
    "divides by zero"
)
_ROUNDED = {"C3": _SAME_TIME, "C5": _SAME_TIME}
_FIRST_LEVEL = "its last step goes to the first level of training, not to the data"
_SHORT = {name: f"documented default set_alpha_to_one=False: {_FIRST_LEVEL}" for name in ("C12", "C17", "C31")}
_SHORT_DEIS = {name: f"bug: {_FIRST_LEVEL}; it has no final_sigmas_type" for name in ("C12", "C17", "C31")}
_REPEATED = {name: "bug: the last sigma is repeated where 0 should stand" for name in ("C12", "C17", "C31")}
_LAGS = (
    "bug: the second step of a run is taken for a repetition of the first, which a list of timesteps that starts late "
    "does not hold; the sample lags one step behind from there on"
)
_WARM_UP = "limit that is not told: the Runge-Kutta start needs 4 points, fewer end in numpy's broadcast error"
_LOOKED_UP = (
    "bug: timesteps become equal as whole numbers, the first is searched for, its second occurrence taken, and the run "
    "ends out of bounds (issue 12771)"
)
_FEW_SLOPES = (
    "bug: weights of the full order are taken by position in the grid, but a run that starts late has fewer slopes "
    "(issue 5630)"
)
_CHURN = "bug: noise is added in step, after the model was asked, so the belief is one about another sample"
_LOGARITHM = "bug: the logarithm of a variance is taken for a variance, and its root is nan (issues 14569, 14571)"
_SHIFT = {
    "C9": "bug: the shift is applied to a range that is shifted already (issue 13243)",
    "C10": "told by a warning: timesteps are taken as given, sigmas are shifted once more (issues 14011, 14013)",
}
_EARLY = (
    "bug: steps_offset=1, which the model's configuration has, moves timestep 999 out of bounds at N = 1000 "
    "(issue 10003)"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class SchedulerTarget:
    """One diffusers scheduler, used again for every run as in a pipeline.

    Args:
        name: what reports call it.
        scheduler: the object.
        path: how it keeps its levels.
        promise: what its documentation says of it.
        trained: the levels of its training chain, from data to noise.
        arguments: given to every ``step``, beside the generator.
    """

    name: str
    scheduler: Any
    path: Path
    promise: Promise
    trained: Level
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def levels(self, num_steps: int) -> Level:
        """The grid of a fresh ``set_timesteps``, with the level that the last step goes to."""
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(num_steps)
        return self._grid(scheduler)

    def run(self, denoise: Denoiser, x: X, num_steps: int, noise: Noise, start: int = 0) -> X:
        """The loop of a pipeline."""
        scheduler = self.scheduler
        scheduler.set_timesteps(num_steps)
        begin = self._position(scheduler, start)
        if begin and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        for i, t in enumerate(scheduler.timesteps[begin:]):
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x, t)  # what a network would see; here it sets the index of the step
            level = self._level(scheduler, t)
            output = self._prediction(x, denoise(x, level).x0, level)
            x = scheduler.step(output, t, x, **self._drawing(x, noise.at(i)), **self.arguments, return_dict=False)[0]
        return x

    def spoil(self, x0: X, noise: X, num_steps: int, step: int) -> X:
        """Its ``add_noise`` (``scale_noise`` for flows) at the timestep of that step."""
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(num_steps)
        t = scheduler.timesteps[self._position(scheduler, step)]
        if self.path == "flow":
            return scheduler.scale_noise(x0, t.expand(x0.shape[0]) if _takes_many(scheduler) else t, noise)
        return scheduler.add_noise(x0, noise, t.expand(x0.shape[0]))

    def remake(self, num_steps: int) -> Mapping[str, Level]:
        """The grid asked for by its timesteps, and by its sigmas, where ``set_timesteps`` takes them."""
        given = copy.deepcopy(self.scheduler)
        given.set_timesteps(num_steps)
        accepted = inspect.signature(given.set_timesteps).parameters
        sigmas = given.sigmas if self.path != "table" else torch.empty(0)
        # The sigmas that a flow is given are meant to be shifted, so its own are not the ones to ask with.
        ways = {"timesteps": floats(given.timesteps), "sigmas": [] if self.path == "flow" else floats(sigmas)}
        made: dict[str, Level] = {}
        for name, values in ways.items():
            scheduler = copy.deepcopy(self.scheduler)
            if name not in accepted or len(given.timesteps) != num_steps or not values:
                continue
            try:
                scheduler.set_timesteps(**{name: values})
            except ValueError:  # refused in words, as with Karras sigmas
                continue
            made[name] = self._grid(scheduler)
        return made

    def _grid(self, scheduler: Any) -> Level:
        if self.path == "table":
            # PNDM's list of timesteps repeats the ones that it evaluates twice; this is its list of points.
            times = getattr(scheduler, "_timesteps", None) if hasattr(scheduler, "plms_timesteps") else None
            steps = scheduler.timesteps if times is None else torch.from_numpy(times[::-1].copy())
            end = getattr(scheduler, "final_alpha_cumprod", torch.tensor(1.0))
            return _from_alpha_bar(torch.cat([scheduler.alphas_cumprod[steps.long()], end.reshape(1)]))
        sigmas = scheduler.sigmas
        if _is_second_order(scheduler):  # every inner sigma stands there twice
            sigmas = torch.cat([sigmas[:1], sigmas[1::2]])
        return self._from_sigma(sigmas)

    def _level(self, scheduler: Any, t: Tensor) -> Level:
        if self.path == "table":
            return _from_alpha_bar(scheduler.alphas_cumprod[t.long()])
        index = scheduler.step_index
        if index is None:
            index = scheduler.begin_index if scheduler.begin_index is not None else scheduler.index_for_timestep(t)
        return self._from_sigma(scheduler.sigmas[index])

    def _from_sigma(self, sigma: Tensor) -> Level:
        sigma = sigma.double()
        if self.path == "exploding":
            return level_of(torch.ones_like(sigma), sigma)
        if self.path == "flow":
            return level_of(1 - sigma, sigma)
        alpha = 1 / (1 + sigma**2).sqrt()
        return level_of(alpha, alpha * sigma)

    def _prediction(self, x: X, x0: X, level: Level) -> X:
        noise = (x - level.alpha * x0) / level.sigma
        if self.path == "flow":
            return noise - x0
        kind = self.scheduler.config.prediction_type
        if kind == "sample":
            return x0
        if kind == "epsilon":
            return noise
        size = torch.hypot(level.alpha, level.sigma)  # v is defined where alpha^2 + sigma^2 = 1
        return (level.alpha * noise - level.sigma * x0) / size

    def _drawing(self, x: X, noise: Noise) -> dict[str, Any]:
        """One generator a row, as diffusers takes them for reproducible batches."""
        if not self.promise.is_stochastic:
            return {}
        seeds = floats(noise.uniform(torch.zeros(x.shape[0], 1, dtype=torch.float64))[:, 0] * 2**53)
        return {"generator": [torch.Generator().manual_seed(int(seed)) for seed in seeds]}

    def _position(self, scheduler: Any, step: int) -> int:
        """Where a step stands in the list of timesteps, for a start in the middle: as in the pipelines."""
        if hasattr(scheduler, "plms_timesteps") and step:
            return len(scheduler.timesteps) - scheduler.num_inference_steps + step  # it evaluates some points twice
        return 2 * step if _is_second_order(scheduler) else step


def every() -> Mapping[str, SchedulerTarget]:
    """All of ``SCHEDULERS``."""
    return {name: factory() for name, factory in SCHEDULERS.items()}


def ddpm() -> SchedulerTarget:
    """DDPM: the reverse chain on a strided grid."""
    return _table("DDPM", "DDPMScheduler", _chain(_LEADING), clip_sample=False)


def ddpm_trailing() -> SchedulerTarget:
    """DDPM with trailing timesteps."""
    return _table("DDPM trailing", "DDPMScheduler", _chain(_TRAILING), clip_sample=False, timestep_spacing="trailing")


def ddpm_fixed_large() -> SchedulerTarget:
    """DDPM with the larger of the two fixed variances."""
    promise = replace(_chain(_LEADING), formula="ancestral, large variance")
    return _table("DDPM fixed_large", "DDPMScheduler", promise, clip_sample=False, variance_type="fixed_large")


def ddpm_fixed_large_log() -> SchedulerTarget:
    """DDPM with the larger of the two fixed variances, as a logarithm."""
    broken = dict.fromkeys(("C1", "C3", "C6", "C7", "C12", "C17", "C18", "C22", "C31"), _LOGARITHM)
    promise = replace(_chain({**_LEADING, **broken}), formula="ancestral, large variance")
    return _table("DDPM fixed_large_log", "DDPMScheduler", promise, clip_sample=False, variance_type="fixed_large_log")


def ddim() -> SchedulerTarget:
    """DDIM as it comes, but without clipping."""
    return _table("DDIM", "DDIMScheduler", _ddim(_LEADING), clip_sample=False)


def ddim_stable_diffusion() -> SchedulerTarget:
    """DDIM with the configuration that Stable Diffusion 1 is distributed with."""
    promise = _ddim({**_LEADING, **_SHORT, **dict.fromkeys(("C2", "C3", "C5", "C9"), _EARLY)})
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    kind = "DDIMScheduler"
    return _table("DDIM Stable Diffusion", kind, promise, clip_sample=False, set_alpha_to_one=False, **config)


def ddim_trailing() -> SchedulerTarget:
    """DDIM with trailing timesteps."""
    promise = _ddim({**_STRIDE, **_TRAILING})
    return _table("DDIM trailing", "DDIMScheduler", promise, clip_sample=False, timestep_spacing="trailing")


def ddim_linspace() -> SchedulerTarget:
    """DDIM with timesteps from 999 to 0."""
    promise = _ddim({**_STRIDE, **_LINSPACE})
    return _table("DDIM linspace", "DDIMScheduler", promise, clip_sample=False, timestep_spacing="linspace")


def ddim_clip_sample() -> SchedulerTarget:
    """DDIM as it comes: clip_sample is on."""
    note = "documented default: the noise is derived anew only with use_clipped_model_output=True"
    return _table("DDIM clip_sample", "DDIMScheduler", replace(_ddim({**_LEADING, "C19": note}), clip=1.0))


def ddim_zero_snr() -> SchedulerTarget:
    """DDIM as recommended for a chain that ends without signal: v-prediction, trailing timesteps, rescaled betas."""
    promise = replace(_ddim({**_STRIDE, **_TRAILING}), formula="ddim of v")
    config = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return _table("DDIM zero SNR", "DDIMScheduler", promise, clip_sample=False, **config)


def pndm() -> SchedulerTarget:
    """PNDM as it comes: Runge-Kutta steps first."""
    notes = dict.fromkeys(("C2", "C3", "C5", "C18"), _WARM_UP)
    promise = Promise(tolerance=_FLOAT32, starts_late=False, notes={**_STATE, **_LEADING, **_HALF, **_SHORT, **notes})
    return _table("PNDM", "PNDMScheduler", promise)


def pndm_plms() -> SchedulerTarget:
    """PNDM without Runge-Kutta steps, as Stable Diffusion has it."""
    promise = Promise(tolerance=_FLOAT32, notes={**_STATE, **_LEADING, **_HALF, **_SHORT, "C12": _LAGS})
    return _table("PNDM skip_prk_steps", "PNDMScheduler", promise, skip_prk_steps=True)


def dpm_2m() -> SchedulerTarget:
    """DPM-Solver++(2M) as it comes."""
    return _preserving("DPM++ 2M", "DPMSolverMultistepScheduler", _solver_2m(_ROUNDED))


def dpm_2m_trailing() -> SchedulerTarget:
    """DPM-Solver++(2M) with trailing timesteps."""
    promise = replace(_solver_2m(_TRAILING), visits_table=True)
    return _preserving("DPM++ 2M trailing", "DPMSolverMultistepScheduler", promise, timestep_spacing="trailing")


def dpm_2m_karras() -> SchedulerTarget:
    """DPM-Solver++(2M) with Karras sigmas."""
    return _preserving("DPM++ 2M Karras", "DPMSolverMultistepScheduler", _solver_2m({}), use_karras_sigmas=True)


def dpm_2m_karras_cosine() -> SchedulerTarget:
    """DPM-Solver++(2M) with Karras sigmas on the cosine schedule."""
    ids = ("C1", "C2", "C3", "C5", "C12", "C14", "C16", "C17", "C18", "C20", "C21")
    # sigma reaches 2e4, where float32 has two digits of x0 left
    promise = replace(_solver_2m(dict.fromkeys(ids, _LOOKED_UP)), tolerance=1e-2)
    config = {"use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2"}
    return _preserving("DPM++ 2M Karras cosine", "DPMSolverMultistepScheduler", promise, **config)


def dpm_2m_lu() -> SchedulerTarget:
    """DPM-Solver++(2M) with evenly spaced log-SNR."""
    return _preserving("DPM++ 2M Lu", "DPMSolverMultistepScheduler", _solver_2m({}), use_lu_lambdas=True)


def dpm_3m() -> SchedulerTarget:
    """DPM-Solver++(3M)."""
    promise = Promise(tolerance=_FLOAT32, notes={**_STATE, **_ROUNDED})
    return _preserving("DPM++ 3M", "DPMSolverMultistepScheduler", promise, solver_order=3)


def dpm_2m_sde() -> SchedulerTarget:
    """SDE-DPM-Solver++(2M)."""
    promise = Promise(tolerance=_FLOAT32, is_stochastic=True, notes={**_STATE, **_ROUNDED})
    return _preserving("DPM++ 2M SDE", "DPMSolverMultistepScheduler", promise, algorithm_type="sde-dpmsolver++")


def dpm_singlestep() -> SchedulerTarget:
    """DPM-Solver++(2S), singlestep."""
    return _preserving("DPM++ singlestep", "DPMSolverSinglestepScheduler", _second_order(_ROUNDED))


def dpm_singlestep_3() -> SchedulerTarget:
    """DPM-Solver++(3S), singlestep."""
    promise = Promise(tolerance=_FLOAT32, notes={**_STATE, **_ROUNDED})
    return _preserving("DPM++ singlestep order 3", "DPMSolverSinglestepScheduler", promise, solver_order=3)


def unipc() -> SchedulerTarget:
    """UniPC of order 2 as it comes."""
    return _preserving("UniPC", "UniPCMultistepScheduler", _second_order(_ROUNDED))


def deis() -> SchedulerTarget:
    """DEIS of order 2 as it comes."""
    return _preserving("DEIS", "DEISMultistepScheduler", _second_order({**_ROUNDED, **_SHORT_DEIS}))


def deis_karras() -> SchedulerTarget:
    """DEIS with Karras sigmas."""
    return _preserving("DEIS Karras", "DEISMultistepScheduler", _second_order(_REPEATED), use_karras_sigmas=True)


def euler() -> SchedulerTarget:
    """Euler as it comes."""
    return _exploding("Euler", "EulerDiscreteScheduler", _euler(_LINSPACE))


def euler_trailing() -> SchedulerTarget:
    """Euler with trailing timesteps."""
    return _exploding("Euler trailing", "EulerDiscreteScheduler", _euler(_TRAILING), timestep_spacing="trailing")


def euler_karras() -> SchedulerTarget:
    """Euler with Karras sigmas."""
    promise = replace(_euler(_LINSPACE), visits_table=False)
    return _exploding("Euler Karras", "EulerDiscreteScheduler", promise, use_karras_sigmas=True)


def euler_v() -> SchedulerTarget:
    """Euler with v-prediction."""
    promise = replace(_euler(_LINSPACE), formula="ddim of v")
    return _exploding("Euler v", "EulerDiscreteScheduler", promise, prediction_type="v_prediction")


def euler_churn() -> SchedulerTarget:
    """Euler with fresh noise before each step (s_churn of ``step``)."""
    notes = dict.fromkeys(("C12", "C17", "C22", "C31"), _CHURN)
    promise = replace(_euler({**_LINSPACE, **notes}), formula=None, order=None, is_stochastic=True)
    return replace(_exploding("Euler s_churn=10", "EulerDiscreteScheduler", promise), arguments={"s_churn": 10.0})


def euler_ancestral() -> SchedulerTarget:
    """Euler with ancestral noise."""
    promise = replace(_euler(_LINSPACE), formula="ancestral", order=None, is_stochastic=True)
    return _exploding("Euler ancestral", "EulerAncestralDiscreteScheduler", promise)


def heun() -> SchedulerTarget:
    """Heun as it comes."""
    return _exploding("Heun", "HeunDiscreteScheduler", replace(_euler(_LINSPACE), formula="heun", order=2))


def heun_karras() -> SchedulerTarget:
    """Heun with Karras sigmas."""
    promise = replace(_euler(_LINSPACE), formula="heun", order=2, visits_table=False)
    return _exploding("Heun Karras", "HeunDiscreteScheduler", promise, use_karras_sigmas=True)


def lms() -> SchedulerTarget:
    """The linear multistep method as it comes."""
    notes = dict.fromkeys(("C12", "C31"), _FEW_SLOPES)
    return _exploding("LMS", "LMSDiscreteScheduler", replace(_euler({**_LINSPACE, **notes}), formula=None, order=None))


def flow_match_euler() -> SchedulerTarget:
    """Euler on the rectified flow."""
    return _flow("FlowMatchEuler", "FlowMatchEulerDiscreteScheduler", _euler({}))


def flow_match_euler_shift() -> SchedulerTarget:
    """Euler on the rectified flow with a shift of 3, as Stable Diffusion 3 has it."""
    return _flow("FlowMatchEuler shift=3", "FlowMatchEulerDiscreteScheduler", _euler(_SHIFT), shift=3.0)


def flow_match_heun() -> SchedulerTarget:
    """Heun on the rectified flow."""
    return _flow("FlowMatchHeun", "FlowMatchHeunDiscreteScheduler", replace(_euler({}), formula=None, order=2))


SCHEDULERS: dict[str, Callable[[], SchedulerTarget]] = {
    "ddpm": ddpm,
    "ddpm_trailing": ddpm_trailing,
    "ddpm_fixed_large": ddpm_fixed_large,
    "ddpm_fixed_large_log": ddpm_fixed_large_log,
    "ddim": ddim,
    "ddim_stable_diffusion": ddim_stable_diffusion,
    "ddim_trailing": ddim_trailing,
    "ddim_linspace": ddim_linspace,
    "ddim_clip_sample": ddim_clip_sample,
    "ddim_zero_snr": ddim_zero_snr,
    "pndm": pndm,
    "pndm_plms": pndm_plms,
    "dpm_2m": dpm_2m,
    "dpm_2m_trailing": dpm_2m_trailing,
    "dpm_2m_karras": dpm_2m_karras,
    "dpm_2m_karras_cosine": dpm_2m_karras_cosine,
    "dpm_2m_lu": dpm_2m_lu,
    "dpm_3m": dpm_3m,
    "dpm_2m_sde": dpm_2m_sde,
    "dpm_singlestep": dpm_singlestep,
    "dpm_singlestep_3": dpm_singlestep_3,
    "unipc": unipc,
    "deis": deis,
    "deis_karras": deis_karras,
    "euler": euler,
    "euler_trailing": euler_trailing,
    "euler_karras": euler_karras,
    "euler_v": euler_v,
    "euler_churn": euler_churn,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "heun_karras": heun_karras,
    "lms": lms,
    "flow_match_euler": flow_match_euler,
    "flow_match_euler_shift": flow_match_euler_shift,
    "flow_match_heun": flow_match_heun,
}


def _chain(notes: Mapping[str, str]) -> Promise:
    notes = {**_HALF, **notes}
    return Promise(is_stochastic=True, formula="ancestral", tolerance=_FLOAT32, visits_table=True, notes=notes)


def _ddim(notes: Mapping[str, str]) -> Promise:
    return Promise(order=1, formula="ddim", tolerance=_FLOAT32, visits_table=True, notes={**_HALF, **notes})


def _euler(notes: Mapping[str, str]) -> Promise:
    return Promise(order=1, formula="ddim", tolerance=_FLOAT32, visits_table=True, notes={**_STATE, **notes})


def _solver_2m(notes: Mapping[str, str]) -> Promise:
    return replace(_second_order(notes), formula="dpm++2m")


def _second_order(notes: Mapping[str, str]) -> Promise:
    return Promise(order=2, tolerance=_FLOAT32, notes={**_STATE, **notes})


def _table(name: str, kind: str, promise: Promise, **config: Any) -> SchedulerTarget:
    return _target(name, kind, "table", promise, config)


def _preserving(name: str, kind: str, promise: Promise, **config: Any) -> SchedulerTarget:
    return _target(name, kind, "preserving", promise, config)


def _exploding(name: str, kind: str, promise: Promise, **config: Any) -> SchedulerTarget:
    return _target(name, kind, "exploding", promise, config)


def _flow(name: str, kind: str, promise: Promise, **config: Any) -> SchedulerTarget:
    scheduler = _scheduler(kind, config)
    sigmas = scheduler.sigmas.double().flip(0)
    trained = level_of(1 - sigmas, sigmas)
    return SchedulerTarget(name=f"diffusers {name}", scheduler=scheduler, path="flow", promise=promise, trained=trained)


def _target(name: str, kind: str, path: Path, promise: Promise, config: Mapping[str, Any]) -> SchedulerTarget:
    scheduler = _scheduler(kind, config)
    trained = _from_alpha_bar(scheduler.alphas_cumprod)
    return SchedulerTarget(name=f"diffusers {name}", scheduler=scheduler, path=path, promise=promise, trained=trained)


def _scheduler(kind: str, config: Mapping[str, Any]) -> Any:
    try:
        diffusers = importlib.import_module("diffusers")
    except ImportError as error:
        raise ValueError(
            f"diffusers is not installed ({error}); pip install diffusers, or verify another target"
        ) from None
    return getattr(diffusers, kind)(**config)


def _from_alpha_bar(alpha_bar: Tensor) -> Level:
    return level_of(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())


def _is_second_order(scheduler: Any) -> bool:
    return hasattr(scheduler, "state_in_first_order")


def _takes_many(scheduler: Any) -> bool:
    return not _is_second_order(scheduler)
