"""The plain DiT: as many weights as were published, and blocks that start at nothing."""

from __future__ import annotations

import pytest
import torch

from unstir.bench.plain_dit import PlainDiT, PlainDiTConfig

SMALL = PlainDiTConfig(size=8, width=16, depth=2, heads=2, classes=3)


def numbers(network: PlainDiT) -> tuple[int, int]:
    """Weights, and fixed positions."""
    return sum(weight.numel() for weight in network.parameters()), network.get_buffer("positions").numel()


def disturbed() -> PlainDiT:
    network = PlainDiT(SMALL).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) / 10)
    return network


def test_dit_xl_2_has_the_published_count() -> None:
    """Their file counts the fixed positions too: 256 x 1152."""
    config = PlainDiTConfig(channels=4, out_channels=8, size=32, patch=2, width=1152, depth=28, heads=16, classes=1000)
    with torch.device("meta"):
        weights, positions = numbers(PlainDiT(config))
    assert (weights, positions) == (674_834_720, 256 * 1152)
    assert weights + positions == 675_129_632


def test_dit_s_2_is_the_default() -> None:
    """33 million in Table 1 of the paper, which has 4 channels in, 8 out, and 1000 classes."""
    with torch.device("meta"):
        weights, positions = numbers(PlainDiT(PlainDiTConfig(channels=4, out_channels=8, classes=1000)))
    assert round((weights + positions) / 1e6) == 33
    assert PlainDiTConfig().width == 384


def test_it_starts_at_zero() -> None:
    network = PlainDiT(SMALL)
    output = network(torch.randn(2, 3, 8, 8), torch.tensor([0, 999]))
    assert output.shape == (2, 3, 8, 8)
    assert torch.equal(output, torch.zeros_like(output))


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    network, x, t = disturbed(), torch.randn(3, 3, 8, 8), torch.tensor([1, 500, 999])
    together = network(x, t)
    torch.testing.assert_close(network(x[1:], t[1:]), together[1:], rtol=1e-4, atol=1e-5)


def test_time_label_and_every_pixel_matter() -> None:
    network, x, t = disturbed(), torch.randn(1, 3, 8, 8), torch.tensor([500])
    output = network(x, t)
    none = network(x, t, torch.tensor([SMALL.classes]))
    assert torch.equal(output, none)
    assert not torch.allclose(output, network(x, t, torch.tensor([0])))
    assert not torch.allclose(output, network(x, t + 1))
    x.requires_grad_(True)
    network(x, t)[0, 0, 0, 0].backward()
    assert x.grad is not None
    assert bool((x.grad != 0).all())


@pytest.mark.parametrize("out_channels", [None, 6])
def test_channels_out(out_channels: int | None) -> None:
    network = PlainDiT(PlainDiTConfig(size=4, width=8, depth=1, heads=1, out_channels=out_channels))
    assert network(torch.zeros(1, 3, 4, 4), torch.tensor([3])).shape[1] == (out_channels or 3)
