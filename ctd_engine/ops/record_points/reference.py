"""Points of windows copied out of the ring, in PyTorch. The specification."""

from __future__ import annotations

import torch

__all__ = ["record_points_reference_"]


def record_points_reference_(
    record: torch.Tensor,  # [B, M, D]
    ring: torch.Tensor,  # [S, R, D]
    slot: torch.Tensor,  # [A]
    sample: torch.Tensor,  # [A]
    first: torch.Tensor,  # [A]
    length: torch.Tensor,  # [A]
    max_length: int,
    spare: int,
) -> None:
    """record[sample, first + j] = ring[slot, (first + j) mod R] for j < length."""
    offsets = torch.arange(max_length, device=ring.device)
    # no size may depend on a length, so that what is beyond one needs a place
    nodes = (first[:, None] + offsets).where(offsets < length[:, None], spare)
    record[sample[:, None], nodes] = ring[slot[:, None], nodes % ring.shape[1]]
