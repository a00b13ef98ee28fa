"""The rule for tolerances: fused may err at most as much more as rounding explains."""

from __future__ import annotations

import torch


def assert_close_to_reference(fused, plain, exact, *, factor=2.0, ulps=4.0):
    """max|fused - exact| <= factor max|plain - exact| + ulps eps max|exact|.

    `exact` is the reference in fp64, `plain` the reference in the tested dtype, whose eps counts.
    NaN must stand in the same places.
    """
    eps = torch.finfo(plain.dtype).eps
    assert fused.shape == exact.shape
    assert torch.equal(fused.isnan(), exact.isnan())
    fused, plain, exact = (t.double().nan_to_num(0.0) for t in (fused, plain, exact))
    difference = (fused - exact).abs()
    allowed = factor * float((plain - exact).abs().max()) + ulps * eps * float(exact.abs().max())
    worst = int(difference.argmax())
    rms = float(difference.square().mean().sqrt())
    assert float(difference.max()) <= allowed, (
        f"max {float(difference.max()):.3g} > {allowed:.3g}, rms {rms:.3g}, "
        f"worst at {torch.unravel_index(torch.tensor(worst), exact.shape)}"
    )
