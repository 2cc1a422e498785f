"""The machine: what figures are of."""

from __future__ import annotations

import platform
from types import SimpleNamespace

import pytest
import torch

from unstir.bench import machine as module
from unstir.bench.machine import device_name, machine, peaks, processor, told, version_of
from unstir.device import has_native_bf16

CPU = torch.device("cpu")


def test_the_machine_is_this_one() -> None:
    facts = machine()
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["python"] == platform.python_version()
    assert facts["processor"] == processor() != ""


def test_a_package_that_is_not_there_has_no_version() -> None:
    assert version_of("no-such-package") is None
    line = told({**machine(), "diffusers": None})
    assert "diffusers" not in line
    assert f"torch {torch.__version__}" in line
    assert "None" not in line


def test_peaks_are_of_the_formats_that_the_device_multiplies() -> None:
    found = peaks(CPU, side=64, repeats=1)
    assert list(found) == (["float32", "bf16"] if has_native_bf16(CPU) else ["float32"])
    assert all(peak > 0 for peak in found.values())
    assert device_name(CPU) == processor()


def test_the_best_product_counts_and_the_first_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that says what three matrix products (0.1, 4, 2 s) and three convolutions (1, 8, 8 s) take."""
    moments, now = [], 0.0
    for taken in (0.1, 4.0, 2.0, 1.0, 8.0, 8.0):
        moments += [now, now + taken]
        now += 100
    clock = iter(moments)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(module, "has_native_bf16", lambda device: False)
    matrix, convolution = 2 * 64**3 / 2.0, 2 * 16 * 256 * 9 * 8 * 8 / 8.0
    assert peaks(CPU, side=64, repeats=2) == {"float32": pytest.approx(max(matrix, convolution) / 1e9)}
