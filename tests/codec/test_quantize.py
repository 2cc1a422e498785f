"""The VQ autoencoder against diffusers', its codebook against a search over all codes, its losses and usage."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unstir.codec import AutoencoderConfig, QuantizedAutoencoder, QuantizedConfig, measured_scale
from unstir.codec import quantize as module
from unstir.codec.quantize import Codebook, Usage, counts_of, usage
from unstir.diffusion.noise import KeyedNoise

TINY = QuantizedConfig(
    autoencoder=AutoencoderConfig(latent_channels=3, width=8, multipliers=(1, 2), blocks=1, groups=4), codes=17
)
NOISE = KeyedNoise.from_seeds([3, 4])


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def made(config: QuantizedConfig = TINY) -> QuantizedAutoencoder:
    torch.manual_seed(0)
    codec = config.build().requires_grad_(False)
    codec.codebook.codes.normal_()
    return codec


def theirs(config: QuantizedConfig) -> Any:
    from diffusers import VQModel

    shape, levels = config.autoencoder, len(config.autoencoder.multipliers)
    torch.manual_seed(0)
    network = VQModel(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=shape.widths,
        layers_per_block=shape.blocks,
        latent_channels=shape.latent_channels,
        num_vq_embeddings=config.codes,
        norm_num_groups=shape.groups,
        mid_block_add_attention=shape.has_attention,
    )
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return network.eval().requires_grad_(False)


@pytest.mark.filterwarnings("ignore")  # of diffusers, about its own names
def test_agrees_with_diffusers(carried: Callable[..., dict[str, Tensor]]) -> None:
    """Latents, codes, commitment loss and pictures of the same weights, to 1e-5 of their size."""
    other, own = theirs(TINY), made()
    own.load_state_dict(carried(other, TINY.autoencoder))
    x = drawn(2, 3, 12, 16)
    expected = other.encode(x).latents
    torch.testing.assert_close(own.moments(x), expected, rtol=1e-5, atol=1e-5)
    _, loss, (_, _, indices) = other.quantize(expected)
    found = own.codebook(expected)
    assert torch.equal(found.indices.flatten(), indices)
    assert len(indices.unique()) > 1
    told = 0.25 * found.commitment_loss + found.codebook_loss  # theirs weighs the other of the two equal numbers
    assert told.mean().item() == pytest.approx(loss.item(), rel=1e-5)
    back = other.decode(expected).sample
    torch.testing.assert_close(own.decode(expected), back, rtol=1e-5, atol=1e-5 * back.abs().max().item())


@pytest.mark.parametrize("config", [TINY, QuantizedConfig()], ids=["tiny", "f4"])
@pytest.mark.filterwarnings("ignore")  # of diffusers, about its own names
def test_it_has_as_many_weights_as_theirs(config: QuantizedConfig) -> None:
    """The default is the f = 4 one of the paper, of 8192 codes of 3 numbers."""
    with torch.device("meta"):
        own, other = config.build(), theirs(config)
    assert sum(w.numel() for w in own.parameters()) == sum(w.numel() for w in other.parameters())


@given(st.integers(2, 40), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**31), st.sampled_from([1, 64, 2**24]))
def test_the_nearest_code_is_the_nearest(codes: int, width: int, batch: int, seed: int, most: int) -> None:
    """By a search over all in float64, whatever the parts in which distances are computed."""
    book = Codebook(codes, width)
    with torch.no_grad():
        book.codes.copy_(drawn(codes, width, seed=seed))
    latents = drawn(batch, width, 3, 2, seed=seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_DISTANCES", most)
        found = book.nearest(latents)
    rows = latents.movedim(1, -1).double()
    distances = (rows[..., None, :] - book.codes.double()).norm(dim=-1)
    chosen = distances.gather(-1, found[..., None])[..., 0]
    torch.testing.assert_close(chosen, distances.amin(-1), rtol=0, atol=1e-5)


def test_the_first_of_equal_codes_is_taken() -> None:
    book = Codebook(3, 2)
    torch.nn.init.ones_(book.codes)
    assert not book.nearest(drawn(1, 2, 2, 2)).any()


def test_gradients_pass_as_if_nothing_was_rounded() -> None:
    """What comes out are the codes to the last bit; on the way back, latents get what came and codes get nothing."""
    torch.manual_seed(0)
    book, latents = Codebook(9, 3), drawn(2, 3, 2, 2).requires_grad_()
    found = book(latents)
    assert torch.equal(found.latents, book.look_up(found.indices))
    weight = drawn(2, 3, 2, 2, seed=5)
    (found.latents * weight).sum().backward()
    assert torch.equal(latents.grad, weight)
    assert book.codes.grad is None


def test_one_loss_moves_codes_and_the_other_latents() -> None:
    """Their gradients are those of the mean squared distance, each for one side alone."""
    torch.manual_seed(0)
    book, latents = Codebook(9, 3), drawn(2, 3, 2, 2).requires_grad_()
    found = book(latents)
    apart = (latents - found.latents).detach()
    torch.testing.assert_close(found.codebook_loss, apart.square().mean((1, 2, 3)))
    torch.testing.assert_close(found.commitment_loss, found.codebook_loss)
    (moved,) = torch.autograd.grad(found.commitment_loss.sum(), latents, retain_graph=True)
    torch.testing.assert_close(moved, 2 * apart / 12)
    found.codebook_loss.sum().backward()
    assert latents.grad is None
    expected = torch.zeros(9, 3).index_add_(0, found.indices.flatten(), -2 * apart.movedim(1, -1).flatten(0, -2) / 12)
    torch.testing.assert_close(book.codes.grad, expected)


def test_pictures_come_from_indices() -> None:
    """The numbers of the codes are enough, and the scale of latents does not change what is decoded."""
    codec, x = made(), drawn(2, 3, 8, 12)
    back = codec.decode(codec.encode(x, NOISE))
    assert torch.equal(codec.decode_indices(codec.indices(x)), back)
    scaled = codec.scaled(4.0)  # a power of two, which rounds nothing
    latents = scaled.encode(x, NOISE)
    assert torch.equal(latents, 4 * codec.encode(x, NOISE))
    assert torch.equal(scaled.decode(latents), back)
    assert scaled.config == replace(TINY, autoencoder=replace(TINY.autoencoder, scale=4.0))


@pytest.mark.parametrize("wrong", [-1, 17])
def test_codes_that_do_not_exist_are_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"codes 0 to 16, got indices from .*{wrong}"):
        made().decode_indices(torch.tensor([[[3, wrong]]]))


def test_scale_is_measured() -> None:
    codec, x = made(), drawn(2, 3, 8, 8)
    scale = measured_scale(codec, [(x, NOISE)])
    assert codec.scaled(scale).encode(x, NOISE).std(correction=0).item() == pytest.approx(1, rel=1e-5)


def test_there_and_back_is_what_it_says() -> None:
    """Reconstruction, both losses and codes of one pass; gradients reach every weight."""
    torch.manual_seed(0)
    codec, x = TINY.build(), drawn(2, 3, 8, 8)
    coded = codec.there_and_back(x, NOISE)
    torch.testing.assert_close(coded.reconstruction, codec.decode(codec.encode(x, NOISE)))
    assert coded.costs.keys() == {"codebook", "commitment"}
    assert torch.equal(coded.indices, codec.indices(x))
    (coded.reconstruction.square().mean() + sum(cost.mean() for cost in coded.costs.values())).backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in codec.parameters())


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_perplexity_is_that_of_the_frequencies(numbers: list[int]) -> None:
    """Against Python's own arithmetic; it lies between 1 and the codes in use."""
    found = usage(counts_of(torch.tensor(numbers)[None, :, None], 7))
    shares = [numbers.count(n) / len(numbers) for n in set(numbers)]
    assert found.perplexity == pytest.approx(math.prod(share**-share for share in shares))
    assert (found.used, found.codes) == (len(shares), 7)
    assert 1 - 1e-9 <= found.perplexity <= found.used + 1e-9


def test_equal_use_is_as_many_codes() -> None:
    assert usage(torch.tensor([3, 3, 0, 3])) == Usage(used=3, codes=4, perplexity=pytest.approx(3))
    with pytest.raises(ValueError, match="at least one latent"):
        usage(torch.zeros(4, dtype=torch.int64))


def test_dead_codes_are_put_where_latents_are() -> None:
    """Codes in use stay; each dead one becomes another latent, so that it is used; the same noise, the same choice."""
    book, again = Codebook(30, 3), Codebook(30, 3)
    latents = drawn(2, 3, 4, 4) + 5
    again.load_state_dict(book.state_dict())
    counts = counts_of(book.nearest(latents), 30)
    kept = book.codes.detach().clone()
    moved = book.revive(counts, latents, NOISE)
    alive = counts > 0
    assert moved == int((~alive).sum()) > 20
    assert torch.equal(book.codes[alive], kept[alive])
    rows = latents.movedim(1, -1).flatten(0, -2)
    fresh = book.codes[~alive].detach()
    assert len(fresh.unique(dim=0)) == moved
    assert (fresh[:, None] == rows).all(-1).any(1).all()
    assert usage(counts_of(book.nearest(latents), 30)).used >= moved
    again.revive(counts, latents, NOISE)
    assert torch.equal(again.codes, book.codes)


def test_there_may_be_fewer_latents_than_dead_codes() -> None:
    book, latents = Codebook(30, 3), drawn(1, 3, 1, 2)
    assert book.revive(torch.zeros(30, dtype=torch.int64), latents, NOISE) == 2


def test_shapes_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="two codes at least, got 1"):
        replace(TINY, codes=1)
    with pytest.raises(ValueError, match="codes must be at least 1, got 0"):
        replace(TINY, codes=0)
    with pytest.raises(ValueError, match="multiples of 2"):
        made().encode(drawn(1, 3, 7, 8), NOISE)
    with pytest.raises(ValueError, match="latents of 3 channels, got 5"):
        made().decode(drawn(1, 5, 4, 4))
