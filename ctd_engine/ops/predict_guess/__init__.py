"""First guess of the points that enter a window."""

from __future__ import annotations

import torch

from ctd_engine.ops._dispatch import resolve
from ctd_engine.ops.picard_update import Coefficients
from ctd_engine.ops.predict_guess.reference import predict_guess_reference

__all__ = ["predict_guess_"]


def predict_guess_(
    x: torch.Tensor,
    x0: torch.Tensor,
    z: torch.Tensor | None,
    slot: torch.Tensor,
    known: torch.Tensor,
    count: torch.Tensor,
    coefficients: Coefficients,
    *,
    backend: str | None = None,
) -> None:
    """Write nodes known + 1 .. known + count of every slot into x, without a model call.

    The x0 estimate of the last evaluated node, known - 1, is held and the solver's recurrence run
    from node `known` with the true noise of every step.

    Args:
        x, x0: rings [S, R, D].
        z: standard normal noise of nodes known + j, [A, max(count), D]; None without noise.
        slot, known, count: int64 [A]; known >= 1, count >= 1.
        coefficients: the solver.
        backend: None or "reference".
    """
    resolve(backend)
    ring, order = x.shape[1], coefficients.A.shape[1]
    offsets = torch.arange(int(count.max()), device=x.device)  # sync: sizes come from the host
    nodes = (known[:, None] + offsets).clamp(max=len(coefficients.C) - 1)
    before = (known[:, None] - torch.arange(order, device=x.device)).clamp(min=0)
    guess = predict_guess_reference(
        x[slot[:, None], before % ring],
        x0[slot, (known - 1) % ring],
        coefficients.A[nodes],
        coefficients.B[nodes].sum(-1),
        None if z is None else coefficients.C[nodes][:, :, None] * z,
    )
    entry, offset = (offsets < count[:, None]).nonzero(as_tuple=True)
    x[slot[entry], (known[entry] + 1 + offset) % ring] = guess[entry, offset]
