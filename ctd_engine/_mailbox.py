"""Copies of a small device tensor that reach the host late, while the device works on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Mailbox"]


class Mailbox:
    """Numbered copies of `tensor` on the host, the last `depth` of which are kept.

    On a CUDA device a copy is enqueued behind the work so far, into pinned memory; `wait` returns
    when that copy has arrived, while the device goes on with what was enqueued after it.
    """

    def __init__(self, tensor: torch.Tensor, depth: int) -> None:
        self._tensor = tensor
        self._is_cuda = tensor.device.type == "cuda"
        self._copies = torch.empty(
            (depth, tensor.numel()), dtype=tensor.dtype, pin_memory=self._is_cuda
        )
        count = depth if self._is_cuda else 0
        self._events = [torch.cuda.Event() for _ in range(count)]  # type: ignore[no-untyped-call]

    def post(self, number: int) -> None:
        """Enqueue copy `number` on the current stream."""
        place = number % len(self._copies)
        self._copies[place].copy_(self._tensor, non_blocking=True)
        if self._is_cuda:
            self._events[place].record(torch.cuda.current_stream(self._tensor.device))

    def wait(self, number: int) -> npt.NDArray[np.int64]:
        """Copy `number`, once it is there."""
        place = number % len(self._copies)
        if self._is_cuda:
            # sync: the host learns late, with another round already enqueued
            self._events[place].synchronize()
        return self._copies[place].numpy().copy()
