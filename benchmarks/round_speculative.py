"""Speculative acceptance for stochastic solvers: no tolerance, and the solver's law, not its path.

    python benchmarks/round_speculative.py        rounds and evaluations beside Picard's

After "Diffusion Models are Secretly Exchangeable" (Hu, Das, Sadigh and Anari 2025, arXiv
2505.03983): a window is drafted with x0 held, evaluated at once, and accepted step by step. With
mu_q the mean that the draft had and mu_p that of the evaluated point, both with deviation C,

    delta = (mu_q - mu_p) / C,   accept y = mu_q + C z with chance min(1, phi(z + delta) / phi(z)),
    else x = mu_p + C (z - 2 <e, z> e),  e = delta / |delta|

which is a draw of N(mu_p, C² I) whatever the draft was (reflection maximal coupling; Bou-Rabee,
Eberle and Zimmer 2020, section 2). A sample begins again at its first rejected step, so that it
moves by a step per round or more, and unlike in the paper that point is evaluated with the next
draft: one model call per iteration in place of two.

A draft may know all that came before. So it may be Picard's update (is_picard): x0 of a node's last
evaluation, changed with the node's point, and the noise z of that draft. The law holds because z_i
enters one decision, and what is drafted for step i depends on earlier steps' noise alone.
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


def speculate(
    problem: Problem,
    window: int,
    num_samples: int,
    generator: torch.Generator,
    *,
    is_picard: bool = True,
) -> Cost:
    """Draw samples; the window is the number of drafted steps, 1 is the sequential solver.

    is_picard: draft with each node's last x0 and the slope of Picard's update, else hold one x0.
    """
    table = problem.table
    if table.order != 1 or table.clip_x0 is not None or table.rule is not None:
        raise ValueError("speculation is written for one-step solvers without clipping")
    a, b, c = table.A_x0[:, 0], table.B_x0[:, 0], table.C
    n, dim, every = table.num_nodes, problem.shape[0], torch.arange(num_samples)
    slope = (1 - a) / b

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    # z of a step is used by one decision, and drafts of that step depend on earlier z alone
    x, z = normal(num_samples, dim), normal(num_samples, n, dim)
    used = torch.zeros_like(x)
    # each node's last evaluation: where, and x0
    at, x0 = torch.zeros_like(z), torch.zeros_like(z)
    is_known = torch.zeros(num_samples, n, dtype=torch.bool)
    start = torch.zeros(num_samples, dtype=torch.long)
    rounds, evaluations = torch.zeros_like(start), torch.zeros_like(start)
    length = torch.ones_like(start)
    while bool((start < n).any()):
        most = int(length.max())
        nodes = (start[:, None] + torch.arange(most)).clamp(max=n - 1)
        is_row = torch.arange(most) < length[:, None]
        point, held, points, drafted = x, used, [], []
        for i in nodes.T:
            last = x0[every, i] + slope[i, None] * (point - at[every, i])
            held = torch.where(is_known[every, i, None] & is_picard, last, held)
            points.append(point)
            drafted.append(held)
            point = a[i, None] * point + b[i, None] * held + c[i, None] * z[every, i]
        sample = is_row.nonzero()[:, 0]
        i, rows = nodes[is_row], torch.stack(points, 1)[is_row]
        m = problem.model(table.input_scale[i, None] * rows, table.model_time[i])
        x0[sample, i] = table.P[i, None] * rows + table.Q[i, None] * m
        at[sample, i], is_known[sample, i] = rows, True
        rounds, evaluations = rounds + (start < n), evaluations + is_row.sum(1)
        is_open = start < n
        for j, i in enumerate(nodes.T):
            is_open = is_open & is_row[:, j]
            # a step without noise has the true mean only
            delta = b[i, None] * (drafted[j] - x0[every, i]) / c[i, None].clamp_min(1e-300)
            delta = delta.where(c[i, None] > 0, 0.0)
            chance = torch.rand(num_samples, generator=generator, dtype=torch.float64)
            noise, stands = couple(z[every, i], delta, chance)
            new = a[i, None] * x + b[i, None] * x0[every, i] + c[i, None] * noise
            x = torch.where(is_open[:, None], new, x)
            used = torch.where(is_open[:, None], x0[every, i], used)
            start = start + is_open
            is_open = is_open & stands
        length = (n - start).clamp(max=window)
    return Cost(x, rounds, evaluations)


def main() -> None:
    """Print rounds of the batch and of a sample, evaluations, and the distance of laws."""
    print("rounds of the batch, of a sample, evaluations; energy distance to sequential samples")
    for name, num_steps, window in (
        ("mixture 2", 100, 100),
        ("mixture 32", 100, 100),
        ("digits 0.1", 100, 100),
        ("digits 0.3", 100, 100),
        ("digits 0.1", 1000, 32),
        ("digits 0.1", 1000, 100),
    ):
        problem = make(name, num_steps, 1.0)
        others = problem.sequential(16, 1)
        for is_picard in (False, True):
            generator = torch.Generator().manual_seed(0)
            cost = speculate(problem, window, 16, generator, is_picard=is_picard)
            rounds = cost.rounds.double()
            print(
                f"{name}, DDPM-{num_steps}, window {window}, {'Picard' if is_picard else 'held'}: "
                f"{rounds.max():.0f} {rounds.mean():.1f} {cost.evaluations.double().mean():.0f}, "
                f"{energy_distance(cost.samples, others):.3f}",
                flush=True,
            )
        for title in ("ParaDiGMS", "secant"):
            result = problem.parallel(METHODS[title], window, 0.1, 16, 0)
            print(
                f"    {title}, tolerance 0.1: {result.stats.rounds} "
                f"{result.stats.rounds_per_sample.mean():.1f} {result.stats.evaluations / 16:.0f}, "
                f"{energy_distance(result.samples, others):.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
