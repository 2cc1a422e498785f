"""Networks: modules from (tensor, one number a sample, condition) to a tensor. They know nothing of diffusion."""

from __future__ import annotations

from typing import Any

from unstir.nn.dit import DiT as DiT
from unstir.nn.dit import DiTConfig as DiTConfig
from unstir.nn.dit_zero import DiTZero as DiTZero
from unstir.nn.dit_zero import DiTZeroConfig as DiTZeroConfig
from unstir.nn.mmdit import MMDiT as MMDiT
from unstir.nn.mmdit import MMDiTConfig as MMDiTConfig
from unstir.nn.unet import UNet as UNet
from unstir.nn.unet import UNetConfig as UNetConfig

NETWORKS: dict[str, tuple[type[Any], type[Any]]] = {
    "dit": (DiTConfig, DiT),
    "unet": (UNetConfig, UNet),
    "dit_zero": (DiTZeroConfig, DiTZero),
    "mmdit": (MMDiTConfig, MMDiT),
}
