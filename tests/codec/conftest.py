"""What the tests of autoencoders share: weights of diffusers' under our names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from torch import Tensor, nn

from unstir.codec import AutoencoderConfig

BLOCK = {
    "norm1": "first_norm",
    "conv1": "first",
    "norm2": "second_norm",
    "conv2": "second",
    "conv_shortcut": "shortcut",
}
Carry = Callable[[nn.Module, AutoencoderConfig], dict[str, Tensor]]


def middle(has_attention: bool) -> Iterator[str]:
    yield "mid_block.resnets.0"
    if has_attention:
        yield "mid_block.attentions.0"
    yield "mid_block.resnets.1"


def places(config: AutoencoderConfig, side: str) -> list[str]:
    """Their names of our parts, in order."""
    way, step, blocks = ("down", "downsamplers", 0) if side == "encoder" else ("up", "upsamplers", 1)
    levels: list[str] = []
    for level in range(len(config.multipliers)):
        levels += [f"{way}_blocks.{level}.resnets.{i}" for i in range(config.blocks + blocks)]
        levels += [f"{way}_blocks.{level}.{step}.0"] if level < len(config.multipliers) - 1 else []
    inner = list(middle(config.has_attention))
    return levels + inner if side == "encoder" else inner + levels


def inside(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one of their parts under our names."""
    if "to_q.weight" not in theirs:
        return {
            ".".join([BLOCK.get(name.split(".")[0], name.split(".")[0]), name.split(".")[1]]): tensor
            for name, tensor in theirs.items()
        }
    ours = {f"norm.{kind}": theirs[f"group_norm.{kind}"] for kind in ("weight", "bias")}
    for kind in ("weight", "bias"):
        ours[f"joint.{kind}"] = torch.cat([theirs[f"to_{part}.{kind}"] for part in "qkv"])
        ours[f"out.{kind}"] = theirs[f"to_out.0.{kind}"]
    return ours


def from_diffusers(network: nn.Module, config: AutoencoderConfig) -> dict[str, Tensor]:
    theirs, ours = dict(network.state_dict()), dict[str, Tensor]()

    def take(prefix: str) -> dict[str, Tensor]:
        names = [name for name in theirs if name.startswith(f"{prefix}.")]
        return {name.removeprefix(f"{prefix}."): theirs.pop(name) for name in names}

    is_kl = "quantize.embedding.weight" not in theirs
    outer = {"quant_conv": "to_moments" if is_kl else "to_latents", "post_quant_conv": "from_latents"}
    for side in ("encoder", "decoder"):
        outer |= {f"{side}.conv_in": f"{side}.first", f"{side}.conv_norm_out": f"{side}.norm"}
        outer |= {f"{side}.conv_out": f"{side}.last"}
        for index, place in enumerate(places(config, side)):
            ours |= {f"{side}.parts.{index}.{name}": t for name, t in inside(take(f"{side}.{place}")).items()}
    for there, here in outer.items():
        ours |= {f"{here}.{name}": tensor for name, tensor in take(there).items()}
    if not is_kl:
        ours["codebook.codes"] = theirs.pop("quantize.embedding.weight")
    assert not theirs, f"not carried over: {list(theirs)}"
    return ours


@pytest.fixture(scope="session")
def carried() -> Carry:
    """The weights of diffusers' autoencoder under our names, each used exactly once."""
    return from_diffusers
