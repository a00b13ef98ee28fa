"""Settings of the contrastive loss, judged by the error of eps_hat against the exact score.

An ensemble of small MLPs, one per setting and seed, trains at once on mixtures whose score is
known. Settings share their seeds' initial weights, batches and denoising noise, so that what is
reported, an error divided by that of the denoising loss alone, is a paired comparison:
geometric mean over the seeds, ± the standard error of its logarithm (0.05 is 5 %). Errors are mean
squares per element at

    path        x_t = alpha x + sigma eps, uniform timesteps
    noise x k   x_t = alpha x + k sigma eps: a state with less or more noise than the model is told
    box         uniform points around the data at its noise level, weighted by sigma²
    asked       what a parallel sampler with the exact model asks: DDIM-50, all steps in its window

    python benchmarks/contrastive_settings.py [--quick] [--problem NAME] [--steps N] [--seeds S]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from ctd_engine import DenoisingLoss
from ctd_engine._contrast import Contrast, Pairs
from ctd_engine.logsnr_distributions import LogSNRDistribution, TruncatedLogistic, Uniform
from ctd_engine.training.mlp import PointMLP
from score_problems import SCHEDULE, Problem

BATCH, ROWS = 128, 16  # 2 ROWS more rows than denoising alone: a quarter


@dataclass(frozen=True)
class Setting:
    """One way to train; weight 0 is denoising, with `same_rows` on as many rows as the others.

    `zeta` is a range relative to -log(variance of the data), or the distribution. `exact_slope`
    takes the slope sigmoid(y delta) from 32 more draws: too dear to use, a reference.
    """

    name: str
    weight: float = 0.0
    temperature: float = 5.0
    num_draws: int = 2
    zeta: tuple[float, float] | LogSNRDistribution = (-3.0, 5.0)
    common: bool = True
    given_zeta: bool = True
    exact_slope: bool = False
    same_rows: bool = False


DENOISING = Setting("denoising")
QUICK = [
    DENOISING,
    Setting("denoising, same rows", same_rows=True),
    Setting("temperature 1, weight 0.01", 0.01, 1.0),
    Setting("temperature 5, weight 0.01 (default)", 0.01),
]
SETTINGS = [
    *QUICK[:2],
    Setting("temperature 1, weight 0.03", 0.03, 1.0, 4),
    Setting("temperature 1, weight 0.1", 0.1, 1.0, 4),
    Setting("exact slope, weight 0.03", 0.03, exact_slope=True),
    Setting("temperature 5, weight 0.01 (default)", 0.01),
    Setting("temperature 5, weight 0.02 (base)", 0.02),
    Setting("temperature 5, weight 0.05", 0.05),
    Setting("temperature 20, weight 0.01", 0.01, 20.0),
    Setting("base, 1 draw", 0.02, num_draws=1),
    Setting("base, 8 draws", 0.02, num_draws=8),
    Setting("base, zeta -3 .. 1", 0.02, zeta=(-3.0, 1.0)),
    Setting("base, zeta -0.5 .. 4.6", 0.02, zeta=(-0.5, 4.6)),
    Setting("base, zeta for images", 0.02, zeta=TruncatedLogistic(10.5, 1.5)),
    Setting("base, independent draws", 0.02, common=False),
    Setting("base, alpha not given zeta", 0.02, given_zeta=False),
    Setting("the paper's: 1, weight 2, independent", 2.0, 1.0, 1, common=False),
]


class Term:
    """The contrastive term of one setting, for all of its seeds."""

    def __init__(self, setting: Setting, problem: Problem) -> None:
        self.setting = setting
        self.contrast = Contrast(
            SCHEDULE, prediction="epsilon", time=None, sigma_data=0.5, alpha=problem.alpha
        )
        zeta, loc = setting.zeta, problem.alpha.loc
        self.zeta = Uniform(loc + zeta[0], loc + zeta[1]) if isinstance(zeta, tuple) else zeta

    def rows(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs `[S, 2 ROWS, dim]` and times for data `[S, BATCH, dim]`."""
        setting, num_seeds = self.setting, len(x)
        x = x[:, : ROWS // setting.num_draws].flatten(0, 1)
        zeta = self.zeta.sample((len(x),), generator=generator)
        self.y = 1.0 - 2.0 * torch.randint(2, (len(x),), generator=generator)
        signal, noise = SCHEDULE.alpha_sigma(torch.where(self.y > 0, torch.inf, zeta)[:, None])
        self.z = (signal * x + noise * torch.randn(x.shape, generator=generator)).float()
        self.pairs = self._pairs(zeta, setting.num_draws, generator)
        if setting.exact_slope:
            self.more = self._pairs(zeta, 32, generator)
        return by_seed(self.pairs, num_seeds)

    def loss(self, out: Tensor, ask: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """L_CDL of every seed, `[S]`, from outputs `[S, 2 ROWS, dim]`; `ask` asks for more."""
        num_seeds, flat = len(out), in_pairs(out)
        loss, delta = self.contrast.reduce(self.pairs, flat, self.y, self.setting.temperature)
        if self.setting.exact_slope:
            with torch.no_grad():
                more = in_pairs(ask(*by_seed(self.more, num_seeds)))
                _, better = self.contrast.reduce(self.more, more, self.y)
            loss = torch.sigmoid(self.y * better) * self.y * delta
        return loss.view(num_seeds, -1).mean(1)

    def _pairs(self, zeta: Tensor, num_draws: int, generator: torch.Generator) -> Pairs:
        common = self.setting.common
        options = dict(
            common_random_numbers=common, alpha_given_zeta=common and self.setting.given_zeta
        )
        return self.contrast.pairs(self.z, zeta, num_draws, generator, **options)


def by_seed(pairs: Pairs, num_seeds: int) -> tuple[Tensor, Tensor]:
    """Rows of pairs, all at alpha and then all at beta, as `[S, rows, dim]`; and their times."""
    x, t = pairs.query.input, pairs.query.time
    x = x.view(2, num_seeds, -1, x.shape[1]).transpose(0, 1).flatten(1, 2)
    return x, t.view(2, num_seeds, -1).transpose(0, 1).flatten(1).float()


def in_pairs(out: Tensor) -> Tensor:
    """The way back: outputs `[S, rows, dim]` in the order of the pairs."""
    return out.unflatten(1, (2, -1)).transpose(0, 1).flatten(0, 2)


class Ensemble:
    """One `PointMLP` per setting and seed, with an optimiser for all."""

    def __init__(self, num_settings: int, num_seeds: int, dim: int) -> None:
        models = []
        for seed in range(num_seeds):
            torch.manual_seed(seed)
            models.append(PointMLP(shape=(dim,), width=64))
        params, _ = stack_module_state(models)
        self.params = {
            name: value.detach().repeat(num_settings, *[1] * (value.dim() - 1)).requires_grad_()
            for name, value in params.items()
        }
        self.call = vmap(lambda params, x, t: functional_call(models[0], params, (x, t)))
        self.optimizer = torch.optim.AdamW(self.params.values(), fused=True)

    def ask(self, x: Tensor, t: Tensor, members: slice = slice(None)) -> Tensor:
        """Outputs of members, a row of x `[E, R, dim]` and t `[E, R]` each."""
        return self.call({name: value[members] for name, value in self.params.items()}, x, t)

    def step(self, losses: Tensor, lr: float) -> None:
        """One step down losses `[E]`, each member's gradient clipped to norm 1."""
        self.optimizer.zero_grad()
        losses.sum().backward()
        grads = [value.grad for value in self.params.values() if value.grad is not None]
        norms = torch.stack([grad.flatten(1).square().sum(1) for grad in grads]).sum(0).sqrt()
        for grad in grads:
            grad.mul_((1.0 / norms).clamp(max=1.0).view(-1, *[1] * (grad.dim() - 1)))
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()


def train(problem: Problem, settings: Sequence[Setting], num_seeds: int, steps: int) -> Ensemble:
    """Train every setting with every seed."""
    ensemble = Ensemble(len(settings), num_seeds, problem.dim)
    terms = [Term(setting, problem) for setting in settings]
    denoising = DenoisingLoss(SCHEDULE)
    generator = torch.Generator().manual_seed(17)
    own = [torch.Generator().manual_seed(18) for _ in settings]  # alike in any company
    for step in range(steps):
        x = problem.sample((num_seeds, BATCH + 2 * ROWS), generator)
        rows = denoising.rows(x.flatten(0, 1), generator)
        clean, target = rows.input.view_as(x), rows.target.view_as(x)
        t = rows.time.view(num_seeds, -1)
        xs, ts = [], []
        for term, rng in zip(terms, own, strict=True):
            more = clean[:, BATCH:], t[:, BATCH:]
            if term.setting.weight > 0:
                more = term.rows(x[:, :BATCH], rng)
            xs.append(torch.cat([clean[:, :BATCH], more[0]], 1))
            ts.append(torch.cat([t[:, :BATCH], more[1]], 1))
        out = ensemble.ask(torch.cat(xs), torch.cat(ts)).unflatten(0, (len(settings), -1))
        losses = []
        for i, term in enumerate(terms):
            members = slice(i * num_seeds, (i + 1) * num_seeds)
            used = None if term.setting.same_rows else BATCH
            loss = (out[i] - target)[:, :used].square().mean((1, 2))
            if term.setting.weight > 0:
                contrastive = term.loss(out[i, :, BATCH:], partial(ensemble.ask, members=members))
                loss = loss + term.setting.weight / problem.dim * contrastive
            losses.append(loss)
        warm, decay = min(1.0, (step + 1) / 200), 0.5 * (1 + math.cos(math.pi * step / steps))
        ensemble.step(torch.cat(losses), 1e-3 * warm * decay)
    return ensemble


@torch.no_grad()
def measure(ensemble: Ensemble, problem: Problem) -> dict[str, Tensor]:
    """Error of every member, `[E]`, by kind of point."""
    errors = {}
    for name, (x, logsnr, weight, eps) in problem.probes.items():
        t, each = SCHEDULE.time(logsnr).float(), []
        for i in range(len(ensemble.params["out.bias"])):
            out = ensemble.ask(x[None], t[None], slice(i, i + 1))[0]
            each.append((weight * (out - eps).square().mean(1)).sum() / weight.sum())
        errors[name] = torch.stack(each)
    return errors


def report(settings: Sequence[Setting], errors: dict[str, Tensor]) -> str:
    """A table: the first setting's errors, and the others' divided by it."""
    lines = [f"| | {' | '.join(errors)} |", "|---" * (1 + len(errors)) + "|"]
    for i, setting in enumerate(settings):
        cells = []
        for values in errors.values():
            first, mine = values.view(len(settings), -1)[[0, i]]
            ratio = (mine / first).log()
            spread = float(ratio.std()) / math.sqrt(len(ratio))
            divided = f"{float(ratio.mean().exp()):.2f} ± {spread:.2f}"
            cells.append(divided if i > 0 else f"{float(first.mean()):.2g}")
        lines.append(f"| {setting.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="settings of the contrastive loss, compared")
    parser.add_argument("--quick", action="store_true", help="4 settings, 500 steps, 2 seeds")
    parser.add_argument("--problem", choices=("1d", "spiral"), action="append")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int)
    options = parser.parse_args(arguments)
    settings = QUICK if options.quick else SETTINGS
    steps, seeds = (500, 2) if options.quick else (2000, 4)
    steps, seeds = options.steps or steps, options.seeds or seeds
    for name in options.problem or ("1d", "spiral"):
        problem = Problem(name)
        errors = measure(train(problem, settings, seeds, steps), problem)
        print(f"{name}, {steps} steps, {seeds} seeds\n\n{report(settings, errors)}\n", flush=True)


if __name__ == "__main__":
    main()
