"""ParallelSampler and its oracle, SequentialSampler: validate, build, loop, result."""

from __future__ import annotations

import time as _time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ctd_engine import _checks
from ctd_engine._request import Request, SamplerBase
from ctd_engine._sequential import SequentialSampler
from ctd_engine._trajectory import GUESSES, METHODS, TrajectoryStore, to_windows
from ctd_engine.denoiser import Model
from ctd_engine.ops._dispatch import resolve
from ctd_engine.result import (
    Callback,
    RoundProgress,
    RoundRecord,
    SampleResult,
    SampleStats,
    StopReason,
)
from ctd_engine.schedules import Schedule
from ctd_engine.scheduling import Finished, make_scheduler
from ctd_engine.solvers import SolverTable

__all__ = ["ParallelSampler", "RoundProgress", "SequentialSampler"]

AUTO_WINDOW = 32
# the scheduler's codes, in its order
REASONS = (
    StopReason.CONVERGED,
    StopReason.MAX_ROUNDS,
    StopReason.DIVERGED,
    StopReason.CANCELLED,
)


class ParallelSampler(SamplerBase):
    """Sample a diffusion model parallel in time, by Picard iteration over sliding windows.

    Every round evaluates the model on a window of each sample's trajectory in one batch, corrects
    all points at once, and moves each window to its first point that still changes (Shih et al.
    2023, arXiv 2305.16317, Alg. 1, with predicted first guesses and one window per sample). At
    tolerance 0 the result is the sequential sampler's, in at most `num_nodes` rounds.

    Args:
        model: `model(x [R, *shape], t [R], **cond) -> [R, *shape]`; rows must be independent.
        shape: shape of one sample, without the batch.
        schedule: noise schedule, from `ctd_engine.schedules`.
        solver: a name from `ctd_engine.solvers`, or a `SolverTable`, which then also carries
            num_steps, prediction, time and clip_x0.
        num_steps: solver steps N.
        prediction: what the model returns: "epsilon", "x0", "v", "flow" or "edm".
        time: the model's time input: None (the schedule's own), "timestep", "logsnr", "sigma",
            "c_noise" or "flow".
        clip_x0: clip the data prediction to [-clip_x0, clip_x0]; None does not clip.
        window_size: points per window; "auto" is 32, or all when there are fewer.
        tolerance: a point is accepted when its root mean squared change is at most `tolerance`
            times the standard deviation of the noise that the step from it adds.
        method: "picard", "order_k" or "data", the slope of the update (`docs/algorithm.md`).
        guess: "predicted" (x0 held, true noise) or "copy" (ParaDiGMS) for new window points.
        max_rows: rows of one model batch, shared fairly among the samples.
        max_rounds: rounds that one sample may take; None is the number of nodes, always enough.
        lockstep: all samples share one window, as in ParaDiGMS; a baseline, never faster.
        null_cond: the model's keyword arguments for "no condition", for guidance.
        dtype: float32 or float64, of states and step mathematics.
        model_dtype: dtype of the model's input; None is `dtype`. Times stay in `dtype`.
        device: where states live and the model runs.
        backend: None (Triton on a CUDA device, else the reference), "reference" or "triton".
        scheduler_backend: None (the extension, or its Python twin), "cpp" or "python".
        solver_options: further arguments of the solver, such as {"eta": 1.0}.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it.
    """

    def __init__(
        self,
        model: Model,
        *,
        shape: Sequence[int],
        schedule: Schedule | None = None,
        solver: str | SolverTable = "ddpm",
        num_steps: int = 1000,
        prediction: str = "epsilon",
        time: str | None = None,
        clip_x0: float | None = None,
        window_size: int | str = "auto",
        tolerance: float = 0.1,
        method: str = "picard",
        guess: str = "predicted",
        max_rows: int = 256,
        max_rounds: int | None = None,
        lockstep: bool = False,
        null_cond: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
        model_dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        backend: str | None = None,
        scheduler_backend: str | None = None,
        solver_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            model,
            shape=shape,
            schedule=schedule,
            solver=solver,
            num_steps=num_steps,
            prediction=prediction,
            time=time,
            clip_x0=clip_x0,
            null_cond=null_cond,
            dtype=dtype,
            model_dtype=model_dtype,
            device=device,
            solver_options=solver_options,
        )
        _checks.require_choice("method", method, METHODS)
        _checks.require_choice("guess", guess, GUESSES)
        if window_size == "auto":
            window_size = AUTO_WINDOW
        if isinstance(window_size, str):
            raise ValueError(f'window_size must be "auto" or an integer >= 1, got {window_size!r}')
        resolve(backend, torch.empty(0, device=self.device))
        # a window can hold no more than all nodes, nor more rows than a batch
        self.window_size = min(
            _checks.require_int("window_size", window_size, minimum=1), self.table.num_nodes
        )
        self.tolerance = _checks.require_float("tolerance", tolerance, minimum=0.0)
        self.method = method
        self.max_rows = _checks.require_int("max_rows", max_rows, minimum=1)
        self.max_rounds = (
            self.table.num_nodes
            if max_rounds is None
            else _checks.require_int("max_rounds", max_rounds, minimum=1)
        )
        self._guess = guess
        self._lockstep = bool(lockstep)
        self._backend = backend
        self._scheduler_backend = scheduler_backend

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
    ) -> SampleResult:
        """Draw samples.

        Args:
            num_samples: B.
            seed: one integer for the whole call; sample b gets its own seed derived from (seed, b).
            seeds: B integers in [0, 2**64), one per sample, instead of `seed`. Equal seeds give
                equal samples, whatever else is in the batch. With neither, torch's global
                generator supplies a seed.
            x_init: x_0 [B, *shape], instead of initial noise from the seeds.
            noise: z [num_nodes, B, *shape], or a callable `noise(nodes [R], samples [R]) ->
                [R, *shape]`, instead of the noise of the steps from the seeds.
            cond: keyword arguments of the model; tensors have one row per sample.
            guidance_scale: classifier-free guidance, needs `null_cond`; 1 or None is off.
            progress: show a progress bar of finished trajectory points.
            callback: called with a `RoundProgress` after every round; returning True cancels.

        Returns:
            Samples, statistics and a `StopReason` per sample. Numerical failure is a reason, not
            an exception: a diverged sample is NaN and the others are not touched.
        """
        begin = _time.perf_counter()
        request = self._request(num_samples, seed, seeds, x_init, noise, cond, guidance_scale)
        with torch.inference_mode():
            return self._run(request, progress, callback, begin)

    def _run(
        self, request: Request, progress: bool, callback: Callback | None, begin: float
    ) -> SampleResult:
        num_samples, nodes = request.num_samples, self.table.num_nodes
        # as many samples at a time as fill the batch with whole windows; lockstep needs all
        fitting = -(-self.max_rows // self.window_size)
        num_slots = num_samples if self._lockstep else min(num_samples, fitting)
        store = TrajectoryStore(
            self.table,
            num_slots=num_slots,
            window_size=self.window_size,
            num_elements=request.num_elements,
            method=self.method,
            guess=self._guess,
            tolerance=self.tolerance,
            noise=request.noise,
            dtype=self.dtype,
            device=self.device,
            backend=self._backend,
        )
        scheduler = make_scheduler(
            num_samples=num_samples,
            num_nodes=nodes,
            window_size=self.window_size,
            max_rows=self.max_rows,
            num_slots=num_slots,
            first_length=1 if self._guess == "predicted" else self.window_size,
            max_rounds=self.max_rounds,
            lockstep=self._lockstep,
            backend=self._scheduler_backend,
        )
        samples = request.empty_samples()
        ends: list[Finished] = []
        history: list[RoundRecord] = []
        evaluations = 0
        bar = tqdm(total=num_samples * nodes, disable=not progress, unit="pt", desc="sampling")
        in_slot = np.full(num_slots, -1)
        with bar:
            while (plan := scheduler.plan()) is not None:
                bar.update(nodes * len(ends) + int(plan.start.sum()) - bar.n)
                for slot, entrant in zip(plan.slot, plan.sample, strict=True):
                    if in_slot[slot] != entrant:
                        in_slot[slot] = entrant
                        store.admit(int(slot), request.initial(int(entrant)))
                store.guess(plan)
                windows = to_windows(plan, self.device)
                sample, row_sample = (
                    torch.from_numpy(values).to(self.device)
                    for values in (plan.sample, plan.row_sample)
                )
                x, t = store.model_rows(windows, self.model_dtype)
                m, m_null = request.denoiser(x, t, row_sample)
                accepted, finite = store.update(
                    windows, sample, row_sample, m, m_null, request.denoiser.guidance_scale
                )
                # sync: the scheduler runs on the host and needs every window's advance
                finished = scheduler.step(accepted.cpu().numpy(), finite.cpu().numpy())
                history.append(RoundRecord(plan.sample, plan.start, plan.length))
                evaluations += len(x)
                for end in finished:
                    self._collect(end, store, samples)
                ends += finished
                told = RoundProgress(len(history), evaluations, len(ends), num_samples)
                if callback is not None and callback(told) is True:
                    cancelled = scheduler.cancel()
                    for end in cancelled:
                        self._collect(end, store, samples)
                    ends += cancelled
            bar.update(nodes * len(ends) - bar.n)
        ends.sort(key=lambda end: end.sample)
        stats = SampleStats(
            rounds=len(history),
            evaluations=evaluations * request.denoiser.evaluations_per_row,
            wall_time_s=_time.perf_counter() - begin,
            rounds_per_sample=np.array([end.rounds for end in ends]),
            evaluations_per_sample=np.array([end.evaluations for end in ends])
            * request.denoiser.evaluations_per_row,
            state_bytes=store.state_bytes,
            window_history=history,
        )
        return request.result(samples, stats, [REASONS[end.reason] for end in ends])

    def _collect(self, end: Finished, store: TrajectoryStore, samples: torch.Tensor) -> None:
        reason = REASONS[end.reason]
        if reason is StopReason.CONVERGED:
            samples[end.sample] = store.state(end.slot, self.table.num_nodes)
        elif reason is not StopReason.DIVERGED and end.slot >= 0 and end.known >= 1:
            samples[end.sample] = store.data_estimate(end.slot, end.known - 1)
