"""Reports: numbers are told with their errors, tables line up, threads are given back."""

from __future__ import annotations

import builtins
import math

import pytest
import torch

from unstir.reproduce.report import mean_and_error, one_thread, plots, table, told


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-2.37307, 0.00248, "-2.3731 +- 0.0025"),
        (12.3456, 0.5, "12.35 +- 0.50"),
        (1234.5, 25.0, "1234 +- 25"),
        (0.5, math.nan, "0.5"),
        (3.14159, 0.0, "3.142"),
    ],
)
def test_a_number_has_the_digits_of_its_error(value: float, error: float, text: str) -> None:
    """Two digits of the error, and as many places of the value."""
    assert told(value, error) == text


def test_mean_and_error_of_seeds() -> None:
    """s/sqrt(n) with n - 1; one value has no error."""
    mean, error = mean_and_error([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert error == pytest.approx(torch.tensor([1.0, 2.0, 4.0]).std().item() / math.sqrt(3))
    assert math.isnan(mean_and_error([5.0])[1])


def test_tables_line_up() -> None:
    """Every line is as long as the others; the first column stands left, the others right."""
    lines = table(("name", "bits"), (("a", 1.5), ("longer", 12.25)))
    assert lines == ("name     bits", "a         1.5", "longer  12.25")


def test_threads_are_given_back() -> None:
    """One inside, as before outside, also after an error."""
    before = torch.get_num_threads()

    @one_thread()
    def fail() -> None:
        raise KeyError(torch.get_num_threads())

    with pytest.raises(KeyError, match="1"):
        fail()
    assert torch.get_num_threads() == before


def test_without_matplotlib_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: object, **named: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match="reproduce"):
        plots()
