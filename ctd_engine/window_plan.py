"""Which window is fastest: a prediction from measured round times and the advance per round."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ctd_engine._row_times import RoundTimes

__all__ = ["WindowOption", "WindowPlan", "advance", "plan"]


@dataclass(frozen=True)
class WindowOption:
    """One window size and what it is predicted to cost.

    `rows` of a round; `rounds` and `wall_time_s` of the whole call, `evaluations` per sample.
    """

    window_size: int
    rows: int
    rounds: float
    evaluations: float
    round_time_s: float
    wall_time_s: float


@dataclass(frozen=True)
class WindowPlan:
    """The predicted cost of every window size for one call of `sample`; printing gives a table.

    `reach` is the number of points that would converge in a round of an endless window.
    """

    num_samples: int
    reach: float
    options: tuple[WindowOption, ...]

    @property
    def best(self) -> WindowOption:
        """The fastest option."""
        return min(self.options, key=lambda option: option.wall_time_s)

    @property
    def sequential(self) -> WindowOption:
        """The window of one point: the sequential sampler."""
        return self.options[0]

    @property
    def is_sequential(self) -> bool:
        """Whether nothing is predicted to be faster than one point at a time."""
        return self.best.window_size == 1

    def __str__(self) -> str:
        lines = ["window   rows  rounds  evaluations/sample  round ms   wall s"]
        for option in self.options:
            mark = "  <- fastest" if option is self.best else ""
            lines.append(
                f"{option.window_size:>6} {option.rows:>6} {option.rounds:>7.0f} "
                f"{option.evaluations:>19.0f} {1e3 * option.round_time_s:>9.2f} "
                f"{option.wall_time_s:>8.3f}{mark}"
            )
        return "\n".join(lines)


def advance(window: float, reach: float) -> float:
    """Points by which a window moves in a round: reach (1 - exp(-window / reach)), at least 1.

    A short window converges whole, a long one only as far as the first guess reaches.
    """
    return max(1.0, reach * -math.expm1(-window / reach))


def window_sizes(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... up to `most`."""
    sizes = {1, most}
    power = 2
    while power <= most:
        sizes |= {power, min(power * 3 // 2, most)}
        power *= 2
    return sorted(sizes)


def plan(
    times: RoundTimes,
    *,
    num_samples: int,
    num_nodes: int,
    max_rows: int,
    reach: float,
    padded: Callable[[int], int] = int,
) -> WindowPlan:
    """Predict the wall time of every window size.

    Args:
        times: measured seconds of a round.
        num_samples: B; as many at a time as fill `max_rows` with whole windows.
        num_nodes: N.
        max_rows: rows of one round.
        reach: see `advance`.
        padded: the rows that go through the model where so many are wanted.
    """
    options = []
    for size in window_sizes(min(num_nodes, max_rows)):
        at_once = min(num_samples, -(-max_rows // size))
        length = min(size, max_rows / at_once)
        # the first round of a sample evaluates its first node alone
        rounds = 1 + (num_nodes - 1) / advance(length, reach)
        waves = num_samples / at_once
        rows = padded(math.ceil(at_once * length))
        seconds = times(rows, length)
        options.append(
            WindowOption(
                window_size=size,
                rows=rows,
                rounds=rounds * waves,
                evaluations=rounds * length if size > 1 else num_nodes,
                round_time_s=seconds,
                wall_time_s=seconds * rounds * waves,
            )
        )
    return WindowPlan(num_samples, reach, tuple(options))
