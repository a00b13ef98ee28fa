"""SequentialSampler: the oracle that the parallel one equals. Public as `ctd_engine.sampler`'s."""

from __future__ import annotations

import time as _time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ctd_engine._coefficients import bound_rule, solver_coefficients
from ctd_engine._request import Request, SamplerBase
from ctd_engine.ops.picard_update.reference import banded_step, combine_guidance, data_prediction
from ctd_engine.result import Callback, RoundProgress, SampleResult, SampleStats, StopReason

__all__ = ["SequentialSampler"]


class SequentialSampler(SamplerBase):
    """The ordinary sampler, one model call per node: the oracle that the parallel one equals.

    Takes the arguments of `ParallelSampler` less those of windows and tolerance, and the same
    arguments of `sample`; all samples move together in one batch.
    """

    def sample(
        self,
        num_samples: int = 1,
        *,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        x_init: torch.Tensor | None = None,
        noise: torch.Tensor | Callable[..., torch.Tensor] | None = None,
        cond: Mapping[str, Any] | None = None,
        guidance_scale: float | None = None,
        progress: bool = False,
        callback: Callback | None = None,
        keep_trajectory: bool = False,
    ) -> SampleResult:
        """Draw samples; arguments and result as in `ParallelSampler.sample`."""
        begin = _time.perf_counter()
        request = self._request(num_samples, seed, seeds, x_init, noise, cond, guidance_scale)
        with torch.inference_mode():
            return self._run(request, progress, callback, keep_trajectory, begin)

    def _run(
        self,
        request: Request,
        progress: bool,
        callback: Callback | None,
        keep_trajectory: bool,
        begin: float,
    ) -> SampleResult:
        table, num_samples = self.table, request.num_samples
        c = solver_coefficients(table, "picard", self.dtype, self.device)
        rule = bound_rule(table, self.dtype, self.device)
        input_scale, model_time = (
            values.to(device=self.device, dtype=self.dtype)
            for values in (table.input_scale, table.model_time)
        )
        rows = torch.arange(num_samples, device=self.device)
        x = request.starts()
        # x_i, x_{i-1}, ... and their x0; before node 0 the coefficients are 0
        states = x[:, None].repeat(1, table.order, 1)
        estimates = torch.zeros_like(states)
        points = [x]
        steps = 0
        cancelled = False
        for i in tqdm(range(table.num_nodes), disable=not progress, unit="step", desc="sampling"):
            node = torch.full_like(rows, i)
            scaled = (input_scale[node][:, None] * states[:, 0]).to(self.model_dtype)
            m, m_null = request.denoiser(scaled, model_time[node], rows)
            g = request.denoiser.guidance_scale
            z = None
            if table.is_stochastic:
                z = request.noise.step(node, rows, self.dtype)
            if rule is not None:
                x0, added = rule(states[:, 0], m, m_null, g, node, z)
            else:
                m = combine_guidance(m, m_null, g, self.dtype)
                x0 = data_prediction(states[:, 0], m, c.P[node], c.Q[node], c.clip)
                added = None if z is None else c.C[node][:, None] * z
            estimates = torch.cat([x0[:, None], estimates[:, :-1]], dim=1)
            x = banded_step(c.A[node], c.B[node], added, states, estimates)
            states = torch.cat([x[:, None], states[:, :-1]], dim=1)
            if keep_trajectory:
                points.append(x)
            steps = i + 1
            told = RoundProgress(steps, steps * num_samples, 0, num_samples)
            if callback is not None and callback(told) is True and steps < table.num_nodes:
                cancelled = True
                break
        samples = request.empty_samples()
        is_finite = torch.isfinite(x).all(dim=1)
        samples[is_finite] = (estimates[:, 0] if cancelled else x)[is_finite]
        # sync: the result is on its way to the user
        reasons = [_end_reason(finite, cancelled) for finite in is_finite.tolist()]
        each = np.full(num_samples, steps)
        stats = SampleStats(
            rounds=steps,
            evaluations=steps * num_samples * request.denoiser.evaluations_per_row,
            wall_time_s=_time.perf_counter() - begin,
            rounds_per_sample=each,
            evaluations_per_sample=each * request.denoiser.evaluations_per_row,
            state_bytes=2 * states.numel() * states.element_size(),
        )
        trajectory = None
        if keep_trajectory:
            trajectory = x.new_full((num_samples, table.num_nodes + 1, x.shape[1]), torch.nan)
            trajectory[:, : len(points)] = torch.stack(points, dim=1)
        return request.result(samples, stats, reasons, trajectory)


def _end_reason(is_finite: bool, cancelled: bool) -> StopReason:
    if not is_finite:
        return StopReason.DIVERGED
    return StopReason.CANCELLED if cancelled else StopReason.CONVERGED
