"""Toy laws whose truth is known: heartbeats, a Swiss roll, dead leaves; and small pictures of digits.

Knows: how these data are drawn, and their exact densities, entropies and correlations.
Does not know: how data are spoiled or learned.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast

import numpy
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from unstir.typing import Noise

_NODES = 8  # of Gauss-Legendre, in two standard deviations of the noise along the roll
_CELLS = 2**24  # numbers in memory at a time
_DISCS = 64  # dead leaves that fall before it is looked which pictures are covered


class Keyed(Noise, Protocol):
    """Noise that says for how many samples it is, as ``KeyedNoise`` does."""

    @property
    def keys(self) -> Sequence[object]:
        """One a sample."""
        ...


@dataclass(frozen=True, kw_only=True)
class HeartBeat:
    """Binary sequences with a 1 at every ``period``-th place, every phase equally likely.

    Args:
        length: of a sequence.
        period: from one 1 to the next.

    Raises:
        ValueError: unless 1 <= period <= length.

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Sec. 3.1.2.
    """

    length: int = 20
    period: int = 5

    def __post_init__(self) -> None:
        """Refuse sequences that cannot be told apart."""
        if not 1 <= self.period <= self.length:
            raise ValueError(f"a period must be from 1 to the length, got {self.period} and {self.length}")

    @property
    def sequences(self) -> Float[Tensor, "p n"]:
        """All sequences of the law; row i has phase i."""
        place = torch.arange(self.length) % self.period
        return (place == torch.arange(self.period)[:, None]).float()

    @property
    def entropy_bits(self) -> float:
        """log2(period), of a whole sequence."""
        return math.log2(self.period)

    def draw(self, noise: Keyed) -> Float[Tensor, "b n"]:
        """One sequence a key, of 0. and 1."""
        share = noise.uniform(torch.empty(len(noise.keys), dtype=torch.float64))
        return self.sequences[(share * self.period).long()]

    def phase(self, x: Float[Tensor, "b n"]) -> Int[Tensor, "b"]:
        """The place of the first 1, or -1 where x is no sequence of the law."""
        same = (x[:, None] == self.sequences.to(x)).all(2)  # b p
        return torch.where(same.any(1), same.int().argmax(1), -1)

    def is_valid(self, x: Float[Tensor, "b n"]) -> Bool[Tensor, "b"]:
        """Whether x is one of the sequences, exactly."""
        return self.phase(x) >= 0


@dataclass(frozen=True, kw_only=True)
class SwissRoll:
    """A spiral in the plane, blurred by Gaussian noise.

    x = (theta (cos theta, sin theta) - m) / s + noise z,   theta ~ U(1.5 pi, 1.5 pi + 2 pi turns),   z ~ N(0, I)

    m is the mean of the spiral and s^2 the mean of its two variances, so that the *noiseless* roll has mean 0 and an
    overall variance of 1 an axis (not 1 on each: the shape is kept). Both are integrated in closed form. The noise is
    added after scaling, so that the variance of x is 1 + noise^2.

    Args:
        turns: of the spiral.
        noise: its standard deviation, in units of the scaled roll.

    Raises:
        ValueError: if a number is not positive.

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Sec. 3.1.1, which gives neither turns nor noise; the angles
        are those of ``make_swiss_roll`` of scikit-learn.
    """

    turns: float = 1.5
    noise: float = 0.0316

    def __post_init__(self) -> None:
        """Refuse what is no roll."""
        if not (self.turns > 0 and self.noise > 0):
            raise ValueError(f"a roll needs turns and noise above 0, got {self.turns} and {self.noise}")

    def curve(self, theta: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n 2"]:
        """The points of the scaled, noiseless roll."""
        mean, scale = self._moments
        return (theta[..., None] * torch.stack([theta.cos(), theta.sin()], -1) - mean) / scale

    def draw(self, noise: Keyed) -> Float[Tensor, "b 2"]:
        """One point a key, in float32."""
        start, end = self._ends
        points = torch.empty(len(noise.keys), 2, dtype=torch.float64)
        theta = start + (end - start) * noise.at(0).uniform(points[:, 0])
        return (self.curve(theta) + self.noise * noise.at(1).normal(points)).float()

    def log_density(self, x: Float[Tensor, "b 2"]) -> Float64[Tensor, "b"]:
        """Log p(x) in nats, in float64.

        The integral over theta is by Gauss-Legendre, in panels no longer than two standard deviations of the noise:
        exact to 1e-8 up to six of them from the roll, to 1e-4 up to ten.
        """
        first, last = self._ends
        panels = math.ceil((last - first) * self._speed(last) / (2 * self.noise))
        theta, weight = _legendre(torch.linspace(first, last, panels + 1, dtype=torch.float64), _NODES)
        points, weight = self.curve(theta), weight.log() - math.log((last - first) * 2 * math.pi * self.noise**2)
        weight = weight - points.square().sum(1) / (2 * self.noise**2)
        rows: list[Tensor] = []
        step = max(1, _CELLS // len(theta))
        for start in range(0, len(x), step):
            part = x[start : start + step].double()
            logs = torch.addmm(weight, part, points.T / self.noise**2)
            rows.append(logs.logsumexp(1) - part.square().sum(1) / (2 * self.noise**2))
        return torch.cat(rows)

    @cached_property
    def entropy_bits(self) -> float:
        """The differential entropy of a point, in bits; the best expected log-likelihood is -entropy_bits.

        -E log2 p by quadrature: Gauss-Legendre along the roll, in finer panels near its two ends, times Gauss-Hermite
        over the noise; exact to 1e-5 for noise up to 0.1, to 1e-3 up to 0.3. For thin rolls it tends to that of a
        straight ribbon, E log2(|d x / d theta| (theta_max - theta_min)) + log2(2 pi e noise^2) / 2.
        """
        return self._entropy_bits(8)

    def _entropy_bits(self, nodes: int) -> float:
        start, end = self._ends
        near = min(6 * self.noise / self._speed(start), (end - start) / 4)
        far = min(6 * self.noise / self._speed(end), (end - start) / 4)
        middle = torch.linspace(start + near, end - far, math.ceil(4 * self.turns) + 1, dtype=torch.float64)
        theta, weight = _legendre(torch.cat([middle.new_tensor([start]), middle, middle.new_tensor([end])]), nodes)
        z, share = (torch.from_numpy(array) for array in numpy.polynomial.hermite_e.hermegauss(nodes))
        blur = self.noise * torch.cartesian_prod(z, z)
        share = torch.outer(share, share).flatten() / (2 * math.pi)
        logs = self.log_density((self.curve(theta)[:, None] + blur).flatten(0, 1)).view(len(theta), len(share))
        return -(weight / (end - start) @ logs @ share).item() / math.log(2)

    @property
    def _ends(self) -> tuple[float, float]:
        return 1.5 * math.pi, (1.5 + 2 * self.turns) * math.pi

    @property
    def _moments(self) -> tuple[Tensor, float]:
        a, b = self._ends
        x = (b * math.sin(b) + math.cos(b) - a * math.sin(a) - math.cos(a)) / (b - a)
        y = (math.sin(b) - b * math.cos(b) - math.sin(a) + a * math.cos(a)) / (b - a)
        square = (b**3 - a**3) / (3 * (b - a))
        return torch.tensor([x, y], dtype=torch.float64), math.sqrt((square - x**2 - y**2) / 2)

    def _speed(self, theta: float) -> float:
        return math.hypot(1, theta) / self._moments[1]


@dataclass(frozen=True, kw_only=True)
class DeadLeaves:
    """Discs of power-law radii and uniform grey levels that fall on each other until they cover the picture.

    p(r) ~ r^-3 from ``smallest`` to ``largest``, centres uniform in the plane, a pixel shows the disc on top of its
    centre. Discs are drawn from the top down, so that a covered pixel is final and the law exact. Only discs that can
    touch the picture are drawn: their radii follow r^-3 (width + 2r) (height + 2r), a mixture of three power laws.

    Args:
        height: of a picture, in pixels.
        width: likewise.
        smallest: radius, in pixels.
        largest: likewise.

    Raises:
        ValueError: if there is no pixel, or unless 0 < smallest < largest.

    Source: Lee, Mumford & Huang 2001, "Occlusion models for natural images: a statistical study of a scale-invariant
        dead leaves model", IJCV 41; Sohl-Dickstein et al. 2015, arXiv:1503.03585, Table 2 (as a benchmark).
    """

    height: int = 16
    width: int = 16
    smallest: float = 1.0
    largest: float = 16.0

    def __post_init__(self) -> None:
        """Refuse what cannot be covered."""
        if self.height < 1 or self.width < 1 or not 0 < self.smallest < self.largest:
            raise ValueError(
                f"dead leaves need a pixel and radii 0 < smallest < largest, got {self.width}x{self.height}, "
                f"{self.smallest} and {self.largest}"
            )

    def draw(self, noise: Keyed) -> Float[Tensor, "b 1 h w"]:
        """One picture a key; its values are -1 + 2 k / 255 with k from 0 to 255."""
        grey = torch.empty(len(noise.keys), self.height * self.width, dtype=torch.long)
        rows = max(1, _CELLS // (4 * _DISCS * grey.shape[1]))
        for start in range(0, len(grey), rows):
            part = slice(start, start + rows)
            grey[part] = self._cover(noise.rows(part), grey[part].fill_(-1))
        levels = (torch.arange(256, dtype=torch.float64) * 2 / 255 - 1).float()
        return levels[grey].view(-1, 1, self.height, self.width)

    def same_leaf(self, distance: float) -> float:
        """The probability that two points so many pixels apart show the same disc.

        P = g(d) / (2 g(0) - g(d)), g(d) = E |disc and the disc moved by d|. It is the correlation of their grey levels.

        Source: Lee, Mumford & Huang 2001, as above.
        """
        low, high = max(self.smallest, distance / 2), self.largest
        if low >= high:
            return 0.0
        log_r, weight = _legendre(torch.linspace(math.log(low), math.log(high), 65, dtype=torch.float64), 8)
        r = log_r.exp()
        half = torch.clamp(distance / (2 * r), max=1)
        overlap = 2 * r**2 * (half.acos() - half * (1 - half**2).sqrt())
        norm = (self.smallest**-2 - high**-2) / 2
        joint = (weight * r**-2 * overlap).sum().item() / norm  # d r = r d log r
        alone = math.pi * math.log(high / self.smallest) / norm
        return joint / (2 * alone - joint)

    def _cover(self, noise: Keyed, grey: Int[Tensor, "b p"]) -> Int[Tensor, "b p"]:
        rows = torch.arange(self.height, dtype=torch.float32)[:, None]
        columns = torch.arange(self.width, dtype=torch.float32)
        bare, layer = torch.arange(len(grey)), 0
        while len(bare):
            shares = noise.at(layer).uniform(torch.empty(len(grey), 5, _DISCS))[bare]
            x, y, r, level = (part[:, :, None, None] for part in self._discs(shares))  # each b n 1 1
            covers = ((columns - x).square() + (rows - y).square() <= r.square()).flatten(2)  # b n p
            top = covers.byte().argmax(1)  # the first is on top; 0 where there is none
            shown = level.flatten(1).gather(1, top)
            seen = grey[bare]
            seen = torch.where((seen < 0) & covers.gather(1, top[:, None])[:, 0], shown, seen)
            grey[bare] = seen
            bare, layer = bare[(seen < 0).any(1)], layer + 1
        return grey

    def _discs(self, shares: Float[Tensor, "b 5 n"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Column, row, radius and grey level of discs that may touch the picture."""
        low, high, width, height = self.smallest, self.largest, self.width - 1, self.height - 1
        kind, share, x, y, level = shares.unbind(1)
        ends = (width * height * (low**-2 - high**-2) / 2, 2 * (width + height) * (1 / low - 1 / high))
        total = sum(ends) + 4 * math.log(high / low)
        cubic = (low**-2 - share * (low**-2 - high**-2)).rsqrt()
        square = 1 / (1 / low - share * (1 / low - 1 / high))
        inverse = low * (high / low) ** share
        r = torch.where(kind * total < ends[0], cubic, torch.where(kind * total < sum(ends), square, inverse))
        return x * (width + 2 * r) - r, y * (height + 2 * r) - r, r, (level * 256).long()


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """Pictures and the classes that they belong to.

    Args:
        pictures: in [-1, 1].
        labels: one a picture.
    """

    pictures: Float[Tensor, "n c h w"]
    labels: Int[Tensor, "n"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Digits:
    """The digits of scikit-learn, apart.

    Args:
        train: 1,297 pictures.
        validation: 200 pictures.
        test: 300 pictures.
    """

    train: Labelled
    validation: Labelled
    test: Labelled


def digits() -> Digits:
    """Scikit-learn's 1,797 handwritten digits, 8x8 in 17 grey levels: values -1 + 2 k / 16 with k from 0 to 16.

    The split is fixed: each class, in the order of the BLAKE2b hashes of its indices, gives the same share to each
    part, to within one picture. The thirteen writers are not named, so that the parts share them.

    Raises:
        ImportError: if scikit-learn is not installed.

    Source: Alpaydin & Kaynak 1998, "Optical recognition of handwritten digits", UCI repository (its test set).
    """
    try:
        module: Any = importlib.import_module("sklearn.datasets")
    except ImportError:
        raise ImportError("the digits come with scikit-learn: pip install 'unstir[reproduce]'") from None
    load = cast("Callable[..., tuple[numpy.ndarray, numpy.ndarray]]", module.load_digits)
    counts, classes = load(return_X_y=True)
    pictures = (torch.from_numpy(counts).float() / 8 - 1).view(-1, 1, 8, 8)
    labels = torch.from_numpy(classes).long()
    order = torch.tensor(sorted(range(len(labels)), key=lambda index: hashlib.blake2b(b"%d" % index).digest()))
    sorted_labels = labels[order]
    members = torch.nn.functional.one_hot(sorted_labels).double()
    place = (members.cumsum(0) / members.sum(0)).gather(1, sorted_labels[:, None])[:, 0]  # in its class, from 0 to 1
    order = order[place.argsort(stable=True)]

    def part(index: Tensor) -> Labelled:
        index = index.sort().values
        return Labelled(pictures=pictures[index], labels=labels[index])

    return Digits(train=part(order[500:]), validation=part(order[300:500]), test=part(order[:300]))


def _legendre(edges: Float64[Tensor, "p"], nodes: int) -> tuple[Float64[Tensor, "n"], Float64[Tensor, "n"]]:
    """Nodes and weights of the Gauss-Legendre rule in each of the panels between the edges."""
    place, weight = (torch.from_numpy(array) for array in numpy.polynomial.legendre.leggauss(nodes))
    half, centre = edges.diff()[:, None] / 2, (edges[1:, None] + edges[:-1, None]) / 2
    return (centre + half * place).flatten(), (half * weight).flatten()
