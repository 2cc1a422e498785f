"""What was read last stays, up to so many bytes, whoever asks and from whichever thread."""

from __future__ import annotations

import threading
import time

import pytest

from unstir.data.recent import Recent


def test_the_last_ones_stay_up_to_the_bytes() -> None:
    recent, loaded = Recent[str](), list[str]()

    def ask(key: str) -> str:
        return recent.get(key, lambda: (loaded.append(key) or key, 10), most_bytes=25)

    assert [ask(key) for key in "aabacb"] == list("aabacb")
    assert loaded == ["a", "b", "c", "b"]  # b was the one not asked for longest when c came
    assert recent.held_bytes() == 20
    recent.get("large", lambda: ("large", 100), most_bytes=25)
    assert recent.held_bytes() == 100
    recent.forget()
    assert recent.held_bytes() == 0


def test_threads_load_a_thing_once() -> None:
    recent, loaded, got = Recent[int](), list[int](), list[int]()

    def load() -> tuple[int, int]:
        time.sleep(0.05)
        loaded.append(1)
        return 7, 1

    threads = [threading.Thread(target=lambda: got.append(recent.get("x", load, most_bytes=9))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (got, loaded) == ([7] * 6, [1])


def test_what_could_not_be_loaded_is_tried_again() -> None:
    recent = Recent[int]()

    def fail() -> tuple[int, int]:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        recent.get("x", fail, most_bytes=9)
    assert recent.get("x", lambda: (1, 1), most_bytes=9) == 1
