"""Devices and precisions: which there are, and what "auto" means.

Knows: what this machine computes natively.
Does not know: what is computed.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import nn

from unstir.speedups import is_on

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
    """The precision inside networks; "auto" is bf16 where it is native and that speed-up is on.

    Raises:
        ValueError: if there is no such precision.
    """
    if name not in get_args(Precision):
        raise ValueError(f"unknown precision {name!r}; there are {', '.join(get_args(Precision))}")
    if name == "auto":
        return "bf16" if has_native_bf16(device) and is_on("bf16") else "float32"
    return cast("Literal['float32', 'bf16']", name)


def autocast(device: torch.device, precision: Literal["float32", "bf16"]) -> AbstractContextManager[Any]:
    """The context in which networks run: bf16 inside them where asked for, weights and results stay float32.

    Without bf16, products on a CPU go to oneDNN where that pays (see ``routed_products``), and float32 is float32 on
    CUDA too (see ``whole_convolutions``).
    """
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    contexts = {"cpu": routed_products, "cuda": whole_convolutions}
    return contexts.get(device.type, nullcontext)()


@contextmanager
def whole_convolutions() -> Generator[None]:
    """float32 convolutions in float32 while this lasts: on CUDA torch rounds their factors to 10 bits (TF32) by itself.

    Its matrix products it leaves alone. The switch is one of the whole process.
    """
    convolutions = cast(Any, torch.backends.cudnn).conv
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before


@contextmanager
def routed_products() -> Generator[None]:
    """float32 products through oneDNN while this lasts, where ``routing_pays`` and that speed-up is on.

    The switch is one of the whole process: other threads' products are routed too in the meantime.
    """
    products = _products()
    before = products.fp32_precision
    if before != "none" or not is_on("routed_products") or not routing_pays():  # somebody has chosen already
        yield
        return
    products.fp32_precision = "bf16"  # the name of the route; what it computes in is what was probed
    try:
        yield
    finally:
        products.fp32_precision = before


def _products() -> Any:
    """Where torch keeps the route of float32 products."""
    return cast(Any, torch.backends.mkldnn).matmul


@lru_cache(maxsize=1)
def routing_pays() -> bool:
    """Whether oneDNN multiplies float32 matrices as exactly as torch's own choice here, and 1.3 times as fast at least.

    Asked once a process, by a product of 512x512 matrices (30 ms). Where a processor has units for bf16 matrices the
    same route may round to bf16: its error tells.
    """
    products = _products()
    before = products.fp32_precision
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(512, 512, generator=generator) for _ in range(2))
    exact = one.double() @ other.double()
    errors: dict[str, float] = {}
    seconds: dict[str, list[float]] = {"none": [], "bf16": []}
    try:
        for _ in range(5):
            for route, taken in seconds.items():
                products.fp32_precision = route
                started = time.perf_counter()
                found = one @ other
                taken.append(time.perf_counter() - started)
                errors[route] = (found - exact).abs().max().item()
    finally:
        products.fp32_precision = before
    return errors["bf16"] <= 2 * errors["none"] and 1.3 * min(seconds["bf16"]) < min(seconds["none"])


def compiles(device: torch.device) -> bool:
    """Whether training networks are compiled there: on CUDA, where that speed-up is on.

    On a CPU compiling takes a minute or more and brings nothing (docs/performance.md).
    """
    return device.type == "cuda" and is_on("compiled_networks")


def pins(device: torch.device) -> bool:
    """Whether batches are prepared ahead, and copied from pinned memory, while the device works."""
    return device.type == "cuda" and is_on("pinned_prefetch")


def lay_out(network: nn.Module, device: torch.device, precision: Literal["float32", "bf16"]) -> None:
    """Lay the weights of a network's convolutions out with their channels last, in place, where that is faster.

    That is asked for bf16 on CUDA only. A convolution gives its output the layout of its weights, so that what lies
    between convolutions follows without being told.
    """
    if device.type != "cuda" or precision != "bf16" or not is_on("channels_last"):
        return
    if any(isinstance(module, nn.Conv2d) for module in network.modules()) and last_channels_pay(device):
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (an overload torch forgot)


@lru_cache(maxsize=4)
def last_channels_pay(device: torch.device) -> bool:
    """Whether a bf16 convolution there is faster with its channels last; asked once a process (some ms on a GPU)."""
    shapes = (16, 128, 32, 32), (128, 128, 3, 3)
    usual, last = seconds_of_layouts(device, *shapes, repeats=20)
    return last < usual


def seconds_of_layouts(
    device: torch.device, picture: Sequence[int], kernel: Sequence[int], *, repeats: int
) -> tuple[float, float]:
    """Seconds of a bf16 convolution forward and backward, with channels first and with channels last.

    Args:
        device: where.
        picture: shape of what comes in, (b, c, h, w).
        kernel: shape of the weights, (k, c, height, width).
        repeats: of each, taking turns after two to warm up; the best of each counts.
    """
    layouts = torch.contiguous_format, torch.channels_last
    taken: list[list[float]] = [[] for _ in layouts]
    given = [torch.ones(*shape, device=device, dtype=torch.bfloat16) for shape in (picture, kernel)]
    pairs = [[each.clone(memory_format=layout).requires_grad_() for each in given] for layout in layouts]
    for _ in range(repeats + 2):
        for (x, weight), seconds in zip(pairs, taken, strict=True):
            wait(device)
            started = time.perf_counter()
            torch.autograd.grad(F.conv2d(x, weight, padding=1).sum(), (x, weight))
            wait(device)
            seconds.append(time.perf_counter() - started)
    usual, last = (min(seconds[2:]) for seconds in taken)
    return usual, last


def wait(device: torch.device) -> None:
    """Until the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def one_thread() -> Generator[None]:
    """One thread of computation: for small tensors a second one is only waited for, and waits for whoever else runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
