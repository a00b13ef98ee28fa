"""The noise that a scheduler's own steps add, drawn by themselves."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

__all__ = ["StepNoise"]


class StepNoise:
    """Draws from the pipeline's generators as its sequential steps do, in the same order.

    A step is linear: of a state and an output of zeros it makes the noise alone. So nothing needs
    to be known of how a scheduler draws, and what is drawn is rounded as it would be.

    Args:
        scheduler: with its timesteps set; it is copied.
        first: index of the first step.
        like: the latents of all rows of a step, for shape, dtype and device.
        rows: the rows that are kept.
        options: further arguments of `step`, such as the generator.
    """

    def __init__(
        self, scheduler: Any, first: int, like: Tensor, rows: Tensor, options: dict[str, Any]
    ) -> None:
        self._scheduler = deepcopy(scheduler)
        self._first = first
        self._zeros = torch.zeros_like(like)
        self._rows = rows.to(like.device)
        self._options = options
        self._drawn: list[Tensor] = []

    def until(self, first: int, last: int) -> Tensor:
        """The noise of steps `first` to `last` - 1, [steps, S, ...]."""
        for i in range(self._first + len(self._drawn), last):
            t = self._scheduler.timesteps[i]
            named = {**self._options, "return_dict": False}
            made = self._scheduler.step(self._zeros, t, self._zeros, **named)[0]
            self._drawn.append(made[self._rows])
        return torch.stack(self._drawn[first - self._first : last - self._first])
