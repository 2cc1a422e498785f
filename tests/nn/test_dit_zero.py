"""The DiT with adaLN-Zero alone: against diffusers' with its weights. What all networks share is in test_networks.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from unstir.condition import Condition
from unstir.config import from_dict, to_dict
from unstir.nn import DiTZero, DiTZeroConfig

TINY = DiTZeroConfig(channels=2, size=8, patch=2, width=16, depth=2, heads=2, classes=5, text=None)
X = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
SCALAR = torch.tensor([0.0, 10.0, 999.0])
LABELS = Condition(labels=torch.tensor([0, 4, -1]))


def awake(config: DiTZeroConfig = TINY) -> DiTZero:
    """A network in which nothing starts at zero any more."""
    torch.manual_seed(0)
    network = DiTZero(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


def channels_first(weight: Tensor, channels: int) -> Tensor:
    """The rows of a last layer of theirs, which go over a patch and then over channels, as ours do."""
    return weight.unflatten(0, (-1, channels)).transpose(0, 1).flatten(0, 1)


def with_weights_of(theirs: Any, config: DiTZeroConfig) -> DiTZero:
    """Our network with the weights of a DiTTransformer2DModel of the same layers."""
    ours = DiTZero(config)
    own: dict[str, Tensor] = {}

    def put(name: str, layer: Any) -> None:
        own.update({f"{name}.{part}": tensor for part, tensor in layer.state_dict().items()})

    told = theirs.transformer_blocks[0].norm1.emb
    put("vector.scalar.0", told.timestep_embedder.linear_1)
    half = own["vector.scalar.0.weight"].shape[1] // 2
    own["vector.scalar.0.weight"] = own["vector.scalar.0.weight"].roll(half, 1)  # their cosines come first
    put("vector.scalar.2", told.timestep_embedder.linear_2)
    put("vector.labels", told.class_embedder.embedding_table)
    put("patches", theirs.pos_embed.proj)
    own["patches.weight"] = own["patches.weight"].flatten(1)
    for index, block in enumerate(theirs.transformer_blocks):
        put(f"layers.{index}.modulation", block.norm1.linear)
        put(f"layers.{index}.attention.out", block.attn1.to_out[0])
        three = [layer.state_dict() for layer in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)]
        own.update(
            {f"layers.{index}.attention.joint.{key}": torch.cat([part[key] for part in three]) for key in three[0]}
        )
        put(f"layers.{index}.feed_forward.0", block.ff.net[0].proj)
        put(f"layers.{index}.feed_forward.2", block.ff.net[2])
    put("last_modulation", theirs.proj_out_1)
    own["last.weight"] = channels_first(theirs.proj_out_2.weight, ours.out_channels)
    own["last.bias"] = channels_first(theirs.proj_out_2.bias, ours.out_channels)
    ours.load_state_dict(own)
    return ours


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("patch", "out_channels"), [(2, 4), (4, 2)])
def test_with_diffusers_weights_it_draws_the_same(patch: int, out_channels: int) -> None:
    """But for two slips of theirs, which are set right as in the paper's own code: frequencies that end at 1/10000
    before the last one, and a norm that is less exact than its neighbour. Their layers keep a copy each of the embedding.
    """
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=2,
        out_channels=out_channels,
        num_layers=3,
        sample_size=16,
        patch_size=patch,
        num_embeds_ada_norm=5,
        norm_eps=1e-6,
    ).eval()
    first = theirs.transformer_blocks[0].norm1.emb
    for block in theirs.transformer_blocks:
        block.norm1.emb.load_state_dict(first.state_dict())
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    config = DiTZeroConfig(
        channels=2, out_channels=out_channels, size=16, patch=patch, width=32, depth=3, heads=2, classes=5, text=None
    )
    ours = with_weights_of(theirs, config)
    x, t = torch.randn(4, 2, 16, 16), torch.tensor([0, 3, 500, 999])
    with torch.no_grad():
        expected = theirs(x, t, torch.tensor([0, 4, 2, 5])).sample  # their 5 is no class
        found = ours(x, t.float(), Condition(labels=torch.tensor([0, 4, 2, -1])))
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_its_layers_start_as_nothing() -> None:
    """adaLN-Zero: at the start every layer gives back what it is given, whatever the vector says."""
    torch.manual_seed(0)
    x, vector = torch.randn(3, 5, 16), torch.randn(3, 16)
    for layer in DiTZero(TINY).layers:
        assert torch.equal(layer(x, vector, None), x)
    assert not torch.equal(awake().layers[0](x, vector, None), x)


def test_no_class_is_a_class_of_its_own() -> None:
    network = awake()
    with torch.no_grad():
        out = network(X, SCALAR, LABELS)
        null = network(X, SCALAR, LABELS.null())
        network.vector.labels.weight[5] += 1.0
        changed = network(X, SCALAR, LABELS)
    assert torch.equal(out[2], null[2])
    assert [bool((a != b).any()) for a, b in zip(out, changed, strict=True)] == [False, False, True]


def test_every_patch_sees_every_other() -> None:
    x = X.clone().requires_grad_()
    awake()(x, SCALAR, LABELS)[0, :, 0, 0].sum().backward()
    assert x.grad is not None
    assert (x.grad[0].abs().amax(0) > 0).all()
    assert (x.grad[1:] == 0).all()


@torch.no_grad()
def test_patches_stay_where_they_came_from() -> None:
    """Without its layers, it is a map from each patch alone."""
    network = awake(replace(TINY, classes=None))
    network.layers = torch.nn.ModuleList()
    x, nothing = X.clone(), Condition(seeds=torch.arange(3))
    x[:, :, 2:4, 6:8] += 1.0
    difference = (network(x, SCALAR, nothing) - network(X, SCALAR, nothing)).abs().amax((0, 1))
    assert difference[2:4, 6:8].min() > 1e-4
    difference[2:4, 6:8] = 0
    assert difference.max() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 3}, "patch must divide size and 4 must divide width, got size 8, patch 3, width 16"),
        ({"width": 18}, "4 must divide width.*width 18"),
        ({"heads": 3}, "3 heads for width 16"),
    ],
)
def test_one_that_cannot_be_built_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiTZero(replace(TINY, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"depth": 0}, "depth must be at least 1, got 0"), ({"classes": 0}, "classes must be at least")],
)
def test_what_is_no_configuration_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)
    with pytest.raises(ValueError, match=message):
        from_dict(DiTZeroConfig, {**to_dict(TINY), **change})
