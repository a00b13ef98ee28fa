"""What a sampler returns: samples, why each of them stopped, and what they cost."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from ctd_engine.window_plan import WindowPlan

__all__ = [
    "Callback",
    "FinalPoints",
    "RoundProgress",
    "RoundRecord",
    "SampleResult",
    "SampleStats",
    "StopReason",
]

IntArray = npt.NDArray[np.int64]


class StopReason(enum.Enum):
    """Why a sample ended. The value is a message for people; the member is for programs."""

    CONVERGED = "converged: every point of the trajectory met the tolerance"
    MAX_ROUNDS = "stopped after max_rounds rounds; the sample is the best estimate of x0 so far"
    DIVERGED = "diverged: the model's answer on the final path is not finite; the sample is NaN"
    CANCELLED = "cancelled; the sample is the best estimate of x0 so far, NaN if not begun"
    DEADLINE = (
        "stopped at its deadline; the sample is the best estimate of x0 so far, NaN if not begun"
    )


@dataclass(frozen=True)
class FinalPoints:
    """The points that no later round changes.

    Nodes below `num_final[b]` are final for sample b, all N once it has ended (NaN where it never
    came to). `x(node)` and `x0(node)` copy the states and the data predictions of all samples,
    [B, *shape], until `sample` returns: later calls raise RuntimeError.
    """

    num_final: IntArray
    x: Callable[[int], torch.Tensor]
    x0: Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class RoundProgress:
    """What a callback is told after every round (every step of the sequential sampler).

    `points` are those of a parallel run with `keep_trajectory`.
    """

    round: int
    evaluations: int
    num_finished: int
    num_samples: int
    points: FinalPoints | None = None


Callback = Callable[[RoundProgress], "bool | None"]


@dataclass(frozen=True)
class RoundRecord:
    """The windows of one round: entry a evaluated nodes `start[a] .. start[a] + length[a] - 1`."""

    sample: IntArray
    start: IntArray
    length: IntArray


@dataclass(frozen=True)
class SampleStats:
    """What a call of `sample` cost.

    `rounds` counts batched model calls (with guidance both halves ride in one call),
    `evaluations` the model rows in them, `wall_time_s` everything from the call to the return.
    `state_bytes` are held from the first round to the last, whatever the number of steps. `plan` is
    what `window_size="auto"` predicted before it chose. `padding_rows` went through the model
    beside the evaluations, where the size of a batch had to be fixed before its rows were known.
    `queued_s` of `wall_time_s` went by before an `Engine` began with the request.
    """

    rounds: int
    evaluations: int
    wall_time_s: float
    rounds_per_sample: IntArray
    evaluations_per_sample: IntArray
    state_bytes: int
    window_history: list[RoundRecord] = field(default_factory=list)
    plan: WindowPlan | None = None
    padding_rows: int = 0
    queued_s: float = 0.0


@dataclass(frozen=True)
class SampleResult:
    """What `sample` returns.

    `samples` [B, *shape]; `stats`; one `StopReason` per sample; `seeds`, the 64-bit seed of every
    sample, each of which makes its sample again with `sample(seeds=[seed])`, up to the tolerance;
    with `keep_trajectory` all points [B, num_nodes + 1, *shape], from x_0 to the sample, NaN where
    a sample ended before.
    """

    samples: torch.Tensor
    stats: SampleStats
    stop_reasons: list[StopReason]
    seeds: list[int]
    trajectory: torch.Tensor | None = None

    @property
    def all_converged(self) -> bool:
        """True when every sample ended CONVERGED."""
        return all(reason is StopReason.CONVERGED for reason in self.stop_reasons)
