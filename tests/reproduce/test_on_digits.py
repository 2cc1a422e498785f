"""What the experiments on digits share: the chain's ends, the features' order, and when two rows are apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unstir.diffusion.noise import BlockNoise
from unstir.diffusion.process import Estimate, GaussianProcess
from unstir.diffusion.samplers import DDIM, Ancestral
from unstir.diffusion.schedule import Cosine, LinearBeta, Tabulated, VariancePreserving
from unstir.evaluation.kernel import kernel_distance
from unstir.reproduce import on_digits
from unstir.reproduce.report import plots

pytest.importorskip("sklearn")


def table_of(process: GaussianProcess) -> Tabulated:
    assert isinstance(process.schedule, Tabulated)
    return process.schedule


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine()])
@pytest.mark.parametrize("num_steps", [20, 1000])
def test_the_first_step_is_as_noisy_to_a_grey_level_as_in_the_paper(
    schedule: VariancePreserving, num_steps: int
) -> None:
    """DDPM: sigma_1 = sqrt(1e-4) for levels 2/255 apart; here levels are 2/16 apart."""
    process = on_digits.chain(schedule, num_steps)
    first = process.schedule.at(torch.tensor(1 / num_steps, dtype=torch.float64))
    assert first.sigma.item() / (2 / 16) == pytest.approx(math.sqrt(1e-4) / (2 / 255), rel=1e-9)
    assert table_of(process).num_steps == num_steps
    assert process.levels == 17


def test_the_other_steps_are_even_in_the_schedules_own_time() -> None:
    schedule = LinearBeta()
    points = on_digits.chain(schedule, 50).schedule.at(torch.arange(1, 51, dtype=torch.float64) / 50)
    times = schedule.time_of(points.log_snr)
    assert times.diff().std().item() < 1e-9
    assert times[-1].item() == pytest.approx(1, abs=1e-9)


def test_no_beta_is_above_the_papers_clip() -> None:
    assert max(table_of(on_digits.chain(Cosine())).betas) == pytest.approx(0.999)
    assert max(table_of(on_digits.chain(LinearBeta())).betas) < 0.03


def test_pictures_are_drawn_with_replacement_from_those_given() -> None:
    pictures = on_digits.data().train.pictures[:5]
    drawn = on_digits.drawing(pictures)(BlockNoise(key=(0,), count=200))
    found = (drawn[:, None] == pictures).flatten(2).all(2)
    assert found.sum(1).eq(1).all()
    assert found.any(0).all()


def test_grey_levels_are_kept_and_others_rounded_to_them() -> None:
    held_out = on_digits.held_out()
    assert held_out.shape == (500, 1, 8, 8)
    assert torch.equal(on_digits.on_levels(held_out), held_out)
    assert on_digits.on_levels(torch.tensor([-9.0, -0.95, 0.06, 7.0])).tolist() == [-1.0, -1.0, 0.0, 1.0]


def test_features_are_standardised_pixels_and_convolutions() -> None:
    found = on_digits.features(on_digits.data().train.pictures)
    assert found.shape == (1297, 1600)
    assert found.mean(0).abs().max() < 1e-3
    assert found.std(0).max() < 1 + 1e-3
    assert (found.std(0) > 0.99).float().mean() > 0.8


def test_features_are_the_same_on_every_call_and_each_sees_one_picture() -> None:
    pictures = on_digits.held_out()[:7]
    assert torch.allclose(on_digits.features(pictures)[2:4], on_digits.features(pictures[2:4]), atol=1e-5)


def test_training_digits_are_not_told_from_held_out_ones() -> None:
    found = on_digits.distance_of_data()
    assert abs(found.value) < 3 * found.standard_error


def test_distance_grows_with_noise_and_with_blur() -> None:
    """More of what spoils pictures is farther away, by more than the errors; the pixels alone would not tell blur."""
    pictures = on_digits.data().train.pictures[:400]
    noise = BlockNoise(key=(3,), count=len(pictures)).normal(pictures)
    blur = torch.nn.functional.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)

    def rises(spoiled: list[Tensor]) -> None:
        found = [on_digits.distance(on_digits.on_levels(x)) for x in spoiled]
        for less, more in itertools.pairwise(found):
            assert more.value - less.value > 3 * math.hypot(less.standard_error, more.standard_error)

    rises([pictures + std * noise for std in (0.0, 0.15, 0.3, 0.6)])
    rises([torch.lerp(pictures, blur, share) for share in (0.0, 0.3, 0.6, 1.0)])


def test_features_tell_what_pixels_do_not() -> None:
    """Digits whose pixels are swapped between pictures of one class share every pixel's histogram with digits."""
    parts = on_digits.data().train
    swapped = parts.pictures.clone()
    for pixel in range(64):
        for label in range(10):
            rows = (parts.labels == label).nonzero()[:, 0]
            swapped[rows, 0, pixel // 8, pixel % 8] = swapped[rows.roll(pixel), 0, pixel // 8, pixel % 8]
    found = on_digits.distance(swapped)
    assert found.value > 10 * found.standard_error
    pixels = kernel_distance(swapped.flatten(1), on_digits.held_out().flatten(1))
    assert pixels.value / pixels.standard_error < found.value / found.standard_error


def test_rows_are_apart_by_three_errors_of_their_difference() -> None:
    """Means 0 and d, both with standard error 1/sqrt(3): sqrt(2/3) for the difference."""
    low = [-1.0, 0.0, 1.0]
    for gap, expected in ((3.05, True), (2.4, False), (-3.05, True)):
        assert on_digits.are_apart(low, [value + gap * math.sqrt(2 / 3) for value in low]) is expected


def test_pairs_are_told_with_the_lower_first() -> None:
    rows = {"a": [5.0, 5.1, 5.2], "b": [1.0, 1.1, 1.2], "c": [1.05, 1.15, 1.26]}
    assert on_digits.compare(rows) == {"separated": [["b", "a"], ["c", "a"]], "not_separated": [["b", "c"]]}
    lines = on_digits.compared("distance", rows)
    assert lines == ("distance, from low to high: b < c < a", "errors separate 2 of 3 pairs; not these: b ~ c")
    assert on_digits.compared("distance", {"a": rows["a"], "b": rows["b"]})[1] == "errors separate all 1 pairs"


def test_the_papers_orders_hold_are_reversed_or_not_separated() -> None:
    rows = {"a": [5.0, 5.1, 5.2], "b": [1.0, 1.1, 1.2], "c": [1.05, 1.15, 1.26]}
    paper = {"a": 2.0, "b": 1.0, "c": 3.0, "not here": 0.0}
    found = on_digits.against(paper, rows)
    assert found == {"held": [["b", "a"]], "reversed": [["a", "c"]], "not_separated": [["b", "c"]]}
    assert on_digits.told_against("x", paper, rows) == (
        "x: of the paper's 3 orders 1 hold beyond errors, 1 are reversed (a < c), 1 are not separated"
    )


def test_a_picture_is_drawn_even_where_the_model_runs_away() -> None:
    process = on_digits.chain(num_steps=4)
    drawn = on_digits.pictures_of(
        Ancestral(),
        lambda x_t, level, previous=None: _belief(torch.full_like(x_t, math.nan)),
        process,
        count=3,
        num_steps=4,
        noise=(0,),
    )
    assert torch.equal(drawn, torch.zeros(3, 1, 8, 8))


def test_a_model_that_knows_the_picture_draws_it() -> None:
    process = on_digits.chain(num_steps=20)
    truth = on_digits.held_out()[:3]
    drawn = on_digits.pictures_of(
        DDIM(), lambda x_t, level, previous=None: _belief(truth), process, count=3, num_steps=5, noise=(0,)
    )
    assert torch.equal(drawn, truth)


def test_a_model_that_knows_the_picture_pays_for_its_decoder_alone() -> None:
    """Half a grey level on both sides of the truth; beyond black and white there is no other side."""
    process = on_digits.chain(num_steps=20)
    truth = on_digits.held_out()[:5]
    bound = on_digits.bits(lambda x_t, level, previous=None: _belief(truth), process, truth, noise=(0,))
    assert bound.diffusion.abs().max() < 1e-9
    levels = process.schedule.at(torch.tensor([0.0, 0.05, 0.1], dtype=torch.float64))
    small, _ = process.variances(levels[0], levels[1], levels[2])
    side = torch.special.ndtr(1 / 16 / small.sqrt())
    expected = -torch.where(truth.abs() == 1, side, 2 * side - 1).log2().flatten(1).mean(1)
    assert torch.allclose(bound.reconstruction, expected, rtol=1e-5)
    assert torch.allclose(bound.total, expected + bound.prior, rtol=1e-5)


def test_the_decoder_has_a_gradient_at_black_and_white() -> None:
    """Where half of the pixels are; a grey level without a neighbour on one side must not make it 0 times infinity."""
    process = on_digits.chain(num_steps=20)
    truth = on_digits.held_out()[:5]
    first, above = process.schedule.at(torch.tensor([0.05, 0.1], dtype=torch.float64))
    x0 = (0.9 * truth).requires_grad_()
    fraction = torch.full_like(truth, 0.5).requires_grad_()
    belief = Estimate(x0=x0, variance_fraction=fraction)
    process.decode_log_prob(truth, process.marginal(truth, first).mean, first, belief, above).sum().backward()
    assert x0.grad is not None
    assert fraction.grad is not None
    assert x0.grad.isfinite().all()
    assert fraction.grad.isfinite().all()
    assert (x0.grad[truth == -1] < 0).all()  # more than black is better


@pytest.mark.parametrize("build", [on_digits.perceptron, on_digits.convolutions])
def test_networks_have_the_outputs_that_are_asked_for(build: Callable[[int], nn.Module]) -> None:
    for outputs in (1, 2):
        network = build(outputs)
        assert network(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape == (2, outputs, 8, 8)


def test_sheets_take_as_many_pictures_as_fill_rows(tmp_path: Path) -> None:
    pyplot = plots()
    figure, axes = pyplot.subplots()
    pictures = on_digits.held_out()[:7]
    on_digits.show(axes, pictures, columns=3, title="")
    (image,) = axes.get_images()
    assert image.get_array().shape == (2 * 10, 3 * 10)
    assert (torch.from_numpy(image.get_array()[11:19, 1:9].copy()) == pictures[3, 0]).all()
    pyplot.close(figure)


def _belief(x0: Tensor) -> Estimate:
    return Estimate(x0=x0)
