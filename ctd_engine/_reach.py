"""How far a window reaches in a round: a rule of thumb before a run, read off it afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ctd_engine.result import RoundRecord

__all__ = ["expected_reach", "observed_reach"]


def expected_reach(num_nodes: int, tolerance: float) -> float:
    """The reach before anything was seen, from the digits problem (`benchmarks/`).

    It read 66, 30, 12 and 6 points at 1000, 300, 100 and 25 steps of DDPM and tolerance 0.1, and
    fell by a third for a tolerance ten times tighter.
    """
    tightness = math.pow(max(tolerance, 1e-4) / 0.1, 0.2)
    return max(1.5, 0.85 * math.pow(num_nodes, 0.63) * tightness)


def observed_reach(history: Sequence[RoundRecord]) -> float | None:
    """The reach that explains how far the windows of a run moved; None if it cannot be told."""
    lengths, moves = [], []
    before: dict[int, tuple[int, int]] = {}
    for record in history:
        for sample, start, length in zip(record.sample, record.start, record.length, strict=True):
            if sample in before:
                lengths.append(before[sample][1])
                moves.append(start - before[sample][0])
            before[int(sample)] = int(start), int(length)
    seen, moved = np.array(lengths, dtype=float), np.array(moves, dtype=float)
    # a window of one point moves by one whatever the reach
    told = seen > 1
    if told.sum() < 4:
        return None
    low, high = 1.0, 1e4
    for _ in range(40):
        middle = math.sqrt(low * high)
        expected = (middle * -np.expm1(-seen[told] / middle)).mean()
        low, high = (middle, high) if expected < moved[told].mean() else (low, middle)
    return low
