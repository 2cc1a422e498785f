"""The KL autoencoder against diffusers' with the same weights, its posterior against torch's Gaussians, its promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from unstir.codec import AutoencoderConfig, KLAutoencoder, measured_scale
from unstir.codec.autoencoder import Posterior
from unstir.diffusion.noise import KeyedNoise

TINY = AutoencoderConfig(latent_channels=5, width=8, multipliers=(1, 3, 2), blocks=1, groups=4)
NOISE = KeyedNoise.from_seeds([3, 4])


def pictures(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def made(config: AutoencoderConfig = TINY) -> KLAutoencoder:
    torch.manual_seed(0)
    return config.build().requires_grad_(False)


def count(config: AutoencoderConfig) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in config.build().parameters())


def theirs(config: AutoencoderConfig) -> Any:
    """Diffusers' of the same shape, with all weights drawn."""
    from diffusers import AutoencoderKL

    levels = len(config.multipliers)
    torch.manual_seed(0)
    network = AutoencoderKL(
        in_channels=config.channels,
        out_channels=config.channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.widths,
        layers_per_block=config.blocks,
        latent_channels=config.latent_channels,
        norm_num_groups=config.groups,
        mid_block_add_attention=config.has_attention,
    )
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return network.eval().requires_grad_(False)


@pytest.mark.filterwarnings("ignore")  # of diffusers, about its own names
@pytest.mark.parametrize(
    "config",
    [TINY, replace(TINY, blocks=2, multipliers=(1, 2), channels=1, has_attention=False)],
    ids=["attention", "none"],
)
def test_agrees_with_diffusers(config: AutoencoderConfig, carried: Callable[..., dict[str, Tensor]]) -> None:
    """Moments and pictures of the same weights, each weight used once, to 1e-5 of their size."""
    other, own = theirs(config), made(config)
    own.load_state_dict(carried(other, config))
    x = pictures(2, config.channels, 24, 32)
    expected, posterior = other.encode(x).latent_dist, own.posterior(x)
    torch.testing.assert_close(posterior.mean, expected.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(posterior.log_variance, expected.logvar, rtol=1e-5, atol=1e-5)
    back = other.decode(expected.mean).sample
    torch.testing.assert_close(own.reconstruct(expected.mean), back, rtol=1e-5, atol=1e-5 * back.abs().max().item())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of diffusers, about its own names
def test_agrees_with_diffusers_at_full_size(carried: Callable[..., dict[str, Tensor]]) -> None:
    """Stable Diffusion's shape with random weights, to 1e-4 of the largest number."""
    config = AutoencoderConfig()
    other, own = theirs(config), made(config)
    own.load_state_dict(carried(other, config))
    x = pictures(1, 3, 128, 128)
    expected = other.encode(x).latent_dist
    for got, right in (
        (own.posterior(x).mean, expected.mean),
        (own.reconstruct(expected.mean), other.decode(expected.mean).sample),
    ):
        assert (got - right).abs().max() <= 1e-4 * right.abs().max()


@pytest.mark.parametrize(
    ("config", "weights"),
    [
        (AutoencoderConfig(), 83_653_863),  # Stable Diffusion's
        (AutoencoderConfig(multipliers=(1, 2, 4), latent_channels=3), None),
        (AutoencoderConfig(width=64, multipliers=(1, 2), blocks=1, has_attention=False), None),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of diffusers, about its own names
def test_it_has_as_many_weights_as_theirs(config: AutoencoderConfig, weights: int | None) -> None:
    """Stable Diffusion's autoencoder has 83,653,863."""
    with torch.device("meta"):
        other = sum(weight.numel() for weight in theirs(config).parameters())
    assert count(config) == other
    assert weights in (None, other)


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
def test_latents_are_smaller_by_two_to_the_levels_but_one(levels: int) -> None:
    """f in {1, 2, 4, 8, 16}: latents and pictures of the shapes that were promised, any multiple of f."""
    config = AutoencoderConfig(latent_channels=2, width=4, multipliers=(1,) * levels, blocks=1, groups=2)
    codec = made(config)
    f = 2 ** (levels - 1)
    assert codec.downsampling == config.downsampling == f
    latents = codec.encode(pictures(2, 3, 2 * f, 3 * f), NOISE)
    assert latents.shape == (2, 2, 2, 3)
    assert codec.decode(latents).shape == (2, 3, 2 * f, 3 * f)


def test_the_posterior_is_a_gaussian() -> None:
    """Its divergence is torch's, summed over a picture, and its samples have its mean and variance."""
    moments = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    posterior = Posterior.of(moments)
    law = Normal(moments[:, :2], (moments[:, 2:] / 2).exp())
    expected = kl_divergence(law, Normal(torch.zeros(1).double(), torch.ones(1).double())).sum((1, 2, 3))
    torch.testing.assert_close(posterior.kl(), expected)
    noise = KeyedNoise.from_seeds([1, 2, 3])
    z = (posterior.sample(noise) - law.mean) / law.stddev
    torch.testing.assert_close(z, noise.normal(law.mean))


def test_variances_that_are_none_are_clipped() -> None:
    moments = torch.tensor([0.0, 0.0, -1e4, 1e4]).view(1, 4, 1, 1)
    assert Posterior.of(moments).log_variance.flatten().tolist() == [-30, 20]
    assert torch.isfinite(Posterior.of(moments).kl()).all()


def test_encode_and_decode_apply_the_scale() -> None:
    """Latents are the posterior's samples times the scale; decoding divides by it; the weights are the same ones."""
    codec = made()
    x = pictures(2, 3, 8, 12)
    scaled = codec.scaled(0.25)
    assert scaled.config == replace(TINY, scale=0.25)
    latents = codec.encode(x, NOISE)
    torch.testing.assert_close(latents, codec.posterior(x).sample(NOISE), rtol=0, atol=0)
    torch.testing.assert_close(scaled.encode(x, NOISE), 0.25 * latents, rtol=0, atol=0)
    torch.testing.assert_close(scaled.decode(0.25 * latents), codec.decode(latents), rtol=0, atol=0)
    assert scaled.decoder.last.weight.data_ptr() == codec.decoder.last.weight.data_ptr()
    assert scaled.training
    assert not codec.eval().scaled(2.0).training


def test_measured_scale_gives_unit_variance() -> None:
    """Whatever the scale was before, and however the pictures are divided into batches."""
    codec = made().scaled(7.0)
    x, noise = pictures(4, 3, 8, 8), KeyedNoise.from_seeds(range(4))
    scale = measured_scale(codec, [(x, noise)])
    latents = codec.scaled(scale).encode(x, noise)
    assert latents.std(correction=0).item() == pytest.approx(1, rel=1e-5)
    parts = [(x[:1], noise.rows(slice(0, 1))), (x[1:], noise.rows(slice(1, 4)))]
    assert measured_scale(codec, parts) == pytest.approx(scale, rel=1e-6)


def test_a_scale_needs_latents_that_differ() -> None:
    with pytest.raises(ValueError, match="got 0 numbers"):
        measured_scale(made(), [])
    blank = made()
    blank.to_moments.weight.zero_()
    assert blank.to_moments.bias is not None
    blank.to_moments.bias.fill_(-1e4)  # one mean, beside which the smallest variance vanishes
    with pytest.raises(ValueError, match=r"of variance 0\.0"):
        measured_scale(blank, [(pictures(2, 3, 8, 8), NOISE)])


def test_there_and_back_is_what_it_says() -> None:
    """The reconstruction of the sample, and its divergence; gradients reach every weight."""
    torch.manual_seed(0)
    codec, x = TINY.build(), pictures(2, 3, 8, 8)
    coded = codec.there_and_back(x, NOISE)
    posterior = codec.posterior(x)
    torch.testing.assert_close(coded.reconstruction, codec.decode(posterior.sample(NOISE)))
    torch.testing.assert_close(coded.costs["kl"], posterior.kl())
    (coded.reconstruction.square().mean() + coded.costs["kl"].mean()).backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in codec.parameters())
    assert codec.last_weight is codec.decoder.last.weight


def test_a_picture_does_not_know_its_neighbours() -> None:
    codec, x = made(), pictures(2, 3, 8, 8)
    alone = [codec.encode(x[i : i + 1], NOISE.rows(slice(i, i + 1))) for i in (0, 1)]
    together = codec.encode(x, NOISE)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(codec.decode(together)[1:], codec.decode(together[1:]), rtol=1e-5, atol=1e-5)


def test_without_gradients_it_computes_the_same() -> None:
    """What is done in place where nobody goes back changes nothing, and not the caller's tensors."""
    torch.manual_seed(0)
    codec, x = TINY.build(), pictures(2, 3, 8, 8)
    kept = x.clone()
    latents = codec.encode(x, NOISE)
    back = codec.decode(latents)
    with torch.no_grad():
        torch.testing.assert_close(codec.encode(x, NOISE), latents, rtol=0, atol=0)
        before = latents.clone()
        torch.testing.assert_close(codec.decode(latents), back, rtol=0, atol=0)
    assert torch.equal(x, kept)
    assert torch.equal(latents, before)


@pytest.mark.parametrize(("shape", "words"), [((1, 1, 8, 8), "3 channels, got 1"), ((1, 3, 8, 10), "multiples of 4")])
def test_pictures_that_it_cannot_read_are_refused(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made().encode(torch.zeros(shape), NOISE.rows(slice(0, 1)))


def test_latents_of_another_codec_are_refused() -> None:
    with pytest.raises(ValueError, match="latents of 5 channels, got 4"):
        made().decode(torch.zeros(1, 4, 2, 2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"multipliers": ()}, "1 to 6 levels"),
        ({"multipliers": (1,) * 7}, "1 to 6 levels"),
        ({"multipliers": (1, 0)}, "multiplier of at least 1"),
        ({"groups": 3}, "got 3 groups for"),
        ({"scale": 0.0}, "positive, got 0"),
        ({"scale": float("inf")}, "positive, got inf"),
        ({"latent_channels": 0}, "latent_channels must be at least 1"),
    ],
)
def test_shapes_that_are_none_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(TINY, **change)


def test_float64_pictures_give_float64_latents() -> None:
    """The type of what came in, whatever the weights are."""
    latents = made().encode(pictures(2, 3, 8, 8).double(), NOISE)
    assert latents.dtype == torch.float64
    assert made().decode(latents).dtype == torch.float64


def test_it_is_a_module() -> None:
    assert isinstance(made(), nn.Module)
    assert not made().is_exact
