"""First guesses from a given trajectory of a similar request."""

from __future__ import annotations

from dataclasses import replace

import torch

from ctd_engine.ops.picard_update import Coefficients

__all__ = ["added_by_steps", "following"]


def following(c: Coefficients) -> Coefficients:
    """The recurrence that adds to its states what it is given as noise, and nothing else."""
    return replace(c, B=torch.zeros_like(c.B), C=torch.ones_like(c.C))


def added_by_steps(
    trajectory: torch.Tensor,  # [B, N + 1, D]
    a: torch.Tensor,  # [N, K]
    sample: torch.Tensor,  # [A]
    first: torch.Tensor,  # [A]
    count: int,
) -> torch.Tensor:
    """What a given trajectory's steps from nodes first .. first + count - 1 added, [A, count, D].

    w_{i+1} - sum_k A[i,k] w_{i-k}, its data prediction and noise in one. Added to other states it
    makes the guess of a sample with these predictions and this noise:

        x_{i+1} = w_{i+1} + sum_k A[i,k] (x_{i-k} - w_{i-k})
    """
    offsets = torch.arange(count, device=trajectory.device)
    # steps beyond the last node are not used; slots without a sample take any
    node = (first[:, None] + offsets).clamp(max=len(a) - 1)
    row = sample.clamp(min=0)[:, None]
    added = trajectory[row, node + 1]
    for k in range(a.shape[1]):
        # before node 0 the coefficients are 0
        added = added - a[node, k, None] * trajectory[row, (node - k).clamp(min=0)]
    return added
