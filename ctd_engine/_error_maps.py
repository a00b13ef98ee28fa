"""Where a model errs: denoising errors over the log-SNR, and score errors over points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ctd_engine._contrast import Contrast
from ctd_engine._moments import Estimate
from ctd_engine._rows import (
    Model,
    call_model,
    check_batch,
    draw_normal,
    noised,
    per_row,
    repeat_cond,
)
from ctd_engine.parametrization import model_time

if TYPE_CHECKING:
    from ctd_engine.schedules import Schedule

__all__ = ["ScoreErrors", "denoising_errors", "score_error_map"]


class ScoreErrors(NamedTuple):
    """Squared errors of a model's score at points, for every noise level, fp64."""

    points: Tensor  # [G, *shape]
    logsnrs: Tensor  # [Z]
    score: Tensor  # |s_hat - s|², [Z, G]
    noise: Tensor  # |eps_hat - eps|², sigmoid(-logsnr) times as much, [Z, G]


@torch.no_grad()
def score_error_map(
    model: Model,
    exact_score: Callable[[Tensor, Tensor], Tensor],
    points: Tensor,
    schedule: Schedule,
    logsnrs: Sequence[float] | Tensor,
    *,
    prediction: str = "epsilon",
    time: str | None = None,
    max_rows: int = 1024,
    sigma_data: float = 0.5,
    **cond: Any,
) -> ScoreErrors:
    """Compare a model's score with the true one, on and off the training path.

    Figure 1 of arXiv 2407.08946: a model is trained where noised data lies, a parallel sampler
    asks it elsewhere too. Levels and points are those of the variance-preserving path
    z = sqrt(sigmoid(logsnr)) x + sqrt(sigmoid(-logsnr)) eps, whatever the schedule.

    Args:
        model: `model(x_t, t, **cond)`, returning the shape of x_t.
        exact_score: `exact_score(z [R, *shape], logsnr [R])`, the gradient of the log density of
            noised data at z, `[R, *shape]`; `exact.MixtureModel.score` is one.
        points: the same points z for every noise level, `[G, *shape]`.
        schedule: the noise schedule the model was trained on.
        logsnrs: Z noise levels, within the schedule's range; with time "index" they are moved to
            the nearest point of its grid.
        prediction: what the model returns: "epsilon", "x0", "v", "flow" or "edm".
        time: what the model is told, as for the losses.
        max_rows: most rows per model call.
        sigma_data: standard deviation of the data, for "edm" only.
        **cond: conditioning; tensors have one entry per point, the rest is passed as it is.

    Returns:
        The errors, summed over the elements of a point.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: for unknown names, wrong shapes, or noise levels off the schedule.
    """
    check_batch(points, "points")
    levels = _levels(logsnrs, schedule, time)
    asker = _asker(schedule, prediction, time, sigma_data)
    rows = []
    for level in levels:
        parts = []
        for chunk, index in _chunks(points, max_rows):
            z = points[chunk].to(torch.promote_types(points.dtype, torch.float32))
            logsnr = level.to(z.device).expand(len(z))
            query = asker.query(z, logsnr)
            conditions = repeat_cond(cond, index, len(points))
            out = call_model(model, query.input, query.time, points.dtype, conditions)
            exact = exact_score(z, logsnr)
            if exact.shape != z.shape:
                raise ValueError(
                    f"exact_score must return the shape of its points, {tuple(z.shape)}, got "
                    f"{tuple(exact.shape)}"
                )
            true_noise = -per_row(torch.sigmoid(-logsnr).sqrt(), z) * exact
            parts.append((query.noise(out) - true_noise).double().square().flatten(1).sum(1))
        rows.append(torch.cat(parts))
    noise = torch.stack(rows)
    return ScoreErrors(
        points, levels, noise / torch.sigmoid(-levels).to(noise.device)[:, None], noise
    )


@torch.no_grad()
def denoising_errors(
    model: Model,
    x: Tensor,
    schedule: Schedule,
    logsnrs: Sequence[float] | Tensor,
    *,
    prediction: str = "epsilon",
    time: str | None = None,
    num_draws: int = 1,
    max_rows: int = 1024,
    sigma_data: float = 0.5,
    generator: torch.Generator | None = None,
    **cond: Any,
) -> Estimate:
    """Mean of |eps - eps_hat(z, logsnr)|² over data and noise, for every noise level.

    Half its integral over the log-SNR, against that of a Gaussian, is the log-likelihood (Kong et
    al. 2023, arXiv 2302.03792). Every noise level gets the same noise, so that the curve is smooth.

    Args:
        model: `model(x_t, t, **cond)`, returning the shape of x_t.
        x: data, `[K, *shape]`, at least two.
        schedule: the noise schedule the model was trained on.
        logsnrs: Z noise levels, within the schedule's range; with time "index" they are moved to
            the nearest point of its grid.
        prediction: what the model returns: "epsilon", "x0", "v", "flow" or "edm".
        time: what the model is told, as for the losses.
        num_draws: draws of noise per point.
        max_rows: most rows per model call.
        sigma_data: standard deviation of the data, for "edm" only.
        generator: source of all random numbers; None uses PyTorch's global one.
        **cond: conditioning; tensors have one entry per point, the rest is passed as it is.

    Returns:
        Means and standard errors `[Z]` of the error summed over a sample's elements. The standard
        error is that of independent points; draws for one point are averaged first.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: for unknown names, wrong shapes, or noise levels off the schedule.
    """
    check_batch(x)
    if len(x) < 2:
        raise ValueError("x must hold at least 2 points for a standard error, got 1")
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, got {num_draws}")
    levels = _levels(logsnrs, schedule, time)
    asker = _asker(schedule, prediction, time, sigma_data)
    errors = x.new_zeros((len(levels), len(x)), dtype=torch.float64)
    for _ in range(num_draws):
        for chunk, index in _chunks(x, max_rows):
            eps = draw_normal(tuple(x[chunk].shape), x, generator)
            conditions = repeat_cond(cond, index, len(x))
            for row, level in enumerate(levels):
                logsnr = level.to(eps.device).expand(len(eps))
                query = asker.query(noised(x[chunk], eps, logsnr), logsnr)
                out = call_model(model, query.input, query.time, x.dtype, conditions)
                square = (eps - query.noise(out)).double().square().flatten(1).sum(1)
                errors[row, chunk] += square / num_draws
    return Estimate(errors.mean(1), errors.std(1) / len(x) ** 0.5)


def _asker(schedule: Schedule, prediction: str, time: str | None, sigma_data: float) -> Contrast:
    return Contrast(schedule, prediction=prediction, time=time, sigma_data=sigma_data, alpha=None)


def _levels(logsnrs: Sequence[float] | Tensor, schedule: Schedule, time: str | None) -> Tensor:
    levels = torch.as_tensor(logsnrs, dtype=torch.float64, device="cpu")
    low, high = schedule.logsnr_range
    if levels.dim() != 1 or levels.numel() == 0:
        raise ValueError(
            f"logsnrs must be a list of at least one log-SNR, got shape {tuple(levels.shape)}"
        )
    # the ends may have been rounded
    if not bool(((levels >= low - 1e-6) & (levels <= high + 1e-6)).all()):
        raise ValueError(
            f"logsnrs must lie in the schedule's range, {low:.6g} to {high:.6g}, got "
            f"{float(levels.min()):.6g} to {float(levels.max()):.6g}; a model knows nothing beyond"
        )
    levels = levels.clamp(low, high)
    if time == "index":
        # the model knows the grid's levels only
        return schedule.logsnrs[model_time(time, schedule, "epsilon", levels)]
    return levels


def _chunks(x: Tensor, max_rows: int) -> Iterator[tuple[slice, Tensor]]:
    if max_rows < 1:
        raise ValueError(f"max_rows must be at least 1, got {max_rows}")
    for first in range(0, len(x), max_rows):
        last = min(first + max_rows, len(x))
        yield slice(first, last), torch.arange(first, last, device=x.device)
