"""The machine that figures are of.

Knows: processor, threads, versions, how fast it multiplies at best.
Does not know: what is measured on it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from unstir.device import has_native_bf16, wait, whole_convolutions

_PACKAGES = ("torch", "diffusers", "numpy")


def machine() -> dict[str, Any]:
    """Processor, cores, threads of torch, and versions; None for a package that is not installed."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version_of(name) for name in _PACKAGES},
    }


def processor() -> str:
    """The processor's name, as the system knows it."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text("utf-8", "replace").splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine()


def version_of(package: str) -> str | None:
    """Of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def told(facts: dict[str, Any]) -> str:
    """One line of ``machine()``."""
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", *_PACKAGES) if facts[name] is not None)
    return f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads; {versions}"


def device_name(device: torch.device) -> str:
    """What the device is sold as."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def peaks(device: torch.device, *, side: int | None = None, repeats: int = 8) -> dict[str, float]:
    """GFLOP/s of the fastest product that the device was seen to make, by number format; bf16 only where it is native.

    Two kinds are tried: square matrices, and a convolution as U-Nets have them (3x3, 16 pictures of 16x16).

    Args:
        device: what multiplies.
        side: of the matrices; an eighth of it are the channels of the convolution. None is 2048, on a GPU 8192.
        repeats: of each product, after one to warm up; the best counts.
    """
    side = side or (8192 if device.type == "cuda" else 2048)
    kinds = {"float32": torch.float32, **({"bf16": torch.bfloat16} if has_native_bf16(device) else {})}
    found: dict[str, float] = {}
    for name, dtype in kinds.items():
        matrix = torch.randn(side, side, device=device).to(dtype)
        channels = side // 8
        picture = torch.randn(16, channels, 16, 16, device=device).to(dtype)
        kernel = torch.randn(channels, channels, 3, 3, device=device).to(dtype)
        products: dict[Callable[[], object], int] = {
            lambda matrix=matrix: matrix @ matrix: 2 * side**3,
            lambda picture=picture, kernel=kernel: F.conv2d(picture, kernel, padding=1): 2 * 16**3 * 9 * channels**2,
        }
        found[name] = max(flop / _best_seconds(make, device, repeats) / 1e9 for make, flop in products.items())
    return found


def _best_seconds(make: Callable[[], object], device: torch.device, repeats: int) -> float:
    taken: list[float] = []
    with torch.no_grad(), whole_convolutions():
        for _ in range(repeats + 1):
            started = time.perf_counter()
            make()
            wait(device)
            taken.append(time.perf_counter() - started)
    return min(taken[1:])
