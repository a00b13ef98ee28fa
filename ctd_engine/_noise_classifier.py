"""A diffusion model as a classifier of noise levels, and as a density.

All of it is the pointwise denoising identity (Kong et al. 2023, arXiv 2302.03792), estimated
by importance sampling of the log-SNR with common random numbers for the two sides of a difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ctd_engine._calibration import Calibration, calibration_curve
from ctd_engine._contrast import Contrast, Draws, noise_share
from ctd_engine._gaussian import GaussianBase
from ctd_engine._moments import Estimate, Moments
from ctd_engine._rows import (
    Model,
    call_model,
    check_batch,
    draw_device,
    draw_normal,
    noised,
    repeat_cond,
)
from ctd_engine.logsnr_distributions import LogSNRDistribution

if TYPE_CHECKING:
    from ctd_engine.schedules import Schedule

__all__ = ["NoiseClassifier", "NoisePrediction"]


class NoisePrediction(NamedTuple):
    """How much noise each point seems to carry."""

    logsnr: Tensor  # most probable candidate, [K]; +inf for clean data
    posterior: Tensor  # [K, Z + 1]; the last column is clean data
    log_ratio: Estimate  # log p_zeta(z) - log p(z), [K, Z]


class NoiseClassifier:
    """A diffusion model used as a classifier of noise levels.

    With p_zeta the density of data to which noise of log-SNR zeta was added (variance preserving:
    z = sqrt(sigmoid(zeta)) x + sqrt(sigmoid(-zeta)) eps), the model's denoising errors give
    log p_zeta(z) - log p(z) for any z.

    Args:
        model: `model(x_t, t, **cond)`, returning the shape of x_t.
        schedule: the noise schedule the model was trained on.
        prediction: what the model returns: "epsilon", "x0", "v", "flow" or "edm".
        time: what the model is told, as for the losses.
        alpha: distribution of the log-SNR over which the likelihood is integrated, cut to the
            schedule's range; None for a wide logistic. `alpha_from_data` finds one.
        num_draws: draws of log-SNR and noise per point.
        max_rows: most rows per model call.
        sigma_data: standard deviation of the data, for "edm" only.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: for unknown names, fewer than 2 draws, or too few rows.
    """

    def __init__(
        self,
        model: Model,
        schedule: Schedule,
        *,
        prediction: str = "epsilon",
        time: str | None = None,
        alpha: LogSNRDistribution | None = None,
        num_draws: int = 256,
        max_rows: int = 1024,
        sigma_data: float = 0.5,
    ) -> None:
        if num_draws < 2:
            raise ValueError(f"num_draws must be at least 2 for a standard error, got {num_draws}")
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        self.model = model
        self.num_draws = num_draws
        self.max_rows = max_rows
        self._contrast = Contrast(
            schedule, prediction=prediction, time=time, sigma_data=sigma_data, alpha=alpha
        )

    @torch.no_grad()
    def log_ratio(
        self,
        z: Tensor,
        zeta: float | Sequence[float] | Tensor,
        *,
        generator: torch.Generator | None = None,
        **cond: Any,
    ) -> Estimate:
        """Estimate log p_zeta(z) - log p(z) for every point and every zeta, with the same draws.

        Args:
            z: points, `[K, *shape]`.
            zeta: a log-SNR or a list of Z of them.
            generator: source of all random numbers; None uses PyTorch's global one.
            **cond: conditioning; tensors have one entry per point, the rest is passed as it is.

        Returns:
            Values and standard errors, `[K]` for one zeta and `[K, Z]` for a list.

        Raises:
            TypeError: if z is not a floating-point tensor.
            ValueError: for wrong shapes, or a NaN among the zetas.
        """
        check_batch(z, "z")
        levels = torch.as_tensor(zeta, dtype=torch.float64, device="cpu")
        if levels.dim() > 1 or levels.numel() == 0 or bool(levels.isnan().any()):
            raise ValueError(
                "zeta must be one log-SNR or a list of at least one, none of them NaN, got shape "
                f"{tuple(levels.shape)}"
            )
        sums = Moments()
        for points, draws in self._chunks(z, generator):
            out_alpha = self._noise(draws, draws.logsnr, z, points, cond)
            deltas = []
            for level in levels.reshape(-1).to(draws.logsnr.device):
                beta, share = self._contrast.beta(level, draws.logsnr, generator)
                out_beta = self._noise(draws, beta, z, points, cond)
                b = noise_share(draws.logsnr, beta)
                delta = draws.log_ratios(out_alpha, out_beta, b)
                deltas.append(delta if share is None else share.to(delta) * delta)
            sums.add(points, torch.stack(deltas, 1))
        value, standard_error = sums.result(self.num_draws)
        if levels.dim() == 0:
            return Estimate(value[:, 0], standard_error[:, 0])
        return Estimate(value, standard_error)

    def predict(
        self,
        z: Tensor,
        zetas: Sequence[float] | Tensor,
        *,
        generator: torch.Generator | None = None,
        **cond: Any,
    ) -> NoisePrediction:
        """Say which of the candidate noise levels, or none, each point most probably has.

        Args:
            z: points, `[K, *shape]`.
            zetas: the Z candidates, log-SNRs; clean data is one more. All are equally probable
                beforehand.
            generator: source of all random numbers; None uses PyTorch's global one.
            **cond: conditioning, as for `log_ratio`.

        Returns:
            The most probable level of every point, the posterior and the log ratios.

        Raises:
            TypeError: if z is not a floating-point tensor.
            ValueError: for wrong shapes, or a NaN among the zetas.
        """
        candidates = _candidates(zetas)
        ratio = self.log_ratio(z, candidates, generator=generator, **cond)
        clean = ratio.value.new_zeros(len(z), 1)
        posterior = torch.cat([ratio.value, clean], 1).softmax(1)
        levels = torch.cat([candidates, candidates.new_tensor([math.inf])]).to(z.device)
        return NoisePrediction(levels[posterior.argmax(1)], posterior, ratio)

    def calibration(
        self,
        x: Tensor,
        zetas: Sequence[float] | Tensor,
        *,
        num_bins: int = 10,
        generator: torch.Generator | None = None,
        **cond: Any,
    ) -> Calibration:
        """Noise data to a random candidate level, or not, and check what `predict` says about it.

        The error of the log ratios makes a posterior too sure of itself: with too few draws even
        an exact model is not calibrated. It should be well below 1 (`predict` tells it).

        Args:
            x: data without noise, `[K, *shape]`.
            zetas: the Z candidates, log-SNRs; clean data is one more.
            num_bins: bins of the predicted probability.
            generator: source of all random numbers; None uses PyTorch's global one.
            **cond: conditioning, as for `log_ratio`.

        Returns:
            Predicted probabilities and observed frequencies of all K (Z + 1) pairs, in bins.

        Raises:
            TypeError: if x is not a floating-point tensor.
            ValueError: for wrong shapes, fewer than 1 bin, or a NaN among the zetas.
        """
        check_batch(x)
        candidates = _candidates(zetas)
        device = draw_device(x, generator)
        truth = torch.randint(len(candidates) + 1, (len(x),), generator=generator, device=device)
        # no noise at an infinite log-SNR
        level = torch.cat([candidates, candidates.new_tensor([math.inf])]).to(device)[truth]
        eps = draw_normal(tuple(x.shape), x, generator)
        z = noised(x, eps, level).to(x.dtype)
        answer = self.predict(z, candidates, generator=generator, **cond)
        return calibration_curve(answer.posterior, truth, num_bins)

    @torch.no_grad()
    def log_likelihood(
        self,
        x: Tensor,
        *,
        mean: float | Tensor = 0.0,
        variance: float | Tensor = 1.0,
        generator: torch.Generator | None = None,
        **cond: Any,
    ) -> Estimate:
        """Estimate log p(x) as a Gaussian's log density plus the integrated difference of errors.

        log p(x) = log N(x) + 1/2 E_n[ w_n ( |eps_n - eps_N(z_n)|^2 - |eps_n - eps_hat(z_n)|^2 ) ]

        with N the Gaussian of the given mean and variance and eps_N its exact noise prediction. The
        closer N is to the data, the smaller the variance. Outside the range of `alpha` the model
        counts as equal to N.

        Args:
            x: points, `[K, *shape]`.
            mean: mean of the data, a number or a tensor that broadcasts against a sample.
            variance: variance of each element, likewise.
            generator: source of all random numbers; None uses PyTorch's global one.
            **cond: conditioning; tensors have one entry per point, the rest is passed as it is.

        Returns:
            Values and standard errors, `[K]`.

        Raises:
            TypeError: if x is not a floating-point tensor.
            ValueError: for wrong shapes or a variance that is not positive.
        """
        check_batch(x)
        base = GaussianBase(mean, variance, x)
        sums = Moments()
        for points, draws in self._chunks(x, generator):
            out = self._noise(draws, draws.logsnr, x, points, cond)
            gaussian = base.noise(draws.z.flatten(0, 1), draws.logsnr.flatten())
            one = torch.ones_like(draws.logsnr)
            # -delta of "base against model", with the Gaussian in the place of p_zeta
            gain = -draws.log_ratios(out, gaussian.view(draws.eps.shape), one)
            sums.add(points, gain.unsqueeze(1))
        value, standard_error = (part[:, 0] for part in sums.result(self.num_draws))
        return Estimate(base.log_density(x) + value, standard_error)

    def _chunks(
        self, z: Tensor, generator: torch.Generator | None
    ) -> Iterator[tuple[slice, Draws]]:
        step = min(len(z), self.max_rows)
        most_draws = self.max_rows // step
        for first in range(0, len(z), step):
            points = slice(first, min(first + step, len(z)))
            for done in range(0, self.num_draws, most_draws):
                count = min(most_draws, self.num_draws - done)
                yield points, self._contrast.draw(z[points], count, generator)

    def _noise(
        self, draws: Draws, logsnr: Tensor, z: Tensor, points: slice, cond: dict[str, Any]
    ) -> Tensor:
        count = torch.arange(points.start, points.stop, device=z.device)
        index = count.repeat_interleave(logsnr.shape[1])
        rows = repeat_cond(cond, index, len(z))
        query = self._contrast.query(draws.z.flatten(0, 1), logsnr.flatten())
        out = call_model(self.model, query.input, query.time, z.dtype, rows)
        return query.noise(out).view(draws.eps.shape)


def _candidates(zetas: Sequence[float] | Tensor) -> Tensor:
    candidates = torch.as_tensor(zetas, dtype=torch.float64, device="cpu")
    if candidates.dim() != 1:
        raise ValueError(f"zetas must be a list of log-SNRs, got shape {tuple(candidates.shape)}")
    return candidates
