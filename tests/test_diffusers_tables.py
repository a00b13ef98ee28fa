"""DDPM and DDIM of diffusers against their tables: sequential and parallel."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from diffusers_parity import check

pytest.importorskip("diffusers")

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}
DTYPES = tuple(TOLERANCE)
PREDICTIONS = ("epsilon", "sample", "v_prediction")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_ddpm(spacing: str, prediction: str, dtype: torch.dtype) -> None:
    for steps, clips in itertools.product((1, 2, 10, 25), (True, False)):
        config: dict[str, Any] = dict(
            timestep_spacing=spacing, prediction_type=prediction, clip_sample=clips
        )
        windows = (7, steps) if steps > 2 else ()
        error = check(
            "DDPMScheduler", config, dict(num_inference_steps=steps), dtype, windows=windows
        )
        assert error <= TOLERANCE[dtype], (steps, clips)
