"""What the user of an `Engine` holds of a request: its result, its progress, its previews."""

from __future__ import annotations

import asyncio
import enum
import threading
import traceback
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from ctd_engine.result import SampleResult

__all__ = ["Handle", "RequestProgress", "RequestState", "without_frames"]


class RequestState(enum.Enum):
    """Where a request is. The value is a word for people; the member is for programs."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Whether nothing follows."""
        return self not in (RequestState.QUEUED, RequestState.RUNNING)


@dataclass(frozen=True)
class RequestProgress:
    """How far a request is: its rounds, the model rows in them, and points of its trajectories that
    no later round changes, of `num_points` = num_samples * num_nodes."""

    state: RequestState
    rounds: int
    evaluations: int
    num_points_final: int
    num_points: int


class Handle:
    """A submitted request. Every method may be called from any thread.

    In asyncio `await handle` gives the result, `async for` over `previews()` the way there.
    """

    def __init__(self, num_points: int) -> None:
        self._is_cancelled = False
        self._future: Future[SampleResult] = Future()
        # so that whoever gives up waiting does not cancel it for others
        self._future.set_running_or_notify_cancel()
        self._progress = RequestProgress(RequestState.QUEUED, 0, 0, 0, num_points)
        self._watchers: list[_Watcher] = []
        self._lock = threading.Lock()

    @property
    def progress(self) -> RequestProgress:
        """How far it is now."""
        return self._progress

    def done(self) -> bool:
        """Whether the result, or the error, is there."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> SampleResult:
        """Wait for the result.

        A request that was cancelled or ran into its deadline has one, too: its samples are the
        best estimates so far, and their stop reasons say so.

        Args:
            timeout: seconds to wait, None for ever.

        Raises:
            TimeoutError: it is not there yet.
            Exception: what the model or the request's own functions raised, or RuntimeError where
                the engine was shut down by an error.
        """
        try:
            return self._future.result(timeout)
        except FutureTimeoutError as error:
            if self.done():
                raise
            # its own class before Python 3.11
            raise TimeoutError(f"no result after {timeout:g} s") from error

    def error(self) -> BaseException | None:
        """Why there is no result; None while it is not known, and for a request that has one."""
        return self._future.exception(0) if self.done() else None

    def add_done_callback(self, callback: Callable[[Handle], object]) -> None:
        """Call `callback(handle)` at the end, in the engine's thread; at once if it was."""
        self._future.add_done_callback(lambda _: callback(self))

    async def wait(self, timeout: float | None = None) -> bool:
        """Whether it has ended, after at most `timeout` seconds."""
        if not self.done() and timeout != 0:
            with self._watching(wants_previews=False) as watcher, suppress(asyncio.TimeoutError):
                await asyncio.wait_for(watcher.next(), timeout)
        return self.done()

    def __await__(self) -> Generator[Any, None, SampleResult]:
        return self._waited().__await__()

    async def _waited(self) -> SampleResult:
        # a task that gives up waiting takes the result from nobody, and leaves nothing behind
        await self.wait()
        return self._future.result()

    def cancel(self) -> None:
        """Ask for an early end: after the round that is running, with the best estimates so far."""
        self._is_cancelled = True

    async def previews(
        self, heartbeat_s: float | None = None
    ) -> AsyncGenerator[torch.Tensor | None, None]:
        """Estimates of the samples [B, *shape], the newest where the reader is slow.

        One after every round of the request, NaN for samples that have not begun; ends with the
        request. None whenever `heartbeat_s` seconds have passed without one.
        """
        with self._watching(wants_previews=True) as watcher:
            while True:
                try:
                    preview = await asyncio.wait_for(watcher.next(), heartbeat_s)
                except asyncio.TimeoutError:
                    yield None
                    continue
                if preview is None:
                    break
                yield preview

    @contextmanager
    def _watching(self, *, wants_previews: bool) -> Iterator[_Watcher]:
        watcher = _Watcher(asyncio.get_running_loop(), wants_previews)
        with self._lock:
            self._watchers.append(watcher)
        try:
            # it may have ended before anybody could tell the watcher
            if self.done():
                watcher.close()
            yield watcher
        finally:
            with self._lock:
                self._watchers.remove(watcher)

    @property
    def is_watched(self) -> bool:
        """Whether somebody reads previews: nobody makes them otherwise."""
        with self._lock:
            return any(watcher.wants_previews for watcher in self._watchers)

    # the engine's side

    @property
    def is_cancelled(self) -> bool:
        """Whether an early end was asked for."""
        return self._is_cancelled

    def show(self, progress: RequestProgress, preview: torch.Tensor | None = None) -> None:
        """Tell the progress, and a preview to those who watch."""
        self._progress = progress
        if preview is not None:
            with self._lock:
                for watcher in self._watchers:
                    if watcher.wants_previews:
                        watcher.put(preview)

    def finish(self, result: SampleResult) -> None:
        """Give the result to everyone who waits."""
        self._future.set_result(result)
        self._close()

    def fail(self, error: BaseException) -> None:
        """Give the error to everyone who waits."""
        self._future.set_exception(without_frames(error))
        self._close()

    def _close(self) -> None:
        with self._lock:
            for watcher in self._watchers:
                watcher.close()


class _OriginError(Exception):
    """Where an error came from, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def without_frames(error: BaseException) -> BaseException:
    """The same error with its traceback as the text of its cause."""
    # frames hold the tensors of a whole round, for as long as somebody holds the handle
    if error.__traceback__ is not None:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        error.__traceback__ = error.__context__ = None
        error.__cause__ = _OriginError(text)
    return error


class _Watcher:
    """One task that waits, in its event loop; of previews it holds the newest only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wants_previews: bool) -> None:
        self.wants_previews = wants_previews
        self._loop = loop
        self._news = asyncio.Event()
        self._newest: torch.Tensor | None = None
        self._is_closed = False

    def put(self, preview: torch.Tensor) -> None:
        self._newest = preview
        self._wake()

    def close(self) -> None:
        self._is_closed = True
        self._wake()

    def _wake(self) -> None:
        # a loop that is over has nobody to wake, and says so
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._news.set)

    async def next(self) -> torch.Tensor | None:
        while True:
            await self._news.wait()
            self._news.clear()
            newest, self._newest = self._newest, None
            if newest is not None:
                if self._is_closed:
                    self._news.set()
                return newest
            if self._is_closed:
                return None
