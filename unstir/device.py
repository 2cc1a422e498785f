"""Devices and precisions: which there are, and what "auto" means.

Knows: what this machine computes natively.
Does not know: what is computed.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, cast, get_args

import torch

Precision = Literal["auto", "float32", "bf16"]


def resolve_device(name: str) -> torch.device:
    """The device of this name; "auto" is a GPU where there is one, else the CPU.

    Raises:
        ValueError: if there is no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception:  # each kind of device that is not there has its own kind of error
        raise ValueError(f"no device {name!r} on this machine; try auto or cpu") from None
    if device.type == "meta":
        raise ValueError("the meta device holds no numbers; try auto or cpu")
    return device


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 numbers in hardware, so that bf16 is faster than float32 there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities = cast("dict[str, Any]", getattr(torch.cpu, "get_capabilities", dict)())
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def resolve_precision(name: str, device: torch.device) -> Literal["float32", "bf16"]:
    """The precision inside networks; "auto" is bf16 where it is native.

    Raises:
        ValueError: if there is no such precision.
    """
    if name not in get_args(Precision):
        raise ValueError(f"unknown precision {name!r}; there are {', '.join(get_args(Precision))}")
    if name == "auto":
        return "bf16" if has_native_bf16(device) else "float32"
    return cast("Literal['float32', 'bf16']", name)


def autocast(device: torch.device, precision: Literal["float32", "bf16"]) -> AbstractContextManager[Any]:
    """The context in which networks run: bf16 inside them where asked for, weights and results stay float32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def one_thread() -> Generator[None]:
    """One thread of computation: for small tensors a second one is only waited for, and waits for whoever else runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
