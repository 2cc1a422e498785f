"""What a network may be asked for: closed formulas, round trips, agreement with each other, and the ends of a
schedule.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unstir.diffusion.parameterization import PARAMETERIZATIONS, Affine, PredictFlow, PredictNoise, PredictV, PredictX0
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.schedule import Cosine, LinearBeta, RectifiedFlow, Schedule, Tabulated, VariancePreserving
from unstir.verify.oracles import GaussianOracle

EACH = pytest.mark.parametrize(
    "parameterization", [kind() for kind in PARAMETERIZATIONS.values()], ids=PARAMETERIZATIONS.keys()
)
INSIDE = st.floats(0.01, 0.99)
X0, NOISE = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ORACLE = GaussianOracle(mean=torch.tensor(0.4), variance=torch.tensor(0.3))


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@EACH
@given(INSIDE)
def test_decode_undoes_target(parameterization: Affine, schedule: Schedule, t: float) -> None:
    """decode(target(x0)) = x0."""
    level = schedule.at(scalar(t))
    x_t = level.alpha * X0 + level.sigma * NOISE
    output = parameterization.target(X0, x_t, level)
    torch.testing.assert_close(parameterization.decode(output, x_t, level).x0, X0, rtol=1e-9, atol=1e-10)


@given(INSIDE)
def test_targets_are_the_papers(schedule: Schedule, t: float) -> None:
    """Noise is eps, x0 is x0, v = alpha eps - sigma x0 where variance is preserved (Salimans & Ho 2022), flow = d
    x_t/dt
    = alpha' x0 + sigma' eps (Lipman et al. 2023, Theorem 3).
    """
    level = schedule.at(scalar(t))
    x_t = level.alpha * X0 + level.sigma * NOISE
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(PredictNoise().target(X0, x_t, level), NOISE, **close)
    torch.testing.assert_close(PredictX0().target(X0, x_t, level), X0, rtol=0, atol=0)
    torch.testing.assert_close(PredictFlow().target(X0, x_t, level), level.dalpha * X0 + level.dsigma * NOISE, **close)
    torch.testing.assert_close(PredictV().target(X0, x_t, level), level.alpha * NOISE - level.sigma * X0, **close)


@given(INSIDE)
def test_all_say_the_same_of_the_same_truth(schedule: Schedule, t: float) -> None:
    """Four networks that know the same belief D give the same D, whatever they are asked for."""
    level = schedule.at(scalar(t))
    x_t = level.alpha * X0 + level.sigma * NOISE
    belief = ORACLE(x_t, level).x0
    for kind in PARAMETERIZATIONS.values():
        decoded = kind().decode(kind().target(belief, x_t, level), x_t, level).x0
        torch.testing.assert_close(decoded, belief, rtol=1e-9, atol=1e-10)


@given(st.floats(0.05, 0.95))
def test_flow_is_the_slope_of_the_path(schedule: Schedule, t: float) -> None:
    """The flow target is the derivative of alpha(t) x0 + sigma(t) eps, by central differences."""
    if isinstance(schedule, Tabulated):  # slopes jump at the points of a table
        t, width = (math.floor(t * schedule.num_steps) + 0.5) / schedule.num_steps, 1e-5
    else:
        width = 1e-5
    before, level, after = (schedule.at(scalar(time)) for time in (t - width, t, t + width))
    slope = ((after.alpha - before.alpha) * X0 + (after.sigma - before.sigma) * NOISE) / (2 * width)
    x_t = level.alpha * X0 + level.sigma * NOISE
    torch.testing.assert_close(PredictFlow().target(X0, x_t, level), slope, rtol=1e-5, atol=1e-6)


@given(st.floats(0.05, 0.95), st.floats(-2, 2))
def test_flow_of_a_belief_is_the_probability_flow(schedule: Schedule, t: float, x: float) -> None:
    """The velocity that stands for E[x0 | x_t] is the slope of the exact probability-flow solution (Song et al. 2021,
    Eq. 13).
    """
    if isinstance(schedule, Tabulated):
        t, width = (math.floor(t * schedule.num_steps) + 0.5) / schedule.num_steps, 1e-5
    else:
        width = 1e-5
    before, level, after = (schedule.at(scalar(time)) for time in (t - width, t, t + width))
    x_t = torch.full((1, 1), x, dtype=torch.float64)
    slope = (ORACLE.flow(x_t, level, after) - ORACLE.flow(x_t, level, before)) / (2 * width)
    torch.testing.assert_close(PredictFlow().target(ORACLE(x_t, level).x0, x_t, level), slope, rtol=1e-4, atol=1e-6)


@given(INSIDE)
def test_v_in_coordinates_of_exploding_variance(t: float) -> None:
    """x0 = x/(s^2 + 1) - s/sqrt(s^2 + 1) v with x = x_t/alpha, s = sigma/alpha: the minus sign is right (C22b)."""
    level = Cosine().at(scalar(t))
    x_t, output = level.alpha * X0 + level.sigma * NOISE, NOISE.flip(0)
    x, s = x_t / level.alpha, level.sigma / level.alpha
    expected = x / (s**2 + 1) - s / (s**2 + 1).sqrt() * output
    torch.testing.assert_close(PredictV().decode(output, x_t, level).x0, expected, rtol=1e-11, atol=1e-11)


def test_noise_says_nothing_at_pure_noise(any_process: GaussianProcess) -> None:
    """Predicting noise is refused where alpha = 0 (C8), also when it is one sample of a batch; elsewhere it is not."""
    times = torch.tensor([0.5, 1.0], dtype=torch.float64)
    level, x = any_process.schedule.at(times), torch.ones(2, 3)
    if (level.alpha == 0).any():
        with pytest.raises(ValueError, match="pure noise"):
            PredictNoise().decode(x, x, level)
        with pytest.raises(ValueError, match="pure noise"):
            PredictNoise().target(x, x, level)
    else:
        assert bool(torch.isfinite(PredictNoise().decode(x, x, level).x0).all())


@pytest.mark.parametrize("kind", [PredictX0, PredictV, PredictFlow])
def test_the_others_start_from_pure_noise(kind: type[Affine]) -> None:
    """x0, v and flow decode and have finite targets at t = 1 of the straight path, where alpha = 0: x0 round trips
    (C8).
    """
    level = RectifiedFlow().at(torch.ones(2, dtype=torch.float64))
    output = kind().target(X0, NOISE, level)
    torch.testing.assert_close(kind().decode(output, NOISE, level).x0, X0)


@pytest.mark.parametrize("kind", [PredictX0, PredictV])
def test_x0_and_v_start_from_a_table_without_signal(kind: type[Affine]) -> None:
    """Zero terminal SNR: x0 and v round trip at t = 1 (C8; Lin et al. 2024, Sec. 3.2)."""
    level = Tabulated(table=(0.9, 0.4, 0.0)).at(scalar(1.0))
    output = kind().target(X0, NOISE, level)
    torch.testing.assert_close(kind().decode(output, NOISE, level).x0, X0)


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine()], ids=["linear", "cosine"])
def test_flow_is_finite_at_the_data_end(schedule: VariancePreserving) -> None:
    """At t = 0, where sigma' is infinite, the belief is x_t itself."""
    level = schedule.at(torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(PredictFlow().decode(NOISE, X0, level).x0, X0, rtol=1e-12, atol=0)


@EACH
def test_every_belief_at_the_data_end_is_the_sample(parameterization: Affine, schedule: Schedule) -> None:
    """At t = 0 x_t = x0, so only a network that predicts x0 itself has a say."""
    level = schedule.at(scalar(0.0))
    expected = NOISE if isinstance(parameterization, PredictX0) else X0
    torch.testing.assert_close(parameterization.decode(NOISE, X0, level).x0, expected, rtol=1e-12, atol=0)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("t", [scalar(0.999), torch.tensor([0.999, 0.25], dtype=torch.float64)], ids=["shared", "each"])
def test_the_network_is_told_the_time_in_float32(parameterization: Affine, dtype: torch.dtype, t: torch.Tensor) -> None:
    """encode gives x_t and 1000 t, one float32 a sample whatever x is (999 in bfloat16 is 1000)."""
    x_t = torch.randn(2, 3, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    x, number = parameterization.encode(x_t, Cosine().at(t))
    assert torch.equal(x, x_t)
    assert (number.dtype, number.shape) == (torch.float32, (2,))
    assert number.tolist() == pytest.approx((1000 * t).expand(2).tolist(), rel=1e-7)


@EACH
def test_each_sample_at_its_own_level(parameterization: Affine, schedule: Schedule) -> None:
    """A batch with a level a sample equals its samples one by one; types are kept in float32."""
    level = schedule.at(torch.tensor([0.2, 0.8], dtype=torch.float64))
    x_t = X0 + NOISE
    decoded, target = parameterization.decode(NOISE, x_t, level).x0, parameterization.target(X0, x_t, level)
    for i in range(2):
        rows = slice(i, i + 1)
        torch.testing.assert_close(decoded[rows], parameterization.decode(NOISE[rows], x_t[rows], level[i]).x0)
        torch.testing.assert_close(target[rows], parameterization.target(X0[rows], x_t[rows], level[i]))
    assert parameterization.decode(NOISE.float(), x_t.float(), level).x0.dtype == torch.float32
    assert parameterization.decode(NOISE.float(), x_t.float(), level[0]).x0.dtype == torch.float32
