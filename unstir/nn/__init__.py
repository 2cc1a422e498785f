"""Networks: modules from (tensor, one number a sample, condition) to a tensor. They know nothing of diffusion."""

from __future__ import annotations

from typing import Any

from unstir.nn.dit import DiT as DiT
from unstir.nn.dit import DiTConfig as DiTConfig
from unstir.nn.unet import UNet as UNet
from unstir.nn.unet import UNetConfig as UNetConfig

NETWORKS: dict[str, tuple[type[Any], type[Any]]] = {"dit": (DiTConfig, DiT), "unet": (UNetConfig, UNet)}
