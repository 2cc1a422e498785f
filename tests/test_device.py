"""Devices and precisions: what "auto" means, what is refused, and that bf16 is chosen only where it is native."""

from __future__ import annotations

import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from torch import nn

from unstir import device as module
from unstir.device import (
    autocast,
    compiles,
    has_native_bf16,
    last_channels_pay,
    lay_out,
    pins,
    resolve_device,
    resolve_precision,
    seconds_of_layouts,
    whole_convolutions,
)
from unstir.speedups import without

CPU = torch.device("cpu")


def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA before MPS before the CPU."""
    cuda, mps = [False], [False]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda[0])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps[0])
    assert resolve_device("auto") == CPU
    mps[0] = True
    assert resolve_device("auto").type == "mps"
    cuda[0] = True
    assert resolve_device("auto").type == "cuda"


def test_auto_can_hold_numbers() -> None:
    assert torch.ones(2, device=resolve_device("auto")).sum().item() == 2
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize(
    "name",
    ["banana", "", " cpu", "CPU", "cuda:99", "cuda:-1", "cpu:x", "meta", "vulkan", "xla", "hpu", "privateuseone"],
)
def test_other_devices_are_refused(name: str) -> None:
    """ValueError that names what was asked for and says what to try."""
    with pytest.raises(ValueError, match="try auto or cpu") as caught:
        resolve_device(name)
    assert name.strip() in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_refused_where_there_is_none() -> None:
    with pytest.raises(ValueError, match="no device 'cuda'"):
        resolve_device("cuda")


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [
        ({}, False),
        ({"avx2": True}, False),
        ({"avx2": True, "avx512_f": True, "avx512_vnni": True}, False),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
    ],
)
def test_bf16_needs_the_instruction(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], native: bool
) -> None:
    """AVX2 or AVX-512 alone multiply no bf16: there it is emulated, and slower than float32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_native_bf16(CPU) is native
    assert resolve_precision("auto", CPU) == ("bf16" if native else "float32")


def test_bf16_is_not_assumed_where_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch without get_capabilities, and devices of other kinds, count as without."""
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert has_native_bf16(CPU) is False
    assert has_native_bf16(torch.device("mps")) is False


def test_bf16_agrees_with_this_machine() -> None:
    """What the operating system says of the processor, which is not where torch asks."""
    file = Path("/proc/cpuinfo")
    if not file.exists() or platform.machine() != "x86_64":
        pytest.skip("only Linux on x86 lists the flags")
    flags = next((set(line.split()) for line in file.read_text().splitlines() if line.startswith("flags")), set())
    assert has_native_bf16(CPU) == bool(flags & {"avx512_bf16", "amx_bf16"})


def test_bf16_on_cuda_must_not_be_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert has_native_bf16(torch.device("cuda")) is False
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert has_native_bf16(torch.device("cuda")) is True


def test_precisions_that_are_asked_for_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for native in (False, True):
        monkeypatch.setattr(module, "has_native_bf16", lambda device, native=native: native)
        assert resolve_precision("float32", CPU) == "float32"
        assert resolve_precision("bf16", CPU) == "bf16"


@pytest.mark.parametrize("name", ["fp16", "float16", "FLOAT32", "", "bfloat16"])
def test_other_precisions_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="auto, float32, bf16"):
        resolve_precision(name, CPU)


def test_autocast_is_bf16_inside_and_nothing_otherwise() -> None:
    """The weights stay float32 in either case."""
    layer, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    with autocast(CPU, "float32"):
        assert layer(x).dtype == torch.float32
    with autocast(CPU, "bf16"):
        assert layer(x).dtype == torch.bfloat16
    assert layer(x).dtype == layer.weight.dtype == torch.float32


def test_products_are_routed_only_where_it_pays_and_only_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    products = torch.backends.mkldnn.matmul
    for pays in (True, False):
        monkeypatch.setattr(module, "routing_pays", lambda pays=pays: pays)
        with autocast(CPU, "float32"):
            assert products.fp32_precision == ("bf16" if pays else "none")
        assert products.fp32_precision == "none"
    monkeypatch.setattr(module, "routing_pays", lambda: True)
    with without("routed_products"), autocast(CPU, "float32"):
        assert products.fp32_precision == "none"
    with autocast(CPU, "bf16"):
        assert products.fp32_precision == "none"
    products.fp32_precision = "ieee"
    try:
        with autocast(CPU, "float32"):
            assert products.fp32_precision == "ieee", "whoever has chosen keeps the choice"
    finally:
        products.fp32_precision = "none"


def test_where_routing_pays_it_is_exact() -> None:
    """On this machine: if the probe says so, another product is as near to float64 as the plain one."""
    module.routing_pays.cache_clear()
    pays = module.routing_pays()
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"
    if not pays:
        return
    one, other = torch.randn(300, 700), torch.randn(700, 200)
    exact = one.double() @ other.double()
    plain = (one @ other - exact).abs().max()
    with autocast(CPU, "float32"):
        assert (one @ other - exact).abs().max() < 3 * plain


def test_bf16_is_a_speed_up_that_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    with without("bf16"):
        assert resolve_precision("auto", CPU) == "float32"
        assert resolve_precision("bf16", CPU) == "bf16"
    assert resolve_precision("auto", CPU) == "bf16"


def test_what_acts_on_cuda_acts_nowhere_else() -> None:
    places = [torch.device(kind) for kind in ("cuda", "cpu", "mps")]
    assert [compiles(place) for place in places] == [True, False, False]
    assert [pins(place) for place in places] == [True, False, False]
    with without("compiled_networks", "pinned_prefetch"):
        assert not any(compiles(place) or pins(place) for place in places)


def test_channels_come_last_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 on CUDA, for networks with convolutions; the numbers stay what they are."""
    faster = [True]
    monkeypatch.setattr(module, "last_channels_pay", lambda device: faster[0])
    cuda = torch.device("cuda")

    def laid_out(
        device: torch.device, precision: Literal["float32", "bf16"], kind: type[nn.Module] = nn.Conv2d
    ) -> bool:
        network = nn.Sequential(nn.Conv2d(3, 4, 3) if kind is nn.Conv2d else nn.Linear(3, 4))
        before = network[0].weight.detach().clone()
        lay_out(network, device, precision)
        assert torch.equal(network[0].weight, before)
        return not network[0].weight.is_contiguous()

    assert laid_out(cuda, "bf16")
    assert not laid_out(cuda, "float32")
    assert not laid_out(CPU, "bf16")
    assert not laid_out(cuda, "bf16", nn.Linear)
    with without("channels_last"):
        assert not laid_out(cuda, "bf16")
    faster[0] = False
    assert not laid_out(cuda, "bf16")


@pytest.mark.parametrize(("seconds", "pays"), [((2.0, 1.0), True), ((1.0, 1.0), False), ((1.0, 2.0), False)])
def test_a_layout_is_chosen_by_its_time(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], pays: bool
) -> None:
    module.last_channels_pay.cache_clear()
    monkeypatch.setattr(module, "seconds_of_layouts", lambda device, *shapes, repeats: seconds)
    assert last_channels_pay(CPU) is pays
    module.last_channels_pay.cache_clear()


def test_layouts_take_turns_and_the_best_of_each_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock: 5, 3, 4 s with channels first, 7, 9, 8 s with channels last; the two to warm up do not count."""
    durations = [1, 1, 1, 1, 5, 7, 3, 9, 4, 8]
    moments = [edge for i, seconds in enumerate(durations) for edge in (1000 * i, 1000 * i + seconds)]
    clock = iter(moments)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert seconds_of_layouts(CPU, (1, 2, 4, 4), (2, 2, 3, 3), repeats=3) == (3, 7)


def test_float32_on_cuda_is_float32_while_it_lasts() -> None:
    """torch rounds the factors of float32 convolutions there by itself; what was set before comes back."""
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    assert before != "ieee"
    with autocast(torch.device("cuda"), "float32"):
        assert convolutions.fp32_precision == "ieee"
    assert convolutions.fp32_precision == before
    with pytest.raises(KeyError), whole_convolutions():
        raise KeyError
    assert convolutions.fp32_precision == before
