"""Speculative acceptance for stochastic solvers: no tolerance, and the solver's law, not its path.

    python benchmarks/round_speculative.py        rounds and evaluations beside Picard's

After "Diffusion Models are Secretly Exchangeable" (Hu, Das, Sadigh and Anari 2025, arXiv
2505.03983): a window is drafted with x0 held, evaluated at once, and accepted step by step. With
mu_q the mean that the draft had and mu_p that of the evaluated point, both with deviation C,

    delta = (mu_q - mu_p) / C,   accept y = mu_q + C z with chance min(1, phi(z + delta) / phi(z)),
    else x = mu_p + C (z - 2 <e, z> e),  e = delta / |delta|

which is a draw of N(mu_p, C² I) whatever the draft was (reflection maximal coupling; Bou-Rabee,
Eberle and Zimmer 2020, section 2). A sample begins again at its first rejected step, so that it
moves by a step per round or more. Unlike the paper, which evaluates that point alone first, the
next draft holds the x0 of the point before it: one model call per iteration in place of two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from round_problems import METHODS, Problem, energy_distance, make


@dataclass(frozen=True)
class Cost:
    """Samples [B, D], rounds [B] and evaluations [B]."""

    samples: Tensor
    rounds: Tensor
    evaluations: Tensor


def couple(z: Tensor, delta: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
    """Noise [B, D] around mu_p and which drafts [B] stand; `chance` is uniform, [B].

    z: of the draft; delta: (mu_q - mu_p) / C. The noise is normal and as often as it can be
    z + delta, which is the draft itself.
    """
    # log phi(z + delta) - log phi(z)
    log_ratio = -(delta * z).sum(1) - 0.5 * delta.square().sum(1)
    stands = chance.log() <= log_ratio
    e = delta / delta.norm(dim=1, keepdim=True).clamp_min(1e-300)
    reflected = z - 2 * (e * z).sum(1, keepdim=True) * e
    return torch.where(stands[:, None], z + delta, reflected), stands


def speculate(problem: Problem, window: int, num_samples: int, generator: torch.Generator) -> Cost:
    """Draw samples; the window is the number of drafted steps, 1 is the sequential solver."""
    table = problem.table
    if table.order != 1 or table.clip_x0 is not None or table.rule is not None:
        raise ValueError("speculation is written for one-step solvers without clipping")
    a, b, c = table.A_x0[:, 0], table.B_x0[:, 0], table.C
    n, dim = table.num_nodes, problem.shape[0]

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    x, held = normal(num_samples, dim), torch.zeros(num_samples, dim, dtype=torch.float64)
    start = torch.zeros(num_samples, dtype=torch.long)
    rounds, evaluations = torch.zeros_like(start), torch.zeros_like(start)
    length = torch.ones_like(start)
    while bool((start < n).any()):
        most = int(length.max())
        nodes = (start[:, None] + torch.arange(most)).clamp(max=n - 1)
        is_row = torch.arange(most) < length[:, None]
        z = normal(num_samples, most, dim)
        drafts = [x]
        for j in range(most - 1):
            i = nodes[:, j, None]
            drafts.append(a[i] * drafts[-1] + b[i] * held + c[i] * z[:, j])
        points, i = torch.stack(drafts, 1)[is_row], nodes[is_row]
        m = problem.model(table.input_scale[i, None] * points, table.model_time[i])
        x0 = torch.zeros(num_samples, most, dim, dtype=torch.float64)
        x0[is_row] = table.P[i, None] * points + table.Q[i, None] * m
        rounds, evaluations = rounds + (start < n), evaluations + is_row.sum(1)
        now, used, is_open = x, held, start < n
        for j in range(most):
            i = nodes[:, j, None]
            is_open = is_open & is_row[:, j]
            # the step from the last point and one without noise have the true mean only
            delta = b[i] * (held - x0[:, j]) / c[i].clamp_min(1e-300)
            chance = torch.rand(num_samples, generator=generator, dtype=torch.float64)
            noise, stands = couple(z[:, j], delta.where(c[i] > 0, 0.0), chance)
            new = a[i] * now + b[i] * x0[:, j] + c[i] * noise
            now, used = (
                torch.where(is_open[:, None], v, o) for v, o in ((new, now), (x0[:, j], used))
            )
            start = start + is_open
            is_open = is_open & stands
        x, held = now, used
        length = (n - start).clamp(max=window)
    return Cost(x, rounds, evaluations)


def main() -> None:
    """Print rounds of the batch and of a sample, evaluations, and the distance of laws."""
    print("rounds of the batch, of a sample, evaluations; energy distance to sequential samples")
    for name, num_steps, window in (
        ("mixture 2", 100, 100),
        ("mixture 32", 100, 100),
        ("digits 0.1", 100, 100),
        ("digits 0.1", 1000, 32),
    ):
        problem = make(name, num_steps, 1.0)
        others = problem.sequential(16, 1)
        cost = speculate(problem, window, 16, torch.Generator().manual_seed(0))
        rounds = cost.rounds.double()
        picard = problem.parallel(METHODS["secant"], window, 0.1, 16, 0)
        print(
            f"{name}, DDPM-{num_steps}, window {window}: speculative {rounds.max():.0f} "
            f"{rounds.mean():.1f} {cost.evaluations.double().mean():.0f}, "
            f"{energy_distance(cost.samples, others):.3f}; secant {picard.stats.rounds} "
            f"{picard.stats.rounds_per_sample.mean():.1f} {picard.stats.evaluations / 16:.0f}, "
            f"{energy_distance(picard.samples, others):.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
