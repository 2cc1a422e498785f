"""Speed-ups: each is switched by its name, and unknown names are refused."""

from __future__ import annotations

import pytest

from unstir.speedups import SPEEDUPS, is_on, named, without


@pytest.mark.parametrize("name", SPEEDUPS)
def test_each_is_on_until_it_is_switched_off_and_on_again_after(name: str) -> None:
    assert is_on(name)
    with without(name):
        assert not is_on(name)
        assert all(is_on(other) for other in SPEEDUPS if other != name)
        with without(name):
            pass
        assert not is_on(name), "an inner switch gives back what it found"
    assert is_on(name)


def test_unknown_names_are_refused_and_nothing_is_switched() -> None:
    with pytest.raises(ValueError, match="no speed-up 'warp'; there are bf16, "), without("bf16", "warp"):
        pass
    assert is_on("bf16")
    with pytest.raises(KeyError):
        is_on("warp")


def test_names_stand_between_commas() -> None:
    assert named(" bf16, joined_average ,") == ("bf16", "joined_average")
    assert named("") == ()
