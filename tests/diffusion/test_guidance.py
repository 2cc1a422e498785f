"""Guidance: the ends of the scale, affinity, independence of coordinates, the interval and corrections."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unstir.diffusion.denoiser import Pair
from unstir.diffusion.guidance import clip, corrected, extrapolate, guided
from unstir.diffusion.parameterization import Affine, PredictFlow, PredictNoise, PredictV
from unstir.diffusion.process import Estimate, GaussianProcess
from unstir.diffusion.schedule import Cosine, Level, RectifiedFlow
from unstir.verify.oracles import GaussianOracle

STRONG, WEAK, X_T = torch.randn(3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
PROCESS = GaussianProcess(schedule=Cosine())
LEVEL = Cosine().at(torch.tensor(0.4, dtype=torch.float64))


@dataclass
class Two:
    """Two fixed beliefs; counts how they were asked for."""

    calls: list[str] = field(default_factory=list)

    def both(self, x_t: Tensor, level: Level, previous: Tensor | None = None) -> tuple[Estimate, Estimate]:
        self.calls.append("both")
        return Estimate(x0=STRONG, variance_fraction=0.25), Estimate(x0=WEAK, variance_fraction=0.75)

    def strong(self, x_t: Tensor, level: Level, previous: Tensor | None = None) -> Estimate:
        self.calls.append("strong")
        return Estimate(x0=STRONG, variance_fraction=0.25)

    @property
    def pair(self) -> Pair:
        return Pair(both=self.both, strong=self.strong)


def at_scale(scale: float, strong: Tensor = STRONG, weak: Tensor = WEAK) -> Tensor:
    return extrapolate(PROCESS, scale)(X_T, LEVEL, Estimate(x0=strong), Estimate(x0=weak)).x0


def test_scale_one_is_the_strong_belief_and_zero_the_weak_one() -> None:
    """out(0) = u and out(1) = c, bit for bit (C23)."""
    assert torch.equal(at_scale(1), STRONG)
    assert torch.equal(at_scale(1.0), STRONG)
    assert torch.equal(at_scale(0), WEAK)


@given(st.floats(-10, 10))
def test_guidance_is_affine_in_its_scale(scale: float) -> None:
    """out(w) = u + w (c - u) (C23; Ho & Salimans 2022, Eq. 6, whose w is ours less 1)."""
    strong, weak = STRONG.double(), WEAK.double()
    torch.testing.assert_close(at_scale(scale, strong, weak), weak + scale * (strong - weak), rtol=1e-12, atol=1e-12)
    papers = (1 + (scale - 1)) * strong - (scale - 1) * weak
    torch.testing.assert_close(at_scale(scale, strong, weak), papers, rtol=1e-11, atol=1e-11)


def test_guidance_reaches_every_channel() -> None:
    """The difference it makes is non-zero on all channels (C25)."""
    assert bool(((at_scale(3.0) - STRONG).abs().amax((0, 2, 3)) > 0.1).all())


@pytest.mark.parametrize("kind", [PredictNoise, PredictV, PredictFlow])
@given(st.floats(-5, 10))
def test_guidance_is_the_same_in_every_coordinate(process: GaussianProcess, kind: type[Affine], scale: float) -> None:
    """Extrapolating noise, v or flow and then making x0 of it gives what extrapolating x0 gives (documented)."""
    level = process.schedule.at(torch.tensor(0.6, dtype=torch.float64))
    x_t, strong, weak = X_T.double(), STRONG.double(), WEAK.double()
    outputs = [kind().target(x0, x_t, level) for x0 in (strong, weak)]
    elsewhere = kind().decode(outputs[1] + scale * (outputs[0] - outputs[1]), x_t, level).x0
    here = extrapolate(process, scale)(x_t, level, Estimate(x0=strong), Estimate(x0=weak)).x0
    torch.testing.assert_close(here, elsewhere, rtol=1e-9, atol=1e-9)


def test_guidance_between_gaussians_is_the_product_of_powers() -> None:
    """p(x|c)^w p(x)^(1-w) has the score w s_c + (1 - w) s_u: for Gaussians of equal spread, the mean w m_c + (1 - w)
    m_u.
    """
    variance, scale = torch.tensor(0.5), 2.5
    laws = [
        GaussianOracle(mean=torch.tensor(mean), variance=variance)
        for mean in (1.0, 0.2, scale * 1.0 + (1 - scale) * 0.2)
    ]
    x = X_T.double()
    strong, weak, expected = (law(x, LEVEL) for law in laws)
    torch.testing.assert_close(
        extrapolate(PROCESS, scale)(x, LEVEL, strong, weak).x0, expected.x0, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(("scale", "fraction"), [(0, 0.75), (1, 0.25), (3.0, 0.25)])
def test_guidance_leaves_the_variance_alone(scale: float, fraction: float) -> None:
    """The reverse variance is that of the strong belief (of the weak one at scale 0)."""
    assert guided(Two().pair, extrapolate(PROCESS, scale))(X_T, LEVEL).variance_fraction == fraction


@pytest.mark.parametrize("scale", [math.inf, -math.inf, math.nan])
def test_refuses_a_scale_that_is_no_number(scale: float) -> None:
    """ValueError unless finite."""
    with pytest.raises(ValueError, match="finite"):
        extrapolate(PROCESS, scale)


def test_outside_the_interval_the_strong_model_is_called_alone() -> None:
    """Beliefs are combined where low <= log-SNR <= high, ends included; elsewhere one strong call (Kynkäänniemi et al.
    2024).
    """
    schedule = RectifiedFlow()
    times = torch.tensor([0.9, 0.7, 0.5, 0.3, 0.1], dtype=torch.float64)
    levels = schedule.at(times)
    two = Two()
    interval = (levels.log_snr[1].item(), levels.log_snr[3].item())
    denoise = guided(two.pair, extrapolate(PROCESS, 2.0), interval=interval)
    beliefs = [denoise(X_T, levels[i]).x0 for i in range(5)]
    assert two.calls == ["strong", "both", "both", "both", "strong"]
    combined = WEAK + 2.0 * (STRONG - WEAK)
    for belief, expected in zip(beliefs, [STRONG, combined, combined, combined, STRONG], strict=True):
        assert torch.equal(belief, expected)


def test_without_an_interval_beliefs_are_combined_everywhere() -> None:
    """One call of both a level, also where log-SNR is infinite."""
    two = Two()
    denoise = guided(two.pair, extrapolate(PROCESS, 2.0))
    for t in (1.0, 0.5, 0.0):
        denoise(X_T, RectifiedFlow().at(torch.tensor(t, dtype=torch.float64)))
    assert two.calls == ["both"] * 3


def test_the_interval_holds_for_a_batch_only_if_for_all() -> None:
    """With a level a sample, beliefs are combined where every sample is inside."""
    schedule = RectifiedFlow()
    two = Two()
    denoise = guided(two.pair, extrapolate(PROCESS, 2.0), interval=(-2.0, 2.0))
    denoise(X_T, schedule.at(torch.tensor([0.5, 0.6], dtype=torch.float64)))
    denoise(X_T, schedule.at(torch.tensor([0.5, 0.99], dtype=torch.float64)))
    assert two.calls == ["both", "strong"]


@pytest.mark.parametrize("interval", [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0)])
def test_refuses_an_empty_interval(interval: tuple[float, float]) -> None:
    """ValueError unless low < high."""
    with pytest.raises(ValueError, match="interval"):
        guided(Two().pair, extrapolate(PROCESS, 2.0), interval=interval)


@given(st.floats(0.1, 3))
def test_clip_bounds_the_belief_and_nothing_else(bound: float) -> None:
    """Values beyond the bound become the bound, others stay bit for bit; the variance stays."""
    belief = clip(bound)(X_T, LEVEL, Estimate(x0=STRONG, variance_fraction=0.5))
    assert belief.x0.abs().max().item() <= torch.tensor(bound).item()
    within = STRONG.abs() <= bound
    assert torch.equal(belief.x0[within], STRONG[within])
    assert torch.equal(belief.x0[~within].sign(), STRONG[~within].sign())
    assert belief.variance_fraction == 0.5


def test_corrections_apply_from_left_to_right_also_outside_the_interval() -> None:
    """guided(..., f, g) is g after f; corrections are not switched off with guidance; the same without a pair."""

    def shift(x_t: Tensor, level: Level, belief: Estimate) -> Estimate:
        return Estimate(x0=belief.x0 + 1)

    combine, two = extrapolate(PROCESS, 1), Two()
    for interval in (None, (100.0, 101.0)):
        assert torch.equal(
            guided(two.pair, combine, shift, clip(), interval=interval)(X_T, LEVEL).x0, (STRONG + 1).clamp(-1, 1)
        )
        assert torch.equal(
            guided(two.pair, combine, clip(), shift, interval=interval)(X_T, LEVEL).x0, STRONG.clamp(-1, 1) + 1
        )
    assert torch.equal(corrected(two.strong, shift, clip())(X_T, LEVEL).x0, (STRONG + 1).clamp(-1, 1))
    assert torch.equal(corrected(two.strong)(X_T, LEVEL).x0, STRONG)
