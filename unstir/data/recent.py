"""What was read last stays in memory, up to so many bytes.

Knows: that several threads may ask for the same at once, and that a process may fork.
Does not know: what is kept, how it is read.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """The last things that were asked for; who asks says how many bytes may stay.

    A thing is loaded once, however many threads ask for it; the others wait. A forked process begins empty: what its
    parent was loading would never come.
    """

    def __init__(self) -> None:
        self.forget()
        os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        """Keep nothing."""
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Future[tuple[T, int]]] = OrderedDict()

    def get(self, key: Hashable, load: Callable[[], tuple[T, int]], *, most_bytes: int) -> T:
        """What ``load`` gives for this key, or gave not long ago.

        Args:
            key: what is asked for.
            load: gives the thing and its size in bytes; what it raises is raised, and nothing is kept.
            most_bytes: how much may stay; the thing itself always does.
        """
        with self._lock:
            found = self._kept.get(key)
            mine = found is None
            if found is None:
                found = self._kept[key] = Future()
            self._kept.move_to_end(key)
        if mine:
            try:
                found.set_result(load())
            except BaseException as error:
                with self._lock:
                    self._kept.pop(key, None)
                found.set_exception(error)
            self._shrink(most_bytes)
        return found.result()[0]

    def held_bytes(self) -> int:
        """Bytes of all that is kept."""
        with self._lock:
            return sum(future.result()[1] for future in self._kept.values() if future.done())

    def _shrink(self, most_bytes: int) -> None:
        with self._lock:
            done = [(key, future.result()[1]) for key, future in self._kept.items() if future.done()]
            held = sum(size for _, size in done)
            for key, size in done[:-1]:
                if held <= most_bytes:
                    return
                del self._kept[key]
                held -= size
