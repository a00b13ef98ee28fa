"""Mixtures whose score is known, and points at which to compare a model with it."""

from __future__ import annotations

import torch
from torch import Tensor

from ctd_engine import ParallelSampler, schedules, solvers
from ctd_engine.exact import MixtureModel
from ctd_engine.logsnr_distributions import alpha_from_data

SCHEDULE = schedules.linear_beta()


class Problem:
    """A mixture of narrow Gaussians, and where to measure."""

    def __init__(self, name: str, num_probes: int = 2000) -> None:
        if name == "1d":
            means, self.std = torch.tensor([[-5.0], [5.0]], dtype=torch.float64), 1.0
        else:
            turn = torch.linspace(0.15, 1.0, 100, dtype=torch.float64).sqrt()[:, None]
            arm = turn * torch.cat([(9.42 * turn).cos(), (9.42 * turn).sin()], 1)
            means, self.std = torch.cat([arm, -arm]), 0.06
        self.means, self.dim = means, means.shape[1]
        self.table = solvers.build("ddim", SCHEDULE, 50, prediction="epsilon", eta=0.0)
        self.exact = MixtureModel(self.table, means, self.std)
        self.alpha = alpha_from_data(self.sample((4096,), torch.Generator().manual_seed(1)))
        self.probes = {
            name: (x.float(), level, weight, self.eps(x.double(), level).float())
            for name, (x, level, weight) in self._points(num_probes).items()
        }

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Data of a shape, `[*shape, dim]`."""
        means = self.means[torch.randint(len(self.means), shape, generator=generator)]
        noise = torch.randn(means.shape, generator=generator, dtype=torch.float64)
        return (means + self.std * noise).float()

    def eps(self, x: Tensor, logsnr: Tensor) -> Tensor:
        """E[eps | x_t = x], `[P, dim]`."""
        alpha, sigma = (part[:, None] for part in SCHEDULE.alpha_sigma(logsnr))
        return (x - alpha * self.exact.denoise(x, alpha, sigma)) / sigma

    def _points(self, num: int) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        generator, one = torch.Generator().manual_seed(5), torch.ones(num)
        x = self.sample((num,), generator).double()
        logsnr = SCHEDULE.logsnrs[torch.randint(1000, (num,), generator=generator)]
        alpha, sigma = (part[:, None] for part in SCHEDULE.alpha_sigma(logsnr))
        eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        points = {"path": (alpha * x + sigma * eps, logsnr, one)}
        for factor in (0.5, 1.5, 2.0):
            points[f"noise x {factor:g}"] = (alpha * x + factor * sigma * eps, logsnr, one)
        box = 2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1
        reach = alpha * 1.2 * x.abs().max() + 2 * sigma
        points["box"] = (box * reach, logsnr, sigma[:, 0].float() ** 2)
        points["asked"] = self._asked(num)
        return points

    def _asked(self, num: int) -> tuple[Tensor, Tensor, Tensor]:
        rows: list[Tensor] = []
        times: list[Tensor] = []

        def model(x: Tensor, t: Tensor) -> Tensor:
            rows.append(x.clone())
            times.append(t.clone())
            return self.exact(x, t)

        ParallelSampler(
            model,
            shape=(self.dim,),
            schedule=SCHEDULE,
            solver=self.table,
            num_steps=50,
            window_size=50,
            tolerance=0.1,
        ).sample(64, seed=3)
        x, t = torch.cat(rows).double(), torch.cat(times)
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:num]
        return x[chosen], SCHEDULE.logsnrs[t[chosen].round().long()], torch.ones(len(chosen))
