"""Oracles: against numerical integration of Bayes' theorem, and against enumeration of all strings of bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import BinomialProcess, GaussianProcess
from unstir.diffusion.samplers import Ancestral, sample
from unstir.diffusion.schedule import Cosine, Level, LinearBeta, Schedule
from unstir.verify.oracles import BitsOracle, GaussianOracle, GivenNoise, Mixture, MixtureOracle, kolmogorov
from unstir.verify.oracles import observed_orders as orders

GAUSSIAN = GaussianOracle(mean=torch.tensor([-0.5]), variance=torch.tensor([0.6]))
MIXTURE = MixtureOracle(
    means=torch.tensor([[-0.8], [0.9]]), variances=torch.tensor([0.3, 0.15]), weights=torch.tensor([0.4, 0.6])
)
AXIS = torch.linspace(-12, 12, 24001, dtype=torch.float64)
WIDTH = (AXIS[1] - AXIS[0]).item()
POINTS = torch.tensor([[-1.3], [0.1], [2.2]], dtype=torch.float64)


def normal(x: Tensor, mean: Tensor | float, variance: Tensor | float) -> Tensor:
    variance = torch.as_tensor(variance, dtype=torch.float64)
    return torch.exp(-0.5 * (x - mean) ** 2 / variance) / (2 * math.pi * variance).sqrt()


def prior_of(law: GaussianOracle | MixtureOracle) -> Tensor:
    """The density of x0 on the axis."""
    if isinstance(law, GaussianOracle):
        return normal(AXIS, law.mean.double(), law.variance.double())
    parts = zip(law.weights.double(), law.means.double().flatten(), law.variances.double(), strict=True)
    return sum(weight * normal(AXIS, mean, variance) for weight, mean, variance in parts)  # type: ignore[return-value]


def at(schedule: Schedule, t: float) -> Level:
    return schedule.at(torch.tensor(t, dtype=torch.float64))


each_law = pytest.mark.parametrize("law", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])


@each_law
@pytest.mark.parametrize("t", [0.05, 0.5, 0.98])
def test_the_density_is_the_integral_over_the_data(law: GaussianOracle | MixtureOracle, t: float) -> None:
    level = at(Cosine(), t)
    joint = prior_of(law) * normal(POINTS, level.alpha * AXIS, level.sigma**2)
    expected = (joint.sum(1) * WIDTH).log()
    torch.testing.assert_close(law.log_density(POINTS, level), expected, rtol=0, atol=1e-6)
    belief = (joint * AXIS).sum(1) / joint.sum(1)
    torch.testing.assert_close(law(POINTS, level).x0.flatten(), belief, rtol=0, atol=1e-6)


@each_law
def test_without_noise_the_density_is_that_of_the_data(law: GaussianOracle | MixtureOracle) -> None:
    inside = AXIS[::4000, None]
    expected = prior_of(law)[::4000].log()
    torch.testing.assert_close(law.log_density(inside, at(Cosine(), 0.0)), expected, rtol=0, atol=1e-5)


def test_the_density_of_a_sample_is_one_number() -> None:
    law = GaussianOracle(mean=torch.tensor([[0.5], [-0.2]]), variance=torch.tensor([[0.25], [0.6]]))
    x, level = torch.zeros(3, 2, 4), at(Cosine(), 0.3)
    each = law.log_density(x, level)
    assert each.shape == (3,)
    one = sum(law.log_density(x[:, :, i : i + 1], level) for i in range(4))
    torch.testing.assert_close(each, one)  # type: ignore[arg-type]


def test_points_have_no_density() -> None:
    points = MixtureOracle.finite(torch.tensor([[-1.0], [1.0]]))
    assert points.log_density(POINTS, at(Cosine(), 0.2)).isfinite().all()
    with pytest.raises(ValueError, match="no density"):
        points.log_density(POINTS, at(Cosine(), 0.0))


@each_law
@pytest.mark.parametrize(("t", "s"), [(0.9, 0.2), (0.5, 0.45), (0.3, 0.0)])
def test_the_reverse_kernel_is_bayes_theorem(law: GaussianOracle | MixtureOracle, t: float, s: float) -> None:
    """p(x_s | x_t) is proportional to p_s(x_s) q(x_t | x_s), on a grid of x_s."""
    above, below = at(Cosine(), t), at(Cosine(), s)
    kernel = GaussianProcess(schedule=Cosine()).kernel(AXIS[:, None], below, above)
    for x_t in POINTS.flatten():
        likelihood = normal(x_t, kernel.mean.flatten(), torch.as_tensor(kernel.std) ** 2)
        joint = law.log_density(AXIS[:, None], below).exp() * likelihood
        exact = joint / (joint.sum() * WIDTH)
        mean = (exact * AXIS).sum().item() * WIDTH
        variance = (exact * (AXIS - mean) ** 2).sum().item() * WIDTH
        found = law.reverse(x_t.view(1, 1), above, below)
        assert found.mean.item() == pytest.approx(mean, abs=1e-6)
        if isinstance(found, Mixture):
            assert found.variance.item() == pytest.approx(variance, abs=1e-6)
            logs = Mixture.log_prob(
                Mixture(
                    log_weights=found.log_weights.expand(3, -1),
                    means=found.means.expand(3, -1, -1),
                    variances=found.variances.expand(3, -1),
                ),
                POINTS,
            )
        else:
            assert found.std.item() ** 2 == pytest.approx(variance, abs=1e-6)
            logs = found.log_prob(POINTS).flatten()
        nearest = torch.searchsorted(AXIS, POINTS.flatten()).clamp(max=len(AXIS) - 1)
        assert (logs.exp() - exact[nearest]).abs().max().item() < 0.02 * exact.max().item()


def test_levels_may_differ_from_sample_to_sample() -> None:
    level = Cosine().at(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    below = Cosine().at(torch.tensor([0.05, 0.2, 0.3], dtype=torch.float64))
    for law in (GAUSSIAN, MIXTURE):
        together = law.log_density(POINTS, level), law.reverse(POINTS, level, below).mean
        for i in range(3):
            row = POINTS[i : i + 1]
            torch.testing.assert_close(law.log_density(row, level[i]), together[0][i : i + 1])
            torch.testing.assert_close(law.reverse(row, level[i], below[i]).mean, together[1][i : i + 1])


@pytest.mark.parametrize("dimension", [1, 3, 256, 700])
def test_the_belief_of_a_mixture_is_its_formula(dimension: int) -> None:
    """Written out over a tensor of samples, components and elements; one level for all, and one a sample."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, dimension, dtype=torch.float64, generator=generator)
    variances = torch.tensor([0.0, 0.01, 0.1, 0.3], dtype=torch.float64)
    law = MixtureOracle(means=means, variances=variances, weights=torch.tensor([0.1, 0.2, 0.3, 0.4]).double())
    x = torch.randn(3, dimension, dtype=torch.float64, generator=generator)
    levels = Cosine().at(torch.tensor([0.3, 0.9, 0.999], dtype=torch.float64))
    alpha, sigma = levels.alpha[:, None], levels.sigma[:, None]
    total, offset = alpha**2 * variances + sigma**2, x[:, None] - alpha[..., None] * means
    logits = law.weights.log() - 0.5 * (dimension * total.log() + offset.square().sum(-1) / total)
    beliefs = means + (alpha * variances / total)[..., None] * offset
    expected = (torch.softmax(logits, 1)[..., None] * beliefs).sum(1)
    torch.testing.assert_close(law(x, levels).x0, expected, rtol=1e-11, atol=1e-12)
    for i in range(3):
        torch.testing.assert_close(law(x, levels[i]).x0[i], expected[i], rtol=1e-11, atol=1e-12)


def test_a_mixture_of_one_component_is_a_gaussian() -> None:
    one = MixtureOracle(means=GAUSSIAN.mean[None], variances=GAUSSIAN.variance, weights=torch.ones(1))
    t, s = at(Cosine(), 0.7), at(Cosine(), 0.2)
    torch.testing.assert_close(one.log_density(POINTS, t), GAUSSIAN.log_density(POINTS, t))
    mixture, gaussian = one.reverse(POINTS, t, s), GAUSSIAN.reverse(POINTS, t, s)
    torch.testing.assert_close(mixture.mean, gaussian.mean)
    torch.testing.assert_close(mixture.variance, (gaussian.std**2).expand_as(mixture.variance))


@each_law
def test_a_denoiser_may_be_told_what_was_believed_before(law: GaussianOracle | MixtureOracle) -> None:
    level = at(Cosine(), 0.5)
    assert torch.equal(law(POINTS, level, POINTS).x0, law(POINTS, level).x0)


LAW = torch.tensor([0.05, 0.2, 0.0, 0.1, 0.3, 0.05, 0.25, 0.05])
BITS = BitsOracle(table=LAW, rate=0.3)


def as_bits(text: str) -> Tensor:
    return torch.tensor([[float(bit) for bit in text]])


def test_the_first_bit_is_the_most_significant() -> None:
    assert BITS.num_bits == 3
    assert BITS.strings[6].tolist() == [1, 1, 0]
    assert BITS.log_prob(as_bits("110")).item() == pytest.approx(math.log(0.25))
    assert BITS.log_prob(as_bits("010")).item() == -math.inf
    assert BITS.entropy_bits == pytest.approx(-sum(p * math.log2(p) for p in LAW.tolist() if p))


@pytest.mark.parametrize("t", [0.02, 0.4, 0.9, 1.0])
def test_bits_by_brute_force(t: float) -> None:
    """Marginal and posterior from the joint law of (x0, x_t), summed string by string."""
    level = at(LinearBeta(), t)
    alpha_bar = level.alpha.item() ** 2
    joint = torch.zeros(8, 8, dtype=torch.float64)
    for i, clean in enumerate(BITS.strings.tolist()):
        for j, noisy in enumerate(BITS.strings.tolist()):
            share = LAW[i].item()
            for c, n in zip(clean, noisy, strict=True):
                one = alpha_bar * c + (1 - alpha_bar) * BITS.rate
                share *= one if n else 1 - one
            joint[i, j] = share
    torch.testing.assert_close(BITS.marginal(level), joint.sum(0), rtol=0, atol=1e-8)
    belief = (joint / joint.sum(0)).T @ BITS.strings
    torch.testing.assert_close(BITS(BITS.strings, level).x0, belief, rtol=0, atol=1e-7)


def test_bits_agree_with_the_process() -> None:
    """One string: the marginal is what the binomial process says of it."""
    level, process = at(LinearBeta(), 0.5), BinomialProcess(schedule=LinearBeta(), rate=0.3)
    certain = BitsOracle(table=torch.tensor([0.0, 0.0, 1.0, 0.0]), rate=0.3)
    one = process.marginal(torch.tensor([[1.0, 0.0]], dtype=torch.float64), level).mean
    expected = [(1 - one[0, 0]) * (1 - one[0, 1]), (1 - one[0, 0]) * one[0, 1], one[0, 0] * (1 - one[0, 1])]
    torch.testing.assert_close(certain.marginal(level)[:3], torch.stack(expected))


def test_bits_at_both_ends() -> None:
    start, end = at(Cosine(), 0.0), at(LinearBeta(), 1.0)
    torch.testing.assert_close(BITS.marginal(start), LAW.double())
    assert BITS(as_bits("110"), start).x0.tolist() == [[1, 1, 0]]
    means = LAW.double() @ BITS.strings
    torch.testing.assert_close(BITS(as_bits("011"), end).x0.double().flatten(), means, rtol=0, atol=1e-3)
    assert BITS(as_bits("010"), start).x0.isfinite().all(), "a string that the law never draws"


def test_bits_are_drawn_by_their_law() -> None:
    count = 4000
    drawn = BITS.draw(torch.zeros(count, 1, 3), KeyedNoise.from_seeds(range(count)))
    index = (drawn.flatten(1) @ torch.tensor([4.0, 2.0, 1.0])).long()
    hits = torch.bincount(index, minlength=8) / count
    assert hits[2] == 0
    assert (hits - LAW).abs().max().item() < 5 * math.sqrt(0.3 * 0.7 / count)


@dataclass(frozen=True)
class OneKey:
    """Noise with one key for the whole batch, for batches of thousands."""

    key: tuple[int, ...] = (0,)

    def at(self, *key: int) -> OneKey:
        return OneKey((*self.key, *key))

    def rows(self, index: slice) -> OneKey:
        raise AssertionError("a batch with one key has no rows")

    def normal(self, like: Tensor) -> Tensor:
        raise AssertionError("bits are drawn with uniform numbers")

    def uniform(self, like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=torch.Generator().manual_seed(hash(self.key) % 2**31)).to(like)


def test_the_ancestral_chain_of_bits_ends_in_their_law() -> None:
    """400 steps, chi-square over eight strings; bits are drawn independently, so each step must be small."""
    count = 3000
    process, noise = BinomialProcess(schedule=Cosine(), rate=0.5), OneKey()
    law = BitsOracle(table=torch.tensor([0.3, 0.05, 0.05, 0.1, 0.05, 0.1, 0.05, 0.3]))
    x = process.prior(torch.zeros(count, 3)).sample(noise.at(1000))
    times = [((400 - i) / 400) ** 2 for i in range(401)]
    *_, end = sample(Ancestral(), law, process, x, times, noise)
    last = (end.belief.x0 > 0.5).float()  # type: ignore[union-attr]
    hits = torch.bincount((last @ torch.tensor([4.0, 2.0, 1.0])).long(), minlength=8)
    statistic = ((hits - count * law.table) ** 2 / (count * law.table)).sum().item()
    assert statistic < 35, hits.tolist()  # 99.9 % of chi-square with 7 degrees is 24.3; the rest is the steps' bias


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BitsOracle(table=torch.ones(3) / 3), "2\\^k"),
        (lambda: BitsOracle(table=torch.tensor([0.5, 0.6])), "sum to 1"),
        (lambda: BitsOracle(table=torch.tensor([-0.5, 1.5])), "at least 0"),
        (lambda: BitsOracle(table=torch.ones(4) / 4, rate=1.0), "rate"),
        (lambda: BITS.log_prob(torch.zeros(2, 4)), "3 bits"),
        (lambda: GaussianOracle(mean=torch.zeros(1), variance=torch.zeros(1)), "positive"),
        (lambda: MixtureOracle(means=torch.zeros(2, 1), variances=torch.ones(2), weights=torch.ones(2)), "sum to 1"),
        (
            lambda: MixtureOracle(means=torch.zeros(2, 1), variances=-torch.ones(2), weights=torch.ones(2) / 2),
            "least 0",
        ),
        (
            lambda: MixtureOracle(means=torch.zeros(2, 1), variances=torch.ones(1), weights=torch.ones(2) / 2),
            "one mean",
        ),
    ],
)
def test_refuses_what_is_no_law(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@each_law
def test_draws_have_the_law(law: GaussianOracle | MixtureOracle) -> None:
    count = 2000
    drawn = law.draw(torch.zeros(count, 1, dtype=torch.float64), KeyedNoise.from_seeds(range(count)))
    shares = torch.cumsum(prior_of(law), 0)[torch.searchsorted(AXIS, drawn.flatten())] * WIDTH
    assert kolmogorov(shares) < 1.95
    assert kolmogorov(shares**1.2) > 1.95, "the statistic sees another law"


def test_orders_and_given_noise() -> None:
    assert orders([8.0, 2.0, 1.0]) == (2.0, 1.0)
    noise = GivenNoise(value=torch.tensor([[1.0], [2.0]]))
    assert noise.at(3).rows(slice(1, 2)).normal(torch.zeros(1, 2)).tolist() == [[2, 2]]
