"""Turn-over of slots: results of ended samples out, starts of admitted ones in."""

from __future__ import annotations

import torch

from ctd_engine.ops import _checks
from ctd_engine.ops._dispatch import resolve
from ctd_engine.ops.turn_over.reference import turn_over_reference_

__all__ = ["turn_over_"]


def turn_over_(
    x: torch.Tensor,
    x0: torch.Tensor,
    samples: torch.Tensor,
    ended_sample: torch.Tensor,
    ended_reason: torch.Tensor,
    ended_known: torch.Tensor,
    admitted_sample: torch.Tensor,
    num_nodes: int,
    *,
    backend: str | None = None,
) -> None:
    """Write the results of the samples that ended, and start those that were admitted.

    `samples` holds the start x_0 of every sample until the sample ends, and its result after that:
    x_N if it converged, the x0 estimate of its last finite node if its rounds ran out, else NaN. A
    slot may lose one sample and take another in the same call.

    Args:
        x, x0: rings [S, R, D]; node i of a slot lies at ring position i mod R.
        samples: [B, D] in the dtype of x.
        ended_sample, ended_reason, ended_known: int64 [S], a slot's ended sample (-1 for none), the
            scheduler's code why, and the last node with a finite value.
        admitted_sample: int64 [S], -1 for none.
        num_nodes: N.
        backend: None (Triton for CUDA tensors), "reference" or "triton".

    Raises:
        TypeError: a tensor has another type.
        ValueError: shapes or devices do not fit together, or the backend is unknown.
        RuntimeError: "triton" cannot run on these tensors.
    """
    _checks.check_ring("x", x)
    _checks.check_ring("x0", x0, like=x)
    shape = (len(samples), x.shape[2])
    _checks.check_tensor("samples", samples, shape, "[B, D]", x.dtype, x.device)
    columns = (ended_sample, ended_reason, ended_known, admitted_sample)
    names = ("ended_sample", "ended_reason", "ended_known", "admitted_sample")
    _checks.check_indices(len(x), "[S]", x.device, dict(zip(names, columns, strict=True)))
    if resolve(backend, x) == "triton":
        from ctd_engine.ops.turn_over.kernel import turn_over_triton_

        turn_over_triton_(x, x0, samples, *columns, num_nodes)
    else:
        turn_over_reference_(x, x0, samples, *columns, num_nodes)
