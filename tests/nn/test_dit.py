"""What is true of the DiT alone. What it shares with all networks is in test_networks.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from unstir.condition import Condition
from unstir.nn import DiT, DiTConfig
from unstir.nn.text import TextConfig

TEXT = TextConfig(vocabulary=20, max_tokens=6, width=8, depth=1, heads=2)
TINY = DiTConfig(channels=2, size=8, patch=4, width=16, depth=2, heads=2, detail=2, text=TEXT)
X = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
SCALAR = torch.tensor([0.0, 10.0, 300.0, 999.0])
WORDS = torch.tensor([[3, 4, 5, 0], [6, 0, 0, 0], [7, 8, 9, 10], [3, 4, 0, 0]])
TOLD = Condition(words=WORDS, word_mask=WORDS > 0)


def awake() -> DiT:
    """A network in which nothing starts at zero any more."""
    torch.manual_seed(0)
    network = DiT(TINY)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


@pytest.mark.parametrize(
    ("change", "message"),
    [({"patch": 3}, "patch must divide size"), ({"width": 18}, "4 must divide width"), ({"heads": 3}, "3 heads")],
)
def test_a_dit_that_cannot_be_built_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiT(replace(TINY, **change))


@torch.no_grad()
def test_a_dit_puts_patches_where_they_came_from() -> None:
    network = awake()
    network.layers = nn.ModuleList()
    nn.init.zeros_(network.mend[2].weight[:, :, 0])  # no look beyond a patch
    x = X.clone()
    x[:, :, :4, 4:] += 1.0
    difference = (network(x, SCALAR, TOLD) - network(X, SCALAR, TOLD)).abs().amax((0, 1))
    assert difference[:4, 4:].min() > 1e-4
    assert difference[6:].max() == 0
    assert difference[:, :2].max() == 0


@pytest.mark.parametrize("condition", [TOLD, Condition(words=WORDS)], ids=["masked", "unmasked"])
def test_every_patch_of_a_dit_sees_every_other(condition: Condition) -> None:
    x = X.clone().requires_grad_()
    awake()(x, SCALAR, condition)[0, :, 0, 0].sum().backward()
    assert x.grad is not None
    assert (x.grad[0].abs().amax(0) > 0).all()
    assert (x.grad[1:] == 0).all()


def test_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="told no classes"):
        DiT(TINY)(X, SCALAR, replace(TOLD, labels=torch.zeros(4, dtype=torch.long)))
