"""The held-out loss: the same pictures, the same noise, the same levels, every time.

Knows: how wrong a denoiser is about pictures that it was not trained on, per band of log-SNR.
Does not know: how it was trained.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from unstir.condition import Condition
from unstir.diffusion.denoiser import NetworkDenoiser
from unstir.diffusion.noise import KeyedNoise

BANDS: tuple[tuple[float, float], ...] = ((-8.0, -4.0), (-4.0, -1.5), (-1.5, 1.5), (1.5, 4.0), (4.0, 8.0))
"""log-SNR from and to, in nats: from almost noise to almost clean."""

_SEED = 0x5EED  # of the fixed noise: not the run's, so that runs with different seeds compare


def band_losses(
    denoiser: NetworkDenoiser[Condition], latents: Float[Tensor, "n c h w"], condition: Condition, *, batch: int = 32
) -> dict[str, float]:
    """Mean squared error on x0 in each band, and its mean over bands.

    Each picture has one level in each band and one noise in each, keyed by its place: evaluating twice gives the same
    numbers, and nothing outside is touched.

    Args:
        denoiser: what is judged.
        latents: held-out pictures in the space of the process.
        condition: their words, by name.
        batch: rows a call.

    Returns:
        ``{"-8..-4": error, ..., "mean": error}``.
    """
    losses: dict[str, float] = {}
    schedule = denoiser.process.schedule
    for band, (low, high) in enumerate(BANDS):
        errors: list[Tensor] = []
        for start in range(0, latents.shape[0], batch):
            x0 = latents[start : start + batch]
            noise = KeyedNoise(keys=tuple((_SEED, band, i) for i in range(start, start + x0.shape[0])))
            share = noise.at(0).uniform(torch.zeros(x0.shape[0], dtype=torch.float64))
            level = schedule.at(schedule.time_of(low + (high - low) * share))
            with torch.no_grad():
                x_t = denoiser.process.marginal(x0, level).sample(noise.at(1))
                belief = denoiser(x_t, level, condition.rows(slice(start, start + batch)))
            errors.append((belief.x0 - x0).square().flatten(1).mean(1).cpu().double())
        losses[_name(low, high)] = torch.cat(errors).mean().item()
    return {**losses, "mean": sum(losses.values()) / len(losses)}


def mean_by_band(values: Float[Tensor, "n"], log_snr: Float[Tensor, "n"]) -> dict[str, float]:
    """The mean of what samples cost in each band of log-SNR that has any; those outside of all bands do not count."""
    values, log_snr = values.detach().cpu().double(), log_snr.detach().cpu().double()
    inside = {_name(low, high): (log_snr >= low) & (log_snr < high) for low, high in BANDS}
    return {band: values[rows].mean().item() for band, rows in inside.items() if bool(rows.any())}


def _name(low: float, high: float) -> str:
    return f"{low:g}..{high:g}"
