"""Features and their statistics: numpy's mean and covariance, no dependence on batches, sizes by interpolation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy
import pytest
import torch
from torch import Tensor

from unstir.classifier import Classifier, ClassifierConfig, build_classifier
from unstir.data.transforms import to_unit
from unstir.diffusion.noise import KeyedNoise
from unstir.evaluation.features import (
    ClassifierFeatures,
    FeatureExtractor,
    bootstrap_error,
    extract,
    resized,
    statistics_of,
)
from unstir.nn.encoder import EncoderConfig

NETWORK = EncoderConfig(outputs=2, width=8, multipliers=(1, 2), blocks=1)


@pytest.fixture
def classifier() -> Classifier:
    torch.manual_seed(0)
    made = build_classifier(ClassifierConfig(classes=("cat", "dog"), network=NETWORK, size=8))
    with torch.no_grad():
        for weight in made.network.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return made


def pictures(count: int, size: int = 8) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_ours_are_the_encoders_at_its_clean_end(classifier: Classifier) -> None:
    extractor: FeatureExtractor = ClassifierFeatures(classifier=classifier)
    x = to_unit(pictures(3))
    found = extractor(x)
    assert found.shape == (3, 16)
    assert not found.requires_grad
    torch.testing.assert_close(found, classifier.network.features(x, torch.full((3,), 20.0)))


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_a_row_depends_on_its_picture_alone(classifier: Classifier, batch: int) -> None:
    extractor = ClassifierFeatures(classifier=classifier)
    torch.testing.assert_close(extract(extractor, pictures(5), batch=batch), extract(extractor, pictures(5)))


def test_pictures_of_another_size_are_resized(classifier: Classifier) -> None:
    extractor = ClassifierFeatures(classifier=classifier)
    large = to_unit(pictures(2)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert not torch.equal(extractor(large), extractor(to_unit(pictures(2))))
    torch.testing.assert_close(extractor(large), extractor(resized(large, 8)))


def test_resizing_keeps_what_is_flat_and_averages_what_is_not() -> None:
    flat = torch.tensor([-1.0, 0.25, 1.0]).view(1, 3, 1, 1).expand(1, 3, 12, 12)
    torch.testing.assert_close(resized(flat, 8), flat[..., :8, :8])
    stripes = torch.tensor([1.0, -1.0]).repeat(32).view(1, 1, 1, 64).expand(1, 3, 64, 64)
    assert resized(stripes, 8)[..., 1:-1].abs().max() < 0.1, "antialiasing: no stripe is picked out"
    same = torch.randn(1, 3, 8, 8) * 5
    assert resized(same, 8) is same


def test_statistics_are_numpys_in_double_precision() -> None:
    rows = 1000 + torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    found = statistics_of(rows)
    assert found.mean.dtype == found.covariance.dtype == torch.float64
    assert found.count == 50
    exact = rows.double().numpy()
    numpy.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-14)
    numpy.testing.assert_allclose(found.covariance, numpy.cov(exact.T), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(1, 3), "at least 2 vectors, got 1"),
        (torch.tensor([[1.0, math.inf], [0.0, 0.0]]), "finite"),
    ],
)
def test_sets_without_statistics_are_refused(rows: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        statistics_of(rows)


def test_no_pictures_are_refused(classifier: Classifier) -> None:
    with pytest.raises(ValueError, match="no pictures"):
        extract(ClassifierFeatures(classifier=classifier), pictures(0))


def noise(draws: int) -> KeyedNoise:
    return KeyedNoise.from_seeds(range(draws))


def test_the_bootstrap_finds_the_error_of_a_mean() -> None:
    """sqrt(variance/n), the variance being that of the set itself; 2,000 draws know it to 1.6 %."""
    values = torch.randn(80, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    found = bootstrap_error(lambda rows: values[rows].mean().item(), 80, draws=2000, noise=noise(2000))
    assert found == pytest.approx(values.std(correction=0).item() / math.sqrt(80), rel=5 / math.sqrt(2 * 2000))


def test_what_never_moves_has_no_error() -> None:
    measure: Callable[[Tensor], float] = lambda rows: 1.5  # noqa: E731
    assert bootstrap_error(measure, 5, draws=10, noise=noise(10)) == 0


def test_every_row_is_drawn_and_none_beyond() -> None:
    seen: list[int] = []

    def measure(rows: Tensor) -> float:
        assert len(rows) == 4
        seen.extend(rows.tolist())
        return 0.0

    bootstrap_error(measure, 4, draws=50, noise=noise(50))
    assert set(seen) == {0, 1, 2, 3}


@pytest.mark.parametrize(("count", "draws"), [(5, 1), (0, 10)])
def test_a_bootstrap_of_nothing_is_refused(count: int, draws: int) -> None:
    with pytest.raises(ValueError, match="2 draws of 1 row at least"):
        bootstrap_error(lambda rows: 0.0, count, draws=draws, noise=noise(draws))


def test_a_clean_classifier_gives_features_too(classifier: Classifier) -> None:
    clean = replace(classifier, config=replace(classifier.config, is_clean=True))
    x = to_unit(pictures(3))
    torch.testing.assert_close(ClassifierFeatures(classifier=clean)(x), ClassifierFeatures(classifier=classifier)(x))
