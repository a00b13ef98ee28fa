"""Handles of the requests that clients may still ask about."""

from __future__ import annotations

import secrets
from collections import OrderedDict

from ctd_engine.engine import Handle

__all__ = ["Ledger"]


class Ledger:
    """Handles by their name. Of those that have ended the newest `most_ended` are kept, and of
    these no more than have `most_bytes` of samples, or the newest alone."""

    def __init__(self, most_ended: int, most_bytes: int) -> None:
        self._most_ended = most_ended
        self._most_bytes = most_bytes
        self._bytes = 0
        self._running: dict[str, Handle] = {}
        self._ended: OrderedDict[str, Handle] = OrderedDict()

    def add(self, handle: Handle) -> str:
        """A name that nobody can guess."""
        self._sort_out()
        name = secrets.token_urlsafe(12)
        self._running[name] = handle
        return name

    def find(self, name: str) -> Handle | None:
        """The handle; None if it was never there or is gone."""
        self._sort_out()
        return self._running.get(name) or self._ended.get(name)

    def _sort_out(self) -> None:
        for name in [name for name, handle in self._running.items() if handle.done()]:
            self._ended[name] = self._running.pop(name)
            self._bytes += _bytes_of(self._ended[name])
        while len(self._ended) > self._most_ended or (
            self._bytes > self._most_bytes and len(self._ended) > 1
        ):
            _, handle = self._ended.popitem(last=False)
            self._bytes -= _bytes_of(handle)


def _bytes_of(handle: Handle) -> int:
    return 0 if handle.error() is not None else handle.result(0).samples.nbytes
