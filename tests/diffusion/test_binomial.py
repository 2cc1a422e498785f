"""Bits that are forgotten and tossed anew, against enumeration of all states and strings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import BinomialProcess, Estimate
from unstir.diffusion.schedule import (
    Cosine,
    Level,
    LinearBeta,
    LogLinear,
    Reciprocal,
    RectifiedFlow,
    Schedule,
    Tabulated,
    VarianceExploding,
    VariancePreserving,
    linear_betas,
    reciprocal_betas,
)
from unstir.verify.oracles import BitsOracle

SCHEDULES: dict[str, VariancePreserving] = {
    "reciprocal": Reciprocal(),
    "linear": LinearBeta(),
    "cosine": Cosine(),
    "log-linear": LogLinear(),
    "table": Tabulated.from_betas(linear_betas(1000)),
    "jsd": Tabulated.from_betas(reciprocal_betas(20)),
}
EACH = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
RATE = st.floats(0.02, 0.98)
BIT = st.sampled_from([0.0, 1.0])
GAP = 1e-3


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def one(value: float) -> torch.Tensor:
    return torch.full((1, 1), value, dtype=torch.float64)


def levels(schedule: Schedule, *times: float) -> tuple[Level, ...]:
    return tuple(schedule.at(scalar(t)) for t in times)


@st.composite
def rising(draw: st.DrawFn, count: int) -> tuple[float, ...]:
    """Times in (0.01, 0.99), rising by at least ``GAP``."""
    times = sorted(draw(st.lists(st.floats(0.01, 0.99 - count * GAP), min_size=count, max_size=count)))
    return tuple(t + i * GAP for i, t in enumerate(times))


def matrix(process: BinomialProcess, s: Level, t: Level) -> numpy.ndarray:
    """P(x_t = column | x_s = row), as the process says."""
    ones = [process.kernel(one(bit), s, t).probability.item() for bit in (0.0, 1.0)]
    return numpy.array([[1 - p, p] for p in ones])


def tossed(kept: float, rate: float) -> numpy.ndarray:
    """P(to | from), as it is defined: kept with some probability, tossed anew else."""
    return kept * numpy.eye(2) + (1 - kept) * numpy.array([[1 - rate, rate]] * 2)


@EACH
@given(rising(2), RATE)
def test_marginal_and_kernel_are_the_definition(
    schedule: VariancePreserving, times: tuple[float, ...], rate: float
) -> None:
    """Kept with probability alpha_bar (between two levels its ratio), tossed anew else (Sohl-Dickstein et al. 2015,
    Table App. 1, of any rate).
    """
    process = BinomialProcess(schedule=schedule, rate=rate)
    s, t = levels(schedule, *times)
    kept = [schedule.alpha_bar(scalar(at)).item() for at in times]
    for bit in (0, 1):
        marginal = process.marginal(one(bit), t).probability.item()
        assert marginal == pytest.approx(tossed(kept[1], rate)[bit, 1], abs=1e-12)
    numpy.testing.assert_allclose(matrix(process, s, t), tossed(kept[1] / kept[0], rate), atol=1e-12)


@EACH
@given(rising(3), RATE)
def test_kernels_compose(schedule: VariancePreserving, times: tuple[float, ...], rate: float) -> None:
    """q(x_t | x_s) after q(x_s | x_r) is q(x_t | x_r), and after the marginal at s it is that at t."""
    process = BinomialProcess(schedule=schedule, rate=rate)
    r, s, t = levels(schedule, *times)
    numpy.testing.assert_allclose(
        matrix(process, r, s) @ matrix(process, s, t), matrix(process, r, t), rtol=0, atol=1e-12
    )
    for bit in (0.0, 1.0):
        at_s, at_t = (process.marginal(one(bit), level).probability.item() for level in (s, t))
        assert (numpy.array([1 - at_s, at_s]) @ matrix(process, s, t))[1] == pytest.approx(at_t, abs=1e-12)


@EACH
@given(RATE)
def test_the_prior_never_moves(schedule: VariancePreserving, rate: float) -> None:
    """Bits at the prior rate stay at it at every step, and the prior is of that rate."""
    process = BinomialProcess(schedule=schedule, rate=rate)
    s, t = levels(schedule, 0.3, 0.8)
    assert process.kernel(one(rate), s, t).probability.item() == pytest.approx(rate, abs=1e-14)
    prior = process.prior(torch.zeros(2, 3))
    assert prior.probability.shape == (2, 3)
    torch.testing.assert_close(prior.probability, torch.full((2, 3), rate))


@pytest.mark.parametrize("schedule", [Reciprocal(), SCHEDULES["jsd"]], ids=["reciprocal", "jsd"])
@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_without_signal_the_end_is_the_prior(schedule: Schedule, rate: float) -> None:
    """At t = 1, where alpha_bar = 0, the marginal is the prior bit for bit: its term of the bound is 0."""
    process = BinomialProcess(schedule=schedule, rate=rate)
    (end,) = levels(schedule, 1.0)
    x0 = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    assert torch.equal(process.marginal(x0, end).probability, torch.full_like(x0, rate))
    assert process.marginal(x0, end).kl(process.prior(x0)).tolist() == [[0, 0]]


@EACH
@given(rising(2), RATE, BIT, BIT)
def test_reverse_of_the_truth_is_bayes(
    schedule: VariancePreserving, times: tuple[float, ...], rate: float, x0: float, x_t: float
) -> None:
    """P(x_s | x_t, x_0) = q(x_t | x_s) q(x_s | x_0) over its sum over both states of x_s (which here loses digits near
    data; ``test_chains`` has more).
    """
    process = BinomialProcess(schedule=schedule, rate=rate)
    s, t = levels(schedule, *times)
    kept = [schedule.alpha_bar(scalar(at)).item() for at in times]
    joint = tossed(kept[0], rate)[int(x0)] * tossed(kept[1] / kept[0], rate)[:, int(x_t)]
    got = process.reverse(one(x_t), t, s, Estimate(x0=one(x0))).probability.item()
    assert got == pytest.approx(joint[1] / joint.sum(), abs=1e-9)


@EACH
@given(rising(2), RATE, st.floats(0, 1), BIT)
def test_reverse_of_a_belief_is_the_mixture(
    schedule: VariancePreserving, times: tuple[float, ...], rate: float, belief: float, x_t: float
) -> None:
    """P(x_s | x_t) averages the posteriors of both clean bits over the belief (Austin et al. 2021, Eq. 4): linear."""
    process = BinomialProcess(schedule=schedule, rate=rate)
    s, t = levels(schedule, *times)
    zero, certain, mixed = (
        process.reverse(one(x_t), t, s, Estimate(x0=one(value))).probability.item() for value in (0.0, 1.0, belief)
    )
    assert mixed == pytest.approx(belief * certain + (1 - belief) * zero, abs=1e-14)
    assert 0 <= mixed <= 1


@EACH
@given(rising(2), RATE, BIT)
def test_reverse_of_the_truth_keeps_the_marginal(
    schedule: VariancePreserving, times: tuple[float, ...], rate: float, x0: float
) -> None:
    """P(x_s | x_t, x_0) averaged over q(x_t | x_0) is q(x_s | x_0)."""
    process = BinomialProcess(schedule=schedule, rate=rate)
    s, t = levels(schedule, *times)
    at_t = process.marginal(one(x0), t).probability.item()
    back = [process.reverse(one(bit), t, s, Estimate(x0=one(x0))).probability.item() for bit in (0.0, 1.0)]
    assert (1 - at_t) * back[0] + at_t * back[1] == pytest.approx(
        process.marginal(one(x0), s).probability.item(), abs=1e-12
    )


@EACH
@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_three_bits_by_enumeration(schedule: VariancePreserving, rate: float) -> None:
    """For a law of 3 bits the chain's step with the exact belief P(x0 | x_t) has the exact posterior of every bit given
    all of x_t, summed over all 8 x 8 strings (x_0, x_s).
    """
    law = BitsOracle(table=torch.tensor([0.3, 0.05, 0.1, 0.15, 0.02, 0.18, 0.12, 0.08]).double(), rate=rate)
    process = BinomialProcess(schedule=schedule, rate=rate)
    s, t = levels(schedule, 0.35, 0.6)
    kept = [schedule.alpha_bar(scalar(at)).item() for at in (0.35, 0.6)]
    there, step = tossed(kept[0], rate), tossed(kept[1] / kept[0], rate)
    strings = list(itertools.product((0, 1), repeat=3))
    for x_t in strings:
        weights = numpy.zeros((2, 3))
        for p, x0 in zip(law.table.tolist(), strings, strict=True):
            for x_s in strings:
                mass = p
                for a, b, c in zip(x0, x_s, x_t, strict=True):
                    mass *= there[a, b] * step[b, c]
                for i in range(3):
                    weights[x_s[i], i] += mass
        seen = torch.tensor([x_t], dtype=torch.float64)
        got = process.reverse(seen, t, s, law(seen, t)).probability
        numpy.testing.assert_allclose(got[0].numpy(), weights[1] / weights.sum(0), rtol=0, atol=1e-12)


@EACH
@pytest.mark.parametrize("x_t", [0.0, 1.0])
@pytest.mark.parametrize("belief", [0.0, 0.35, 1.0])
def test_the_last_step_is_the_belief(schedule: Schedule, x_t: float, belief: float) -> None:
    """At s = 0 the probability of 1 is the belief itself, and decode_log_prob is its logarithm."""
    process = BinomialProcess(schedule=schedule, rate=0.3)
    zero, t = levels(schedule, 0.0, 0.3)
    back = process.reverse(one(x_t), t, zero, Estimate(x0=one(belief)))
    assert back.probability.item() == pytest.approx(belief, abs=1e-15)
    for data, share in ((1.0, belief), (0.0, 1 - belief)):
        got = process.decode_log_prob(one(data), one(x_t), t, Estimate(x0=one(belief))).item()
        assert got == pytest.approx(math.log(share) if share else -math.inf, abs=1e-14)


def test_marginal_by_simulation() -> None:
    """The share of ones of 20,000 draws, within 4 standard errors, each row from its own key."""
    process = BinomialProcess(schedule=Reciprocal(), rate=0.2)
    (t,) = levels(process.schedule, 0.7)
    law = process.marginal(torch.ones(2, 10_000), t)
    drawn = law.sample(KeyedNoise.from_seeds([0, 1]))
    p = 0.3 + 0.7 * 0.2
    assert drawn.mean().item() == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 20_000))
    alone = process.marginal(torch.ones(1, 10_000), t).sample(KeyedNoise.from_seeds([1]))
    assert torch.equal(drawn[1:], alone)


@EACH
@pytest.mark.parametrize(("t", "x0", "x_t"), [(0.3, 0.0, 0.0), (0.3, 1.0, 0.0), (0.6, 0.0, 1.0), (0.9, 1.0, 1.0)])
@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_divergence_rate_is_the_limit_of_small_steps(
    schedule: Schedule, t: float, x0: float, x_t: float, rate: float
) -> None:
    """KL(q || p)/h of a step from t to t - h tends to it as h falls, of first order in h (Campbell et al. 2022,
    Proposition 2); a table is differentiable between its points.
    """
    if isinstance(schedule, Tabulated):
        t = (math.floor(t * schedule.num_steps) + 0.5) / schedule.num_steps
    process = BinomialProcess(schedule=schedule, rate=rate)
    (there,) = levels(schedule, t)
    belief = Estimate(x0=one(0.37))
    got = process.divergence_rate(one(x0), one(x_t), there, belief).item()
    errors = []
    for h in (4e-5, 2e-5, 1e-5):
        (here,) = levels(schedule, t - h)
        truth, model = (process.reverse(one(x_t), there, here, each) for each in (Estimate(x0=one(x0)), belief))
        errors.append(truth.kl(model).item() / h - got)
    assert abs(errors[2]) < 0.01 * got
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.2)


@EACH
@given(st.floats(0.02, 0.98), RATE, BIT, BIT, st.floats(0.01, 0.99))
def test_divergence_rate_is_that_of_flips(
    schedule: VariancePreserving, t: float, rate: float, x0: float, x_t: float, belief: float
) -> None:
    """r log(r/r') - r + r' with the rates at which the reverse chain flips, written out, to ten digits in float64."""
    process = BinomialProcess(schedule=schedule, rate=rate)
    (level,) = levels(schedule, t)
    kept = (level.alpha**2).item()
    tosses = -level.dlog_snr.item() * (level.sigma**2).item()  # -d log alpha_bar/dt
    law = tossed(kept, rate)

    def flips(clean: int) -> float:
        back = rate if x_t else 1 - rate
        return tosses * back * law[clean, int(1 - x_t)] / law[clean, int(x_t)]

    r, believed = flips(int(x0)), belief * flips(1) + (1 - belief) * flips(0)
    expected = r * math.log(r / believed) - r + believed
    got = process.divergence_rate(one(x0), one(x_t), level, Estimate(x0=one(belief))).item()
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-10 * max(1.0, r, believed))


def test_each_sample_at_its_own_level() -> None:
    """A batch with a level a sample equals its samples one by one, and float32 stays float32."""
    process = BinomialProcess(schedule=Cosine(), rate=0.3)
    s, t = (process.schedule.at(torch.tensor(times, dtype=torch.float64)) for times in ([0.1, 0.3], [0.2, 0.9]))
    generator = torch.Generator().manual_seed(0)
    x_t, x0, belief = torch.rand(3, 2, 3, 2, generator=generator, dtype=torch.float64)
    x_t, x0 = (x_t > 0.5).double(), (x0 > 0.5).double()

    def all_of(rows: slice, s: Level, t: Level, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
        a, b, c = (each[rows].to(dtype) for each in (x_t, x0, belief))
        return [
            process.marginal(b, t).probability,
            process.kernel(a, s, t).probability,
            process.reverse(a, t, s, Estimate(x0=c)).probability,
            process.divergence_rate(b, a, t, Estimate(x0=c)),
            process.decode_log_prob(b, a, t, Estimate(x0=c)),
        ]

    whole = all_of(slice(None), s, t)
    for i in range(2):
        for together, alone in zip(whole, all_of(slice(i, i + 1), s[i], t[i]), strict=True):
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-13, atol=1e-15)
    for fine, coarse in zip(whole, all_of(slice(None), s, t, torch.float32), strict=True):
        assert coarse.dtype == torch.float32
        torch.testing.assert_close(coarse.double(), fine, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step", [2, 1000, 2000])
def test_rare_flips_keep_their_digits_in_float32(step: int) -> None:
    """In 2000 steps a bit is flipped once in 4000: its probability in float32 is that of float64 to five digits, where
    1 - P would keep three.
    """
    process = BinomialProcess(schedule=Tabulated.from_betas(reciprocal_betas(2000)), rate=0.2)
    s, t = levels(process.schedule, (step - 1) / 2000, step / 2000)
    for x_t, x0 in itertools.product((0.0, 1.0), repeat=2):
        belief = one(x0)
        fine = process.reverse(one(x_t), t, s, Estimate(x0=belief)).probability
        coarse = process.reverse(one(x_t).float(), t, s, Estimate(x0=belief.float())).probability
        assert coarse.item() == pytest.approx(fine.item(), rel=2e-6)


@given(st.floats(1e-6, 1 - 1e-6))
def test_natural_coordinates_are_logits(probability: float) -> None:
    """from_natural undoes to_natural, which is log p/(1 - p), finite for certain bits too."""
    process = BinomialProcess(schedule=Cosine())
    y = process.to_natural(one(probability))
    assert y.item() == pytest.approx(math.log(probability / (1 - probability)), rel=1e-9, abs=1e-9)
    assert process.from_natural(y).item() == pytest.approx(probability, rel=1e-12)
    certain = process.to_natural(torch.tensor([0.0, 1.0]))
    assert bool(torch.isfinite(certain).all())
    torch.testing.assert_close(process.from_natural(certain), torch.tensor([0.0, 1.0]), rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BinomialProcess(schedule=Cosine(), rate=0.0), r"in \(0, 1\), got 0.0"),
        (lambda: BinomialProcess(schedule=Cosine(), rate=1.0), r"in \(0, 1\), got 1.0"),
        (lambda: BinomialProcess(schedule=Cosine(), rate=math.nan), r"in \(0, 1\), got nan"),
        (lambda: BinomialProcess(schedule=VarianceExploding()), r"got VarianceExploding; take one that preserves"),
        (lambda: BinomialProcess(schedule=RectifiedFlow()), r"got RectifiedFlow; take one that preserves"),
    ],
)
def test_refuses_what_is_no_process_of_bits(make: Callable[[], object], words: str) -> None:
    """ValueError with what was given, what was expected, and what to do."""
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("value", [0.5, -1.0, 2.0, math.nan])
def test_refuses_data_that_is_no_bits(value: float) -> None:
    """ValueError for anything but 0 and 1."""
    process = BinomialProcess(schedule=Cosine())
    (t,) = levels(process.schedule, 0.2)
    data = torch.tensor([[0.0, 1.0, value]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"0\. and 1\., got values from.*codec"):
        process.decode_log_prob(data, data, t, Estimate(x0=torch.full_like(data, 0.5)))


@pytest.mark.parametrize(("s", "t"), [(0.5, 0.5), (0.6, 0.5)])
def test_refuses_steps_that_go_nowhere(s: float, t: float) -> None:
    """ValueError unless s < t."""
    process = BinomialProcess(schedule=Cosine())
    start, end = levels(process.schedule, s, t)
    with pytest.raises(ValueError, match="s < t"):
        process.reverse(one(1.0), end, start, Estimate(x0=one(1.0)))
    with pytest.raises(ValueError, match="s < t"):
        process.kernel(one(1.0), start, end)
