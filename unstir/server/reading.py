"""Reading: what a network makes of words, remembered, for many pictures are drawn of the same ones.

Knows: which conditions are read alike.
Does not know: what reading is, or what is drawn.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import fields

import torch
from torch import Tensor, nn

from unstir.condition import Condition
from unstir.replay import read_by

MOST = 256
"""Conditions that are remembered."""

_WORDS = ("words", "word_mask", "word_weights", "tokens", "token_mask", "pooled")


class Readings:
    """Reads conditions for networks, each once. For one thread.

    Reading costs a small model a twentieth of a picture, and half of that is for the null, which is the same whatever
    the words: where nothing is kept of them they have no influence.

    Args:
        most: conditions that are remembered, those asked for last.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._read: OrderedDict[Hashable, tuple[nn.Module, Condition]] = OrderedDict()

    def __call__(self, network: nn.Module, condition: Condition) -> Condition:
        """The condition with its words read by the network."""
        key = _key(network, condition)
        if key not in self._read:
            self._read[key] = (network, read_by(network, condition))  # a network is kept so that no id comes twice
            if len(self._read) > self._most:
                self._read.popitem(last=False)
        self._read.move_to_end(key)
        return self._read[key][1]


def _key(network: nn.Module, condition: Condition) -> Hashable:
    told = {each.name: getattr(condition, each.name) for each in fields(condition)}
    is_null = condition.kept is not None and not bool(condition.kept.any())
    device = next((each.device.type for each in told.values() if each is not None), "cpu")
    numbers = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return id(network), numbers, *(_content(name, each, is_null and name in _WORDS) for name, each in told.items())


def _content(name: str, tensor: Tensor | None, is_without: bool) -> Hashable:
    if tensor is None:
        return name
    shape = (name, tensor.dtype, tensor.device, tuple(tensor.shape))
    return shape if is_without else (shape, tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
