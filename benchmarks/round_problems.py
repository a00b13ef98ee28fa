"""Problems for counting rounds: exact denoisers, easy to hard, and networks.

digits       the posterior mean of real 8x8 digits with a normal distribution of standard
             deviation 0.1 or 0.3 around each: the answer changes abruptly, which is hard
mixture      2, 32 or 1024 dimensions: a ring of 8, 32 and 64 components of deviation 0.1
checkpoint   the committed network of digits with labels, its x0 clipped to [-1, 1]
unet, dit    networks with random weights: no denoiser at all, and smooth
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ctd_engine import ParallelSampler, SampleResult, SequentialSampler, schedules, solvers
from ctd_engine.demo import demo_checkpoint
from ctd_engine.exact import MixtureModel
from ctd_engine.solvers import SolverTable
from ctd_engine.training.unet import SmallUNet
from digits_problem import digits


@dataclass(frozen=True)
class Method:
    """Arguments of `ParallelSampler` that make a method."""

    method: str = "picard"
    guess: str = "predicted"
    lockstep: bool = False
    adaptive_window: float | None = None
    far_stride: int = 1


METHODS = {
    # one window for all samples, copied points: Shih et al. 2023, Alg. 1
    "ParaDiGMS": Method(guess="copy", lockstep=True),
    "picard": Method(),
    "order_k": Method("order_k"),
    "data": Method("data"),
    "gaussian": Method("gaussian"),
    "picard, zero": Method(guess="zero"),
    "gaussian, zero": Method("gaussian", "zero"),
    "secant": Method("secant"),
    "secant, zero": Method("secant", "zero"),
    "secant, 2x": Method("secant", adaptive_window=2.0),
    "secant, prior": Method("secant", "prior"),
    "secant, far 4": Method("secant", far_stride=4),
    "secant, far 8": Method("secant", far_stride=8),
    "picard, far 4": Method(far_stride=4),
    "secant, prior, far 4": Method("secant", "prior", far_stride=4),
    "secant, prior, far 8": Method("secant", "prior", far_stride=8),
}


@dataclass(frozen=True)
class Problem:
    """A model on its solver's table. `dtype` is the states' and, for networks, the model's."""

    model: Callable[..., Tensor]
    table: SolverTable
    shape: tuple[int, ...]
    num_classes: int | None = None
    dtype: torch.dtype = torch.float64

    def _shared(self) -> dict[str, Any]:
        return dict(model=self.model, shape=self.shape, solver=self.table, dtype=self.dtype)

    def draws(self, num_samples: int, seed: int) -> dict[str, Any]:
        """x_0 and, for a stochastic solver, every z from torch's generator, and the labels."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*sizes: int) -> Tensor:
            z = torch.randn(*sizes, *self.shape, generator=generator, dtype=torch.float64)
            return z.to(self.dtype)

        drawn: dict[str, Any] = {"x_init": normal(num_samples)}
        if self.table.is_stochastic:
            drawn["noise"] = normal(self.table.num_nodes, num_samples)
        if self.num_classes is not None:
            drawn["cond"] = {"label": torch.arange(num_samples) % self.num_classes}
        return drawn

    def sequential(self, num_samples: int, seed: int) -> Tensor:
        """The samples that all methods must give, [B, *shape]."""
        sampler = SequentialSampler(**self._shared())
        return sampler.sample(num_samples, **self.draws(num_samples, seed)).samples

    def parallel(
        self, method: Method, window_size: int, tolerance: float, num_samples: int, seed: int
    ) -> SampleResult:
        """The same draws through a method; every window is whole in every round."""
        shared = self._shared()
        sampler = ParallelSampler(
            **shared,
            window_size=window_size,
            tolerance=tolerance,
            method=method.method,
            guess=method.guess,
            lockstep=method.lockstep,
            adaptive_window=method.adaptive_window,
            far_stride=method.far_stride,
            max_rows=num_samples * window_size,
        )
        draws = self.draws(num_samples, seed)
        result = sampler.sample(num_samples, **draws)
        if not result.all_converged:
            raise RuntimeError(f"{method} did not converge: {result.stop_reasons}")
        return result


def mixture_means(num_dims: int) -> Tensor:
    """Means [M, D] of the mixture: 8 on the unit circle, else normal with deviation 0.5."""
    if num_dims == 2:
        angle = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
        return torch.stack([angle.cos(), angle.sin()], dim=1)
    generator = torch.Generator().manual_seed(1)
    num_components = 32 if num_dims <= 32 else 64
    return 0.5 * torch.randn(num_components, num_dims, generator=generator, dtype=torch.float64)


def _exact(means: Tensor, std: float, num_steps: int, eta: float) -> Problem:
    table = solvers.ddim(schedules.linear_beta(), num_steps, eta=eta)
    return Problem(MixtureModel(table, means, std), table, (means.shape[1],))


class _LabelledDiT(nn.Module):
    # diffusers' network in the sampler's convention
    def __init__(self) -> None:
        super().__init__()
        from diffusers import DiTTransformer2DModel

        self.inner = DiTTransformer2DModel(
            num_attention_heads=4,
            attention_head_dim=8,
            in_channels=1,
            num_layers=3,
            sample_size=8,
            norm_num_groups=1,
            num_embeds_ada_norm=10,
        )

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.inner(x, timestep=t, class_labels=label).sample  # type: ignore[no-any-return]


def make(name: str, num_steps: int, eta: float) -> Problem:
    """The problem of a name, on DDIM(eta) with linear betas; eta = 1 is DDPM."""
    if name in ("digits 0.1", "digits 0.3"):
        return _exact(digits(), float(name.split()[1]), num_steps, eta)
    if name.startswith("mixture "):
        return _exact(mixture_means(int(name.split()[1])), 0.1, num_steps, eta)
    if name == "checkpoint":
        saved = demo_checkpoint()
        table = solvers.ddim(
            saved.schedule, num_steps, eta=eta, prediction=saved.prediction, clip_x0=1.0
        )
        classes = int(saved.config["num_classes"])
        return Problem(saved.model, table, saved.shape, classes, torch.float32)
    table = solvers.ddim(schedules.linear_beta(), num_steps, eta=eta, clip_x0=1.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "unet":
            unet = SmallUNet(shape=(1, 8, 8), width=16).eval()
            return Problem(unet, table, (1, 8, 8), None, torch.float32)
        if name == "dit":
            return Problem(_LabelledDiT().eval(), table, (1, 8, 8), 10, torch.float32)
    raise ValueError(f"no problem is called {name!r}")


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'| of two sets [n, ...], 0 or more, unbiased within a set.

    Szekely and Rizzo 2013, eq. 5; it can fall below 0 by chance where both have one law.
    """
    a, b = a.flatten(1).double(), b.flatten(1).double()

    def within(x: Tensor) -> Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))

    return float(2 * torch.cdist(a, b).mean() - within(a) - within(b))
