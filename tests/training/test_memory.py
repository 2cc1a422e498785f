"""Memory: bytes that are counted against those that are known, and what is free."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from unstir.diffusion.objective import Loss
from unstir.training import memory
from unstir.training.memory import free_bytes, kept_bytes, most_that_fit

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_bytes_of_a_graph_are_those_of_what_it_keeps(count: int) -> None:
    """linear keeps its input; sin keeps its input, which is the linear's output; square keeps that of sin, mean none."""
    layer, x = nn.Linear(10, 7), torch.randn(count, 10)

    def loss() -> Loss:
        return Loss(per_sample=layer(x).sin().square().mean(1), parts={})

    assert kept_bytes(loss, CPU, "float32") == 4 * count * (10 + 7 + 7)


def test_what_fits_is_what_is_left_by_what_is_fixed() -> None:
    assert most_that_fit(64, 1000, fixed=100, each=50) == 10  # 0.6 * 1000 - 100
    assert most_that_fit(8, 1000, fixed=100, each=50) == 8
    assert most_that_fit(8, 1000, fixed=550, each=50) == 1
    with pytest.raises(MemoryError, match="one picture of a step needs 2.0 GiB, but only 0.6 GiB are to spare"):
        most_that_fit(8, 2**30, fixed=2**30, each=2**30)


def test_free_is_the_less_of_machine_and_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "meminfo"
    table.write_text("MemTotal:  100 kB\nMemAvailable:   50 kB\n", "utf-8")
    assert memory._free_of_machine(table) == 50 * 1024  # pyright: ignore[reportPrivateUsage]
    assert memory._free_of_machine(tmp_path / "none") == 4 * 2**30  # pyright: ignore[reportPrivateUsage]
    assert memory._free_of_group(tmp_path) == 2**63  # pyright: ignore[reportPrivateUsage]
    (tmp_path / "memory.current").write_text("300\n", "utf-8")
    for most, left in (("max", 2**63), ("1000", 700), ("200", 0)):
        (tmp_path / "memory.max").write_text(f"{most}\n", "utf-8")
        assert memory._free_of_group(tmp_path) == left  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(memory, "_free_of_group", lambda group: 12)
    assert free_bytes(CPU) == 12
