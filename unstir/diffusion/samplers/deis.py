"""DEIS: multistep integration of the noise, as a polynomial in log-SNR, over sigma/alpha.

Knows: which noises a step of DEIS is made of, and with which weights.
Does not know: grids, guidance, networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers.base import (
    Known,
    Place,
    Sampler,
    along_noise,
    exponential_moments,
    log_snr_shares,
    require_order,
)
from unstir.diffusion.schedule import Level
from unstir.typing import Noise, X


@dataclass(frozen=True, kw_only=True)
class DEIS(Sampler[tuple[Known, ...]]):
    """Diffusion exponential integrator sampler, the Adams-Bashforth kind (tAB): one evaluation a step.

    With rho = sigma/alpha the probability flow is d(x/alpha)/d rho = eps, so that
    x_s/alpha_s = x_t/alpha_t + integral from rho_t to rho_s of P(log rho) d rho,
    where P is the polynomial through the noises of this and the last steps.

    The paper leaves the variable of P open: time t, or rho itself. Here it is log rho, minus half the log-SNR, so that
    the weights depend on levels alone and not on a schedule's pace, and do not grow where rho falls by orders of
    magnitude in a step (diffusers' DEISMultistepScheduler does the same). One noise is DDIM.

    Args:
        max_order: how many noises a step is made of, 1 to 3; the first steps know of fewer.

    Raises:
        ValueError: if that is not 1, 2 or 3.

    Source: Zhang & Chen 2022, arXiv:2204.13902, Eqs. 14-15 and Sec. 3.3.
    """

    max_order: int = 3

    def __post_init__(self) -> None:
        """Refuse what the tests do not measure."""
        require_order("DEIS", self.max_order)

    @property
    def order(self) -> int:
        """1 or 2: with three noises the error is smaller, but that of the first two steps falls no faster."""
        return min(self.max_order, 2)

    def start(self) -> tuple[Known, ...]:
        """No step before the first."""
        return ()

    def step(
        self,
        denoise: Denoiser,
        process: GaussianProcess,
        x_t: X,
        t: Level,
        s: Level,
        memory: tuple[Known, ...],
        noise: Noise,
    ) -> tuple[X, tuple[Known, ...]]:
        """One step from level t to level s."""
        x0 = denoise(x_t, t).x0
        known = (Known(level=t, value=process.noise_of(x0, x_t, t)), *memory)
        return along_noise(x0, s, known, _shares), known[: self.max_order - 1]


def _shares(places: Sequence[Place]) -> list[float]:
    return log_snr_shares(places, exponential_moments)  # d rho is proportional to exp(h (1 - u)) du, u = (l - l_t)/h
