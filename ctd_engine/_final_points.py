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
        self._store = store

    def move(self, sample: IntArray | list[int], start: IntArray | int) -> None:
        """The windows of these samples begin there from now on."""
        self._num_final[sample] = start

    def points(self) -> FinalPoints:
        """What is final now."""
        return FinalPoints(self._num_final.copy(), self._x, self._x0)

    def _x(self, node: int) -> torch.Tensor:
        # node 0 is given and never recorded
        point = self._starts if node == 0 else self._store.recorded(node)[0]
        return point.clone().view(self._shape)

    def _x0(self, node: int) -> torch.Tensor:
        return self._store.recorded(node)[1].clone().view(self._shape)
