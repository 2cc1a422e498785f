"""The U-Net alone: its sizes, its levels, its shapes. What it shares with all networks is in test_networks.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unstir.condition import Condition
from unstir.config import from_dict, to_dict
from unstir.nn import UNet, UNetConfig
from unstir.nn.attention import CrossAttention, SelfAttention
from unstir.nn.layers import BlockStyle, ResidualBlock
from unstir.nn.papers import PAPERS
from unstir.nn.text import TextConfig
from unstir.nn.unet import _Told  # pyright: ignore[reportPrivateUsage]

TEXT = TextConfig(vocabulary=20, max_tokens=6, width=8, depth=1, heads=2)
TINY = UNetConfig(channels=2, width=8, multipliers=(1, 2, 3), blocks=1, attention=(1,), heads=2, text=TEXT)
WORDS = Condition(words=torch.tensor([[3, 4], [5, 6]]))


def count(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


def awake(config: UNetConfig) -> UNet:
    """A network in which nothing starts at zero any more."""
    torch.manual_seed(0)
    network = UNet(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 12), (16, 4)])
def test_it_draws_any_multiple_and_feels_all_of_it(height: int, width: int) -> None:
    network = awake(TINY)
    assert network.multiple == 4
    x = torch.randn(2, 2, height, width, requires_grad=True)
    out = network(x, torch.tensor([1.0, 2.0]), WORDS)
    assert out.shape == x.shape
    out[0, 0, 0, 0].backward()
    assert x.grad is not None
    assert (x.grad[0].abs().amax(0) > 0).all(), "the middle attends, so that every pixel sees every other"
    assert (x.grad[1] == 0).all()


@pytest.mark.parametrize(("height", "width"), [(6, 8), (8, 30), (1, 4)])
def test_other_sizes_are_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"multiples of 4, got {width}x{height}"):
        UNet(TINY)(torch.zeros(2, 2, height, width), torch.zeros(2), WORDS)


@pytest.mark.parametrize(
    ("change", "blocks", "looks"),
    [
        ({}, 11, 1 + 2 + 1),
        ({"attention": ()}, 11, 1),
        ({"attention": (0, 2), "blocks": 2}, 17, 2 * 2 + 2 * 3 + 1),
        ({"multipliers": (1,), "attention": (0,)}, 5, 1 + 2 + 1),
    ],
)
def test_blocks_and_attention_stand_where_the_configuration_says(
    change: dict[str, Any], blocks: int, looks: int
) -> None:
    network = UNet(replace(TINY, **change))
    assert count(network, ResidualBlock) == blocks
    assert count(network, CrossAttention) == looks
    assert count(network, SelfAttention) == looks + TEXT.depth


DDPM = BlockStyle(modulation="shift", dropout=0.1, epsilon=1e-6)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ({"width": 128, "multipliers": (1, 2, 2, 2)}, 35_746_307),
        ({"width": 64, "multipliers": (1, 2, 2)}, 6_472_195),
    ],
)
def test_it_is_ddpms_by_configuration(shape: dict[str, Any], size: int) -> None:
    """35,746,307 weights of Ho et al.'s network for CIFAR-10: two blocks a level, attention at 16x16 only.

    The smaller one's number is that of diffusers' UNet2DModel of the same shape; tests/bench compares the outputs.
    """
    with torch.device("meta"):
        network = UNet(
            UNetConfig(
                **shape, attention=(1,), heads=1, style=DDPM, has_normed_queries=False, pads_evenly=False, text=None
            )
        )
    assert sum(weight.numel() for weight in network.parameters()) == size


def test_one_that_is_told_no_words_draws_and_refuses_them() -> None:
    network = awake(replace(TINY, text=None))
    x, scalar = torch.randn(2, 2, 8, 8), torch.tensor([1.0, 2.0])
    nothing = Condition(seeds=torch.arange(2))
    assert network(x, scalar, nothing).shape == x.shape
    assert network.read(nothing) is nothing
    with pytest.raises(ValueError, match="told no words"):
        network(x, scalar, WORDS)


def test_uneven_padding_is_that_of_the_first_code() -> None:
    """Right and bottom alone, as TensorFlow's SAME pads a picture of even size for stride 2."""
    torch.manual_seed(0)
    step = next(part for part in UNet(replace(TINY, pads_evenly=False)).modules() if type(part).__name__ == "_Shrink")
    x = torch.randn(1, 8, 4, 4)
    expected = F.conv2d(F.pad(x, (0, 1, 0, 1)), step.conv.weight, step.conv.bias, stride=2)
    told = _Told(torch.zeros(1, 32), None, None, None)
    torch.testing.assert_close(step(x, told), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multipliers": ()}, r"a level, a block and an even width.*multipliers \(\)"),
        ({"multipliers": (1, 0)}, r"multipliers \(1, 0\)"),
        ({"blocks": 0}, "blocks 0"),
        ({"width": 9}, "width 9"),
        ({"attention": (3,)}, r"levels from 0 to 2, got \(3,\)"),
        ({"attention": (-1,)}, r"levels from 0 to 2, got \(-1,\)"),
        ({"heads": 3}, "3 heads for width 16"),
        ({"head_width": 5}, "head_width must divide.*got 5 for a level of 16"),
        ({"head_width": 0}, "got 0 for a level of 16"),
        ({"head_width": 32}, "got 32 for a level of 16"),
        ({"vector_width": 20}, "vector_width must be a multiple of 8, got 20"),
        ({"vector_width": 0}, "multiple of 8, got 0"),
    ],
)
def test_one_that_cannot_be_built_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(replace(TINY, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimensions": 4}, "dimensions must be 1, 2 or 3, got 4"),
        ({"dimensions": 0}, "dimensions must be 1, 2 or 3, got 0"),
        ({"transformers": -1}, "transformers must be at least 0, got -1"),
        ({"classes": 0}, "classes must be at least 1, or null .*got 0"),
    ],
)
def test_what_is_no_configuration_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)
    with pytest.raises(ValueError, match=message):
        from_dict(UNetConfig, {**to_dict(TINY), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"up_attention": "first"}, "up_attention: Input should be 'every' or 'last', got 'first'"),
        ({"style": {"resampling": "fir"}}, "style.resampling: Input should be 'convolution', 'block' or .*, got 'fir'"),
        ({"style": {"modulation": "gate"}}, "style.modulation: Input should be 'scale' or 'shift', got 'gate'"),
        ({"style": {"sum_scale": 0}}, "sum_scale must be positive and finite, got 0"),
        ({"style": {"smoothness": 1}}, "no setting 'style.smoothness'"),
    ],
)
def test_an_unknown_style_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        from_dict(UNetConfig, {**to_dict(TINY), **change})
    assert "\n" not in str(caught.value)


def test_a_configuration_of_before_is_the_same_network() -> None:
    """What was saved before there were classes, dimensions and styles says nothing of them, and nothing changed."""
    new = ("head_width", "up_attention", "transformers", "vector_width", "classes", "dimensions")
    old = {key: value for key, value in to_dict(TINY).items() if key not in new}
    old["style"] = {key: value for key, value in old["style"].items() if key not in ("resampling", "sum_scale")}
    assert from_dict(UNetConfig, old) == TINY
    assert list(old) == [key for key in to_dict(TINY) if key not in new]
    names = UNet(TINY).state_dict()
    assert sum(weight.numel() for weight in names.values()) == 123_028
    assert not any("labels" in name for name in names)


# --- what the papers differ in ---


def test_a_width_of_heads_makes_more_of_them_on_wider_levels() -> None:
    network = UNet(replace(TINY, attention=(0, 1, 2), head_width=4, text=None))
    looks = [part for part in network.modules() if isinstance(part, SelfAttention)]
    assert {look.joint.in_features // look.heads for look in looks} == {4}
    assert {look.heads for look in looks} == {2, 4, 6}


def test_attention_may_follow_the_last_block_of_the_way_up_alone() -> None:
    every, last = UNet(replace(TINY, text=None)), UNet(replace(TINY, text=None, up_attention="last"))
    assert (count(every.up, SelfAttention), count(last.up, SelfAttention)) == (2, 1)
    assert count(every.down, SelfAttention) == count(last.down, SelfAttention) == 1
    parts = [[type(part).__name__ for part in step.parts] for step in last.up]
    level = [["ResidualBlock"], ["ResidualBlock", "_Look", "_Grow"]]  # of level 1, which has one block and one more
    assert parts[2:4] == level


@pytest.mark.parametrize("transformers", [0, 1])
@pytest.mark.parametrize("text", [None, TEXT])
def test_sums_of_attention_are_scaled_too(transformers: int, text: TextConfig | None) -> None:
    """At its start it adds nothing, and then a sum of one looking is the shortcut, scaled once; words are a second one."""
    style = BlockStyle(sum_scale=0.7)
    network = UNet(replace(TINY, transformers=transformers, style=style, text=text))
    look = network.middle.parts[1]
    x, tokens = torch.randn(2, 24, 2, 3), torch.randn(2, 4, 8)
    sums = 2 if text is not None and not transformers else 1
    torch.testing.assert_close(look(x, _Told(torch.zeros(2, 32), tokens, None, None)), 0.7**sums * x)


def test_the_vector_may_be_wider_than_four_times_the_width() -> None:
    """As in ADM for 512x512, whose finest level is half as wide as what the vector is counted in."""
    network = UNet(replace(TINY, vector_width=64, text=None))
    assert network.vector.features == 16
    assert network.vector.scalar[0].in_features == 16
    blocks = [part for part in network.modules() if isinstance(part, ResidualBlock)]
    assert {block.modulation.in_features for block in blocks} == {64}


@pytest.mark.parametrize("resampling", ["convolution", "block", "projected_block"])
@pytest.mark.parametrize("dimensions", [1, 3])
def test_sequences_and_volumes_are_drawn(dimensions: int, resampling: Any) -> None:
    config = replace(TINY, dimensions=dimensions, style=BlockStyle(resampling=resampling))
    network = awake(config)
    x = torch.randn(2, 2, *(4, 8, 4)[:dimensions], requires_grad=True)
    out = network(x, torch.tensor([1.0, 2.0]), WORDS)
    assert out.shape == x.shape
    out[0].sum().backward()
    assert x.grad is not None
    assert (x.grad[0].abs().amax(0) > 0).all()
    assert (x.grad[1] == 0).all()
    with pytest.raises(ValueError, match=f"{dimensions} dimensions, got 2"):
        network(torch.zeros(2, 2, 4, 4), torch.zeros(2), WORDS)
    with pytest.raises(ValueError, match="multiples of 4, got 6" + "x4" * (dimensions - 1)):
        network(torch.zeros(2, 2, *[4] * (dimensions - 1), 6), torch.zeros(2), WORDS)


@pytest.mark.parametrize(
    "style", [BlockStyle(), BlockStyle(resampling="block"), BlockStyle(resampling="projected_block", sum_scale=0.7)]
)
@pytest.mark.parametrize("dimensions", [1, 2])
def test_fewer_dimensions_are_those_that_nothing_changes_in(dimensions: int, style: BlockStyle) -> None:
    """A volume that is the same everywhere along some axes is drawn as a picture or sequence by the same kernels,
    where a kernel of the volume is that of the picture in its middle and zero beside it.
    """
    config = replace(TINY, style=style, text=None)
    flat, deep = awake(replace(config, dimensions=dimensions)), awake(replace(config, dimensions=3))
    weights = flat.state_dict()
    for name, weight in deep.state_dict().items():
        missing = weight.ndim - weights[name].ndim
        if missing:
            sides = [side for size in reversed(weight.shape[2 : 2 + missing]) for side in (size // 2, size // 2)]
            small = weights[name].reshape(*weight.shape[:2], *[1] * missing, *weight.shape[2 + missing :])
            weights[name] = F.pad(small, (0, 0) * dimensions + tuple(sides))
    deep.load_state_dict(weights)
    x, scalar, nothing = (
        torch.randn(2, 2, *[8] * dimensions),
        torch.tensor([1.0, 2.0]),
        Condition(seeds=torch.arange(2)),
    )
    same = x.reshape(2, 2, *[1] * (3 - dimensions), *x.shape[2:]).expand(-1, -1, *[8] * 3)
    with torch.no_grad():
        expected = flat(x, scalar, nothing).reshape(2, 2, *[1] * (3 - dimensions), *x.shape[2:]).expand_as(same)
        found = deep(same, scalar, nothing)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# --- as diffusers draws, with its weights ---


def swapped(layer: nn.Module) -> dict[str, Tensor]:
    """A modulation of theirs, which says gain, then shift."""
    return {name: torch.cat([*reversed(weight.chunk(2))]) for name, weight in layer.state_dict().items()}


def joined(*layers: Any) -> dict[str, Tensor]:
    """Several layers that read the same, as one."""
    parts = [layer.state_dict() for layer in layers]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def own_shape(layer: nn.Module, name: str) -> torch.Size:
    """Theirs is the same but for a 1x1 convolution in the place of a linear layer."""
    return layer.state_dict()[name].shape


def of_transformer(mine: Any, their: Any) -> tuple[list[tuple[Any, Any]], list[tuple[Any, tuple[Any, ...]]]]:
    """The layers of one of our transformers, each with theirs; and joint ones with those that are several of theirs."""
    pairs = [(mine.norm, their.norm), (mine.first, their.proj_in), (mine.last, their.proj_out)]
    joints: list[tuple[Any, tuple[Any, ...]]] = []
    for own, block in zip(mine.blocks, their.transformer_blocks, strict=True):
        pairs += [(own.cells_norm, block.norm1), (own.words_norm, block.norm2), (own.forward_norm, block.norm3)]
        pairs += [(own.cells.out, block.attn1.to_out[0]), (own.words.out, block.attn2.to_out[0])]
        pairs += [(own.words.query, block.attn2.to_q)]
        pairs += [(own.feed_forward.joint, block.ff.net[0].proj), (own.feed_forward.out, block.ff.net[2])]
        joints += [(own.cells.joint, (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v))]
        joints += [(own.words.joint, (block.attn2.to_k, block.attn2.to_v))]
    return pairs, joints


def with_weights_of(theirs: Any, config: UNetConfig) -> UNet:
    """Our network with the weights of a UNet2DModel of the same layers."""
    ours = UNet(config)
    parts: list[Any] = []
    for block in (*theirs.down_blocks, theirs.mid_block, *theirs.up_blocks):
        looks = list(getattr(block, "attentions", []))
        for place, residual in enumerate(block.resnets):
            parts += [residual, *looks[place : place + 1]]
        parts += [*(getattr(block, "downsamplers", None) or []), *(getattr(block, "upsamplers", None) or [])]
    pairs: list[tuple[Any, Any]] = [
        (ours.first, theirs.conv_in),
        (ours.vector.scalar[0], theirs.time_embedding.linear_1),
        (ours.vector.scalar[2], theirs.time_embedding.linear_2),
        (ours.last[0], theirs.conv_norm_out),
        (ours.last[2], theirs.conv_out),
    ]
    if config.classes is not None:
        pairs.append((ours.vector.labels, theirs.class_embedding))
    own = [part for step in (*ours.down, ours.middle, *ours.up) for part in step.parts]
    for mine, their in zip(own, parts, strict=True):
        if isinstance(mine, ResidualBlock):
            pairs += [(mine.first_norm, their.norm1), (mine.first, their.conv1)]
            pairs += [(mine.second_norm, their.norm2), (mine.second, their.conv2)]
            pairs += [] if isinstance(mine.shortcut, nn.Identity) else [(mine.shortcut, their.conv_shortcut)]
            told = their.time_emb_proj
            mine.modulation.load_state_dict(swapped(told) if mine.is_scaled else told.state_dict())
        elif hasattr(mine, "blocks"):
            transformer_pairs, joints = of_transformer(mine, their)
            pairs += transformer_pairs
            for joint, layers in joints:
                joint.load_state_dict(joined(*layers))
        elif hasattr(mine, "cells"):
            pairs += [(mine.cells_norm, their.group_norm), (mine.cells.out, their.to_out[0])]
            mine.cells.joint.load_state_dict(joined(their.to_q, their.to_k, their.to_v))
        else:
            pairs.append((mine.conv, their.conv))
    for mine, their in pairs:
        weights = {name: weight.reshape(own_shape(mine, name)) for name, weight in their.state_dict().items()}
        mine.load_state_dict(weights)
    return ours


STYLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "DDPM": (
        {"heads": 1, "style": DDPM, "pads_evenly": False},
        {"attention_head_dim": None, "norm_eps": 1e-6, "downsample_padding": 0, "dropout": 0.1},
    ),
    "improved DDPM": (
        {"heads": 4, "out_channels": 6, "head_width": 16},
        {"attention_head_dim": 16, "out_channels": 6, "resnet_time_scale_shift": "scale_shift"},
    ),
    "ADM": (
        {"head_width": 32, "style": BlockStyle(resampling="block"), "classes": 7, "out_channels": 6},
        {
            "attention_head_dim": 32,
            "out_channels": 6,
            "resnet_time_scale_shift": "scale_shift",
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "num_class_embeds": 7,
        },
    ),
    "shifted, resampled by blocks, another vector": (
        {"head_width": 64, "style": BlockStyle(modulation="shift", resampling="block"), "vector_width": 256},
        {
            "attention_head_dim": 64,
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "time_embedding_dim": 256,
        },
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("style", STYLES)
def test_with_diffusers_weights_it_draws_the_same(style: str) -> None:
    """Theirs, at their random weights throughout, is an implementation that we had no hand in."""
    diffusers = pytest.importorskip("diffusers")
    change, settings = STYLES[style]
    is_block = settings.get("downsample_type") == "resnet"
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(
        block_out_channels=(64, 128),
        layers_per_block=2,
        down_block_types=("ResnetDownsampleBlock2D" if is_block else "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D" if is_block else "UpBlock2D"),
        attn_norm_num_groups=32,
        flip_sin_to_cos=False,
        freq_shift=0,
        **settings,
    ).eval()
    config = UNetConfig(width=64, multipliers=(1, 2), attention=(1,), text=None, has_normed_queries=False, **change)
    ours = with_weights_of(theirs, config).eval()
    assert sum(w.numel() for w in ours.parameters()) == sum(w.numel() for w in theirs.parameters())
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([0, 3, 777])
    labels = torch.tensor([0, 6, 2]) if "num_class_embeds" in settings else None
    with torch.no_grad():
        expected = theirs(x, t, labels).sample
        found = ours(x, t.float(), Condition(seeds=t, labels=labels))
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("transformers", [1, 2])
def test_with_the_weights_of_latent_diffusion_it_draws_the_same(transformers: int) -> None:
    """Stable Diffusion's kind, which is told tokens of an encoder that stands outside."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,  # their name for a number of heads
        transformer_layers_per_block=transformers,
        flip_sin_to_cos=False,
    ).eval()
    config = UNetConfig(
        channels=4,
        width=64,
        multipliers=(1, 2),
        blocks=1,
        attention=(0,),
        heads=4,
        transformers=transformers,
        style=BlockStyle(modulation="shift"),
        has_normed_queries=False,
        text=TEXT,
    )
    ours = with_weights_of(theirs, config).eval()
    x, t, tokens = torch.randn(3, 4, 8, 8), torch.tensor([0, 3, 777]), torch.randn(3, 5, 8)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False], [False, True, True, True, True]])
    with torch.no_grad():
        expected = theirs(x, t, tokens, encoder_attention_mask=mask).sample
        found = ours(x, t.float(), Condition(tokens=tokens, token_mask=mask))
        unmasked = ours(x, t.float(), Condition(tokens=tokens))
    assert expected.abs().max() > 0.1
    bound = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)
    assert (unmasked - found).abs().amax((1, 2, 3)).tolist()[1] > 10 * bound


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_at_full_size_it_draws_as_stable_diffusion() -> None:
    """860 million random weights: no picture, but the sum of all roundings stays below 1e-4."""
    diffusers = pytest.importorskip("diffusers")
    config = PAPERS["stable_diffusion_1"]
    torch.manual_seed(0)
    theirs = diffusers.UNet2DConditionModel(cross_attention_dim=768, flip_sin_to_cos=False).eval()
    ours = with_weights_of(theirs, replace(config, text=TextConfig(vocabulary=2, width=768, depth=1))).eval()
    x, t, tokens = torch.randn(1, 4, 32, 32), torch.tensor([500]), torch.randn(1, 77, 768)
    with torch.no_grad():
        expected = theirs(x, t, tokens).sample
        found = ours(x, t.float(), Condition(tokens=tokens))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
