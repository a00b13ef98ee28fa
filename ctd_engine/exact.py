"""Exact denoisers: models with a known answer, for tests, benchmarks and examples."""

from __future__ import annotations

import torch
from torch import Tensor

from ctd_engine import _checks
from ctd_engine.solvers import SolverTable

__all__ = ["MixtureModel"]


class MixtureModel:
    """The exact model of a mixture of normal distributions sum_k w_k N(mean_k, std² I).

    With one component it is a Gaussian; with one component per training image it is the "empirical
    data" denoiser. Called as `model(x [R, *shape], t [R])` it answers in the prediction of the
    table, so that P x + Q m = E[x0 | x_t = x]: per component
    E[x0 | x, k] = mean_k + alpha std² / v (x - alpha mean_k), v = alpha² std² + sigma².

    Args:
        table: the solver that will call it; its nodes are recognised by their model time.
        means: [M, D].
        std: standard deviation of every component, >= 0.
        weights: [M], positive; None is uniform.

    Raises:
        ValueError: means that are no matrix, a negative std, weights that do not fit or are not
            positive.
    """

    def __init__(
        self, table: SolverTable, means: Tensor, std: float, weights: Tensor | None = None
    ) -> None:
        if means.dim() != 2:
            raise ValueError(f"means must have shape [M, D], got {tuple(means.shape)}")
        self._std = _checks.require_float("std", std, minimum=0.0)
        if weights is not None and (weights.shape != means.shape[:1] or bool((weights <= 0).any())):
            raise ValueError(f"weights must be [{len(means)}] and positive")
        log_weights = torch.zeros(len(means)) if weights is None else weights.double().log()
        self._means, self._log_weights = means.double(), log_weights.double()
        times, node = table.model_time.sort(stable=True)
        # two nodes of one time (a stage and the step it predicts) lie at one level
        self._times = times
        columns = (
            table.alpha[:-1],
            table.sigma[:-1],
            table.P,
            table.Q,
            table.input_scale,
        )
        self._nodes = torch.stack(columns, dim=1)[node]
        self._cast: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor, Tensor]] = {}

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x] for rows x [R, D] at alpha, sigma [R, 1], in the dtype of x."""
        means, norms, log_weights = self._in(x)
        variance = (alpha * self._std).square() + sigma.square()
        # |x - alpha mean|² without a [R, M, D] tensor; |x|² is common to all components
        distance = alpha.square() * norms - 2.0 * alpha * (x @ means.T)
        mixture = torch.softmax(log_weights - distance / (2.0 * variance), dim=1) @ means
        return mixture + alpha * self._std**2 / variance * (x - alpha * mixture)

    def score(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Gradient of the log density of noised data at z [R, *shape] and log-SNRs [R].

        Any level of the variance-preserving path, not only the table's.
        """
        rows = z.reshape(len(z), -1)
        level = logsnr.double()
        alpha, sigma = (torch.sigmoid(v).sqrt().to(z)[:, None] for v in (level, -level))
        return ((alpha * self.denoise(rows, alpha, sigma) - rows) / sigma.square()).view_as(z)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        rows = x.reshape(len(x), -1)
        nearest = torch.searchsorted(self._times, t.double().cpu()).clamp(max=len(self._times) - 1)
        before = (nearest - 1).clamp(min=0)
        closer = (self._times[before] - t.cpu()).abs() < (self._times[nearest] - t.cpu()).abs()
        nodes = self._nodes[torch.where(closer, before, nearest)].to(x)
        alpha, sigma, p, q, input_scale = nodes.unsqueeze(-1).unbind(1)
        state = rows / input_scale
        return ((self.denoise(state, alpha, sigma) - p * state) / q).view_as(x)

    def _in(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key = (x.dtype, x.device)
        if key not in self._cast:
            means = self._means.to(x)
            self._cast[key] = (means, means.square().sum(1), self._log_weights.to(x))
        return self._cast[key]
