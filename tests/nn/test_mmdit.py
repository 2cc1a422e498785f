"""The MMDiT alone: against diffusers' with its weights. What it shares with all networks is in test_networks.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unstir.condition import Condition
from unstir.config import from_dict, to_dict
from unstir.nn import MMDiT, MMDiTConfig
from unstir.nn.text import TextConfig

TEXT = TextConfig(vocabulary=20, max_tokens=6, width=8, depth=1, heads=2)
TINY = MMDiTConfig(channels=2, size=8, largest=16, patch=2, width=16, depth=2, heads=2, text=TEXT)
SCALAR = torch.tensor([0.0, 10.0])
WORDS = Condition(words=torch.tensor([[3, 4], [5, 6]]))


def awake(config: MMDiTConfig = TINY) -> MMDiT:
    """A network in which nothing starts at zero any more."""
    torch.manual_seed(0)
    network = MMDiT(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


def channels_first(weight: Tensor, channels: int) -> Tensor:
    """The rows of a last layer of theirs, which go over a patch and then over channels, as ours do."""
    return weight.unflatten(0, (-1, channels)).transpose(0, 1).flatten(0, 1)


def joined(*layers: Any) -> dict[str, Tensor]:
    """Several layers that read the same, as one."""
    parts = [layer.state_dict() for layer in layers]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def swapped(layer: Any) -> dict[str, Tensor]:
    """A modulation of theirs, which says gain, then shift."""
    return {name: torch.cat([*reversed(weight.chunk(2))]) for name, weight in layer.state_dict().items()}


def with_weights_of(theirs: Any, config: MMDiTConfig) -> MMDiT:
    """Our network with the weights of an SD3Transformer2DModel of the same layers; ours has no queries nobody uses."""
    ours = MMDiT(config)
    own: dict[str, Tensor] = {name: value for name, value in ours.state_dict().items() if name.startswith("reader.")}

    def put(name: str, weights: dict[str, Tensor]) -> None:
        own.update({f"{name}.{part}": tensor for part, tensor in weights.items()})

    told = theirs.time_text_embed
    put("scalar.0", told.timestep_embedder.linear_1.state_dict())
    own["scalar.0.weight"] = own["scalar.0.weight"].roll(128, 1)  # their cosines come first
    put("scalar.2", told.timestep_embedder.linear_2.state_dict())
    put("pooled.0", told.text_embedder.linear_1.state_dict())
    put("pooled.2", told.text_embedder.linear_2.state_dict())
    put("words", theirs.context_embedder.state_dict())
    put("patches", theirs.pos_embed.proj.state_dict())
    own["patches.weight"] = own["patches.weight"].flatten(1)
    for index, block in enumerate(theirs.transformer_blocks):
        look, is_last = block.attn, index == config.depth - 1
        patches, words = f"layers.{index}.patches", f"layers.{index}.words"
        put(f"{patches}.modulation", block.norm1.linear.state_dict())
        put(f"{patches}.joint", joined(look.to_q, look.to_k, look.to_v))
        put(f"{patches}.out", look.to_out[0].state_dict())
        put(f"{patches}.feed_forward.0", block.ff.net[0].proj.state_dict())
        put(f"{patches}.feed_forward.2", block.ff.net[2].state_dict())
        if config.has_normed_queries:
            put(f"{patches}.query_norm", look.norm_q.state_dict())
            put(f"{patches}.key_norm", look.norm_k.state_dict())
            put(f"{words}.key_norm", look.norm_added_k.state_dict())
        if is_last:
            put(f"{words}.modulation", swapped(block.norm1_context.linear))
            put(f"{words}.joint", joined(look.add_k_proj, look.add_v_proj))
            continue
        put(f"{words}.modulation", block.norm1_context.linear.state_dict())
        put(f"{words}.joint", joined(look.add_q_proj, look.add_k_proj, look.add_v_proj))
        put(f"{words}.out", look.to_add_out.state_dict())
        put(f"{words}.feed_forward.0", block.ff_context.net[0].proj.state_dict())
        put(f"{words}.feed_forward.2", block.ff_context.net[2].state_dict())
        if config.has_normed_queries:
            put(f"{words}.query_norm", look.norm_added_q.state_dict())
    put("last_modulation", swapped(theirs.norm_out.linear))
    own["last.weight"] = channels_first(theirs.proj_out.weight, ours.out_channels)
    own["last.bias"] = channels_first(theirs.proj_out.bias, ours.out_channels)
    ours.load_state_dict(own)
    return ours


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("is_normed", [False, True])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24)])
def test_with_diffusers_weights_it_draws_the_same(is_normed: bool, height: int, width: int) -> None:
    """At the size that positions are counted on and at another, which is the middle of the largest."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=32,
        pooled_projection_dim=8,
        out_channels=4,
        pos_embed_max_size=12,
        qk_norm="rms_norm" if is_normed else None,
    ).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "norm_" in name:
                weight += 0.3 * torch.randn_like(weight)  # they start at one
    config = MMDiTConfig(
        channels=4, size=16, largest=24, patch=2, width=32, depth=3, heads=2, has_normed_queries=is_normed, text=TEXT
    )
    ours = with_weights_of(theirs, config)
    x, t = torch.randn(3, 4, height, width), torch.tensor([0, 3, 999])
    tokens, pooled = torch.randn(3, 5, 8), torch.randn(3, 8)
    with torch.no_grad():
        expected = theirs(x, tokens, pooled, t).sample
        found = ours(x, t.float(), Condition(tokens=tokens, pooled=pooled))
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_its_layers_start_as_nothing() -> None:
    torch.manual_seed(0)
    patches, words, vector = torch.randn(2, 5, 16), torch.randn(2, 3, 16), torch.randn(2, 16)
    for layer in MMDiT(TINY).layers:
        out, told = layer(patches, words, vector, None)
        assert torch.equal(out, patches)
        assert torch.equal(told, words)


@torch.no_grad()
def test_patches_and_words_look_at_each_other() -> None:
    """In all layers but the last, where words are only seen."""
    network, mask = awake(), torch.ones(2, 8, dtype=torch.bool)
    patches, words, vector = torch.randn(2, 5, 16), torch.randn(2, 3, 16), torch.randn(2, 16)
    out, told = network.layers[0](patches, words, vector, mask)
    assert (network.layers[0](patches, words.flip(2), vector, mask)[0] - out).abs().amax(2).min() > 1e-4
    assert (network.layers[0](patches.flip(2), words, vector, mask)[1] - told).abs().amax(2).min() > 1e-4
    assert network.layers[1](patches, words, vector, mask)[1] is words


@torch.no_grad()
@pytest.mark.parametrize("exists", [True, False])
def test_words_that_do_not_exist_are_not_looked_at(exists: bool) -> None:
    network = awake()
    patches, words, vector = torch.randn(2, 5, 16), torch.randn(2, 3, 16), torch.randn(2, 16)
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[:, 6] = exists
    out, _ = network.layers[0](patches, words, vector, mask)
    words[:, 1] = words[:, 1].flip(1)
    changed, _ = network.layers[0](patches, words, vector, mask)
    assert bool(((changed - out).abs() > 1e-4).any()) == exists


@torch.no_grad()
def test_a_smaller_picture_is_the_middle_of_a_larger_one() -> None:
    """Its positions are: without the layers a patch is drawn as the same patch in the middle of the largest picture."""
    network = awake()
    network.layers = torch.nn.ModuleList()
    small = torch.randn(2, 2, 8, 12)
    large = F.pad(small, (2, 2, 4, 4))
    assert large.shape == (2, 2, 16, 16)
    torch.testing.assert_close(network(large, SCALAR, WORDS)[:, :, 4:12, 2:14], network(small, SCALAR, WORDS))


def test_positions_are_counted_on_the_size() -> None:
    """A patch of ``size`` is 1 wide, and one of the table of the largest as much less as it has more of them."""
    positions = MMDiT(TINY).positions
    assert positions.shape == (8, 8, 16)
    step = 8 / 16
    for y, x in ((0, 0), (3, 7), (5, 2)):
        columns, rows = positions[y, x, :8], positions[y, x, 8:]
        frequencies = 10000.0 ** (-torch.arange(4) / 4)
        for part, place in ((columns, x), (rows, y)):
            angles = place * step * frequencies
            torch.testing.assert_close(part, torch.cat([angles.sin(), angles.cos()]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(6, 7), (18, 8), (8, 18), (3, 2)])
def test_other_sizes_are_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"multiples of 2 up to 16, got {width}x{height}"):
        MMDiT(TINY)(torch.zeros(2, 2, height, width), SCALAR, WORDS)


def test_tokens_without_pooled_words_are_refused() -> None:
    with pytest.raises(ValueError, match="needs pooled words"):
        MMDiT(TINY)(torch.zeros(2, 2, 8, 8), SCALAR, Condition(tokens=torch.zeros(2, 3, 8)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 3}, "patch must divide size and 4 must divide width, got size 8, patch 3, width 16"),
        ({"width": 18}, "4 must divide width.*width 18"),
        ({"heads": 3}, "3 heads for width 16"),
        ({"largest": 6}, "largest must be a multiple of patch and not below size, got largest 6, patch 2, size 8"),
        ({"largest": 17}, "got largest 17"),
    ],
)
def test_one_that_cannot_be_built_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MMDiT(replace(TINY, **change))


def test_what_is_no_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        replace(TINY, depth=0)
    with pytest.raises(ValueError, match="text"):
        from_dict(MMDiTConfig, {**to_dict(TINY), "text": None})
