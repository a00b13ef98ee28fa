"""Taking the places of other objects' methods for a while, in one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Places"]

MISSING = object()
# which places hold an object, by its id; they keep the objects alive, so that ids stay theirs
_holders: dict[int, Places] = {}
_lock = threading.Lock()


class Places:
    """Attributes of objects, replaced from `take` to `give_back`.

    What is put there is seen by the thread that took them alone: calls of other threads reach what
    was there before.

    Args:
        substitutes: (object, attribute, what to put there); functions are called as they are.
    """

    def __init__(self, *substitutes: tuple[Any, str, Any]) -> None:
        self._substitutes = substitutes
        self._before: list[Any] = []
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Take the places.

        Raises:
            RuntimeError: another thread has taken them for a run that is under way.
        """
        mine = threading.current_thread()
        with _lock:
            for thing, _, _ in self._substitutes:
                holder = _holders.get(id(thing))
                if holder is None or holder is self:
                    continue
                other = holder._thread
                if other is not None and other is not mine and other.is_alive():
                    raise RuntimeError(
                        f"{type(thing).__name__} is in a parallel run of thread {other.name!r}; "
                        "let the pipelines that share it take turns, or give each its own"
                    )
                # left behind by an error
                holder._give_back()
            self._thread = mine
            for thing, _, _ in self._substitutes:
                _holders[id(thing)] = self
            self._put()

    def give_back(self) -> None:
        """Put back what was there; a second time it does nothing."""
        with _lock:
            self._give_back()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What was there before, still held; after an error it stays."""
        self._remove()
        yield
        if self._thread is not None:
            self._put()

    def _give_back(self) -> None:
        self._remove()
        self._thread = None
        for key in [key for key, holder in _holders.items() if holder is self]:
            del _holders[key]

    def _put(self) -> None:
        self._before = [vars(thing).get(name, MISSING) for thing, name, _ in self._substitutes]
        for (thing, name, value), before in zip(self._substitutes, self._before, strict=True):
            vars(thing)[name] = self._for_thread(thing, name, value, before)

    def _remove(self) -> None:
        for (thing, name, _), before in zip(self._substitutes, self._before, strict=False):
            if before is MISSING:
                vars(thing).pop(name, None)
            else:
                vars(thing)[name] = before
        self._before = []

    def _for_thread(self, thing: Any, name: str, value: Any, before: Any) -> Any:
        if not callable(value):
            return value
        substitute: Callable[..., Any] = value
        thread = self._thread

        def call(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread() is thread:
                return substitute(*arguments, **named)
            usual = getattr(type(thing), name).__get__(thing) if before is MISSING else before
            return usual(*arguments, **named)

        return call
