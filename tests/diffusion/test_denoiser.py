"""Denoisers: how a network is called, and that the oracles are the posterior means that all other tests rest on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from unstir.diffusion.denoiser import NetworkDenoiser
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.parameterization import (
    FixedLarge,
    LearnedRange,
    Parameterization,
    PredictEDM,
    PredictFlow,
    PredictV,
    PredictX0,
)
from unstir.diffusion.process import Estimate, GaussianProcess
from unstir.diffusion.schedule import Cosine, Level, RectifiedFlow, Schedule, Tabulated
from unstir.verify.oracles import GaussianOracle, MixtureOracle, kolmogorov, observed_orders


@dataclass(frozen=True, kw_only=True, eq=False)
class Words:
    """A condition of one number a sample, and whether it was read."""

    value: Tensor
    is_read: bool = False

    def cat(self, other: Self) -> Self:
        assert self.is_read == other.is_read
        return type(self)(value=torch.cat([self.value, other.value]), is_read=self.is_read)

    def rows(self, index: slice) -> Self:
        return type(self)(value=self.value[index], is_read=self.is_read)


class Toy(nn.Module):
    """A network whose rows do not touch each other; it writes down how it was called."""

    in_channels = out_channels = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.batches: list[int] = []

    def forward(self, x: Tensor, scalar: Tensor, condition: Words) -> Tensor:
        assert scalar.shape == (x.shape[0],), "one number a sample"
        assert condition.value.shape[0] == x.shape[0], "one condition a sample"
        self.batches.append(x.shape[0])
        shape = (-1, *[1] * (x.ndim - 1))
        return torch.tanh(self.weight * x + condition.value.view(shape)) + 0.001 * scalar.double().view(shape)


class ReadingToy(Toy):
    """The same, with words to read; reading twice would be wrong, so it is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def read(self, condition: Words) -> Words:
        assert not condition.is_read, "words were read a second time"
        self.reads += 1
        return Words(value=3 * condition.value, is_read=True)

    def forward(self, x: Tensor, scalar: Tensor, condition: Words) -> Tensor:
        return super().forward(x, scalar, condition if condition.is_read else self.read(condition))


@dataclass(frozen=True)
class WithVariance(PredictV):
    """v, and a fraction for the variance that differs from element to element."""

    def decode(self, output: Tensor, x_t: Tensor, level: Level) -> Estimate:
        return Estimate(x0=super().decode(output, x_t, level).x0, variance_fraction=torch.sigmoid(output))


def build(network: nn.Module, parameterization: Parameterization | None = None) -> NetworkDenoiser[Words]:
    return NetworkDenoiser(network, GaussianProcess(schedule=Cosine()), parameterization or PredictV())


def batch(count: int) -> Tensor:
    return torch.randn(count, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(count))


def words(count: int, offset: float = 0.0) -> Words:
    return Words(value=torch.linspace(-1, 1, count, dtype=torch.float64) + offset)


def shared(t: float = 0.4) -> Level:
    return Cosine().at(torch.tensor(t, dtype=torch.float64))


def each(count: int) -> Level:
    return Cosine().at(torch.linspace(0.2, 0.9, count, dtype=torch.float64))


def assert_same(got: Estimate, expected: Estimate) -> None:
    """Up to the last bits, in which kernels for another number of elements may differ."""
    torch.testing.assert_close(got.x0, expected.x0, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(got.variance_fraction, expected.variance_fraction, rtol=1e-14, atol=1e-15)


LEVELS = pytest.mark.parametrize("level_of", [lambda count: shared(), each], ids=["shared", "each"])


@LEVELS
def test_forward_is_encode_network_decode(level_of: Callable[[int], Level]) -> None:
    """The belief is decode(network(encode(x_t)), x_t)."""
    toy, kind, x, level = Toy(), PredictV(), batch(3), level_of(3)
    belief = build(toy, kind)(x, level, words(3)).x0
    inputs, number = kind.encode(x, level)
    torch.testing.assert_close(belief, kind.decode(toy(inputs, number, words(3)), x, level).x0, rtol=0, atol=0)


@LEVELS
@pytest.mark.parametrize("count", [1, 2, 5])
def test_given_is_forward_with_its_condition_bound(level_of: Callable[[int], Level], count: int) -> None:
    """given(c)(x_t, level) equals forward(x_t, level, c), x0 and variance, whatever the number of rows."""
    denoiser, x, level = build(Toy(), WithVariance()), batch(count), level_of(count)
    expected, got = denoiser(x, level, words(count)), denoiser.given(words(count))(x, level)
    assert_same(got, expected)


@LEVELS
def test_a_network_never_sees_one_row(level_of: Callable[[int], Level]) -> None:
    """One sample is padded to two (DESIGN.md, equal pictures); several are not padded."""
    toy = Toy()
    denoiser = build(toy)
    for count in (1, 2, 3):
        denoiser.given(words(count))(batch(count), level_of(count))
        denoiser.given_pair(words(count), words(count)).strong(batch(count), level_of(count))
    assert toy.batches == [2, 2, 2, 2, 3, 3]
    denoiser.given_pair(words(1), words(1)).both(batch(1), level_of(1))
    assert toy.batches[-1] == 2


@LEVELS
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_pair_is_two_beliefs_in_one_call(level_of: Callable[[int], Level], count: int) -> None:
    """both() makes one call of 2b rows, and gives what two single denoisers give, in the order strong, weak."""
    toy = Toy()
    denoiser, x, level = build(toy, WithVariance()), batch(count), level_of(count)
    pair = denoiser.given_pair(words(count), words(count, offset=0.5))
    strong, weak = pair.both(x, level)
    assert toy.batches == [2 * count]
    for got, condition in (
        (strong, words(count)),
        (weak, words(count, offset=0.5)),
        (pair.strong(x, level), words(count)),
    ):
        expected = denoiser(x, level, condition)
        assert_same(got, expected)
    assert not torch.equal(strong.x0, weak.x0)


def test_words_are_read_once_a_sampling() -> None:
    """given() reads the words once, not once a step, and gives what reading in every step gives; without a graph."""
    toy = ReadingToy()
    denoise = build(toy).given(words(3))
    assert toy.reads == 1
    for t in (0.9, 0.5, 0.1):
        got = denoise(batch(3), shared(t))
    assert toy.reads == 1
    assert torch.equal(got.x0, build(toy)(batch(3), shared(0.1), words(3)).x0)


def test_words_of_a_pair_are_read_once_each() -> None:
    """given_pair() reads either condition once, and what was read is never read again."""
    toy = ReadingToy()
    pair = build(toy).given_pair(words(2), words(2, offset=0.5))
    assert toy.reads == 2
    pair.both(batch(2), shared())
    strong = pair.strong(batch(2), shared())
    assert toy.reads == 2
    assert torch.equal(strong.x0, build(toy)(batch(2), shared(), words(2)).x0)


@LEVELS
def test_rows_do_not_touch_each_other(level_of: Callable[[int], Level]) -> None:
    """The belief about a sample is the same alone as in a batch, if the network keeps rows apart."""
    denoiser, x = build(Toy()), batch(4)
    level, condition = level_of(4), words(4)
    together = denoiser.given(condition)(x, level).x0
    for i in range(4):
        rows = slice(i, i + 1)
        alone = denoiser.given(condition.rows(rows))(x[rows], level if level.t.ndim == 0 else level[rows]).x0
        torch.testing.assert_close(alone, together[rows], rtol=1e-14, atol=1e-15)


def test_gradients_reach_the_weights_and_the_sample() -> None:
    """forward and given are differentiable."""
    denoiser, x = build(Toy()), batch(3).requires_grad_()
    denoiser.given(words(3))(x, each(3)).x0.sum().backward()
    assert x.grad is not None
    assert [parameter.grad is not None for parameter in denoiser.parameters()] == [True]


def test_a_half_precision_network_gives_a_belief_of_the_samples_type() -> None:
    """The network's output is brought to the type of x_t before it is decoded."""

    class Half(Toy):
        def forward(self, x: Tensor, scalar: Tensor, condition: Words) -> Tensor:
            return super().forward(x, scalar, condition).bfloat16()

    belief = build(Half()).given(words(2))(batch(2).float(), shared())
    assert belief.x0.dtype == torch.float32


@pytest.mark.parametrize("network_type", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sample_type", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 3])
def test_a_network_computes_in_the_type_of_its_weights(
    network_type: torch.dtype, sample_type: torch.dtype, count: int
) -> None:
    """x is handed over in the type of the weights, and what is said is decoded in that of x_t: in float64 x0 = alpha
    x_t - sigma v holds to 1e-15 for the very v that was said.
    """

    class Typed(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.heard: list[torch.dtype] = []
            self.said: list[Tensor] = []

        def forward(self, x: Tensor, scalar: Tensor, condition: Words) -> Tensor:
            self.heard += [x.dtype, scalar.dtype]
            self.said.append(torch.tanh(self.weight * x))
            return self.said[-1]

    network = Typed().to(network_type)
    x, level = batch(count).to(sample_type), shared()
    belief = build(network).given(words(count))(x, level).x0
    assert network.heard == [network_type, torch.float32]
    assert network.said[0].dtype == network_type
    assert belief.dtype == sample_type
    v = network.said[0][:count].to(sample_type)
    expected = level.alpha * x - level.sigma * v
    torch.testing.assert_close(belief, expected, rtol=0, atol=1e-15 if sample_type == torch.float64 else 1e-6)


class Parrot(nn.Module):
    """A network without weights that says its first channels, and writes down what it heard."""

    in_channels = out_channels = 2

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Tensor] = []

    def forward(self, x: Tensor, scalar: Tensor, condition: Words) -> Tensor:
        self.heard.append(x)
        return x[:, : self.out_channels]


def self_conditioned(network: nn.Module, parameterization: Parameterization | None = None) -> NetworkDenoiser[Words]:
    process = GaussianProcess(schedule=Cosine())
    return NetworkDenoiser(network, process, parameterization or PredictX0(), is_self_conditioned=True)


@LEVELS
def test_a_network_without_weights_hears_the_samples_type(level_of: Callable[[int], Level]) -> None:
    """Nothing to tell another type by: x as it is; without self-conditioning ``previous`` is not read."""
    parrot = Parrot()
    build(parrot, PredictX0())(batch(3), level_of(3), words(3), batch(3))
    assert torch.equal(parrot.heard[0], batch(3))


@LEVELS
@pytest.mark.parametrize("count", [2, 3])
def test_a_self_conditioned_network_reads_its_last_belief(level_of: Callable[[int], Level], count: int) -> None:
    """The last belief is joined to x on channels, zeros where there is none (Chen et al. 2023, Sec. 3.2)."""
    parrot, previous = Parrot(), batch(count).flip(0)
    denoiser, x = self_conditioned(parrot), batch(count)
    first = denoiser(x, level_of(count), words(count))
    second = denoiser(x, level_of(count), words(count), Estimate(x0=previous))
    assert torch.equal(parrot.heard[0], torch.cat([x, torch.zeros_like(x)], 1))
    assert torch.equal(parrot.heard[1], torch.cat([x, previous], 1))
    assert torch.equal(first.x0, second.x0)


@LEVELS
@pytest.mark.parametrize("count", [1, 2, 3])
def test_previous_beliefs_reach_every_row(level_of: Callable[[int], Level], count: int) -> None:
    """given and given_pair hand ``previous`` on: to a padded single row, to the strong, and to both halves of a pair."""
    parrot, x, previous = Parrot(), batch(count), batch(count).flip(0) + 1
    denoiser, level = self_conditioned(parrot), level_of(count)
    joined = torch.cat([x, previous], 1)
    believed = Estimate(x0=previous)
    denoiser.given(words(count))(x, level, believed)
    pair = denoiser.given_pair(words(count), words(count))
    pair.strong(x, level, believed)
    pair.both(x, level, believed)
    pair.both(x, level)
    alone = torch.cat([joined, joined]) if count == 1 else joined
    for heard, expected in zip(parrot.heard[:2], (alone, alone), strict=True):
        assert torch.equal(heard, expected)
    assert torch.equal(parrot.heard[2], torch.cat([joined, joined]))
    assert bool((parrot.heard[3][:, 2:] == 0).all())


def test_a_last_belief_is_read_in_the_networks_terms() -> None:
    """Types are brought together, and what ``encode`` does to x it does not do to the belief, which is x0 itself."""
    parrot, x, level = Parrot(), batch(2).float(), each(2)
    kind = PredictEDM()
    self_conditioned(parrot, kind)(x, level, words(2), Estimate(x0=batch(2)))
    assert torch.equal(parrot.heard[0][:, :2], kind.encode(x, level)[0])
    assert torch.equal(parrot.heard[0][:, 2:], batch(2).float())


@pytest.mark.parametrize("kind", [FixedLarge(mean=PredictV()), LearnedRange(mean=PredictV())], ids=["fixed", "learned"])
@pytest.mark.parametrize("count", [1, 2])
def test_variances_of_a_pair_stay_with_their_rows(kind: Parameterization, count: int) -> None:
    """A variance for all is handed on as it is, one an element is cut to its rows."""

    class Wide(Toy):
        def forward(self, x: Tensor, scalar: Tensor, condition: Words) -> Tensor:
            said = super().forward(x, scalar, condition)
            return torch.cat([said, 2 * said], 1) if kind.outputs == 2 else said

    denoiser, x = build(Wide(), kind), batch(count)
    single = denoiser.given(words(count))(x, shared())
    strong, weak = denoiser.given_pair(words(count), words(count, offset=0.5)).both(x, shared())
    for belief in (single, strong, weak):
        fraction = belief.variance_fraction
        assert fraction == 1.0 if kind.outputs == 1 else torch.as_tensor(fraction).shape == x.shape
    torch.testing.assert_close(strong.x0, single.x0)
    if kind.outputs == 2:
        torch.testing.assert_close(strong.variance_fraction, single.variance_fraction)
        assert not torch.equal(torch.as_tensor(weak.variance_fraction), torch.as_tensor(single.variance_fraction))


# The oracles.

GAUSSIAN = GaussianOracle(mean=torch.tensor([[0.3], [-0.5]]), variance=torch.tensor([[0.2], [1.7]]))
MIXTURE = MixtureOracle(
    means=torch.tensor([[-1.0], [0.2], [0.8]]),
    variances=torch.tensor([0.05, 0.01, 0.2]),
    weights=torch.tensor([0.3, 0.2, 0.5]),
)
POINTS = MixtureOracle.finite(torch.tensor([[-1.0], [0.1], [0.9]]))


def law_density(oracle: MixtureOracle, x0: Tensor) -> Tensor:
    parts = [
        weight.double() * torch.exp(-((x0 - mean) ** 2) / (2 * variance)) / (2 * math.pi * variance) ** 0.5
        for mean, variance, weight in zip(oracle.means.double(), oracle.variances.double(), oracle.weights, strict=True)
    ]
    return torch.stack(parts).sum(0)


@given(st.floats(0.05, 0.95), st.floats(-2, 2))
def test_oracles_are_posterior_means_by_quadrature(schedule: Schedule, t: float, x: float) -> None:
    """D = integral of x0 q(x_t|x0) p(x0) over integral of q(x_t|x0) p(x0), with p written out and summed on a grid."""
    level = schedule.at(torch.tensor(t, dtype=torch.float64))
    x0 = torch.linspace(-8, 8, 16_001, dtype=torch.float64)
    fit = -((x - level.alpha * x0) ** 2) / (2 * level.sigma**2)
    fit = torch.exp(fit - fit.max())
    gaussian = GaussianOracle(mean=torch.tensor(0.3), variance=torch.tensor(0.2))
    laws = (
        (gaussian, torch.exp(-((x0 - gaussian.mean.double()) ** 2) / (2 * gaussian.variance.double()))),
        (MIXTURE, law_density(MIXTURE, x0)),
    )
    for oracle, density in laws:
        posterior = density * fit
        if posterior.sum() < 1e-200:
            continue
        expected = (x0 * posterior).sum() / posterior.sum()
        got = oracle(torch.full((1, 1), x, dtype=torch.float64), level).x0
        assert got.item() == pytest.approx(expected.item(), abs=1e-6)


@given(st.floats(0.05, 1), st.floats(-2, 2))
def test_the_finite_oracle_is_a_softmax_over_the_data(schedule: Schedule, t: float, x: float) -> None:
    """D = sum of p_k softmax(-(x_t - alpha p_k)^2 / (2 sigma^2))."""
    level = schedule.at(torch.tensor(t, dtype=torch.float64))
    alpha, sigma = level.alpha.item(), level.sigma.item()
    points = [float(point) for point in POINTS.means.flatten()]
    scores = [-((x - alpha * point) ** 2) / (2 * sigma**2) for point in points]
    shares = [math.exp(score - max(scores)) for score in scores]
    expected = sum(share * point for share, point in zip(shares, points, strict=True)) / sum(shares)
    assert POINTS(torch.full((1, 1), x, dtype=torch.float64), level).x0.item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("oracle", [GAUSSIAN, MIXTURE, POINTS], ids=["gaussian", "mixture", "points"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_oracles_are_finite_at_both_ends(oracle: GaussianOracle | MixtureOracle, dtype: torch.dtype) -> None:
    """At alpha = 0 D is the mean of the data; at tiny sigma, and at 0, it is finite and close to the sample or to a
    point.
    """
    shape = (4, 2, 1) if oracle is GAUSSIAN else (4, 1)
    x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    mean = oracle.mean if isinstance(oracle, GaussianOracle) else (oracle.weights[:, None] * oracle.means).sum(0)
    at_noise = oracle(x, RectifiedFlow().at(torch.ones((), dtype=torch.float64)))
    torch.testing.assert_close(at_noise.x0, mean.to(dtype).expand_as(x), rtol=1e-6, atol=1e-6)
    for t in (0.0, 1e-300, 1e-30, 1e-9):
        for schedule in (Cosine(), RectifiedFlow()):
            x0 = oracle(x, schedule.at(torch.full((4,), t, dtype=torch.float64))).x0
            assert (x0.dtype, x0.shape) == (dtype, x.shape)
            assert bool(torch.isfinite(x0).all())
            if oracle is POINTS:
                nearest = (x0.flatten()[:, None] - POINTS.means.flatten()).abs().min(1).values
                assert nearest.max().item() < 1e-6
            else:
                torch.testing.assert_close(x0, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("oracle", [MIXTURE, POINTS], ids=["mixture", "points"])
def test_the_exact_flow_of_a_mixture_follows_its_velocity(oracle: MixtureOracle, schedule: Schedule) -> None:
    """The quantile solution obeys dx/dt = velocity of D (central differences), and flowing back undoes it."""
    if isinstance(schedule, Tabulated):
        pytest.skip("slopes of a table jump at its points; its flow is checked by the order tests")
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64).view(-1, 1)
    width = 1e-5
    before, level, after, far = (
        schedule.at(torch.tensor(t, dtype=torch.float64)) for t in (0.6 - width, 0.6, 0.6 + width, 0.2)
    )
    slope = (oracle.flow(x, level, after) - oracle.flow(x, level, before)) / (2 * width)
    torch.testing.assert_close(PredictFlow().target(oracle(x, level).x0, x, level), slope, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(oracle.flow(oracle.flow(x, level, far), far, level), x, rtol=1e-6, atol=1e-6)


def test_the_mixture_of_one_is_the_gaussian(schedule: Schedule) -> None:
    """One component gives the Gaussian oracle: belief and flow."""
    gaussian = GaussianOracle(mean=torch.tensor([0.4]), variance=torch.tensor([0.3]))
    mixture = MixtureOracle(means=torch.tensor([[0.4]]), variances=torch.tensor([0.3]), weights=torch.ones(1))
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).view(-1, 1)
    t, s = (schedule.at(torch.tensor(value, dtype=torch.float64)) for value in (0.8, 0.3))
    torch.testing.assert_close(mixture(x, t).x0, gaussian(x, t).x0, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(mixture.flow(x, t, s), gaussian.flow(x, t, s), rtol=1e-9, atol=1e-10)


def test_oracles_draw_their_own_law() -> None:
    """Draws of the Gaussian and of the mixture have their cumulative law (Kolmogorov), those of points are points."""
    noise, like = KeyedNoise.from_seeds(range(4000)), torch.zeros(4000, 1, dtype=torch.float64)
    gaussian = GaussianOracle(mean=torch.tensor([0.4]), variance=torch.tensor([0.3]))
    assert kolmogorov(torch.special.ndtr((gaussian.draw(like, noise) - 0.4) / math.sqrt(0.3))) < 1.95
    z = (MIXTURE.draw(like, noise) - MIXTURE.means.double().flatten()) / MIXTURE.variances.double().sqrt()
    assert kolmogorov((torch.special.ndtr(z) * MIXTURE.weights.double()).sum(1)) < 1.95
    drawn = POINTS.draw(like, noise)
    shares = [(drawn - point).abs().lt(1e-6).double().mean().item() for point in POINTS.means.double().flatten()]
    assert shares == pytest.approx([1 / 3] * 3, abs=4 * math.sqrt(2 / 9 / 4000))


@pytest.mark.parametrize(
    "make",
    [
        lambda: GaussianOracle(mean=torch.zeros(()), variance=torch.zeros(())),
        lambda: MixtureOracle(
            means=torch.zeros(2, 1), variances=torch.tensor([0.1, -0.1]), weights=torch.tensor([0.5, 0.5])
        ),
        lambda: MixtureOracle(means=torch.zeros(2, 1), variances=torch.zeros(2), weights=torch.tensor([0.5, 0.6])),
        lambda: MixtureOracle(means=torch.zeros(2, 1), variances=torch.zeros(2), weights=torch.tensor([1.0, 0.0])),
        lambda: POINTS.flow(torch.zeros(1, 2, dtype=torch.float64), shared(0.5), shared(0.2)),
        lambda: POINTS.flow(torch.zeros(1, 1, dtype=torch.float64), shared(0.5), shared(0.0)),
    ],
)
def test_oracles_refuse_what_is_no_law(make: Callable[[], object]) -> None:
    """ValueError for a law or a flow that does not exist."""
    with pytest.raises(ValueError, match=r".+"):
        make()


def test_observed_orders_are_exponents() -> None:
    """Errors c N^-p at doubling N have orders p."""
    assert observed_orders([3 * n**-2.0 for n in (8, 16, 32)]) == pytest.approx((2, 2))
