"""Which points of a run are final already, for its callback."""

from __future__ import annotations

import numpy as np
import torch

from ctd_engine._request import Request
from ctd_engine._trajectory import TrajectoryStore
from ctd_engine.result import FinalPoints, IntArray

__all__ = ["PointReader"]


class PointReader:
    """Follows the windows of a run whose store records states and data predictions."""

    def __init__(self, request: Request, store: TrajectoryStore) -> None:
        self._num_final = np.zeros(request.num_samples, dtype=np.int64)
        self._shape = (request.num_samples, *request.shape)
        self._starts = request.starts()
        self._store: TrajectoryStore | None = store

    def move(self, sample: IntArray | list[int], start: IntArray | int) -> None:
        """The windows of these samples begin there from now on."""
        self._num_final[sample] = start

    def points(self) -> FinalPoints:
        """What is final now."""
        return FinalPoints(self._num_final.copy(), self._x, self._x0)

    def close(self) -> None:
        """The run is over: another one may overwrite what it recorded."""
        self._store = None

    def _recorded(self, node: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self._store is None:
            raise RuntimeError(
                "points of a run can be read until its sample() returns, and it has; call x(node) "
                "and x0(node) in the callback, or take result.trajectory"
            )
        return self._store.recorded(node)

    def _x(self, node: int) -> torch.Tensor:
        x, _ = self._recorded(node)
        # node 0 is given and never recorded
        return (self._starts if node == 0 else x).clone().view(self._shape)

    def _x0(self, node: int) -> torch.Tensor:
        return self._recorded(node)[1].clone().view(self._shape)
