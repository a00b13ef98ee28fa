"""How far the points of a parallel run are from the sequential ones, after each of its rounds."""

from __future__ import annotations

import torch
from torch import Tensor

from ctd_engine.result import RoundProgress

__all__ = ["RoundErrors"]


class RoundErrors:
    """Measures every point after every round: a callback of `sample(keep_trajectory=True)`.

    `plots.save_round_errors` draws it. The root mean square over the elements of a state, of x as
    the round left it less the sequential sampler's.

    Args:
        trajectory: x_0 .. x_N [B, num_nodes + 1, *shape], as `SequentialSampler.sample` returns it
            with `keep_trajectory=True`, for the same seeds and conditioning.

    Raises:
        ValueError: the trajectory has fewer than 3 axes.
    """

    def __init__(self, trajectory: Tensor) -> None:
        if trajectory.dim() < 3:
            raise ValueError(
                "trajectory must be [num_samples, num_nodes + 1, *shape], got "
                f"{tuple(trajectory.shape)}; sample(keep_trajectory=True) returns one"
            )
        self._truth = trajectory
        self._rounds: list[Tensor] = []

    def __call__(self, progress: RoundProgress) -> None:
        """Measure the round.

        Raises:
            ValueError: the run does not keep its points, or has other samples than the trajectory.
        """
        points = progress.points
        if points is None:
            raise ValueError(
                "errors need the points of a parallel run: sample(keep_trajectory=True)"
            )
        x = torch.stack([points.x(node) for node in range(self._truth.shape[1])], dim=1)
        if x.shape != self._truth.shape:
            raise ValueError(
                f"trajectory must be {tuple(x.shape)} as this run's is, got "
                f"{tuple(self._truth.shape)}; sample sequentially with its number of samples"
            )
        difference = x.double() - self._truth.to(x.device).double()
        self._rounds.append(difference.flatten(2).square().mean(2).sqrt().cpu())

    def errors(self) -> Tensor:
        """Errors [rounds, B, num_nodes + 1] in float64; NaN where no window had been.

        Raises:
            ValueError: there was no round yet.
        """
        if not self._rounds:
            raise ValueError("errors need a round at the least, got none; give this to sample")
        return torch.stack(self._rounds)
