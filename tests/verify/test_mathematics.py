"""Statements about our own mathematics: true as it is, false as soon as it is broken."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from unstir.diffusion.objective import MinSNR
from unstir.diffusion.parameterization import PredictV
from unstir.diffusion.process import Estimate
from unstir.diffusion.samplers import DDIM
from unstir.diffusion.schedule import RectifiedFlow, Tabulated
from unstir.diffusion.spacing import Explicit
from unstir.diffusion.times import UniformTimes
from unstir.verify import mathematics
from unstir.verify.outcome import Outcome

STATEMENTS: dict[str, Callable[[], Outcome]] = {
    "C8": mathematics.zero_terminal_snr,
    "C10": mathematics.ways_to_ask,
    "C13": mathematics.inversion,
    "C15": mathematics.steps_of_their_own_length,
    "C19": mathematics.ddim_identities,
    "C22b": mathematics.velocity_sign,
    "C23": mathematics.guidance_is_affine,
    "C33": mathematics.weights_are_invariant,
    "C43": mathematics.times_cover_the_range,
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_our_mathematics_passes(name: str) -> None:
    outcome = STATEMENTS[name]()
    assert outcome.status == "passed", outcome


def not_rescaled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tabulated, "with_zero_terminal_snr", lambda self: self)


def first_step_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Tabulated, "with_zero_terminal_snr", lambda self: Tabulated(table=(*(a / 2 for a in self.table[:-1]), 0.0))
    )


def noise_not_refused(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mathematics, "PredictNoise", mathematics.PredictX0)


def a_weight_that_explodes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mathematics, "WEIGHTS", {"x": lambda level: 1 / level.alpha})


def levels_shifted_twice(patch: pytest.MonkeyPatch) -> None:
    right = RectifiedFlow.time_of
    patch.setattr(
        RectifiedFlow, "time_of", lambda self, log_snr: right(self, log_snr - 2 * torch.tensor(self.shift).log())
    )


def times_are_rounded(patch: pytest.MonkeyPatch) -> None:
    right = Explicit.__call__
    patch.setattr(Explicit, "__call__", lambda self, *rest: tuple(round(t, 2) * 0.999 for t in right(self, *rest)))


def inversion_by_index(patch: pytest.MonkeyPatch) -> None:
    """The network is told which step it is, not at which time."""
    right = mathematics.encode

    def broken(denoise, process, x, times, iterations):
        def by_index(x_t, level, previous=None):
            index = min(range(len(times)), key=lambda i: abs(times[i] - level.t.item()))
            return denoise(x_t, process.schedule.at(torch.tensor(index / 1000, dtype=torch.float64)))

        return right(by_index, process, x, times, iterations=iterations)

    patch.setattr(mathematics, "encode", broken)


def inversion_of_first_order(patch: pytest.MonkeyPatch) -> None:
    right = mathematics.encode
    patch.setattr(mathematics, "encode", lambda *rest, iterations: right(*rest))


def one_belief_only(patch: pytest.MonkeyPatch) -> None:
    right = mathematics.DPMSolverMultistep
    patch.setattr(mathematics, "DPMSolverMultistep", lambda: right(max_order=1))


def noise_of_the_unclipped(patch: pytest.MonkeyPatch) -> None:
    step = DDIM.step

    def broken(self, denoise, process, x_t, t, s, memory, noise):
        x0 = denoise(x_t, t).x0
        eps = (x_t - t.alpha * (x0 + 0.01)) / t.sigma
        return s.alpha * x0 + s.sigma * eps if self.eta == 0 else step(
            self, denoise, process, x_t, t, s, memory, noise
        )[0], None

    patch.setattr(DDIM, "step", broken)


def eta_of_the_variance(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mathematics, "DDIM", lambda eta=0.0: DDIM(eta=eta / 2))


def wrong_sign(patch: pytest.MonkeyPatch) -> None:
    right = PredictV.coefficients
    patch.setattr(PredictV, "coefficients", lambda self, level: (right(self, level)[0], -right(self, level)[1]))


def guidance_from_one(patch: pytest.MonkeyPatch) -> None:
    """w counted from 1 instead of 0, as half the field does."""
    right = mathematics.extrapolate
    patch.setattr(mathematics, "extrapolate", lambda process, scale: right(process, scale + 1))


def one_channel_not_guided(patch: pytest.MonkeyPatch) -> None:
    right = mathematics.extrapolate

    def broken(process, scale):
        combine = right(process, scale)

        def some(x_t, level, strong, weak):
            x0 = combine(x_t, level, strong, weak).x0.clone()
            x0[:, 2] = weak.x0[:, 2]
            return Estimate(x0=x0)

        return some if scale not in (0, 1) else combine

    patch.setattr(mathematics, "extrapolate", broken)


def the_wrong_min_snr(patch: pytest.MonkeyPatch) -> None:
    """min(S + 1, g)/(S + 1) on v, which diffusers had for a while."""
    patch.setattr(
        MinSNR,
        "__call__",
        lambda self, level: ((level.alpha / level.sigma) ** 2 + 1).clamp(max=self.gamma),
    )


def times_without_the_end(patch: pytest.MonkeyPatch) -> None:
    right = UniformTimes.draw
    patch.setattr(UniformTimes, "draw", lambda self, *rest: right(self, *rest) * 0.94)


def times_without_the_last_step(patch: pytest.MonkeyPatch) -> None:
    right = UniformTimes.draw

    def broken(self, *rest):
        t = right(self, *rest)
        return t if self.num_steps is None else t.clamp(max=1 - 1 / self.num_steps)

    patch.setattr(UniformTimes, "draw", broken)


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("C8", not_rescaled),
        ("C8", first_step_lost),
        ("C8", noise_not_refused),
        ("C8", a_weight_that_explodes),
        ("C10", levels_shifted_twice),
        ("C10", times_are_rounded),
        ("C13", inversion_by_index),
        ("C13", inversion_of_first_order),
        ("C15", one_belief_only),
        ("C19", noise_of_the_unclipped),
        ("C19", eta_of_the_variance),
        ("C22b", wrong_sign),
        ("C23", guidance_from_one),
        ("C23", one_channel_not_guided),
        ("C33", the_wrong_min_snr),
        ("C43", times_without_the_end),
        ("C43", times_without_the_last_step),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_planted_bug_is_found(
    name: str, plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert STATEMENTS[name]().status == "failed"


def test_a_slip_is_the_only_error() -> None:
    """The network that echoes its answer makes an error of exactly the slip, in the coordinates of its output."""
    x0 = torch.ones(2, 1, 3, dtype=torch.float64)
    level = mathematics.Cosine().at(torch.tensor([0.3, 0.6], dtype=torch.float64))
    told = mathematics.Slip(inner=PredictV(), x0=x0, size=0.25)
    answer, scalar = told.encode(x0 * 0.7, level)
    torch.testing.assert_close(answer, PredictV().target(x0, x0 * 0.7, level) + 0.25)
    assert scalar.shape == (2,)
    assert mathematics.Echo()(answer, scalar, None) is answer
