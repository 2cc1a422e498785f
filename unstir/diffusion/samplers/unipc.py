"""UniPC: a multistep predictor, and a corrector that asks for nothing more.

Knows: how a step is corrected by the belief at its end.
Does not know: grids, guidance, networks.
"""

from __future__ import annotations

from dataclasses import dataclass

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers.base import Known, Sampler, along_beliefs, require_order
from unstir.diffusion.schedule import Level
from unstir.typing import Noise, X


@dataclass(frozen=True, kw_only=True, eq=False)
class Predicted:
    """The step that was predicted last: where it started, and the beliefs that it was made of, the latest first."""

    x: X
    known: tuple[Known, ...]


@dataclass(frozen=True, kw_only=True)
class UniPC(Sampler[Predicted | None]):
    """UniPC-p, of the belief about x0, with B(h) = expm1(-h): one evaluation a step.

    x_s is predicted by the polynomial through the beliefs of the last p steps. The belief that the next step asks for
    at (x_s, s) then corrects x_s, by the polynomial through it as well, before the next step is predicted; it is not
    asked for again at the corrected sample. The last step of a walk is not corrected: nothing is asked for at its end,
    and the belief that the loop returns there is that at the predicted sample.

    (Where polynomials are integrated exactly B(h) cancels. It is left where the paper sets a = 1/2 instead: in the
    predictor with two beliefs, and in the corrector with two.)

    Args:
        max_order: p, how many beliefs a step is predicted from, 1 to 3; the first steps know of fewer.

    Raises:
        ValueError: if p is not 1, 2 or 3.

    Source: Zhao et al. 2023, arXiv:2302.04867, Algorithms 5-6 (UniC, UniP for data prediction) and Sec. 3.3 (B2).
    """

    max_order: int = 2

    def __post_init__(self) -> None:
        """Refuse what the tests do not measure."""
        require_order("UniPC", self.max_order)

    @property
    def order(self) -> int:
        """p, which holds from the first steps on; where steps are short the corrector gains an order, up to the third.

        The first step is corrected by two beliefs, which is of third order.
        """
        return self.max_order

    def start(self) -> None:
        """No step before the first."""

    def step(
        self,
        denoise: Denoiser,
        process: GaussianProcess,
        x_t: X,
        t: Level,
        s: Level,
        memory: Predicted | None,
        noise: Noise,
    ) -> tuple[X, Predicted]:
        """The step before corrected, then one step predicted from level t to level s."""
        here = Known(level=t, value=denoise(x_t, t).x0)
        known = (here,)
        if memory is not None:
            x_t = along_beliefs(memory.x, memory.known[0].level, t, (*memory.known, here))
            known = (here, *memory.known[: self.max_order - 1])
        return along_beliefs(x_t, t, s, known), Predicted(x=x_t, known=known)
