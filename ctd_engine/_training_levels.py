"""The noise levels of the denoising loss, by name."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ctd_engine.logsnr_distributions import (
    LogSNRDistribution,
    TruncatedLogistic,
    TruncatedNormal,
)

if TYPE_CHECKING:
    from ctd_engine.schedules import Schedule

__all__ = ["training_levels"]

_LEVELS: dict[str, LogSNRDistribution | None] = {
    "discrete": None,
    # EDM: log(sigma) normal with mean -1.2 and standard deviation 1.2
    "lognormal": TruncatedNormal(2.4, 2.4),
    # flow matching: logit(t) standard normal, and t uniform
    "logit_normal": TruncatedNormal(0.0, 2.0),
    "uniform": TruncatedLogistic(0.0, 2.0, clip=math.inf),
}
_DEFAULT_LEVELS = {"vp": "discrete", "ve": "lognormal", "flow": "logit_normal"}


def training_levels(
    levels: str | LogSNRDistribution | None, schedule: Schedule
) -> LogSNRDistribution | None:
    """Distribution of the noise level in training, cut to the schedule's range.

    Args:
        levels: "discrete", "lognormal", "logit_normal", "uniform", a distribution, or None for the
            one that is usual for the schedule's kind.
        schedule: the noise schedule.

    Returns:
        The distribution, or None for a uniform index of the schedule's grid ("discrete").

    Raises:
        TypeError: if `levels` is of another type.
        ValueError: if the name is unknown or does not fit the schedule.
    """
    if levels is None:
        levels = _DEFAULT_LEVELS[schedule.kind]
    if isinstance(levels, str):
        if levels not in _LEVELS:
            names = ", ".join(f'"{name}"' for name in _LEVELS)
            raise ValueError(f'levels must be None or one of {names}, got "{levels}"')
        if levels == "discrete" and schedule.kind != "vp":
            raise ValueError(
                'levels "discrete" needs a schedule with discrete timesteps (kind "vp"), got '
                f'schedule "{schedule.name}" of kind "{schedule.kind}"'
            )
        chosen = _LEVELS[levels]
    elif isinstance(levels, LogSNRDistribution):
        chosen = levels
    else:
        raise TypeError(
            f"levels must be a name, a LogSNRDistribution or None, got {type(levels).__name__}"
        )
    return None if chosen is None else chosen.truncated(*schedule.logsnr_range)
