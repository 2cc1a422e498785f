"""Bits: how many a model needs for pictures that it is shown, as a bound on their negative log-likelihood.

Knows: which pictures are told with which words, and what a codec must not lose.
Does not know: how a bound is summed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from unstir.data.transforms import to_unit
from unstir.diffusion.likelihood import Bound, bits_per_dim
from unstir.diffusion.noise import KeyedNoise
from unstir.model import Model


@dataclass(frozen=True, kw_only=True)
class BitsScore:
    """A bound in bits/dim, lower is better: mean over pictures, and of what it is the sum.

    Args:
        bits_per_dim: the bound.
        standard_error: of it, over pictures (with the noise of the drawn times in it).
        prior: its part from the prior.
        diffusion: from the steps.
        reconstruction: from the decoder at the first level.
        pictures: how many.
        draws: times drawn a picture.
        first_log_snr: of the level from which the decoder tells the rest, in nats.
    """

    bits_per_dim: float
    standard_error: float
    prior: float
    diffusion: float
    reconstruction: float
    pictures: int
    draws: int
    first_log_snr: float


_FIRST = (13.3, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0)
"""Log-SNRs of first levels to choose from."""


def measure_bits(
    model: Model,
    pictures: UInt8[Tensor, "n c h w"],
    prompts: Sequence[str],
    *,
    draws: int = 32,
    seed: int = 0,
    batch: int = 16,
    first_log_snr: float | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> BitsScore:
    """The continuous-time bound of pictures given their words, without guidance.

    The bound holds for any first level, from which the decoder tells the rest. A model that was never asked about
    almost clean pictures (as most are not) needs thousands of bits there, and far fewer if the decoder begins earlier.

    Args:
        model: what is judged; computed where its weights are, beliefs read in float64 where that exists.
        pictures: bytes, of the model's size.
        prompts: one a picture.
        draws: times a picture, stratified over log-SNR.
        seed: of noise and times; picture i has key (seed, i) whatever the batch.
        batch: pictures a call.
        first_log_snr: of the first level, in nats; None takes the best of seven for the first batch.
        advance: told how many pictures are done.

    Raises:
        ValueError: if the codec loses information (the bound would be of something else), or draws or batch < 1.

    Source: Kingma et al. 2021, arXiv:2107.00630, Sec. 4 (see ``likelihood.bits_per_dim``).
    """
    codec = model.config.codec
    if not codec.is_exact:
        raise ValueError(
            f"bits/dim are of pictures, but this model's codec ({type(codec).__name__}) does not give them back as "
            "they were; measure prompts instead"
        )
    if draws < 1 or batch < 1 or len(prompts) != len(pictures) or not len(pictures):
        raise ValueError(
            f"bits need at least 1 draw, a batch of at least 1 and a prompt a picture, got {draws}, {batch} and "
            f"{len(prompts)} prompts for {len(pictures)} pictures"
        )
    weight = next(model.denoiser.parameters())
    precision = torch.float32 if weight.device.type == "mps" else torch.float64
    model.denoiser.eval()

    def bound_of(start: int, first: float) -> Bound:
        rows = slice(start, start + batch)
        noise = KeyedNoise(keys=tuple((seed, i) for i in range(len(pictures))[rows]))
        latents = model.codec.encode(to_unit(pictures[rows]).to(weight.device, precision), noise.at(0))
        condition, _ = model.reader.read(list(prompts[rows]))
        denoise = model.denoiser.given(condition.map(lambda tensor: tensor.to(weight.device)))
        return bits_per_dim(
            denoise, model.process, latents, steps=None, draws=draws, noise=noise.at(1), first_log_snr=first
        )

    tried = {first: bound_of(0, first) for first in (_FIRST if first_log_snr is None else (first_log_snr,))}
    first_log_snr = min(tried, key=lambda first: tried[first].mean)
    bounds = [tried[first_log_snr]]
    advance(min(batch, len(pictures)))
    for start in range(batch, len(pictures), batch):
        bounds.append(bound_of(start, first_log_snr))
        advance(min(start + batch, len(pictures)))
    # A codec with several latents an element (bit planes) tells a picture's elements, not its own, apart.
    share = codec.latent_channels / codec.downsampling**2 / pictures.shape[1]
    total = share * torch.cat([bound.total for bound in bounds])
    return BitsScore(
        bits_per_dim=total.mean().item(),
        standard_error=total.std().item() / math.sqrt(len(total)) if len(total) > 1 else math.nan,
        prior=share * torch.cat([bound.prior for bound in bounds]).mean().item(),
        diffusion=share * torch.cat([bound.diffusion for bound in bounds]).mean().item(),
        reconstruction=share * torch.cat([bound.reconstruction for bound in bounds]).mean().item(),
        pictures=len(total),
        draws=draws,
        first_log_snr=first_log_snr,
    )
