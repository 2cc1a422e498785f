"""The forward chain and its reverse against Bayes' theorem, DDPM's own formulas and simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import mpmath
import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import PROCESSES, BinomialProcess, Estimate, GaussianProcess, require_data
from unstir.diffusion.schedule import (
    Cosine,
    Level,
    LinearBeta,
    RectifiedFlow,
    Schedule,
    Tabulated,
    VarianceExploding,
    linear_betas,
)
from unstir.verify.oracles import kolmogorov

T = 20
GAP = 1e-3
VALUE = st.floats(-2, 2)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def one(value: float) -> torch.Tensor:
    return torch.full((1, 1), value, dtype=torch.float64)


def levels(process: GaussianProcess, *times: float) -> tuple[Level, ...]:
    return tuple(process.schedule.at(scalar(t)) for t in times)


@st.composite
def rising(draw: st.DrawFn, count: int) -> tuple[float, ...]:
    """Times in (0.01, 0.99), rising by at least ``GAP``."""
    times = sorted(draw(st.lists(st.floats(0.01, 0.99 - count * GAP), min_size=count, max_size=count)))
    return tuple(t + i * GAP for i, t in enumerate(times))


def test_marginal_by_simulation(process: GaussianProcess) -> None:
    """x_t has mean alpha x0 and variance sigma^2, and is Gaussian (Ho et al. 2020, Eq. 4): not 1 - alpha_t (papers.md
    3.1).
    """
    (t,) = levels(process, 0.6)
    x0 = torch.full((1, 20_000), 0.7, dtype=torch.float64)
    x_t = process.marginal(x0, t).sample(KeyedNoise.from_seeds([0]))
    sigma = t.sigma.item()
    assert x_t.mean().item() == pytest.approx(t.alpha.item() * 0.7, abs=4 * sigma / math.sqrt(20_000))
    assert x_t.var().item() == pytest.approx(sigma**2, rel=4 * math.sqrt(2 / 20_000))
    assert kolmogorov(torch.special.ndtr((x_t - t.alpha * 0.7) / sigma)) < 1.95


@given(rising(2), VALUE)
def test_the_chain_composes(process: GaussianProcess, times: tuple[float, ...], x0: float) -> None:
    """q(x_t | x_s) after q(x_s | x_0) is q(x_t | x_0): mean coefficient and variance (Kingma et al. 2021, Appendix
    A.1).
    """
    s, t = levels(process, *times)
    at_s = process.marginal(one(x0), s)
    kernel = process.kernel(at_s.mean, s, t)
    factor = process.kernel(one(1.0), s, t).mean
    direct = process.marginal(one(x0), t)
    torch.testing.assert_close(kernel.mean, direct.mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        (factor * at_s.std) ** 2 + kernel.std**2, (direct.std**2).expand(1, 1), rtol=1e-12, atol=1e-14
    )


@given(rising(3))
def test_kernels_compose(process: GaussianProcess, times: tuple[float, ...]) -> None:
    """q(x_t | x_s) after q(x_s | x_r) is q(x_t | x_r), for r < s < t."""
    r, s, t = levels(process, *times)
    first, second, direct = (process.kernel(one(1.0), *pair) for pair in ((r, s), (s, t), (r, t)))
    torch.testing.assert_close(first.mean * second.mean, direct.mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        (second.mean * first.std) ** 2 + second.std**2, direct.std.expand(1, 1) ** 2, rtol=1e-10, atol=1e-14
    )


@given(rising(2), VALUE, VALUE, VALUE)
def test_reverse_of_the_truth_is_bayes(
    process: GaussianProcess, times: tuple[float, ...], x0: float, x_s: float, x_t: float
) -> None:
    """log q(x_s|x_t,x_0) = log q(x_t|x_s) + log q(x_s|x_0) - log q(x_t|x_0) anywhere (Ho et al. 2020, Eqs. 6-7)."""
    s, t = levels(process, *times)
    clean, earlier, later = one(x0), one(x_s), one(x_t)
    posterior = process.reverse(later, t, s, Estimate(x0=clean)).log_prob(earlier)
    bayes = (
        process.kernel(earlier, s, t).log_prob(later)
        + process.marginal(clean, s).log_prob(earlier)
        - process.marginal(clean, t).log_prob(later)
    )
    scale = max(1.0, abs(posterior.item()))
    assert posterior.item() == pytest.approx(bayes.item(), abs=1e-8 * scale)


@given(rising(2), VALUE)
def test_reverse_of_the_truth_keeps_the_marginal(process: GaussianProcess, times: tuple[float, ...], x0: float) -> None:
    """q(x_s|x_t,x_0) averaged over q(x_t|x_0) is q(x_s|x_0)."""
    s, t = levels(process, *times)
    at_t, belief = process.marginal(one(x0), t), Estimate(x0=one(x0))
    back = process.reverse(at_t.mean, t, s, belief)
    slope = process.reverse(at_t.mean + 1, t, s, belief).mean - back.mean
    direct = process.marginal(one(x0), s)
    torch.testing.assert_close(back.mean, direct.mean, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(
        (slope * at_t.std) ** 2 + back.std**2, direct.std.expand(1, 1) ** 2, rtol=1e-11, atol=1e-12
    )


@pytest.mark.parametrize("step", [1, 2, 7, T])
def test_ddpms_formulas_on_the_grid(step: int) -> None:
    """beta_tilde and mu_tilde, and beta and sqrt(1 - beta) of the forward step (Ho et al. 2020, Eqs. 2, 6, 7; papers.md
    3.1-3.3).
    """
    betas = numpy.linspace(0.01, 0.3, T)
    bars = numpy.concatenate([[1.0], numpy.cumprod(1 - betas)])
    process = GaussianProcess(schedule=Tabulated.from_betas(betas.tolist()))
    s, t = levels(process, (step - 1) / T, step / T)
    beta, bar, before = betas[step - 1], bars[step], bars[step - 1]
    forward = process.kernel(one(1.0), s, t)
    assert forward.mean.item() == pytest.approx(math.sqrt(1 - beta), rel=1e-13)
    assert forward.std.item() == pytest.approx(math.sqrt(beta), rel=1e-12)

    x0, x_t = 0.3, -1.1
    beta_tilde = beta * (1 - before) / (1 - bar)
    mu_tilde = math.sqrt(before) * beta / (1 - bar) * x0 + math.sqrt(1 - beta) * (1 - before) / (1 - bar) * x_t
    back = process.reverse(one(x_t), t, s, Estimate(x0=one(x0)))
    assert back.mean.item() == pytest.approx(mu_tilde, rel=1e-12)
    assert back.std.item() ** 2 == pytest.approx(beta_tilde, rel=1e-11, abs=1e-15)

    merged = (x_t - math.sqrt(bar) * x0) / math.sqrt(1 - bar)  # noise of x_0 -> x_t (papers.md 3.4)
    assert process.noise_of(one(x0), one(x_t), t).item() == pytest.approx(merged, rel=1e-12)
    in_noise = (x_t - beta / math.sqrt(1 - bar) * merged) / math.sqrt(1 - beta)  # (papers.md 3.5)
    assert back.mean.item() == pytest.approx(in_noise, rel=1e-11)


@given(st.integers(1, 999), st.data())
def test_respacing_needs_no_new_table(upper: int, data: st.DataObject) -> None:
    """Between any two entries beta' = 1 - abar_t/abar_s, in the mean, the variance and its upper bound (C6, C7)."""
    lower = data.draw(st.integers(0, upper - 1))
    bars = numpy.concatenate([[1.0], numpy.cumprod(1 - numpy.array(linear_betas(1000)))])
    process = GaussianProcess(schedule=Tabulated.from_betas(linear_betas(1000)))
    s, t = levels(process, lower / 1000, upper / 1000)
    beta = 1 - bars[upper] / bars[lower]
    assert process.kernel(one(1.0), s, t).std.item() ** 2 == pytest.approx(beta, rel=1e-9)
    small = process.reverse(one(0.4), t, s, Estimate(x0=one(-0.2)))
    large = process.reverse(one(0.4), t, s, Estimate(x0=one(-0.2), variance_fraction=1.0))
    assert small.std.item() ** 2 == pytest.approx(beta * (1 - bars[lower]) / (1 - bars[upper]), rel=1e-9, abs=1e-15)
    assert large.std.item() ** 2 == pytest.approx(beta, rel=1e-9)
    mean = (math.sqrt(bars[lower]) * beta * -0.2 + math.sqrt(1 - beta) * (1 - bars[lower]) * 0.4) / (1 - bars[upper])
    assert small.mean.item() == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_learned_variance_has_a_gradient_everywhere(
    process: GaussianProcess, fraction: float, dtype: torch.dtype
) -> None:
    """d log std/d fraction = log(beta/beta_tilde)/2, at both ends too, where networks begin; finite at the last step."""
    s, t = levels(process, 0.3, 0.5)
    f, x = torch.full((1, 2), fraction, dtype=dtype, requires_grad=True), torch.zeros(1, 2, dtype=dtype)
    torch.as_tensor(process.reverse(x, t, s, Estimate(x0=x, variance_fraction=f)).std).log().sum().backward()
    expected = (t.sigma / s.sigma).log().to(dtype).expand(1, 2)
    torch.testing.assert_close(f.grad, expected, rtol=1e-5, atol=0)


@given(rising(2), st.floats(0, 1))
def test_variance_is_interpolated_in_the_logarithm(
    process: GaussianProcess, times: tuple[float, ...], fraction: float
) -> None:
    """log variance = f log beta + (1 - f) log beta_tilde (Nichol & Dhariwal 2021, Eq. 15); None is f = 0; the mean is
    untouched.
    """
    s, t = levels(process, *times)
    x_t, x0 = torch.full((2, 3), 0.4, dtype=torch.float64), torch.full((2, 3), -0.2, dtype=torch.float64)
    plain = process.reverse(x_t, t, s, Estimate(x0=x0))
    beta = process.kernel(x_t, s, t).std.item() ** 2
    beta_tilde = beta * (s.sigma / t.sigma).item() ** 2
    assert plain.std.item() ** 2 == pytest.approx(beta_tilde, rel=1e-11)
    variance = beta**fraction * beta_tilde ** (1 - fraction)
    for given_fraction in (fraction, torch.full_like(x0, fraction)):
        back = process.reverse(x_t, t, s, Estimate(x0=x0, variance_fraction=given_fraction))
        torch.testing.assert_close((back.std**2).expand(2, 3), torch.full_like(x0, variance), rtol=1e-11, atol=0)
        assert torch.equal(back.mean, plain.mean)


def test_variance_may_differ_in_every_element(process: GaussianProcess) -> None:
    """A fraction of the shape of x gives each element its own variance, also with a level a sample."""
    t, s = (process.schedule.at(torch.tensor(times, dtype=torch.float64)) for times in ([0.5, 0.9], [0.3, 0.2]))
    x = torch.zeros(2, 3, dtype=torch.float64)
    fraction = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]], dtype=torch.float64)
    std = process.reverse(x, t, s, Estimate(x0=x, variance_fraction=fraction)).std
    for row in range(2):
        large = process.kernel(x[:1], s[row], t[row]).std.item()
        small = large * (s.sigma[row] / t.sigma[row]).item()
        bounds = {0.0: small, 0.5: math.sqrt(small * large), 1.0: large}
        assert std[row].tolist() == pytest.approx([bounds[f] for f in fraction[row].tolist()], rel=1e-11)


@pytest.mark.parametrize("fraction", [None, 0.0, torch.zeros(2, 3)], ids=["none", "zero", "tensor"])
def test_the_last_step_is_the_belief(process: GaussianProcess, fraction: torch.Tensor | float | None) -> None:
    """At s = 0 the mean is x0 and there is no noise (C7)."""
    zero, t = levels(process, 0.0, 0.3)
    x0 = torch.tensor([[0.1, -0.7, 0.9], [1.0, 0.3, -0.4]])
    back = process.reverse(torch.ones(2, 3), t, zero, Estimate(x0=x0, variance_fraction=fraction))
    assert torch.equal(back.mean, x0)
    assert bool((torch.as_tensor(back.std) == 0).all())


@pytest.mark.parametrize("fraction", [1.0, torch.ones(2, 3)], ids=["float", "tensor"])
def test_the_last_step_may_have_beta(process: GaussianProcess, fraction: torch.Tensor | float) -> None:
    """At s = 0 the large variance is beta = sigma_t^2, a number whoever asks for it, however small beta_tilde is."""
    zero, t = levels(process, 0.0, 0.3)
    x = torch.ones(2, 3)
    std = torch.as_tensor(process.reverse(x, t, zero, Estimate(x0=x, variance_fraction=fraction)).std)
    torch.testing.assert_close(std.float().expand(2, 3), t.sigma.float().expand(2, 3), rtol=1e-6, atol=0)


def test_pure_noise_is_no_special_case(any_process: GaussianProcess) -> None:
    """From t = 1, where alpha may be 0, everything is finite, and there the mean does not depend on x_t (C8)."""
    s, t = levels(any_process, 0.5, 1.0)
    x = torch.linspace(-3, 3, 6, dtype=torch.float64).view(2, 3)
    for fraction in (None, 0.0, 0.5, 1.0):
        back = any_process.reverse(x, t, s, Estimate(x0=0.5 * torch.ones_like(x), variance_fraction=fraction))
        assert bool(torch.isfinite(back.mean).all())
        assert bool(torch.isfinite(torch.as_tensor(back.std)).all())
        if t.alpha == 0:
            torch.testing.assert_close(back.mean, any_process.marginal(0.5 * torch.ones_like(x), s).mean)
    assert bool(torch.isfinite(any_process.kernel(x, s, t).mean).all())
    assert bool(torch.isfinite(any_process.noise_of(x, x, t)).all())


def test_prior_is_where_the_chain_ends(any_process: GaussianProcess) -> None:
    """p(x_1) = N(0, I): the marginal of data of mean 0 and variance 1 at t = 1."""
    x = torch.zeros(2, 3, dtype=torch.float64)
    prior = any_process.prior(x)
    (t,) = levels(any_process, 1.0)
    assert torch.equal(prior.mean, x)
    assert torch.as_tensor(prior.std).item() == pytest.approx(1, abs=1e-12)
    gap = any_process.marginal(torch.ones_like(x), t).kl(prior)  # nats that x_1 still knows of x_0 = 1
    torch.testing.assert_close(gap, -t.sigma.log().expand(2, 3), rtol=0, atol=1e-15)


@given(st.floats(0.1, 200))
def test_the_prior_of_exploding_variance_is_as_wide_as_it(sigma_max: float) -> None:
    """N(0, 1 + sigma_max^2): what data of unit variance would become."""
    x = torch.zeros(2, 3)
    std = GaussianProcess(schedule=VarianceExploding(sigma_max=sigma_max)).prior(x).std
    assert torch.as_tensor(std).item() == pytest.approx(math.sqrt(1 + sigma_max**2), rel=1e-14)


@given(rising(2), VALUE, VALUE)
def test_exploding_variance_is_ancestral_smld(times: tuple[float, ...], x0: float, x_t: float) -> None:
    """mean = x_t sigma_s^2/sigma_t^2 + x0 (1 - sigma_s^2/sigma_t^2), variance sigma_s^2 (sigma_t^2 -
    sigma_s^2)/sigma_t^2 (Song et al. 2021, Appendix F).
    """
    process = GaussianProcess(schedule=VarianceExploding(sigma_max=50.0))
    s, t = levels(process, *times)
    small, large = (50 * times[0]) ** 2, (50 * times[1]) ** 2
    back = process.reverse(one(x_t), t, s, Estimate(x0=one(x0)))
    assert back.mean.item() == pytest.approx(x_t * small / large + x0 * (1 - small / large), abs=1e-12)
    assert torch.as_tensor(back.std).item() ** 2 == pytest.approx(small * (large - small) / large, rel=1e-10)


@pytest.mark.parametrize(("s", "t"), [(0.5, 0.5), (0.6, 0.5)])
def test_refuses_steps_that_go_nowhere(process: GaussianProcess, s: float, t: float) -> None:
    """ValueError unless s < t, and where any one sample of a batch has s >= t."""
    x = one(0.0)
    start, end = levels(process, s, t)
    with pytest.raises(ValueError, match="s < t"):
        process.reverse(x, end, start, Estimate(x0=x))
    with pytest.raises(ValueError, match="s < t"):
        process.kernel(x, start, end)
    batch = torch.zeros(2, 1, dtype=torch.float64)
    starts, ends = (process.schedule.at(torch.tensor(at, dtype=torch.float64)) for at in ([0.1, s], [0.2, t]))
    with pytest.raises(ValueError, match="s < t"):
        process.reverse(batch, ends, starts, Estimate(x0=batch))


@given(st.floats(0.05, 0.95), VALUE, VALUE)
def test_noise_of_undoes_the_marginal(process: GaussianProcess, t: float, x0: float, noise: float) -> None:
    """noise_of(x0, alpha x0 + sigma noise) = noise."""
    (level,) = levels(process, t)
    x_t = level.alpha * one(x0) + level.sigma * noise
    assert process.noise_of(one(x0), x_t, level).item() == pytest.approx(noise, abs=1e-12)


def test_natural_coordinates_are_those_of_x(process: GaussianProcess) -> None:
    """Gaussian beliefs add up on x0 itself."""
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(process.to_natural(x), x)
    assert torch.equal(process.from_natural(x), x)


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=["cosine", "flow"])
def test_each_sample_at_its_own_level(schedule: Schedule) -> None:
    """A batch with a level a sample equals its samples one by one: marginal, kernel, reverse and noise_of."""
    process = GaussianProcess(schedule=schedule)
    times_s, times_t = [0.1, 0.3, 0.5], [0.2, 0.7, 1.0]
    s, t = (schedule.at(torch.tensor(times, dtype=torch.float64)) for times in (times_s, times_t))
    x, x0 = torch.randn(2, 3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = (process.marginal(x0, t), process.kernel(x, s, t), process.reverse(x, t, s, Estimate(x0=x0)))
    for i in range(3):
        rows = slice(i, i + 1)
        belief = Estimate(x0=x0[rows])
        alone = (
            process.marginal(x0[rows], t[i]),
            process.kernel(x[rows], s[i], t[i]),
            process.reverse(x[rows], t[i], s[i], belief),
        )
        for batch, single in zip(whole, alone, strict=True):
            torch.testing.assert_close(batch.mean[rows], single.mean, rtol=1e-14, atol=1e-15)
            torch.testing.assert_close(batch.std[i].flatten()[0], single.std, rtol=1e-14, atol=1e-15)
        torch.testing.assert_close(
            process.noise_of(x0, x, t)[rows], process.noise_of(x0[rows], x[rows], t[i]), rtol=1e-14, atol=0
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_coarse_samples_still_get_their_noise(process: GaussianProcess, dtype: torch.dtype) -> None:
    """At the smallest t of a thousand steps some of x_t differs from x0 even in half precision (C11), and types are
    kept.
    """
    x0 = torch.full((2, 64), 0.5, dtype=dtype)
    for t in (scalar(0.001), torch.full((2,), 0.001, dtype=torch.float64)):
        x_t = process.marginal(x0, process.schedule.at(t)).sample(KeyedNoise.from_seeds([0, 1]))
        assert x_t.dtype == dtype
        assert bool((x_t != x0).any())


# The last step.


def grey(count: int) -> torch.Tensor:
    """All grey levels from -1 to 1, in a row."""
    return (torch.arange(count, dtype=torch.float64) * 2 / (count - 1) - 1)[None]


def exact_decoder(data: float, mean: float, variance: float, count: int) -> float:
    """log of the mass of N(mean, variance) halfway to the neighbours, all of the tail at either end (Ho et al. 2020,
    Eq. 13), with 50 digits.
    """
    with mpmath.workdps(50):
        half, std = mpmath.mpf(1) / (count - 1), mpmath.sqrt(mpmath.mpf(variance))
        a = -mpmath.inf if data <= -1 + float(half) else (mpmath.mpf(data) - half - mean) / std
        b = mpmath.inf if data >= 1 - float(half) else (mpmath.mpf(data) + half - mean) / std
        if a > 0:
            a, b = -b, -a
        root = mpmath.sqrt(2)
        return float(mpmath.log((mpmath.erfc(-b / root) - mpmath.erfc(-a / root)) / 2))


@given(st.floats(-1.3, 1.3), st.sampled_from([2, 3, 16, 256]), st.floats(0.001, 0.99))
def test_grey_levels_are_a_law(process: GaussianProcess, mean: float, count: int, t: float) -> None:
    """The probabilities of all grey levels sum to 1, whatever is believed."""
    process = GaussianProcess(schedule=process.schedule, levels=count)
    first, above = levels(process, t, t + 0.005)
    data = grey(count)
    belief = Estimate(x0=torch.full_like(data, mean))
    logs = process.decode_log_prob(data, data, first, belief, above)
    assert logs.exp().sum().item() == pytest.approx(1, abs=1e-11)


@pytest.mark.parametrize("fraction", [None, 0.0, 0.5, 1.0, "tensor"])
@pytest.mark.parametrize("has_above", [False, True])
def test_the_decoder_is_ddpms(fraction: float | str | None, has_above: bool) -> None:
    """log of the Gaussian's mass in each grey level's interval, with log-variance between beta_tilde_2 and beta_1;
    without a level above it is beta_1 (Ho et al. 2020, Eq. 13; improved-diffusion's posterior_log_variance_clipped and
    discretized_gaussian_log_likelihood, with the exact distribution function).
    """
    betas = numpy.array(linear_betas(1000))
    bars = numpy.cumprod(1 - betas)
    process = GaussianProcess(schedule=Tabulated.from_betas(betas.tolist()))
    first, above = levels(process, 1 / 1000, 2 / 1000)
    data = grey(256)[:, [0, 1, 2, 77, 128, 253, 254, 255]].repeat(2, 1)
    mean = data + torch.tensor([[0.0], [0.03]], dtype=torch.float64)
    share = 0.3 if isinstance(fraction, str) else fraction
    given_fraction = torch.full_like(data, 0.3) if isinstance(fraction, str) else fraction
    small = betas[1] * (1 - bars[0]) / (1 - bars[1])
    variance = betas[0] ** (share or 0) * small ** (1 - (share or 0)) if has_above else betas[0]
    belief = Estimate(x0=mean, variance_fraction=given_fraction)
    got = process.decode_log_prob(data, data, first, belief, above if has_above else None)
    for value, at, believed in zip(got.flatten(), data.flatten(), mean.flatten(), strict=True):
        expected = exact_decoder(at.item(), believed.item(), variance, 256)
        assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-10)


def test_the_decoder_in_float32_is_that_of_float64(process: GaussianProcess) -> None:
    """Pictures are float32: within 1e-3 nats of it a thousandth off the data, with a level a sample or one for all."""
    for times in ((0.001, 0.002), (0.01, 0.02)):
        data = grey(256).repeat(2, 1)
        mean = data + 0.001 * torch.sin(40 * data)
        exact = process.decode_log_prob(data, data, *levels_of(process, times[0], Estimate(x0=mean), times[1]))
        for t, above in (levels(process, *times), [process.schedule.at(scalar(at).expand(2)) for at in times]):
            got = process.decode_log_prob(data.float(), data.float(), t, Estimate(x0=mean.float()), above)
            assert got.dtype == torch.float32
            torch.testing.assert_close(got.double(), exact, rtol=1e-3, atol=1e-3)


def levels_of(process: GaussianProcess, t: float, belief: Estimate, above: float) -> tuple[Level, Estimate, Level]:
    return process.schedule.at(scalar(t)), belief, process.schedule.at(scalar(above))


@pytest.mark.parametrize("fraction", [None, 0.4])
def test_a_density_is_decoded_as_one(process: GaussianProcess, fraction: float | None) -> None:
    """Without grey levels log N(x0; belief, v), v = beta = sigma_t^2 unless a fraction is given (documented)."""
    process = GaussianProcess(schedule=process.schedule, levels=None)
    t, above = levels(process, 0.01, 0.02)
    data = torch.tensor([[-3.0, 0.123, 0.9]], dtype=torch.float64)
    small, large = process.variances(process.schedule.at(scalar(0.0)), t, above)
    assert large.item() == pytest.approx(t.sigma.item() ** 2, rel=1e-12)
    variance = large if fraction is None else large**fraction * small ** (1 - fraction)
    belief = Estimate(x0=data - 0.01, variance_fraction=fraction)
    expected = -(0.01**2) / (2 * variance) - 0.5 * torch.log(2 * math.pi * variance)
    got = process.decode_log_prob(data, data, t, belief, above)
    torch.testing.assert_close(got, expected.expand(1, 3), rtol=1e-10, atol=0)


@pytest.mark.parametrize("times", [[1 / T, 1.0], [1.0, 1 / T], [0.5, 1 / T]])
def test_variances_of_a_batch_are_those_of_its_samples(process: GaussianProcess, times: list[float]) -> None:
    """The stand-in for beta_tilde of the first step does not depend on what else is in the batch, the end included."""
    t = torch.tensor(times, dtype=torch.float64)
    here, there, above = (process.schedule.at(each) for each in ((t - 1 / T).clamp(min=0), t, (t + 1 / T).clamp(max=1)))
    small, large = process.variances(here, there, above)
    assert bool((small > 0).all())
    for i in range(2):
        one_small, one_large = process.variances(here[i], there[i], above[i])
        assert (small[i].item(), large[i].item()) == pytest.approx((one_small.item(), one_large.item()), rel=1e-13)


@pytest.mark.parametrize(
    "make",
    [
        lambda data: data + 0.002,  # half a level of 256
        lambda data: data * 1.01,
        lambda data: data * 2,
        lambda data: (data + 1) * 127.5,  # bytes
        lambda data: data * math.nan,
        lambda data: torch.where(data > 0.9, math.inf, data),
    ],
)
def test_refuses_data_off_the_grey_levels(make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """ValueError with how far off, and what to do; float32's rounding of a level is no reason."""
    process = GaussianProcess(schedule=Cosine())
    (t,) = levels(process, 0.01)
    data = grey(256)
    process.decode_log_prob(data.float(), data.float(), t, Estimate(x0=data.float()))
    with pytest.raises(ValueError, match=r"256 grey levels from -1 to 1, got values.*levels=None"):
        process.decode_log_prob(make(data), data, t, Estimate(x0=data))


@pytest.mark.parametrize("above", [0.01, 0.005])
def test_refuses_a_level_above_that_is_not(above: float) -> None:
    """ValueError unless t < above."""
    process, data = GaussianProcess(schedule=Cosine()), grey(256)
    first, wrong = levels(process, 0.01, above)
    with pytest.raises(ValueError, match="s < t"):
        process.decode_log_prob(data, data, first, Estimate(x0=data), wrong)


@pytest.mark.parametrize("count", [1, 0, -3])
def test_data_of_one_level_is_no_data(count: int) -> None:
    """ValueError for fewer than 2 grey levels."""
    with pytest.raises(ValueError, match=rf"at least 2, got {count}; give None"):
        GaussianProcess(schedule=Cosine(), levels=count)


# The limit of small steps.


@pytest.mark.parametrize("t", [0.05, 0.3, 0.7, 0.98])
def test_divergence_rate_is_the_limit_of_small_steps(process: GaussianProcess, t: float) -> None:
    """KL(q || p)/h of a step from t to t - h tends to it as h falls, of first order in h, for beta_tilde (Kingma et al.
    2021, Eq. 17); a table is differentiable between its points.
    """
    if isinstance(process.schedule, Tabulated):
        t = (math.floor(t * 1000) + 0.5) / 1000
    x_t = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    x0, belief = torch.tensor([[0.9, -0.4]], dtype=torch.float64), torch.tensor([[0.1, 0.3]], dtype=torch.float64)
    (there,) = levels(process, t)
    rate = process.divergence_rate(x0, x_t, there, Estimate(x0=belief))
    errors = []
    for h in (4e-4, 2e-4, 1e-4):
        here = process.schedule.at(scalar(t - h))
        truth, model = (process.reverse(x_t, there, here, Estimate(x0=each)) for each in (x0, belief))
        errors.append((truth.kl(model) / h - rate).abs() / rate)
    assert errors[2].max().item() < 0.02
    for coarse, fine in itertools.pairwise(errors):
        assert bool(((coarse / fine - 2).abs() < 0.1).all())


def test_divergence_rate_is_the_fall_of_the_snr(process: GaussianProcess) -> None:
    """-1/2 dSNR/dt (x0 - belief)^2, with dSNR/dt = SNR dlog_snr/dt, one level a sample, float32 kept."""
    level = process.schedule.at(torch.tensor([0.2, 0.9005], dtype=torch.float64))
    x0, belief = torch.ones(2, 3), torch.full((2, 3), 0.5)
    got = process.divergence_rate(x0, x0, level, Estimate(x0=belief))
    expected = -0.5 * level.log_snr.exp() * level.dlog_snr * 0.25
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected[:, None].expand(2, 3), rtol=1e-5, atol=0)


# Refusals.


@pytest.mark.parametrize("process", [GaussianProcess(schedule=Cosine()), BinomialProcess(schedule=Cosine())])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_refuses_samples_that_are_no_floats(process: GaussianProcess | BinomialProcess, dtype: torch.dtype) -> None:
    """ValueError with the type that was given and what to do, from every method."""
    x = torch.ones(2, 3).to(dtype)
    s, t = (Cosine().at(scalar(value)) for value in (0.2, 0.6))
    belief = Estimate(x0=torch.ones(2, 3))
    calls: list[Callable[[], object]] = [
        lambda: process.marginal(x, t),
        lambda: process.kernel(x, s, t),
        lambda: process.reverse(x, t, s, belief),
        lambda: process.decode_log_prob(x, torch.ones(2, 3), t, belief),
        lambda: require_data(x),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=rf"floating-point numbers, got {dtype}; convert with x.float"):
            call()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_refuses_samples_that_are_not_finite(value: float) -> None:
    """ValueError with how many of how many."""
    x = torch.zeros(2, 3)
    require_data(x)
    x[0, :2] = value
    with pytest.raises(ValueError, match=r"2 of 6 numbers.*broken pictures"):
        require_data(x)


def test_processes_by_name() -> None:
    """The registry holds both."""
    assert {"gaussian": GaussianProcess, "binomial": BinomialProcess} == PROCESSES


@pytest.mark.parametrize("fraction", [0.3, 1.0, 1.7, torch.full((2, 3), 0.3), torch.full((2, 3), -0.5)])
def test_float32_variances_are_those_of_float64(fraction: float | torch.Tensor) -> None:
    """The reverse step in float32 at both ends of a thousand steps equals that in float64 to six digits."""
    process = GaussianProcess(schedule=LinearBeta())
    for s, t in ((0.001, 0.002), (0.998, 0.999)):
        x_t, x0 = torch.full((2, 3), 0.4), torch.full((2, 3), -0.2)
        for shape in ((), (2,)):
            here, there = (process.schedule.at(scalar(at).expand(shape)) for at in (s, t))
            coarse = process.reverse(x_t, there, here, Estimate(x0=x0, variance_fraction=fraction))
            fine = process.reverse(x_t.double(), there, here, Estimate(x0=x0.double(), variance_fraction=fraction))
            torch.testing.assert_close(coarse.mean.double(), fine.mean.double(), rtol=1e-6, atol=1e-6)
            std = (
                torch.as_tensor(coarse.std).double().expand(2, 3)
                if torch.as_tensor(coarse.std).ndim == 0
                else coarse.std
            )
            torch.testing.assert_close(
                (std.double() * torch.ones(2, 3)), (fine.std * torch.ones(2, 3)).double(), rtol=1e-5, atol=0
            )


def test_a_belief_that_is_a_sum_is_added_up_when_it_is_looked_at() -> None:
    x, output = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])
    belief = Estimate(x0=((2.0, x), (0.5, output), (1.0, x)), variance_fraction=0.25)
    assert [weight for weight, _ in belief.parts] == [2.0, 0.5, 1.0]
    assert torch.equal(belief.x0, torch.tensor([[4.5, 5.5]]))
    assert torch.equal(belief.x0, belief.parts[0][1])
    assert len(belief.parts) == 1
    assert torch.equal(x, torch.tensor([[1.0, 2.0]])), "nothing is added up in place"
    assert belief.with_x0(x).variance_fraction == 0.25
    assert torch.equal(belief[:1].x0, belief.x0)
