"""Named configurations have the papers' numbers of weights, to the last one where the number is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unstir.condition import Condition
from unstir.config import from_dict, to_dict
from unstir.nn import NETWORKS
from unstir.nn.papers import PAPERS

# Of the papers' own code, counted for this project (shared/facts/papers.md, "Exact integers to hold as tests"). DiT's
# counts its positions, which are not trained; EDM's is the network that was trained on pictures without classes, with no
# layer for the labels of augmentation. Stable Diffusion's is that of diffusers' network, without any reading of words.
EXACT = {
    "ddpm_cifar10": 35_746_307,
    "ddpm_256": 113_673_219,
    "iddpm_cifar10": 52_546_438,
    "iddpm_imagenet64": 121_063_942,
    "iddpm_imagenet64_classes": 273_049_350,
    "adm_imagenet64": 295_904_454,
    "adm_imagenet128": 421_529_606,
    "adm_imagenet256": 553_838_086,
    "adm_imagenet512": 558_997_638,
    "edm_cifar10": 55_732_739,
    "stable_diffusion_1": 859_520_964,
    "dit_xl2": 675_129_632,
}
# Printed in whole millions: Dhariwal & Nichol 2021, Table 13 (rounded), Rombach et al. 2022, Table 12 (cut off).
MILLIONS = {"adm_upsampler256": 312, "adm_upsampler512": 309, "ldm_celeba256": 274, "ldm_churches256": 294}


def built(name: str) -> nn.Module:
    """On the meta device, where weights have shapes and no numbers."""
    with torch.device("meta"):
        return next(network(PAPERS[name]) for kind, network in NETWORKS.values() if type(PAPERS[name]) is kind)


def count(network: nn.Module) -> int:
    named = [*network.named_parameters(), *network.named_buffers()]
    return sum(weight.numel() for name, weight in named if not name.startswith(("reader.", "vector.pooled.")))


def test_every_one_is_tested() -> None:
    assert PAPERS.keys() == EXACT.keys() | MILLIONS.keys()


@pytest.mark.parametrize(("name", "size"), EXACT.items())
def test_they_have_as_many_weights_as_the_papers(name: str, size: int) -> None:
    assert count(built(name)) == size


@pytest.mark.parametrize(("name", "millions"), MILLIONS.items())
def test_they_have_as_many_millions_as_the_papers_print(name: str, millions: int) -> None:
    size = count(built(name)) / 1e6
    assert millions in (int(size), round(size))


def test_dit_trains_all_but_its_positions() -> None:
    """674.8 million trained weights, and 16x16 positions of 1152 channels."""
    trained = sum(weight.numel() for weight in built("dit_xl2").parameters())
    assert EXACT["dit_xl2"] - trained == 16 * 16 * 1152


@pytest.mark.parametrize("name", PAPERS)
def test_they_survive_json_and_draw(name: str) -> None:
    config, network = PAPERS[name], built(name)
    assert from_dict(type(config), to_dict(config)) == config
    size = network.multiple
    labels = None if config.classes is None else torch.zeros(1, dtype=torch.long, device="meta")
    tokens = None if config.text is None else torch.zeros(1, 5, config.text.width, device="meta")
    condition = Condition(labels=labels, tokens=tokens, seeds=torch.zeros(1, dtype=torch.long, device="meta"))
    x = torch.zeros(1, config.channels, size, size, device="meta")
    out = network(x, torch.zeros(1, device="meta"), condition)
    assert out.shape == (1, config.out_channels or config.channels, size, size)
