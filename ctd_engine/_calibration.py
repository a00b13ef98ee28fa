"""How far the probabilities of a classifier can be taken at their word."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Calibration", "calibration_curve"]


class Calibration(NamedTuple):
    """Observed frequency against predicted probability, per bin of the probability, fp64, [bins].

    A pair of a point and a class counts in the bin of its probability. Empty bins hold NaN.
    """

    predicted: Tensor  # mean probability of the pairs
    observed: Tensor  # share of the pairs whose class was the true one
    standard_error: Tensor  # of `observed`, if the probabilities are right
    counts: Tensor  # number of pairs, int64


def calibration_curve(posterior: Tensor, truth: Tensor, num_bins: int = 10) -> Calibration:
    """Compare predicted probabilities with how often they came true.

    Args:
        posterior: probabilities of every class, `[K, classes]`, with sum 1 over the classes.
        truth: index of the true class of every point, `[K]`.
        num_bins: bins of equal width over [0, 1].

    Returns:
        The curve. One point's classes exclude each other, which the standard error respects: with
        P the sum of a point's probabilities in a bin, its true class is there with probability P.

    Raises:
        ValueError: for wrong shapes, fewer than 1 bin, probabilities outside [0, 1] or NaN, and a
            truth that is no class.
    """
    if posterior.dim() != 2 or truth.shape != posterior.shape[:1]:
        raise ValueError(
            f"posterior must be [K, classes] and truth [K], got {tuple(posterior.shape)} and "
            f"{tuple(truth.shape)}"
        )
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    p, true_class = posterior.to("cpu", torch.float64), truth.to("cpu", torch.int64)
    if not bool(((p >= 0.0) & (p <= 1.0 + 1e-6)).all()):
        raise ValueError(
            "posterior must hold probabilities in [0, 1], got others or NaN; they are NaN where "
            "the model's output is not finite"
        )
    if not bool(((true_class >= 0) & (true_class < p.shape[1])).all()):
        raise ValueError(
            f"truth must be in 0 .. {p.shape[1] - 1}, the classes of posterior, got "
            f"{int(true_class.min())} to {int(true_class.max())}"
        )
    is_true = torch.zeros_like(p).scatter_(1, true_class[:, None], 1.0)
    index = (p * num_bins).long().clamp_max(num_bins - 1)
    # per point and bin, [K, bins]
    empty = p.new_zeros(len(p), num_bins)
    counts = empty.scatter_add(1, index, torch.ones_like(p)).sum(0)
    mass = empty.scatter_add(1, index, p)
    hits = empty.scatter_add(1, index, is_true).sum(0)
    variance = (mass * (1.0 - mass)).clamp_min(0.0).sum(0)
    count = torch.where(counts > 0, counts, torch.nan)
    return Calibration(mass.sum(0) / count, hits / count, variance.sqrt() / count, counts.long())
