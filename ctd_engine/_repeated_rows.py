"""Conditioning of one sample for any number of rows, copied once."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["RepeatedRows"]


class RepeatedRows:
    """`num_rows` times each of a few rows, `[first] * num_rows + [second] * num_rows + ...`.

    They are copied for the most rows that were asked for so far. Fewer of one row are the beginning
    of that, and fewer of two its middle: nothing is copied, and the memory has no gaps.

    Args:
        rows: [*shape] each, at least one.
    """

    def __init__(self, *rows: Tensor) -> None:
        self._rows = rows
        self._most = 0

    def __call__(self, num_rows: int) -> Tensor:
        """[len(rows) * num_rows, *shape], to be read alone."""
        copies = len(self._rows)
        if num_rows > self._most or (num_rows < self._most and copies > 2):
            parts = [row.expand(num_rows, *row.shape) for row in self._rows]
            self._wide, self._most = torch.cat(parts), num_rows
        begin = self._most - num_rows if copies == 2 else 0
        return self._wide[begin : begin + copies * num_rows]
