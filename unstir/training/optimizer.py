"""The optimizer and its rate.

Knows: how fast weights move, as a function of pictures seen.
Does not know: losses, networks, ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unstir.speedups import is_on
from unstir.training.engine import fill


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, or Muon for the hidden matrices, with a warm-up, a constant stretch and a linear end.

    Args:
        hidden: what moves the matrices of a network's stacked layers: adamw, or muon (2-D ones only: a transformer's);
            everything else is moved by AdamW.
        learning_rate: at its highest; Muon's update is scaled to the length of AdamW's, so that one rate serves both.
        betas: decay of the first and second moments.
        weight_decay: on matrices only.
        clip_norm: gradients longer than this are shortened to it.
        warmup_images: the rate rises linearly over so many pictures.
        anneal: over this last share of the run the rate falls linearly to 0.

    Raises:
        ValueError: if a number is out of its range.
    """

    hidden: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    warmup_images: int = 5000
    anneal: float = 0.4

    def __post_init__(self) -> None:
        """Refuse numbers that train nothing."""
        if not self.learning_rate > 0 or not self.clip_norm > 0 or self.weight_decay < 0:
            raise ValueError("learning_rate and clip_norm must be positive and weight_decay not negative")
        if not all(0 <= beta < 1 for beta in self.betas) or self.warmup_images < 0 or not 0 <= self.anneal <= 1:
            raise ValueError("betas must be in [0, 1), warmup_images at least 0 and anneal in [0, 1]")


class Optimizers:
    """Several optimizers, each with weights of its own, that move together.

    Args:
        members: the optimizers; no two hold the same weight.
    """

    def __init__(self, members: Sequence[torch.optim.Optimizer]) -> None:
        self.members = tuple(members)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all members."""
        return [group for member in self.members for group in member.param_groups]

    def step(self) -> None:
        """Move every weight once."""
        for member in self.members:
            member.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for member in self.members:
            member.zero_grad(set_to_none=True)

    def state_of(self, weight: Tensor) -> dict[str, Any]:
        """What is remembered of a weight (its moments), to be read or filled; empty before the first step."""
        owner = next(m for m in self.members if any(weight is w for g in m.param_groups for w in g["params"]))
        return owner.state[weight]

    def moments(self, network: nn.Module) -> dict[str, Tensor]:
        """What is remembered of every weight that moves, as ``{"moment.name of the weight": tensor}``."""
        return {
            f"{moment}.{name}": value
            for name, weight in network.named_parameters()
            if weight.requires_grad
            for moment, value in self.state_of(weight).items()
        }

    def load_moments(self, network: nn.Module, moments: Mapping[str, Tensor]) -> None:
        """Remember what ``moments`` told, each on the device of its weight, and laid out in memory as that is."""
        for name, weight in network.named_parameters():
            found = {key.partition(".")[0]: value for key, value in moments.items() if key.partition(".")[2] == name}
            if found:
                self.state_of(weight).update({moment: _beside(weight, value) for moment, value in found.items()})


def _beside(weight: Tensor, value: Tensor) -> Tensor:
    if value.shape != weight.shape:  # a count of steps
        return value.to(weight.device)
    blank = torch.empty_like(weight, dtype=value.dtype, requires_grad=False)
    fill(blank, value)
    return blank


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> Optimizers:
    """The optimizer of a network's weights; only matrices decay.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101 (AdamW); Jordan et al. 2024, "Muon: an optimizer for hidden
        layers in neural networks"; Liu et al. 2025, arXiv:2502.16982, Sec. 2.2 (its length matched to AdamW's).
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    hidden = _hidden_matrices(network) if config.hidden == "muon" else []
    chosen = {id(weight) for weight in hidden}
    rest = [weight for weight in weights if id(weight) not in chosen]
    groups = [
        {"params": [weight for weight in rest if weight.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [weight for weight in rest if weight.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate = config.learning_rate
    members: list[torch.optim.Optimizer] = []
    if groups:
        fused = is_on("fused_optimizer")
        members.append(torch.optim.AdamW(groups, lr=rate, betas=config.betas, eps=1e-8, fused=fused))
    if hidden:
        decay = config.weight_decay
        members.append(torch.optim.Muon(hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return Optimizers(members)


def _hidden_matrices(network: nn.Module) -> list[Tensor]:
    """The weights of linear layers inside stacks of layers; not what reads the input or writes the output."""
    stacks = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    linear = [module for stack in stacks for module in stack.modules() if isinstance(module, nn.Linear)]
    unique = {id(layer.weight): layer.weight for layer in linear if layer.weight.requires_grad}
    return list(unique.values())


def learning_rate(config: OptimizerConfig, images_seen: int, images: int) -> float:
    """The rate of the step that starts after ``images_seen`` of ``images`` pictures; batches and ranks do not enter."""
    warm = 1.0 if config.warmup_images == 0 else min(1.0, (images_seen + 1) / config.warmup_images)
    left = 1.0 if config.anneal == 0 else min(1.0, (images - images_seen) / (config.anneal * images))
    return config.learning_rate * warm * left
