"""Guidance: the ends of the scale, affinity, coordinates, other combines, where it acts, and corrections."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unstir.diffusion.denoiser import Pair
from unstir.diffusion.guidance import (
    VIEWS,
    Combine,
    clip,
    corrected,
    dynamic_threshold,
    extrapolate,
    guided,
    known_pixels,
    pair_of,
    projected,
    rescale,
    within,
    zero_star,
    zero_start,
)
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.parameterization import Affine, PredictFlow, PredictNoise, PredictV
from unstir.diffusion.process import BinomialProcess, Estimate, GaussianProcess
from unstir.diffusion.samplers import DDIM, sample
from unstir.diffusion.schedule import Cosine, Level, Reciprocal, RectifiedFlow
from unstir.verify.oracles import GaussianOracle

STRONG, WEAK, X_T = torch.randn(3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
PROCESS = GaussianProcess(schedule=Cosine())
LEVEL = Cosine().at(torch.tensor(0.4, dtype=torch.float64))


@dataclass
class Two:
    """Two fixed beliefs; counts how they were asked for."""

    calls: list[str] = field(default_factory=list)

    def both(self, x_t: Tensor, level: Level, previous: Estimate | None = None) -> tuple[Estimate, Estimate]:
        self.calls.append("both")
        return Estimate(x0=STRONG, variance_fraction=0.25), Estimate(x0=WEAK, variance_fraction=0.75)

    def strong(self, x_t: Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
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


def test_one_denoiser_within_an_interval_and_another_beyond() -> None:
    """Ends included; where levels differ, inside means that all samples are."""
    levels = RectifiedFlow().at(torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64))
    low, high = levels.log_snr[1].item(), math.inf
    denoise = within((low, high), lambda *_: Estimate(x0=STRONG), lambda *_: Estimate(x0=WEAK))
    for i, expected in enumerate((WEAK, STRONG, STRONG)):
        assert torch.equal(denoise(X_T, levels[i]).x0, expected)
    assert torch.equal(denoise(X_T, levels).x0, WEAK)


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


# --- other combines ---

COMBINES: dict[str, Callable[[float], Combine]] = {
    "plain": partial(extrapolate, PROCESS),
    "projected": partial(projected, PROCESS),
    "zero_star": partial(zero_star, PROCESS),
    "rescale": lambda scale: rescale(extrapolate(PROCESS, scale), 0.7, "v"),
    "rescale x0": lambda scale: rescale(projected(PROCESS, scale), 1.0, "x0"),
}


def combined(combine: Combine, strong: Tensor = STRONG, weak: Tensor = WEAK, level: Level = LEVEL) -> Tensor:
    return combine(X_T.to(strong), level, Estimate(x0=strong), Estimate(x0=weak)).x0


@pytest.mark.parametrize("name", COMBINES)
def test_at_scale_one_every_combine_is_the_strong_belief(name: str) -> None:
    """Bit for bit (C23)."""
    assert torch.equal(combined(COMBINES[name](1)), STRONG)
    assert torch.equal(combined(COMBINES[name](1.0)), STRONG)


@pytest.mark.parametrize("name", COMBINES)
def test_every_combine_reaches_every_channel_and_leaves_the_variance_alone(name: str) -> None:
    """C25; the fraction is the strong belief's."""
    belief = guided(Two().pair, COMBINES[name](3.0))(X_T, LEVEL)
    assert bool(((belief.x0 - STRONG).abs().amax((0, 2, 3)) > 0.1).all())
    assert belief.variance_fraction == 0.25


@pytest.mark.parametrize("name", COMBINES)
def test_no_combine_mixes_samples(name: str) -> None:
    """A sample's guidance is its own: norms and deviations are taken over its sites alone."""
    together = combined(COMBINES[name](3.0), STRONG.double(), WEAK.double())
    for i in range(2):
        rows = slice(i, i + 1)
        alone = COMBINES[name](3.0)(
            X_T[rows].double(), LEVEL, Estimate(x0=STRONG[rows].double()), Estimate(x0=WEAK[rows].double())
        )
        torch.testing.assert_close(alone.x0, together[rows], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", COMBINES)
@pytest.mark.parametrize(("strong", "weak"), [(0.0, 0.0), (0.5, 0.5), (0.5, 0.0), (0.0, 0.5)])
def test_flat_beliefs_stay_finite(name: str, strong: float, weak: float) -> None:
    """Zero deviation, zero norm, zero step (C26)."""
    assert bool(
        torch.isfinite(combined(COMBINES[name](3.0), torch.full_like(X_T, strong), torch.full_like(X_T, weak))).all()
    )


@given(st.floats(-5, 10), st.floats(0, 1), st.sampled_from([None, 0.5, 5.0, 500.0]))
def test_projected_guidance_is_that_of_diffusers(scale: float, parallel: float, threshold: float | None) -> None:
    """Sadat et al. 2024 as diffusers has it; its scale there is ours less 1, as in the paper's w - 1."""
    guiders: Any = pytest.importorskip("diffusers.guiders.adaptive_projected_guidance")
    strong, weak = STRONG.double(), WEAK.double()
    theirs = guiders.normalized_guidance(
        strong, weak, scale - 1, eta=parallel, norm_threshold=threshold or 0.0, use_original_formulation=True
    )
    ours = combined(projected(PROCESS, scale, parallel=parallel, norm_threshold=threshold), strong, weak)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@given(st.floats(-5, 10))
def test_projected_guidance_with_all_of_its_parts_is_plain(scale: float) -> None:
    ours = combined(projected(PROCESS, scale, parallel=1.0), STRONG.double(), WEAK.double())
    torch.testing.assert_close(ours, at_scale(scale, STRONG.double(), WEAK.double()), rtol=1e-9, atol=1e-9)


def test_projected_guidance_moves_across_the_belief_and_no_further_than_told() -> None:
    strong, weak = STRONG.double(), WEAK.double()
    moved = combined(projected(PROCESS, 2.0), strong, weak) - strong
    torch.testing.assert_close((moved * strong).flatten(1).sum(1), torch.zeros(2).double(), rtol=0, atol=1e-9)
    moved = combined(projected(PROCESS, 2.0, parallel=1.0, norm_threshold=0.25), strong, weak) - strong
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.full((2,), 0.25).double())


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()])
@given(st.floats(-5, 10), st.floats(0.05, 0.95))
def test_zero_star_is_that_of_diffusers(schedule: Any, scale: float, t: float) -> None:
    """Fan et al. 2025 on the velocity: the weak one times <strong, weak>/|weak|^2, as diffusers has it."""
    guiders: Any = pytest.importorskip("diffusers.guiders.classifier_free_zero_star_guidance")
    level, flow = schedule.at(torch.tensor(t, dtype=torch.float64)), PredictFlow()
    strong, weak, x_t = STRONG.double(), WEAK.double(), X_T.double()
    fast, slow = (flow.target(x0, x_t, level) for x0 in (strong, weak))
    length = guiders.cfg_zero_star_scale(fast.flatten(1), slow.flatten(1)).view(-1, 1, 1, 1)
    expected = flow.decode(length * slow + scale * (fast - length * slow), x_t, level).x0
    ours = combined(zero_star(GaussianProcess(schedule=schedule), scale), strong, weak, level)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_zero_star_asks_for_velocities() -> None:
    """Where the path's velocity is infinite there is none."""
    level = Reciprocal().at(torch.ones((), dtype=torch.float64))
    with pytest.raises(ValueError, match="velocity is infinite"):
        combined(zero_star(PROCESS, 2.0), level=level)


@pytest.mark.parametrize("view", VIEWS)
@given(st.floats(0, 1))
def test_rescaling_is_that_of_diffusers_in_every_view(view: str, fraction: float) -> None:
    """Lin et al. 2024, Sec. 3.4: on the coordinate that is named."""
    module: Any = pytest.importorskip("diffusers.guiders.guider_utils")
    strong, weak, x_t, affine = STRONG.double(), WEAK.double(), X_T.double(), VIEWS[view]
    plain = at_scale(4.0, strong, weak)
    theirs = module.rescale_noise_cfg(
        affine.target(plain, x_t, LEVEL), affine.target(strong, x_t, LEVEL), guidance_rescale=fraction
    )
    ours = combined(rescale(extrapolate(PROCESS, 4.0), fraction, view), strong, weak)
    torch.testing.assert_close(ours, affine.decode(theirs, x_t, LEVEL).x0, rtol=1e-9, atol=1e-9)


def test_rescaling_depends_on_its_view() -> None:
    results = [combined(rescale(extrapolate(PROCESS, 4.0), 0.7, view)) for view in VIEWS]
    assert all((a - b).abs().max() > 0.05 for a, b in itertools.pairwise(results))


def test_rescaling_in_full_gives_the_contrast_of_the_strong_belief() -> None:
    """And no rescaling is the combine itself."""
    full = combined(rescale(extrapolate(PROCESS, 4.0), 1.0, "x0"))
    torch.testing.assert_close(full.flatten(1).std(1), STRONG.flatten(1).std(1))
    combine = extrapolate(PROCESS, 4.0)
    assert rescale(combine, 0, "x0") is combine


def test_bits_are_guided_on_their_logits() -> None:
    """p(x0 | c)^w p(x0)^(1 - w), and with all parts projected guidance is the same."""
    process = BinomialProcess(schedule=Cosine())
    strong, weak = STRONG.double().sigmoid(), WEAK.double().sigmoid()
    one, zero = strong**3 * weak**-2, (1 - strong) ** 3 * (1 - weak) ** -2
    for combine in (extrapolate(process, 3.0), projected(process, 3.0, parallel=1.0)):
        torch.testing.assert_close(combined(combine, strong, weak), one / (one + zero))
    across = combined(projected(process, 3.0), strong, weak)
    assert bool(((across > 0) & (across < 1)).all())


def test_a_pair_of_two_models_asks_each_once() -> None:
    """Autoguidance: strong and weak are two denoisers; both hear what was believed last."""
    asked: list[tuple[str, Tensor | None]] = []

    def model(name: str, x0: Tensor) -> Any:
        def denoise(x_t: Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
            asked.append((name, previous))
            return Estimate(x0=x0)

        return denoise

    pair = pair_of(model("strong", STRONG), model("weak", WEAK))
    belief = guided(pair, extrapolate(PROCESS, 2.0))(X_T, LEVEL, X_T)
    assert torch.equal(belief.x0, WEAK + 2.0 * (STRONG - WEAK))
    assert [name for name, _ in asked] == ["strong", "weak"]
    assert all(previous is X_T for _, previous in asked)
    assert torch.equal(pair.strong(X_T, LEVEL).x0, STRONG)
    assert len(asked) == 3


def test_a_zero_start_stands_still() -> None:
    """Velocity 0 below the log-SNR, the denoiser above: a step there leads nowhere (CFG-Zero*)."""
    process = GaussianProcess(schedule=RectifiedFlow())
    below = process.schedule.at(torch.tensor(0.6, dtype=torch.float64)).log_snr.item()
    asked: list[float] = []

    def denoise(x_t: Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
        asked.append(level.t.item())
        return Estimate(x0=STRONG)

    times = [1.0, 0.8, 0.6, 0.5, 0.2, 0.0]
    steps = list(sample(DDIM(), zero_start(denoise, below), process, X_T, times, KeyedNoise.from_seeds(range(2))))
    for step in steps[:4]:
        torch.testing.assert_close(step.x, X_T)
    assert asked == [0.5, 0.2]
    assert torch.equal(steps[-1].x, STRONG)


def test_a_zero_start_of_minus_infinity_is_the_first_step() -> None:
    """Where alpha is 0, and nowhere else."""
    denoise = zero_start(lambda *_: Estimate(x0=STRONG), -math.inf)
    assert torch.equal(denoise(X_T, RectifiedFlow().at(torch.ones((), dtype=torch.float64))).x0, X_T)
    assert torch.equal(denoise(X_T, RectifiedFlow().at(torch.tensor(0.99, dtype=torch.float64))).x0, STRONG)


@pytest.mark.parametrize("scale", [math.inf, math.nan])
@pytest.mark.parametrize("name", ["plain", "projected", "zero_star"])
def test_no_combine_takes_a_scale_that_is_no_number(name: str, scale: float) -> None:
    with pytest.raises(ValueError, match="guidance scale must be a finite number"):
        COMBINES[name](scale)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: projected(PROCESS, 2.0, parallel=math.nan), "parallel share"),
        (lambda: projected(PROCESS, 2.0, norm_threshold=0.0), "longest step"),
        (lambda: projected(PROCESS, 2.0, norm_threshold=math.nan), "longest step"),
        (lambda: rescale(extrapolate(PROCESS, 2.0), 1.1, "v"), "fraction"),
        (lambda: rescale(extrapolate(PROCESS, 2.0), math.nan, "v"), "fraction"),
        (lambda: rescale(extrapolate(PROCESS, 2.0), 0.5, "score"), "x0, noise, v, got 'score'"),
        (lambda: zero_start(Two().strong, math.nan), "must be a number"),
        (lambda: dynamic_threshold(0.0), "quantile"),
        (lambda: dynamic_threshold(1.5), "quantile"),
        (lambda: dynamic_threshold(math.nan), "quantile"),
        (lambda: dynamic_threshold(0.5, 0.0), "bound"),
        (lambda: known_pixels(STRONG, torch.ones(2, 3, 4, 4)), "True and False"),
    ],
)
def test_refuses_numbers_out_of_their_range(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- corrections ---


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


@given(st.floats(0.01, 1.0), st.floats(0.2, 2.0))
def test_a_dynamic_threshold_brings_the_whole_sample_into_range(quantile: float, bound: float) -> None:
    """Clamp to the quantile s of |x0| and divide by s where s exceeds the bound (Saharia et al. 2022), per sample."""
    samples = torch.stack([STRONG[0], 5 * STRONG[1]]).double()
    belief = dynamic_threshold(quantile, bound)(X_T, LEVEL, Estimate(x0=samples, variance_fraction=0.5))
    for x0, out in zip(samples, belief.x0, strict=True):
        ordered = x0.abs().flatten().sort().values
        place = quantile * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        reach = max((ordered[low] + (place - low) * (ordered[high] - ordered[low])).item(), bound)
        torch.testing.assert_close(out, x0.clamp(-reach, reach) * bound / reach, rtol=1e-5, atol=1e-6)
    assert belief.x0.abs().max().item() <= bound * (1 + 1e-6)
    assert belief.variance_fraction == 0.5


def test_a_dynamic_threshold_leaves_a_belief_that_is_in_range() -> None:
    """Bit for bit."""
    x0 = STRONG / STRONG.abs().max()
    assert torch.equal(dynamic_threshold(0.995)(X_T, LEVEL, Estimate(x0=x0)).x0, x0)


def test_what_is_known_is_believed() -> None:
    """Bit for bit; the mask may leave out batch and channels."""
    mask = torch.rand(4, 4, generator=torch.Generator().manual_seed(1)) > 0.5
    belief = known_pixels(WEAK[0], mask)(X_T, LEVEL, Estimate(x0=STRONG, variance_fraction=0.5))
    assert torch.equal(belief.x0[..., mask], WEAK[:1].expand(2, -1, -1, -1)[..., mask])
    assert torch.equal(belief.x0[..., ~mask], STRONG[..., ~mask])
    assert belief.variance_fraction == 0.5


@pytest.mark.parametrize(
    ("known", "mask"), [((3, 4, 5), (4, 4)), ((3, 4, 4), (5, 4)), ((1, 2, 3, 4, 4), (4, 4)), ((3, 3, 4, 4), (4, 4))]
)
def test_refuses_known_pixels_of_another_shape(known: tuple[int, ...], mask: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not fit a sample of"):
        known_pixels(torch.zeros(known), torch.ones(mask, dtype=torch.bool))(X_T, LEVEL, Estimate(x0=STRONG))
