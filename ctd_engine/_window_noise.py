"""The noise of a round's windows as the operations take it: `seeds`, or the numbers `z`."""

from __future__ import annotations

import torch

from ctd_engine.noise import CounterNoise, NoiseSource, TensorNoise
from ctd_engine.ops.picard_update import Windows

__all__ = ["of_guess", "of_windows"]


def of_guess(
    noise: NoiseSource,
    sample: torch.Tensor,
    first: torch.Tensor,
    count: int,
    num_nodes: int,
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    """Steps from nodes first .. first + count - 1 of samples [A]: z [A, count, D], padded."""
    if isinstance(noise, CounterNoise):
        return {"seeds": noise.seeds(sample)}
    if (given := _given_in_a_row(noise, sample, first, count)) is not None:
        return {"z": given[None]}
    offsets = torch.arange(count, device=sample.device)
    nodes = (first[:, None] + offsets).clamp(max=num_nodes - 1)
    samples = sample.clamp(min=0)[:, None].expand_as(nodes)
    z = noise.step(nodes.flatten(), samples.flatten(), dtype)
    return {"z": z.view(*nodes.shape, -1)}


def of_windows(
    noise: NoiseSource,
    windows: Windows,
    sample: torch.Tensor,
    point_sample: torch.Tensor,
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    """Of the steps from every point of the windows: z [points, D]."""
    if isinstance(noise, CounterNoise):
        return {"seeds": noise.seeds(sample)}
    given = _given_in_a_row(noise, sample, windows.start, len(windows.row_node))
    return {"z": noise.step(windows.row_node, point_sample, dtype) if given is None else given}


def _given_in_a_row(
    noise: NoiseSource, sample: torch.Tensor, first: torch.Tensor, count: int
) -> torch.Tensor | None:
    # of a single window: to be read where it lies, as large as the window's states
    if not isinstance(noise, TensorNoise) or len(sample) != 1 or sample.is_cuda:
        return None
    return noise.steps_of(int(sample), int(first), count)
