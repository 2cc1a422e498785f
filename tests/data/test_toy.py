"""Toy laws against what is known of them: counts, integrals, closed forms."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch

from unstir.data.toy import DeadLeaves, HeartBeat, SwissRoll, digits
from unstir.diffusion.noise import KeyedNoise
from unstir.verify.oracles import kolmogorov

LAWS = [
    HeartBeat(),
    SwissRoll(),
    DeadLeaves(height=5, width=7, largest=6.0),
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_a_sample_depends_on_its_key_alone(law: Any) -> None:
    noise = KeyedNoise.from_seeds(range(300))  # more than one portion of dead leaves
    drawn = law.draw(noise)
    assert drawn.dtype == torch.float32
    assert torch.equal(law.draw(noise), drawn)
    assert torch.equal(law.draw(noise.rows(slice(17, 19))), drawn[17:19])
    assert len(drawn.unique(dim=0)) == (5 if isinstance(law, HeartBeat) else 300)


# Heartbeats


def test_a_heartbeat_beats() -> None:
    law = HeartBeat(length=7, period=3)
    assert law.sequences.tolist() == [[1, 0, 0, 1, 0, 0, 1], [0, 1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 1, 0]]
    assert law.entropy_bits == math.log2(3)
    assert HeartBeat().sequences.shape == (5, 20)
    assert HeartBeat().sequences.sum(1).tolist() == [4.0] * 5


def test_phases_are_equally_likely() -> None:
    law = HeartBeat(length=20, period=5)
    drawn = law.draw(KeyedNoise.from_seeds(range(5000)))
    assert law.is_valid(drawn).all()
    counts = law.phase(drawn).bincount(minlength=5).double()
    assert ((counts - 1000).square().sum() / 1000).item() < 18.47, "99.9 % of chi-square with 4 degrees of freedom"


def test_phase_and_validity() -> None:
    law = HeartBeat(length=6, period=2)
    x = torch.cat([law.sequences, torch.zeros(1, 6), torch.ones(1, 6), 0.999 * law.sequences[:1]])
    assert law.phase(x).tolist() == [0, 1, -1, -1, -1]
    assert law.is_valid(x).tolist() == [True, True, False, False, False]
    broken = law.sequences[:1].clone()
    broken[0, 5] = 1
    assert not law.is_valid(broken).any()


@pytest.mark.parametrize(("length", "period"), [(4, 5), (4, 0)])
def test_heartbeats_that_cannot_be_told_apart_are_refused(length: int, period: int) -> None:
    with pytest.raises(ValueError, match=f"got {period} and {length}"):
        HeartBeat(length=length, period=period)


# The Swiss roll


@pytest.mark.parametrize("turns", [1.5, 0.3])
def test_the_noiseless_roll_has_mean_zero_and_overall_variance_one(turns: float) -> None:
    """By the rule of midpoints over the angle; the two axes keep their own variances."""
    law = SwissRoll(turns=turns)
    theta = 1.5 * math.pi + 2 * math.pi * turns * (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    points = law.curve(theta)
    assert points.mean(0).abs().max() < 1e-9
    assert points.square().mean() == pytest.approx(1, abs=1e-9)
    assert abs(points[:, 0].square().mean() - 1) > 0.03
    step = points.diff(dim=0)
    turned = torch.atan2(step[:, 1], step[:, 0]).diff().remainder(2 * math.pi).sum()
    assert turned.item() == pytest.approx(2 * math.pi * turns, rel=0.05), "its direction turns as often as the roll"


def test_points_lie_where_the_law_says() -> None:
    """The angle of a thin roll's point is uniform, its distance from the roll normal, and the total variance right."""
    law = SwissRoll(noise=0.001)
    drawn = law.draw(KeyedNoise.from_seeds(range(2000))).double()
    theta = torch.linspace(1.5 * math.pi, 4.5 * math.pi, 40_001, dtype=torch.float64)
    distance, nearest = torch.cdist(drawn, law.curve(theta)).min(1)
    assert kolmogorov((theta[nearest] - theta[0]) / (theta[-1] - theta[0])) < 1.95
    z = (distance / 0.001).square()
    assert abs(z.mean().item() - 1) < 4 * math.sqrt(2 / 2000), "one of the two directions is along the roll"
    wide = SwissRoll(noise=2.0).draw(KeyedNoise.from_seeds(range(2000)))
    assert abs(wide.square().mean().item() - 5) < 0.5, "1 + noise^2"
    assert wide.mean(0).abs().max() < 4 * math.sqrt(5 / 2000)


@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_the_density_has_mass_one(noise: float) -> None:
    """The trapezoid rule on a grid at half the width of the noise is exact to 1e-8 for a blur of Gaussians."""
    law, step = SwissRoll(noise=noise), noise / 2
    axis = torch.arange(-5, 5, step, dtype=torch.float64)
    mass = law.log_density(torch.cartesian_prod(axis, axis)).exp().sum() * step**2
    assert mass.item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("noise", [0.0316, 0.5])
def test_the_density_is_the_integral_over_the_angle(noise: float) -> None:
    """Against a plain rule of midpoints with very many nodes: on the roll, beyond its ends and between its arms."""
    law, count = SwissRoll(noise=noise), 400_000
    theta = 1.5 * math.pi + 3 * math.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    ends = law.curve(torch.tensor([1.5 * math.pi, 4.5 * math.pi], dtype=torch.float64))
    x = torch.cat([law.draw(KeyedNoise.from_seeds(range(5))).double(), ends, ends + 4 * noise, torch.zeros(1, 2)])
    squares = (x[:, None] - law.curve(theta)).square().sum(2)
    expected = torch.logsumexp(-squares / (2 * noise**2), 1) - math.log(count * 2 * math.pi * noise**2)
    torch.testing.assert_close(law.log_density(x), expected, atol=1e-7, rtol=1e-9)


@pytest.mark.parametrize(
    ("noise", "known"), [(0.001, 4.26), (0.0039, 2.30), (0.01, 0.94), (0.0316, -0.72), (0.1, -2.38)]
)
def test_the_entropy_tends_to_that_of_a_straight_ribbon(noise: float, known: float) -> None:
    """E log2(speed x range) + log2(2 pi e noise^2) / 2 is what papers.md lists; ends and bends are of order noise."""
    theta = 1.5 * math.pi + 3 * math.pi * (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    law = SwissRoll(noise=noise)
    speed = law.curve(theta).diff(dim=0).norm(dim=1) / (3 * math.pi / 200_000)
    ribbon = (speed * 3 * math.pi).log2().mean().item() + math.log2(2 * math.pi * math.e * noise**2) / 2
    assert -ribbon == pytest.approx(known, abs=0.005)
    assert law.entropy_bits - ribbon == pytest.approx(0, abs=0.3 * noise)
    assert law.entropy_bits > ribbon, "blur beyond the two ends adds area"


@pytest.mark.parametrize("noise", [0.0316, 0.3])
def test_the_entropy_is_minus_the_mean_log_density(noise: float) -> None:
    law = SwissRoll(noise=noise)
    bits = law.log_density(law.draw(KeyedNoise.from_seeds(range(20_000)))) / math.log(2)
    assert abs(bits.mean().item() + law.entropy_bits) < 4 * bits.std().item() / math.sqrt(20_000)


@pytest.mark.parametrize(("noise", "error"), [(0.0316, 1e-6), (0.1, 1e-5), (0.3, 1e-3)])
def test_the_entropy_has_converged(noise: float, error: float) -> None:
    law = SwissRoll(noise=noise)
    assert abs(law._entropy_bits(16) - law.entropy_bits) < error


def test_the_entropy_of_a_wide_blur_is_that_of_a_gaussian() -> None:
    """At noise 20 the roll is a point: two Gaussians of variance 1 + noise^2, to within 1e-3 bits."""
    assert SwissRoll(noise=20.0).entropy_bits == pytest.approx(math.log2(2 * math.pi * math.e * 401), abs=1e-3)


@pytest.mark.parametrize("change", [{"turns": 0.0}, {"noise": 0.0}, {"noise": -1.0}, {"noise": math.nan}])
def test_what_is_no_roll_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="turns and noise above 0"):
        SwissRoll(**change)


# Dead leaves


def test_grey_levels_are_bytes_and_uniform() -> None:
    law = DeadLeaves()
    drawn = law.draw(KeyedNoise.from_seeds(range(4000)))
    assert drawn.shape == (4000, 1, 16, 16)
    k = (drawn.double() + 1) * 255 / 2
    assert torch.equal((-1 + 2 * k.round() / 255).float(), drawn)
    assert (k.round().min(), k.round().max()) == (0, 255)
    corner = (k[:, 0, 15, 3].round() + 0.5) / 256  # one pixel a picture: independent
    assert kolmogorov(corner) < 1.95


@pytest.mark.parametrize("law", [DeadLeaves(), DeadLeaves(height=9, width=12, smallest=2.0, largest=5.0)])
def test_two_pixels_share_a_leaf_as_often_as_the_closed_form_says(law: DeadLeaves) -> None:
    """The correlation of grey levels at a distance, along rows, columns and diagonals, within 4 standard errors."""
    grey = law.draw(KeyedNoise.from_seeds(range(4000)))[:, 0].double()
    variance = (256**2 - 1) / 12 * (2 / 255) ** 2
    for rows, columns in [(0, 1), (1, 0), (3, 4), (0, 8), (8, 0)]:
        one = grey[:, rows:, columns:]
        other = grey[:, : law.height - rows, : law.width - columns]
        mean = (one * other).mean((1, 2)) / variance  # a picture
        known = law.same_leaf(math.hypot(rows, columns))
        assert abs(mean.mean().item() - known) < 4 * mean.std().item() / math.sqrt(len(mean)), (rows, columns)


def test_the_discs_that_can_touch_the_picture_have_their_law() -> None:
    """Radii, by their distribution function integrated by hand; centres uniform in the picture widened by the radius."""
    law, a, b = DeadLeaves(height=4, width=10, smallest=1.0, largest=8.0), 3, 9
    shares = KeyedNoise.from_seeds(range(200)).uniform(torch.empty(200, 5, 64, dtype=torch.float64))
    x, y, r, level = (part.flatten() for part in law._discs(shares))

    def mass(r: torch.Tensor) -> torch.Tensor:  # the integral of r^-3 (a + 2r) (b + 2r) from 1
        return a * b * (1 - r**-2) / 2 + 2 * (a + b) * (1 - 1 / r) + 4 * r.log()

    assert kolmogorov(mass(r) / mass(torch.tensor(8.0).double())) < 1.95
    assert kolmogorov((x + r) / (b + 2 * r)) < 1.95
    assert kolmogorov((y + r) / (a + 2 * r)) < 1.95
    assert kolmogorov((level + shares[:, 3].flatten()) / 256) < 1.95


def test_the_closed_form_at_its_ends() -> None:
    law = DeadLeaves(smallest=2.0, largest=5.0)
    assert law.same_leaf(0) == pytest.approx(1, abs=1e-12)
    assert law.same_leaf(10.0) == law.same_leaf(11.0) == 0
    almost = DeadLeaves(smallest=3.0, largest=3.0001)  # one radius: g(d) is the lens of two discs
    lens = 2 * 9 * math.acos(1 / 3) - 2 / 2 * math.sqrt(4 * 9 - 4)
    assert almost.same_leaf(2.0) == pytest.approx(lens / (2 * math.pi * 9 - lens), abs=1e-4)


def test_one_pixel_and_one_row_are_covered_too() -> None:
    for height, width in [(1, 1), (1, 9), (9, 1)]:
        drawn = DeadLeaves(height=height, width=width).draw(KeyedNoise.from_seeds(range(200)))
        assert drawn.shape == (200, 1, height, width)
        assert drawn.abs().max() <= 1
        assert len(drawn[:, 0, 0, 0].unique()) > 100


@pytest.mark.parametrize("change", [{"height": 0}, {"smallest": 0.0}, {"smallest": 16.0}, {"largest": 0.5}])
def test_what_cannot_be_covered_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="0 < smallest < largest"):
        DeadLeaves(**change)


# Digits


def test_digits_are_scikit_learns_each_in_one_part() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    found = digits()
    parts = [found.train, found.validation, found.test]
    assert [len(part.labels) for part in parts] == [1297, 200, 300]
    counts, classes = datasets.load_digits(return_X_y=True)
    key = sorted((*row, label) for row, label in zip(counts.tolist(), classes.tolist(), strict=True))
    pictures = torch.cat([part.pictures for part in parts])
    assert pictures.shape == (1797, 1, 8, 8)
    assert (pictures.dtype, pictures.min(), pictures.max()) == (torch.float32, -1, 1)
    assert pictures.mul(8).frac().abs().max() == 0
    rows = ((pictures + 1) * 8).flatten(1).double().tolist()
    labels = torch.cat([part.labels for part in parts]).tolist()
    assert sorted((*row, label) for row, label in zip(rows, labels, strict=True)) == key


def test_each_class_gives_the_same_share_to_each_part() -> None:
    pytest.importorskip("sklearn")
    found = digits()
    whole = sum(part.labels.bincount() for part in (found.train, found.validation, found.test))
    for part in (found.train, found.validation, found.test):
        share = len(part.labels) / 1797
        assert (part.labels.bincount() - share * whole).abs().max() <= 1.5
    assert (found.test.labels.diff() != 0).double().mean() > 0.5, "in the order of the set, not sorted by class"


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'unstir\[reproduce\]'"):
        digits()
