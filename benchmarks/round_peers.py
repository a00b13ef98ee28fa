"""diffusers' parallel schedulers in the loop of ParaDiGMS, on a problem of `round_problems`.

The loop is Alg. 1 of Shih et al. (2023, arXiv 2305.16317): one window for all samples, new points
copied, the sum of the steps' differences added to the window's first point, the window moved to
the first point where any sample's error exceeds the tolerance. The steps are diffusers' own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from round_problems import Problem


def scheduler_of(num_steps: int, eta: float) -> Any:
    """diffusers' DDIMParallelScheduler (eta = 0) or DDPMParallelScheduler (eta = 1).

    Its "trailing" timesteps are those of our linear_beta() where num_steps divides 1000.
    """
    from diffusers import DDIMParallelScheduler, DDPMParallelScheduler

    scheduler_class = {0.0: DDIMParallelScheduler, 1.0: DDPMParallelScheduler}[eta]
    scheduler = scheduler_class(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(num_steps)
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    return scheduler


def paradigms(
    problem: Problem, eta: float, window_size: int, tolerance: float, num_samples: int, seed: int
) -> tuple[Tensor, int, int]:
    """Samples [B, *shape], rounds, and evaluations of all samples together."""
    n = problem.table.num_nodes
    scheduler, draws = scheduler_of(n, eta), problem.draws(num_samples, seed)
    times = scheduler.timesteps
    ahead = times - 1000 // n
    a_t = scheduler.alphas_cumprod[times]
    a_s = torch.where(ahead >= 0, scheduler.alphas_cumprod[ahead.clamp(min=0)], 1.0)
    # variance of the DDPM posterior, for either eta; 0 at the last step, where it is floored
    variance = ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)).clamp(min=1e-20)
    # of the step that leaves the point which step i reaches; the last point has none
    leaving = torch.cat([variance[1:], variance.new_full((1,), 1e-20)])
    points = draws["x_init"].expand(n + 1, *draws["x_init"].shape).clone()
    begin, rounds, evaluations = 0, 0, 0
    while begin < n:
        end = min(begin + window_size, n)
        block, t = points[begin:end], times[begin:end]
        rows = block.flatten(0, 1)
        row_times = t.repeat_interleave(num_samples)
        output = problem.model(rows, row_times.to(rows.dtype))
        step = scheduler.batch_step_no_noise(output, row_times, rows).view_as(block)
        change = step - block
        if eta > 0:
            std = torch.where(ahead[begin:end] >= 0, variance[begin:end].sqrt(), 0.0)
            change = change + std.view(-1, 1, 1) * draws["noise"][begin:end]
        new = points[begin] + change.cumsum(0)
        error = (new - points[begin + 1 : end + 1]).square().flatten(2).mean(2)
        is_open = error > tolerance**2 * leaving[begin:end, None]
        first = is_open.any(1).int()
        moved = int(first.argmax()) + 1 if bool(first.any()) else end - begin
        points[begin + 1 : end + 1] = new
        points[end + 1 :] = new[-1]
        rounds, evaluations, begin = rounds + 1, evaluations + len(rows), begin + moved
    return points[-1], rounds, evaluations
