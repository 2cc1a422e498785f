"""Losses of codecs against their formulas in numpy, plain torch and by finite differences; who gets which gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unstir.codec import AutoencoderConfig, QuantizedConfig
from unstir.codec.base import Coded
from unstir.codec.losses import (
    CodecLoss,
    CodecWeights,
    DiscriminatorConfig,
    PatchDiscriminator,
    PerceptualDistance,
    adaptive_weight,
    fooling,
    hinge,
)
from unstir.diffusion.noise import KeyedNoise

SHAPE = AutoencoderConfig(latent_channels=3, width=8, multipliers=(1, 2), blocks=1, groups=4)
SMALL = DiscriminatorConfig(width=4, layers=1)
NOISE = KeyedNoise.from_seeds([3, 4])
WEIGHTS = CodecWeights(perceptual=0.7, kl=1e-2, commitment=0.3, codebook=0.9, adversarial=0.6, adversarial_start=10)


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Eye(nn.Module):
    """Two maps of features of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3, stride=2)

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        fine = torch.relu(self.fine(x))
        return [fine, self.coarse(fine)]


def eye() -> Eye:
    torch.manual_seed(0)
    return Eye()


def distance_in_numpy(eye: Eye, x: Tensor, y: Tensor, weights: Sequence[Tensor] | None) -> np.ndarray:
    total = np.zeros(len(x))
    for index, pair in enumerate(zip(eye(x), eye(y), strict=True)):
        one, other = (maps.detach().double().numpy() for maps in pair)
        one, other = (maps / np.sqrt((maps**2).sum(1, keepdims=True) + 1e-10) for maps in (one, other))
        weight = 1.0 if weights is None else weights[index].double().numpy()[:, None, None]
        total += (weight * (one - other) ** 2).sum(1).mean((1, 2))
    return total


@pytest.mark.parametrize("is_weighted", [False, True])
def test_the_perceptual_distance_is_its_formula(is_weighted: bool) -> None:
    """In numpy, in float64; zero for the same picture, symmetric, and blind to the length of features."""
    weights = [drawn(5).abs(), drawn(4).abs()] if is_weighted else None
    distance, x, y = PerceptualDistance(eye(), weights), drawn(2, 3, 9, 9), drawn(2, 3, 9, 9, seed=2)
    expected = distance_in_numpy(eye(), x, y, weights)
    np.testing.assert_allclose(distance(x, y).detach().numpy(), expected, rtol=1e-5)
    assert (expected > 0.01).all()
    assert torch.equal(distance(x, x), torch.zeros(2))
    torch.testing.assert_close(distance(y, x), distance(x, y))
    longer = PerceptualDistance(lambda pictures: [1000 * maps for maps in eye()(pictures)], weights)
    torch.testing.assert_close(longer(x, y), distance(x, y), rtol=1e-4, atol=1e-5)


def test_the_distance_has_a_gradient_for_pictures_alone() -> None:
    """Features are frozen; where a feature is zero at all channels, the gradient is finite all the same."""
    distance = PerceptualDistance(eye())
    x, y = torch.zeros(1, 3, 9, 9), drawn(1, 3, 9, 9).requires_grad_()
    distance(x, y).sum().backward()
    assert y.grad is not None
    assert bool(y.grad.any())
    assert all(weight.grad is None and not weight.requires_grad for weight in distance.parameters())
    blank = PerceptualDistance(lambda pictures: [pictures])
    z = torch.zeros(1, 3, 2, 2, requires_grad=True)
    blank(z, drawn(1, 3, 2, 2)).sum().backward()
    assert torch.isfinite(z.grad).all()


def test_weights_of_a_distance_fit_its_maps() -> None:
    with pytest.raises(ValueError, match="those of map 1 are"):
        PerceptualDistance(eye(), [torch.ones(5), -torch.ones(4)])
    with pytest.raises(ValueError, match="weights for 1 maps of features, got 2"):
        PerceptualDistance(eye(), [torch.ones(5)])(drawn(1, 3, 9, 9), drawn(1, 3, 9, 9))


def test_the_discriminator_is_the_papers() -> None:
    """2,765,633 weights, counted layer by layer; one logit a patch of 70, eight pixels apart."""
    with torch.device("meta"):
        network = PatchDiscriminator(DiscriminatorConfig())
    layers = [
        3 * 64 * 16 + 64,
        64 * 128 * 16 + 2 * 128,
        128 * 256 * 16 + 2 * 256,
        256 * 512 * 16 + 2 * 512,
        512 * 16 + 1,
    ]
    assert sum(weight.numel() for weight in network.parameters()) == sum(layers) == 2_765_633
    narrow = PatchDiscriminator(DiscriminatorConfig(width=2)).eval()
    x = drawn(1, 3, 256, 256).requires_grad_()
    out = narrow(x)
    assert out.shape == (1, 1, 30, 30)
    out[0, 0, 15, 15].backward()
    assert x.grad is not None
    felt = x.grad.abs().sum((0, 1)) > 0
    assert (int(felt.any(0).sum()), int(felt.any(1).sum())) == (70, 70)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_picture_has_one_patch(layers: int) -> None:
    network = PatchDiscriminator(DiscriminatorConfig(width=4, layers=layers)).eval()
    side = network.smallest
    assert network(drawn(1, 3, side, side)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match=f"of {side}x{side} at least, got 3 channels of {side}x{side - 1}"):
        network(drawn(1, 3, side - 1, side))
    with pytest.raises(ValueError, match="reads pictures of 3 channels"):
        network(drawn(1, 4, side, side))


def test_hinge_and_fooling_are_their_formulas() -> None:
    real, fake = 2 * drawn(3, 1, 4, 5), 2 * drawn(3, 1, 4, 5, seed=2)
    one, other = real.numpy(), fake.numpy()
    expected = (np.maximum(0, 1 - one) + np.maximum(0, 1 + other)).mean((1, 2, 3)) / 2
    np.testing.assert_allclose(hinge(real, fake).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(fooling(fake).numpy(), -other.mean((1, 2, 3)), rtol=1e-5)
    assert hinge(torch.full((1, 1, 2, 2), 1.5), torch.full((1, 1, 2, 2), -1.5)).item() == 0


def test_the_adaptive_weight_makes_gradients_equally_long() -> None:
    """For linear losses in closed form; the clip; and no gradient through the weight itself."""
    last = torch.tensor([1.0, 2.0], requires_grad=True)
    error, adversarial = (last * torch.tensor([3.0, 4.0])).sum(), (last * torch.tensor([0.6, 0.8])).sum()
    weight = adaptive_weight(error, adversarial, last)
    assert weight.item() == pytest.approx(5 / (1 + 1e-4))
    assert not weight.requires_grad
    assert adaptive_weight(error * 1e3, adversarial * 1e-9, last).item() == 1e4
    assert adaptive_weight(error * 0, adversarial, last).item() == 0
    (error + adversarial).backward()  # both graphs are there still


def coded(pictures: Tensor, costs: dict[str, Tensor] | None = None) -> tuple[Coded, Tensor]:
    """A reconstruction through one layer, as if it were a decoder's last."""
    torch.manual_seed(3)
    layer = nn.Conv2d(3, 3, 1)
    return Coded(reconstruction=layer(pictures), costs=costs or {}), layer.weight


def loss(weights: CodecWeights = WEIGHTS) -> CodecLoss:
    torch.manual_seed(0)
    return CodecLoss(weights, discriminator=PatchDiscriminator(SMALL).eval(), perceptual=PerceptualDistance(eye()))


def test_the_loss_is_the_sum_of_its_parts() -> None:
    """Before the discriminator comes in: nats are divided by the numbers of a picture, distances are taken as they are."""
    x = drawn(2, 3, 12, 12)
    costs = {"kl": torch.tensor([100.0, 200.0]), "codebook": torch.tensor([0.1, 0.2]), "commitment": torch.ones(2)}
    made, last = coded(x, costs)
    found = loss()(x, made, last, images_seen=9)
    apart = (x - made.reconstruction).abs().mean((1, 2, 3)).detach()
    seen = torch.from_numpy(distance_in_numpy(eye(), x, made.reconstruction, None)).float()
    expected = apart + 0.7 * seen + 1e-2 * costs["kl"] / (3 * 12 * 12) + 0.9 * (costs["codebook"] + 0.3)
    torch.testing.assert_close(found.per_sample.detach(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.parts["l1"], apart)
    torch.testing.assert_close(found.parts["perceptual"], seen, rtol=1e-5, atol=1e-6)
    assert not found.parts["fooling"].any()
    assert not any(part.requires_grad for part in found.parts.values())


def test_the_discriminator_comes_in_late_and_is_weighed() -> None:
    """From the start that is set, with the weight that makes the gradients at the last layer equally long."""
    x, criterion = drawn(2, 3, 12, 12), loss()
    made, last = coded(x)
    before, after = (criterion(x, made, last, images_seen=seen) for seen in (9, 10))
    assert criterion.discriminator is not None
    told = fooling(criterion.discriminator(made.reconstruction))
    of_error = torch.autograd.grad(before.per_sample.mean(), last, retain_graph=True)[0].norm()
    of_told = torch.autograd.grad(told.mean(), last, retain_graph=True)[0].norm()
    weight = (of_error / (of_told + 1e-4)).item()
    torch.testing.assert_close(after.per_sample, before.per_sample + 0.6 * weight * told)
    torch.testing.assert_close(after.parts["adaptive_weight"], torch.full((2,), weight))
    added = torch.autograd.grad((after.per_sample - before.per_sample).mean(), last, retain_graph=True)[0]
    assert added.norm().item() == pytest.approx(0.6 * (of_error * of_told / (of_told + 1e-4)).item(), rel=1e-4)


def test_latents_do_not_count_in_the_adaptive_weight() -> None:
    x = drawn(2, 3, 12, 12)
    made, last = coded(x)
    heavy = Coded(reconstruction=made.reconstruction, costs={"kl": 1e6 * last.sum().expand(2)})
    one, other = (loss()(x, what, last, images_seen=10).parts["adaptive_weight"] for what in (made, heavy))
    assert torch.equal(one, other)


def test_each_player_gets_its_own_gradient() -> None:
    """The codec's loss leaves the discriminator's weights alone, and the other way round."""
    torch.manual_seed(0)
    codec, criterion, x = SHAPE.build(), loss(), drawn(2, 3, 12, 12)
    assert criterion.discriminator is not None
    made = codec.there_and_back(x, NOISE)
    criterion(x, made, codec.last_weight, images_seen=10).per_sample.mean().backward()
    assert all(weight.grad is not None for weight in codec.parameters())
    assert all(weight.grad is None and weight.requires_grad for weight in criterion.discriminator.parameters())
    codec.zero_grad()
    criterion.against(x, made.reconstruction).per_sample.mean().backward()
    assert all(weight.grad is None for weight in codec.parameters())
    assert all(weight.grad is not None for weight in criterion.discriminator.parameters())


def test_the_discriminators_loss_is_the_hinge() -> None:
    criterion, x, y = loss(), drawn(2, 3, 12, 12), drawn(2, 3, 12, 12, seed=2)
    assert criterion.discriminator is not None
    found = criterion.against(x, y)
    real, fake = criterion.discriminator(x), criterion.discriminator(y)
    torch.testing.assert_close(found.per_sample, hinge(real, fake))
    torch.testing.assert_close(found.parts["real"], real.detach().mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("shape", "share"), [(SHAPE, 0.33), (QuantizedConfig(autoencoder=SHAPE, codes=20), 0.66)], ids=["kl", "vq"]
)
def test_a_codec_learns_one_batch(shape: Any, share: float) -> None:
    """Sixty steps against a discriminator that learns too: the error falls to a third (where twenty codes must do, to
    two) and nothing is undefined."""
    torch.manual_seed(0)
    codec, x = shape.build(), drawn(2, 3, 12, 12).cumsum(-1).div(4).tanh()
    weights = CodecWeights(adversarial_start=20, adversarial=0.1, perceptual=0)
    criterion = CodecLoss(weights, discriminator=PatchDiscriminator(SMALL))
    assert criterion.discriminator is not None
    mover = torch.optim.Adam(codec.parameters(), lr=1e-2)
    judge = torch.optim.Adam(criterion.discriminator.parameters(), lr=1e-3)
    errors: list[float] = []
    for step in range(60):
        made = codec.there_and_back(x, NOISE.at(step))
        found = criterion(x, made, codec.last_weight, images_seen=step)
        mover.zero_grad()
        found.per_sample.mean().backward()
        mover.step()
        if criterion.is_contested(step):
            judge.zero_grad()
            criterion.against(x, made.reconstruction).per_sample.mean().backward()
            judge.step()
        errors.append(found.parts["l1"].mean().item())
    assert all(map(math.isfinite, errors))
    assert sum(errors[-5:]) / 5 < share * errors[0]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (CodecWeights(perceptual=0), "needs a discriminator"),
        (CodecWeights(adversarial=0), "needs a distance"),
    ],
)
def test_what_has_a_weight_must_be_there(weights: CodecWeights, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CodecLoss(weights)


def test_what_has_none_need_not() -> None:
    criterion = CodecLoss(CodecWeights(perceptual=0, adversarial=0))
    x = drawn(2, 3, 12, 12)
    made, last = coded(x)
    torch.testing.assert_close(
        criterion(x, made, last, images_seen=10**9).per_sample, (x - made.reconstruction).abs().mean((1, 2, 3))
    )
    with pytest.raises(ValueError, match="no discriminator"):
        criterion.against(x, x)


@pytest.mark.parametrize("name", ["perceptual", "kl", "commitment", "codebook", "adversarial", "adversarial_start"])
def test_weights_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 0"):
        CodecWeights(**{name: -1})
