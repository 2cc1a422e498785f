"""What a network may be asked for: closed formulas, round trips, agreement with each other, and the ends of a
schedule. (All of it on every chain, against numpy, is in ``test_chains``.)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unstir.diffusion.parameterization import (
    PARAMETERIZATIONS,
    Affine,
    FixedLarge,
    LearnedRange,
    LearnedVariance,
    Parameterization,
    PredictBit,
    PredictEDM,
    PredictFlip,
    PredictFlow,
    PredictMean,
    PredictNoise,
    PredictScore,
    PredictV,
    PredictX0,
)
from unstir.diffusion.process import BinomialProcess, Estimate, GaussianProcess, Process
from unstir.diffusion.schedule import (
    Cosine,
    Level,
    LinearBeta,
    Reciprocal,
    RectifiedFlow,
    Schedule,
    Tabulated,
    VarianceExploding,
    VariancePreserving,
    linear_betas,
)
from unstir.verify.oracles import BitsOracle, GaussianOracle

T = 40
INSIDE = st.floats(0.01, 0.99)
X0, NOISE = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ORACLE = GaussianOracle(mean=torch.tensor(0.4), variance=torch.tensor(0.3))


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def gaussian(schedule: Schedule) -> dict[str, Parameterization]:
    """One of every kind for real numbers."""
    process = GaussianProcess(schedule=schedule)
    return {
        "noise": PredictNoise(),
        "x0": PredictX0(),
        "v": PredictV(),
        "flow": PredictFlow(),
        "score": PredictScore(),
        "edm": PredictEDM(sigma_data=0.6),
        "mean": PredictMean(process=process, num_steps=T),
        "fixed_large": FixedLarge(mean=PredictV()),
        "learned_range": LearnedRange(mean=PredictNoise()),
        "learned_variance": LearnedVariance(mean=PredictX0(), process=process, num_steps=T),
    }


def binomial(schedule: Schedule) -> dict[str, Parameterization]:
    """One of every kind for bits."""
    process = BinomialProcess(schedule=schedule, rate=0.3)
    return {
        "bit": PredictBit(),
        "flip": PredictFlip(process=process, num_steps=T),
        "mean": PredictMean(process=process, num_steps=T),
        "x0": PredictX0(),
    }


EACH = pytest.mark.parametrize("name", gaussian(Cosine()))
BITS = pytest.mark.parametrize("name", binomial(Cosine()))


def widened(output: Tensor, kind: Parameterization) -> Tensor:
    """An output with a second half for the variance, where the kind reads one."""
    return torch.cat([output, 0.3 * output.cos()], 1) if kind.outputs == 2 else output


def test_every_kind_is_tested() -> None:
    """The tables above hold an instance of every entry of the registry, under its name."""
    instances = {**gaussian(Cosine()), **binomial(Cosine())}
    assert {name: type(kind) for name, kind in instances.items()} == PARAMETERIZATIONS


@EACH
@given(INSIDE)
def test_decode_undoes_target(name: str, schedule: Schedule, t: float) -> None:
    """decode(target(x0)) = x0."""
    kind, level = gaussian(schedule)[name], schedule.at(scalar(t))
    x_t = level.alpha * X0 + level.sigma * NOISE
    output = widened(kind.target(X0, x_t, level), kind)
    torch.testing.assert_close(kind.decode(output, x_t, level).x0, X0, rtol=1e-9, atol=1e-9)


@given(INSIDE)
def test_targets_are_the_papers(schedule: Schedule, t: float) -> None:
    """Noise is eps, x0 is x0, v = alpha eps - sigma x0 where variance is preserved (Salimans & Ho 2022), flow = d
    x_t/dt = alpha' x0 + sigma' eps (Lipman et al. 2023, Theorem 3), score = -eps/sigma (Song et al. 2021, Eq. 7 of a
    Gaussian).
    """
    level = schedule.at(scalar(t))
    x_t = level.alpha * X0 + level.sigma * NOISE
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(PredictNoise().target(X0, x_t, level), NOISE, **close)
    torch.testing.assert_close(PredictX0().target(X0, x_t, level), X0, rtol=0, atol=0)
    torch.testing.assert_close(PredictFlow().target(X0, x_t, level), level.dalpha * X0 + level.dsigma * NOISE, **close)
    torch.testing.assert_close(PredictV().target(X0, x_t, level), level.alpha * NOISE - level.sigma * X0, **close)
    torch.testing.assert_close(PredictScore().target(X0, x_t, level), -NOISE / level.sigma, **close)


@given(INSIDE)
def test_the_score_is_the_gradient_of_the_log_density(schedule: Schedule, t: float) -> None:
    """The score that stands for E[x0 | x_t] is d log q(x_t)/d x_t, by automatic differentiation (Tweedie)."""
    level = schedule.at(scalar(t))
    x_t = (level.alpha * X0 + level.sigma * NOISE).requires_grad_()
    (slope,) = torch.autograd.grad(ORACLE.log_density(x_t, level).sum(), x_t)
    got = PredictScore().target(ORACLE(x_t.detach(), level).x0, x_t.detach(), level)
    torch.testing.assert_close(got, slope, rtol=1e-8, atol=1e-8)


@given(INSIDE)
def test_all_say_the_same_of_the_same_truth(schedule: Schedule, t: float) -> None:
    """Networks that know the same belief D give the same D, whatever they are asked for."""
    level = schedule.at(scalar(t))
    x_t = level.alpha * X0 + level.sigma * NOISE
    belief = ORACLE(x_t, level).x0
    for kind in gaussian(schedule).values():
        decoded = kind.decode(widened(kind.target(belief, x_t, level), kind), x_t, level).x0
        torch.testing.assert_close(decoded, belief, rtol=1e-9, atol=1e-9)


@given(INSIDE, st.floats(0.2, 3))
def test_edm_asks_for_unit_variance(t: float, sigma_data: float) -> None:
    """With data of variance d^2 the input has variance 1 and so has the target, at every level, and the input is what
    EDM's c_in makes of x_t/alpha (Karras et al. 2022, Table 1 and Appendix B.6, their alpha = 1).
    """
    for schedule in (VarianceExploding(sigma_max=80.0), Cosine(), RectifiedFlow()):
        kind, level = PredictEDM(sigma_data=sigma_data), schedule.at(scalar(t))
        d, alpha, sigma = sigma_data, level.alpha, level.sigma
        # x_t = alpha x0 + sigma eps and F are linear in (x0, eps): read the coefficients off.
        inputs, outputs = [], []
        for x0, noise in ((1.0, 0.0), (0.0, 1.0)):
            clean = torch.full((1, 1), x0, dtype=torch.float64)
            x_t = alpha * x0 + sigma * torch.full((1, 1), noise, dtype=torch.float64)
            inputs.append(kind.encode(x_t, level)[0].item())
            outputs.append(kind.target(clean, x_t, level).item())
        for x0, noise in (inputs, outputs):
            assert (x0 * d) ** 2 + noise**2 == pytest.approx(1, abs=1e-9)
        ratio = (sigma / alpha).item()
        assert kind.encode(torch.ones(1, 1, dtype=torch.float64), level)[1].item() == pytest.approx(
            math.log(ratio) / 4, rel=1e-5, abs=1e-6
        )
        skip, out = kind.coefficients(level)
        assert (skip * alpha).item() == pytest.approx(d**2 / (d**2 + ratio**2), rel=1e-10)  # c_skip
        assert out.item() == pytest.approx(ratio * d / math.sqrt(d**2 + ratio**2), rel=1e-10)  # c_out


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), VarianceExploding()], ids=["cosine", "flow", "ve"])
def test_edm_is_finite_at_both_ends(schedule: Schedule) -> None:
    """The network's input and number are finite without noise and without signal."""
    level = schedule.at(torch.tensor([0.0, 1.0], dtype=torch.float64))
    x, number = PredictEDM().encode(X0, level)
    assert bool(torch.isfinite(x).all())
    assert bool(torch.isfinite(number).all())


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


@pytest.mark.parametrize("kind", [PredictNoise(), PredictScore()], ids=["noise", "score"])
def test_noise_says_nothing_at_pure_noise(any_process: GaussianProcess, kind: Affine) -> None:
    """Predicting noise is refused where alpha = 0 (C8), also when it is one sample of a batch; elsewhere it is not."""
    times = torch.tensor([0.5, 1.0], dtype=torch.float64)
    level, x = any_process.schedule.at(times), torch.ones(2, 3)
    if (level.alpha == 0).any():
        with pytest.raises(ValueError, match=r"pure noise.*predict x0, v or flow"):
            kind.decode(x, x, level)
        with pytest.raises(ValueError, match="pure noise"):
            kind.target(x, x, level)
    else:
        assert bool(torch.isfinite(kind.decode(x, x, level).x0).all())


@pytest.mark.parametrize("schedule", [Reciprocal(), Tabulated(table=(0.9, 0.4, 0.0))], ids=["reciprocal", "table"])
def test_flow_says_nothing_at_infinite_speed(schedule: Schedule) -> None:
    """Where alpha falls to 0 as a root does, the velocity of the path is infinite: refused, not decoded as 0 (C8)."""
    level, x = schedule.at(torch.tensor([0.5, 1.0], dtype=torch.float64)), torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"velocity is infinite.*predict x0 or v"):
        PredictFlow().decode(x, x, level)
    assert bool(torch.isfinite(PredictFlow().decode(x[:1], x[:1], level[:1]).x0).all())


@pytest.mark.parametrize("kind", [PredictX0(), PredictV(), PredictFlow(), PredictEDM()], ids=["x0", "v", "flow", "edm"])
def test_the_others_start_from_pure_noise(kind: Affine) -> None:
    """x0, v, flow and EDM decode and have finite targets at t = 1 of the straight path, where alpha = 0: x0 round
    trips (C8).
    """
    level = RectifiedFlow().at(torch.ones(2, dtype=torch.float64))
    output = kind.target(X0, NOISE, level)
    torch.testing.assert_close(kind.decode(output, NOISE, level).x0, X0)


@pytest.mark.parametrize("kind", [PredictX0(), PredictV(), PredictEDM()], ids=["x0", "v", "edm"])
def test_x0_and_v_start_from_a_table_without_signal(kind: Affine) -> None:
    """Zero terminal SNR: x0 and v round trip at t = 1 (C8; Lin et al. 2024, Sec. 3.2)."""
    level = Tabulated(table=(0.9, 0.4, 0.0)).at(scalar(1.0))
    output = kind.target(X0, NOISE, level)
    torch.testing.assert_close(kind.decode(output, NOISE, level).x0, X0)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_means_start_from_a_table_without_signal(num_steps: int) -> None:
    """From pure noise the mean of the next step tells x0 all the same: alpha_s x0."""
    table = Tabulated(table=(0.9, 0.4, 0.0)[-num_steps:])
    kind = PredictMean(process=GaussianProcess(schedule=table), num_steps=num_steps)
    level, before = table.at(scalar(1.0)), table.at(scalar(1 - 1 / num_steps))
    output = kind.target(X0, NOISE, level)
    torch.testing.assert_close(output, before.alpha * X0, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(kind.decode(output, NOISE, level).x0, X0)


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(), Cosine(offset=0.0)], ids=["linear", "cosine", "offset 0"])
def test_flow_is_finite_at_the_data_end(schedule: VariancePreserving) -> None:
    """At t = 0, where sigma' is infinite, the belief is x_t itself."""
    level = schedule.at(torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(PredictFlow().decode(NOISE, X0, level).x0, X0, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["noise", "x0", "v", "flow", "score", "edm", "fixed_large", "learned_range"])
def test_every_belief_at_the_data_end_is_the_sample(name: str, schedule: Schedule) -> None:
    """At t = 0 x_t = x0, so only a network that predicts x0 itself has a say."""
    kind, level = gaussian(schedule)[name], schedule.at(scalar(0.0))
    expected = NOISE if name == "x0" else X0
    torch.testing.assert_close(kind.decode(widened(NOISE, kind), X0, level).x0, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [name for name in (*gaussian(Cosine()), *binomial(Cosine())) if name != "edm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("t", [scalar(0.999), torch.tensor([0.999, 0.25], dtype=torch.float64)], ids=["shared", "each"])
def test_the_network_is_told_the_time_in_float32(name: str, dtype: torch.dtype, t: Tensor) -> None:
    """encode gives x_t (bits as -1 and 1) and 1000 t, one float32 a sample whatever x is (999 in bfloat16 is 1000)."""
    kind = {**binomial(Cosine()), **gaussian(Cosine())}[name]
    x_t = torch.randn(2, 3, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    x, number = kind.encode(x_t, Cosine().at(t))
    assert torch.equal(x, 2 * x_t - 1 if name in ("bit", "flip") else x_t)
    assert (number.dtype, number.shape) == (torch.float32, (2,))
    assert number.tolist() == pytest.approx((1000 * t).expand(2).tolist(), rel=1e-7)


@EACH
def test_each_sample_at_its_own_level(name: str, schedule: Schedule) -> None:
    """A batch with a level a sample equals its samples one by one, variance included; types are kept in float32."""
    kind = gaussian(schedule)[name]
    x_t = X0 + NOISE
    for times in ([0.2, 0.8], [1 / T, 0.9], [0.5, 1.0], [1 / T, 1.0]):
        level = schedule.at(torch.tensor(times, dtype=torch.float64))
        if bool((level.alpha == 0).any()) and name in ("noise", "score", "learned_range"):
            continue
        output = widened(NOISE, kind)
        belief, target = kind.decode(output, x_t, level), kind.target(X0, x_t, level)
        for i in range(2):
            rows = slice(i, i + 1)
            alone = kind.decode(output[rows], x_t[rows], level[i])
            torch.testing.assert_close(belief.x0[rows], alone.x0, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(target[rows], kind.target(X0[rows], x_t[rows], level[i]))
            if isinstance(alone.variance_fraction, Tensor):
                together = torch.as_tensor(belief.variance_fraction)[rows]
                torch.testing.assert_close(together, alone.variance_fraction, rtol=1e-9, atol=1e-9)
        assert kind.decode(output.float(), x_t.float(), level).x0.dtype == torch.float32
        assert kind.decode(output.float(), x_t.float(), level[0]).x0.dtype == torch.float32


# The reverse chain's next step.


@given(st.integers(1, T), st.floats(-2, 2), st.floats(-2, 2))
def test_a_predicted_mean_is_the_mean_of_the_next_step(schedule: Schedule, step: int, output: float, x: float) -> None:
    """The belief that a mean stands for makes the chain's next step have just this mean, whatever the network says."""
    process = GaussianProcess(schedule=schedule)
    kind = PredictMean(process=process, num_steps=T)
    t, s = schedule.at(scalar(step / T)), schedule.at(scalar((step - 1) / T))
    x_t, said = (torch.full((1, 1), value, dtype=torch.float64) for value in (x, output))
    back = process.reverse(x_t, t, s, kind.decode(said, x_t, t))
    assert back.mean.item() == pytest.approx(output, abs=1e-10)


@pytest.mark.parametrize("make", [PredictMean, PredictFlip], ids=["mean", "flip"])
@pytest.mark.parametrize("num_steps", [0, -1])
def test_a_next_step_needs_a_chain(make: Callable[..., Parameterization], num_steps: int) -> None:
    """ValueError for a chain without steps."""
    kind = make(process=BinomialProcess(schedule=Cosine()), num_steps=num_steps)
    with pytest.raises(ValueError, match="at least 1 step"):
        kind.target(torch.ones(1, 1), torch.ones(1, 1), Cosine().at(scalar(0.5)))


@pytest.mark.parametrize("process", [GaussianProcess(schedule=Cosine()), BinomialProcess(schedule=Cosine())])
def test_there_is_no_next_step_from_data(process: Process) -> None:
    """ValueError at t = 0."""
    kind, x = PredictMean(process=process, num_steps=T), torch.ones(1, 1)
    with pytest.raises(ValueError, match="s < t"):
        kind.decode(x, x, Cosine().at(scalar(0.0)))


# Bits.

PRESERVING = {"linear": LinearBeta(), "reciprocal": Reciprocal(), "table": Tabulated.from_betas(linear_betas(T))}
ON_BITS = pytest.mark.parametrize("schedule", PRESERVING.values(), ids=PRESERVING.keys())


@BITS
@ON_BITS
@given(INSIDE, st.floats(0.001, 0.999), st.sampled_from([0.0, 1.0]))
def test_beliefs_about_bits_round_trip(name: str, schedule: Schedule, t: float, belief: float, x: float) -> None:
    """decode(target(p)) = p for any probability, on and off the grid of the chain."""
    kind, level = binomial(schedule)[name], schedule.at(scalar(t))
    x_t, x0 = (torch.full((1, 1), value, dtype=torch.float64) for value in (x, belief))
    assert kind.decode(kind.target(x0, x_t, level), x_t, level).x0.item() == pytest.approx(belief, abs=1e-9)


@ON_BITS
@given(st.integers(1, T), st.floats(-4, 4), st.sampled_from([0.0, 1.0]))
def test_a_predicted_flip_is_the_flip_of_the_next_step(schedule: Schedule, step: int, output: float, x: float) -> None:
    """P(x_s != x_t) = sigmoid(F + logit of the forward chain's flip), in the very step (Sohl-Dickstein et al. 2015,
    Table App. 1); F = 0 leaves the forward chain's own flips.
    """
    process = BinomialProcess(schedule=schedule, rate=0.3)
    kind = PredictFlip(process=process, num_steps=T)
    t, s = schedule.at(scalar(step / T)), schedule.at(scalar((step - 1) / T))
    x_t = torch.full((1, 1), x, dtype=torch.float64)
    forward = abs(process.kernel(x_t, s, t).probability.item() - x)
    back = process.reverse(x_t, t, s, kind.decode(torch.full_like(x_t, output), x_t, t)).probability.item()
    odds = math.exp(output) * forward / (1 - forward)
    assert abs(back - x) == pytest.approx(odds / (1 + odds), abs=1e-10)


@ON_BITS
@given(st.integers(1, T), st.integers(0, 7))
def test_exact_beliefs_about_bits_are_said_alike(schedule: Schedule, step: int, string: int) -> None:
    """Networks of bits, flips and means that know P(x0 | x_t) of a law of 3 bits all say it."""
    law = BitsOracle(table=torch.tensor([0.3, 0.05, 0.1, 0.15, 0.02, 0.18, 0.12, 0.08]), rate=0.3)
    level, x_t = schedule.at(scalar(step / T)), law.strings[string : string + 1]
    belief = law(x_t, level).x0
    for kind in binomial(schedule).values():
        torch.testing.assert_close(
            kind.decode(kind.target(belief, x_t, level), x_t, level).x0, belief, rtol=0, atol=1e-9
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_bit_is_ruled_out(dtype: torch.dtype) -> None:
    """However large a logit is, the belief stays inside (0, 1), and targets of certain bits are finite."""
    level, x_t = Cosine().at(scalar(0.5)), torch.tensor([[0.0, 1.0]], dtype=dtype)
    belief = PredictBit().decode(torch.tensor([[-1e4, 1e4]], dtype=dtype), x_t, level).x0
    assert bool(((belief > 0) & (belief < 1)).all())
    assert bool(torch.isfinite(PredictBit().target(x_t, x_t, level)).all())
    for name in ("flip", "mean"):
        kind = binomial(Cosine())[name]
        assert bool(torch.isfinite(kind.target(x_t, 1 - x_t, level)).all())


# Variances.


def test_fixed_variances_have_their_place() -> None:
    """Fixed large is 1 on the way from beta_tilde to beta; what says nothing is 0."""
    level = Cosine().at(scalar(0.5))
    assert FixedLarge(mean=PredictV()).decode(NOISE, X0, level).variance_fraction == 1
    assert PredictV().decode(NOISE, X0, level).variance_fraction is None


@given(INSIDE, st.floats(-3, 3))
def test_a_learned_range_is_read_from_the_second_half(schedule: Schedule, t: float, v: float) -> None:
    """f = (v + 1)/2, v not clipped, in every channel its own; the first half is the mean's (Nichol & Dhariwal 2021)."""
    kind, level = LearnedRange(mean=PredictV()), schedule.at(scalar(t))
    second = torch.linspace(v, v + 1, NOISE.numel(), dtype=torch.float64).view_as(NOISE)
    belief = kind.decode(torch.cat([NOISE, second], 1), X0, level)
    assert torch.equal(belief.x0, PredictV().decode(NOISE, X0, level).x0)
    torch.testing.assert_close(torch.as_tensor(belief.variance_fraction), (second + 1) / 2, rtol=1e-15, atol=0)


@given(st.integers(2, T), st.floats(-4, 2))
def test_a_learned_variance_is_relative_to_beta(schedule: Schedule, step: int, log_ratio: float) -> None:
    """The next step's variance is beta exp(G), whatever lies between beta_tilde and beta."""
    process = GaussianProcess(schedule=schedule)
    kind = LearnedVariance(mean=PredictX0(), process=process, num_steps=T)
    t, s = schedule.at(scalar(step / T)), schedule.at(scalar((step - 1) / T))
    x = torch.zeros(1, 1, dtype=torch.float64)
    output = torch.tensor([[0.2, log_ratio]], dtype=torch.float64)
    back = process.reverse(x, t, s, kind.decode(output, x, t))
    beta = process.kernel(x, s, t).std.item() ** 2
    assert back.std.item() ** 2 == pytest.approx(beta * math.exp(log_ratio), rel=1e-9)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), Reciprocal()], ids=["flow", "reciprocal"])
def test_the_first_step_is_known_however_its_time_was_rounded(schedule: Schedule) -> None:
    """1 - 24/25 is not 1/25 in float64, but it is the first of 25 steps: its next level is the data (C5)."""
    kind = LearnedVariance(mean=PredictX0(), process=GaussianProcess(schedule=schedule), num_steps=25)
    rounded, exact = 1 - 24 / 25, 1 / 25
    assert rounded > exact
    x, output = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([[0.2, 0.7]], dtype=torch.float64)
    got, expected = (kind.decode(output, x, schedule.at(scalar(t))).variance_fraction for t in (rounded, exact))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_learned_variance_where_beta_tilde_is_beta(dtype: torch.dtype) -> None:
    """Where so little signal is left that both are one float, the variance is beta exp(G) all the same."""
    table = Tabulated.from_betas([0.02] * 3000)
    process = GaussianProcess(schedule=table)
    t, s = table.at(scalar(1.0)), table.at(scalar(1 - 1 / 3000))
    assert t.sigma == s.sigma
    x = torch.zeros(1, 1, dtype=dtype)
    kind = LearnedVariance(mean=PredictX0(), process=process, num_steps=3000)
    back = process.reverse(x, t, s, kind.decode(torch.tensor([[0.2, -1.5]], dtype=dtype), x, t))
    assert torch.as_tensor(back.std).item() ** 2 == pytest.approx(0.02 * math.exp(-1.5), rel=1e-5)


@pytest.mark.parametrize("name", ["learned_range", "learned_variance"])
@pytest.mark.parametrize("channels", [3, 5, 6])
def test_a_learned_variance_needs_twice_the_channels(name: str, channels: int) -> None:
    """ValueError with what was given, what was expected, and what to do; and ``outputs`` says it beforehand."""
    kind, level = gaussian(Cosine())[name], Cosine().at(scalar(0.5))
    assert kind.outputs == 2
    assert PredictV().outputs == 1
    if channels == 6:
        kind.decode(torch.zeros(2, 6, 4), torch.zeros(2, 3, 4), level)
        return
    with pytest.raises(ValueError, match=rf"6 output channels for 3 of x, got {channels}; double"):
        kind.decode(torch.zeros(2, channels, 4), torch.zeros(2, 3, 4), level)


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, math.nan])
def test_edm_needs_data_with_a_spread(sigma_data: float) -> None:
    """ValueError for a standard deviation that is none."""
    with pytest.raises(ValueError, match="standard deviation"):
        PredictEDM(sigma_data=sigma_data)


def test_targets_of_variances_are_those_of_the_mean() -> None:
    """No sample tells what the variance should be: the target is the first half's, and so is the input."""
    level = Cosine().at(scalar(0.5))
    for name in ("fixed_large", "learned_range", "learned_variance"):
        kind = gaussian(Cosine())[name]
        inner: Parameterization = kind.mean  # type: ignore[attr-defined]
        assert torch.equal(kind.target(X0, NOISE, level), inner.target(X0, NOISE, level))
        assert torch.equal(kind.encode(NOISE, level)[0], inner.encode(NOISE, level)[0])
        assert isinstance(kind.decode(widened(NOISE, kind), X0, level), Estimate)


def test_levels_may_be_of_any_kind() -> None:
    """A level that was written down by hand is read like one of a schedule."""
    level = Level(t=scalar(0.3), alpha=scalar(0.8), sigma=scalar(0.6), dalpha=scalar(-1.0), dsigma=scalar(2.0))
    torch.testing.assert_close(PredictFlow().target(X0, 0.8 * X0 + 0.6 * NOISE, level), -X0 + 2 * NOISE)
