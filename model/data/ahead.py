"""Makes what comes next while the present is used: an iterator that runs in a thread of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Generic, TypeVar

_T = TypeVar("_T")
_POLL_SECONDS = 0.1  # between two looks at whether the reader has gone
_JOIN_SECONDS = 10.0  # a thread may wait for another rank that has gone


class Ahead(Generic[_T]):
    """Items of an iterator, made in a thread, at most `depth` of them before they are asked for.

    An error of the iterator is raised where its item would have come. Use it as a context: what is left when
    the context ends is not made.

    Args:
        items: Made there; nothing else may use it.
        depth: How many items may wait.
        name: Of the thread.
    """

    def __init__(self, items: Iterator[_T], *, depth: int, name: str) -> None:
        self._items = items
        self._ready: queue.Queue[tuple[bool, _T | BaseException | None]] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._make, name=name, daemon=True)
        self.waited = 0.0  # seconds that were spent waiting for items
        self._thread.start()

    def _make(self) -> None:
        try:
            for item in self._items:
                if not self._put((True, item)):
                    return
            self._put((False, None))
        except BaseException as error:  # raised again by the thread that asks
            self._put((False, error))
        finally:
            if hasattr(self._items, "close"):
                self._items.close()

    def _put(self, entry: tuple[bool, _T | BaseException | None]) -> bool:
        while not self._stopped.is_set():
            try:
                self._ready.put(entry, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[_T]:
        """The items, in order."""
        while True:
            start = time.monotonic()
            is_item, value = self._ready.get()
            self.waited += time.monotonic() - start
            if is_item:
                yield value  # type: ignore[misc]
            elif value is None:
                return
            else:
                assert isinstance(value, BaseException)
                raise value

    def __enter__(self) -> Ahead[_T]:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the thread."""
        self._stopped.set()
        self._thread.join(_JOIN_SECONDS)


def ahead(items: Iterator[_T], *, depth: int, name: str) -> Iterator[_T]:
    """As `Ahead`, as a generator that ends the thread when it is closed."""
    with Ahead(items, depth=depth, name=name) as some:
        yield from some
