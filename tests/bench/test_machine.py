"""The machine: what figures are of."""

from __future__ import annotations

import platform

import torch

from unstir.bench.machine import machine, processor, told, version_of


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
